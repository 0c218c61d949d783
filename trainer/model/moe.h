// moe.h - the expert half of a block: x + shared(n) + sum over the selected experts, n =
// RMSNorm(x).
//
// Router, dispatch over the expert group, grouped FFN, combine, and the way back. DeepSeek-V3
// report 2.1.2, 3.3.3: rows travel in FP8 to the experts (forward: inputs; backward: output
// gradients) and in BF16 back. In fp32 mode everything travels in FP32, in bf16 mode in BF16.
#pragma once
#include "dense.h"

typedef struct MoeParams {
    Param *norm, *router, *gate, *up, *down; // gate, up, down: stacked experts [L]
    DenseParams shared; // its norm is unused; gate NULL if there is no shared expert
    float *bias;        // [E] or NULL
    int64_t *count;     // [E] tokens per expert, added to
} MoeParams;

typedef struct MoeSaved {
    int64_t nseq, S;
    Mat x, n; // [T,D] residual input; normalised input (the router reads it in BF16): with recompute.norm no longer
              // there after forward
    float *rstd;
    Operand nq;          // n as the linears see it: codes, or n itself
    int32_t *idx;        // [T,K] experts of each token
    float *gate, *score; // [T,K], [T,E]
    float *coef;         // [nseq,E] balance loss, NULL without it
    ExPlan plan; // all of it in memory of the host
    ExPlan on;   // the same, but what operations read (send_tok, tok_first, tok_row, start, count, recv_first,
                 // recv_pair, pair_recv, pair_slot, pair_gate) in memory of the device
    DenseSaved shared;
    Operand xe; // [npair,D] rows of the experts
    Gated mid;  // [npair,F] outputs of gate and up, input of down: what gated.h keeps of them
    // kept by bwd_input for bwd_weight
    Mat dlogits;
    Operand dye; // [npair,D] dispatched output gradients
} MoeSaved;

MoeParams moe_params(const Params *p, int64_t layer, int64_t *count);
// moe_fwd: y = x + moe(x). *balance += sum over sequences of f.P if with_balance. Collective over
// ep.
Err moe_fwd(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat y, Mat x, int64_t nseq,
            int64_t S, bool with_balance, double *balance) MUST_CHECK;
// moe_bwd_input: as in attention.h; balance_scale: factor of the balance loss in the total.
// Collective over ep.
Err moe_bwd_input(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a, Mat dx, Mat dy,
                  double balance_scale) MUST_CHECK;
// moe_bwd_weight: adds to the gradients of router, shared and local experts. Local.
Err moe_bwd_weight(const Shape *s, Cx *cx, const MoeParams *p, MoeSaved *a) MUST_CHECK;
