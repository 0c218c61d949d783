// attn.h - causal attention of MLA, training form, blocked: no S x S matrix in memory.
//
// For each sequence and head: p = softmax_j(scale * q_i . k_j) over j <= i (and j >= doc_start[i] where a
// document mask is given), o_i = sum_j p_ij v_j. The key of head h is [k_nope (Dn) ; k_rope (Dr, shared)].
// BF16 or F32 in and out, FP32 inside (scores, softmax and sums). T = nseq * S.
// On the CPU with AVX-512 BF16 and on a GPU's tensor cores, where all inputs are BF16, p and the score gradients
// ds are rounded to BF16 for their products (as FlashAttention does): every term of o, dv, dq and dk may be off
// by half a unit of BF16 more. lse and the softmax's sum are of the unrounded p.
//   o   [T, H*Dv]        out
//   lse [H, T] f32       out: log of the softmax denominator, saved for bwd
//   q   [T, H*(Dn+Dr)]   per head [nope | rope], already rotated
//   kv  [T, H*(Dn+Dv)]   per head [k_nope | v]
//   kr  [T, Dr]          rotated key part shared by all heads
//   doc_start [T] i32    first position (inside its sequence) that row t may look at; NULL = 0
// attn_bwd: dq, dkv, dkr overwritten; dkr summed over heads in head order.
// DeepSeek-V3 report 2.1.1 (eqs. 9-11). Class LOWP.
#pragma once
#include "view.h"

typedef struct AttnShape {
    int64_t nseq, S; // sequences, positions per sequence
    int64_t H, Dn, Dr, Dv;
    float scale;
} AttnShape;
