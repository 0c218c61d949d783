// swiglu.h - the gated unit of every FFN: h = silu(g) * u, optionally times a routing gate per row.
//
// swiglu_fwd: h = round((silu(g)*u) * gate), FP32 inside, one rounding.
//   h [M,F] f32 or bf16 out;  g, u [M,F] f32 or bf16 (may be column views of one matrix)
//   gate [M] f32 or NULL (then 1)
// swiglu_bwd: dg = dh*gate * u * silu'(g), du = dh*gate * silu(g), dgate_r = sum_f dh * (silu(g)*u).
//   dg, du [M,F] out (may be the same memory as g, u);  dgate [M] f32 out, NULL if gate is NULL
//   The gate's gradient is the FP32 dot with the recomputed ungated product, never a division.
// DeepSeek-V3 report 2.1.2; trace: the gate is applied before the down projection. Class REDUCE.
#pragma once
#include "view.h"
