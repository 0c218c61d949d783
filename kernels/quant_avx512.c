// quant_avx512.c - whole tiles of E4M3 codes with AVX-512 (quant_lanes.h: QuantTiles).
//
// Values stay BF16 bits, 32 to a register. With a power-of-two scale a code is an integer function
// of them: both exponents are subtracted and four bits rounded away, to even. Quotients below the
// smallest normal code (2^-6) lose more bits; they are rare, so only tiles (or 16 rows) that have
// one take the longer way, which counts underflow too. With FP32 scales values are divided.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512.h"

enum {
    WIDE = 64,       // columns of one pass over a block
    GROUP = 16,      // rows that are turned together
    E4M3_DROP = 4,   // bits of BF16 that a code has not
    E4M3_EDGE = 7,   // exponent byte of a scale less the edge of quant_avx512.h
};

// 64 columns (or w) of m rows, as QuantTiles.take.
INLINE bool take64(const bool is_f32, uint16_t *dst, int64_t dst_ld, const char *src,
                   int64_t row_bytes, int64_t m, int64_t w, uint16_t *most) {
    const int64_t half = 32 * (is_f32 ? 4 : 2);
    __m512i m0 = _mm512_loadu_si512(most), m1 = _mm512_loadu_si512(most + 32);
    __mmask16 nan = 0;
    for (int64_t r = 0; r < m; r++, src += row_bytes) {
        __builtin_prefetch(src + 2 * half, 0, 2);
        __builtin_prefetch(src + 2 * half + 64, 0, 2);
        if (is_f32) {
            __builtin_prefetch(src + 2 * half + 128, 0, 2);
            __builtin_prefetch(src + 2 * half + 192, 0, 2);
        }
        __m512i a = take32(src, is_f32, w, &nan), b = _mm512_setzero_si512();
        if (w > 32) b = take32(src + half, is_f32, w - 32, &nan);
        m0 = _mm512_max_epu16(m0, magnitude(a));
        m1 = _mm512_max_epu16(m1, magnitude(b));
        if (!dst) continue;
        _mm512_storeu_si512(dst + r * dst_ld, a);
        _mm512_storeu_si512(dst + r * dst_ld + 32, b);
    }
    _mm512_storeu_si512(most, m0);
    _mm512_storeu_si512(most + 32, m1);
    return nan == 0;
}

static bool take(uint16_t *dst, int64_t dst_ld, const void *x, bool is_f32, int64_t ld, int64_t m,
                 int64_t w, uint16_t *most) {
    const char *p = x;
    for (int64_t c = 0; c < w; c += WIDE) {
        int64_t n = w - c < WIDE ? w - c : WIDE;
        uint16_t *to = dst ? dst + c : NULL;
        bool is_finite = is_f32 ? take64(true, to, dst_ld, p + 4 * c, 4 * ld, m, n, most + c)
                                : take64(false, to, dst_ld, p + 2 * c, 2 * ld, m, n, most + c);
        if (!is_finite) return false;
    }
    return true;
}

INLINE __m512i rounded(__m512i x) { // floats, not NaN; the upper half of each is the result
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(x, _mm512_add_epi32(even, _mm512_set1_epi32(0x7FFF)));
}

// BF16 bits of E4M3 codes 0 to 7, the subnormals.
static const uint16_t low_values[32] = {0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60};

// 32 codes times 2^(b - 127); low: low_values times the same. A NaN code gives a NaN of its sign.
INLINE __m512i decode32(__m256i q, int b, __m512i low) {
    __m512i code = _mm512_cvtepu8_epi16(q), mag = _mm512_and_si512(code, words(0x7F));
    __m512i v = _mm512_add_epi16(_mm512_slli_epi16(mag, 4), words((120 + b - 127) * 128));
    v = _mm512_mask_permutexvar_epi16(v, _mm512_cmplt_epu16_mask(mag, words(8)), mag, low);
    v = _mm512_mask_mov_epi16(v, _mm512_cmpeq_epi16_mask(mag, words(0x7F)), words(0x7FC0));
    return mix(words(0x7FFF), v, _mm512_slli_epi16(code, 8));
}

INLINE __m512i even_floats(__m512i v) {
    return _mm512_slli_epi32(v, 16);
}
INLINE __m512i odd_floats(__m512i v) {
    return _mm512_and_si512(v, _mm512_set1_epi32((int)0xFFFF0000u));
}

// Values times s in FP32, rounded to BF16. Such NaNs as decode32 makes stay.
INLINE __m512i scaled32(__m512i v, __m512 s) {
    __m512 even = _mm512_mul_ps(_mm512_castsi512_ps(even_floats(v)), s);
    __m512 odd = _mm512_mul_ps(_mm512_castsi512_ps(odd_floats(v)), s);
    __m512i e = _mm512_srli_epi32(rounded(_mm512_castps_si512(even)), 16);
    return mix(_mm512_set1_epi32(0xFFFF), e, rounded(_mm512_castps_si512(odd)));
}

static void take_codes(uint16_t *dst, int64_t dst_ld, const uint8_t *q, int64_t ld, const float *s,
                       bool is_pow2, int64_t m, int64_t w, uint16_t *most) {
    const __m512i low = _mm512_loadu_si512(low_values);
    const __mmask32 nonzero = ~1u;
    __mmask32 k0 = first32(w), k1 = first32(w - 32);
    __m512i m0 = _mm512_loadu_si512(most), m1 = _mm512_loadu_si512(most + 32);
    for (int64_t r = 0; r < m; r++, q += ld) {
        __builtin_prefetch(q + w, 0, 2);
        __m256i q0, q1;
        if (w >= WIDE) {
            q0 = _mm256_loadu_si256((const __m256i *)q);
            q1 = _mm256_loadu_si256((const __m256i *)(q + 32));
        } else {
            q0 = _mm256_maskz_loadu_epi8(k0, q);
            q1 = _mm256_maskz_loadu_epi8(k1, q + 32);
        }
        int b = (int)(f32_bits(s[r]) >> 23);
        __m512i v0, v1;
        if (is_pow2 && b >= E4M3_EXACT_LOW && b <= E4M3_EXACT_HIGH) {
            __m512i scaled = _mm512_mask_add_epi16(low, nonzero, low, words((b - 127) * 128));
            v0 = decode32(q0, b, scaled);
            v1 = decode32(q1, b, scaled);
        } else {
            v0 = scaled32(decode32(q0, 127, low), _mm512_set1_ps(s[r]));
            v1 = scaled32(decode32(q1, 127, low), _mm512_set1_ps(s[r]));
        }
        m0 = _mm512_max_epu16(m0, magnitude(v0));
        m1 = _mm512_max_epu16(m1, magnitude(v1));
        _mm512_storeu_si512(dst + r * dst_ld, v0);
        _mm512_storeu_si512(dst + r * dst_ld + 32, v1);
    }
    _mm512_storeu_si512(most, m0);
    _mm512_storeu_si512(most + 32, m1);
}

// --- codes: 32 values give 32 words, of which the low 7 bits are the code without sign ---

// Magnitude code of the quotient of floats, at most the largest code before rounding's last bit.
INLINE __m512i divided(__m512i x, __m512 s) {
    __m512 q = _mm512_div_ps(_mm512_castsi512_ps(x), s);
    __m512i mag = _mm512_and_si512(_mm512_castps_si512(q), _mm512_set1_epi32(0x7FFFFFFF));
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(mag, 20), _mm512_set1_epi32(1));
    // Round to bit 20 and take the exponent of code 0 away.
    const int less = (int)0x7FFFF - ((127 - 7) << 23);
    __m512i code = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(mag, even), _mm512_set1_epi32(less)), 20);
    // Below 2^-6 as in quant_core.h: adding rounds to the unit.
    __mmask16 is_low = _mm512_cmplt_epi32_mask(mag, _mm512_set1_epi32(0x3C800000));
    __m512 sum = _mm512_add_ps(_mm512_castsi512_ps(mag), _mm512_set1_ps(24576.0f));
    return _mm512_mask_and_epi32(code, is_low, _mm512_castps_si512(sum), _mm512_set1_epi32(0xF));
}

// Codes of values divided by the scales of their even and odd elements.
INLINE __m512i f32_codes(__m512i v, __m512 s_even, __m512 s_odd, int64_t *underflow) {
    __m512i even = divided(even_floats(v), s_even), odd = divided(odd_floats(v), s_odd);
    __m512i code = _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
    __mmask32 is_zero = _mm512_testn_epi16_mask(code, code);
    *underflow += __builtin_popcount(_mm512_mask_test_epi16_mask(is_zero, v, words(0x7FFF)));
    return code;
}

// The codes of 64 values v0, v1 from their words, signs added.
INLINE __m512i packed(__m512i c0, __m512i c1, __m512i v0, __m512i v1) {
    const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    __m512i signs = _mm512_packs_epi16(v0, v1);
    __m512i codes = mix(_mm512_set1_epi8(0x7F), _mm512_packus_epi16(c0, c1), signs);
    return _mm512_permutexvar_epi64(order, codes);
}
// Stores n of 64 codes.
INLINE void store64(uint8_t *q, __m512i codes, int64_t n) {
    if (n >= 64)
        _mm512_storeu_si512(q, codes);
    else
        _mm512_mask_storeu_epi8(q, n <= 0 ? 0 : (1ull << n) - 1, codes);
}
// Whether one of 64 codes is 0 or a subnormal.
INLINE bool has_low(__m512i codes) {
    return _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78)) != 0;
}

// Codes of n * 64 values by a power of two with this edge (pow2_codes).
INLINE void pow2_packed(__m512i *codes, const __m512i *v, const int n, int edge,
                        int64_t *underflow) {
    __m512i less = pow2_less(words(edge), E4M3_DROP), least = words(-1);
    bool is_low = false;
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
        __m512i c0 = _mm512_srli_epi16(pow2_rounded(v[2 * i], less, E4M3_DROP), E4M3_DROP);
        __m512i c1 = _mm512_srli_epi16(pow2_rounded(v[2 * i + 1], less, E4M3_DROP), E4M3_DROP);
        codes[i] = packed(c0, c1, v[2 * i], v[2 * i + 1]);
        is_low |= has_low(codes[i]);
    }
    if (__builtin_expect(!is_low, 1)) return;
    for (int i = 0; i < 2 * n; i++) watch_small(&least, v[i]);
    if (!has_small(least, words(edge))) return; // only zeros
    for (int i = 0; i < n; i++)
        codes[i] = packed(pow2_codes(v[2 * i], words(edge), E4M3_DROP, underflow),
                          pow2_codes(v[2 * i + 1], words(edge), E4M3_DROP, underflow), v[2 * i],
                          v[2 * i + 1]);
}
INLINE void f32_packed(__m512i *codes, const __m512i *v, const int n, float scale,
                       int64_t *underflow) {
    __m512 s = _mm512_set1_ps(scale);
#pragma GCC unroll 2
    for (int i = 0; i < n; i++)
        codes[i] = packed(f32_codes(v[2 * i], s, s, underflow),
                          f32_codes(v[2 * i + 1], s, s, underflow), v[2 * i], v[2 * i + 1]);
}

// Values of a tile whose quotient by its own scale lies above 448: the largest, or none.
INLINE bool is_amax_above(float amax, float s) {
    return amax / s > E4M3_MAX;
}

// --- rows ---

// One tile of w <= 128 values; false, and nothing written, if it is not for these loops.
INLINE bool row_tile(const bool is_f32, const ScaleType st, uint8_t *q, void *s, const char *x,
                     int64_t w, QuantCount *count) {
    const int64_t step = 32 * (is_f32 ? 4 : 2);
    __m512i v[4], codes[2], most = _mm512_setzero_si512();
    __mmask16 nan = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < (is_f32 ? 2 : 1); j++)
            __builtin_prefetch(x + i * step + j * 64 + AHEAD);
        v[i] = w > 32 * i ? take32(x + i * step, is_f32, w - 32 * i, &nan) : _mm512_setzero_si512();
        most = _mm512_max_epu16(most, magnitude(v[i]));
    }
    int amax = largest_word(most);
    if (nan || amax >= BF16_INF) return false;
    float scale;
    int64_t saturated = 0, underflow = 0;
    if (st == SCALE_E8M0) {
        uint8_t b = tile_scale_e8m0(f32_from_bf16((uint16_t)amax));
        if (b < E4M3_POW2_LEAST) return false;
        *(uint8_t *)s = b;
        scale = f32_from_e8m0(b);
        pow2_packed(codes, v, 2, b - E4M3_EDGE, &underflow);
    } else {
        float f = f32_from_bf16((uint16_t)amax);
        *(float *)s = scale = tile_scale_f32(f);
        f32_packed(codes, v, 2, scale, &underflow);
        for (int i = 0; i < 4 && is_amax_above(f, scale); i++)
            saturated += __builtin_popcount(_mm512_cmpeq_epi16_mask(magnitude(v[i]), words(amax)));
    }
    store64(q, codes[0], w);
    if (w > 64) store64(q + 64, codes[1], w - 64);
    count->values += w;
    count->saturated += saturated;
    count->underflow += underflow;
    quant_tile_counted(count, amax << 16, false, scale);
    return true;
}

INLINE int64_t row_of(const bool is_f32, const ScaleType st, uint8_t *q, char *s, int64_t scol,
                      const char *x, int64_t n, QuantCount *count) {
    int64_t c = 0;
    for (; c + TILE <= n; c += TILE, s += scol)
        if (!row_tile(is_f32, st, q + c, s, x + c * (is_f32 ? 4 : 2), TILE, count)) return c;
    if (c < n && row_tile(is_f32, st, q + c, s, x + c * (is_f32 ? 4 : 2), n - c, count)) return n;
    return c;
}

static int64_t row(uint8_t *q, void *s, int64_t scol, ScaleType st, const void *x, bool is_f32,
                   int64_t n, QuantCount *count) {
    if (st == SCALE_E8M0)
        return is_f32 ? row_of(true, SCALE_E8M0, q, s, scol, x, n, count)
                      : row_of(false, SCALE_E8M0, q, s, scol, x, n, count);
    return is_f32 ? row_of(true, SCALE_F32, q, s, scol * 4, x, n, count)
                  : row_of(false, SCALE_F32, q, s, scol * 4, x, n, count);
}

// --- blocks with one scale ---

static bool block(uint8_t *q, int64_t ld, ScaleType st, float scale, const uint16_t *v,
                  int64_t v_ld, int64_t m, int64_t w, int amax, QuantCount *count) {
    int b = (int)(f32_bits(scale) >> 23);
    if (st == SCALE_E8M0 && b < E4M3_POW2_LEAST) return false;
    bool is_above = st == SCALE_F32 && is_amax_above(f32_from_bf16((uint16_t)amax), scale);
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < w; c += WIDE) {
            const uint16_t *from = v + r * v_ld + c;
            __m512i x[2] = {take32(from, false, w - c, NULL), _mm512_setzero_si512()}, codes;
            if (w - c > 32) x[1] = take32(from + 32, false, w - c - 32, NULL);
            if (st == SCALE_F32)
                f32_packed(&codes, x, 1, scale, &count->underflow);
            else
                pow2_packed(&codes, x, 1, b - E4M3_EDGE, &count->underflow);
            for (int i = 0; i < 2 && is_above; i++)
                count->saturated +=
                    __builtin_popcount(_mm512_cmpeq_epi16_mask(magnitude(x[i]), words(amax)));
            store64(q + r * ld + c, codes, w - c);
            __builtin_prefetch(q + r * ld + c + TILE, 1, 2);
        }
    return true;
}

// --- the transposed form ---

// The scales of 32 channels.
typedef struct Scales32 {
    __m512i b;        // exponent bytes
    __m512 even, odd; // or floats
    __mmask32 above;  // channels whose largest quotient lies above 448
    __m512i most;
} Scales32;

INLINE __m512 f32_scales(__m512i amax) {
    __m512 x = _mm512_castsi512_ps(amax), s = _mm512_div_ps(x, _mm512_set1_ps(E4M3_MAX));
    s = _mm512_max_ps(s, _mm512_set1_ps(SCALE_MIN));
    return _mm512_mask_mov_ps(s, _mm512_testn_epi32_mask(amax, amax), _mm512_set1_ps(1.0f));
}

INLINE __m512i pow2_scales(__m512i amax) { // as tile_scale_e8m0
    __m512i b = _mm512_sub_epi16(_mm512_srli_epi16(amax, 7), words(8));
    __mmask32 more = _mm512_cmpgt_epu16_mask(_mm512_and_si512(amax, words(0x7F)), words(0x60));
    b = _mm512_mask_add_epi16(b, more, b, words(1));
    b = _mm512_max_epi16(b, words(1));
    return _mm512_mask_mov_epi16(b, _mm512_testn_epi16_mask(amax, amax), words(127));
}

// Adds the scales of a tile per channel in `channels` to the counters.
INLINE void count_scales(const Scales32 *k, __mmask32 channels, QuantCount *count) {
    uint16_t b[32];
    __mmask32 left = _mm512_mask_test_epi16_mask(channels, k->most, k->most);
    _mm512_storeu_si512(b, k->b);
    while (left) { // neighbours tend to have few different scales
        int one = b[__builtin_ctz(left)];
        __mmask32 same = _mm512_mask_cmpeq_epi16_mask(left, k->b, words(one));
        count->scales[quant_scale_bin(f32_from_bits((uint32_t)one << 23))] +=
            __builtin_popcount(same);
        left &= ~same;
    }
    int32_t amax = largest_word(k->most) << 16;
    count->amax_bits = amax > count->amax_bits ? amax : count->amax_bits;
    count->tiles += __builtin_popcount(channels);
}

// Words of two rows: the code of v0 low, of v1 high, from words with their codes there.
INLINE __m512i two_rows(__m512i low, __m512i high, __m512i v0, __m512i v1) {
    __m512i signs = mix(words(0xFF), _mm512_srli_epi16(v0, 8), v1);
    return mix(words(0x7F7F), mix(words(0xFF), low, high), signs);
}

// 8 x 8 words in each quarter of 8 registers: out[j] has, in quarter l, the 16 codes of channel 8l
// + j.
INLINE void turn_quarters(__m512i *out, const __m512i *p) {
    __m512i a[8], b[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm512_unpacklo_epi16(p[i], p[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi16(p[i], p[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi32(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi32(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        out[2 * i] = _mm512_unpacklo_epi64(b[i], b[i + 4]);
        out[2 * i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 4]);
    }
}

// 16 rows of 32 channels, coded and turned.
INLINE void turn_group(const ScaleType st, __m512i *out, const uint16_t *v, int64_t v_ld,
                       const Scales32 *k, QuantCount *count) {
    __m512i p[8], edge = _mm512_sub_epi16(k->b, words(E4M3_EDGE));
    if (st == SCALE_E8M0) {
        __m512i less = pow2_less(edge, E4M3_DROP), least = words(-1);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512i v0 = _mm512_loadu_si512(v + 2 * i * v_ld);
            __m512i v1 = _mm512_loadu_si512(v + (2 * i + 1) * v_ld);
            watch_small(&least, v0);
            watch_small(&least, v1);
            p[i] = two_rows(_mm512_srli_epi16(pow2_rounded(v0, less, E4M3_DROP), E4M3_DROP),
                            _mm512_slli_epi16(pow2_rounded(v1, less, E4M3_DROP), 8 - E4M3_DROP), v0,
                            v1);
        }
        if (__builtin_expect(!has_small(least, edge), 1)) {
            turn_quarters(out, p);
            return;
        }
    }
    for (int i = 0; i < 8; i++) {
        __m512i v0 = _mm512_loadu_si512(v + 2 * i * v_ld);
        __m512i v1 = _mm512_loadu_si512(v + (2 * i + 1) * v_ld);
        __m512i c0, c1;
        if (st == SCALE_E8M0) {
            c0 = pow2_codes(v0, edge, E4M3_DROP, &count->underflow);
            c1 = pow2_codes(v1, edge, E4M3_DROP, &count->underflow);
        } else {
            c0 = f32_codes(v0, k->even, k->odd, &count->underflow);
            c1 = f32_codes(v1, k->even, k->odd, &count->underflow);
        }
        p[i] = two_rows(c0, _mm512_slli_epi16(c1, 8), v0, v1);
        if (st == SCALE_F32 && k->above)
            count->saturated +=
                __builtin_popcount(_mm512_mask_cmpeq_epi16_mask(k->above, magnitude(v0), k->most)) +
                __builtin_popcount(_mm512_mask_cmpeq_epi16_mask(k->above, magnitude(v1), k->most));
    }
    turn_quarters(out, p);
}

// Rows of 64 tokens of 4 channels each, from four groups; m of them stored.
INLINE void store_turned(uint8_t *q, int64_t ld, __m512i t[][8], int64_t m, int64_t w) {
    __mmask64 k = m >= 64 ? ~0ull : (1ull << m) - 1;
    for (int j = 0; j < 8; j++) {
        __m512i a = _mm512_shuffle_i32x4(t[0][j], t[1][j], 0x44);
        __m512i b = _mm512_shuffle_i32x4(t[0][j], t[1][j], 0xEE);
        __m512i c = _mm512_shuffle_i32x4(t[2][j], t[3][j], 0x44);
        __m512i d = _mm512_shuffle_i32x4(t[2][j], t[3][j], 0xEE);
        __m512i row[4] = {_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xDD),
                          _mm512_shuffle_i32x4(b, d, 0x88), _mm512_shuffle_i32x4(b, d, 0xDD)};
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++) {
            if (8 * l + j >= w) continue;
            if (m >= 64)
                _mm512_storeu_si512(q + (8 * l + j) * ld, row[l]);
            else
                _mm512_mask_storeu_epi8(q + (8 * l + j) * ld, k, row[l]);
        }
    }
}

// One tile of m tokens for each of w <= 32 channels.
INLINE bool turn32(const ScaleType st, uint8_t *q, int64_t ld, char *s, const uint16_t *v,
                   int64_t v_ld, const uint16_t *most, int64_t m, int64_t w, QuantCount *count) {
    __mmask32 channels = first32(w);
    Scales32 k = {.most = _mm512_loadu_si512(most)};
    if (_mm512_cmpge_epu16_mask(k.most, words(BF16_INF))) return false;
    if (st == SCALE_E8M0) {
        k.b = pow2_scales(k.most);
        if (_mm512_cmplt_epu16_mask(k.b, words(E4M3_POW2_LEAST))) return false;
        if (w >= 32)
            _mm256_storeu_si256((__m256i *)s, _mm512_cvtepi16_epi8(k.b));
        else
            _mm256_mask_storeu_epi8(s, channels, _mm512_cvtepi16_epi8(k.b));
    } else {
        __m512i even = even_floats(k.most), odd = odd_floats(k.most);
        k.even = f32_scales(even);
        k.odd = f32_scales(odd);
        k.b = mix(_mm512_set1_epi32(0xFFFF), _mm512_srli_epi32(_mm512_castps_si512(k.even), 23),
                  _mm512_slli_epi32(_mm512_srli_epi32(_mm512_castps_si512(k.odd), 23), 16));
        float both[2][16];
        _mm512_storeu_ps(both[0], k.even);
        _mm512_storeu_ps(both[1], k.odd);
        for (int64_t c = 0; c < w; c++) ((float *)s)[c] = both[c % 2][c / 2];
        __m512 top = _mm512_set1_ps(E4M3_MAX);
        uint32_t e =
            _mm512_cmp_ps_mask(_mm512_div_ps(_mm512_castsi512_ps(even), k.even), top, _CMP_GT_OQ);
        uint32_t o =
            _mm512_cmp_ps_mask(_mm512_div_ps(_mm512_castsi512_ps(odd), k.odd), top, _CMP_GT_OQ);
        for (int i = 0; i < 16; i++) k.above |= (e >> i & 1) << 2 * i | (o >> i & 1) << (2 * i + 1);
    }
    for (int64_t c = 0; c < w; c++) { // what the next 32 channels but one will write
        __builtin_prefetch(q + (2 * w + c) * ld, 1, 2);
        __builtin_prefetch(q + (2 * w + c) * ld + 64, 1, 2);
    }
    count_scales(&k, channels, count);
    count->values += m * w;
    for (int64_t i = 0; i < m; i += 4 * GROUP) {
        __m512i t[4][8];
        if (m - i < 4 * GROUP) memset(t, 0, sizeof t);
        for (int64_t g = 0; g < 4 && i + g * GROUP < m; g++) {
            const uint16_t *from = v + (i + g * GROUP) * v_ld;
            if (m - i - g * GROUP >= GROUP) {
                turn_group(st, t[g], from, v_ld, &k, count);
            } else {
                uint16_t pad[GROUP][32] = {{0}};
                for (int64_t r = i + g * GROUP; r < m; r++, from += v_ld)
                    memcpy(pad[r % GROUP], from, sizeof pad[0]);
                turn_group(st, t[g], pad[0], 32, &k, count);
            }
        }
        store_turned(q + i, ld, t, m - i, w);
    }
    return true;
}

static bool turn(uint8_t *q, int64_t ld, void *s, ScaleType st, const uint16_t *v, int64_t v_ld,
                 const uint16_t *most, int64_t m, int64_t w, QuantCount *count) {
    return st == SCALE_E8M0 ? turn32(SCALE_E8M0, q, ld, s, v, v_ld, most, m, w, count)
                            : turn32(SCALE_F32, q, ld, s, v, v_ld, most, m, w, count);
}

const QuantTiles quant_tiles_avx512 = {
    take, take_codes, row, block, turn, quant_avx512_e5m6, quant_avx512_from_e5m6,
};
#endif
