// gemm_cuda.cu - dense products on the GPU, and the plain kernel behind all products. Contract: gemm.h.
//
// A block of 256 threads makes 64 x 64 outputs, 4 x 4 per thread; slices of 32 of the contraction are decoded to FP32
// in shared memory. FP8: 128 products are summed in FP32, then the sum is multiplied by both scales and added
// (promotion). Each output is one sum over k in ascending order, whatever the grouping.
#include "gemm_cuda_part.h"
extern "C" {
#include "blas_cuda.h"
#include "gemm_cuda_mma.h"
#include "gemm_cuda_sm90.h"
}

#define EDGE 64     // rows and columns of an output tile
#define SLICE 32    // of the contraction in shared memory
#define PER 4       // rows and columns of a thread
#define THREADS 256 // 16 x 16 of them

// The scales of a thread's rows and columns for the 128 elements around k; 0 outside the matrix.
DEV void load_scales(float *s, const GemmOperand &o, int64_t base, int64_t first, int64_t end, int64_t k) {
    for (int i = 0; i < PER; i++) s[i] = first + i < end ? operand_scale(o, base + first + i, k) : 0.0f;
}

// SLICE elements of the contraction from k0 on into shared memory, zero outside. Neighbouring threads read
// neighbouring memory, whichever way the operand lies.
DEV void load_slice(float (*to)[EDGE + 1], const GemmOperand &o, int64_t base, int64_t first, int64_t end, int64_t k0,
                    int64_t k_base, int64_t k_end) {
    for (int x = (int)threadIdx.x; x < EDGE * SLICE; x += THREADS) {
        int k = o.is_k_contig ? x % SLICE : x / EDGE, i = o.is_k_contig ? x / SLICE : x % EDGE;
        bool is_in = first + i < end && k0 + k < k_end;
        to[k][i] = is_in ? operand_value(o, base + first + i, k_base + k0 + k) : 0.0f;
    }
}

// The sum of up to 128 products leaves as FP32, multiplied by both scales.
DEV void promote(float (*total)[PER], float (*sum)[PER], const float *sa, const float *sb) {
    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++) {
            total[i][j] += sum[i][j] * (sa[i] * sb[j]);
            sum[i][j] = 0.0f;
        }
}

DEV void store_part(const GemmCall &c, const GemmPart &q, int64_t row0, int64_t col0, float (*v)[PER]) {
    for (int i = 0; i < PER; i++)
        for (int j = 0; j < PER; j++) {
            int64_t row = row0 + i, col = col0 + j;
            if (row >= q.m || col >= c.p.n) continue;
            float old = c.p.acc ? row_value(c.p.y, q.y_row + row, col) : 0.0f;
            row_store(c.p.y, q.y_row + row, col, c.p.acc ? old + v[i][j] : v[i][j]);
        }
}

// HOW: 0 plain, 1 FP8 with promotion every 128, 2 FP8 with every product scaled.
template <int HOW> static __global__ void __launch_bounds__(THREADS) gemm_kernel(GemmCall c) {
    SMEM(float, as, [SLICE][EDGE + 1]);
    SMEM(float, bs, [SLICE][EDGE + 1]);
    GemmPart q;
    if (!find_part<EDGE>(c, &q)) return;
    GemmOperand a = c.p.a, b = stacked_b<HOW != 0>(c, q);
    int ti = (int)threadIdx.x / 16 * PER, tj = (int)threadIdx.x % 16 * PER;
    int64_t row0 = q.m0 + ti, col0 = q.n0 + tj;
    float sum[PER][PER] = {}, total[PER][PER] = {}, sa[PER] = {}, sb[PER] = {};
    for (int64_t k0 = 0; k0 < q.k; k0 += SLICE) {
        load_slice(as, a, q.a_row, q.m0, q.m, k0, q.a_k, q.k);
        load_slice(bs, b, 0, q.n0, c.p.n, k0, q.b_k, q.k);
        if (HOW && k0 % TILE == 0) {
            load_scales(sa, a, q.a_row, row0, q.m, k0 + q.tile * TILE);
            load_scales(sb, b, 0, col0, c.p.n, k0 + q.tile * TILE);
        }
        __syncthreads();
        UNROLL_4
        for (int k = 0; k < SLICE; k++)
            for (int i = 0; i < PER; i++)
                for (int j = 0; j < PER; j++) {
                    float va = as[k][ti + i], vb = bs[k][tj + j];
                    sum[i][j] = HOW == 2 ? sum[i][j] + va * vb * (sa[i] * sb[j]) : fmaf(va, vb, sum[i][j]);
                }
        __syncthreads();
        if constexpr (HOW == 1)
            if ((k0 + SLICE) % TILE == 0 || k0 + SLICE >= q.k) promote(total, sum, sa, sb);
    }
    store_part(c, q, row0, col0, HOW == 1 ? total : sum);
}

static int64_t plain_codes;
extern "C" int64_t gemm_cuda_plain_codes(void) {
    return plain_codes;
}

extern "C" Err gemm_cuda_run(OpCx *cx, const char *op, GemmCall c) {
    bool is_fp8 = c.p.a.t == SRC_E4M3;
    CHECK(c.p.m >= 0 && c.p.n >= 0 && c.p.k >= 0, E_INTERNAL, "%s: size %lld x %lld x %lld", op, (long long)c.p.m,
          (long long)c.p.n, (long long)c.p.k);
    CHECK(c.p.a.t != SRC_E5M2 && c.p.b.t != SRC_E5M2, E_INTERNAL,
          "%s: operands with %s and %s codes; the CUDA backend multiplies E4M3 by E4M3 only, the CPU backend both", op,
          c.p.a.t == SRC_E5M2 ? "E5M2" : "E4M3", c.p.b.t == SRC_E5M2 ? "E5M2" : "E4M3");
    CHECK(is_fp8 == (c.p.b.t == SRC_E4M3), E_INTERNAL, "%s: one operand is FP8, the other is not", op);
    CHECK(c.p.y.t == DT_F32 || (c.p.y.t == DT_BF16 && !c.p.acc), E_INTERNAL, "%s: output type %s%s", op,
          dtype_name(c.p.y.t), c.p.acc ? " cannot be added to" : "");
    bool is_promoted = cx->accumulate == GEMM_PROMOTE128 && (cx->promote_every == 0 || cx->promote_every == TILE);
    CHECK(!is_fp8 || is_promoted || cx->accumulate == GEMM_FP32, E_INTERNAL,
          "%s: the CUDA backend sums as promote128 (every 128) or fp32; the other ways are the CPU's", op);
    if (c.p.m == 0 || c.p.n == 0 || (c.kind != GEMM_DEPTH_GROUPS && c.p.k == 0 && c.p.acc)) return OK;
    c.fault = device_cuda_fault();
    if (gemm_mma_takes(&c, is_promoted)) return gemm_mma_run(op, c);
    int64_t rows = c.kind == GEMM_ROW_GROUPS ? group_tiles_most(c.g, c.p.m, EDGE) : ceil_div(c.p.m, EDGE);
    CHECK(rows <= 65535 && c.g.n <= 65535, E_INTERNAL, "%s: %lld rows in %lld groups", op, (long long)c.p.m,
          (long long)c.g.n);
    dim3 grid((unsigned)ceil_div(c.p.n, EDGE), (unsigned)rows,
              c.kind == GEMM_DEPTH_GROUPS ? (unsigned)c.g.n : 1u);
    if (!is_fp8)
        LAUNCH(gemm_kernel<0>, grid, dim3(THREADS), 0, STREAM, c);
    else if (is_promoted)
        LAUNCH(gemm_kernel<1>, grid, dim3(THREADS), 0, STREAM, c);
    else
        LAUNCH(gemm_kernel<2>, grid, dim3(THREADS), 0, STREAM, c);
    CHECK_LAUNCH(op);
    plain_codes += is_fp8;
    return OK;
}

// One product with its sizes checked against the operands.
static Err run_one(OpCx *cx, const char *op, GemmOperand a, GemmOperand b, Mat y, int64_t k_a, int64_t k_b,
                   bool is_shape_ok, bool acc) {
    CHECK(is_shape_ok && k_a == k_b, E_INTERNAL,
          "%s: the output is %lld x %lld, the contractions are %lld and %lld: shapes disagree", op, (long long)y.rows,
          (long long)y.cols, (long long)k_a, (long long)k_b);
    GemmCall c = {};
    c.p.a = a;
    c.p.b = b;
    c.p.m = y.rows;
    c.p.n = y.cols;
    c.p.k = k_a;
    c.p.y = y;
    c.p.acc = acc;
    TRY(gemm_cuda_run(cx, op, c));
    return OK;
}

// Plain products: by cuBLASLt where it takes them, else by the kernel above.
extern "C" Err gemm_nt_cuda(OpCx *cx, Mat y, Mat a, Mat b, bool acc) {
    bool is_done = false;
    TRY(blas_run(cx, &is_done, "gemm_nt", BLAS_NT, y, a, b, acc));
    if (is_done) return OK;
    TRY(run_one(cx, "gemm_nt", gemm_operand_mat(a, true), gemm_operand_mat(b, true), y, a.cols, b.cols,
                y.rows == a.rows && y.cols == b.rows, acc));
    return OK;
}

extern "C" Err gemm_nn_cuda(OpCx *cx, Mat y, Mat a, Mat b, bool acc) {
    bool is_done = false;
    TRY(blas_run(cx, &is_done, "gemm_nn", BLAS_NN, y, a, b, acc));
    if (is_done) return OK;
    TRY(run_one(cx, "gemm_nn", gemm_operand_mat(a, true), gemm_operand_mat(b, false), y, a.cols, b.rows,
                y.rows == a.rows && y.cols == b.cols, acc));
    return OK;
}

extern "C" Err gemm_tn_cuda(OpCx *cx, Mat y, Mat a, Mat b, bool acc) {
    bool is_done = false;
    TRY(blas_run(cx, &is_done, "gemm_tn", BLAS_TN, y, a, b, acc));
    if (is_done) return OK;
    TRY(run_one(cx, "gemm_tn", gemm_operand_mat(a, false), gemm_operand_mat(b, false), y, a.rows, b.rows,
                y.rows == a.cols && y.cols == b.cols, acc));
    return OK;
}

extern "C" Err gemm_fp8_fprop_cuda(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) {
    if (gemm_sm90_takes(cx, a, w, false)) return gemm_fp8_fprop_sm90(cx, y, a, w, acc);
    TRY(run_one(cx, "gemm_fp8_fprop", gemm_operand_q(a, true), gemm_operand_q(w, true), y, a.cols, w.cols,
                y.rows == a.rows && y.cols == w.rows, acc));
    return OK;
}

extern "C" Err gemm_fp8_dgrad_cuda(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) {
    if (gemm_sm90_takes(cx, a, w, true)) return gemm_fp8_dgrad_sm90(cx, y, a, w, acc);
    TRY(run_one(cx, "gemm_fp8_dgrad", gemm_operand_q(a, true), gemm_operand_q(w, false), y, a.cols, w.rows,
                y.rows == a.rows && y.cols == w.cols, acc));
    return OK;
}

extern "C" Err gemm_fp8_wgrad_cuda(OpCx *cx, Mat y, MatQ at, MatQ bt, bool acc) {
    if (gemm_sm90_takes(cx, at, bt, false)) return gemm_fp8_wgrad_sm90(cx, y, at, bt, acc);
    TRY(run_one(cx, "gemm_fp8_wgrad", gemm_operand_q(at, true), gemm_operand_q(bt, true), y, at.cols, bt.cols,
                y.rows == at.rows && y.cols == bt.rows, acc));
    return OK;
}

// Pairs: the first sum lies in `room`.
extern "C" Err gemm_nn_pair_cuda(OpCx *cx, Mat y, Mat a, Mat b, Mat a2, Mat b2, Mat room) {
    TRY(gemm_nn_cuda(cx, room, a, b, false));
    TRY(gemm_nn_cuda(cx, room, a2, b2, true));
    return cast_cuda(cx, y, room);
}

extern "C" Err gemm_fp8_dgrad_pair_cuda(OpCx *cx, Mat y, MatQ a, MatQ w, MatQ a2, MatQ w2, Mat room) {
    TRY(gemm_fp8_dgrad_cuda(cx, room, a, w, false));
    TRY(gemm_fp8_dgrad_cuda(cx, room, a2, w2, true));
    return cast_cuda(cx, y, room);
}
