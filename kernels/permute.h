// permute.h - moving rows: to the wire, to the experts, and back.
//
// rows_gather: dst row i = src row idx[i], rows of row_bytes bytes, i < n. idx[i] < 0 writes zeros. EXACT.
// rows_sum: y_m = round(add1_m + add2_m + sum_{i = first[m]}^{first[m+1]-1} x_{idx[i]}), FP32, in that order.
//   y [M,D] f32 or bf16 out;  x [R,D] f32 or bf16;  first [M+1] i32;  idx i32
//   add1, add2 [M,D] f32 or bf16, or mat_none(). Class REDUCE.
#pragma once
#include "view.h"
