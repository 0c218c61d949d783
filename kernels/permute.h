// permute.h - moving rows: to the wire, to the experts, and back.
//
// rows_gather: dst row i = src row idx[i], rows of row_bytes bytes, i < n. idx[i] < 0 writes zeros. EXACT.
// rows_sum: y_m = round(add1_m + add2_m + sum_{i = first[m]}^{first[m+1]-1} x_{idx[i]}), FP32, in that order.
//   y [M,D] f32 or bf16 out;  x [R,D] f32 or bf16;  first [M+1] i32;  idx i32
//   add1, add2 [M,D] f32 or bf16, or mat_none(). Class REDUCE.
// slots_spread: rows [nrows,K] bits = 0, then rows[row[i], slot[i]] = the bits of x[i], i < n; no two i for one place.
//   row, slot [n] i32. EXACT.
// slots_join: y [T,K] f32: the bits of y[t,k] = OR over i = first[t] .. first[t+1]-1 of rows[idx[i], k]: a copy where
//   one row at most has other than zero bits there, which keeps the sign of -0. first [T+1] i32; idx i32. EXACT.
// parts_sum: y [n] f32 = the sum in order of nparts vectors, the own_at-th being `own`, the others one after the other
//   in parts [nparts-1] with stride numbers from one to the next; FP32, the first one is taken as it is. y may be own.
//   EXACT.
#pragma once
#include "view.h"
