// straggler.h - ranks that compute for longer than the others, step after step: named once, and again when it is over.
#pragma once
#include "fail.h"

typedef struct Straggler Straggler;

// What changed with the last step.
typedef struct StragglerNews {
    int rank;               // -1: nothing
    bool is_over;           // it has become as fast as the others; else: it is slow
    double factor;          // its seconds over the median's, mean over the steps that decided
    double seconds, median; // of the last step
} StragglerNews;

// straggler_create: for nranks ranks: slow is factor times the median or more in so many steps in a row, over is less
// than half that excess in as many. Errors: E_INTERNAL. Local.
Err straggler_create(Straggler **out, int nranks, double factor, int64_t steps) MUST_CHECK;
void straggler_free(Straggler **s);
// straggler_step: seconds [nranks]: what each rank computed in this step, without waits for others. The median is the
// lower one, so that one of two ranks can be slow. *slowest and *slowest_factor: of this step. Local.
void straggler_step(Straggler *s, const double *seconds, int *slowest, double *slowest_factor);
// straggler_news: the next rank whose state changed with the last step; rank -1: no more. Local.
StragglerNews straggler_news(Straggler *s);
