// linear.h - a linear layer in the three precision modes: Fprop, Dgrad, Wgrad, dense or per expert.
//
// In fp8 mode the input is quantised once in 1x128 tiles (Operand), the weight lives in 128x128 blocks, the
// output gradient is quantised in 1x128 tiles for Dgrad; for Wgrad the input's codes are re-tiled 128x1 along
// the tokens and the output gradient is quantised 128x1 from BF16 where it is local, in the same pass as its 1x128
// form, from its dispatched codes where it came over the wire. In bf16 and fp32 mode an Operand is the matrix itself.
// DeepSeek-V3 report 3.3.
#pragma once
#include "params.h"

// One side of a GEMM that tokens run along: an activation or an output gradient.
typedef struct Operand {
    Mat x;      // [M,K] act type; in fp8 mode NULL if only the codes are here
    MatQ q;     // [M,K] 1x128 codes in wire layout; fp8 mode only
    Mat sample; // first rows in BF16; only where products are compared (shadow_gemm.h)
} Operand;

// All that quantise take the site (site.h): its class gives rule and formats, its counters are added to.
//
// operand_make: quantise x in fp8 mode (codes pushed on `arena`), else a view of x. In fp8 mode `keep_x` says whether
// the view of x stays in the operand (the caller keeps its memory).
Err operand_make(const Shape *s, Cx *cx, Operand *o, Arena *arena, Mat x, Site site, bool keep_x) MUST_CHECK;
// is_fused: may layers of this model use the fused operations (fused.h) here? Then what lies between two of them never
// exists as a matrix. In fp8 mode with 1x128 tiles, unless somebody wants to see those matrices. Local, pure.
bool is_fused(const Shape *s, const Cx *cx);
// operand_room: codes of a site's format [rows, cols] pushed on `arena`, not yet written, with the site's counters.
Err operand_room(const Shape *s, Cx *cx, QuantOut *out, Arena *arena, int64_t rows, int64_t cols, Site site) MUST_CHECK;
// operand_normed: the operand of RMSNorm(x) with w; rstd [M] is written. fp8 mode: codes on acts. Else the matrix, on
// acts, or with recompute.norm on scratch until the caller releases it.
Err operand_normed(const Shape *s, Cx *cx, Operand *o, float *rstd, Mat x, const Param *w, float eps, Site site)
    MUST_CHECK;
// operand_restore: for the backward, from forward's operand: outside of fp8 mode with recompute.norm its matrix made
// again on scratch, to the bit; else nothing.
Err operand_restore(const Shape *s, Cx *cx, Operand *o, Mat x, const Param *w, float eps) MUST_CHECK;
// operand_row_bytes: bytes of a row on the wire, for tensors of class c; operand_payload_bytes: of them those that are
// counted, without what aligns rows. operand_wire: the operand whose rows lie at p in wire layout.
int64_t operand_row_bytes(const Shape *s, TensorClass c, int64_t cols);
int64_t operand_payload_bytes(const Shape *s, TensorClass c, int64_t cols);
Operand operand_wire(const Shape *s, TensorClass c, void *p, int64_t rows, int64_t cols);
// operand_data: the first byte of the rows in wire layout (rows contiguous).
void *operand_data(const Shape *s, const Operand *o);

// linear_fprop: y [M,N] = x W^T (per group where g.n > 0). y act type or f32.
Err linear_fprop(const Shape *s, Cx *cx, Mat y, const Operand *x, const Param *w, Groups g) MUST_CHECK;
// linear_dgrad: dx [M,K] = dy W.
Err linear_dgrad(const Shape *s, Cx *cx, Mat dx, const Operand *dy, const Param *w, Groups g) MUST_CHECK;

// The 128x1 side of Wgrad, pushed on scratch: made once, used by every linear that shares the operand.
typedef struct Turned {
    Mat x;
    MatQ t;
    Mat sample; // as the operand's
} Turned;
// turned_room: codes of a site's format for [tokens, channels], pushed on `arena`, not yet written.
Err turned_room(const Shape *s, Cx *cx, QuantOut *out, Arena *arena, int64_t tokens, int64_t channels, Site site,
                Groups g) MUST_CHECK;
// turn_codes: from an operand's codes (inputs; dispatched gradients). turn_fresh: from the matrix.
Err turn_codes(const Shape *s, Cx *cx, Turned *t, const Operand *o, Site site, Groups g) MUST_CHECK;
Err turn_fresh(const Shape *s, Cx *cx, Turned *t, Arena *arena, Mat x, Site site, Groups g) MUST_CHECK;
// operand_pair: a local output gradient dy in both forms, coded in one pass: o for Dgrad, its codes on scratch, t for
// Wgrad, its codes on acts. Outside of fp8 mode both are views of dy, which must live as long.
Err operand_pair(const Shape *s, Cx *cx, Operand *o, Turned *t, Mat dy, Site site, Site site_t, Groups g) MUST_CHECK;
// gradient_arena: where such a dy belongs: scratch if only its codes are kept for Wgrad, else acts.
Arena *gradient_arena(const Shape *s, const Cx *cx);
// linear_wgrad: w->grad += dy^T x (per group). FP32.
Err linear_wgrad(const Shape *s, Cx *cx, Param *w, const Turned *dy, const Turned *x, Groups g) MUST_CHECK;

// linear_dgrad_pair: round( dya Wa + dyb Wb ) in one FP32 accumulator (inputs shared by two linears). dx act type or
// f32.
Err linear_dgrad_pair(const Shape *s, Cx *cx, Mat dx, const Operand *dya, const Param *wa, const Operand *dyb,
                      const Param *wb, Groups g) MUST_CHECK;

static inline Groups groups_none(void) {
    Groups g = {NULL, NULL, 0};
    return g;
}
