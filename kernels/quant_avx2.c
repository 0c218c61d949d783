// quant_avx2.c - whole tiles of E4M3 and E5M6 codes (quant_lanes.h: QuantTiles) with AVX2. As
// quant_avx512.c: BF16 bits and integers for power-of-two scales, quotients in FP32 for FP32
// scales. What must be counted there, and what is no whole tile, is left to QUANT_LANES' loops.
//
// Packing joins the halves of two registers lane by lane, so values stay in the order that packing
// left them in until the codes of 32 are put right at once.
#include <string.h>

#include "quant_core.h"
#include "quant_lanes.h"

#if defined(__AVX2__) && !defined(__AVX512BW__)
#include "quant_avx2.h"

enum {
    WIDE = 64,
    GROUP = 16,  // tokens that are turned together
    TURNED = 32, // channels of one call of turn
};

// --- values as BF16 bits ---

// 64 columns of m rows: to dst, if there is one, and into most. True if there was a NaN.
INLINE bool take64(uint16_t *dst, int64_t dst_ld, const void *x, const bool is_f32, int64_t ld,
                   int64_t m, uint16_t *most) {
    __m256i top[4];
    __m256 nan = _mm256_setzero_ps();
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) top[i] = load(most + i * WORDS);
    const int64_t size = is_f32 ? 4 : 2;
    for (int64_t r = 0; r < m; r++) {
        const char *from = (const char *)x + r * ld * size;
        for (int64_t i = 0; i < WIDE * size; i += 64) // what the next columns will need
            __builtin_prefetch(from + WIDE * size + i, 0, 2);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m256i v = is_f32
                            ? in_order(round16((const float *)(const void *)from + i * WORDS, &nan))
                            : load(from + i * WORDS * 2);
            if (dst) store(dst + r * dst_ld + i * WORDS, v);
            top[i] = _mm256_max_epu16(top[i], magnitude(v));
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) store(most + i * WORDS, top[i]);
    return _mm256_movemask_ps(nan) != 0;
}

// The last w < 64 columns.
static __attribute__((noinline)) bool take_last(uint16_t *dst, int64_t dst_ld, const void *x,
                                                bool is_f32, int64_t ld, int64_t m, int64_t w,
                                                uint16_t *most) {
    float row[2 * WIDE] = {0}; // and what take64 fetches ahead
    bool is_nan = false;
    const int64_t size = is_f32 ? 4 : 2;
    for (int64_t r = 0; r < m; r++, dst = dst ? dst + dst_ld : NULL) {
        memcpy(row, (const char *)x + r * ld * size, (size_t)(w * size));
        is_nan |=
            is_f32 ? take64(dst, 0, row, true, 0, 1, most) : take64(dst, 0, row, false, 0, 1, most);
    }
    return is_nan;
}

static bool take(uint16_t *dst, int64_t dst_ld, const void *x, bool is_f32, int64_t ld, int64_t m,
                 int64_t w, uint16_t *most) {
    bool is_nan = false;
    for (int64_t c = 0; c < w; c += WIDE, x = (const char *)x + WIDE * (is_f32 ? 4 : 2)) {
        uint16_t *to = dst ? dst + c : NULL;
        is_nan |= w - c < WIDE ? take_last(to, dst_ld, x, is_f32, ld, m, w - c, most + c)
                  : is_f32     ? take64(to, dst_ld, x, true, ld, m, most + c)
                               : take64(to, dst_ld, x, false, ld, m, most + c);
    }
    return !is_nan;
}

// BF16 bits of 32 E4M3 codes times 2^(by / 128), which must keep all products normal numbers; words
// 0-7 and 16-23, 8-15 and 24-31. False: a NaN among them.
INLINE bool pow2_values(__m256i v[2], __m256i q, __m256i by) {
    // The upper and the lower byte of a code's bits; below 8 the leading one goes into the
    // exponent.
    const __m256i up = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i low = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, (char)0x80, (char)0xC0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
    __m256i m = _mm256_and_si256(q, _mm256_set1_epi8(0x7F));
    __m256i is_low = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), m);
    __m256i a = _mm256_and_si256(_mm256_slli_epi16(m, 4), _mm256_set1_epi8((char)0xF0));
    __m256i b = _mm256_and_si256(_mm256_srli_epi16(m, 4), _mm256_set1_epi8(0x0F));
    b = _mm256_add_epi8(b, _mm256_set1_epi8(60));
    a = _mm256_blendv_epi8(a, _mm256_shuffle_epi8(low, m), is_low);
    b = _mm256_blendv_epi8(b, _mm256_shuffle_epi8(up, m), is_low);
    __m256i none = _mm256_setzero_si256();
    __m256i zero = _mm256_cmpeq_epi8(m, none);
    b = _mm256_or_si256(b, _mm256_and_si256(q, _mm256_set1_epi8((char)0x80)));
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i word = i == 0 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpackhi_epi8(a, b);
        __m256i off = i == 0 ? _mm256_unpacklo_epi8(zero, zero) : _mm256_unpackhi_epi8(zero, zero);
        v[i] = _mm256_add_epi16(word, _mm256_andnot_si256(off, by));
    }
    return is_none(_mm256_cmpeq_epi8(m, _mm256_set1_epi8(E4M3_NAN)));
}

// w <= 64 codes of a row with one scale, as any loop does it.
static void take_some(uint16_t *dst, const uint8_t *q, float scale, int64_t w) {
    float v[WIDE];
    if (w < WIDE) memset(v, 0, sizeof v);
    QUANT_LANES.decode[CODE_E4M3](v, q, scale, w);
    QUANT_LANES.store_bf16(dst, v, WIDE);
}

static void take_codes(uint16_t *dst, int64_t dst_ld, const uint8_t *q, int64_t ld, const float *s,
                       bool is_pow2, int64_t m, int64_t w, uint16_t *most) {
    __m256i top[4];
    for (int i = 0; i < 4; i++) top[i] = load(most + i * WORDS);
    for (int64_t r = 0; r < m; r++, q += ld, dst += dst_ld) {
        __builtin_prefetch(q + w, 0, 2);
        int b = (int)(f32_bits(s[r]) >> 23);
        bool is_done = is_pow2 && b >= E4M3_EXACT_LOW && b <= E4M3_EXACT_HIGH && w == WIDE;
        for (int i = 0; i < 4 && is_done; i += 2) {
            __m256i v[2];
            is_done = pow2_values(v, load(q + i * WORDS), words((b - 127) * 128));
            store(dst + i * WORDS, _mm256_permute2x128_si256(v[0], v[1], 0x20));
            store(dst + (i + 1) * WORDS, _mm256_permute2x128_si256(v[0], v[1], 0x31));
        }
        if (!is_done) take_some(dst, q, s[r], w);
        for (int i = 0; i < 4; i++)
            top[i] = _mm256_max_epu16(top[i], magnitude(load(dst + i * WORDS)));
    }
    for (int i = 0; i < 4; i++) store(most + i * WORDS, top[i]);
}

static void to_floats(float *restrict x, const uint16_t *restrict v, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = f32_from_bf16(v[i]);
}

// --- codes for a power-of-two scale ---
//
// The quotient's BF16 bits less `edge`, rounded to even at bit 4, are the code. edge: bits of the
// values whose quotient lies just below the smallest normal code.

INLINE int edge_of(int exponent) {
    return (exponent - 7) * 128;
}

// Codes in words, with the signs of a and b, as bytes.
INLINE __m256i packed(const __m256i code[2], __m256i a, __m256i b) {
    __m256i signs = _mm256_and_si256(_mm256_packs_epi16(a, b), _mm256_set1_epi8((char)0x80));
    return _mm256_or_si256(_mm256_packus_epi16(code[0], code[1]), signs);
}

// Codes of the words in a and b, in the order of packing; *least = min(*least, above_zero).
INLINE __m256i pow2_codes32(__m256i a, __m256i b, const __m256i less[2], __m256i least[2]) {
    __m256i v[2] = {a, b};
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        least[i] = _mm256_min_epu16(least[i], above_zero(v[i]));
        v[i] = normal_codes(v[i], less[i], 4);
    }
    return packed(v, a, b);
}

// No quotient is too small for these codes, whose edges are `less` + 7.
INLINE bool none_small(__m256i least, __m256i less) {
    return none_below(least, _mm256_add_epi16(less, words(7 + 0x7F)));
}

// The same codes for quotients of any size. Below the smallest normal code the unit is 2^-9, which
// is that of floats in [2^14, 2^15): adding rounds to it. What becomes 0 is counted.
INLINE __m256i any_codes32(__m256i a, __m256i b, const __m256i less[2], int64_t *underflow) {
    const __m256i none = _mm256_setzero_si256();
    __m256i v[2] = {a, b};
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i m = magnitude(v[i]), normal = normal_codes(v[i], less[i], 4);
        // The quotient's bits; of values that are subnormal in BF16 something as small.
        __m256i down = _mm256_sub_epi16(less[i], words(edge_of(127) - 7));
        __m256i q = _mm256_adds_epu16(m, _mm256_max_epi16(_mm256_sub_epi16(none, down), none));
        q = _mm256_subs_epu16(q, _mm256_max_epi16(down, none));
        __m256i half[2] = {_mm256_unpacklo_epi16(none, q), _mm256_unpackhi_epi16(none, q)};
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(half[j]), _mm256_set1_ps(24576.0f));
            half[j] = _mm256_and_si256(_mm256_castps_si256(sum), _mm256_set1_epi32(0xF));
        }
        __m256i low = _mm256_packus_epi32(half[0], half[1]);
        __m256i is_low = _mm256_cmpgt_epi16(words(edge_of(127) + 0x80), q);
        __m256i code = _mm256_blendv_epi8(normal, low, is_low);
        __m256i lost =
            _mm256_andnot_si256(_mm256_cmpeq_epi16(m, none), _mm256_cmpeq_epi16(code, none));
        *underflow += __builtin_popcount((unsigned)_mm256_movemask_epi8(lost)) / 2;
        v[i] = code;
    }
    return packed(v, a, b);
}

// 32 codes as packing left them, of words in the order of round16 or that of memory.
INLINE void put_codes(uint8_t *q, __m256i c, const bool is_f32) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    store(q, is_f32 ? _mm256_permutevar8x32_epi32(c, order) : in_order(c));
}

// A tile of TILE codes from its registers.
INLINE void pow2_tile(uint8_t *q, const __m256i v[REGS], const bool is_f32, int exponent,
                      int64_t *underflow) {
    __m256i low = words(edge_of(exponent) - 7), less[2] = {low, low};
    __m256i least[2] = {words(-1), words(-1)};
#pragma GCC unroll 4
    for (int i = 0; i < REGS; i += 2)
        put_codes(q + i * WORDS, pow2_codes32(v[i], v[i + 1], less, least), is_f32);
    if (none_small(_mm256_min_epu16(least[0], least[1]), low)) return;
    for (int i = 0; i < REGS; i += 2)
        put_codes(q + i * WORDS, any_codes32(v[i], v[i + 1], less, underflow), is_f32);
}

// --- codes for an FP32 scale ---

// Codes of the words' quotients by s, which lie as unpacking leaves the words, in the order of
// packing; *most rises above WATCHED if one of them can be 0 or is too large, so that a counting
// loop must look again.
enum { LEAST = 0x3A800001, WATCHED = 0x43E00000 - LEAST }; // above 2^-10, half the smallest; 448
INLINE __m256i divided_codes32(__m256i a, __m256i b, const __m256 s[4], __m256i *most) {
    const __m256i none = _mm256_setzero_si256();
    __m256i v[2] = {a, b};
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i m = magnitude(v[i]);
        __m256i half[2] = {_mm256_unpacklo_epi16(none, m), _mm256_unpackhi_epi16(none, m)};
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) { // quant_code of positive quotients
            __m256 x = _mm256_div_ps(_mm256_castsi256_ps(half[j]), s[2 * i + j]);
            __m256i q = _mm256_castps_si256(x);
            *most = _mm256_max_epu32(*most, _mm256_sub_epi32(q, _mm256_set1_epi32(LEAST)));
            __m256i odd = _mm256_and_si256(_mm256_srli_epi32(q, 20), _mm256_set1_epi32(1));
            __m256i sum = _mm256_add_epi32(q, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFFF)));
            __m256i normal =
                _mm256_sub_epi32(_mm256_srli_epi32(sum, 20), _mm256_set1_epi32(120 << 3));
            __m256i low = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(24576.0f)));
            low = _mm256_and_si256(low, _mm256_set1_epi32(0xF));
            __m256i is_low = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3C800000), q); // 2^-6
            half[j] = _mm256_blendv_epi8(normal, low, is_low);
        }
        v[i] = _mm256_packus_epi32(half[0], half[1]);
    }
    return packed(v, a, b);
}

INLINE bool none_watched(__m256i most) {
    const __m256i end = _mm256_set1_epi32(WATCHED);
    return is_none(_mm256_xor_si256(_mm256_max_epu32(most, end), end));
}

// A tile with one scale; false: a counting loop must look again.
INLINE bool divided_tile(uint8_t *q, const uint16_t *v, float scale) {
    const __m256 s = _mm256_set1_ps(scale), all[4] = {s, s, s, s};
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < TILE; i += 2 * WORDS)
        store(q + i, in_order(divided_codes32(load(v + i), load(v + i + WORDS), all, &most)));
    return none_watched(most);
}

// --- tiles ---

static void count_found(QuantCount *count, const QuantFound *found) {
    count->saturated += found->saturated;
    count->underflow += found->underflow;
}

// n <= 128 codes with one scale of any kind, counted.
static void any_codes(uint8_t *q, const uint16_t *v, int64_t n, ScaleType st, float scale,
                      QuantCount *count) {
    if (st == SCALE_F32 && n == TILE && divided_tile(q, v, scale)) return;
    int b = (int)(f32_bits(scale) >> 23);
    float x[TILE], inv = st == SCALE_E8M0 ? f32_from_e8m0((uint8_t)(254 - b)) : 0.0f;
    QuantFound found = {0};
    to_floats(x, v, n);
    QUANT_LANES.encode[CODE_E4M3](q, x, scale, inv, n, &found);
    count_found(count, &found);
}

// The scale of a largest magnitude (BF16 bits), stored at s; 0 if it is too small for pow2_codes32.
INLINE float scale_of(void *s, ScaleType st, int amax) {
    float x = f32_from_bf16((uint16_t)amax);
    if (st == SCALE_F32) return *(float *)s = tile_scale_f32(x);
    uint8_t b = tile_scale_e8m0(x);
    if (b < E4M3_POW2_LEAST) return 0.0f;
    *(uint8_t *)s = b;
    return f32_from_e8m0(b);
}

// One whole tile; false: nothing written.
INLINE bool code_tile(uint8_t *q, void *s, ScaleType st, const void *x, const bool is_f32,
                      QuantCount *count) {
    __m256i v[REGS];
    int amax = take_tile(v, x, is_f32);
    if (amax >= BF16_INF) return false;
    float scale = scale_of(s, st, amax);
    if (scale == 0.0f) return false;
    if (st == SCALE_E8M0) {
        pow2_tile(q, v, is_f32, (int)(f32_bits(scale) >> 23), &count->underflow);
    } else {
        uint16_t values[TILE];
        for (int i = 0; i < REGS; i++) store(values + i * WORDS, is_f32 ? in_order(v[i]) : v[i]);
        any_codes(q, values, TILE, st, scale, count);
    }
    quant_tile_counted(count, amax << 16, false, scale);
    return true;
}

// The last w < TILE values of a row.
static __attribute__((noinline)) bool code_last(uint8_t *q, void *s, ScaleType st, const void *x,
                                                bool is_f32, int64_t w, QuantCount *count) {
    float room[TILE] = {0};
    uint8_t codes[TILE];
    memcpy(room, x, (size_t)w * (is_f32 ? 4 : 2));
    if (!(is_f32 ? code_tile(codes, s, st, room, true, count)
                 : code_tile(codes, s, st, room, false, count)))
        return false;
    memcpy(q, codes, (size_t)w);
    return true;
}

static int64_t row(uint8_t *q, void *s, int64_t scol, ScaleType st, const void *x, bool is_f32,
                   int64_t n, QuantCount *count) {
    const int64_t size = is_f32 ? 4 : 2;
    char *to = s;
    const char *from = x;
    int64_t c = 0;
    for (; c < n; c += TILE, to += scol * (st == SCALE_F32 ? 4 : 1), from += TILE * size) {
        int64_t w = n - c < TILE ? n - c : TILE;
        if (!(w < TILE ? code_last(q + c, to, st, from, is_f32, w, count)
              : is_f32 ? code_tile(q + c, to, st, from, true, count)
                       : code_tile(q + c, to, st, from, false, count)))
            return c;
        count->values += w;
    }
    return n;
}

static bool block(uint8_t *q, int64_t ld, ScaleType st, float scale, const uint16_t *v,
                  int64_t v_ld, int64_t m, int64_t w, int amax, QuantCount *count) {
    (void)amax;
    int b = (int)(f32_bits(scale) >> 23);
    if (st == SCALE_E8M0 && b < E4M3_POW2_LEAST) return false;
    for (int64_t r = 0; r < m; r++, q += ld, v += v_ld) {
        __m256i x[REGS];
        for (int i = 0; i < REGS && w == TILE; i++) x[i] = load(v + i * WORDS);
        if (st == SCALE_E8M0 && w == TILE)
            pow2_tile(q, x, false, b, &count->underflow);
        else
            any_codes(q, v, w, st, scale, count);
    }
    return true;
}

// --- the transposed form ---

// The scales of the channels of a turn.
typedef struct Channels {
    float scale[TURNED];
    __m256i less[2];   // of power-of-two scales
    __m256 divisor[4]; // the scales as unpacking leaves words
    bool is_pow2;
} Channels;

// 16 tokens with FP32 scales, in the order of packing.
static void divided_group(__m256i c[GROUP], const uint16_t *v, int64_t v_ld, const Channels *k,
                          QuantFound *found) {
    for (int i = 0; i < GROUP; i++) {
        const uint16_t *from = v + i * v_ld;
        __m256i most = _mm256_setzero_si256();
        c[i] = divided_codes32(load(from), load(from + WORDS), k->divisor, &most);
        if (none_watched(most)) continue;
        float x[TURNED];
        uint8_t code[TURNED];
        to_floats(x, from, TURNED);
        QUANT_LANES.encode_each[CODE_E4M3](code, x, k->scale, NULL, TURNED, found);
        c[i] = in_order(load(code));
    }
}

// 16 x 16 bytes in each half of 16 registers: four rounds of interleaving register i with i + 8.
INLINE void turn_halves(__m256i a[GROUP]) {
    __m256i b[GROUP];
#pragma GCC unroll 2
    for (int round = 0; round < 2; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm256_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm256_unpackhi_epi8(a[i], a[i + 8]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            a[2 * i] = _mm256_unpacklo_epi8(b[i], b[i + 8]);
            a[2 * i + 1] = _mm256_unpackhi_epi8(b[i], b[i + 8]);
        }
    }
}

// 16 tokens of 32 channels, coded and turned, to 16 bytes of each channel's row of a tile.
static void turn_group(uint8_t *to, const uint16_t *v, int64_t v_ld, const Channels *k,
                       QuantFound *found) {
    __m256i c[GROUP];
    if (k->is_pow2) {
        __m256i least[2] = {words(-1), words(-1)};
#pragma GCC unroll 16
        for (int i = 0; i < GROUP; i++) {
            const uint16_t *from = v + i * v_ld;
            c[i] = pow2_codes32(load(from), load(from + WORDS), k->less, least);
        }
        bool is_done = none_small(least[0], k->less[0]) && none_small(least[1], k->less[1]);
        for (int i = 0; i < GROUP && !is_done; i++)
            c[i] = any_codes32(load(v + i * v_ld), load(v + i * v_ld + WORDS), k->less,
                               &found->underflow);
    } else {
        divided_group(c, v, v_ld, k, found);
    }
    turn_halves(c);
    // Packing left channels 0-7 and 16-23 in the lower half, 8-15 and 24-31 in the upper one.
#pragma GCC unroll 16
    for (int i = 0; i < GROUP; i++) {
        uint8_t *row = to + (i + (i & 8)) * TILE;
        _mm_storeu_si128((__m128i *)(void *)row, _mm256_castsi256_si128(c[i]));
        _mm_storeu_si128((__m128i *)(void *)(row + 8 * TILE), _mm256_extracti128_si256(c[i], 1));
    }
}

static bool set_channels(Channels *k, void *s, ScaleType st, const uint16_t *most, int64_t w) {
    uint16_t less[TURNED];
    k->is_pow2 = st == SCALE_E8M0;
    for (int c = 0; c < TURNED; c++) {
        float unused;
        if (most[c] >= BF16_INF) return false;
        void *to = c < w ? (char *)s + c * (st == SCALE_F32 ? 4 : 1) : (char *)&unused;
        k->scale[c] = scale_of(to, st, most[c]);
        if (k->scale[c] == 0.0f) return false;
        int b = (int)(f32_bits(k->scale[c]) >> 23);
        less[c] = (uint16_t)(edge_of(b) - 7);
    }
    k->less[0] = load(less);
    k->less[1] = load(less + WORDS);
    for (int i = 0; i < 4; i++) {
        __m256 a = _mm256_loadu_ps(k->scale + i / 2 * 16),
               b = _mm256_loadu_ps(k->scale + i / 2 * 16 + 8);
        k->divisor[i] =
            i % 2 ? _mm256_permute2f128_ps(a, b, 0x31) : _mm256_permute2f128_ps(a, b, 0x20);
    }
    return true;
}

static bool turn(uint8_t *q, int64_t ld, void *s, ScaleType st, const uint16_t *v, int64_t v_ld,
                 const uint16_t *most, int64_t m, int64_t w, QuantCount *count) {
    Channels k;
    QuantFound found = {0};
    uint8_t code[TURNED][TILE]; // of the tile: rows of q may all lie in the same sets of a cache
    if (!set_channels(&k, s, st, most, w)) return false;
    for (int64_t c = 0; c < w; c++) { // what the next channels will write
        __builtin_prefetch(q + (w + c) * ld, 1, 2);
        __builtin_prefetch(q + (w + c) * ld + 64, 1, 2);
    }
    int64_t whole = m / GROUP * GROUP;
    for (int64_t i = 0; i < whole; i += GROUP)
        turn_group(code[0] + i, v + i * v_ld, v_ld, &k, &found);
    if (whole < m) {
        uint16_t pad[GROUP][TURNED] = {{0}};
        for (int64_t r = whole; r < m; r++) memcpy(pad[r - whole], v + r * v_ld, sizeof pad[0]);
        turn_group(code[0] + whole, pad[0], TURNED, &k, &found);
    }
    for (int64_t c = 0; c < w; c++) memcpy(q + c * ld, code[c], (size_t)m);
    count_found(count, &found);
    count->values += m * w;
    for (int64_t c = 0; c < w; c++) quant_tile_counted(count, most[c] << 16, false, k.scale[c]);
    return true;
}

const QuantTiles quant_tiles_avx2 = {
    take, take_codes, row, block, turn, quant_avx2_e5m6, quant_avx2_from_e5m6};
#endif
