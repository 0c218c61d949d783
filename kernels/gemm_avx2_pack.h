// gemm_avx2_pack.h - the panels of AVX2 products, from operands of any type and orientation.
//
// Rows go to [unit][h], h being the rows of a strip, columns to [unit][16]; a unit is one element
// of the contraction. Included only where <immintrin.h> offers AVX2 and FMA.
#pragma once
#include "gemm_avx2_kernel.h"
#include "gemm_engine.h"
#include "gemm_fetch.h"

#define INLINE static inline __attribute__((always_inline))

INLINE vf vlanes_f32(const void *p) {
    return _mm256_loadu_ps(p);
}
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

#include "gemm_source.h"

// Rows i and i + 4, 16 bytes of each.
INLINE __m256i load_pair(const char *const row[VW], int i, int64_t at) {
    __m128i low = _mm_loadu_si128((const __m128i *)(row[i] + at));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low),
                                   _mm_loadu_si128((const __m128i *)(row[i + 4] + at)), 1);
}

// 32 codes as floats: lane by lane, the codes 0 to 3, 4 to 7, 8 to 11 and 12 to 15. A float has two
// bytes that are not zero. Below 2^-5 a table has them, else they follow from the code by shifts.
INLINE void decode_e4m3(__m256i x, vf out[4]) {
    const __m256i low_high =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, 0x3C,
                                                  0x3C, 0x3C, 0x3C, 0x3C, 0x3C, 0x3C, 0x3C));
    const __m256i low_low = _mm256_broadcastsi128_si256(_mm_setr_epi8(
        0, 0x00, (char)0x80, (char)0xC0, 0x00, 0x20, 0x40, 0x60, (char)0x80, (char)0x90, (char)0xA0,
        (char)0xB0, (char)0xC0, (char)0xD0, (char)0xE0, (char)0xF0));
    __m256i rest = _mm256_and_si256(x, _mm256_set1_epi8(15));
    __m256i top = _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(7));
    __m256i mag = _mm256_and_si256(x, _mm256_set1_epi8(0x7F));
    __m256i is_low = _mm256_cmpeq_epi8(top, _mm256_setzero_si256());
    __m256i is_nan = _mm256_cmpeq_epi8(mag, _mm256_set1_epi8(0x7F));
    __m256i high = _mm256_add_epi8(top, _mm256_set1_epi8(60)), low = _mm256_slli_epi16(rest, 4);
    high = _mm256_blendv_epi8(high, _mm256_shuffle_epi8(low_high, rest), is_low);
    low = _mm256_blendv_epi8(low, _mm256_shuffle_epi8(low_low, rest), is_low);
    high = _mm256_or_si256(high, _mm256_and_si256(is_nan, mag));
    low = _mm256_andnot_si256(_mm256_and_si256(is_nan, _mm256_set1_epi8(0x30)), low);
    high = _mm256_or_si256(high, _mm256_and_si256(x, _mm256_set1_epi8((char)0x80)));
    __m256i zero = _mm256_setzero_si256();
    __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    out[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, first));
    out[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, first));
    out[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, second));
    out[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, second));
}

// 16 bytes of 8 rows each, at `at`, turned: vector k goes to dst + k * step. The lower half of a
// register has rows 0 to 3, the upper one rows 4 to 7, so that nothing crosses.
INLINE void turn_e4m3(const char *const row[VW], int64_t at, float *dst, int64_t step) {
    __m256i r0 = load_pair(row, 0, at), r1 = load_pair(row, 1, at);
    __m256i r2 = load_pair(row, 2, at), r3 = load_pair(row, 3, at);
    __m256i a = _mm256_unpacklo_epi8(r0, r2), b = _mm256_unpacklo_epi8(r1, r3);
    __m256i c = _mm256_unpackhi_epi8(r0, r2), d = _mm256_unpackhi_epi8(r1, r3);
    __m256i q[4] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b),
                    _mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vf x[4];
        decode_e4m3(q[i], x);
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) vstore(dst + (4 * i + j) * step, x[j]);
    }
}
INLINE void turn_bf16(const char *const row[VW], int64_t at, float *dst, int64_t step) {
    __m256i r0 = load_pair(row, 0, at), r1 = load_pair(row, 1, at);
    __m256i r2 = load_pair(row, 2, at), r3 = load_pair(row, 3, at), zero = _mm256_setzero_si256();
    __m256i a = _mm256_unpacklo_epi16(r0, r2), b = _mm256_unpacklo_epi16(r1, r3);
    __m256i c = _mm256_unpackhi_epi16(r0, r2), d = _mm256_unpackhi_epi16(r1, r3);
    __m256i q[4] = {_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b),
                    _mm256_unpacklo_epi16(c, d), _mm256_unpackhi_epi16(c, d)};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vstore(dst + 2 * i * step, _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, q[i])));
        vstore(dst + (2 * i + 1) * step, _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, q[i])));
    }
}
INLINE void turn_f32(const char *const row[VW], int64_t at, float *dst, int64_t step) {
    vf r0 = _mm256_castsi256_ps(load_pair(row, 0, at));
    vf r1 = _mm256_castsi256_ps(load_pair(row, 1, at));
    vf r2 = _mm256_castsi256_ps(load_pair(row, 2, at));
    vf r3 = _mm256_castsi256_ps(load_pair(row, 3, at));
    vf a = _mm256_unpacklo_ps(r0, r1), b = _mm256_unpacklo_ps(r2, r3);
    vf c = _mm256_unpackhi_ps(r0, r1), d = _mm256_unpackhi_ps(r2, r3);
    vstore(dst, _mm256_shuffle_ps(a, b, 0x44));
    vstore(dst + step, _mm256_shuffle_ps(a, b, 0xEE));
    vstore(dst + 2 * step, _mm256_shuffle_ps(c, d, 0x44));
    vstore(dst + 3 * step, _mm256_shuffle_ps(c, d, 0xEE));
}
INLINE void turn_e5m2(const char *const row[VW], int64_t at, float *dst, int64_t step) {
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += VW) {
        vf x[VW];
#pragma GCC unroll 8
        for (int j = 0; j < VW; j++) x[j] = vlanes_e5m2(row[j] + at + i);
        vtranspose(x);
#pragma GCC unroll 8
        for (int j = 0; j < VW; j++) vstore(dst + (i + j) * step, x[j]);
    }
}
INLINE void turn_16_bytes(GemmSrc t, const char *const row[VW], int64_t at, float *dst,
                          int64_t step) {
    if (t == SRC_E4M3)
        turn_e4m3(row, at, dst, step);
    else if (t == SRC_BF16)
        turn_bf16(row, at, dst, step);
    else if (t == SRC_F32)
        turn_f32(row, at, dst, step);
    else
        turn_e5m2(row, at, dst, step);
}

// 8 outer indices, of which n > 0 exist (the last one stands for the others), x nk elements at k0:
// vector k goes to dst + k * step, and zeros follow up to a multiple of 16 bytes and of STEP.
INLINE void turn_lanes(GemmSrc t, const GemmOperand *o, int64_t outer, int64_t n, int64_t k0,
                       int64_t nk, float *dst, int64_t step) {
    enum { SPAN = 32 };
    const char *row[VW];
    for (int j = 0; j < VW; j++) row[j] = element(o, t, true, outer + (j < n ? j : n - 1), k0);
    const int64_t size = src_bytes(t), each = 16 / size;
    int64_t k = 0;
    for (; k + each <= nk; k += each) turn_16_bytes(t, row, k * size, dst + k * step, step);
    if (k >= nk && k % STEP == 0) return;
    char pad[VW][SPAN] = {{0}};
    for (int j = 0; j < VW; j++) {
        memcpy(pad[j], row[j] + k * size, (size_t)((nk - k) * size));
        row[j] = pad[j];
    }
    turn_16_bytes(t, row, 0, dst + k * step, step);
    k += each;
    if (k % STEP) turn_16_bytes(t, row, 16, dst + k * step, step);
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

// Two units of 16 codes: columns 0 to 7 and 8 to 15 of each.
INLINE void widen_e4m3(const char *p, int64_t ld, float *dst) {
    const __m256i order = _mm256_setr_epi32(0, 4, 2, 6, 1, 5, 3, 7);
    __m128i one = _mm_loadu_si128((const __m128i *)p);
    __m128i two = _mm_loadu_si128((const __m128i *)(p + ld));
    __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(one), two, 1);
    vf x[4];
    decode_e4m3(_mm256_permutevar8x32_epi32(both, order), x);
    vstore(dst, x[0]);
    vstore(dst + VW, x[2]);
    vstore(dst + COLUMNS, x[1]);
    vstore(dst + COLUMNS + VW, x[3]);
}

// n columns x nk elements of an operand -> panels dst [n / 16][PANEL_DEPTH][16] of units; what is
// in columns past n is of no account.
enum { COLUMN_PANEL = PANEL_DEPTH * COLUMNS + COLUMNS }; // panels share no cache set
INLINE void pack_columns_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, int64_t j0,
                            int64_t n, int64_t k0, int64_t nk, float *dst) {
    if (is_k_contig) {
        for (int64_t v = 0; v < n; v += VW)
            turn_lanes(t, o, j0 + v, n - v, k0, nk, dst + v / COLUMNS * COLUMN_PANEL + v % COLUMNS,
                       COLUMNS);
        return;
    }
    const int64_t size = src_bytes(t), units = t == SRC_E4M3 ? 2 : 1;
    for (int64_t k = 0; k < nk; k += units) {
        const char *p = element(o, t, false, j0, k0 + k);
        float *to = dst + k * COLUMNS;
        int64_t j = 0;
        for (; j + COLUMNS <= n && k + units <= nk;
             j += COLUMNS, p += COLUMNS * size, to += COLUMN_PANEL) {
            if (t == SRC_E4M3) {
                widen_e4m3(p, o->ld, to);
            } else {
                vstore(to, decode_lanes(t, p));
                vstore(to + VW, decode_lanes(t, p + VW * size));
            }
        }
        for (; j < n; j += COLUMNS, p += COLUMNS * size, to += COLUMN_PANEL)
            for (int64_t u = 0; u < units && k + u < nk; u++)
                for (int64_t v = 0; v < COLUMNS; v += VW)
                    vstore(to + u * COLUMNS + v,
                           load_lanes(t, p + u * o->ld + v * size, n - j - v));
    }
    for (int64_t k = nk; k % STEP; k++)
        for (int64_t v = 0; v < n; v += VW)
            vstore(dst + v / COLUMNS * COLUMN_PANEL + k * COLUMNS + v % COLUMNS, vset1(0.0f));
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
