// quant_avx512.c - whole tiles of E4M3 codes with AVX-512 (quant_lanes.h: QuantTiles).
//
// Values stay BF16 bits, 32 to a register. With a power-of-two scale a code is an integer function
// of them: both exponents are subtracted and four bits rounded away, to even. Quotients below the
// smallest normal code (2^-6) lose more bits; they are rare, so only tiles (or 16 rows) that have
// one take the longer way, which counts underflow too. With FP32 scales values are divided.
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512.h"

enum {
    WIDE = 64,  // columns of one pass over a block
};

// 64 columns (or w) of m rows, as QuantTiles.take.
INLINE bool take64(const bool is_f32, uint16_t *dst, int64_t dst_ld, const char *src,
                   int64_t row_bytes, int64_t m, const int64_t w, uint16_t *most) {
    const int64_t half = 32 * (is_f32 ? 4 : 2);
    __m512i m0 = _mm512_loadu_si512(most), m1 = _mm512_loadu_si512(most + 32);
    __mmask16 nan = 0;
    for (int64_t r = 0; r < m; r++, src += row_bytes) {
        for (int64_t line = 0; line < 2 * half; line += 64)
            __builtin_prefetch(src + 2 * half + line, 0, 2);
        __m512i a = take32(src, is_f32, w, &nan), b = _mm512_setzero_si512();
        if (w > 32) b = take32(src + half, is_f32, w - 32, &nan);
        m0 = _mm512_max_epu16(m0, magnitude(a));
        m1 = _mm512_max_epu16(m1, magnitude(b));
        if (!dst) continue;
        _mm512_storeu_si512(dst, a);
        _mm512_storeu_si512(dst + 32, b);
        dst += dst_ld;
    }
    _mm512_storeu_si512(most, m0);
    _mm512_storeu_si512(most + 32, m1);
    return nan == 0;
}
INLINE bool take_some(const bool is_f32, uint16_t *dst, int64_t dst_ld, const char *src,
                      int64_t row_bytes, int64_t m, int64_t w, uint16_t *most) {
    return w == WIDE ? take64(is_f32, dst, dst_ld, src, row_bytes, m, WIDE, most)
                     : take64(is_f32, dst, dst_ld, src, row_bytes, m, w, most);
}

static bool take(uint16_t *dst, int64_t dst_ld, const void *x, bool is_f32, int64_t ld, int64_t m,
                 int64_t w, uint16_t *most) {
    const char *p = x;
    for (int64_t c = 0; c < w; c += WIDE) {
        int64_t n = w - c < WIDE ? w - c : WIDE;
        uint16_t *to = dst ? dst + c : NULL;
        bool is_finite = is_f32 ? take_some(true, to, dst_ld, p + 4 * c, 4 * ld, m, n, most + c)
                                : take_some(false, to, dst_ld, p + 2 * c, 2 * ld, m, n, most + c);
        if (!is_finite) return false;
    }
    return true;
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

// The quotients of one FP32 scale: of normal ones the code is that of the mantissa, divided, and eight for each power
// of two. Each of the 128 mantissas is divided once, values are only looked up.
typedef struct Quotients {
    __m512i code[4]; // of mantissas 0 to 127 with the exponent byte e
    __m512i less;    // 8 e
} Quotients;

// False: too small a scale, or none.
INLINE bool quotients_of(Quotients *k, float scale, int amax) {
    int e = (amax >> 7) - 2; // quotients from 56 to 224
    int64_t none = 0;
    if (e < 32) return false;
    __m512i m = _mm512_set_epi16(31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10,
                                 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < 4; i++)
        k->code[i] = f32_codes(_mm512_add_epi16(m, words(e * 128 + 32 * i)), _mm512_set1_ps(scale),
                               _mm512_set1_ps(scale), &none);
    k->less = words(8 * e);
    return true;
}

// Codes of 32 values, not signed; less than 8: not these.
INLINE __m512i looked_up(const Quotients *k, __m512i v) {
    __m512i code = _mm512_permutex2var_epi16(k->code[0], v, k->code[1]);
    code = _mm512_mask_mov_epi16(code, _mm512_test_epi16_mask(v, words(0x40)),
                                 _mm512_permutex2var_epi16(k->code[2], v, k->code[3]));
    __m512i e = _mm512_and_si512(_mm512_srli_epi16(v, 4), words(0x7F8));
    return _mm512_subs_epu16(_mm512_add_epi16(code, e), k->less);
}

static bool block(uint8_t *q, int64_t ld, ScaleType st, float scale, const uint16_t *v,
                  int64_t v_ld, int64_t m, int64_t w, int amax, QuantCount *count) {
    int b = (int)(f32_bits(scale) >> 23);
    if (st == SCALE_E8M0 && b < E4M3_POW2_LEAST) return false;
    Quotients k;
    bool is_known = st == SCALE_F32 && quotients_of(&k, scale, amax);
    bool is_above = st == SCALE_F32 && is_amax_above(f32_from_bf16((uint16_t)amax), scale);
    for (int64_t r = 0; r < m; r++)
        for (int64_t c = 0; c < w; c += WIDE) {
            const uint16_t *from = v + r * v_ld + c;
            __m512i x[2] = {take32(from, false, w - c, NULL), _mm512_setzero_si512()};
            __m512i codes = _mm512_setzero_si512();
            if (w - c > 32) x[1] = take32(from + 32, false, w - c - 32, NULL);
            if (is_known) codes = packed(looked_up(&k, x[0]), looked_up(&k, x[1]), x[0], x[1]);
            if (st == SCALE_F32 && (!is_known || __builtin_expect(has_low(codes), 0)))
                f32_packed(&codes, x, 1, scale, &count->underflow);
            if (st == SCALE_E8M0) pow2_packed(&codes, x, 1, b - E4M3_EDGE, &count->underflow);
            for (int i = 0; i < 2 && is_above; i++)
                count->saturated +=
                    __builtin_popcount(_mm512_cmpeq_epi16_mask(magnitude(x[i]), words(amax)));
            store64(q + r * ld + c, codes, w - c);
            __builtin_prefetch(q + r * ld + c + TILE, 1, 2);
        }
    return true;
}

static void stream(uint8_t *dst, int64_t ld, const uint8_t *src, int64_t src_ld, int64_t rows,
                   int64_t n) {
    for (int64_t r = 0; r < rows; r++, dst += ld, src += src_ld) {
        int64_t i = -(intptr_t)dst & 63; // up to the first line
        i = i < n ? i : n;
        store64(dst, _mm512_loadu_si512(src), i);
        for (; i + 64 <= n; i += 64)
            _mm512_stream_si512((__m512i *)(dst + i), _mm512_loadu_si512(src + i));
        store64(dst + i, _mm512_maskz_loadu_epi8((1ull << (n - i)) - 1, src + i), n - i);
    }
}

const QuantTiles quant_tiles_avx512 = {
    take, quant_avx512_take_codes, row, block, quant_turn_avx512, quant_avx512_e5m6,
    quant_avx512_from_e5m6, stream, quant_batch_avx512, quant_avx512_decode,
    quant_turn_far_avx512, quant_avx512_retile,
};
#endif
