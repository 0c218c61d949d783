// gemm_pack_pairs.h - panels of BF16 pairs for vdpbf16ps, from FP8 codes or BF16 of either
// orientation. Needs AVX-512 BW and VBMI; included by gemm_avx512bf16.c only.
//
// An FP8 code becomes its BF16 value by two lookups of 128 bytes, one per half of the result; the
// sign is put back, and shifts join the halves: 64 codes in 7 instructions, every code of a format
// right, NaN and subnormals included. The four codes of a 32-bit word become two units, the pairs
// (0, 2) and (1, 3): in which order the contraction runs inside 128 elements is free as long as
// both panels agree. Where memory and panel disagree about the direction, codes are transposed,
// which takes half as many registers as their values.
#pragma once
#include <immintrin.h>
#include <string.h>

#include "gemm_engine.h"

#define KU 2 // a unit is two elements
#define INLINE static inline __attribute__((always_inline))
#define NR 32
#define AS (TILE / 2)
#define STEP 8

// The halves of the BF16 value of each magnitude: a table of 128 bytes in two registers. Normal
// numbers are (magnitude << 4) + (120 << 7) for E4M3, (magnitude << 5) + (112 << 7) for E5M2.
#define FOUR_LOW 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
#define FOUR_HIGH 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0
#define FIVE 0x00, 0x20, 0x40, 0x60, 0x80, 0xA0, 0xC0, 0xE0
#define ALL(x) x, x, x, x, x, x, x, x
static const uint8_t halves[2][2][128] __attribute__((aligned(64))) = {
    {{0x00,      0x00,     0x80,      0xC0,     0x00,      0x20,     0x40,      0x60,
      FOUR_HIGH, FOUR_LOW, FOUR_HIGH, FOUR_LOW, FOUR_HIGH, FOUR_LOW, FOUR_HIGH, FOUR_LOW,
      FOUR_HIGH, FOUR_LOW, FOUR_HIGH, FOUR_LOW, FOUR_HIGH, FOUR_LOW, 0x80,      0x90,
      0xA0,      0xB0,     0xC0,      0xD0,     0xE0,      0xC0},
     {0x00,      0x3B,      0x3B,      0x3B,      0x3C,      0x3C,      0x3C,      0x3C,
      ALL(0x3C), ALL(0x3D), ALL(0x3D), ALL(0x3E), ALL(0x3E), ALL(0x3F), ALL(0x3F), ALL(0x40),
      ALL(0x40), ALL(0x41), ALL(0x41), ALL(0x42), ALL(0x42), ALL(0x43), 0x43,      0x43,
      0x43,      0x43,      0x43,      0x43,      0x43,      0x7F}},
    {{0x00, 0x80, 0x00, 0x40, 0x80, 0xA0, 0xC0, 0xE0, FIVE, FIVE, FIVE, FIVE,
      FIVE, FIVE, FIVE, FIVE, FIVE, FIVE, FIVE, FIVE, FIVE, FIVE, FIVE},
     {0x00,      0x37,      0x38,      0x38,      0x38,      0x38,      0x38,      0x38,
      ALL(0x39), ALL(0x3A), ALL(0x3B), ALL(0x3C), ALL(0x3D), ALL(0x3E), ALL(0x3F), ALL(0x40),
      ALL(0x41), ALL(0x42), ALL(0x43), ALL(0x44), ALL(0x45), ALL(0x46), 0x47,      0x47,
      0x47,      0x47,      0x7F,      0x7F,      0x7F,      0x7F}},
};

typedef struct Halves {
    __m512i low[2], high[2];
} Halves;

INLINE Halves halves_of(GemmSrc t) {
    const uint8_t(*at)[128] = halves[t == SRC_E5M2];
    return (Halves){{_mm512_load_si512(at[0]), _mm512_load_si512(at[0] + 64)},
                    {_mm512_load_si512(at[1]), _mm512_load_si512(at[1] + 64)}};
}

// 64 codes -> of each word the pairs (0, 2) and (1, 3).
INLINE void decode(const Halves *t, __m512i x, __m512i *even, __m512i *odd) {
    const __m512i low = _mm512_set1_epi16(0x00FF);
    __m512i h = _mm512_permutex2var_epi8(t->high[0], x, t->high[1]);
    __m512i l = _mm512_permutex2var_epi8(t->low[0], x, t->low[1]);
    h = _mm512_ternarylogic_epi32(h, x, _mm512_set1_epi8((char)0x80), 0xF8); // h | (x & sign)
    *even = _mm512_ternarylogic_epi32(_mm512_slli_epi16(h, 8), l, low, 0xF8);
    *odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(l, 8), h, low, 0xF4); // or h & ~low
}

// 16 rows of 16 bytes, ld apart -> x[i], lane j = the i-th word of row j. Pieces of rows are put
// together as they are loaded, so that half of the exchanges cost no shuffle.
INLINE void load_turned(const uint8_t *p, int64_t ld, __m512i x[4]) {
    __m512i z[4];
#pragma GCC unroll 4
    for (int m = 0; m < 4; m++) {
        const uint8_t *at = p + m * ld;
        z[m] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)at));
        z[m] = _mm512_mask_broadcast_i32x4(z[m], 0x00F0,
                                           _mm_loadu_si128((const __m128i *)(at + 4 * ld)));
        z[m] = _mm512_mask_broadcast_i32x4(z[m], 0x0F00,
                                           _mm_loadu_si128((const __m128i *)(at + 8 * ld)));
        z[m] = _mm512_mask_broadcast_i32x4(z[m], 0xF000,
                                           _mm_loadu_si128((const __m128i *)(at + 12 * ld)));
    }
    __m512i a = _mm512_unpacklo_epi32(z[0], z[1]), b = _mm512_unpacklo_epi32(z[2], z[3]);
    __m512i c = _mm512_unpackhi_epi32(z[0], z[1]), d = _mm512_unpackhi_epi32(z[2], z[3]);
    x[0] = _mm512_unpacklo_epi64(a, b);
    x[1] = _mm512_unpackhi_epi64(a, b);
    x[2] = _mm512_unpacklo_epi64(c, d);
    x[3] = _mm512_unpackhi_epi64(c, d);
}

// n bytes of the 64 at p, the others zero and not read.
INLINE __m512i load_bytes(const void *p, int64_t n) {
    if (__builtin_expect(n >= 64, 1)) return _mm512_loadu_si512(p);
    return n > 0 ? _mm512_maskz_loadu_epi8(~0ull >> (64 - n), p) : _mm512_setzero_si512();
}

// --- rows ---

static void rows_codes(GemmSrc t, const uint8_t *p, int64_t ld, int64_t rows, int64_t nk,
                       float *dst) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    Halves table = halves_of(t);
    for (int64_t r = 0; r < rows; r++, p += ld, dst += AS)
        for (int64_t k = 0; k < nk; k += 64) {
            __m512i even, odd;
            decode(&table, load_bytes(p + k, nk - k), &even, &odd);
            _mm512_storeu_si512(dst + k / 2, _mm512_permutex2var_epi32(even, first, odd));
            _mm512_storeu_si512(dst + k / 2 + 16, _mm512_permutex2var_epi32(even, second, odd));
        }
}

static void rows_bf16(const uint16_t *p, int64_t ld, int64_t rows, int64_t nk, float *dst) {
    for (int64_t r = 0; r < rows; r++, p += ld, dst += AS)
        for (int64_t k = 0; k < nk; k += 32)
            _mm512_storeu_si512(dst + k / 2, load_bytes(p + k, 2 * (nk - k)));
}

// Two rows of 32 columns -> the pairs of the first and of the last 16 columns.
INLINE void join_pairs(__m512i x, __m512i y, __m512i *first, __m512i *last) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    *first = _mm512_permutex2var_epi16(x, low, y);
    *last = _mm512_permutex2var_epi16(x, _mm512_add_epi16(low, _mm512_set1_epi16(16)), y);
}

// The contraction across memory's rows.
static void rows_across_bf16(const uint16_t *p, int64_t ld, int64_t rows, int64_t nk, float *dst) {
    for (int64_t r = 0; r < rows; r += 32)
        for (int64_t k = 0; k < nk; k += 32) {
            int64_t bytes = 2 * (rows - r);
            uint32_t turned[2][16][16] __attribute__((aligned(64)));
            for (int i = 0; i < 16; i++) {
                const uint16_t *at = p + (k + 2 * i) * ld + r;
                __m512i a, b;
                join_pairs(k + 2 * i < nk ? load_bytes(at, bytes) : _mm512_setzero_si512(),
                           k + 2 * i + 1 < nk ? load_bytes(at + ld, bytes) : _mm512_setzero_si512(),
                           &a, &b);
                _mm512_store_si512(turned[0][i], a);
                _mm512_store_si512(turned[1][i], b);
            }
            for (int half = 0; half < 2 && r + 16 * half < rows; half++) {
                float *at = dst + (r + 16 * half) * AS + k / 2; // rows past the last are spare
                for (int g = 0; g < 4; g++) {
                    __m512i x[4];
                    load_turned((const uint8_t *)turned[half] + 16 * g, 64, x);
#pragma GCC unroll 4
                    for (int i = 0; i < 4; i++) _mm512_storeu_si512(at + (4 * g + i) * AS, x[i]);
                }
            }
        }
}

static void pack_a(const GemmOperand *o, int64_t i0, int64_t rows, int64_t k0, int64_t nk,
                   float *dst) {
    int64_t at = o->is_k_contig ? i0 * o->ld + k0 : k0 * o->ld + i0;
    if (o->t != SRC_BF16)
        rows_codes(o->t, (const uint8_t *)o->p + at, o->ld, rows, nk, dst);
    else if (o->is_k_contig)
        rows_bf16((const uint16_t *)o->p + at, o->ld, rows, nk, dst);
    else
        rows_across_bf16((const uint16_t *)o->p + at, o->ld, rows, nk, dst);
}

// --- 32 columns ---

// The loops below take whole steps of the contraction, STEP units each, and whole rows of columns;
// pack_b cuts and pads.

static void columns_codes(GemmSrc t, const uint8_t *p, int64_t ld, int64_t nk, float *dst) {
    Halves table = halves_of(t);
    for (int64_t k = 0; k < nk; k += 16)
        for (int v = 0; v < 2; v++) {
            __m512i x[4];
            load_turned(p + 16 * v * ld + k, ld, x);
            float *at = dst + k / 2 * NR + 16 * v;
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                __m512i even, odd;
                decode(&table, x[i], &even, &odd);
                _mm512_storeu_si512(at + 2 * i * NR, even);
                _mm512_storeu_si512(at + (2 * i + 1) * NR, odd);
            }
        }
}

// Eight rows of 32 codes become four registers of 16 columns x 4 codes.
static void columns_codes_across(GemmSrc t, const uint8_t *p, int64_t ld, int64_t nk, float *dst) {
    // Unpacking works inside 128 bits: groups of four columns go where it wants them.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    Halves table = halves_of(t);
    for (int64_t k = 0; k < nk; k += 8, p += 8 * ld) {
        __m512i x[4], y[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            __m256i near = _mm256_loadu_si256((const __m256i *)(p + i * ld));
            __m256i far = _mm256_loadu_si256((const __m256i *)(p + (i + 4) * ld));
            x[i] = _mm512_permutexvar_epi32(
                order, _mm512_inserti64x4(_mm512_castsi256_si512(near), far, 1));
        }
        __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
        __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
        y[0] = _mm512_unpacklo_epi16(a, c);
        y[1] = _mm512_unpackhi_epi16(a, c);
        y[2] = _mm512_unpacklo_epi16(b, d);
        y[3] = _mm512_unpackhi_epi16(b, d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            float *at = dst + (k / 2 + i / 2 * 2) * NR + i % 2 * 16;
            __m512i even, odd;
            decode(&table, y[i], &even, &odd);
            _mm512_storeu_si512(at, even);
            _mm512_storeu_si512(at + NR, odd);
        }
    }
}

static void columns_bf16(const uint16_t *p, int64_t ld, int64_t nk, float *dst) {
    for (int64_t k = 0; k < nk; k += 8)
        for (int v = 0; v < 2; v++) {
            __m512i x[4];
            load_turned((const uint8_t *)(p + 16 * v * ld + k), 2 * ld, x);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) _mm512_storeu_si512(dst + (k / 2 + i) * NR + 16 * v, x[i]);
        }
}

static void columns_bf16_across(const uint16_t *p, int64_t ld, int64_t nk, float *dst) {
    for (int64_t k = 0; k < nk; k += 2, p += 2 * ld, dst += NR) {
        __m512i first, last;
        join_pairs(_mm512_loadu_si512(p), _mm512_loadu_si512(p + ld), &first, &last);
        _mm512_storeu_si512(dst, first);
        _mm512_storeu_si512(dst + 16, last);
    }
}

// n columns x nk elements -> 32 columns x STEP units with zeros around them; ld and size in bytes.
static void pad_step(uint8_t *pad, const uint8_t *p, int64_t ld, bool is_k_contig, int64_t n,
                     int64_t nk, int64_t size) {
    int64_t rows = is_k_contig ? n : nk, bytes = (is_k_contig ? nk : n) * size;
    int64_t pad_ld = (is_k_contig ? KU * STEP : NR) * size;
    __mmask64 mask = ~0ull >> (64 - bytes);
    memset(pad, 0, KU * STEP * NR * 2);
    for (int64_t r = 0; r < rows; r++)
        _mm512_mask_storeu_epi8(pad + r * pad_ld, mask, _mm512_maskz_loadu_epi8(mask, p + r * ld));
}

// Rows that a multiple of this many bytes lies between share so few sets of a first-level cache
// that their lines are gone before all pieces of them are read.
enum { FAR = 2048 };

// 32 rows of nk <= TILE elements, ld bytes apart -> TILE elements apart.
static void gather_rows(uint8_t *dst, const uint8_t *p, int64_t ld, int64_t size, int64_t nk) {
    int64_t bytes = nk * size, dst_ld = TILE * size;
    for (int64_t r = 0; r < NR; r++)
        for (int64_t at = 0; at < bytes; at += 64)
            _mm512_storeu_si512(dst + r * dst_ld + at, load_bytes(p + r * ld + at, bytes - at));
}

static void pack_columns(const GemmOperand *o, const uint8_t *p, int64_t ld, int64_t nk,
                         float *dst) {
    if (o->t == SRC_BF16 && o->is_k_contig)
        columns_bf16((const uint16_t *)(const void *)p, ld, nk, dst);
    else if (o->t == SRC_BF16)
        columns_bf16_across((const uint16_t *)(const void *)p, ld, nk, dst);
    else if (o->is_k_contig)
        columns_codes(o->t, p, ld, nk, dst);
    else
        columns_codes_across(o->t, p, ld, nk, dst);
}

static void pack_b(const GemmOperand *o, int64_t j0, int64_t n, int64_t k0, int64_t nk,
                   float *dst) {
    enum { WHOLE = KU * STEP };
    uint8_t pad[WHOLE * NR * 2] __attribute__((aligned(64)));
    uint8_t near[TILE * NR * 2] __attribute__((aligned(64)));
    int64_t size = o->t == SRC_BF16 ? 2 : 1;
    int64_t k_bytes = (o->is_k_contig ? 1 : o->ld) * size;
    int64_t outer_bytes = (o->is_k_contig ? o->ld : 1) * size;
    const uint8_t *p = (const uint8_t *)o->p + j0 * outer_bytes + k0 * k_bytes;
    int64_t direct = n < NR ? 0 : nk / WHOLE * WHOLE; // elements that need no padding
    if (o->is_k_contig && direct && outer_bytes % FAR == 0) {
        gather_rows(near, p, outer_bytes, size, direct);
        pack_columns(o, near, TILE, direct, dst);
    } else {
        pack_columns(o, p, o->ld, direct, dst);
    }
    for (int64_t k = direct; k < nk; k += WHOLE) {
        pad_step(pad, p + k * k_bytes, o->ld * size, o->is_k_contig, n, min_i64(WHOLE, nk - k),
                 size);
        pack_columns(o, pad, o->is_k_contig ? WHOLE : NR, WHOLE, dst + k / KU * NR);
    }
}
