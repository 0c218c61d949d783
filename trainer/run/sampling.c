// sampling.c - temperature, top-k, top-p.
#include "sampling.h"

#include <math.h>
#include <stdlib.h>

// The largest logit first; ids differ, so the order is one only.
static int by_logit(const void *pa, const void *pb) {
    const Candidate *a = pa, *b = pb;
    if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

// collect: the tokens that may come at all.
static Err collect(Candidate *out, int64_t *n, const float *logits, int64_t V) {
    *n = 0;
    for (int64_t i = 0; i < V; i++) {
        CHECK(!isnan(logits[i]) && logits[i] < INFINITY, E_NUMERIC, "the logit of token %lld is %g", (long long)i,
              (double)logits[i]);
        if (logits[i] == -INFINITY) continue;
        out[(*n)++] = (Candidate){(int32_t)i, logits[i], 0.0};
    }
    CHECK(*n > 0, E_NUMERIC, "no token may come next: all logits are minus infinity");
    return OK;
}

// largest: only the first in the order.
static void largest(Candidate *c, int64_t *n) {
    for (int64_t i = 1; i < *n; i++) {
        if (by_logit(&c[i], &c[0]) < 0) c[0] = c[i];
    }
    c[0].p = 1.0;
    *n = 1;
}

// normalise: probabilities of the first n, which add up to 1, from their logits.
static void normalise(Candidate *c, int64_t n, double temperature) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        c[i].p = exp(((double)c[i].logit - (double)c[0].logit) / temperature);
        sum += c[i].p;
    }
    for (int64_t i = 0; i < n; i++) c[i].p /= sum;
}

Err sampling_candidates(Candidate *out, int64_t *n, const float *logits, int64_t V, const SamplingRule *rule) {
    TRY(collect(out, n, logits, V));
    if (rule->temperature == 0.0) {
        largest(out, n);
        return OK;
    }
    qsort(out, (size_t)*n, sizeof *out, by_logit);
    if (rule->top_k > 0 && rule->top_k < *n) *n = rule->top_k;
    normalise(out, *n, rule->temperature);
    if (rule->top_p >= 1.0) return OK;
    double sum = 0.0;
    int64_t keep = 0;
    while (keep < *n && (keep == 0 || sum < rule->top_p)) sum += out[keep++].p;
    *n = keep;
    normalise(out, *n, rule->temperature);
    return OK;
}

int32_t sampling_pick(const Candidate *c, int64_t n, double u) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) {
        sum += c[i].p;
        if (u < sum) return c[i].id;
    }
    int64_t last = n - 1; // the probabilities may add up to a little less than 1
    while (last > 0 && c[last].p == 0.0) last--;
    return c[last].id;
}
