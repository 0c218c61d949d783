// blas_cuda_fp8.c - block-scaled FP8 products by cuBLASLt. Contract: blas_cuda_fp8.h.
//
// The library is column-major: y^T [N,M] = b a^T, its A is our b (transposed), its B our a. It accepts scales of rows
// or of blocks for either operand, but not blocks for both.
#include "blas_cuda_fp8.h"

#include <cublasLt.h>

#include "arena.h"
#include "device.h"

#define WORKSPACE ((size_t)64 << 20)
#define ALIGN 256 // of the workspace, and what the library takes for that of a matrix unless it is told

struct BlasFp8Plan {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, y; // the library's
    cublasLtMatmulAlgo_t algo;
};

static cublasLtHandle_t handle; // made when first used, and kept

#define TRY_BLAS(call)                                                                             \
    do {                                                                                           \
        cublasStatus_t status_ = (call);                                                           \
        CHECK(status_ == CUBLAS_STATUS_SUCCESS, E_PEER, "%s: cuBLASLt: status %d", #call, (int)status_); \
    } while (0)

size_t blas_fp8_workspace_bytes(void) {
    return WORKSPACE + ALIGN;
}

// The alignment of a matrix, up to ALIGN.
static uint32_t align_of(const void *p) {
    uintptr_t at = (uintptr_t)p | ALIGN;
    return (uint32_t)(at & (~at + 1));
}

int64_t blas_fp8_scales(int64_t rows, int64_t k, bool is_block) {
    int64_t along = ceil_div(k, TILE);
    return is_block ? ceil_div(rows, TILE) * ceil_div(along, 4) * 4 : rows * along;
}

static Err set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, const void *value, size_t bytes) {
    TRY_BLAS(cublasLtMatmulDescSetAttribute(d, what, value, bytes));
    return OK;
}

static Err describe(const BlasFp8 *p, struct BlasFp8Plan *plan) {
    cublasOperation_t turned = CUBLAS_OP_T;
    cublasLtMatmulMatrixScale_t rows = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    cublasLtMatmulMatrixScale_t blocks =
        p->form == BLAS_FP8_BLOCKS ? CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F : rows;
    TRY_BLAS(cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    TRY(set(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned));
    TRY(set(plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &blocks, sizeof blocks));
    TRY(set(plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &rows, sizeof rows));
    TRY(set(plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p->sb, sizeof p->sb));
    TRY(set(plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p->sa, sizeof p->sa));
    cudaDataType_t out = p->form == BLAS_FP8_BLOCKS ? CUDA_R_16BF : CUDA_R_32F;
    TRY_BLAS(cublasLtMatrixLayoutCreate(&plan->a, CUDA_R_8F_E4M3, (uint64_t)p->k, (uint64_t)p->n, p->k));
    TRY_BLAS(cublasLtMatrixLayoutCreate(&plan->b, CUDA_R_8F_E4M3, (uint64_t)p->k, (uint64_t)p->m, p->k));
    TRY_BLAS(cublasLtMatrixLayoutCreate(&plan->y, out, (uint64_t)p->n, (uint64_t)p->m, p->n));
    return OK;
}

static Err ask(const BlasFp8 *p, cublasLtMatmulPreference_t want, bool *is_there) {
    static const cublasLtMatmulPreferenceAttributes_t matrix[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t aligned[] = {align_of(p->b), align_of(p->a), align_of(p->y), align_of(p->y)};
    struct BlasFp8Plan *plan = p->plan;
    size_t workspace = WORKSPACE;
    cublasLtMatmulHeuristicResult_t found = {0};
    int nfound = 0;
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                  sizeof workspace));
    for (int i = 0; i < 4; i++)
        TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, matrix[i], &aligned[i], sizeof aligned[i]));
    cublasStatus_t s = cublasLtMatmulAlgoGetHeuristic(handle, plan->product, plan->a, plan->b, plan->y, plan->y, want,
                                                      1, &found, &nfound);
    // Whatever the reason is, the library does not offer this product here.
    *is_there = s == CUBLAS_STATUS_SUCCESS && nfound > 0 && found.state == CUBLAS_STATUS_SUCCESS;
    plan->algo = found.algo;
    return OK;
}

Err blas_fp8_open(BlasFp8 *p, bool *is_there) {
    cublasLtMatmulPreference_t want = NULL;
    Err err = OK;
    *is_there = false;
    p->plan = NULL;
    if (!handle && cublasLtCreate(&handle) != CUBLAS_STATUS_SUCCESS) {
        handle = NULL;
        return OK;
    }
    MEM_NEW(p->plan, 1);
    TRY_OR(describe(p, p->plan), done);
    if (cublasLtMatmulPreferenceCreate(&want) != CUBLAS_STATUS_SUCCESS) return OK;
    TRY_OR(ask(p, want, is_there), done);
done:
    if (want) cublasLtMatmulPreferenceDestroy(want);
    return err;
}

void blas_fp8_close(BlasFp8 *p) {
    if (!p->plan) return;
    if (p->plan->product) cublasLtMatmulDescDestroy(p->plan->product);
    if (p->plan->a) cublasLtMatrixLayoutDestroy(p->plan->a);
    if (p->plan->b) cublasLtMatrixLayoutDestroy(p->plan->b);
    if (p->plan->y) cublasLtMatrixLayoutDestroy(p->plan->y);
    mem_free(p->plan);
    p->plan = NULL;
}

Err blas_fp8_run(BlasFp8 *p) {
    const float one = 1.0f, old = p->form == BLAS_FP8_ROWS ? 1.0f : 0.0f;
    void *room = (void *)(((uintptr_t)p->workspace + ALIGN - 1) / ALIGN * ALIGN);
    TRY_BLAS(cublasLtMatmul(handle, p->plan->product, &one, p->b, p->plan->a, p->a, p->plan->b, &old, p->y, p->plan->y,
                            p->y, p->plan->y, &p->plan->algo, room, WORKSPACE,
                            (cudaStream_t)device_cuda_stream()));
    return OK;
}
