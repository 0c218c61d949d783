// adam.h - AdamW on FP32 master weights with BF16 or FP32 moments, and the norm of gradients.
//
// adam_step: g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;
//   w -= lr * ( (m/bias1) / (sqrt(v/bias2) + eps) + weight_decay * w ).
//   master [R,C] f32 in/out;  m, v [R,C] bf16 or f32 in/out (rounded once, after use in FP32);  grad [R,C] f32
//   copy [R,C] bf16 or f32 out: the new w, rounded once; or mat_none()
//   All divisions and square roots IEEE; every line one rounding per operation (no contraction). EXACT.
// sumsq_blocks: out[b] = sum of squares in double of rows [128b, 128b+128), left to right, row after row
//   (CUDA: in a fixed order of its own);  *nonfinite += number of non-finite values.
//   out [ceil(R/128)] f64 and nonfinite: memory of the backend. Class REDUCE.
#pragma once
#include "view.h"

typedef struct AdamStep {
    float lr, beta1, beta2, eps, weight_decay;
    float bias1, bias2; // 1 - beta^t
    float grad_scale;   // clip factor
} AdamStep;
