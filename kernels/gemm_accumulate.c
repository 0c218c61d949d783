// gemm_accumulate.c - FP8 output tiles summed otherwise than the tile functions do it: one FP32
// sum, the 14-bit sums of a tensor core, other promotion intervals. gemm.h has the definitions.
//
// Compiled once per instruction set (GEMM_ACCUMULATE is the name of its function); lanes are
// columns of the output, so an element's sum never depends on them, and nothing here rounds
// differently with wider vectors. A unit of 14 bits and the 33 values of a cut sum make integers
// below 2^20: they are added as such, exactly.
#include "fp8.h"
#include "gemm_ends.h"
#include "gemm_engine.h"

// Columns computed together: one register.
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

enum {
    CUT = GEMM_CUT_EVERY,      // elements of one cut sum
    BITS = 14,                 // significant bits that are left
    EXPONENT = 0x7F800000,     // the exponent field of a float; all ones = not finite
    LOWEST = (127 - 113) << 23 // field of the lowest exponent that sets a unit
};

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

static inline bool is_any(const vi *x) {
    uint64_t w[sizeof *x / 8], any = 0;
    memcpy(w, x, sizeof w);
    for (size_t i = 0; i < sizeof w / sizeof *w; i++) any |= w[i];
    return any != 0;
}

// Lanes in which a value is not finite take no part, so that no conversion overflows; they become
// NaN.
static __attribute__((noinline)) void drop_lanes(vf *v, int64_t n, vf *sum, vi *e, const vi *bad) {
    for (int64_t k = 0; k < n; k++) v[k] = (vf)((vi)v[k] & ~*bad);
    *sum = (vf)((vi)*sum & ~*bad);
    *e = (*e & ~*bad) | (LOWEST & *bad);
}

// sum = the cut sum of itself and n <= CUT values; v may be changed.
static inline void add_cut(vf *sum, vf *v, int64_t n) {
    vi e = (vi)*sum & EXPONENT;
    for (int64_t k = 0; k < n; k++) {
        vi x = (vi)v[k] & EXPONENT, above = x > e;
        e = (x & above) | (e & ~above);
    }
    vi low = e < LOWEST, bad = e == EXPONENT;
    e = (LOWEST & low) | (e & ~low);
    bool is_bad = is_any(&bad);
    if (__builtin_expect(is_bad, 0)) drop_lanes(v, n, sum, &e, &bad);
    vi unit = e - ((BITS - 1) << 23), inverse = (254 << 23) - unit; // as floats: 2^(e-13), 2^(13-e)
    vi q = __builtin_convertvector(*sum * (vf)inverse, vi);         // toward zero
    for (int64_t k = 0; k < n; k++) q += __builtin_convertvector(v[k] * (vf)inverse, vi);
    *sum = __builtin_convertvector(q, vf) * (vf)unit;
    if (__builtin_expect(is_bad, 0)) *sum = (vf)((vi)*sum | (0x7FC00000 & bad));
}

// One row of a against a panel of b, at most 128 elements of the contraction. part: the running sum
// since the last promotion, total: what was promoted. ends[g]: a promotion follows the g-th CUT
// elements. is_scaled: the scale s is in the products, not in the promotion.
static inline __attribute__((always_inline)) void row_slice(const bool is_cut, const bool is_scaled,
                                                            const float *a, const float *b,
                                                            int64_t nk, const bool *ends,
                                                            const vf *s, vf *part, vf *total) {
    vf one = {0}, sum = *part;
    one += 1.0f;
    vf early = is_scaled ? *s : one, late = is_scaled ? one : *s;
    for (int64_t k = 0; k < nk; k += CUT) {
        int64_t n = min_i64(CUT, nk - k);
        vf v[CUT];
        for (int64_t i = 0; i < n; i++) {
            vf x;
            memcpy(&x, b + (k + i) * LANES, sizeof x);
            x *= a[k + i];
            if (is_scaled) x *= early;
            if (is_cut)
                v[i] = x;
            else
                sum += x;
        }
        if (is_cut) add_cut(&sum, v, n);
        if (!ends[k / CUT]) continue;
        *total += sum * late; // times 1 is exact
        sum = (vf){0};
    }
    *part = sum;
}

typedef struct Slice {
    int64_t rows, nk;
    const float *a, *b, *sa, *sb; // [rows][TILE], [nk][LANES], scales
    const bool *ends;
    float *part, *total; // [rows][GEMM_LDC], LANES of them
} Slice;

static inline __attribute__((always_inline)) void slice_rows(const bool is_cut,
                                                             const bool is_scaled, const Slice *t) {
    vf sb;
    memcpy(&sb, t->sb, sizeof sb);
    for (int64_t r = 0; r < t->rows; r++) {
        float *at_part = t->part + r * GEMM_LDC, *at_total = t->total + r * GEMM_LDC;
        vf s = sb * t->sa[r], part, total;
        memcpy(&part, at_part, sizeof part);
        memcpy(&total, at_total, sizeof total);
        row_slice(is_cut, is_scaled, t->a + r * TILE, t->b, t->nk, t->ends, &s, &part, &total);
        memcpy(at_part, &part, sizeof part);
        memcpy(at_total, &total, sizeof total);
    }
}

// rows x nk elements of an operand as floats: dst[row * row_step + k * k_step].
static inline __attribute__((always_inline)) void
decode_as(const bool is_e5m2, const GemmOperand *o, int64_t outer, int64_t rows, int64_t k0,
          int64_t nk, float *dst, int64_t row_step, int64_t k_step) {
    const uint8_t *q = o->p;
    int64_t outer_ld = o->is_k_contig ? o->ld : 1, k_ld = o->is_k_contig ? 1 : o->ld;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < nk; k++) {
            uint8_t code = q[(outer + r) * outer_ld + (k0 + k) * k_ld];
            dst[r * row_step + k * k_step] = is_e5m2 ? f32_from_e5m2(code) : f32_from_e4m3(code);
        }
}

static void decode(const GemmOperand *o, int64_t outer, int64_t rows, int64_t k0, int64_t nk,
                   float *dst, int64_t row_step, int64_t k_step) {
    if (o->t == SRC_E5M2)
        decode_as(true, o, outer, rows, k0, nk, dst, row_step, k_step);
    else
        decode_as(false, o, outer, rows, k0, nk, dst, row_step, k_step);
}

void GEMM_ACCUMULATE(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                     GemmWork *w, GemmAccumulate how, int64_t every) {
    bool is_cut = how == GEMM_HOPPER14 || how == GEMM_PROMOTE128_HOPPER14;
    bool is_whole = how == GEMM_HOPPER14 || how == GEMM_FP32; // no promotion but the one at the end
    bool is_scaled = is_whole || TILE % every != 0;
    float *totals = w->c, *parts = w->c + (int64_t)(GEMM_MB / 2) * GEMM_LDC;
    size_t row_bytes = (size_t)(ceil_div(nn, LANES) * LANES) * sizeof *w->c;
    for (int64_t r = 0; r < mn; r++) {
        memset(totals + r * GEMM_LDC, 0, row_bytes);
        memset(parts + r * GEMM_LDC, 0, row_bytes);
    }
    for (int64_t k0 = 0; k0 < p->k; k0 += TILE) {
        int64_t nk = min_i64(TILE, p->k - k0);
        bool ends[TILE / CUT];
        for (int g = 0; g < TILE / CUT; g++) {
            int64_t end = k0 + (g + 1) * CUT;
            ends[g] = end >= p->k || (!is_whole && end % every == 0);
        }
        decode(&p->a, m0, mn, k0, nk, w->a, TILE, 1);
        pack_scales(&p->a, m0, mn, k0, w->sa);
        for (int64_t j = 0; j < nn; j += LANES) {
            int64_t nj = min_i64(LANES, nn - j);
            if (nj < LANES) { // columns past the last are zeros
                memset(w->b, 0, sizeof w->b);
                memset(w->sb, 0, sizeof w->sb);
            }
            decode(&p->b, n0 + j, nj, k0, nk, w->b, 1, LANES);
            pack_scales(&p->b, n0 + j, nj, k0, w->sb);
            Slice t = {mn, nk, w->a, w->b, w->sa, w->sb, ends, parts + j, totals + j};
            if (is_cut && is_scaled)
                slice_rows(true, true, &t);
            else if (is_cut)
                slice_rows(true, false, &t);
            else if (is_scaled)
                slice_rows(false, true, &t);
            else
                slice_rows(false, false, &t);
        }
    }
    for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, totals + r * GEMM_LDC);
}
