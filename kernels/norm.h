// norm.h - RMSNorm, and the two element-wise operations of the residual stream.
//
// norm_rms_fwd: y = x * rstd * w, rstd = 1/sqrt(mean(x^2) + eps); FP32 inside, rounded once.
//   y    [T,D] f32 or bf16  out
//   rstd [T]   f32          out, saved for bwd; may be NULL
//   x    [T,D] f32 or bf16
//   w    [D]   f32
//   Sums in f32 in a fixed order. Class REDUCE.
//
// norm_rms_bwd: dx = dres + rstd * (dy*w - xhat * mean(dy*w*xhat)), xhat = x*rstd; rounded once.
//   dx   [T,D] f32 or bf16  out (may be the same memory as dy or dres)
//   dw   [D]   f32          adds sum_t dy*xhat (fixed 128-row blocks, then in block order)
//   dy   [T,D], x [T,D], dres [T,D] f32 or bf16; dres may be mat_none() (then 0)
//
// add:  y = round(a + b), all [T,D]; y may be a or b. Class EXACT.
// cast: y = x in y's type, [T,D]. Class EXACT.
#pragma once
#include "view.h"
