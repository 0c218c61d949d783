// quant_plain.c - whole tiles of E4M3 and E5M6 codes (quant_lanes.h: QuantTiles) in loops that the
// compiler vectorises. As quant_avx512.c: BF16 bits and integers for power-of-two scales, where no
// quotient is below the smallest normal code; the rest, and FP32 scales, by QUANT_LANES' loops.
#include <string.h>

#include "e5m6.h"
#include "quant_core.h"
#include "quant_lanes.h"

#if defined(__AVX2__) && !defined(__AVX512BW__)
#define INLINE static inline __attribute__((always_inline))

enum {
    WIDE = 64,
    TURNED = 32, // channels of one call of turn
    BF16_INF = 0x7F80,
    E4M3_LEAST = 12, // exponent byte of a scale from which on BF16's subnormals have code 0
    E5M6_LEAST = 22, // the same for E5M6
    EXACT_LOW = 10,  // between these exponent bytes code * scale is a normal
    EXACT_HIGH = 246 //   BF16 number, whatever the code
};

// --- values as BF16 bits ---

// n values to dst; true if there was a NaN.
static bool round_values(uint16_t *restrict dst, const float *restrict x, int64_t n) {
    int32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = f32_bits(x[i]);
        int32_t m = (int32_t)(u & 0x7FFFFFFFu);
        most = m > most ? m : most;
        dst[i] = (uint16_t)((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16);
    }
    return most > F32_INF_BITS;
}

static void raise(uint16_t *restrict most, const uint16_t *restrict v, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t m = v[i] & 0x7FFF;
        most[i] = m > most[i] ? m : most[i];
    }
}

static bool take(uint16_t *dst, int64_t dst_ld, const void *x, bool is_f32, int64_t ld, int64_t m,
                 int64_t w, uint16_t *most) {
    int64_t wide = (w + WIDE - 1) / WIDE * WIDE;
    bool is_nan = false;
    uint16_t row[TILE];
    const int64_t size = is_f32 ? 4 : 2;
    for (int64_t r = 0; r < m; r++) {
        for (int64_t i = 0; i < w * size; i += 64) // what the next columns will need
            __builtin_prefetch((const char *)x + (r * ld + w) * size + i, 0, 2);
        uint16_t *to = dst ? dst + r * dst_ld : row;
        if (is_f32)
            is_nan |= round_values(to, (const float *)x + r * ld, w);
        else
            memcpy(to, (const uint16_t *)x + r * ld, (size_t)w * 2);
        if (wide > w) memset(to + w, 0, (size_t)(wide - w) * 2);
        raise(most, to, wide);
    }
    return !is_nan;
}

// BF16 bits of E4M3 codes times 2^(b - 127), which must keep all products normal numbers.
static void pow2_values(uint16_t *restrict dst, const uint8_t *restrict q, int64_t n, int b) {
    uint16_t by = (uint16_t)((b - 127) * 128);
    for (int64_t i = 0; i < n; i++) {
        uint16_t m = q[i] & 0x7F;
        // Codes below 8 are subnormals: the leading one goes into the exponent.
        uint16_t v = (uint16_t)(m >= 8   ? (m << 4) + (120 << 7)
                                : m >= 4 ? (m << 5) + (119 << 7)
                                : m >= 2 ? (m << 6) + (118 << 7)
                                         : 118 << 7);
        v = m ? (uint16_t)(v + by) : 0;
        v = m == E4M3_NAN ? 0x7FC0 : v;
        dst[i] = (uint16_t)(v | (q[i] & 0x80) << 8);
    }
}

static void take_codes(uint16_t *dst, int64_t dst_ld, const uint8_t *q, int64_t ld, const float *s,
                       bool is_pow2, int64_t m, int64_t w, uint16_t *most) {
    for (int64_t r = 0; r < m; r++, q += ld, dst += dst_ld) {
        __builtin_prefetch(q + w, 0, 2);
        int b = (int)(f32_bits(s[r]) >> 23);
        if (is_pow2 && b >= EXACT_LOW && b <= EXACT_HIGH) {
            pow2_values(dst, q, w, b);
            if (w < WIDE) memset(dst + w, 0, (size_t)(WIDE - w) * 2);
        } else {
            float v[WIDE];
            if (w < WIDE) memset(v, 0, sizeof v);
            QUANT_LANES.decode[CODE_E4M3](v, q, s[r], w);
            QUANT_LANES.store_bf16(dst, v, WIDE);
        }
        raise(most, dst, WIDE);
    }
}

static void to_floats(float *restrict x, const uint16_t *restrict v, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = f32_from_bf16(v[i]);
}

// --- codes ---

static int largest(const uint16_t *v, int64_t n) {
    uint16_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t m = v[i] & 0x7FFF;
        most = m > most ? m : most;
    }
    return most;
}

// m less `less`, rounded to even at bit `drop`; 0 for smaller values.
INLINE uint16_t reduced(uint16_t m, uint16_t less, const int drop) {
    uint16_t sum = (uint16_t)(m + ((m >> drop) & 1));
    return (uint16_t)((sum > less ? sum - less : 0) >> drop);
}

// Codes for the scale with exponent byte b; false if a quotient is too small for them.
static bool pow2_codes(uint8_t *restrict q, const uint16_t *restrict v, int64_t n, int b) {
    uint16_t edge = (uint16_t)((b - 7) * 128), less = (uint16_t)(edge - 7), least = 0xFFFF;
    for (int64_t i = 0; i < n; i++) {
        uint16_t m = v[i] & 0x7FFF, above_zero = (uint16_t)(m - 1);
        least = above_zero < least ? above_zero : least;
        q[i] = (uint8_t)(reduced(m, less, 4) | (v[i] >> 8 & 0x80));
    }
    return least >= edge + 0x7F;
}

static void count_found(QuantCount *count, const QuantFound *found) {
    count->saturated += found->saturated;
    count->underflow += found->underflow;
}

// n <= 128 codes with one scale, counted.
static void codes(uint8_t *q, const uint16_t *v, int64_t n, ScaleType st, float scale,
                  QuantCount *count) {
    int b = (int)(f32_bits(scale) >> 23);
    if (st == SCALE_E8M0 && pow2_codes(q, v, n, b)) return;
    float x[TILE];
    QuantFound found = {0};
    to_floats(x, v, n);
    QUANT_LANES.encode[CODE_E4M3](
        q, x, scale, st == SCALE_E8M0 ? f32_from_e8m0((uint8_t)(254 - b)) : 0.0f, n, &found);
    count_found(count, &found);
}

// The scale of a largest magnitude (BF16 bits), stored at s; 0 if it is too small for pow2_codes.
INLINE float scale_of(void *s, ScaleType st, int amax) {
    float x = f32_from_bf16((uint16_t)amax);
    if (st == SCALE_F32) return *(float *)s = tile_scale_f32(x);
    uint8_t b = tile_scale_e8m0(x);
    if (b < E4M3_LEAST) return 0.0f;
    *(uint8_t *)s = b;
    return f32_from_e8m0(b);
}

static int64_t row(uint8_t *q, void *s, int64_t scol, ScaleType st, const void *x, bool is_f32,
                   int64_t n, QuantCount *count) {
    char *to = s;
    int64_t c = 0;
    for (; c < n; c += TILE, to += scol * (st == SCALE_F32 ? 4 : 1)) {
        int64_t w = n - c < TILE ? n - c : TILE;
        uint16_t room[TILE];
        const uint16_t *v = is_f32 ? room : (const uint16_t *)x + c;
        if (is_f32 && round_values(room, (const float *)x + c, w)) return c;
        int amax = largest(v, w);
        if (amax >= BF16_INF) return c;
        float scale = scale_of(to, st, amax);
        if (scale == 0.0f) return c;
        codes(q + c, v, w, st, scale, count);
        count->values += w;
        quant_tile_counted(count, amax << 16, false, scale);
    }
    return n;
}

static bool block(uint8_t *q, int64_t ld, ScaleType st, float scale, const uint16_t *v,
                  int64_t v_ld, int64_t m, int64_t w, int amax, QuantCount *count) {
    (void)amax;
    if (st == SCALE_E8M0 && (int)(f32_bits(scale) >> 23) < E4M3_LEAST) return false;
    for (int64_t r = 0; r < m; r++) codes(q + r * ld, v + r * v_ld, w, st, scale, count);
    return true;
}

// One row of the transposed form: as pow2_codes with the edge of each channel.
static bool pow2_codes_each(uint8_t *restrict q, const uint16_t *restrict v,
                            const uint16_t *restrict edge) {
    uint16_t small = 0;
    for (int i = 0; i < TURNED; i++) {
        uint16_t m = v[i] & 0x7FFF, end = (uint16_t)(edge[i] + 0x7F);
        small |= (uint16_t)(m - 1) < end;
        q[i] = (uint8_t)(reduced(m, (uint16_t)(edge[i] - 7), 4) | (v[i] >> 8 & 0x80));
    }
    return !small;
}

static bool turn(uint8_t *q, int64_t ld, void *s, ScaleType st, const uint16_t *v, int64_t v_ld,
                 const uint16_t *most, int64_t m, int64_t w, QuantCount *count) {
    uint8_t code[TILE][TURNED];
    float scale[TURNED], inv[TURNED], x[TURNED];
    uint16_t edge[TURNED];
    for (int c = 0; c < TURNED; c++) {
        float unused;
        if (most[c] >= BF16_INF) return false;
        scale[c] = scale_of(c < w ? (char *)s + c * (st == SCALE_F32 ? 4 : 1) : (char *)&unused, st,
                            most[c]);
        if (scale[c] == 0.0f) return false;
        int b = (int)(f32_bits(scale[c]) >> 23);
        edge[c] = (uint16_t)((b - 7) * 128);
        inv[c] = st == SCALE_E8M0 ? f32_from_e8m0((uint8_t)(254 - b)) : 0.0f;
    }
    QuantFound found = {0};
    for (int64_t i = 0; i < m; i++, v += v_ld) {
        if (st == SCALE_E8M0 && pow2_codes_each(code[i], v, edge)) continue;
        to_floats(x, v, TURNED);
        QUANT_LANES.encode_each[CODE_E4M3](code[i], x, scale, st == SCALE_E8M0 ? inv : NULL, TURNED,
                                           &found);
    }
    QUANT_LANES.transpose(q, ld, code[0], TURNED, m, w);
    count_found(count, &found);
    count->values += m * w;
    for (int64_t c = 0; c < w; c++) quant_tile_counted(count, most[c] << 16, false, scale[c]);
    return true;
}

// --- E5M6 ---

// 12-bit codes of a tile; false if one is 0 or a subnormal.
static bool e5m6_codes(uint16_t *restrict code, const uint16_t *restrict v, int b) {
    uint16_t edge = (uint16_t)((b - 15) * 128), least = 0xFFFF;
    for (int i = 0; i < E5M6_TILE; i++) {
        uint16_t m = v[i] & 0x7FFF;
        least = m < least ? m : least;
        code[i] = (uint16_t)(reduced(m, edge, 1) | (v[i] >> 4 & 0x800));
    }
    return least >= edge + 0x80;
}

// Four codes at a time in 8 bytes, of which 6 count.
static bool e5m6(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32, QuantCount *count) {
    uint16_t room[E5M6_TILE], code[E5M6_TILE];
    const uint16_t *v = is_f32 ? room : x;
    if (is_f32 && round_values(room, x, E5M6_TILE)) return false;
    int amax = largest(v, E5M6_TILE);
    if (amax >= BF16_INF) return false;
    uint8_t b = tile_scale_e5m6(f32_from_bf16((uint16_t)amax));
    if (b < E5M6_LEAST) return false;
    if (!e5m6_codes(code, v, b)) {
        float inverse = f32_from_e8m0((uint8_t)(254 - b));
        for (int i = 0; i < E5M6_TILE; i++) {
            code[i] = e5m6_from_f32(f32_from_bf16(v[i]) * inverse);
            count->underflow += (code[i] & 0x7FF) == 0 && (v[i] & 0x7FFF) != 0;
        }
    }
    for (int i = 0; i < E5M6_TILE; i += 4) {
        uint64_t p = code[i] | (uint64_t)code[i + 1] << 12 | (uint64_t)code[i + 2] << 24 |
                     (uint64_t)code[i + 3] << 36;
        memcpy(dst + i / 2 * 3, &p, i + 4 < E5M6_TILE ? 8 : 6);
    }
    *scale = b;
    count->values += E5M6_TILE;
    quant_tile_counted(count, amax << 16, false, f32_from_e8m0(b));
    return true;
}

const QuantTiles quant_tiles_avx2 = {take, take_codes, row, block, turn, e5m6, NULL};
#endif
