// gemm_avx2_pack.h - the panels of AVX2 products, from operands of any type and orientation.
//
// Rows go to [unit][h], h being the rows of a strip, columns to [unit][16]; a unit is one element
// of the contraction. Included only where <immintrin.h> offers AVX2 and FMA.
#pragma once
#include <string.h>

#include "gemm_avx2_kernel.h"
#include "gemm_engine.h"
#include "gemm_fetch.h"

#define INLINE static inline __attribute__((always_inline))

INLINE vf vlanes_bf16(const void *p) {
    __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
// Exact, NaN included; the values below 2^-6 come from a table (subnormals are slow on some
// processors).
INLINE vf vlanes_e4m3(const void *p) {
    const __m256 low =
        _mm256_setr_ps(0.0f, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f);
    __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i mag = _mm256_and_si256(x, _mm256_set1_epi32(0x7F));
    __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(mag, 20), _mm256_set1_epi32(120 << 23));
    __m256 is_low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(8), mag));
    __m256 is_nan = _mm256_castsi256_ps(_mm256_cmpeq_epi32(mag, _mm256_set1_epi32(0x7F)));
    __m256 v =
        _mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_permutevar8x32_ps(low, mag), is_low);
    v = _mm256_blendv_ps(v, _mm256_set1_ps(__builtin_nanf("")), is_nan);
    __m256i sign = _mm256_and_si256(x, _mm256_set1_epi32((int)0x80000000u));
    return _mm256_or_ps(v, _mm256_castsi256_ps(sign));
}
// Exact, infinity and NaN included, as above; exponent 31 becomes 255.
INLINE vf vlanes_e5m2(const void *p) {
    const __m256 low = _mm256_setr_ps(0.0f, 0x1p-16f, 0x2p-16f, 0x3p-16f, 0, 0, 0, 0);
    __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
    __m256i mag = _mm256_and_si256(x, _mm256_set1_epi32(0x7F));
    __m256i bits = _mm256_add_epi32(_mm256_slli_epi32(mag, 21), _mm256_set1_epi32(112 << 23));
    __m256 is_low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(4), mag));
    __m256i is_end = _mm256_cmpgt_epi32(mag, _mm256_set1_epi32(0x7B));
    bits = _mm256_or_si256(bits, _mm256_and_si256(is_end, _mm256_set1_epi32(255 << 23)));
    __m256 v =
        _mm256_blendv_ps(_mm256_castsi256_ps(bits), _mm256_permutevar8x32_ps(low, mag), is_low);
    __m256i sign = _mm256_and_si256(x, _mm256_set1_epi32((int)0x80000000u));
    return _mm256_or_ps(v, _mm256_castsi256_ps(sign));
}

INLINE int64_t src_bytes(GemmSrc t) {
    return t == SRC_F32 ? 4 : t == SRC_BF16 ? 2 : 1;
}

INLINE vf decode_lanes(GemmSrc t, const void *p) {
    return t == SRC_F32    ? _mm256_loadu_ps(p)
           : t == SRC_BF16 ? vlanes_bf16(p)
           : t == SRC_E4M3 ? vlanes_e4m3(p)
                           : vlanes_e5m2(p);
}

// 8 elements of which only n exist in memory; the others are zero.
INLINE vf load_lanes(GemmSrc t, const char *p, int64_t n) {
    if (__builtin_expect(n >= VW, 1)) return decode_lanes(t, p);
    char pad[VW * 4] = {0};
    if (n > 0) memcpy(pad, p, (size_t)(n * src_bytes(t)));
    return decode_lanes(t, pad);
}

INLINE const char *element(const GemmOperand *o, GemmSrc t, bool is_k_contig, int64_t outer,
                           int64_t k) {
    return (const char *)o->p +
           (is_k_contig ? outer * o->ld + k : k * o->ld + outer) * src_bytes(t);
}

// 8 outer indices x 8 elements at k, of which n indices and nk elements exist; the others are zero.
// Vector k goes to dst + k * step.
INLINE void turn_block(GemmSrc t, const GemmOperand *o, int64_t outer, int64_t n, int64_t k,
                       int64_t nk, float *dst, int64_t step) {
    vf x[VW];
#pragma GCC unroll 8
    for (int j = 0; j < VW; j++)
        x[j] = j < n ? load_lanes(t, element(o, t, true, outer + j, k), nk) : vset1(0.0f);
    vtranspose(x);
#pragma GCC unroll 8
    for (int j = 0; j < VW; j++) vstore(dst + j * step, x[j]);
}

// The same for nk elements at k0, and zeros up to a multiple of STEP.
INLINE void turn_all(GemmSrc t, const GemmOperand *o, int64_t outer, int64_t n, int64_t k0,
                     int64_t nk, float *dst, int64_t step) {
    int64_t k = 0;
    for (; k + VW <= nk; k += VW) turn_block(t, o, outer, n, k0 + k, VW, dst + k * step, step);
    if (k < nk) turn_block(t, o, outer, n, k0 + k, nk - k, dst + k * step, step);
}

// Usual numbers of indices become constants.
INLINE void turn_lanes(GemmSrc t, const GemmOperand *o, int64_t outer, int64_t n, int64_t k0,
                       int64_t nk, float *dst, int64_t step) {
    if (n >= VW)
        turn_all(t, o, outer, VW, k0, nk, dst, step);
    else if (n == STRIP)
        turn_all(t, o, outer, STRIP, k0, nk, dst, step);
    else if (n == STRIP - 1)
        turn_all(t, o, outer, STRIP - 1, k0, nk, dst, step);
    else
        turn_all(t, o, outer, n, k0, nk, dst, step);
}

// The rows of a tile in strips: the first `high` have one row more than the others.
typedef struct Strips {
    int64_t count, low, high;
} Strips;

static inline int64_t strip_start(const Strips *s, int64_t i) {
    return i * s->low + min_i64(i, s->high);
}
static inline int64_t strip_rows(const Strips *s, int64_t i) {
    return s->low + (i < s->high);
}

// The strips [s0, s1) of the rows at i0 x nk elements -> dst + (strip - s0) * PANEL, each
// [unit][h]. A vector of 8 rows is stored, of which the ones past h are overwritten by what comes
// after, or spare; `rows` of the operand exist at i0.
enum { PANEL_DEPTH = 256, PANEL = PANEL_DEPTH * STRIP + 16 };
INLINE void pack_rows_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, const Strips *strips,
                         int64_t s0, int64_t s1, int64_t i0, int64_t rows, int64_t k0, int64_t nk,
                         float *dst) {
    if (is_k_contig) {
        for (int64_t s = s0; s < s1; s++) {
            int64_t r = strip_start(strips, s), h = strip_rows(strips, s);
            Fetch next = {0};
            if (s + 1 < s1) next = piece_of(o, i0 + r + h, strip_rows(strips, s + 1), k0, nk, 1);
            fetch_next(&next);
            turn_lanes(t, o, i0 + r, h, k0, nk, dst + (s - s0) * PANEL, h);
        }
        return;
    }
    for (int64_t k = 0; k < nk; k++) {
        enum { AHEAD = 8 };
        const char *p = element(o, t, false, i0, k0 + k);
        int64_t first = strip_start(strips, s0), end = strip_start(strips, s1);
        for (int64_t at = first; k + AHEAD < nk && at < end; at += 64 / src_bytes(t))
            __builtin_prefetch(p + (AHEAD * o->ld + at) * src_bytes(t));
        for (int64_t s = s0; s < s1; s++) {
            int64_t r = strip_start(strips, s);
            vstore(dst + (s - s0) * PANEL + k * strip_rows(strips, s),
                   load_lanes(t, p + r * src_bytes(t), rows - r));
        }
    }
    for (int64_t k = nk; k % STEP; k++)
        for (int64_t s = s0; s < s1; s++)
            vstore(dst + (s - s0) * PANEL + k * strip_rows(strips, s), vset1(0.0f));
}

// n <= 16 columns x nk elements of an operand -> dst [unit][16]; columns past n are zero.
INLINE void pack_columns_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, int64_t j0,
                            int64_t n, int64_t k0, int64_t nk, float *dst) {
    if (is_k_contig) {
        for (int v = 0; v < COLUMNS; v += VW)
            turn_lanes(t, o, j0 + v, n - v, k0, nk, dst + v, COLUMNS);
        return;
    }
    for (int64_t k = 0; k < nk; k++) {
        const char *p = element(o, t, false, j0, k0 + k);
        for (int v = 0; v < COLUMNS; v += VW)
            vstore(dst + k * COLUMNS + v,
                   n > v ? load_lanes(t, p + v * src_bytes(t), n - v) : vset1(0.0f));
    }
    for (int64_t k = nk; k % STEP; k++)
        for (int v = 0; v < COLUMNS; v += VW) vstore(dst + k * COLUMNS + v, vset1(0.0f));
}

// The type and the orientation become constants, so that no decision is left in the loops.
#define PACK(pack_as, o, ...)                                                                      \
    do {                                                                                           \
        if ((o)->t == SRC_E4M3 && (o)->is_k_contig)                                                \
            pack_as(SRC_E4M3, true, o, __VA_ARGS__);                                               \
        else if ((o)->t == SRC_E4M3)                                                               \
            pack_as(SRC_E4M3, false, o, __VA_ARGS__);                                              \
        else if ((o)->t == SRC_E5M2 && (o)->is_k_contig)                                           \
            pack_as(SRC_E5M2, true, o, __VA_ARGS__);                                               \
        else if ((o)->t == SRC_E5M2)                                                               \
            pack_as(SRC_E5M2, false, o, __VA_ARGS__);                                              \
        else if ((o)->t == SRC_BF16 && (o)->is_k_contig)                                           \
            pack_as(SRC_BF16, true, o, __VA_ARGS__);                                               \
        else if ((o)->t == SRC_BF16)                                                               \
            pack_as(SRC_BF16, false, o, __VA_ARGS__);                                              \
        else if ((o)->is_k_contig)                                                                 \
            pack_as(SRC_F32, true, o, __VA_ARGS__);                                                \
        else                                                                                       \
            pack_as(SRC_F32, false, o, __VA_ARGS__);                                               \
    } while (0)

static __attribute__((noinline)) void pack_strips(const GemmOperand *o, const Strips *strips,
                                                  int64_t s0, int64_t s1, int64_t i0, int64_t rows,
                                                  int64_t k0, int64_t nk, float *dst) {
    PACK(pack_rows_as, o, strips, s0, s1, i0, rows, k0, nk, dst);
}

static __attribute__((noinline)) void pack_columns(const GemmOperand *o, int64_t j0, int64_t n,
                                                   int64_t k0, int64_t nk, float *dst) {
    PACK(pack_columns_as, o, j0, n, k0, nk, dst);
}
