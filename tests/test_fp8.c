// test_fp8.c - the scalar codecs against brute force: every BF16 input, every code, ties and edges.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "fp8.h"
#include "quant_core.h"

// A format by its definition, and the functions that must agree with it.
typedef struct Format {
    int bits, bias; // of the mantissa, of the exponent
    int last;       // code of the largest finite value; above it infinity (E5M2 only) and NaN
    uint8_t (*from_f32)(float);
    float (*to_f32)(uint8_t);
    uint32_t (*quant_code)(float, float);
    float (*quant_value)(uint8_t);
    float (*scale_f32)(float);
    uint8_t (*scale_e8m0)(float);
} Format;

static const Format formats[] = {
    {3, 7, 0x7E, e4m3_from_f32, f32_from_e4m3, quant_code, quant_value, tile_scale_f32,
     tile_scale_e8m0},
    {2, 15, 0x7B, e5m2_from_f32, f32_from_e5m2, quant_code_e5m2, quant_value_e5m2,
     tile_scale_e5m2_f32, tile_scale_e5m2_e8m0},
};
#define FOR_BOTH for (const Format *f = formats; f < formats + 2; f++)

// Value of a finite magnitude code.
static double magnitude(const Format *f, int code) {
    int e = code >> f->bits;
    double m = (code & ((1 << f->bits) - 1)) / (double)(1 << f->bits);
    return e ? ldexp(1.0 + m, e - f->bias) : ldexp(m, 1 - f->bias);
}

// Nearest code to a, ties to the even code, saturating: by looking at every code.
static int nearest(const Format *f, double a) {
    static double value[2][128];
    double *v = value[f - formats];
    for (int c = 1; v[f->last] == 0 && c <= f->last; c++) v[c] = magnitude(f, c);
    if (a >= v[f->last]) return f->last;
    int best = 0;
    for (int c = 1; c <= f->last; c++) {
        double d = fabs(v[c] - a), b = fabs(v[best] - a);
        if (d < b || (d == b && c % 2 == 0)) best = c;
    }
    return best;
}

static float bits_to_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static void formats_are_as_published(void **state) {
    (void)state;
    assert_true(magnitude(&formats[0], 0x7E) == 448.0 && E4M3_MAX == 448.0f);
    assert_true(magnitude(&formats[0], 1) == 0x1p-9 && magnitude(&formats[0], 8) == 0x1p-6);
    assert_true(magnitude(&formats[1], 0x7B) == 57344.0 && E5M2_MAX == 57344.0f);
    assert_true(magnitude(&formats[1], 1) == 0x1p-16 && magnitude(&formats[1], 4) == 0x1p-14);
    assert_true(f32_from_e5m2(0x7C) == INFINITY && f32_from_e5m2(0xFC) == -INFINITY);
    assert_true(quant_value_e5m2(0x7C) == INFINITY && quant_value_e5m2(0xFC) == -INFINITY);
}

static void every_bf16_input(void **state) {
    (void)state;
    FOR_BOTH
    for (int i = 0; i < 65536; i++) {
        float x = bits_to_float((uint32_t)i << 16);
        int sign = i >> 15 << 7;
        int want = isnan(x) ? 0x7F : isinf(x) ? f->last : nearest(f, fabs((double)x));
        assert_int_equal(f->from_f32(x), sign | want);
        int want_quantiser = isfinite(x) ? want : 0x7F;
        assert_int_equal(f->quant_code(x, x), sign | want_quantiser);
        if (!isnan(x)) assert_int_equal(bf16_from_f32(x), i);
        // A quotient of any size of a finite value saturates.
        if (!isnan(x)) assert_int_equal(f->quant_code(x, 1.0f), sign | want);
    }
}

static void every_code(void **state) {
    (void)state;
    FOR_BOTH
    for (int c = 0; c < 256; c++) {
        float x = f->to_f32((uint8_t)c), y = f->quant_value((uint8_t)c);
        assert_int_equal(!!signbit(x), c >> 7);
        assert_int_equal(!!signbit(y), c >> 7);
        if ((c & 0x7F) > f->last) {
            bool is_infinity = f->bits == 2 && (c & 0x7F) == 0x7C;
            assert_true(is_infinity ? isinf(x) && isinf(y) : isnan(x) && isnan(y));
            assert_int_equal(f->from_f32(x), is_infinity ? c - 1 : c | 0x7F);
            assert_int_equal(f->quant_code(x, x), c | 0x7F);
            continue;
        }
        assert_true(fabs((double)x) == magnitude(f, c & 0x7F));
        assert_memory_equal(&x, &y, 4);
        assert_int_equal(f->from_f32(x), c);
        assert_int_equal(f->quant_code(x, x), c);
        assert_true(bf16_round(x) == x);
    }
}

// FP32 inputs: every midpoint between two codes, one ulp to either side, and random bits.
static void f32_inputs(void **state) {
    (void)state;
    FOR_BOTH {
        for (int c = 0; c < f->last; c++) {
            float mid = (float)((magnitude(f, c) + magnitude(f, c + 1)) / 2);
            assert_int_equal(f->from_f32(mid), c % 2 ? c + 1 : c);
            assert_int_equal(f->from_f32(nextafterf(mid, 0.0f)), c);
            assert_int_equal(f->from_f32(nextafterf(mid, 1e9f)), c + 1);
            assert_int_equal(f->quant_code(-mid, -mid), 0x80 | (c % 2 ? c + 1 : c));
        }
        // Would round to the value after the largest, where NaN or infinity is.
        double step = magnitude(f, f->last) - magnitude(f, f->last - 1);
        assert_int_equal(f->from_f32((float)(magnitude(f, f->last) + step / 2)), f->last);
        assert_int_equal(f->from_f32(-1e30f), 0x80 | f->last);
        uint32_t u = 12345;
        for (int i = 0; i < 200000; i++) {
            u = u * 1664525u + 1013904223u;
            // Exponents around the format's range, then any.
            float x =
                bits_to_float(i % 4 ? (u & 0x807FFFFFu) | ((105u + (u >> 8) % 40u) << 23) : u);
            if (!isfinite(x)) continue;
            int want = nearest(f, fabs((double)x)) | (signbit(x) ? 0x80 : 0);
            assert_int_equal(f->from_f32(x), want);
            assert_int_equal(f->quant_code(x, x), want);
        }
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
    FOR_BOTH {
        double most = magnitude(f, f->last);
        assert_true(f->scale_f32(0.0f) == 1.0f);
        assert_int_equal(f->scale_e8m0(0.0f), 127);
        for (uint32_t h = 1; h < 0x7F80; h++) {
            float amax = bits_to_float(h << 16);
            double s = (double)amax / most;
            float want = s < 0x1p-126 ? 0x1p-126f : (float)s;
            assert_true(f->scale_f32(amax) == want);
            int e;
            double m = 2.0 * frexp((double)amax, &e); // amax = m * 2^(e-1), 1 <= m < 2
            double p = ldexp(1.0, e - 1 - ilogb(most) + (m > 1.75));
            if (p < 0x1p-126) p = 0x1p-126;
            assert_true((double)f32_from_e8m0(f->scale_e8m0(amax)) == p);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(formats_are_as_published),
        cmocka_unit_test(every_bf16_input),
        cmocka_unit_test(every_code),
        cmocka_unit_test(f32_inputs),
        cmocka_unit_test(bf16_rounding),
        cmocka_unit_test(scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
