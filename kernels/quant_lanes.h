// quant_lanes.h - the quantiser's loops over a few hundred values, compiled once per instruction
// set. Inside kernels/ and its tests only.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "quant.h"

// What encoding found; sums of many calls.
typedef struct QuantFound {
    int64_t saturated, underflow; // as in QuantCount
} QuantFound;

// Whole tiles of E4M3 codes, each with its own scale, from values as BF16 bits: what training does
// all the time. What returns false (or stops early) has written and counted nothing there: a tile
// that is not finite, or too small for a power of two to keep its bits; the loops below do those.
typedef struct QuantTiles {
    // Columns [0, w) of m rows of a matrix (ld in elements) as BF16 bits to dst, w rounded up to 64
    // there with zeros; dst NULL: nowhere. most[c], of as many, becomes at least the largest
    // magnitude of column c, 0x7F80 or more if one is not finite. False: a NaN in F32.
    bool (*take)(uint16_t *dst, int64_t dst_ld, const void *x, bool is_f32, int64_t ld, int64_t m,
                 int64_t w, uint16_t *most);
    // The same from E4M3 codes and a scale per row, w <= 64: code * scale, rounded. NaN stays.
    void (*take_codes)(uint16_t *dst, int64_t dst_ld, const uint8_t *q, int64_t ld, const float *s,
                       bool is_pow2, int64_t m, int64_t w, uint16_t *most);
    // The 1x128 tiles of n values, scales scol apart; returns how many values were done.
    int64_t (*row)(uint8_t *q, void *s, int64_t scol, ScaleType st, const void *x, bool is_f32,
                   int64_t n, QuantCount *count);
    // m rows of w BF16 values with this scale, that of amax (BF16 bits). Counts only saturation and
    // underflow.
    bool (*block)(uint8_t *q, int64_t ld, ScaleType st, float scale, const uint16_t *v,
                  int64_t v_ld, int64_t m, int64_t w, int amax, QuantCount *count);
    // A tile of m <= 128 tokens for each of w <= 32 channels, stored transposed, scales at s[w];
    // v and most as `take` makes them.
    bool (*turn)(uint8_t *q, int64_t ld, void *s, ScaleType st, const uint16_t *v, int64_t v_ld,
                 const uint16_t *most, int64_t m, int64_t w, QuantCount *count);
    // 128 values in E5M6 (e5m6.h): packed codes and the scale's byte; and back, as BF16.
    bool (*e5m6)(uint8_t *dst, uint8_t *scale, const void *x, bool is_f32, QuantCount *count);
    bool (*from_e5m6)(uint16_t *dst, const uint8_t *src, uint8_t scale);
    // Copies rows of n bytes past the caches (whole lines of memory, the ends in the usual way);
    // NULL: there is none. What goes past the caches other threads see after a fence.
    void (*stream)(uint8_t *dst, int64_t ld, const uint8_t *src, int64_t src_ld, int64_t rows,
                   int64_t n);
    // rows x tiles 1x128 tiles of a matrix whose rows are x_ld elements apart, with power-of-two
    // scales; no more than QUANT_BATCH. is_far: codes, which are whole lines of memory, go past the
    // caches. NULL: there is none.
    bool (*batch)(uint8_t *q, int64_t ld, bool is_far, uint8_t *s, int64_t srow, int64_t scol,
                  const void *x, bool is_f32, int64_t x_ld, int64_t rows, int64_t tiles,
                  QuantCount *count);
    // dst = codes of whole 1x128 tiles of a row, times their power-of-two scales, scol apart. NULL:
    // there is none.
    void (*decode)(uint16_t *dst, const uint8_t *q, const uint8_t *s, int64_t scol, int64_t tiles);
    // turn, but past the caches: q and ld are multiples of 64. NULL: there is none.
    bool (*turn_far)(uint8_t *q, int64_t ld, void *s, ScaleType st, const uint16_t *v, int64_t v_ld,
                     const uint16_t *most, int64_t m, int64_t w, QuantCount *count);
    // take_codes and turn (is_far: turn_far) of 64 channels of m <= 128 tokens, both of E4M3 codes with power-of-two
    // scales; e[m]: those of the tokens. NULL: there is none.
    bool (*retile)(uint8_t *y, int64_t y_ld, bool is_far, uint8_t *s, const uint8_t *q, int64_t ld, const uint8_t *e,
                   int64_t m, QuantCount *count);
} QuantTiles;

enum { QUANT_BATCH = 16 };

// turn and batch with AVX-512, and with its conversion to BF16 and byte permutations.
#define QUANT_TURN(name)                                                                           \
    bool name(uint8_t *q, int64_t ld, void *s, ScaleType st, const uint16_t *v, int64_t v_ld,      \
              const uint16_t *most, int64_t m, int64_t w, QuantCount *count)
QUANT_TURN(quant_turn_avx512);
QUANT_TURN(quant_turn_far_avx512);
QUANT_TURN(quant_turn_avx512bf16);
QUANT_TURN(quant_turn_far_avx512bf16);
bool quant_batch_avx512(uint8_t *q, int64_t ld, bool is_far, uint8_t *s, int64_t srow, int64_t scol,
                        const void *x, bool is_f32, int64_t x_ld, int64_t rows, int64_t tiles,
                        QuantCount *count);
bool quant_batch_avx512bf16(uint8_t *q, int64_t ld, bool is_far, uint8_t *s, int64_t srow,
                            int64_t scol, const void *x, bool is_f32, int64_t x_ld, int64_t rows,
                            int64_t tiles, QuantCount *count);

// The exponent bytes of scales that whole tiles in BF16 bits are for: from *_POW2_LEAST on BF16's
// subnormals have code 0; from *_EXACT_LOW to *_EXACT_HIGH code * scale is a normal BF16 number,
// whatever the code.
enum {
    E4M3_POW2_LEAST = 12,
    E4M3_EXACT_LOW = 10,
    E4M3_EXACT_HIGH = 246,
    E5M6_POW2_LEAST = 22,
    E5M6_EXACT_LOW = 21,
    E5M6_EXACT_HIGH = 238,
    BF16_INF = 0x7F80,
};

typedef struct QuantLanes {
    const char *name;
    const QuantTiles *tiles; // NULL: only the loops
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

extern const QuantTiles quant_tiles_avx512, quant_tiles_avx2;
extern const QuantLanes quant_lanes_avx512, quant_lanes_avx2, quant_lanes_portable;

// quant_select: use these loops from now on ("avx512-bf16", "avx512", "avx2", "portable"); NULL =
// the best of this processor. False, and nothing changed, if unknown or not there. For tests and
// benchmarks; not thread-safe.
bool quant_select(const char *name);
// quant_far_select: matrices of more bytes of codes are written past the caches; less than 0: as is
// best for this processor. For tests; not thread-safe.
void quant_far_select(int64_t bytes);
// quant_chosen: the loops in use.
const QuantLanes *quant_chosen(void);
