// permute_cpu.c - moving and summing rows on the CPU. Contract: permute.h.
#include "permute.h"

#include "permute_core.h"
#include "row_lanes.h"
#include "rows.h"

Err rows_gather_cpu(OpCx *cx, void *dst, const void *src, const int32_t *idx, int64_t n,
                    int64_t row_bytes) {
    size_t bytes = (size_t)row_bytes;
    int threads = row_threads(cx, n * row_bytes / 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) {
        char *to = (char *)dst + (size_t)i * bytes;
        if (idx[i] < 0)
            memset(to, 0, bytes);
        else
            memcpy(to, (const char *)src + (size_t)idx[i] * bytes, bytes);
    }
    return OK;
}

Err rows_sum_cpu(OpCx *cx, Mat y, Mat x, const int32_t *first, const int32_t *idx, Mat add1,
                 Mat add2) {
    int64_t M = y.rows, D = y.cols;
    ROW_MAT(y, M, D);
    ROW_MAT(x, x.rows, D);
    if (add1.p) ROW_MAT(add1, M, D);
    if (add2.p) ROW_MAT(add2, M, D);
    if (M == 0) return OK;
    int64_t work = (M + first[M] - first[0]) * D;
    const RowLanes *lanes = row_lanes();
    int threads = row_threads(cx, work);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++)
        lanes->sum(y, x, idx + first[m], first[m + 1] - first[m], add1, add2, m);
    return OK;
}

Err slots_spread_cpu(OpCx *cx, uint32_t *rows, const float *x, const int32_t *row, const int32_t *slot, int64_t nrows,
                     int64_t K, int64_t n) {
    (void)cx;
    memset(rows, 0, (size_t)(nrows * K) * sizeof *rows);
    for (int64_t i = 0; i < n; i++) rows[row[i] * K + slot[i]] = f32_bits(x[i]);
    return OK;
}

Err slots_join_cpu(OpCx *cx, float *y, const uint32_t *rows, const int32_t *first, const int32_t *idx, int64_t T,
                   int64_t K) {
    (void)cx;
    for (int64_t t = 0; t < T; t++)
        for (int64_t k = 0; k < K; k++) y[t * K + k] = f32_from_bits(slots_bits(rows, first, idx, K, t, k));
    return OK;
}

Err parts_sum_cpu(OpCx *cx, float *y, const float *own, int64_t own_at, const float *parts, int64_t stride,
                  int64_t nparts, int64_t n) {
    int threads = row_threads(cx, n * nparts);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) y[i] = parts_value(own, own_at, parts, stride, nparts, i);
    return OK;
}
