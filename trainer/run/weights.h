// weights.h - masters and biases of a whole model, wherever they are: what import and export carry from files to
// files, a strip of rows at a time, so that no model is too large for them.
#pragma once
#include "params.h"

// Numbers that are carried at a time, about: whole rows, whole blocks of what is hashed or quantised together.
#define STRIP_NUMBERS ((int64_t)4 << 20)
// strip_rows: of a matrix with `rows` rows of `cols`: whole blocks of `block` rows, at least one. Pure.
static inline int64_t strip_rows(int64_t rows, int64_t cols, int64_t block) {
    return min_i64(max_i64(STRIP_NUMBERS / cols / block, 1) * block, rows);
}

// A source. `of` is the source's own and is given back to it.
typedef struct Weights {
    void *of;
    // rows: n rows from `first` of an entry as a whole, stacked experts one after the other ([nmat_all*rows, cols]),
    // as f32 [n, cols]. Errors: E_INPUT naming file and tensor. Local.
    Err (*rows)(void *of, const Param *p, int64_t first, int64_t n, float *out);
    // bias: e_score_correction_bias of a block, f32 [E]. Errors: E_INPUT. Local.
    Err (*bias)(void *of, int64_t block, float *out);
} Weights;

// How far a long way is, said every ten seconds.
typedef struct Carried {
    const char *what; // "exported"
    double total, done; // bytes
    double start, said; // seconds
} Carried;

// carried_begin: nothing of `total` bytes yet. carried_add: so many more. Local.
Carried carried_begin(const char *what, double total);
void carried_add(Carried *c, double bytes);
