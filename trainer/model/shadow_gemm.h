// shadow_gemm.h - products of FP8 linears beside the same products of BF16 operands, for a sample of rows: what all
// of quantisation, cached formats and accumulation costs, where it happens, during training.
//
// While cx->shadow is there, operands carry a BF16 copy of their first SHADOW_ROWS rows, made when they are
// quantised. After an FP8 product the backend's BF16 product of the copy is computed on scratch and the two are
// compared; nothing else reads it, so a step gives the same bits with and without. The first product of each
// linear since shadow_begin is the sample; later ones (other micro-batches, recomputation) are left alone.
//
//   fprop  rows 0..127 of y = x W^T     against x_bf16 W_bf16^T, rounded to y's type
//   dgrad  rows 0..127 of dx = dy W     against dy_bf16 W_bf16 (its own part, in FP32, where two linears add to one dx)
//   wgrad  output channels 0..127 of what tokens 0..127 add to dW, multiplied once more from the codes, against
//          dy_bf16^T x_bf16. A cached format's error (E5M6, SwiGLU's codes) is in it: x_bf16 is forward's.
// Of the experts, whose rows lie by expert, the sample is the first rows there. Not covered, because their rows
// come as codes over the exchange: fprop of the routed experts' gate and up, dgrad of their down, wgrad of all
// three. DeepSeek-V3 report, appendix B.
#pragma once
#include "params.h"

#define SHADOW_ROWS 128 // one tile, so that Wgrad's sample is whole tiles

typedef enum ShadowGemm { SHADOW_FPROP, SHADOW_DGRAD, SHADOW_WGRAD, SHADOW_GEMMS } ShadowGemm;

// Squares of one product's sample, summed.
typedef struct ShadowSum {
    double error, reference;
    bool is_taken; // since shadow_begin
} ShadowSum;

typedef struct ShadowRow {
    SiteLabel gemm; // "L3.o.fprop"
    double error;   // RMS of the difference / RMS of the reference; NAN if one is not finite
} ShadowRow;

typedef struct Shadow {
    const Params *params;
    int64_t n;      // parameters * SHADOW_GEMMS
    ShadowSum *sum; // [n]
    double *packed; // [3n] what ranks add up
    void *host[2];  // room for a row of each product
    ShadowRow *row; // [nrows] products that were compared, in the order of the parameters
    int64_t nrows;
} Shadow;

// shadow_create: for the FP8 linears of `p`. shadow_free accepts NULL in *h. Local.
Err shadow_create(Shadow **out, const Params *p) MUST_CHECK;
void shadow_free(Shadow **h);
// shadow_begin: forget all samples: the next product of each linear is its sample. Local.
void shadow_begin(Shadow *h);
// shadow_rows: h->row from all ranks' samples. Collective over world.
Err shadow_rows(Shadow *h, const Cx *cx) MUST_CHECK;
// shadow_worst: the row with the largest error (NAN is the largest), NULL without rows. shadow_median: of the
// finite errors; NAN without any. Local.
const ShadowRow *shadow_worst(const Shadow *h);
double shadow_median(const Shadow *h);

// What linears call. All do nothing without cx->shadow; the comparisons neither if there is no sample.
//
// shadow_sample: a copy of the first rows of x [M,K] on acts: it lives as long as the block's activations.
Err shadow_sample(Cx *cx, Mat *sample, Mat x) MUST_CHECK;
// shadow_fprop: after y = x W^T. x: the sample.
Err shadow_fprop(Cx *cx, Mat y, Mat x, const Param *w, Groups g) MUST_CHECK;
// shadow_dgrad: after dx = dy W. dy: the sample.
Err shadow_dgrad(Cx *cx, Mat dx, Mat dy, const Param *w, Groups g) MUST_CHECK;
// shadow_dgrad_part: where dy W is only a part of a sum: its first rows are multiplied once more from the codes, into
// FP32. dy: the sample.
Err shadow_dgrad_part(Cx *cx, MatQ codes, Mat dy, const Param *w, Groups g) MUST_CHECK;
// shadow_wgrad: dy_t [N,M], x_t [K,M] the codes of Wgrad, dy, x the samples of their inputs.
Err shadow_wgrad(Cx *cx, const Param *w, MatQ dy_t, MatQ x_t, Mat dy, Mat x, Groups g) MUST_CHECK;
