// gemm_cpu.c - dense products: each operation is one problem for the engine.
#include "gemm.h"

#include "gemm_engine.h"

// One product with its sizes checked against the operands.
static Err run_one(OpCx *cx, GemmOperand a, GemmOperand b, Mat y, int64_t k_a, int64_t k_b,
                   bool is_shape_ok, bool acc) {
    CHECK(is_shape_ok && k_a == k_b, E_INTERNAL,
          "gemm: the output is %lld x %lld, the contractions are %lld and %lld: shapes disagree",
          (long long)y.rows, (long long)y.cols, (long long)k_a, (long long)k_b);
    GemmProblem p = {.a = a, .b = b, .m = y.rows, .n = y.cols, .k = k_a, .y = y, .acc = acc};
    TRY(gemm_run(cx, &p, 1));
    return OK;
}

Err gemm_nt_cpu(OpCx *cx, Mat y, Mat a, Mat b, bool acc) {
    TRY(run_one(cx, gemm_operand_mat(a, true), gemm_operand_mat(b, true), y, a.cols, b.cols,
                y.rows == a.rows && y.cols == b.rows, acc));
    return OK;
}

Err gemm_nn_cpu(OpCx *cx, Mat y, Mat a, Mat b, bool acc) {
    TRY(run_one(cx, gemm_operand_mat(a, true), gemm_operand_mat(b, false), y, a.cols, b.rows,
                y.rows == a.rows && y.cols == b.cols, acc));
    return OK;
}

Err gemm_tn_cpu(OpCx *cx, Mat y, Mat a, Mat b, bool acc) {
    TRY(run_one(cx, gemm_operand_mat(a, false), gemm_operand_mat(b, false), y, a.rows, b.rows,
                y.rows == a.cols && y.cols == b.cols, acc));
    return OK;
}

Err gemm_fp8_fprop_cpu(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) {
    TRY(run_one(cx, gemm_operand_q(a, true), gemm_operand_q(w, true), y, a.cols, w.cols,
                y.rows == a.rows && y.cols == w.rows, acc));
    return OK;
}

Err gemm_fp8_dgrad_cpu(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) {
    TRY(run_one(cx, gemm_operand_q(a, true), gemm_operand_q(w, false), y, a.cols, w.rows,
                y.rows == a.rows && y.cols == w.cols, acc));
    return OK;
}

Err gemm_fp8_wgrad_cpu(OpCx *cx, Mat y, MatQ at, MatQ bt, bool acc) {
    TRY(run_one(cx, gemm_operand_q(at, true), gemm_operand_q(bt, true), y, at.cols, bt.cols,
                y.rows == at.rows && y.cols == bt.rows, acc));
    return OK;
}
