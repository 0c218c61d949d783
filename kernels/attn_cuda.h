// attn_cuda.h - attention on the GPU: one call, what its rows see, and the kernels on the tensor cores. Contract:
// attn.h. Private to kernels/attn_cuda*.
#pragma once
#include "rows_cuda.h"

#include "attn_core.h"

// Matrices of one call. D = Dn + Dr.
typedef struct AttnCall {
    Mat q, kv, kr, o, dout, dq, dkv, dkr;
    AttnShape a;
    const int32_t *doc_start;
    float *lse, *delta; // [H, T]
} AttnCall;

// first_key: first position of its sequence that row t, position i of it, looks at.
DEV int64_t first_key(const AttnCall &c, int64_t t, int64_t i) {
    int64_t j = c.doc_start ? c.doc_start[t] : 0;
    return j < 0 ? 0 : j > i ? i : j;
}

// attn_mma_takes: whether the kernels of attn_cuda_mma.cu compute this call: the device has compute capability 8 or
// later or attn_mma_choose said so; all matrices but dkr are BF16 at multiples of 16 bytes with rows of such multiples;
// Dn, Dr and Dv are multiples of 8; Dn + Dr <= 192, Dv <= 128. Absent matrices (p NULL) do not count.
// attn_mma_choose: 2 yes, with Hopper's forward where it takes the call, 1 yes, without it, 0 no, -1 by the device. For
// tests and measurements.
// attn_mma_fwd, attn_mma_bwd: launch them. bwd: delta [H, T] is scratch of the caller. Scratch: of the backward, the
// heads' parts of dkr for as many sequences as keep the device busy, 4 H S Dr bytes each, and 8 bytes for every 32
// rows. p and ds are rounded to BF16 for their products; o, lse and the sums are as attn.h says.
bool attn_mma_takes(const AttnCall *c);
extern "C" void attn_mma_choose(int which);
Err attn_mma_fwd(AttnCall c) MUST_CHECK;
Err attn_mma_bwd(OpCx *cx, AttnCall c) MUST_CHECK;

// attn_sm90_takes: whether Hopper's forward (attn_cuda_sm90.cu) computes a call that attn_mma_takes: Dn and Dr are
// multiples of 64 and 192 or 128 together, Dv is 128. attn_sm90_fwd: launch it. The same arithmetic as attn_mma_fwd.
bool attn_sm90_takes(const AttnCall *c);
Err attn_sm90_fwd(AttnCall c) MUST_CHECK;
