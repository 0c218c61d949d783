// gemm_cuda_sm90.h - the FP8 products of gemm.h and ggemm.h on the tensor cores of Hopper (sm_90a).
//
// Arithmetic: GEMM_PROMOTE128 with the 14-bit sums of the tensor cores inside each 128, that is what the CPU backend
// calls GEMM_PROMOTE128_HOPPER14; both are accepted, with an interval of 128. Arguments as in gemm.h and ggemm.h with
// all pointers on the device, those of Groups too: counts are read by the kernel, the host never waits for them.
// Work is issued to the device's stream. Scales are read wherever MatQ keeps them, in FP32 or as bytes.
//
// Codes are copied by TMA: q at a multiple of 16 bytes, ld and qstep multiples of 16. An operand that is not so is
// first copied into scratch (one more pass over its codes); wire rows of E8M0 tiles are so only where their length
// happens to be a multiple of 16. Dgrad reads the weight transposed: w is turned in scratch on every call, unless the
// caller has it turned already (gemm_sm90_dgrad_turned). y is stored by TMA where it lies at a multiple of 16 bytes
// with rows of such a multiple, else element by element.
// Errors: E_INTERNAL if shapes disagree, codes are E5M2, a dimension passes 2^31 - 1, or OpCx asks for another sum;
// E_PEER if the driver refuses.
#pragma once
#include "ops.h"

Err gemm_fp8_fprop_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) MUST_CHECK;
Err gemm_fp8_dgrad_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) MUST_CHECK;
Err gemm_fp8_wgrad_sm90(OpCx *cx, Mat y, MatQ at, MatQ bt, bool acc) MUST_CHECK;
Err ggemm_fp8_fprop_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) MUST_CHECK;
Err ggemm_fp8_dgrad_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) MUST_CHECK;
Err ggemm_fp8_wgrad_sm90(OpCx *cx, Mat y, MatQ at, MatQ bt, Groups g, bool acc) MUST_CHECK;

// gemm_sm90_turned_bytes: bytes of the transposed codes of w. gemm_sm90_turn: writes them to wt, nmat matrices
// [K, ld] with ld = N rounded up to 16. gemm_sm90_dgrad_turned: Dgrad (groups none: dense) with codes turned before,
// once for all micro-batches of a step.
size_t gemm_sm90_turned_bytes(MatQ w);
Err gemm_sm90_turn(uint8_t *wt, MatQ w) MUST_CHECK;
Err gemm_sm90_dgrad_turned(OpCx *cx, Mat y, MatQ a, MatQ w, const uint8_t *wt, Groups g, bool acc) MUST_CHECK;

// gemm_sm90_takes: whether these kernels should compute a product of a and b (of the latter transposed, is_turned): the
// device is Hopper's (is_hopper) or gemm_sm90_choose said so (1 yes, 0 no, -1 by the device), cx wants their sum, and
// scratch has room for what must be copied. Else the plain kernels of gemm_cuda.h compute it.
bool gemm_sm90_takes(const OpCx *cx, MatQ a, MatQ b, bool is_turned);
void gemm_sm90_choose(int is_on);
// gemm_sm90_counts: products of these kernels so far, and how many operands had to be copied first because TMA could
// not read them where they lay.
void gemm_sm90_counts(int64_t *products, int64_t *copies);
// gemm_sm90_width: columns of the tiles of Fprop and Dgrad into BF16, 128 or 160; 0 = by the shape. For tests and
// measurements.
void gemm_sm90_width(int columns);
// gemm_sm90_reserve: multiprocessors to leave to others (communication), 0 at the start.
void gemm_sm90_reserve(int multiprocessors);
