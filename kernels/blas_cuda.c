// blas_cuda.c - dense products by cuBLASLt: how a row-major product is told to a column-major library, and which
// algorithm it takes. Contract: blas_cuda.h.
//
// A row-major [R, C] matrix of stride ld is to the library a column-major [C, R] one with leading dimension ld. So
// y = a b is computed as y^T = b^T a^T: the library's A is our b, its B our a, and nothing is moved.
#include <cublasLt.h>
#include <string.h>

#include "blas_cuda.h"

#define WORKSPACE ((size_t)32 << 20)
#define ALIGN 256 // of the workspace, and the most that the library asks of a matrix
#define PLANS 512 // shapes that are remembered

// Everything that the choice of an algorithm may depend on.
typedef struct PlanKey {
    int32_t form, ta, tb, ty, acc, has_room;
    int64_t m, n, k; // rows of y, columns of y, contraction
    int64_t lda, ldb, ldy;
    int32_t align_a, align_b, align_y, unused; // `unused` keeps the struct without holes: keys are compared as bytes
} PlanKey;
typedef struct Plan {
    PlanKey key;
    bool is_known, is_there; // asked for; the library has an algorithm
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, y; // ours, not the library's
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
} Plan;

static struct {
    cublasLtHandle_t handle;
    Plan plan[PLANS];
    int chosen;
    int64_t products;
} blas = {.chosen = -1};

#define TRY_BLAS(call)                                                                             \
    do {                                                                                           \
        cublasStatus_t status_ = (call);                                                           \
        CHECK(status_ == CUBLAS_STATUS_SUCCESS, E_PEER, "%s: cuBLASLt: %s", #call,                 \
              status_text(status_));                                                               \
    } while (0)

static const char *status_text(cublasStatus_t s) {
    switch (s) {
    case CUBLAS_STATUS_NOT_INITIALIZED: return "not initialised";
    case CUBLAS_STATUS_ALLOC_FAILED: return "out of memory";
    case CUBLAS_STATUS_INVALID_VALUE: return "invalid value";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "not for this device";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "the device failed";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "not supported";
    default: return "internal error";
    }
}

void blas_choose(int is_on) {
    blas.chosen = is_on;
}
int64_t blas_products(void) {
    return blas.products;
}
size_t blas_workspace_bytes(void) {
    return WORKSPACE + ALIGN;
}

static cudaDataType_t type_of(DType t) {
    return t == DT_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

// The alignment of a matrix that the library may count on: of its address; that of its rows it sees in the stride.
static int32_t align_of(const void *p) {
    uintptr_t at = (uintptr_t)p | ALIGN;
    return (int32_t)(at & (~at + 1));
}

// A row-major matrix as the library's layout.
static Err layout(cublasLtMatrixLayout_t *out, DType t, int64_t rows, int64_t cols, int64_t ld) {
    TRY_BLAS(cublasLtMatrixLayoutCreate(out, type_of(t), (uint64_t)cols, (uint64_t)rows, ld));
    return OK;
}

static Err describe(Plan *p) {
    const PlanKey *k = &p->key;
    DType ta = (DType)k->ta, tb = (DType)k->tb;
    TRY_BLAS(cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    // The library's A is b, its B is a; the contraction of a row-major nt is contiguous in both.
    cublasOperation_t op_a = k->form == BLAS_NT ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t op_b = k->form == BLAS_TN ? CUBLAS_OP_T : CUBLAS_OP_N;
    TRY_BLAS(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof op_a));
    TRY_BLAS(cublasLtMatmulDescSetAttribute(p->product, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof op_b));
    if (k->form == BLAS_NT)
        TRY(layout(&p->b, tb, k->n, k->k, k->ldb));
    else
        TRY(layout(&p->b, tb, k->k, k->n, k->ldb));
    if (k->form == BLAS_TN)
        TRY(layout(&p->a, ta, k->k, k->m, k->lda));
    else
        TRY(layout(&p->a, ta, k->m, k->k, k->lda));
    return layout(&p->y, (DType)k->ty, k->m, k->n, k->ldy);
}

// The first algorithm that the library proposes: the proposals depend on nothing but the key, device and version.
static Err ask(Plan *p, cublasLtMatmulPreference_t want) {
    const PlanKey *k = &p->key;
    uint64_t workspace = k->has_room ? WORKSPACE : 0;
    // Split sums: parts in the workspace, added in order. In place they would be added as they come.
    uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, a = (uint32_t)k->align_b, b = (uint32_t)k->align_a;
    uint32_t y = (uint32_t)k->align_y;
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                  sizeof workspace));
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums,
                                                  sizeof sums));
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &a, sizeof a));
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &b, sizeof b));
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &y, sizeof y));
    TRY_BLAS(cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y, sizeof y));
    cublasLtMatmulHeuristicResult_t found = {0};
    int nfound = 0;
    cublasStatus_t s =
        cublasLtMatmulAlgoGetHeuristic(blas.handle, p->product, p->b, p->a, p->y, p->y, want, 1, &found, &nfound);
    if (s == CUBLAS_STATUS_NOT_SUPPORTED) return OK;
    CHECK(s == CUBLAS_STATUS_SUCCESS, E_PEER, "cublasLtMatmulAlgoGetHeuristic: cuBLASLt: %s", status_text(s));
    if (nfound == 0 || found.state != CUBLAS_STATUS_SUCCESS) return OK;
    p->algo = found.algo;
    p->workspace = found.workspaceSize;
    p->is_there = true;
    return OK;
}

static void forget(Plan *p) {
    if (p->product) cublasLtMatmulDescDestroy(p->product);
    if (p->a) cublasLtMatrixLayoutDestroy(p->a);
    if (p->b) cublasLtMatrixLayoutDestroy(p->b);
    if (p->y) cublasLtMatrixLayoutDestroy(p->y);
    memset(p, 0, sizeof *p);
}

static Err make_plan(Plan *p, const PlanKey *key) {
    cublasLtMatmulPreference_t want = NULL;
    forget(p);
    p->key = *key;
    TRY(describe(p));
    TRY_BLAS(cublasLtMatmulPreferenceCreate(&want));
    Err err = ask(p, want);
    cublasLtMatmulPreferenceDestroy(want);
    p->is_known = err == OK;
    return err;
}

// The plan of a key; where another shape has its place, that one is forgotten and asked for again next time.
static Err find_plan(Plan **out, const PlanKey *key) {
    uint64_t h = 1469598103934665603u; // FNV-1a
    for (size_t i = 0; i < sizeof *key; i++) h = (h ^ ((const uint8_t *)key)[i]) * 1099511628211u;
    Plan *first = &blas.plan[h % PLANS];
    for (int i = 0; i < 8; i++) {
        Plan *p = &blas.plan[(h + (uint64_t)i) % PLANS];
        if (p->is_known && memcmp(&p->key, key, sizeof *key) == 0) {
            *out = p;
            return OK;
        }
        if (!p->is_known) {
            *out = p;
            return make_plan(p, key);
        }
    }
    *out = first;
    return make_plan(first, key);
}

// A matrix in FP32 on scratch; *is_done false where there is no room.
static Err widen(OpCx *cx, bool *is_done, Mat *m) {
    size_t room = arena_size(cx->scratch) - arena_mark(cx->scratch);
    if ((size_t)(m->rows * m->cols) * 4 + ARENA_ALIGN > room) return OK;
    Mat wide;
    TRY(arena_mat(cx->scratch, &wide, DT_F32, m->rows, m->cols, "operand in FP32"));
    TRY(cast_cuda(cx, wide, *m));
    *m = wide;
    *is_done = true;
    return OK;
}

static Err multiply(OpCx *cx, bool *is_done, BlasForm form, Mat y, Mat a, Mat b, bool acc) {
    bool has_room = arena_size(cx->scratch) - arena_mark(cx->scratch) >= blas_workspace_bytes() + ARENA_ALIGN;
    PlanKey key;
    memset(&key, 0, sizeof key);
    key = (PlanKey){form, a.t, b.t, y.t, acc, has_room, y.rows, y.cols, form == BLAS_TN ? a.rows : a.cols, a.ld,
                    b.ld, y.ld, align_of(a.p), align_of(b.p), align_of(y.p), 0};
    Plan *p = NULL;
    if (!blas.handle) TRY_BLAS(cublasLtCreate(&blas.handle));
    TRY(find_plan(&p, &key));
    if (!p->is_there) return OK;
    void *room = NULL;
    if (p->workspace) {
        TRY(arena_push(cx->scratch, &room, p->workspace + ALIGN, "cuBLASLt workspace"));
        room = (void *)(((uintptr_t)room + ALIGN - 1) / ALIGN * ALIGN);
    }
    const float one = 1.0f, old = acc ? 1.0f : 0.0f;
    TRY_BLAS(cublasLtMatmul(blas.handle, p->product, &one, b.p, p->b, a.p, p->a, &old, y.p, p->y, y.p, p->y, &p->algo,
                            room, p->workspace, (cudaStream_t)device_cuda_stream()));
    blas.products++;
    *is_done = true;
    return OK;
}

Err blas_run(OpCx *cx, bool *is_done, const char *op, BlasForm form, Mat y, Mat a, Mat b, bool acc) {
    int64_t m = form == BLAS_TN ? a.cols : a.rows, ka = form == BLAS_TN ? a.rows : a.cols;
    int64_t n = form == BLAS_NT ? b.rows : b.cols, kb = form == BLAS_NT ? b.cols : b.rows;
    *is_done = false;
    CHECK(y.rows == m && y.cols == n && ka == kb, E_INTERNAL,
          "%s: the output is %lld x %lld, the contractions are %lld and %lld: shapes disagree", op, (long long)y.rows,
          (long long)y.cols, (long long)ka, (long long)kb);
    bool is_known = (a.t == DT_F32 || a.t == DT_BF16) && (b.t == DT_F32 || b.t == DT_BF16) &&
                    (y.t == DT_F32 || (y.t == DT_BF16 && !acc));
    if (blas.chosen == 0 || !is_known || m == 0 || n == 0 || ka == 0) return OK;
    // FP32 operands give an FP32 result; the library does not round it to BF16.
    if (y.t == DT_BF16 && (a.t == DT_F32 || b.t == DT_F32)) return OK;
    size_t mark = arena_mark(cx->scratch);
    bool is_ready = true;
    Mat *narrow = a.t == b.t ? NULL : a.t == DT_BF16 ? &a : &b;
    if (narrow) {
        is_ready = false;
        TRY(widen(cx, &is_ready, narrow));
    }
    if (is_ready) TRY(multiply(cx, is_done, form, y, a, b, acc));
    arena_release(cx->scratch, mark);
    return OK;
}
