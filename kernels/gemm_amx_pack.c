// gemm_amx_pack.c - operands of any type and orientation to the panels of gemm_amx.h.
//
// An E4M3 code becomes its BF16 value by two lookups of 128 bytes, one per half of the result; the
// sign is put back, and shifts join the halves: 64 codes in 7 instructions, every code right, NaN
// and subnormals included. Wherever a panel wants the contraction across registers' rows and memory
// has it along them, or the reverse, 16 x 16 units of 32 bits are transposed, codes before they are
// decoded.
#include "gemm_amx.h"

#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
#include <immintrin.h>
#include <string.h>

#include "gemm_lanes512.h"

#define INLINE static inline __attribute__((always_inline))

// The halves of the BF16 value of each magnitude. Normal numbers are (magnitude << 4) + (120 << 7).
#define EVEN 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
#define ODD 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0
#define ALL(x) x, x, x, x, x, x, x, x
static const uint8_t low_half[128] __attribute__((aligned(64))) = {
    0,    0,   0x80, 0xC0, 0,    0x20, 0x40, 0x60, ODD,  EVEN, ODD,  EVEN, ODD,  EVEN, ODD,
    EVEN, ODD, EVEN, ODD,  EVEN, ODD,  EVEN, 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0, 0xC0};
static const uint8_t high_half[128] __attribute__((aligned(64))) = {
    0,         0x3B,      0x3B,      0x3B,      0x3C,      0x3C,      0x3C,      0x3C,
    ALL(0x3C), ALL(0x3D), ALL(0x3D), ALL(0x3E), ALL(0x3E), ALL(0x3F), ALL(0x3F), ALL(0x40),
    ALL(0x40), ALL(0x41), ALL(0x41), ALL(0x42), ALL(0x42), ALL(0x43), 0x43,      0x43,
    0x43,      0x43,      0x43,      0x43,      0x43,      0x7F};

// 64 codes -> the pairs (4i, 4i + 2) at dst and (4i + 1, 4i + 3) at dst of the next register.
INLINE void decode(__m512i x, uint16_t *dst) {
    const __m512i low = _mm512_set1_epi16(0x00FF);
    __m512i h = _mm512_permutex2var_epi8(_mm512_load_si512(high_half), x,
                                         _mm512_load_si512(high_half + 64));
    __m512i l =
        _mm512_permutex2var_epi8(_mm512_load_si512(low_half), x, _mm512_load_si512(low_half + 64));
    h = _mm512_ternarylogic_epi32(h, x, _mm512_set1_epi8((char)0x80), 0xF8); // h | (x & sign)
    _mm512_store_si512(dst, _mm512_ternarylogic_epi32(_mm512_slli_epi16(h, 8), l, low, 0xF8));
    _mm512_store_si512(dst + AMX_TILE, // (l >> 8) | (h & ~low)
                       _mm512_ternarylogic_epi32(_mm512_srli_epi16(l, 8), h, low, 0xF4));
}

// n bytes of the 64 at p, the others zero and not read. n may be negative or more than 64.
INLINE __m512i load_bytes(const uint8_t *p, int64_t n) {
    if (__builtin_expect(n >= 64, 1)) return _mm512_loadu_si512(p);
    return n > 0 ? _mm512_maskz_loadu_epi8(~0ull >> (64 - n), p) : _mm512_setzero_si512();
}

INLINE __m512i load_words(const uint16_t *p, int64_t n) {
    if (__builtin_expect(n >= 32, 1)) return _mm512_loadu_si512(p);
    return n > 0 ? _mm512_maskz_loadu_epi16(~0u >> (32 - n), p) : _mm512_setzero_si512();
}

INLINE void transpose(__m512i x[16]) {
    vf y[16];
    for (int i = 0; i < 16; i++) y[i] = _mm512_castsi512_ps(x[i]);
    vtranspose(y);
    for (int i = 0; i < 16; i++) x[i] = _mm512_castps_si512(y[i]);
}

// Rows, the contraction along memory's rows: a register's row is a piece of memory.
static void rows_along_e4m3(const uint8_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip, uint16_t *dst) {
    for (int64_t r = 0; r < n; r++, p += ld) {
        uint16_t *at = dst + r / AMX_STRIP * strip + r % AMX_STRIP * AMX_STEP;
        for (int64_t k = 0; k < kn; k += 64) decode(load_bytes(p + k, kn - k), at + k * AMX_STRIP);
    }
}

static void rows_along_bf16(const uint16_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip, uint16_t *dst) {
    for (int64_t r = 0; r < n; r++, p += ld) {
        uint16_t *at = dst + r / AMX_STRIP * strip + r % AMX_STRIP * AMX_STEP;
        for (int64_t k = 0; k < kn; k += AMX_STEP)
            _mm512_store_si512(at + k * AMX_STRIP, load_words(p + k, kn - k));
    }
}

// Columns, the contraction along memory's rows: transposed.
static void columns_along_e4m3(const uint8_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip, uint16_t *dst) {
    for (int64_t j = 0; j < n; j += AMX_STRIP, dst += strip) {
        for (int64_t k = 0; k < kn; k += 64) {
            __m512i x[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                __builtin_prefetch(p + (j + 16 + i) * ld + k, 0, 2);
                x[i] = load_bytes(p + (j + i) * ld + k, j + i < n ? kn - k : 0);
            }
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) decode(x[i], dst + k * AMX_STRIP + i * AMX_STEP);
        }
    }
}

static void columns_along_bf16(const uint16_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip, uint16_t *dst) {
    for (int64_t j = 0; j < n; j += AMX_STRIP, dst += strip) {
        for (int64_t k = 0; k < kn; k += AMX_STEP) {
            __m512i x[16];
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                x[i] = load_words(p + (j + i) * ld + k, j + i < n ? kn - k : 0);
            transpose(x);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++)
                _mm512_store_si512(dst + k * AMX_STRIP + i * AMX_STEP, x[i]);
        }
    }
}

// Columns, the contraction across memory's rows: 4 rows of 64 codes become 4 registers' rows of 16
// columns x 4 codes.
static void columns_across_e4m3(const uint8_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip,
                                uint16_t *dst) {
    // Unpacking works inside 128 bits: groups of four columns go where it wants them.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t j = 0; j < n; j += 64) {
        for (int64_t k = 0; k < kn; k += 4) {
            __m512i x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                x[i] = _mm512_permutexvar_epi32(
                    order, load_bytes(p + (k + i) * ld + j, k + i < kn ? n - j : 0));
            __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
            __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
            uint16_t *at =
                dst + j / AMX_STRIP * strip + k / 64 * 2 * AMX_TILE + k % 64 / 4 * AMX_STEP;
            decode(_mm512_unpacklo_epi16(a, c), at);
            decode(_mm512_unpackhi_epi16(a, c), at + strip);
            decode(_mm512_unpacklo_epi16(b, d), at + 2 * strip);
            decode(_mm512_unpackhi_epi16(b, d), at + 3 * strip);
        }
        for (int64_t k = ceil_div(kn, 4) * 4; k % 64; k += 4)
            for (int s = 0; s < 4; s++)
                decode(_mm512_setzero_si512(), dst + (j / AMX_STRIP + s) * strip +
                                                   k / 64 * 2 * AMX_TILE + k % 64 / 4 * AMX_STEP);
    }
}

// One pair of each of 32 columns, 16 and 16.
INLINE void pairs_across(__m512i out[2], const uint16_t *p, int64_t ld, int64_t n, int64_t kn) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    __m512i x = load_words(p, kn > 0 ? n : 0), y = load_words(p + ld, kn > 1 ? n : 0);
    out[0] = _mm512_permutex2var_epi16(x, low, y);
    out[1] = _mm512_permutex2var_epi16(x, _mm512_add_epi16(low, _mm512_set1_epi16(16)), y);
}

static void columns_across_bf16(const uint16_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip,
                                uint16_t *dst) {
    int64_t end = ceil_div(kn, AMX_STEP) * AMX_STEP;
    for (int64_t j = 0; j < n; j += 2 * AMX_STRIP, dst += 2 * strip)
        for (int64_t k = 0; k < end; k += 2) {
            __m512i x[2];
            pairs_across(x, p + k * ld + j, ld, n - j, kn - k);
            _mm512_store_si512(dst + k * AMX_STRIP, x[0]);
            _mm512_store_si512(dst + strip + k * AMX_STRIP, x[1]);
        }
}

// Rows, the contraction across memory's rows: columns, transposed.
static void rows_across_bf16(const uint16_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip,
                             uint16_t *dst) {
    for (int64_t j = 0; j < n; j += 2 * AMX_STRIP, dst += 2 * strip) {
        for (int64_t k = 0; k < kn; k += AMX_STEP) {
            __m512i x[2][16];
            for (int i = 0; i < 16; i++) {
                __m512i both[2];
                pairs_across(both, p + (k + 2 * i) * ld + j, ld, n - j, kn - k - 2 * i);
                x[0][i] = both[0];
                x[1][i] = both[1];
            }
            for (int s = 0; s < 2; s++) {
                __m512i y[16];
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++) y[i] = x[s][i];
                transpose(y);
#pragma GCC unroll 16
                for (int i = 0; i < 16; i++)
                    _mm512_store_si512(dst + s * strip + k * AMX_STRIP + i * AMX_STEP, y[i]);
            }
        }
    }
}

static void rows_across_e4m3(const uint8_t *p, int64_t ld, int64_t n, int64_t kn, int64_t strip, uint16_t *dst) {
    for (int64_t j = 0; j < n; j += AMX_STRIP, dst += strip) {
        for (int64_t k = 0; k < kn; k += 64) {
            uint8_t x[AMX_STRIP][64] = {{0}};
            for (int64_t i = 0; i < min_i64(64, kn - k); i++)
                for (int64_t r = 0; r < min_i64(AMX_STRIP, n - j); r++)
                    x[r][i] = p[(k + i) * ld + j + r];
            for (int r = 0; r < AMX_STRIP; r++)
                decode(_mm512_loadu_si512(x[r]), dst + k * AMX_STRIP + r * AMX_STEP);
        }
    }
}

void amx_pack_rows(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t kn, int64_t strip,
                   uint16_t *dst) {
    int64_t at = o->is_k_contig ? outer * o->ld + k0 : k0 * o->ld + outer;
    const uint8_t *q = (const uint8_t *)o->p + at;
    const uint16_t *h = (const uint16_t *)o->p + at;
    int64_t end = ceil_div(n, 2 * AMX_STRIP) * 2 * AMX_STRIP, made = n, filled = amx_filled(o->t, kn);
    if (!o->is_k_contig && o->t == SRC_BF16) made = end; // both strips
    if (o->is_k_contig && o->t == SRC_E4M3)
        rows_along_e4m3(q, o->ld, n, kn, strip, dst);
    else if (o->is_k_contig)
        rows_along_bf16(h, o->ld, n, kn, strip, dst);
    else if (o->t == SRC_E4M3)
        rows_across_e4m3(q, o->ld, n, kn, strip, dst);
    else
        rows_across_bf16(h, o->ld, n, kn, strip, dst);
    for (int64_t r = made; r < end; r++) // empty rows of every register of the strip
        for (int64_t k = 0; k < filled; k += AMX_STEP)
            memset(dst + r / AMX_STRIP * strip + k * AMX_STRIP + r % AMX_STRIP * AMX_STEP,
                   0, AMX_STEP * sizeof *dst);
}

void amx_pack_columns(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t kn, int64_t strip,
                      uint16_t *dst) {
    int64_t at = o->is_k_contig ? outer * o->ld + k0 : k0 * o->ld + outer;
    const uint8_t *q = (const uint8_t *)o->p + at;
    const uint16_t *h = (const uint16_t *)o->p + at;
    int64_t strips = ceil_div(n, AMX_STRIP);
    if (o->is_k_contig && o->t == SRC_E4M3)
        columns_along_e4m3(q, o->ld, n, kn, strip, dst);
    else if (o->is_k_contig)
        columns_along_bf16(h, o->ld, n, kn, strip, dst);
    else if (o->t == SRC_E4M3)
        columns_across_e4m3(q, o->ld, n, kn, strip, dst);
    else
        columns_across_bf16(h, o->ld, n, kn, strip, dst);
    if (strips % 2)
        memset(dst + strips * strip, 0, (size_t)(amx_filled(o->t, kn) * AMX_STRIP) * sizeof *dst);
}
#else
void amx_pack_rows(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t kn, int64_t strip,
                   uint16_t *dst) {
    (void)o, (void)outer, (void)n, (void)k0, (void)kn, (void)strip, (void)dst;
}
void amx_pack_columns(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t kn, int64_t strip,
                      uint16_t *dst) {
    (void)o, (void)outer, (void)n, (void)k0, (void)kn, (void)strip, (void)dst;
}
#endif
