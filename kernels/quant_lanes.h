// quant_lanes.h - the quantiser's loops over a few hundred values, compiled once per instruction
// set. Inside kernels/ and its tests only.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// What encoding found; sums of many calls.
typedef struct QuantFound {
    int64_t saturated, underflow; // as in QuantCount
} QuantFound;

typedef struct QuantLanes {
    const char *name;
    // dst = src rounded to BF16. [n]
    void (*round_f32)(float *dst, const float *src, int64_t n);
    void (*round_bf16)(float *dst, const uint16_t *src, int64_t n);
    // By CodeType: dst = code * scale, decode_round: rounded to BF16. [n]
    void (*decode[2])(float *dst, const uint8_t *src, float scale, int64_t n);
    void (*decode_round[2])(float *dst, const uint8_t *src, float scale, int64_t n);
    void (*store_bf16)(uint16_t *dst, const float *src, int64_t n);
    // Largest bits of a finite |x|; *is_bad is set if one is not finite.
    int32_t (*amax)(const float *x, int64_t n, bool *is_bad);
    // amax[j] = max(amax[j], bits of |x[j]|), bad[j] |= not finite.
    void (*amax_each)(int32_t *amax, int32_t *bad, const float *x, int64_t n);
    // By CodeType: q = code of x / s, or of x * inv where inv is not 0 (power of two: the same
    // bits).
    void (*encode[2])(uint8_t *q, const float *x, float s, float inv, int64_t n, QuantFound *found);
    // The same with a scale per element; inv NULL: divide by s.
    void (*encode_each[2])(uint8_t *q, const float *x, const float *s, const float *inv, int64_t n,
                           QuantFound *found);
    // dst[c * dst_ld + r] = src[r * src_ld + c], r < rows, c < cols.
    void (*transpose)(uint8_t *dst, int64_t dst_ld, const uint8_t *src, int64_t src_ld,
                      int64_t rows, int64_t cols);
} QuantLanes;

extern const QuantLanes quant_lanes_avx512, quant_lanes_avx2, quant_lanes_portable;

// quant_select: use these loops from now on ("avx512", "avx2", "portable"); NULL = the best of this
// processor. False, and nothing changed, if unknown or not there. For tests and benchmarks; not
// thread-safe.
bool quant_select(const char *name);
