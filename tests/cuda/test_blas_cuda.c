// test_blas_cuda.c - how products are told to cuBLASLt, whose double (cublaslt_on_cpu.cpp) checks every call and
// computes it: all forms, types and strides against the plain kernel; the algorithm of a shape is asked for once; what
// the library does not take is computed all the same; and the double refuses what the library would.
#include "on_cpu.h"

#include <cublasLt.h>

#include "blas_cuda.h"

void cublaslt_on_cpu_refuse(int on);
int64_t cublaslt_on_cpu_products(void);

static const Device *dev;
static Arena *scratch;
static OpCx cx;
static uint64_t stream = 1;

// A matrix in memory of the device that starts `skew` elements after an aligned address, NaN between its rows.
typedef struct Placed {
    Mat m;
    void *block;
    size_t bytes;
} Placed;

static Placed place(DType t, int64_t rows, int64_t cols, int64_t pad, int64_t skew) {
    size_t n = (size_t)(rows * (cols + pad) + skew + 1), each = dtype_bytes(t);
    Placed p = {.bytes = n * each};
    char *host = malloc(p.bytes);
    assert_non_null(host);
    memset(host, 0xFF, p.bytes);
    stream++;
    Mat h = {host + (size_t)skew * each, t, rows, cols, cols + pad};
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            float v = (float)rng_normal(3, stream, (uint64_t)(r * cols + c));
            if (t == DT_F32)
                *(float *)mat_at(h, r, c) = v;
            else
                *(uint16_t *)mat_at(h, r, c) = bf16_from_f32(v);
        }
    MUST_OK(dev->alloc(&p.block, p.bytes, "matrix"));
    MUST_OK(dev->to_device(p.block, host, p.bytes));
    free(host);
    p.m = h;
    p.m.p = (char *)p.block + (size_t)skew * each;
    return p;
}
static void *read_back(Placed p) {
    void *host = malloc(p.bytes);
    assert_non_null(host);
    MUST_OK(dev->to_host(host, p.block, p.bytes));
    return host;
}

static Err product(BlasForm form, Mat y, Mat a, Mat b, bool acc) {
    if (form == BLAS_NT) return gemm_nt_cuda(&cx, y, a, b, acc);
    if (form == BLAS_NN) return gemm_nn_cuda(&cx, y, a, b, acc);
    return gemm_tn_cuda(&cx, y, a, b, acc);
}

// m x n outputs over k, once by the library and once by the plain kernel. Both sum in FP32 over ascending k with fused
// steps, so the bits agree; where y is added to, the library's double rounds once more, as the plain kernel does.
static void compare(BlasForm form, int64_t m, int64_t n, int64_t k, DType ta, DType tb, DType ty, bool acc, int64_t pad,
                    int64_t skew, bool is_taken) {
    Placed a = form == BLAS_TN ? place(ta, k, m, pad, skew) : place(ta, m, k, pad, skew);
    Placed b = form == BLAS_NT ? place(tb, n, k, pad, 0) : place(tb, k, n, pad, 0);
    Placed y = place(ty, m, n, pad, skew), z = y;
    MUST_OK(dev->alloc(&z.block, z.bytes, "matrix"));
    z.m.p = (char *)z.block + ((char *)y.m.p - (char *)y.block);
    void *before = read_back(y);
    MUST_OK(dev->to_device(z.block, before, z.bytes));
    int64_t done = blas_products();
    MUST_OK(product(form, y.m, a.m, b.m, acc));
    assert_int_equal(blas_products() - done, is_taken);
    blas_choose(0);
    MUST_OK(product(form, z.m, a.m, b.m, acc));
    blas_choose(-1);
    assert_int_equal(blas_products() - done, is_taken);
    void *got = read_back(y), *want = read_back(z);
    if (memcmp(got, want, y.bytes))
        fail_msg("form %d, %lld x %lld x %lld", form, (long long)m, (long long)n, (long long)k);
    dev->release(a.block), dev->release(b.block), dev->release(y.block), dev->release(z.block);
    free(before), free(got), free(want);
}

static void test_products(void **state) {
    (void)state;
    static const int64_t sizes[][3] = {{1, 1, 1}, {16, 8, 24}, {33, 70, 130}, {64, 48, 7}, {5, 129, 64}};
    for (int form = BLAS_NT; form <= BLAS_TN; form++)
        for (int i = 0; i < 5; i++)
            for (int k = 0; k < 6; k++) {
                DType ta = k < 3 ? DT_BF16 : DT_F32, tb = k < 2 || k == 4 ? DT_BF16 : DT_F32;
                DType ty = k == 1 ? DT_BF16 : DT_F32;
                compare((BlasForm)form, sizes[i][0], sizes[i][1], sizes[i][2], ta, tb, ty, ty == DT_F32 && i % 2, i % 3,
                        k % 2 * 3, true);
            }
    compare(BLAS_NT, 9, 10, 11, DT_F32, DT_F32, DT_BF16, false, 0, 0, false); // not a type that the library writes
    compare(BLAS_NN, 9, 10, 0, DT_BF16, DT_BF16, DT_F32, false, 0, 0, false); // nothing to multiply: zeros
}

// The same shape asks once; another alignment of it asks again, because it may need another algorithm.
static void test_choice_is_kept(void **state) {
    (void)state;
    Placed a = place(DT_BF16, 40, 56, 8, 0), b = place(DT_BF16, 24, 56, 8, 0), y = place(DT_F32, 40, 24, 0, 0);
    Placed first = y;
    MUST_OK(dev->alloc(&first.block, first.bytes, "matrix"));
    first.m.p = first.block;
    for (int i = 0; i < 5000; i++) MUST_OK(gemm_nt_cuda(&cx, y.m, a.m, b.m, false)); // the double dies at 4096 searches
    MUST_OK(gemm_nt_cuda(&cx, first.m, a.m, b.m, false));
    void *p = read_back(y), *q = read_back(first);
    assert_memory_equal(p, q, (size_t)(40 * 24) * 4);
    Mat shifted = mat_cols(a.m, 1, 55), other = mat_cols(b.m, 0, 55);
    MUST_OK(gemm_nt_cuda(&cx, y.m, shifted, other, false));
    MUST_OK(gemm_nt_cuda(&cx, y.m, mat_cols(a.m, 0, 55), other, false));
    free(p), free(q);
    dev->release(a.block), dev->release(b.block), dev->release(y.block), dev->release(first.block);
}

// A pair is two products in one FP32 accumulator, rounded once.
static void test_pair(void **state) {
    (void)state;
    Placed a = place(DT_BF16, 20, 33, 0, 0), b = place(DT_BF16, 33, 18, 0, 0), c = place(DT_BF16, 20, 9, 1, 0);
    Placed d = place(DT_BF16, 9, 18, 0, 0), y = place(DT_BF16, 20, 18, 2, 0), room = place(DT_F32, 20, 18, 0, 0);
    int64_t done = blas_products();
    MUST_OK(gemm_nn_pair_cuda(&cx, y.m, a.m, b.m, c.m, d.m, room.m));
    assert_int_equal(blas_products() - done, 2);
    void *got = read_back(y);
    blas_choose(0);
    MUST_OK(gemm_nn_pair_cuda(&cx, y.m, a.m, b.m, c.m, d.m, room.m));
    blas_choose(-1);
    void *want = read_back(y);
    assert_memory_equal(got, want, y.bytes);
    free(got), free(want);
    dev->release(a.block), dev->release(b.block), dev->release(c.block), dev->release(d.block);
    dev->release(y.block), dev->release(room.block);
}

// No algorithm, no room for an operand in FP32: the plain kernel. No room for the workspace: an algorithm without.
static void test_fallbacks(void **state) {
    (void)state;
    cublaslt_on_cpu_refuse(1);
    compare(BLAS_NT, 17, 19, 23, DT_BF16, DT_BF16, DT_F32, true, 1, 0, false);
    cublaslt_on_cpu_refuse(0);
    Arena *small = NULL;
    MUST_OK(arena_create_on(&small, dev, "small", 16 << 10, false));
    cx.scratch = small;
    compare(BLAS_NT, 64, 8, 128, DT_BF16, DT_F32, DT_F32, false, 0, 0, false);
    compare(BLAS_NT, 8, 64, 16, DT_BF16, DT_F32, DT_F32, false, 0, 0, true);
    compare(BLAS_TN, 80, 64, 16, DT_BF16, DT_BF16, DT_BF16, false, 0, 0, true);
    cx.scratch = scratch;
    arena_destroy(&small);
    // Shapes that disagree are told before anything is done.
    Mat a = mat((void *)256, DT_BF16, 3, 4), b = mat((void *)256, DT_BF16, 5, 6), y = mat((void *)256, DT_F32, 3, 5);
    MUST_FAIL(gemm_nt_cuda(&cx, y, a, b, false), E_INTERNAL, "shapes disagree");
}

// The double is strict: what each rule is there for is refused.
static void test_the_double(void **state) {
    (void)state;
    static float a[64 * 64], b[64 * 64], y[64 * 64];
    cublasLtHandle_t h;
    cublasLtMatmulDesc_t p, half;
    cublasLtMatrixLayout_t l, tall, short_ld, bf16;
    cublasLtMatmulPreference_t want;
    cublasLtMatmulHeuristicResult_t found;
    int n = 0;
    const float one = 1.0f, zero = 0.0f;
    cudaStream_t s = (cudaStream_t)device_cuda_stream();
    assert_int_equal(cublasLtCreate(&h), 0);
    cublasLtMatmulDescCreate(&p, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescCreate(&half, CUBLAS_COMPUTE_16F, CUDA_R_16F);
    cublasLtMatrixLayoutCreate(&l, CUDA_R_32F, 16, 16, 16);
    cublasLtMatrixLayoutCreate(&tall, CUDA_R_32F, 32, 16, 32);
    cublasLtMatrixLayoutCreate(&short_ld, CUDA_R_32F, 16, 16, 15);
    cublasLtMatrixLayoutCreate(&bf16, CUDA_R_16BF, 16, 16, 16);
    cublasLtMatmulPreferenceCreate(&want);
#define ASK(p, a, b, y) cublasLtMatmulAlgoGetHeuristic(h, p, a, b, y, y, want, 1, &found, &n)
    assert_int_not_equal(ASK(p, l, l, l), 0); // sums in place are allowed by default
    uint32_t sums = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreferenceSetAttribute(want, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums, sizeof sums);
    assert_int_not_equal(ASK(half, l, l, l), 0);
    assert_int_not_equal(ASK(p, tall, tall, l), 0);
    assert_int_not_equal(ASK(p, short_ld, l, l), 0);
    assert_int_not_equal(ASK(p, bf16, l, l), 0);
    assert_int_not_equal(ASK(p, l, l, bf16), 0);
    assert_int_equal(ASK(p, l, l, l), 0);
    assert_int_equal(n, 1);
#define RUN(p, a, b, y, l, s) cublasLtMatmul(h, p, &one, a, l, b, l, &zero, y, l, y, l, &found.algo, NULL, 0, s)
    float *at = (float *)(((uintptr_t)a + 255) / 256 * 256), *bt = (float *)(((uintptr_t)b + 255) / 256 * 256);
    float *yt = (float *)(((uintptr_t)y + 255) / 256 * 256);
    assert_int_equal(RUN(p, at, bt, yt, l, s), 0);
    assert_int_not_equal(RUN(p, at + 1, bt, yt, l, s), 0);  // less aligned than promised
    assert_int_not_equal(RUN(p, at, bt, yt, tall, s), 0);   // another problem
    assert_int_not_equal(RUN(p, at, bt, at + 64, l, s), 0); // overlap
    assert_int_not_equal(RUN(p, at, bt, yt, l, NULL), 0);   // another stream
    cublasLtMatmulDescDestroy(p), cublasLtMatmulDescDestroy(half), cublasLtMatrixLayoutDestroy(l);
    cublasLtMatrixLayoutDestroy(tall), cublasLtMatrixLayoutDestroy(short_ld), cublasLtMatrixLayoutDestroy(bf16);
    cublasLtMatmulPreferenceDestroy(want);
    assert_true(cublaslt_on_cpu_products() > 0);
}

int main(void) {
    if (device_cuda_open(&dev, 0) != OK || arena_create_on(&scratch, dev, "scratch", (size_t)64 << 20, false) != OK)
        return 70;
    cx = (OpCx){.scratch = scratch, .nthreads = 1};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),  cmocka_unit_test(test_choice_is_kept), cmocka_unit_test(test_pair),
        cmocka_unit_test(test_fallbacks), cmocka_unit_test(test_the_double),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    arena_destroy(&scratch);
    device_cuda_close();
    return failed;
}
