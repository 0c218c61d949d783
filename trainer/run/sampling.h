// sampling.h - which token comes next: from logits and a uniform random number. Pure functions.
#pragma once
#include "fail.h"

typedef struct SamplingRule {
    double temperature; // logits are divided by it; 0: the largest logit, whatever the rest says
    int64_t top_k;      // only the k largest logits; 0: all
    double top_p;       // of those only the fewest largest whose probabilities add up to p; 1: all
} SamplingRule;

// A token that may come and its probability.
typedef struct Candidate {
    int32_t id;
    float logit;
    double p;
} Candidate;

// sampling_candidates: what may come next and how probably: out [*n], room for V, the largest logit first, of equal
// ones the lowest id first. A logit of minus infinity stands for a token that never comes. Errors: E_NUMERIC: a logit
// that is NaN or plus infinity, or no token may come. Local.
Err sampling_candidates(Candidate *out, int64_t *n, const float *logits, int64_t V, const SamplingRule *rule)
    MUST_CHECK;
// sampling_pick: the one that the number u in (0, 1) falls on when they are laid out in order, each as long as it is
// probable. Local.
int32_t sampling_pick(const Candidate *c, int64_t n, double u);
