// quant_e5m6.c - the 12-bit cache on the CPU. Contract: quant.h; format and layout: e5m6.h.
//
// Threads share out rows. Whole tiles have loops of their own where QuantTiles has them; else codes
// of a tile are made in one vector loop and packed in another.
#include "e5m6.h"
#include "ops.h"
#include "quant_core.h"
#include "quant_lanes.h"
#include "rows.h"

// One tile of w <= 128 values into packed codes; returns the scale byte and counts.
ROW_CLONES static uint8_t encode_tile(uint8_t *dst, const float *x, int64_t w, QuantCount *n) {
    float v[E5M6_TILE + 1];
    uint16_t code[E5M6_TILE + 1];
    int32_t most = 0, saturated = 0, underflow = 0, bad = 0;
    for (int64_t i = 0; i < w; i++) {
        v[i] = quant_round(x[i]);
        int32_t m = quant_magnitude(v[i]);
        most = m > most ? m : most;
    }
    uint8_t b = tile_scale_e5m6(f32_from_bits((uint32_t)most));
    float inverse = f32_from_e8m0((uint8_t)(254 - b));
    for (int64_t i = 0; i < w; i++) {
        float q = v[i] * inverse; // a power of two: the same as dividing
        int32_t m = (int32_t)(f32_bits(v[i]) & 0x7FFFFFFFu);
        int32_t is_bad = m >= F32_INF_BITS;
        uint16_t c = e5m6_from_f32(q);
        saturated += !is_bad && (int32_t)(f32_bits(q) & 0x7FFFFFFFu) > 0x47FC0000;
        underflow += (c & 0x7FFu) == 0 && m != 0;
        bad |= is_bad;
        code[i] = is_bad ? (uint16_t)(c | E5M6_NAN) : c;
    }
    code[w] = 0; // the partner of an odd last value
    for (int64_t i = 0; i < (w + 1) / 2; i++) {
        uint32_t p = code[2 * i], q = code[2 * i + 1];
        dst[3 * i] = (uint8_t)p;
        dst[3 * i + 1] = (uint8_t)(p >> 8 | q << 4);
        dst[3 * i + 2] = (uint8_t)(q >> 4);
    }
    n->values += w;
    n->saturated += saturated;
    n->underflow += underflow;
    quant_tile_counted(n, most, bad != 0, f32_from_e8m0(b));
    return b;
}

ROW_CLONES static void decode_tile(float *dst, const uint8_t *src, uint8_t scale, int64_t w) {
    uint16_t code[E5M6_TILE + 1];
    float s = f32_from_e8m0(scale);
    for (int64_t i = 0; i < (w + 1) / 2; i++) {
        uint32_t a = src[3 * i], b = src[3 * i + 1], c = src[3 * i + 2];
        code[2 * i] = (uint16_t)(a | (b & 0xFu) << 8);
        code[2 * i + 1] = (uint16_t)(b >> 4 | c << 4);
    }
    for (int64_t i = 0; i < w; i++) dst[i] = f32_from_e5m6(code[i]) * s;
}

static Err check_packed(const char *op, Mat packed, Mat m) {
    CHECK(packed.t == DT_U8 && packed.rows == m.rows && packed.cols == e5m6_row_bytes(m.cols) &&
              (m.t == DT_F32 || m.t == DT_BF16),
          E_INTERNAL, "%s: %s [%lld, %lld] does not pack %s [%lld, %lld]", op, dtype_name(packed.t),
          (long long)packed.rows, (long long)packed.cols, dtype_name(m.t), (long long)m.rows,
          (long long)m.cols);
    return OK;
}

Err quant_e5m6_cpu(OpCx *cx, Mat y, Mat x, QuantCount *n) {
    TRY(check_packed("quant_e5m6", y, x));
    int64_t scales = (x.cols + 1) / 2 * 3;
    int threads = row_threads(cx, x.rows * x.cols * 4);
    const QuantTiles *whole = quant_chosen()->tiles;
    QuantCount all = {0};
#pragma omp parallel num_threads(threads)
    {
        QuantCount count = {0};
        float buf[E5M6_TILE];
#pragma omp for schedule(static)
        for (int64_t r = 0; r < x.rows; r++) {
            uint8_t *row = mat_at(y, r, 0);
            memset(row + scales, 0, (size_t)(y.cols - scales));
            for (int64_t c = 0; c < x.cols; c += E5M6_TILE) {
                int64_t w = min_i64(E5M6_TILE, x.cols - c);
                uint8_t *dst = row + c / 2 * 3, *scale = row + scales + c / E5M6_TILE;
                if (whole && w == E5M6_TILE &&
                    whole->e5m6(dst, scale, mat_at(x, r, c), x.t == DT_F32, &count))
                    continue;
                const float *v = row_get(x, r, c, w, buf);
                *scale = encode_tile(dst, v, w, &count);
            }
        }
#pragma omp critical(quant_count)
        quant_count_add(&all, &count);
    }
    if (n) quant_count_add(n, &all);
    return OK;
}

Err dequant_e5m6_cpu(OpCx *cx, Mat y, Mat x) {
    TRY(check_packed("dequant_e5m6", x, y));
    int64_t scales = (y.cols + 1) / 2 * 3;
    int threads = row_threads(cx, y.rows * y.cols * 4);
    const QuantTiles *whole = quant_chosen()->tiles;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t r = 0; r < y.rows; r++) {
        const uint8_t *row = mat_at(x, r, 0);
        float v[E5M6_TILE];
        for (int64_t c = 0; c < y.cols; c += E5M6_TILE) {
            int64_t w = min_i64(E5M6_TILE, y.cols - c);
            if (whole && w == E5M6_TILE && y.t == DT_BF16 &&
                whole->from_e5m6(mat_at(y, r, c), row + c / 2 * 3, row[scales + c / E5M6_TILE]))
                continue;
            decode_tile(v, row + c / 2 * 3, row[scales + c / E5M6_TILE], w);
            row_put(y, r, c, w, v);
        }
    }
    return OK;
}
