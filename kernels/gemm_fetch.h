// gemm_fetch.h - memory that a product reads next, asked for while it computes. Inside kernels/
// only.
#pragma once
#include "gemm_engine.h"

// Memory that is read next: some of its rows are fetched into the second-level cache in each slice
// of each strip.
typedef struct Fetch {
    const char *p;
    int64_t step, bytes; // from row to row, of a row
    int64_t rows, each;  // that are left, in a slice
} Fetch;

// Always inlined: gcc drops calls of a function that only prefetches.
static inline __attribute__((always_inline)) void fetch_next(Fetch *f) {
    enum { LINE = 64 };
    for (int64_t i = min_i64(f->each, f->rows); i > 0; i--, f->rows--, f->p += f->step)
        for (int64_t at = 0; at < f->bytes; at += LINE) __builtin_prefetch(f->p + at, 0, 2);
}

// n outer indices x nk elements of an operand, spread over `parts` fetches; n may be less than 1.
static inline Fetch piece_of(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t nk,
                             int64_t parts) {
    int64_t size = src_bytes(o->t);
    Fetch f = {.p = (const char *)o->p +
                    (o->is_k_contig ? outer * o->ld + k0 : k0 * o->ld + outer) * size,
               .step = o->ld * size,
               .bytes = (o->is_k_contig ? nk : n) * size,
               .rows = n < 1            ? 0
                       : o->is_k_contig ? n
                                        : nk};
    f.each = ceil_div(f.rows, parts);
    return f;
}
