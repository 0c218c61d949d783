// test_e5m6.c - the 12-bit format: the codec against brute force over every code and every BF16 input, and the
// packed, scaled rows of quant_e5m6 against the definition in double.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "e5m6.h"
#include "must.h"
#include "ops.h"
#include "rng.h"

// Value of a finite magnitude code from the definition of the format.
static double magnitude(int code) {
    int e = code >> 6, m = code & 63;
    return e ? ldexp(1.0 + m / 64.0, e - 15) : ldexp(m / 64.0, -14);
}

// Nearest code to a, ties to the even code, saturating. Codes are in the order of their values: bisection finds the
// two neighbours.
static int nearest(double a) {
    int low = 0, high = 0x7FE;
    if (a >= magnitude(high)) return high;
    while (high - low > 1) {
        int mid = (low + high) / 2;
        if (magnitude(mid) <= a) low = mid;
        else high = mid;
    }
    double down = a - magnitude(low), up = magnitude(high) - a;
    return down < up || (down == up && low % 2 == 0) ? low : high;
}

static void every_code(void **state) {
    (void)state;
    for (int c = 0; c < 4096; c++) {
        float x = f32_from_e5m6((uint16_t)c);
        assert_int_equal(!!signbit(x), c >> 11);
        assert_int_equal(e5m6_from_f32(x), c);
        if ((c & 0x7FF) == E5M6_NAN) {
            assert_true(isnan(x));
            continue;
        }
        assert_true(fabs((double)x) == magnitude(c & 0x7FF));
        assert_true(bf16_round(x) == x); // exact in BF16
    }
    assert_true(f32_from_e5m6(0x7FE) == E5M6_MAX);
}

static void every_bf16_input(void **state) {
    (void)state;
    for (int i = 0; i < 65536; i++) {
        float x = f32_from_bf16((uint16_t)i);
        int want = isnan(x) ? E5M6_NAN : isinf(x) ? 0x7FE : nearest(fabs((double)x));
        assert_int_equal(e5m6_from_f32(x), i >> 15 << 11 | want);
    }
}

// FP32 inputs: every midpoint between two codes, one ulp to either side, and random bits.
static void f32_inputs(void **state) {
    (void)state;
    for (int c = 0; c < 0x7FE; c++) {
        float mid = (float)((magnitude(c) + magnitude(c + 1)) / 2);
        assert_int_equal(e5m6_from_f32(mid), c % 2 ? c + 1 : c);
        assert_int_equal(e5m6_from_f32(nextafterf(mid, 0.0f)), c);
        assert_int_equal(e5m6_from_f32(-nextafterf(mid, 1e9f)), 0x800 | (c + 1));
    }
    assert_int_equal(e5m6_from_f32(130048.0f), 0x7FE); // would round to 131072, which is NaN's place
    assert_int_equal(e5m6_from_f32(-1e30f), 0xFFE);
    for (uint64_t i = 0; i < 200000; i++) {
        uint32_t u = philox(1, 2, i).v[0];
        float x = f32_from_bits(i % 4 ? (u & 0x807FFFFFu) | ((100u + (u >> 8) % 50u) << 23) : u);
        if (!isfinite(x)) continue;
        assert_int_equal(e5m6_from_f32(x), nearest(fabs((double)x)) | (signbit(x) ? 0x800 : 0));
    }
}

// The smallest power of two (at least 2^-126) under which amax does not saturate, for every BF16 magnitude.
static void scales(void **state) {
    (void)state;
    assert_int_equal(tile_scale_e5m6(0.0f), 127);
    for (uint32_t h = 1; h < 0x7F80; h++) {
        double amax = (double)f32_from_bf16((uint16_t)h), s = 0x1p-126;
        while (amax / s > (double)E5M6_MAX) s *= 2;
        assert_true((double)f32_from_e8m0(tile_scale_e5m6((float)amax)) == s);
    }
}

static int code_at(const uint8_t *row, int64_t c) {
    const uint8_t *t = row + c / 2 * 3;
    return c % 2 ? t[1] >> 4 | t[2] << 4 : t[0] | (t[1] & 0xF) << 8;
}

// x [M,K] of either type: codes, scales, padding, counters and the way back, from the definition.
static void check_rows(Mat x, int nthreads) {
    int64_t M = x.rows, K = x.cols, bytes = e5m6_row_bytes(K);
    assert_true(bytes % 4 == 0 && bytes >= (K + 1) / 2 * 3 + ceil_div(K, 128));
    uint8_t *packed = malloc((size_t)(M * bytes));
    memset(packed, 0xEE, (size_t)(M * bytes));
    float *back = malloc((size_t)(M * K) * sizeof *back);
    uint16_t *back16 = malloc((size_t)(M * K) * sizeof *back16);
    Mat y = mat(packed, DT_U8, M, bytes);
    OpCx cx = {.nthreads = nthreads};
    QuantCount n = {.values = 5}, want = {.values = 5 + M * K, .tiles = M * ceil_div(K, 128)};
    MUST_OK(ops_cpu()->quant_e5m6(&cx, y, x, &n));
    MUST_OK(ops_cpu()->dequant_e5m6(&cx, mat(back, DT_F32, M, K), y));
    MUST_OK(ops_cpu()->dequant_e5m6(&cx, mat(back16, DT_BF16, M, K), y));
    for (int64_t r = 0; r < M; r++) {
        const uint8_t *row = packed + r * bytes;
        for (int64_t t = 0; t < K; t += 128) {
            int64_t end = min_i64(K, t + 128);
            float amax = 0.0f;
            bool is_bad = false;
            float v[128];
            for (int64_t c = t; c < end; c++) {
                const void *at = mat_at(x, r, c);
                v[c - t] = x.t == DT_F32 ? bf16_round(*(const float *)at) : f32_from_bf16(*(const uint16_t *)at);
                if (isfinite(v[c - t])) amax = fmaxf(amax, fabsf(v[c - t]));
                else is_bad = true;
            }
            want.nonfinite_tiles += is_bad;
            uint8_t b = row[(K + 1) / 2 * 3 + t / 128];
            assert_int_equal(b, tile_scale_e5m6(amax));
            double s = (double)f32_from_e8m0(b);
            int bin = ilogb(s) - SCALE_BIN_LOW;
            want.scales[bin < 0 ? 0 : bin >= SCALE_BINS ? SCALE_BINS - 1 : bin] += amax > 0;
            if ((int32_t)f32_bits(amax) > want.amax_bits) want.amax_bits = (int32_t)f32_bits(amax);
            for (int64_t c = t; c < end; c++) {
                float value = v[c - t];
                double q = fabs((double)value) / s;
                int sign = signbit(value) ? 0x800 : 0, code = isfinite(value) ? nearest(q) : E5M6_NAN;
                assert_int_equal(code_at(row, c), sign | code);
                want.saturated += isfinite(value) && q > (double)E5M6_MAX;
                want.underflow += value != 0 && code == 0;
                float got = back[r * K + c], got16 = f32_from_bf16(back16[r * K + c]);
                if (!isfinite(value)) {
                    assert_true(isnan(got) && isnan(got16));
                    continue;
                }
                float exact = (float)((sign ? -1 : 1) * magnitude(code) * s);
                assert_memory_equal(&got, &exact, 4);
                assert_true(got16 == bf16_round(exact));
                assert_true(fabs((double)got - (double)value) <= fmax(fabs((double)value) / 128, s * 0x1p-21));
            }
        }
        if (K % 2) assert_int_equal(code_at(row, K), 0);
        for (int64_t i = (K + 1) / 2 * 3 + ceil_div(K, 128); i < bytes; i++) assert_int_equal(row[i], 0);
    }
    assert_memory_equal(&n, &want, sizeof n);
    assert_int_equal(want.saturated, 0); // a power of two above leaves room
    free(packed);
    free(back);
    free(back16);
}

static void rows_and_tiles(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {5, 127}, {4, 128}, {9, 129}, {33, 200}, {64, 512}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        int64_t M = shapes[i][0], K = shapes[i][1];
        float *x = malloc((size_t)(M * K) * sizeof *x);
        uint16_t *h = malloc((size_t)(M * K) * sizeof *h);
        for (int64_t j = 0; j < M * K; j++) {
            int spread = (int)(philox(7, i, (uint64_t)j).v[1] % 60) - 50; // under- and overflows of one tile
            double v = rng_normal(6, i, (uint64_t)j);
            x[j] = (float)(j % 3 ? v : ldexp(v, spread));
            h[j] = bf16_from_f32(x[j]);
        }
        check_rows(mat(x, DT_F32, M, K), 1);
        check_rows(mat(h, DT_BF16, M, K), 3);
        free(x);
        free(h);
    }
}

// All-zero, subnormal-only, largest, edge of the scale, NaN and infinity.
static void strange_tiles(void **state) {
    (void)state;
    enum { K = 256 };
    float x[6][K] = {{0}};
    for (int c = 0; c < K; c++) {
        x[1][c] = f32_from_bf16((uint16_t)(c % 128)); // subnormals of BF16
        x[2][c] = c % 2 ? 3.38e38f : -1e-38f;
        x[3][c] = c ? 1.0f : (float)E5M6_MAX * 0x1p10f;
        x[4][c] = c == 5 ? NAN : c == 200 ? -INFINITY : (float)c;
        x[5][c] = c == 9 ? INFINITY : 0.0f; // nothing finite to scale by
    }
    check_rows(mat(x, DT_F32, 6, K), 1);
    OpCx cx = {.nthreads = 1};
    uint8_t packed[6 * 400];
    MUST_FAIL(ops_cpu()->quant_e5m6(&cx, mat(packed, DT_U8, 6, 396), mat(x, DT_F32, 6, K), NULL), E_INTERNAL,
              "does not pack");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code), cmocka_unit_test(every_bf16_input), cmocka_unit_test(f32_inputs),
        cmocka_unit_test(scales),     cmocka_unit_test(rows_and_tiles),   cmocka_unit_test(strange_tiles),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
