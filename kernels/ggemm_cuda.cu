// ggemm_cuda.cu - grouped products on the GPU: one launch of the plain kernel for all experts. Contract: ggemm.h.
//
// Where the groups lie is only known on the device, so the grid covers the worst case and blocks past the last tile
// end at once.
#include "cuda_launch.h"
extern "C" {
#include "gemm_cuda.h"
#include "gemm_cuda_sm90.h"
}

static Err check_stack(const char *op, int64_t stacked, int64_t n) {
    CHECK(n > 0 && stacked % n == 0, E_INTERNAL, "%s: %lld stacked rows are not %lld matrices", op,
          (long long)stacked, (long long)n);
    return OK;
}

static GemmCall call_of(GemmOperand a, GemmOperand b, Mat y, Groups g, bool acc) {
    GemmCall c = {};
    c.p.a = a;
    c.p.b = b;
    c.p.y = y;
    c.p.acc = acc;
    c.g = g;
    return c;
}

// y rows = a rows times the stacked matrix of their expert.
static Err rows_by_expert(OpCx *cx, const char *op, bool is_k_contig, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(check_stack(op, b.rows, g.n));
    int64_t per = b.rows / g.n, k = is_k_contig ? b.cols : per, n = is_k_contig ? per : b.cols;
    CHECK(a.cols == k && y.cols == n && a.rows == y.rows, E_INTERNAL, "%s: shapes disagree", op);
    GemmCall c = call_of(gemm_operand_mat(a, true), gemm_operand_mat(b, is_k_contig), y, g, acc);
    c.kind = GEMM_ROW_GROUPS;
    c.p.m = a.rows;
    c.p.n = n;
    c.p.k = k;
    c.b_step = per * b.ld;
    TRY(gemm_cuda_run(cx, op, c));
    return OK;
}

extern "C" Err ggemm_nt_cuda(OpCx *cx, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(rows_by_expert(cx, "ggemm_nt", true, y, a, b, g, acc));
    return OK;
}

extern "C" Err ggemm_nn_cuda(OpCx *cx, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(rows_by_expert(cx, "ggemm_nn", false, y, a, b, g, acc));
    return OK;
}

extern "C" Err ggemm_tn_cuda(OpCx *cx, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(check_stack("ggemm_tn", y.rows, g.n));
    int64_t per = y.rows / g.n;
    CHECK(per == a.cols && y.cols == b.cols && a.rows == b.rows, E_INTERNAL, "ggemm_tn: shapes disagree");
    GemmCall c = call_of(gemm_operand_mat(a, false), gemm_operand_mat(b, false), y, g, acc);
    c.kind = GEMM_DEPTH_GROUPS;
    c.p.m = per;
    c.p.n = y.cols;
    c.p.k = a.rows;
    TRY(gemm_cuda_run(cx, "ggemm_tn", c));
    return OK;
}

static Err codes_by_expert(OpCx *cx, const char *op, bool is_k_contig, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    int64_t k = is_k_contig ? w.cols : w.rows, n = is_k_contig ? w.rows : w.cols;
    CHECK(g.n == w.nmat, E_INTERNAL, "%s: %lld groups, %lld weights", op, (long long)g.n, (long long)w.nmat);
    CHECK(a.cols == k && y.cols == n && a.rows == y.rows, E_INTERNAL, "%s: shapes disagree", op);
    GemmCall c = call_of(gemm_operand_q(a, true), gemm_operand_q(w, is_k_contig), y, g, acc);
    c.kind = GEMM_ROW_GROUPS;
    c.p.m = a.rows;
    c.p.n = n;
    c.p.k = k;
    c.b_step = w.qstep;
    c.bs_step = w.sstep;
    TRY(gemm_cuda_run(cx, op, c));
    return OK;
}

extern "C" Err ggemm_fp8_fprop_cuda(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    if (gemm_sm90_takes(cx, a, w, false)) return ggemm_fp8_fprop_sm90(cx, y, a, w, g, acc);
    TRY(codes_by_expert(cx, "ggemm_fp8_fprop", true, y, a, w, g, acc));
    return OK;
}

extern "C" Err ggemm_fp8_dgrad_cuda(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    if (gemm_sm90_takes(cx, a, w, true)) return ggemm_fp8_dgrad_sm90(cx, y, a, w, g, acc);
    TRY(codes_by_expert(cx, "ggemm_fp8_dgrad", false, y, a, w, g, acc));
    return OK;
}

extern "C" Err ggemm_fp8_wgrad_cuda(OpCx *cx, Mat y, MatQ at, MatQ bt, Groups g, bool acc) {
    if (gemm_sm90_takes(cx, at, bt, false)) return ggemm_fp8_wgrad_sm90(cx, y, at, bt, g, acc);
    TRY(check_stack("ggemm_fp8_wgrad", y.rows, g.n));
    int64_t per = y.rows / g.n;
    CHECK(at.rows == per && bt.rows == y.cols && at.cols == bt.cols, E_INTERNAL,
          "ggemm_fp8_wgrad: shapes disagree");
    GemmCall c = call_of(gemm_operand_q(at, true), gemm_operand_q(bt, true), y, g, acc);
    c.kind = GEMM_DEPTH_GROUPS;
    c.p.m = per;
    c.p.n = y.cols;
    c.p.k = at.cols;
    TRY(gemm_cuda_run(cx, "ggemm_fp8_wgrad", c));
    return OK;
}

// Pairs: the first sum lies in `room`.
extern "C" Err ggemm_nn_pair_cuda(OpCx *cx, Mat y, Mat a, Mat b, Mat a2, Mat b2, Groups g, Mat room) {
    TRY(ggemm_nn_cuda(cx, room, a, b, g, false));
    TRY(ggemm_nn_cuda(cx, room, a2, b2, g, true));
    return cast_cuda(cx, y, room);
}

extern "C" Err ggemm_fp8_dgrad_pair_cuda(OpCx *cx, Mat y, MatQ a, MatQ w, MatQ a2, MatQ w2, Groups g, Mat room) {
    TRY(ggemm_fp8_dgrad_cuda(cx, room, a, w, g, false));
    TRY(ggemm_fp8_dgrad_cuda(cx, room, a2, w2, g, true));
    return cast_cuda(cx, y, room);
}
