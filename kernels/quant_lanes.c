// quant_lanes.c - see quant_lanes.h. Plain loops that the compiler vectorises; built with the flags
// of each instruction set, QUANT_LANES being the name of the table and QUANT_LANES_NAME what people
// call it.
#include "quant_lanes.h"

#include "quant_core.h"

static void round_f32(float *restrict dst, const float *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = quant_round(src[i]);
}

static void round_bf16(float *restrict dst, const uint16_t *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = f32_from_bf16(src[i]);
}

#define DECODE(name, value)                                                                        \
    static void decode_##name(float *restrict dst, const uint8_t *restrict src, float scale,       \
                              int64_t n) {                                                         \
        for (int64_t i = 0; i < n; i++) dst[i] = value(src[i]) * scale;                            \
    }                                                                                              \
    static void decode_round_##name(float *restrict dst, const uint8_t *restrict src, float scale, \
                                    int64_t n) {                                                   \
        for (int64_t i = 0; i < n; i++) dst[i] = quant_round(value(src[i]) * scale);               \
    }
DECODE(e4m3, quant_value)
DECODE(e5m2, quant_value_e5m2)

static void store_bf16(uint16_t *restrict dst, const float *restrict src, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = (uint16_t)(f32_bits(quant_round(src[i])) >> 16);
}

static int32_t amax(const float *x, int64_t n, bool *is_bad) {
    int32_t most = 0, all = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t m = (int32_t)(f32_bits(x[i]) & 0x7FFFFFFFu);
        int32_t finite = m < F32_INF_BITS ? m : 0;
        most = finite > most ? finite : most;
        all = m > all ? m : all;
    }
    *is_bad |= all >= F32_INF_BITS;
    return most;
}

static void amax_each(int32_t *restrict most, int32_t *restrict bad, const float *restrict x,
                      int64_t n) {
    for (int64_t j = 0; j < n; j++) {
        int32_t m = (int32_t)(f32_bits(x[j]) & 0x7FFFFFFFu);
        int32_t is_bad = m >= F32_INF_BITS;
        int32_t finite = is_bad ? 0 : m;
        most[j] = finite > most[j] ? finite : most[j];
        bad[j] |= is_bad;
    }
}

#define INLINE static inline __attribute__((always_inline))

// What a value whose quotient is v adds to the counters.
INLINE void count_one(const bool is_e5m2, uint8_t code, float v, float x, QuantFound *found) {
    int32_t m = (int32_t)(f32_bits(v) & 0x7FFFFFFFu), mx = (int32_t)(f32_bits(x) & 0x7FFFFFFFu);
    found->saturated += mx < F32_INF_BITS && m > (is_e5m2 ? 0x47600000 : 0x43E00000); // 57344, 448
    found->underflow += mx != 0 && (code & 0x7F) == 0;
}

// The code of quotient v of value x. *most rises above EDGE if v can add to the counters: if it is
// at most half the smallest code (a zero, then), above the largest or not finite. One subtraction
// and one maximum: counting each value here would cost a third more, and few tiles have anything to
// count.
#define EDGE_LOW(is_e5m2) ((is_e5m2) ? 0x37000001u : 0x3A800001u) // 2^-17, 2^-10
#define EDGE(is_e5m2) (((is_e5m2) ? 0x47600000u : 0x43E00000u) - EDGE_LOW(is_e5m2))
INLINE uint8_t watched_code(const bool is_e5m2, float v, float x, uint32_t *most) {
    uint32_t above = (f32_bits(v) & 0x7FFFFFFFu) - EDGE_LOW(is_e5m2); // wraps around below
    *most = above > *most ? above : *most;
    return (uint8_t)(is_e5m2 ? quant_code_e5m2(v, x) : quant_code(v, x));
}

INLINE void encode(const bool is_e5m2, uint8_t *restrict q, const float *restrict x, float s,
                   float inv, int64_t n, QuantFound *found) {
    uint32_t most = 0;
    if (inv != 0.0f)
        for (int64_t i = 0; i < n; i++) q[i] = watched_code(is_e5m2, x[i] * inv, x[i], &most);
    else
        for (int64_t i = 0; i < n; i++) q[i] = watched_code(is_e5m2, x[i] / s, x[i], &most);
    if (most <= EDGE(is_e5m2)) return;
    for (int64_t i = 0; i < n; i++)
        count_one(is_e5m2, q[i], inv != 0.0f ? x[i] * inv : x[i] / s, x[i], found);
}

INLINE void encode_each(const bool is_e5m2, uint8_t *restrict q, const float *restrict x,
                        const float *restrict s, const float *restrict inv, int64_t n,
                        QuantFound *found) {
    uint32_t most = 0;
    if (inv)
        for (int64_t i = 0; i < n; i++) q[i] = watched_code(is_e5m2, x[i] * inv[i], x[i], &most);
    else
        for (int64_t i = 0; i < n; i++) q[i] = watched_code(is_e5m2, x[i] / s[i], x[i], &most);
    if (most <= EDGE(is_e5m2)) return;
    for (int64_t i = 0; i < n; i++)
        count_one(is_e5m2, q[i], inv ? x[i] * inv[i] : x[i] / s[i], x[i], found);
}

#define ENCODE(name, is_e5m2)                                                                      \
    static void encode_##name(uint8_t *restrict q, const float *restrict x, float s, float inv,    \
                              int64_t n, QuantFound *found) {                                      \
        encode(is_e5m2, q, x, s, inv, n, found);                                                   \
    }                                                                                              \
    static void encode_each_##name(uint8_t *restrict q, const float *restrict x,                   \
                                   const float *restrict s, const float *restrict inv, int64_t n,  \
                                   QuantFound *found) {                                            \
        encode_each(is_e5m2, q, x, s, inv, n, found);                                              \
    }
ENCODE(e4m3, false)
ENCODE(e5m2, true)

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

// 16 x 16 bytes: four rounds of interleaving register i with register i + 8.
static void transpose16(uint8_t *dst, int64_t dst_ld, const uint8_t *src, int64_t src_ld) {
    const Bytes16 low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const Bytes16 high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    Bytes16 a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) memcpy(&a[i], src + i * src_ld, 16);
#pragma GCC unroll 2
    for (int round = 0; round < 2; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            b[2 * i] = __builtin_shuffle(a[i], a[i + 8], low);
            b[2 * i + 1] = __builtin_shuffle(a[i], a[i + 8], high);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            a[2 * i] = __builtin_shuffle(b[i], b[i + 8], low);
            a[2 * i + 1] = __builtin_shuffle(b[i], b[i + 8], high);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) memcpy(dst + i * dst_ld, &a[i], 16);
}

static void transpose(uint8_t *dst, int64_t dst_ld, const uint8_t *src, int64_t src_ld,
                      int64_t rows, int64_t cols) {
    int64_t r16 = rows / 16 * 16, c16 = cols / 16 * 16;
    for (int64_t c = 0; c < c16; c += 16)
        for (int64_t r = 0; r < r16; r += 16)
            transpose16(dst + c * dst_ld + r, dst_ld, src + r * src_ld + c, src_ld);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = r < r16 ? c16 : 0; c < cols; c++)
            dst[c * dst_ld + r] = src[r * src_ld + c];
}

const QuantLanes QUANT_LANES = {
    .name = QUANT_LANES_NAME,
#ifdef __AVX512BW__
    .tiles = &quant_tiles_avx512,
#elif defined(__AVX2__)
    .tiles = &quant_tiles_avx2,
#endif
    .round_f32 = round_f32,
    .round_bf16 = round_bf16,
    .decode = {decode_e4m3, decode_e5m2},
    .decode_round = {decode_round_e4m3, decode_round_e5m2},
    .store_bf16 = store_bf16,
    .amax = amax,
    .amax_each = amax_each,
    .encode = {encode_e4m3, encode_e5m2},
    .encode_each = {encode_each_e4m3, encode_each_e5m2},
    .transpose = transpose,
};
