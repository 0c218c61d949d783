// quant_avx512_turn.c - 128x1 tiles of E4M3 codes, stored transposed, with AVX-512 (quant_lanes.h:
// QuantTiles.turn, turn_far). Compiled for AVX-512, and again with its byte permutations,
// QUANT_TURN_OF and QUANT_TURN_FAR_OF being the names.
#include "quant_lanes.h"

#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include "quant_avx512_turn.h"

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

// Words of two rows: the code of v0 low, of v1 high, from words with their codes there.
INLINE __m512i two_rows(__m512i low, __m512i high, __m512i v0, __m512i v1) {
    __m512i signs = mix(words(0xFF), _mm512_srli_epi16(v0, 8), v1);
    return mix(words(0x7F7F), mix(words(0xFF), low, high), signs);
}

// The same for a power of two, without codes below the normal range. The sign of v0 goes beside its
// code before both move.
INLINE __m512i normal_rows(__m512i v0, __m512i v1, __m512i less) {
    __m512i c0 = signed_rounded(v0, less);
#if defined(__AVX512VBMI__)
    const __m512i at = _mm512_set1_epi64(0x3434242414140404);
    c0 = _mm512_multishift_epi64_epi8(at, c0);
    return _mm512_mask_multishift_epi64_epi8(c0, 0xAAAAAAAAAAAAAAAA, at, signed_rounded(v1, less));
#else
    __m512i c1 = _mm512_slli_epi16(pow2_rounded(v1, less, E4M3_DROP), 8 - E4M3_DROP);
    c0 = _mm512_srli_epi16(c0, E4M3_DROP);
    return mix(words(0x8000), v1, mix(words(0xFF), c0, c1));
#endif
}

// Two rows by any scales, codes below the normal range and counters included.
INLINE __m512i any_rows(const ScaleType st, __m512i v0, __m512i v1, const Scales32 *k,
                        QuantCount *count) {
    __m512i edge = _mm512_sub_epi16(k->b, words(E4M3_EDGE)), c0, c1;
    if (st == SCALE_E8M0) {
        c0 = pow2_codes(v0, edge, E4M3_DROP, &count->underflow);
        c1 = pow2_codes(v1, edge, E4M3_DROP, &count->underflow);
    } else {
        c0 = f32_codes(v0, k->even, k->odd, &count->underflow);
        c1 = f32_codes(v1, k->even, k->odd, &count->underflow);
    }
    if (st == SCALE_F32 && k->above)
        count->saturated +=
            __builtin_popcount(_mm512_mask_cmpeq_epi16_mask(k->above, magnitude(v0), k->most)) +
            __builtin_popcount(_mm512_mask_cmpeq_epi16_mask(k->above, magnitude(v1), k->most));
    return two_rows(c0, _mm512_slli_epi16(c1, 8), v0, v1);
}

// Two rows p of normal codes of v0 and v1, of which some lie below that range.
INLINE __m512i low_pair(__m512i p, __m512i v0, __m512i v1, __m512i edge, __m512 even, __m512 odd,
                        QuantCount *count) {
    __m512i m0 = magnitude(v0), m1 = magnitude(v1);
    __m512i low = low_codes(m0, even, odd);
    low = _mm512_or_si512(low, _mm512_slli_epi16(low_codes(m1, even, odd), 8));
    p = _mm512_mask_mov_epi16(p, below_normal(m0, edge), mix(words(0x7F), low, p));
    p = _mm512_mask_mov_epi16(p, below_normal(m1, edge), mix(words(0x7F00), low, p));
    uint32_t zero0 = _mm512_testn_epi16_mask(p, words(0x7F));
    uint32_t zero1 = _mm512_testn_epi16_mask(p, words(0x7F00));
    count->underflow += __builtin_popcount(zero0 & _mm512_test_epi16_mask(m0, m0)) +
                        __builtin_popcount(zero1 & _mm512_test_epi16_mask(m1, m1));
    return p;
}

// Codes pairs of rows again that have a code below the normal range (of p, before).
static __attribute__((noinline)) void low_rows(__m512i *p, const uint16_t *v, int64_t v_ld,
                                               const Scales32 *k, QuantCount *count) {
    __m512i edge = _mm512_sub_epi16(k->b, words(E4M3_EDGE));
    __m512 even = low_sum(_mm512_and_si512(k->b, _mm512_set1_epi32(0xFFFF)));
    __m512 odd = low_sum(_mm512_srli_epi32(k->b, 16));
    bool is_large = _mm512_cmpgt_epu16_mask(k->b, words(E4M3_SUM_MOST)) != 0;
    for (int i = 0; i < GROUP / 2; i++, v += 2 * v_ld) {
        __m512i v0 = _mm512_loadu_si512(v), v1 = _mm512_loadu_si512(v + v_ld);
        if (!has_low(p[i])) continue;
        p[i] = is_large ? any_rows(SCALE_E8M0, v0, v1, k, count)
                        : low_pair(p[i], v0, v1, edge, even, odd, count);
    }
}

// 16 rows of 32 channels, coded and turned.
INLINE void turn_group(const ScaleType st, __m512i *out, const uint16_t *v, int64_t v_ld,
                       const Scales32 *k, QuantCount *count) {
    __m512i p[GROUP / 2], again[GROUP / 2], least = words(-1);
    __m512i less = pow2_less(_mm512_sub_epi16(k->b, words(E4M3_EDGE)), E4M3_DROP);
#pragma GCC unroll 8
    for (int i = 0; i < GROUP / 2; i++) {
        __m512i v0 = _mm512_loadu_si512(v + 2 * i * v_ld);
        __m512i v1 = _mm512_loadu_si512(v + (2 * i + 1) * v_ld);
        p[i] = st == SCALE_F32 ? any_rows(st, v0, v1, k, count) : normal_rows(v0, v1, less);
        least = _mm512_min_epu8(least, _mm512_and_si512(p[i], _mm512_set1_epi8(0x78)));
    }
    if (__builtin_expect(st == SCALE_E8M0 && has_low(least), 0)) {
        memcpy(again, p, sizeof again);
        low_rows(again, v, v_ld, k, count);
        turn_quarters(out, again);
        return;
    }
    turn_quarters(out, p);
}

// One tile of m tokens for each of w <= 32 channels.
INLINE bool turn32(const ScaleType st, const bool is_far, uint8_t *q, int64_t ld, char *s,
                   const uint16_t *v, int64_t v_ld, const uint16_t *most, int64_t m, int64_t w,
                   QuantCount *count) {
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
    for (int64_t c = 0; c < w && ld > FAR_AWAY && !is_far; c++) { // what the next 32 channels but one write
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
        store_turned(is_far, q + i, ld, t, m - i, w, 8);
    }
    return true;
}

QUANT_TURN(QUANT_TURN_OF) {
    return st == SCALE_E8M0 ? turn32(SCALE_E8M0, false, q, ld, s, v, v_ld, most, m, w, count)
                            : turn32(SCALE_F32, false, q, ld, s, v, v_ld, most, m, w, count);
}
QUANT_TURN(QUANT_TURN_FAR_OF) {
    return st == SCALE_E8M0 ? turn32(SCALE_E8M0, true, q, ld, s, v, v_ld, most, m, w, count)
                            : turn32(SCALE_F32, true, q, ld, s, v, v_ld, most, m, w, count);
}
#else
// Never called without those instructions (quant_select).
QUANT_TURN(QUANT_TURN_OF) {
    (void)q, (void)ld, (void)s, (void)st, (void)v, (void)v_ld, (void)most, (void)m, (void)w;
    (void)count;
    return false;
}
QUANT_TURN(QUANT_TURN_FAR_OF) {
    return QUANT_TURN_OF(q, ld, s, st, v, v_ld, most, m, w, count);
}
#endif
