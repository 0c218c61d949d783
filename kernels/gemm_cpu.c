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

// a b + a2 b2 where both fit y; else false.
static bool pair_of(GemmProblem *p, Mat y, GemmOperand a, GemmOperand b, int64_t k, GemmOperand a2,
                    GemmOperand b2, int64_t k2) {
    *p = (GemmProblem){
        .a = a, .b = b, .m = y.rows, .n = y.cols, .k = k, .y = y, .a2 = a2, .b2 = b2, .k2 = k2};
    return k > 0 && k2 > 0;
}

Err gemm_nn_pair_cpu(OpCx *cx, Mat y, Mat a, Mat b, Mat a2, Mat b2, Mat room) {
    GemmProblem p;
    CHECK(y.rows == a.rows && y.cols == b.cols && a.cols == b.rows && y.rows == a2.rows &&
              y.cols == b2.cols && a2.cols == b2.rows,
          E_INTERNAL, "gemm_nn_pair: shapes disagree");
    if (pair_of(&p, y, gemm_operand_mat(a, true), gemm_operand_mat(b, false), a.cols,
                gemm_operand_mat(a2, true), gemm_operand_mat(b2, false), a2.cols) &&
        gemm_takes_pairs(cx, &p)) {
        TRY(gemm_run(cx, &p, 1));
        return OK;
    }
    TRY(gemm_nn_cpu(cx, room, a, b, false));
    TRY(gemm_nn_cpu(cx, room, a2, b2, true));
    TRY(cast_cpu(cx, y, room));
    return OK;
}

Err gemm_fp8_dgrad_pair_cpu(OpCx *cx, Mat y, MatQ a, MatQ w, MatQ a2, MatQ w2, Mat room) {
    GemmProblem p;
    CHECK(y.rows == a.rows && y.cols == w.cols && a.cols == w.rows && y.rows == a2.rows &&
              y.cols == w2.cols && a2.cols == w2.rows,
          E_INTERNAL, "gemm_fp8_dgrad_pair: shapes disagree");
    if (pair_of(&p, y, gemm_operand_q(a, true), gemm_operand_q(w, false), w.rows,
                gemm_operand_q(a2, true), gemm_operand_q(w2, false), w2.rows) &&
        gemm_takes_pairs(cx, &p)) {
        TRY(gemm_run(cx, &p, 1));
        return OK;
    }
    TRY(gemm_fp8_dgrad_cpu(cx, room, a, w, false));
    TRY(gemm_fp8_dgrad_cpu(cx, room, a2, w2, true));
    TRY(cast_cpu(cx, y, room));
    return OK;
}
