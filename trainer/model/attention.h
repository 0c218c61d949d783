// attention.h - the attention half of a block: x + W_O attention(RMSNorm(x)), multi-head latent attention.
// DeepSeek-V3 report 2.1.1, eqs. 1-11.
#pragma once
#include "latent_cache.h"
#include "linear.h"

typedef struct AttentionParams {
    Param *norm, *q, *q_a, *q_a_norm, *q_b, *kv_a, *kv_a_norm, *kv_b, *o; // q alone, or q_a..q_b
} AttentionParams;

// What forward saves for backward, and backward's input half for its weight half. All in cx->acts. What is said to be
// made again is not there after forward: the backward makes it on scratch, with the same bits.
typedef struct AttentionSaved {
    int64_t nseq, S;
    const float *rope;        // [S, Dr/2, 2]
    const int32_t *doc_start; // [T] or NULL
    Mat x;                    // [T,D] input of the half (the residual stream)
    float *rstd, *rstd_q, *rstd_kv, *lse;
    Operand n, cq, ckv;       // inputs of q_a/kv_a, q_b, kv_b; matrices made again with recompute.norm, codes kept
    Operand o;                // input of o; with fp8.cache_attn_out e5m6 o_packed stands for it
    Mat cq_raw, kva;          // [T,Rq], [T,Rkv+Dr] (latent | rotated shared key)
    Mat q, kv;                // [T,H*(Dn+Dr)] rotated, [T,H*(Dn+Dv)]; made again with recompute.mla_up
    Mat o_x;                  // [T,H*Dv] output of the attention itself; with e5m6 o_packed stands for it
    Mat o_packed;             // [T, row bytes] u8, 12-bit codes of o_x (base/e5m6.h)
    // output gradients of the linears and, kept by bwd_input for bwd_weight, their forms for Wgrad (dq_a: of q_a or q)
    Mat dq, dkv, dcq_raw, dkva; // on gradient_arena
    Turned dy_t, dq_t, dkv_t, dq_a_t, dkva_t;
    Turned o_t; // with e5m6: the input of o for Wgrad, kept by bwd_input for bwd_weight
} AttentionSaved;

AttentionParams attention_params(const Params *p, int64_t layer);
// attention_fwd: y [T,D] = x + attention(x). Local.
Err attention_fwd(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat y, Mat x,
                  int64_t nseq, int64_t S, const float *rope, const int32_t *doc_start) MUST_CHECK;
// attention_cached: y [T,D] = x + attention(x) of the positions that follow those in the cache (c->n is not moved), for
// generation: the block's rows of the cache are written, and read through absorbed projections (attn_latent.h), so that
// keys and values are never made. Of kv_b that takes the compute copy, in fp8 mode too. Memory of the host. Local.
Err attention_cached(const Shape *s, Cx *cx, const AttentionParams *p, Mat y, Mat x, const LatentCache *c) MUST_CHECK;
// attention_bwd_input: dx [T,D] from dy [T,D] (gradient of y; kept until bwd_weight). dx != dy. Adds to the
// norms' gradients. Local.
Err attention_bwd_input(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a, Mat dx, Mat dy) MUST_CHECK;
// attention_bwd_weight: adds to the gradients of the linears. Local.
Err attention_bwd_weight(const Shape *s, Cx *cx, const AttentionParams *p, AttentionSaved *a) MUST_CHECK;
