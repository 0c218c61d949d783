// rope_cpu.c - rotary embedding on the CPU, and its table. Contract: rope.h.
#include "rope.h"

#include "rope_core.h"
#include "rows.h"

void rope_table(float *table, int64_t S, int64_t Dr, double theta, YarnShape yarn) {
    double m = 1.0;
    if (yarn.factor != 0.0) {
        m = yarn.mscale != 0.0 && yarn.mscale_all_dim != 0.0
                ? rope_mscale(yarn.factor, yarn.mscale) /
                      rope_mscale(yarn.factor, yarn.mscale_all_dim)
                : rope_mscale(yarn.factor, 1.0);
    }
    int64_t pairs = Dr / 2;
    for (int64_t i = 0; i < pairs; i++) {
        double f = rope_frequency(i, Dr, theta, yarn);
        for (int64_t s = 0; s < S; s++) {
            table[(s * pairs + i) * 2] = (float)(cos((double)s * f) * m);
            table[(s * pairs + i) * 2 + 1] = (float)(sin((double)s * f) * m);
        }
    }
}

double rope_softmax_scale(int64_t qk_dim, YarnShape yarn) {
    double scale = 1.0 / sqrt((double)qk_dim);
    if (yarn.factor == 0.0 || yarn.mscale_all_dim == 0.0) return scale;
    double m = rope_mscale(yarn.factor, yarn.mscale_all_dim);
    return scale * m * m;
}

// One row: all heads; table of its position, sign -1 for the inverse.
// NOTE: sums only, with the signs in a buffer: written as a*c - b*s beside a*s + b*c, gcc 12 makes
// fused multiply-add-subtracts of it in spite of -ffp-contract=off, and the bits depend on the
// instruction set.
ROW_CLONES static void rope_row(Mat x, RopeShape s, const float *table, float sign, int64_t r) {
    float buf[ROW_CHUNK], partner[ROW_CHUNK], cosine[ROW_CHUNK], sine[ROW_CHUNK];
    for (int64_t c = 0; c < s.rope_dim; c += ROW_CHUNK) {
        int64_t n = min_i64(s.rope_dim - c, ROW_CHUNK);
        for (int64_t i = 0; i < n; i += 2) {
            cosine[i] = cosine[i + 1] = table[c + i];
            sine[i] = -sign * table[c + i + 1];
            sine[i + 1] = sign * table[c + i + 1];
        }
        for (int64_t h = 0; h < s.heads; h++) {
            int64_t col = s.col + h * s.head_stride + c;
            row_copy(buf, x, r, col, n);
            for (int64_t i = 0; i < n; i += 2) {
                partner[i] = buf[i + 1];
                partner[i + 1] = buf[i];
            }
            for (int64_t i = 0; i < n; i++)
                buf[i] = rope_value(buf[i], partner[i], cosine[i], sine[i]);
            row_put(x, r, col, n, buf);
        }
    }
}

Err rope_cpu(OpCx *cx, Mat x, RopeShape shape, const float *table, bool inverse) {
    int64_t last = shape.col + (shape.heads - 1) * shape.head_stride + shape.rope_dim;
    ROW_MAT(x, x.rows, x.cols);
    CHECK(shape.rope_dim % 2 == 0 && shape.seq_len > 0 && (shape.heads == 0 || last <= x.cols),
          E_INTERNAL, "rope: %lld heads of %lld values (stride %lld, column %lld) in %lld columns",
          (long long)shape.heads, (long long)shape.rope_dim, (long long)shape.head_stride,
          (long long)shape.col, (long long)x.cols);
    float sign = inverse ? -1.0f : 1.0f;
    int threads = row_threads(cx, x.rows * shape.heads * shape.rope_dim);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < x.rows; r++)
        rope_row(x, shape, table + r % shape.seq_len * shape.rope_dim, sign, r);
    return OK;
}
