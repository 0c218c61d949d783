// hf_masters.h - weights of a Hugging Face directory in memory, and what is in memory as a source: for tests, which
// change and look at numbers; the program never has them all.
#pragma once
#include <string.h>

#include "hf.h"

// fill: own rows of every master and the biases, from a source.
static inline Err fill(Params *p, const Weights *from) {
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        if (e->own.nrows > 0) TRY(from->rows(from->of, e, e->mat0 * e->rows + e->own.row0, e->own.nrows, e->master.p));
    }
    for (int64_t b = 0; b < p->nblocks; b++) {
        if (p->bias[b]) TRY(from->bias(from->of, b, p->bias[b]));
    }
    return OK;
}

// import_weights: of a directory, into memory.
static inline Err import_weights(const Safetensors *st, const char *dir, Params *p, const Shape *s) {
    HfReader *r = NULL;
    Err err = hf_open(&r, st, dir, p, s);
    Weights from = hf_weights(r);
    if (err == OK) err = fill(p, &from);
    hf_close(&r);
    return err;
}

// masters: a source of what is in memory, all of it on one rank.
static inline Err master_rows(void *of, const Param *p, int64_t first, int64_t n, float *out) {
    (void)of;
    memcpy(out, mat_at(p->master, first, 0), (size_t)(n * p->cols) * sizeof *out);
    return OK;
}
static inline Err bias_of(void *of, int64_t block, float *out) {
    const Params *p = of;
    memcpy(out, p->bias[block], (size_t)p->E * sizeof *out);
    return OK;
}
static inline Weights masters(Params *p) {
    return (Weights){p, master_rows, bias_of};
}
