// permute_cpu.c - moving and summing rows on the CPU. Contract: permute.h.
#include "permute.h"

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

// The same sums as permute_sum (permute_core.h), a chunk of columns at a time.
ROW_CLONES static void rows_sum_row(Mat y, Mat x, const int32_t *idx, int64_t n, Mat add1, Mat add2,
                                    int64_t m) {
    float buf[ROW_CHUNK], sum[ROW_CHUNK];
    for (int64_t c = 0; c < y.cols; c += ROW_CHUNK) {
        int64_t w = min_i64(y.cols - c, ROW_CHUNK);
        for (int64_t j = 0; j < w; j++) sum[j] = 0.0f;
        if (add1.p) {
            const float *v = row_get(add1, m, c, w, buf);
            for (int64_t j = 0; j < w; j++) sum[j] += v[j];
        }
        if (add2.p) {
            const float *v = row_get(add2, m, c, w, buf);
            for (int64_t j = 0; j < w; j++) sum[j] += v[j];
        }
        for (int64_t i = 0; i < n; i++) {
            const float *v = row_get(x, idx[i], c, w, buf);
            for (int64_t j = 0; j < w; j++) sum[j] += v[j];
        }
        row_put(y, m, c, w, sum);
    }
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
    int threads = row_threads(cx, work);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t m = 0; m < M; m++)
        rows_sum_row(y, x, idx + first[m], first[m + 1] - first[m], add1, add2, m);
    return OK;
}
