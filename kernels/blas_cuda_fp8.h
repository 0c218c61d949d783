// blas_cuda_fp8.h - cuBLASLt's own FP8 products with scales for each 128 elements, a yardstick of ours on Hopper.
//
// y [M,N] = a [M,K] b [N,K]^T, codes E4M3 with rows of K bytes, sums and promotion as the library makes them:
//   BLAS_FP8_BLOCKS: a with a scale per row and 128 of K (VEC128_32F), b with 128x128 blocks (BLK128x128_32F), y BF16:
//     Fprop, and Dgrad of a weight that is stored transposed.
//   BLAS_FP8_ROWS: both with a scale per row and 128 of K, y FP32, added to: Wgrad.
// Scales are FP32; the library wants those of rows as [K/128][rows], those of blocks as [N/128][K/128 rounded up to 4].
// Only this file, blas_cuda.h and their sources know the library. Needs M, N and K that are multiples of 16. All Local.
#pragma once
#include "view.h"

typedef enum BlasFp8Form { BLAS_FP8_BLOCKS, BLAS_FP8_ROWS } BlasFp8Form;
typedef struct BlasFp8 {
    BlasFp8Form form;
    int64_t m, n, k;
    void *y;
    const uint8_t *a, *b;
    const float *sa, *sb;
    void *workspace; // blas_fp8_workspace_bytes of the device
    struct BlasFp8Plan *plan;
} BlasFp8;

size_t blas_fp8_workspace_bytes(void);
// blas_fp8_scales: how many scales `rows` rows have as operand a or (is_block) as b of BLAS_FP8_BLOCKS.
int64_t blas_fp8_scales(int64_t rows, int64_t k, bool is_block);
// blas_fp8_open: asks the library for an algorithm; *is_there false where it has none for this device and shape, or
// there is no such library. blas_fp8_close gives it back, harmless if there was none.
Err blas_fp8_open(BlasFp8 *p, bool *is_there) MUST_CHECK;
void blas_fp8_close(BlasFp8 *p);
// blas_fp8_run: issue the product to the device's stream.
Err blas_fp8_run(BlasFp8 *p) MUST_CHECK;
