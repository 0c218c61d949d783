// attn_engine.h - causal attention of one (sequence, head) on the CPU, written once per instruction
// set and chosen at run time. Inside kernels/ and its tests only. Contract: attn.h.
#pragma once
#include "attn.h"
#include "rows.h"

// Matrices of one call, as in attn.h. Forward: o is written; backward: o and dout are read.
typedef struct AttnCall {
    AttnShape a;
    const int32_t *doc_start;
    Mat q, kv, kr, o, dout, dq, dkv;
    float *lse;
} AttnCall;

typedef struct AttnIsa {
    const char *name;
    // Floats of scratch that one thread needs.
    int64_t (*room)(AttnShape a, bool is_bwd);
    // fwd: rows [i0, i1) of sequence s, head h. i0 is a multiple of ATTN_SPLIT; results do not
    // depend on how the rows of a sequence are cut.
    void (*fwd)(const AttnCall *c, int64_t s, int64_t h, int64_t i0, int64_t i1, float *room);
    // bwd: the whole sequence; dkr_part [S, Dr] gets this head's part of the shared key's gradient.
    void (*bwd)(const AttnCall *c, int64_t s, int64_t h, float *dkr_part, float *room);
} AttnIsa;

#define ATTN_SPLIT 192 // rows of a forward piece: a multiple of every query block

// Tables. attn_amx and attn_avx512bf16 take calls whose inputs are all BF16, the others any type.
extern const AttnIsa attn_amx, attn_avx512bf16, attn_avx512, attn_avx2, attn_portable;

// attn_select: use this instruction set from now on, named as in gemm_engine.c; NULL = that of the
// products, so that one name stands for one set of bits. False, and nothing changed, if unknown or
// not there. Not thread-safe.
bool attn_select(const char *name);

// First position that row i of the sequence at row t0 looks at.
static inline int64_t attn_first(const AttnCall *c, int64_t t0, int64_t i) {
    if (!c->doc_start) return 0;
    int64_t j = c->doc_start[t0 + i];
    return j < 0 ? 0 : j > i ? i : j;
}
// First position that any of rows [i0, i1) looks at, down to a multiple of `to`.
static inline int64_t attn_block_first(const AttnCall *c, int64_t t0, int64_t i0, int64_t i1,
                                       int64_t to) {
    int64_t first = c->doc_start ? i0 : 0;
    for (int64_t i = i0; c->doc_start && i < i1; i++) first = min_i64(first, attn_first(c, t0, i));
    return first / to * to;
}
static inline int64_t attn_round_up(int64_t n, int64_t to) {
    return ceil_div(n, to) * to;
}
// attn_take: the next n floats of a room, to a whole cache line; room NULL: only count them.
static inline float *attn_take(float *room, int64_t *at, int64_t n) {
    float *p = room ? room + *at : NULL;
    *at += attn_round_up(n, 16);
    return p;
}
