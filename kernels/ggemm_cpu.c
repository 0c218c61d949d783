// ggemm_cpu.c - grouped products: one problem per expert, all given to the engine together, so that
// threads share out the tiles of all experts.
#include "ggemm.h"

#include "gemm_engine.h"

// Which of the three shapes: rows of tokens are rows of the output, or the contraction.
typedef enum Shape { SHAPE_NT, SHAPE_NN, SHAPE_TN } Shape;

static Err check_groups(const char *op, Groups g, int64_t rows) {
    for (int64_t e = 0; e < g.n; e++)
        CHECK(g.start[e] >= 0 && g.count[e] >= 0 && g.start[e] + g.count[e] <= rows, E_INTERNAL,
              "%s: group %lld has rows %lld..%lld of %lld", op, (long long)e, (long long)g.start[e],
              (long long)(g.start[e] + g.count[e]), (long long)rows);
    return OK;
}

static Err check_stack(const char *op, int64_t stacked, int64_t n) {
    CHECK(n > 0 && stacked % n == 0, E_INTERNAL, "%s: %lld stacked rows are not %lld matrices", op,
          (long long)stacked, (long long)n);
    return OK;
}

// Tiles of the tokens before group e: where its scales begin.
static int64_t first_tile(Groups g, int64_t e) {
    g.n = e;
    return e ? groups_tiles(g, 0) : 0;
}

static Err ggemm(OpCx *cx, Shape shape, Mat y, Mat a, Mat b, Groups g, bool acc) {
    static const char *const names[] = {"ggemm_nt", "ggemm_nn", "ggemm_tn"};
    const char *op = names[shape];
    bool is_tn = shape == SHAPE_TN;
    TRY(check_stack(op, is_tn ? y.rows : b.rows, g.n));
    int64_t per = (is_tn ? y.rows : b.rows) / g.n; // rows of one stacked matrix
    int64_t k_b = shape == SHAPE_NT ? b.cols : per;
    int64_t n_b = shape == SHAPE_NT ? per : b.cols;
    CHECK(is_tn ? per == a.cols && y.cols == b.cols && a.rows == b.rows
                : a.cols == k_b && y.cols == n_b && a.rows == y.rows,
          E_INTERNAL, "%s: shapes disagree", op);
    TRY(check_groups(op, g, a.rows));
    size_t mark = arena_mark(cx->scratch);
    GemmProblem *p = NULL;
    ARENA_NEW(cx->scratch, p, g.n);
    for (int64_t e = 0; e < g.n; e++) {
        int64_t r0 = g.start[e], n = g.count[e];
        Mat ae = mat_rows(a, r0, n);
        if (is_tn) {
            p[e] = (GemmProblem){.a = gemm_operand_mat(ae, false),
                                 .b = gemm_operand_mat(mat_rows(b, r0, n), false),
                                 .m = per,
                                 .n = y.cols,
                                 .k = n,
                                 .y = mat_rows(y, e * per, per),
                                 .acc = acc};
        } else {
            p[e] =
                (GemmProblem){.a = gemm_operand_mat(ae, true),
                              .b = gemm_operand_mat(mat_rows(b, e * per, per), shape == SHAPE_NT),
                              .m = n,
                              .n = n_b,
                              .k = k_b,
                              .y = mat_rows(y, r0, n),
                              .acc = acc};
        }
    }
    TRY(gemm_run(cx, p, g.n));
    arena_release(cx->scratch, mark);
    return OK;
}

Err ggemm_nt_cpu(OpCx *cx, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(ggemm(cx, SHAPE_NT, y, a, b, g, acc));
    return OK;
}

Err ggemm_nn_cpu(OpCx *cx, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(ggemm(cx, SHAPE_NN, y, a, b, g, acc));
    return OK;
}

Err ggemm_tn_cpu(OpCx *cx, Mat y, Mat a, Mat b, Groups g, bool acc) {
    TRY(ggemm(cx, SHAPE_TN, y, a, b, g, acc));
    return OK;
}

// fprop (is_k_contig) and dgrad: the expert's rows times its weight.
static Err ggemm_fp8_rows(OpCx *cx, const char *op, bool is_k_contig, Mat y, MatQ a, MatQ w,
                          Groups g, bool acc) {
    int64_t k = is_k_contig ? w.cols : w.rows, n = is_k_contig ? w.rows : w.cols;
    CHECK(g.n == w.nmat, E_INTERNAL, "%s: %lld groups, %lld weights", op, (long long)g.n,
          (long long)w.nmat);
    CHECK(a.cols == k && y.cols == n && a.rows == y.rows, E_INTERNAL, "%s: shapes disagree", op);
    TRY(check_groups(op, g, a.rows));
    size_t mark = arena_mark(cx->scratch);
    GemmProblem *p = NULL;
    ARENA_NEW(cx->scratch, p, g.n);
    for (int64_t e = 0; e < g.n; e++) {
        int64_t r0 = g.start[e], m = g.count[e];
        p[e] = (GemmProblem){.a = gemm_operand_q(matq_rows(a, r0, m), true),
                             .b = gemm_operand_q(matq_mat(w, e), is_k_contig),
                             .m = m,
                             .n = n,
                             .k = k,
                             .y = mat_rows(y, r0, m),
                             .acc = acc};
    }
    TRY(gemm_run(cx, p, g.n));
    arena_release(cx->scratch, mark);
    return OK;
}

Err ggemm_fp8_fprop_cpu(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    TRY(ggemm_fp8_rows(cx, "ggemm_fp8_fprop", true, y, a, w, g, acc));
    return OK;
}

Err ggemm_fp8_dgrad_cpu(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    TRY(ggemm_fp8_rows(cx, "ggemm_fp8_dgrad", false, y, a, w, g, acc));
    return OK;
}

Err ggemm_fp8_wgrad_cpu(OpCx *cx, Mat y, MatQ at, MatQ bt, Groups g, bool acc) {
    const char *op = "ggemm_fp8_wgrad";
    TRY(check_stack(op, y.rows, g.n));
    int64_t per = y.rows / g.n;
    CHECK(at.rows == per && bt.rows == y.cols && at.cols == bt.cols, E_INTERNAL,
          "%s: shapes disagree", op);
    TRY(check_groups(op, g, at.cols));
    size_t mark = arena_mark(cx->scratch);
    GemmProblem *p = NULL;
    ARENA_NEW(cx->scratch, p, g.n);
    for (int64_t e = 0; e < g.n; e++) {
        int64_t r0 = g.start[e], n = g.count[e], tile = first_tile(g, e);
        p[e] = (GemmProblem){.a = gemm_operand_q(matq_cols(at, r0, n, tile), true),
                             .b = gemm_operand_q(matq_cols(bt, r0, n, tile), true),
                             .m = per,
                             .n = y.cols,
                             .k = n,
                             .y = mat_rows(y, e * per, per),
                             .acc = acc};
    }
    TRY(gemm_run(cx, p, g.n));
    arena_release(cx->scratch, mark);
    return OK;
}

// Pairs: both products of every expert, or false if such sums take none of them.
static Err run_pairs(OpCx *cx, GemmProblem *p, int64_t n, bool *is_done) {
    *is_done = false;
    for (int64_t e = 0; e < n; e++)
        if (p[e].k == 0 || p[e].k2 == 0 || !gemm_takes_pairs(cx, &p[e])) return OK;
    *is_done = true;
    return gemm_run(cx, p, n);
}

Err ggemm_nn_pair_cpu(OpCx *cx, Mat y, Mat a, Mat b, Mat a2, Mat b2, Groups g, Mat room) {
    TRY(check_stack("ggemm_nn_pair", b.rows, g.n));
    TRY(check_stack("ggemm_nn_pair", b2.rows, g.n));
    int64_t k = b.rows / g.n, k2 = b2.rows / g.n;
    CHECK(a.cols == k && a2.cols == k2 && y.cols == b.cols && y.cols == b2.cols &&
              a.rows == y.rows && a2.rows == y.rows,
          E_INTERNAL, "ggemm_nn_pair: shapes disagree");
    TRY(check_groups("ggemm_nn_pair", g, a.rows));
    size_t mark = arena_mark(cx->scratch);
    GemmProblem *p = NULL;
    bool is_done = false;
    ARENA_NEW(cx->scratch, p, g.n);
    for (int64_t e = 0; e < g.n; e++) {
        int64_t r0 = g.start[e], n = g.count[e];
        p[e] = (GemmProblem){.a = gemm_operand_mat(mat_rows(a, r0, n), true),
                             .b = gemm_operand_mat(mat_rows(b, e * k, k), false),
                             .m = n,
                             .n = y.cols,
                             .k = k,
                             .y = mat_rows(y, r0, n),
                             .a2 = gemm_operand_mat(mat_rows(a2, r0, n), true),
                             .b2 = gemm_operand_mat(mat_rows(b2, e * k2, k2), false),
                             .k2 = k2};
    }
    TRY(run_pairs(cx, p, g.n, &is_done));
    arena_release(cx->scratch, mark);
    if (is_done) return OK;
    TRY(ggemm_nn_cpu(cx, room, a, b, g, false));
    TRY(ggemm_nn_cpu(cx, room, a2, b2, g, true));
    TRY(cast_cpu(cx, y, room));
    return OK;
}

Err ggemm_fp8_dgrad_pair_cpu(OpCx *cx, Mat y, MatQ a, MatQ w, MatQ a2, MatQ w2, Groups g,
                             Mat room) {
    CHECK(g.n == w.nmat && g.n == w2.nmat, E_INTERNAL,
          "ggemm_fp8_dgrad_pair: %lld groups, %lld and %lld weights", (long long)g.n,
          (long long)w.nmat, (long long)w2.nmat);
    CHECK(a.cols == w.rows && a2.cols == w2.rows && y.cols == w.cols && y.cols == w2.cols &&
              a.rows == y.rows && a2.rows == y.rows,
          E_INTERNAL, "ggemm_fp8_dgrad_pair: shapes disagree");
    TRY(check_groups("ggemm_fp8_dgrad_pair", g, a.rows));
    size_t mark = arena_mark(cx->scratch);
    GemmProblem *p = NULL;
    bool is_done = false;
    ARENA_NEW(cx->scratch, p, g.n);
    for (int64_t e = 0; e < g.n; e++) {
        int64_t r0 = g.start[e], n = g.count[e];
        p[e] = (GemmProblem){.a = gemm_operand_q(matq_rows(a, r0, n), true),
                             .b = gemm_operand_q(matq_mat(w, e), false),
                             .m = n,
                             .n = y.cols,
                             .k = w.rows,
                             .y = mat_rows(y, r0, n),
                             .a2 = gemm_operand_q(matq_rows(a2, r0, n), true),
                             .b2 = gemm_operand_q(matq_mat(w2, e), false),
                             .k2 = w2.rows};
    }
    TRY(run_pairs(cx, p, g.n, &is_done));
    arena_release(cx->scratch, mark);
    if (is_done) return OK;
    TRY(ggemm_fp8_dgrad_cpu(cx, room, a, w, g, false));
    TRY(ggemm_fp8_dgrad_cpu(cx, room, a2, w2, g, true));
    TRY(cast_cpu(cx, y, room));
    return OK;
}
