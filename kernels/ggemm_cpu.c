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

// Columns [c0, c0+n) of a transposed activation, whose scales begin at `tile`.
static MatQ token_columns(MatQ x, int64_t c0, int64_t n, int64_t tile) {
    x.q += c0;
    x.s = (char *)x.s + (size_t)(tile * x.scol) * (x.st == SCALE_F32 ? 4 : 1);
    x.cols = n;
    return x;
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
        p[e] = (GemmProblem){.a = gemm_operand_q(token_columns(at, r0, n, tile), true),
                             .b = gemm_operand_q(token_columns(bt, r0, n, tile), true),
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
