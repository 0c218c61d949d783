// test_fp8.c - the scalar codecs against brute force: every BF16 input, every code, ties and edges.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fp8.h"
#include "quant_core.h"

// Value of a finite E4M3 magnitude code from the definition of the format.
static double e4m3_magnitude(int code) {
    int e = code >> 3, m = code & 7;
    return e ? ldexp(1.0 + m / 8.0, e - 7) : ldexp(m / 8.0, -6);
}

// Nearest code to a, ties to the even code, saturating: by looking at every code.
static int nearest_e4m3(double a) {
    int best = 0;
    for (int c = 1; c <= 0x7E; c++) {
        double d = fabs(e4m3_magnitude(c) - a), b = fabs(e4m3_magnitude(best) - a);
        if (d < b || (d == b && c % 2 == 0)) best = c;
    }
    return best;
}

static float bits_to_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static void every_bf16_input(void **state) {
    (void)state;
    for (int i = 0; i < 65536; i++) {
        float x = bits_to_float((uint32_t)i << 16);
        int sign = i >> 15 << 7;
        int want = isnan(x) ? 0x7F : isinf(x) ? 0x7E : nearest_e4m3(fabs((double)x));
        assert_int_equal(e4m3_from_f32(x), sign | want);
        int want_quantiser = isfinite(x) ? want : 0x7F;
        assert_int_equal(quant_code(x), sign | want_quantiser);
        if (!isnan(x)) assert_int_equal(bf16_from_f32(x), i);
    }
}

static void every_code(void **state) {
    (void)state;
    for (int c = 0; c < 256; c++) {
        float x = f32_from_e4m3((uint8_t)c), y = quant_value((uint8_t)c);
        assert_int_equal(!!signbit(x), c >> 7);
        if ((c & 0x7F) == 0x7F) {
            assert_true(isnan(x) && isnan(y));
            assert_int_equal(e4m3_from_f32(x), c);
            continue;
        }
        assert_true(fabs((double)x) == e4m3_magnitude(c & 0x7F));
        assert_memory_equal(&x, &y, 4);
        assert_int_equal(e4m3_from_f32(x), c);
        assert_int_equal(quant_code(x), c);
    }
}

// FP32 inputs: every midpoint between two codes, one ulp to either side, and random bits.
static void f32_inputs(void **state) {
    (void)state;
    for (int c = 0; c < 0x7E; c++) {
        float mid = (float)((e4m3_magnitude(c) + e4m3_magnitude(c + 1)) / 2);
        assert_int_equal(e4m3_from_f32(mid), c % 2 ? c + 1 : c);
        assert_int_equal(e4m3_from_f32(nextafterf(mid, 0.0f)), c);
        assert_int_equal(e4m3_from_f32(nextafterf(mid, 1e9f)), c + 1);
        assert_int_equal(quant_code(-mid), 0x80 | (c % 2 ? c + 1 : c));
    }
    assert_int_equal(e4m3_from_f32(464.0f), 0x7E); // would round to 480, which is NaN's place
    assert_int_equal(e4m3_from_f32(-1e30f), 0xFE);
    uint32_t u = 12345;
    for (int i = 0; i < 200000; i++) {
        u = u * 1664525u + 1013904223u;
        // Exponents around E4M3's range, then any.
        float x = bits_to_float(i % 4 ? (u & 0x807FFFFFu) | ((110u + (u >> 8) % 30u) << 23) : u);
        if (!isfinite(x)) continue;
        int want = nearest_e4m3(fabs((double)x)) | (signbit(x) ? 0x80 : 0);
        assert_int_equal(e4m3_from_f32(x), want);
        assert_int_equal(quant_code(x), want);
    }
}

// BF16 rounding against nearest of the two neighbours, in double.
static void bf16_rounding(void **state) {
    (void)state;
    uint32_t u = 99;
    for (int i = 0; i < 200000; i++) {
        u = u * 1664525u + 1013904223u;
        uint32_t bits = i % 3 ? u : (u & 0xFFFF0000u) | 0x8000u; // every third is a tie
        float x = bits_to_float(bits);
        uint16_t got = bf16_from_f32(x);
        float rounded = quant_round(x);
        if (isnan(x)) {
            assert_true(isnan(f32_from_bf16(got)) && isnan(rounded));
            continue;
        }
        uint16_t down = (uint16_t)(bits >> 16), up = (uint16_t)(down + 1);
        if ((down & 0x7F80u) == 0x7F80u) continue; // infinity
        // The neighbour above the largest finite value counts as 2^128.
        double a = fabs((double)x), d = fabs((double)f32_from_bf16(down));
        double p = (up & 0x7FFFu) == 0x7F80u ? 0x1p128 : fabs((double)f32_from_bf16(up));
        uint16_t want = a - d < p - a || (a - d == p - a && down % 2 == 0) ? down : up;
        assert_int_equal(got, want);
        assert_int_equal(f32_bits(rounded), (uint32_t)want << 16);
    }
}

// Scales: the definition with frexp and division, for every finite BF16 magnitude.
static void scales(void **state) {
    (void)state;
    assert_true(tile_scale_f32(0.0f) == 1.0f);
    assert_int_equal(tile_scale_e8m0(0.0f), 127);
    for (uint32_t h = 1; h < 0x7F80; h++) {
        float amax = bits_to_float(h << 16);
        double s = (double)amax / 448.0;
        float want = s < 0x1p-126 ? 0x1p-126f : (float)s;
        assert_true(tile_scale_f32(amax) == want);
        int e;
        double m = 2.0 * frexp((double)amax, &e); // amax = m * 2^(e-1), 1 <= m < 2
        double p = ldexp(1.0, m <= 1.75 ? e - 1 - 8 : e - 1 - 7);
        if (p < 0x1p-126) p = 0x1p-126;
        assert_true((double)f32_from_e8m0(tile_scale_e8m0(amax)) == p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_bf16_input), cmocka_unit_test(every_code),
        cmocka_unit_test(f32_inputs),       cmocka_unit_test(bf16_rounding),
        cmocka_unit_test(scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
