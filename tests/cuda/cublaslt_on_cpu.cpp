// cublaslt_on_cpu.cpp - the calls of cuBLASLt that kernels/blas_cuda.c makes, over host memory: every rule of the
// library that can be checked without a device is checked, then the product is computed.
//
// What is refused, with a line on stderr: unknown attributes and sizes, types and compute types that the library does
// not combine, leading dimensions smaller than the rows, sizes that do not fit, C and D that differ, an output that
// overlaps an operand, an algorithm chosen for another problem, addresses less aligned than was promised when it was
// chosen, a workspace that is smaller, less aligned or in an operand, a scale in device memory, a null stream. The
// search must forbid sums in place, whose order is not fixed. The workspace is overwritten, as a split sum would.
// Sums run in FP32 over ascending k, each step fused; C is read only where beta is not 0.
#include <cublasLt.h>

#include "simt.h"

namespace {

enum { DESC = 0x4d554c54, LAYOUT = 0x4c41594f, WANT = 0x57414e54, ALGO = 0x414c474f, HANDLE = 0x48414e44 };

struct Desc {
    int magic, compute, scale, op_a, op_b;
};
struct Layout {
    int magic, type;
    uint64_t rows, cols;
    int64_t ld;
};
struct Want {
    int magic;
    uint64_t workspace;
    uint32_t sums, align[4]; // A, B, C, D
};
// What an algorithm holds: the problem it was chosen for.
struct Algo {
    int magic;
    uint32_t align[4];
    uint64_t workspace;
    Desc product;
    Layout a, b, c, d;
};
Algo algos[4096]; // the algorithm in the caller's hands is a number
int nalgos;
bool is_refusing;
int64_t nproducts;
int handle_magic = HANDLE;

cublasStatus_t refuse(const char *why) {
    fprintf(stderr, "cublaslt_on_cpu: %s\n", why);
    return CUBLAS_STATUS_INVALID_VALUE;
}
#define REFUSE_UNLESS(ok, why)                                                                     \
    if (!(ok)) return refuse(why)

int64_t bytes_of(int type) {
    return type == CUDA_R_32F ? 4 : 2;
}

// Types, and sizes of op(A) [m, k], op(B) [k, n], C and D [m, n], column-major.
cublasStatus_t check_problem(const Desc *p, const Layout *a, const Layout *b, const Layout *c, const Layout *d) {
    REFUSE_UNLESS(p && p->magic == DESC, "no description of a product");
    const Layout *all[4] = {a, b, c, d};
    for (auto l : all) {
        REFUSE_UNLESS(l && l->magic == LAYOUT, "no layout");
        REFUSE_UNLESS(l->rows > 0 && l->cols > 0, "an empty matrix");
        REFUSE_UNLESS(l->ld >= (int64_t)l->rows, "a leading dimension smaller than the rows of a column-major matrix");
        REFUSE_UNLESS(l->type == CUDA_R_32F || l->type == CUDA_R_16BF, "a type that is not known here");
    }
    REFUSE_UNLESS(p->compute == CUBLAS_COMPUTE_32F && p->scale == CUDA_R_32F, "sums or scales that are not FP32");
    REFUSE_UNLESS(a->type == b->type, "operands of different types");
    REFUSE_UNLESS(c->type == d->type, "C and D of different types");
    REFUSE_UNLESS(a->type == CUDA_R_16BF || d->type == CUDA_R_32F, "FP32 operands with an output that is not FP32");
    REFUSE_UNLESS(c->rows == d->rows && c->cols == d->cols && c->ld == d->ld, "C and D of different shapes");
    uint64_t m = p->op_a == CUBLAS_OP_N ? a->rows : a->cols, ka = p->op_a == CUBLAS_OP_N ? a->cols : a->rows;
    uint64_t kb = p->op_b == CUBLAS_OP_N ? b->rows : b->cols, n = p->op_b == CUBLAS_OP_N ? b->cols : b->rows;
    REFUSE_UNLESS(ka == kb && m == d->rows && n == d->cols, "sizes that do not fit");
    return CUBLAS_STATUS_SUCCESS;
}

bool same_layout(const Layout &x, const Layout &y) {
    return x.type == y.type && x.rows == y.rows && x.cols == y.cols && x.ld == y.ld;
}
// Bytes from the first to the last element.
size_t span(const Layout &l) {
    return (size_t)((int64_t)(l.cols - 1) * l.ld + (int64_t)l.rows) * (size_t)bytes_of(l.type);
}
bool overlaps(const void *p, size_t n, const void *q, size_t m) {
    return (const char *)p < (const char *)q + m && (const char *)q < (const char *)p + n;
}

float value(const void *p, int type, int64_t at) {
    if (type == CUDA_R_32F) return ((const float *)p)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)p)[at] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
void store(void *p, int type, int64_t at, float v) {
    if (type == CUDA_R_32F) {
        ((float *)p)[at] = v;
        return;
    }
    uint32_t u;
    memcpy(&u, &v, 4);
    uint32_t r = (u & 0x7FFFFFFFu) > 0x7F800000u ? u | 0x400000u : u + 0x7FFFu + ((u >> 16) & 1u);
    ((uint16_t *)p)[at] = (uint16_t)(r >> 16);
}

void multiply(const Algo &g, float alpha, const void *a, const void *b, float beta, void *d) {
    const int64_t m = (int64_t)g.d.rows, n = (int64_t)g.d.cols;
    const bool at = g.product.op_a != CUBLAS_OP_N, bt = g.product.op_b != CUBLAS_OP_N;
    const int64_t k = (int64_t)(at ? g.a.rows : g.a.cols);
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < m; i++) {
            float sum = 0.0f;
            for (int64_t l = 0; l < k; l++)
                sum = fmaf(value(a, g.a.type, at ? i * g.a.ld + l : l * g.a.ld + i),
                           value(b, g.b.type, bt ? l * g.b.ld + j : j * g.b.ld + l), sum);
            float v = alpha * sum;
            if (beta != 0.0f) v = beta * value(d, g.d.type, j * g.d.ld + i) + v;
            store(d, g.d.type, j * g.d.ld + i, v);
        }
}

} // namespace

extern "C" {
// cublaslt_on_cpu_refuse: from now on the search finds no algorithm, as for shapes that the library does not support.
void cublaslt_on_cpu_refuse(int on) {
    is_refusing = on != 0;
}
int64_t cublaslt_on_cpu_products(void) {
    return nproducts;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) {
    *h = (cublasLtHandle_t)&handle_magic;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *p, cublasComputeType_t compute, cudaDataType_t scale) {
    *p = (cublasLtMatmulDesc_t) new Desc{DESC, compute, scale, CUBLAS_OP_N, CUBLAS_OP_N};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p) {
    delete (Desc *)p;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t p, cublasLtMatmulDescAttributes_t attr,
                                              const void *buf, size_t bytes) {
    Desc *d = (Desc *)p;
    REFUSE_UNLESS(d->magic == DESC && bytes == sizeof(int32_t), "an attribute of another size");
    int v = 0;
    memcpy(&v, buf, sizeof v);
    REFUSE_UNLESS(v == CUBLAS_OP_N || v == CUBLAS_OP_T, "an operation on an operand that is not known here");
    if (attr == CUBLASLT_MATMUL_DESC_TRANSA)
        d->op_a = v;
    else if (attr == CUBLASLT_MATMUL_DESC_TRANSB)
        d->op_b = v;
    else
        return refuse("an attribute of a product that is not known here");
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type, uint64_t rows, uint64_t cols,
                                          int64_t ld) {
    *l = (cublasLtMatrixLayout_t) new Layout{LAYOUT, type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) {
    delete (Layout *)l;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *w) {
    *w = (cublasLtMatmulPreference_t) new Want{WANT, 0, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t w) {
    delete (Want *)w;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attr, const void *buf,
                                                    size_t bytes) {
    Want *w = (Want *)p;
    REFUSE_UNLESS(w->magic == WANT && bytes == (attr == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES ? 8u : 4u),
                  "a preference of another size");
    switch (attr) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: memcpy(&w->workspace, buf, 8); break;
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: memcpy(&w->sums, buf, 4); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: memcpy(&w->align[0], buf, 4); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: memcpy(&w->align[1], buf, 4); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: memcpy(&w->align[2], buf, 4); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: memcpy(&w->align[3], buf, 4); break;
    default: return refuse("a preference that is not known here");
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t want, int n,
                                              cublasLtMatmulHeuristicResult_t *found, int *nfound) {
    const Want *w = (const Want *)want;
    *nfound = 0;
    REFUSE_UNLESS(h == (cublasLtHandle_t)&handle_magic && w && w->magic == WANT && n >= 1, "no handle or preference");
    cublasStatus_t s = check_problem((Desc *)product, (Layout *)a, (Layout *)b, (Layout *)c, (Layout *)d);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    REFUSE_UNLESS(!(w->sums & CUBLASLT_REDUCTION_SCHEME_INPLACE), "sums in place are allowed: their order is not fixed");
    for (uint32_t x : w->align) REFUSE_UNLESS(x >= 1 && (x & (x - 1)) == 0, "an alignment that is no power of two");
    if (is_refusing) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (nalgos == (int)(sizeof algos / sizeof *algos)) {
        fprintf(stderr, "cublaslt_on_cpu: the search was asked %d times: is an answer not kept?\n", nalgos);
        abort();
    }
    Algo &g = algos[nalgos];
    g.magic = ALGO;
    memcpy(g.align, w->align, sizeof g.align);
    g.product = *(Desc *)product;
    g.a = *(Layout *)a;
    g.b = *(Layout *)b;
    g.c = *(Layout *)c;
    g.d = *(Layout *)d;
    // Every other algorithm splits its sums.
    g.workspace = nalgos % 2 && w->workspace >= 4096 ? 4096 : 0;
    memset(found, 0, sizeof *found);
    found->algo.data[0] = ALGO;
    found->algo.data[1] = (uint64_t)nalgos++;
    found->workspaceSize = g.workspace;
    found->state = CUBLAS_STATUS_SUCCESS;
    *nfound = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t product, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                              const void *c, cublasLtMatrixLayout_t lc, void *d, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes, cudaStream_t stream) {
    REFUSE_UNLESS(h == (cublasLtHandle_t)&handle_magic && stream, "no handle or no stream");
    cublasStatus_t s = check_problem((Desc *)product, (Layout *)la, (Layout *)lb, (Layout *)lc, (Layout *)ld);
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    REFUSE_UNLESS(algo && algo->data[0] == ALGO && algo->data[1] < (uint64_t)nalgos, "no algorithm");
    const Algo &g = algos[algo->data[1]];
    const Desc &p = *(Desc *)product;
    REFUSE_UNLESS(p.op_a == g.product.op_a && p.op_b == g.product.op_b && same_layout(g.a, *(Layout *)la) &&
                      same_layout(g.b, *(Layout *)lb) && same_layout(g.c, *(Layout *)lc) &&
                      same_layout(g.d, *(Layout *)ld),
                  "an algorithm that was chosen for another problem");
    const void *at[4] = {a, b, c, d};
    for (int i = 0; i < 4; i++)
        REFUSE_UNLESS(at[i] && (uintptr_t)at[i] % g.align[i] == 0, "a matrix less aligned than was promised");
    REFUSE_UNLESS(!overlaps(d, span(g.d), a, span(g.a)) && !overlaps(d, span(g.d), b, span(g.b)),
                  "an output that overlaps an operand");
    REFUSE_UNLESS(c == d, "C is not D");
    float factor = 0, old = 0;
    memcpy(&factor, alpha, 4); // memory of the device would end the program here
    memcpy(&old, beta, 4);
    REFUSE_UNLESS(bytes >= g.workspace, "a workspace that is too small");
    if (g.workspace) {
        REFUSE_UNLESS(workspace && (uintptr_t)workspace % 256 == 0, "a workspace that is not aligned to 256 bytes");
        REFUSE_UNLESS(!overlaps(workspace, bytes, a, span(g.a)) && !overlaps(workspace, bytes, b, span(g.b)) &&
                          !overlaps(workspace, bytes, d, span(g.d)),
                      "a workspace inside of a matrix");
    }
    const Algo *chosen = &g;
    simt::issue((void *)stream, [=] {
        if (simt::device_memory) simt::device_memory(true);
        if (chosen->workspace) memset(workspace, 0xEE, bytes);
        multiply(*chosen, factor, a, b, old, d);
        if (simt::device_memory) simt::device_memory(false);
    });
    nproducts++;
    return CUBLAS_STATUS_SUCCESS;
}
}
