// quant_avx512_rows.c - 1x128 tiles of E4M3 codes in batches, with AVX-512 (quant_lanes.h:
// QuantTiles.batch). Compiled for AVX-512, and again with its conversion to BF16 and byte
// permutations, QUANT_BATCH_OF being the name.
//
// One tile is a long chain: its largest value, then the scale, then codes. In order of tiles some
// 60 instructions would wait for each scale, which fills a scheduler of about 100 after two tiles.
// So first come the largest values of all tiles, then all scales in one register, then the codes.
#include "quant_lanes.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512.h"

// What lies between the passes.
typedef struct Batch {
    __m512i most[QUANT_BATCH]; // largest values of a tile's columns c % 32
    uint32_t less[QUANT_BATCH]; // pow2_less, in both halves
    uint32_t b[QUANT_BATCH];    // exponent bytes of the scales
    uint16_t v[QUANT_BATCH][TILE];
} Batch;

// 32 values as BF16, as take32; *nan stays 0 for a NaN whose magnitude tells it. Where the
// conversion is one instruction it takes subnormals for zeros: their code is 0 either way, and what
// counts them looks at the source.
INLINE __m512i values32(const char *x, const bool is_f32, __mmask16 *nan) {
#if defined(__AVX512BF16__)
    if (is_f32)
        return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps((const float *)x + 16),
                                            _mm512_loadu_ps((const float *)x));
#endif
    return take32(x, is_f32, 32, nan);
}

// The largest word of each of 16 registers.
INLINE __m512i largest_words(const __m512i *m) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i x[8], y[4], z[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        x[i] = _mm512_max_epu16(_mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0x44),
                                _mm512_shuffle_i64x2(m[2 * i], m[2 * i + 1], 0xEE));
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        y[i] = _mm512_max_epu16(_mm512_shuffle_i64x2(x[2 * i], x[2 * i + 1], 0x88),
                                _mm512_shuffle_i64x2(x[2 * i], x[2 * i + 1], 0xDD));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++)
        z[i] = _mm512_max_epu16(_mm512_unpacklo_epi64(y[2 * i], y[2 * i + 1]),
                                _mm512_unpackhi_epi64(y[2 * i], y[2 * i + 1]));
    __m512 a = _mm512_castsi512_ps(z[0]), b = _mm512_castsi512_ps(z[1]);
    __m512i w = _mm512_max_epu16(_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                                 _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xDD)));
    w = _mm512_and_si512(_mm512_max_epu16(w, _mm512_srli_epi32(w, 16)), _mm512_set1_epi32(0xFFFF));
    return _mm512_permutexvar_epi32(order, w);
}

// Codes of 64 values by a power of two, without those below the normal range.
INLINE __m512i normal64(__m512i v0, __m512i v1, __m512i less) {
#if defined(__AVX512VBMI__)
    // The sign goes beside the code, and bytes come from bit 4 of their words on.
    const __m512i at = _mm512_set1_epi64(0x3424140434241404);
    const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m512i c0 = _mm512_multishift_epi64_epi8(at, signed_rounded(v0, less));
    c0 = _mm512_mask_multishift_epi64_epi8(c0, 0xF0F0F0F0F0F0F0F0, at, signed_rounded(v1, less));
    return _mm512_permutexvar_epi32(order, c0);
#else
    __m512i c0 = _mm512_srli_epi16(pow2_rounded(v0, less, E4M3_DROP), E4M3_DROP);
    __m512i c1 = _mm512_srli_epi16(pow2_rounded(v1, less, E4M3_DROP), E4M3_DROP);
    return packed(c0, c1, v0, v1);
#endif
}

// First pass: values of tile i, F32 ones to memory as BF16, and its largest ones.
INLINE void largest_of(const bool is_f32, Batch *k, int i, const char *x, int64_t ahead,
                       __mmask16 *nan) {
    const int64_t step = 32 * (is_f32 ? 4 : 2);
    for (int64_t line = 0; line < 2 * step; line += 64) __builtin_prefetch(x + ahead + line);
    __m512i v[4], m[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        v[j] = values32(x + j * step, is_f32, nan);
        m[j] = magnitude(v[j]);
        if (is_f32) _mm512_store_si512(k->v[i] + 32 * j, v[j]);
    }
    k->most[i] = _mm512_max_epu16(_mm512_max_epu16(m[0], m[1]), _mm512_max_epu16(m[2], m[3]));
}

// The scales of n tiles, as tile_scale_e8m0; false if there is one that is not for these loops.
INLINE bool scales_of(Batch *k, __m512i amax, __mmask16 tiles, const bool is_zero_known) {
    const __m512i one = _mm512_set1_epi32(1);
    __mmask16 zero = _mm512_testn_epi32_mask(amax, amax);
    __mmask16 more = _mm512_cmpgt_epu32_mask(_mm512_and_si512(amax, _mm512_set1_epi32(0x7F)),
                                             _mm512_set1_epi32(0x60));
    __m512i b = _mm512_sub_epi32(_mm512_srli_epi32(amax, 7), _mm512_set1_epi32(8));
    b = _mm512_mask_add_epi32(b, more, b, one);
    b = _mm512_mask_mov_epi32(b, zero, _mm512_set1_epi32(127));
    if (_mm512_cmpge_epu32_mask(amax, _mm512_set1_epi32(BF16_INF)) ||
        _mm512_cmplt_epi32_mask(b, _mm512_set1_epi32(E4M3_POW2_LEAST)))
        return false;
    if (!is_zero_known && (zero & tiles)) return false;
    __m512i less = _mm512_slli_epi32(_mm512_sub_epi32(b, _mm512_set1_epi32(E4M3_EDGE)), 7);
    less = _mm512_sub_epi32(less, _mm512_set1_epi32((1 << (E4M3_DROP - 1)) - 1));
    _mm512_storeu_si512(k->less, _mm512_or_si512(less, _mm512_slli_epi32(less, 16)));
    _mm512_storeu_si512(k->b, b);
    return true;
}

INLINE void count_batch(const Batch *k, __m512i amax, int64_t n, QuantCount *count) {
    __m512i b = _mm512_loadu_si512(k->b);
    uint32_t left = _mm512_test_epi32_mask(amax, amax);
    while (left) { // neighbours tend to have few different scales
        uint32_t one = k->b[__builtin_ctz(left)];
        uint32_t same = _mm512_cmpeq_epi32_mask(b, _mm512_set1_epi32((int)one)) & left;
        count->scales[quant_scale_bin(f32_from_bits(one << 23))] += __builtin_popcount(same);
        left &= ~same;
    }
    int32_t most = (int32_t)_mm512_reduce_max_epu32(amax) << 16;
    count->amax_bits = most > count->amax_bits ? most : count->amax_bits;
    count->tiles += n;
    count->values += n * TILE;
}

// 64 codes of v0 and v1 of which some lie below the normal range.
INLINE __m512i low64(__m512i codes, __m512i v0, __m512i v1, int b, int64_t *underflow) {
    const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    __m512i m0 = magnitude(v0), m1 = magnitude(v1), edge = words(b - E4M3_EDGE);
    __m512 sum = low_sum(_mm512_set1_epi32(b));
    __m512i low = _mm512_packus_epi16(low_codes(m0, sum, sum), low_codes(m1, sum, sum));
    low = mix(_mm512_set1_epi8(0x7F), _mm512_permutexvar_epi64(order, low), codes);
    uint64_t is_low = below_normal(m0, edge) | (uint64_t)below_normal(m1, edge) << 32;
    codes = _mm512_mask_mov_epi8(codes, is_low, low);
    uint64_t some = _mm512_test_epi16_mask(m0, m0) | (uint64_t)_mm512_test_epi16_mask(m1, m1) << 32;
    uint64_t zero = _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x7F));
    *underflow += __builtin_popcountll(zero & some);
    return codes;
}

// A tile with a code below the normal range: its codes again, and underflow.
static __attribute__((noinline)) void low_tile(uint8_t *q, const char *x, bool is_f32, int b,
                                               int64_t *underflow) {
    const int64_t step = 32 * (is_f32 ? 4 : 2);
    __mmask16 nan = 0;
    for (int i = 0; i < 2; i++, x += 2 * step, q += 64) {
        __m512i codes = _mm512_loadu_si512(q), v[2];
        if (!has_low(codes)) continue;
        v[0] = is_f32 ? take32(x, true, 32, &nan) : take32(x, false, 32, &nan);
        v[1] = is_f32 ? take32(x + step, true, 32, &nan) : take32(x + step, false, 32, &nan);
        if (b <= E4M3_SUM_MOST)
            codes = low64(codes, v[0], v[1], b, underflow);
        else
            pow2_packed(&codes, v, 1, b - E4M3_EDGE, underflow);
        _mm512_storeu_si512(q, codes);
    }
}

INLINE bool batch(const bool is_f32, uint8_t *q, int64_t ld, uint8_t *s, int64_t srow, int64_t scol,
                  bool is_far, const char *x, int64_t row_bytes, int64_t rows, int64_t tiles,
                  QuantCount *count) {
    const int64_t step = TILE * (is_f32 ? 4 : 2);
    // Where the next batch is, and its codes.
    const int64_t ahead = tiles < QUANT_BATCH ? rows * row_bytes : tiles * step;
    const int64_t ahead_q = tiles < QUANT_BATCH ? rows * ld : tiles * TILE;
    Batch k __attribute__((aligned(64)));
    __mmask16 nan = 0;
    int n = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < tiles; t++)
            largest_of(is_f32, &k, n++, x + r * row_bytes + t * step, ahead, &nan);
    for (int i = n; i < QUANT_BATCH; i++) k.most[i] = _mm512_setzero_si512();
    __m512i amax = largest_words(k.most);
#if defined(__AVX512BF16__)
    const bool is_zero_known = !is_f32;
#else
    const bool is_zero_known = true;
#endif
    if (nan || !scales_of(&k, amax, (__mmask16)((1u << n) - 1), is_zero_known)) return false;
    n = 0;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t t = 0; t < tiles; t++, n++) {
            const char *at = x + r * row_bytes + t * step, *from = is_f32 ? (const char *)k.v[n] : at;
            for (int64_t line = step / 2; line < step; line += 64) // first half: largest_of
                __builtin_prefetch(at + ahead + line);
            uint8_t *to = q + r * ld + t * TILE;
            __m512i less = _mm512_set1_epi32((int)k.less[n]), codes[2];
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                codes[j] = normal64(_mm512_loadu_si512(from + 128 * j),
                                    _mm512_loadu_si512(from + 128 * j + 64), less);
                if (is_far) {
                    _mm512_stream_si512((__m512i *)(to + 64 * j), codes[j]);
                } else {
                    __builtin_prefetch(to + ahead_q + 64 * j, 1);
                    _mm512_storeu_si512(to + 64 * j, codes[j]);
                }
            }
            s[r * srow + t * scol] = (uint8_t)k.b[n];
            if (__builtin_expect(has_low(codes[0]) | has_low(codes[1]), 0))
                low_tile(to, at, is_f32, (int)k.b[n],
                         &count->underflow);
        }
    count_batch(&k, amax, n, count);
    return true;
}

bool QUANT_BATCH_OF(uint8_t *q, int64_t ld, bool is_far, uint8_t *s, int64_t srow, int64_t scol,
                    const void *x, bool is_f32, int64_t x_ld, int64_t rows, int64_t tiles,
                    QuantCount *count) {
    return is_f32 ? batch(true, q, ld, s, srow, scol, is_far, x, 4 * x_ld, rows, tiles, count)
                  : batch(false, q, ld, s, srow, scol, is_far, x, 2 * x_ld, rows, tiles, count);
}
#else
// Never called without those instructions (quant_select).
bool QUANT_BATCH_OF(uint8_t *q, int64_t ld, bool is_far, uint8_t *s, int64_t srow, int64_t scol,
                    const void *x, bool is_f32, int64_t x_ld, int64_t rows, int64_t tiles,
                    QuantCount *count) {
    (void)q, (void)ld, (void)is_far, (void)s, (void)srow, (void)scol, (void)x;
    (void)is_f32, (void)x_ld, (void)rows, (void)tiles, (void)count;
    return false;
}
#endif
