// attn_latent.h - causal attention of MLA with absorbed projections, for generation: on cached latents, from which
// neither keys nor values are made.
//
// For query t, at position at + t, and each head, with its parts W_UK [Dn,R] and W_UV [Dv,R] of the up projection w,
// and the latent c_j [R] and the rotated key r_j [Dr] of position j <= at + t:
//   q' = W_UK^T q_nope;   p = softmax_j( scale * (q' . c_j + q_rope . r_j) );   o = W_UV sum_j p_j c_j
// which is what attn.h computes of k_nope = W_UK c and v = W_UV c. A step costs R + Dr per head and position.
//   o     [T, H*Dv]       out
//   q     [T, H*(Dn+Dr)]  per head [nope | rope], already rotated
//   cache [P, R+Dr]       per position [latent | rotated shared key], P >= at + T
//   w     [H*(Dn+Dv), R]  per head [W_UK | W_UV]
// Each F32 or BF16; FP32 inside. The number of threads never changes a bit, nor does how many queries a call has.
// DeepSeek-V2 report 2.1.2 and appendix C. No operation of the table (ops.def): generation runs on the CPU.
#pragma once
#include "ops.h"

typedef struct LatentShape {
    int64_t at; // position of the first query
    int64_t H, Dn, Dr, Dv, R;
    float scale;
} LatentShape;

// attn_latent_fwd_cpu: as above; temporaries on cx->scratch. Errors: E_INTERNAL if shapes disagree. Local.
Err attn_latent_fwd_cpu(OpCx *cx, Mat o, Mat q, Mat cache, Mat w, LatentShape a) MUST_CHECK;
