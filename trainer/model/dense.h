// dense.h - a gated FFN (gate, up, down): the second half of a dense block, and the shared expert of a MoE block.
#pragma once
#include "gated.h"

typedef struct DenseParams {
    Param *norm, *gate, *up, *down; // norm: of the dense half only
} DenseParams;

typedef struct DenseSaved {
    Mat x;            // [T,D] residual input (dense half only)
    float *rstd;
    Operand n;        // input of gate and up (dense half only: the shared expert borrows the MoE half's); outside of
                      // fp8 mode with recompute.norm no longer there after forward
    Gated mid;        // outputs of gate and up, input of down: what gated.h keeps of them
    Turned dy_t;      // Wgrad's form of down's output gradient, kept by bwd_input for bwd_weight
} DenseSaved;

// ffn_fwd: y [T,D] (act type or f32) = W_down( silu(W_gate n) * W_up n ). Local.
Err ffn_fwd(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Mat y, const Operand *n, int64_t T) MUST_CHECK;
// ffn_bwd_core: dg, du, the output gradients of gate and up as Dgrad's operands, on scratch until the caller releases
// it, from dyq, the gradient of y. Local.
Err ffn_bwd_core(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Operand *dg, Operand *du,
                 const Operand *dyq) MUST_CHECK;
// ffn_bwd_weight: adds to the gradients of gate, up, down; n: the input's turned codes; a->dy_t is there. Local.
Err ffn_bwd_weight(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, const Turned *n) MUST_CHECK;

DenseParams dense_params(const Params *p, int64_t layer);
// dense_fwd: y = x + ffn(RMSNorm(x)). dense_bwd_input / dense_bwd_weight as in attention.h. Local.
Err dense_fwd(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Mat y, Mat x) MUST_CHECK;
Err dense_bwd_input(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a, Mat dx, Mat dy) MUST_CHECK;
Err dense_bwd_weight(const Shape *s, Cx *cx, const DenseParams *p, DenseSaved *a) MUST_CHECK;
