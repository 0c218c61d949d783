// embed_cpu.c - the embedding table on the CPU. Contract: embed.h.
#include "embed.h"

#include "embed_core.h"
#include "row_lanes.h"
#include "rows.h"

#define EMBED_COLS 128 // columns of one task of the backward

static Err embed_check(const int32_t *token, int64_t T, int64_t V) {
    for (int64_t t = 0; t < T; t++) {
        CHECK(embed_is_known(token[t], V), E_INPUT,
              "token %d at position %lld of the micro-batch is outside the vocabulary of %lld: "
              "were the "
              "data prepared with another tokenizer?",
              (int)token[t], (long long)t, (long long)V);
    }
    return OK;
}

Err embed_fwd_cpu(OpCx *cx, Mat x, Mat table, const int32_t *token) {
    ROW_MAT(x, x.rows, x.cols);
    ROW_MAT(table, table.rows, x.cols);
    TRY(embed_check(token, x.rows, table.rows));
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, x.rows * x.cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < x.rows; t++) {
        if (token[t] < 0)
            memset(mat_at(x, t, 0), 0, (size_t)x.cols * dtype_bytes(x.t));
        else
            lanes->cast(x, t, table, token[t]);
    }
    return OK;
}

// Columns [c, c+n), all tokens in order: every element of the table sees one order of sums.
static void embed_bwd_cols(Mat dtable, Mat dx, const int32_t *token, int64_t c, int64_t n) {
    const RowLanes *lanes = row_lanes();
    for (int64_t t = 0; t < dx.rows; t++) {
        if (token[t] < 0) continue;
        lanes->accumulate((float *)dtable.p + token[t] * dtable.ld + c, dx, t, c, n);
    }
}

Err embed_bwd_cpu(OpCx *cx, Mat dtable, Mat dx, const int32_t *token) {
    ROW_MAT(dx, dx.rows, dx.cols);
    ROW_MAT(dtable, dtable.rows, dx.cols);
    CHECK(dtable.t == DT_F32, E_INTERNAL, "embed_bwd: gradients of the table are %s, not f32",
          dtype_name(dtable.t));
    TRY(embed_check(token, dx.rows, dtable.rows));
    int64_t tasks = ceil_div(dx.cols, EMBED_COLS);
    int threads = row_threads(cx, dx.rows * dx.cols);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t k = 0; k < tasks; k++) {
        int64_t c = k * EMBED_COLS;
        embed_bwd_cols(dtable, dx, token, c, min_i64(dx.cols - c, EMBED_COLS));
    }
    return OK;
}
