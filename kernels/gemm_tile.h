// gemm_tile.h - one output tile of a matrix product, written once for every instruction set.
//
// The including file defines the vector: vf (VW floats), VW, and
//   vload vstore vset1 vmul vadd, vfma(a, b, c) = a * b + c, vdot(a, b, c) = c + the products of
//   one unit of a and b per lane;
// a unit being KU consecutive elements of the contraction in 32 bits (1 float, or 2 BF16). It
// defines the micro-kernels' tiles, MR (plain products) or MR_SCALED (FP8) rows x NV vectors, and
// GEMM_TILE, the name of the function made here; and it includes what packs its panels
// (gemm_pack_f32.h, gemm_pack_pairs.h).
//
// The rows of the tile are packed once, for as much of the contraction as the panels hold and for
// all columns: [128 of the contraction][row][AS] units, which are broadcast. NR columns are packed
// at a time, [unit][NR], and used by all rows. Rows are split into strips (a kernel for each
// height), columns are padded with zeros. A strip runs through the panels' whole contraction: a
// plain product's sums stay in registers; an FP8 product's start from zero every 128 and are
// promoted to totals, which stay in registers too where there are 32 of them (IS_HELD). So an
// element's sum is the same operations in the same order wherever it lies.
#include <string.h>

#include "gemm_ends.h"
#include "gemm_engine.h"
#include "gemm_fetch.h"

// How a strip's sums are added up: as they are, times a scale for each row, or times the scales of
// row and column.
typedef enum GemmScaling { UNSCALED, ROWS_SCALED, BOTH_SCALED, SCALINGS } GemmScaling;

// h rows x NR columns, and how they are computed.
typedef struct Strip {
    int64_t slices, last; // slices of 128 of the contraction, units of the last one
    const float *a, *b;   // panels
    int64_t a_step;       // from slice to slice
    const float *sa, *sb; // scales of rows (times that of the columns if they have one) and columns
    int64_t sa_step;
    const float *from; // earlier sums
    int64_t from_ld;
    float *between; // memory for totals between two slices, row stride NR
    float *to;
    int64_t to_ld;
    bool is_added;                    // to what lies at `to`
    const char *output;               // where the rows go in the end, in bytes: the first one,
    int64_t output_step, output_last; // from row to row, the last byte of one
    Fetch *next;
} Strip;

// p += ld, and the compiler must not make a register of each of the rows' addresses.
#define STEP_POINTER(p, ld)                                                                        \
    do {                                                                                           \
        (p) += (ld);                                                                               \
        __asm__("" : "+r"(p));                                                                     \
    } while (0)

INLINE void zero_sums(const int h, vf x[MR][NV]) {
#pragma GCC unroll 16
    for (int r = 0; r < h; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) x[r][v] = vset1(0.0f);
}

INLINE void load_sums(const int h, vf x[MR][NV], const float *from, int64_t ld) {
#pragma GCC unroll 16
    for (int r = 0; r < h; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) x[r][v] = vload(from + v * VW);
        STEP_POINTER(from, ld);
    }
}

INLINE void store_sums(const int h, vf x[MR][NV], float *to, int64_t ld) {
#pragma GCC unroll 16
    for (int r = 0; r < h; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) vstore(to + v * VW, x[r][v]);
        STEP_POINTER(to, ld);
    }
}

INLINE void put_sums(const int h, vf x[MR][NV], const Strip *t) {
    if (t->is_added) {
        const float *old = t->to;
#pragma GCC unroll 16
        for (int r = 0; r < h; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) x[r][v] = vadd(vload(old + v * VW), x[r][v]);
            STEP_POINTER(old, t->to_ld);
        }
    }
    store_sums(h, x, t->to, t->to_ld);
}

// sums += a slice of products.
INLINE void multiply(const int h, vf sums[MR][NV], int64_t nu, const float *a, const float *b) {
    do {
#pragma GCC unroll 8
        for (int i = 0; i < STEP; i++) {
            vf bv[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) bv[v] = vload(b + i * NR + v * VW);
#pragma GCC unroll 16
            for (int r = 0; r < h; r++) {
                vf av = vset1(a[r * AS + i]);
#pragma GCC unroll 4
                for (int v = 0; v < NV; v++) sums[r][v] = vdot(av, bv[v], sums[r][v]);
            }
        }
        a += STEP;
        b += STEP * NR;
        nu -= STEP;
    } while (nu > 0);
}

INLINE void promote(const int h, const GemmScaling scaling, vf totals[MR][NV], vf sums[MR][NV],
                    const float *sa, const float *sb) {
#pragma GCC unroll 16
    for (int r = 0; r < h; r++) {
        vf s = vset1(sa[r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++)
            totals[r][v] = vfma(
                sums[r][v], scaling == ROWS_SCALED ? s : vmul(s, vload(sb + v * VW)), totals[r][v]);
    }
}

INLINE void fetch_output(const int h, const Strip *t) {
    const char *to = t->output;
    for (int r = 0; r < h; r++, to += t->output_step) {
        __builtin_prefetch(to, 1);
        __builtin_prefetch(to + t->output_last, 1);
    }
}

INLINE void kernel(const int h, const GemmScaling scaling, const Strip *t) {
    vf sums[MR][NV], totals[MR][NV];
    const float *a = t->a, *b = t->b, *sa = t->sa, *sb = t->sb, *from = t->from;
    int64_t i = t->slices, ld = t->from_ld;
    if (scaling == UNSCALED)
        load_sums(h, sums, from, ld);
    else if (IS_HELD)
        load_sums(h, totals, from, ld);
    do {
        fetch_next(t->next);
        if (i == 1) fetch_output(h, t);
        if (scaling != UNSCALED) zero_sums(h, sums);
        multiply(h, sums, i > 1 ? AS : t->last, a, b);
        a += t->a_step;
        b += AS * NR;
        if (scaling == UNSCALED) continue;
        if (!IS_HELD) load_sums(h, totals, from, ld);
        promote(h, scaling, totals, sums, sa, sb);
        if (!IS_HELD && i > 1) store_sums(h, totals, t->between, NR);
        from = t->between;
        ld = NR;
        sa += t->sa_step;
        sb += NR;
    } while (--i > 0);
    put_sums(h, scaling == UNSCALED ? sums : totals, t);
}

typedef void (*KernelFn)(const Strip *t);
#define KERNEL_AS(name, h, scaling)                                                                \
    static void name##_##h(const Strip *t) {                                                       \
        kernel(h, scaling, t);                                                                     \
    }
#define KERNEL(h)                                                                                  \
    KERNEL_AS(kernel_plain, h, UNSCALED)                                                           \
    KERNEL_AS(kernel_rows, h, ROWS_SCALED)                                                         \
    KERNEL_AS(kernel_both, h, BOTH_SCALED)
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)
#if MR > 4
KERNEL(5)
KERNEL(6)
#endif
#if MR > 6 // 12, and 7 with scales
KERNEL(7)
KERNEL_AS(kernel_plain, 8, UNSCALED)
KERNEL_AS(kernel_plain, 9, UNSCALED)
KERNEL_AS(kernel_plain, 10, UNSCALED)
KERNEL_AS(kernel_plain, 11, UNSCALED)
KERNEL_AS(kernel_plain, 12, UNSCALED)
#endif
#define ROWS_4(f) NULL, f##1, f##2, f##3, f##4
#if MR == 12
#define ROWS_SOME(f) ROWS_4(f), f##5, f##6, f##7
#define ROWS_ALL(f) ROWS_SOME(f), f##8, f##9, f##10, f##11, f##12
#elif MR == 6
#define ROWS_SOME(f) ROWS_4(f), f##5, f##6
#define ROWS_ALL(f) ROWS_SOME(f)
#else
#define ROWS_SOME(f) ROWS_4(f)
#define ROWS_ALL(f) ROWS_4(f)
#endif
static const KernelFn kernels[SCALINGS][MR + 1] = {
    {ROWS_ALL(kernel_plain_)}, {ROWS_SOME(kernel_rows_)}, {ROWS_SOME(kernel_both_)}};

// One tile on its way: [m0, m0+mn) x [n0, n0+nn), and the part of the contraction in the panels.
typedef struct Work {
    const GemmProblem *p;
    int64_t m0, mn, n0, nn;
    int64_t stride;         // rows of the panel of a
    int64_t slice, slices;  // the first slice of 128 in the panels, and how many
    bool is_first, is_last; // parts of the contraction
    GemmWork *w;
} Work;

static int64_t slice_length(const Work *t, int64_t i) {
    return min_i64(TILE, t->p->k - (t->slice + i) * TILE);
}

// A few rows of the tile in one slice, while the next ones are fetched.
static void pack_some_rows(const Work *t, int64_t r, int64_t i, int64_t next_r, int64_t next_i,
                           int64_t n) {
    const GemmOperand *a = &t->p->a;
    Fetch next = {0};
    if (next_i < t->slices)
        next = piece_of(a, t->m0 + next_r, min_i64(n, t->mn - next_r), (t->slice + next_i) * TILE,
                        slice_length(t, next_i), 1);
    fetch_next(&next);
    pack_a(a, t->m0 + r, min_i64(n, t->mn - r), (t->slice + i) * TILE, slice_length(t, i),
           t->w->a + (i * t->stride + r) * AS);
}

// The rows of the tile, in the order in which they lie in memory.
static void pack_rows(const Work *t) {
    enum { ALONG = 16, ACROSS = 32 };
    const GemmProblem *p = t->p;
    if (p->a.is_k_contig) {
        for (int64_t r = 0; r < t->mn; r += ALONG)
            for (int64_t i = 0; i < t->slices; i++) {
                bool is_end = i + 1 == t->slices;
                pack_some_rows(t, r, i, is_end ? r + ALONG : r, is_end ? 0 : i + 1, ALONG);
            }
    } else {
        for (int64_t i = 0; i < t->slices; i++)
            for (int64_t r = 0; r < t->mn; r += ACROSS) {
                bool is_end = r + ACROSS >= t->mn;
                pack_some_rows(t, r, i, is_end ? 0 : r + ACROSS, is_end ? i + 1 : i, ACROSS);
            }
    }
    for (int64_t i = 0; i < t->slices && gemm_is_fp8(p->a.t); i++)
        pack_scales(&p->a, t->m0, t->mn, (t->slice + i) * TILE, t->w->sa + i * t->stride);
}

// nj columns at j and their scales; if they have only one, the scales of the rows times it.
static GemmScaling pack_columns_at(const Work *t, int64_t j, int64_t nj) {
    const GemmOperand *b = &t->p->b;
    GemmWork *w = t->w;
    bool is_fp8 = gemm_is_fp8(b->t), is_one = b->s_tile != 1 && j / TILE == (j + nj - 1) / TILE;
    for (int64_t i = 0; i < t->slices; i++) {
        int64_t k0 = (t->slice + i) * TILE;
        pack_b(b, j, nj, k0, slice_length(t, i), w->b + i * AS * NR);
        if (!is_fp8) continue;
        float *sb = w->sb + i * NR;
        pack_scales(b, j, is_one ? 1 : nj, k0, sb);
        if (!is_one) continue;
        const float *sa = w->sa + i * t->stride;
        for (int64_t r = 0; r < t->mn; r++) w->s[i * t->stride + r] = sa[r] * sb[0];
    }
    return !is_fp8 ? UNSCALED : is_one ? ROWS_SCALED : BOTH_SCALED;
}

// What is packed after the columns at j: the next ones, or the first ones of the next part of the
// contraction. Across codes, two times NR of them share a cache line: the lines after it are
// fetched in two halves.
static Fetch columns_ahead(const Work *t, int64_t j, int64_t parts) {
    const GemmOperand *b = &t->p->b;
    int64_t k0 = t->slice * TILE, nk = min_i64(t->slices * TILE, t->p->k - k0), n = NR;
    int64_t end = t->n0 + t->nn, next = j + NR;
    if (next >= end) {
        next = t->n0;
        k0 += nk;
        nk = min_i64(t->slices * TILE, t->p->k - k0); // 0 in the last part
    } else if (!b->is_k_contig && gemm_is_fp8(b->t)) {
        int64_t half = nk / 2, pair = j / (2 * NR) * (2 * NR);
        next = pair + 2 * NR;
        n = 2 * NR;
        k0 += j == pair ? 0 : half;
        nk = j == pair ? half : nk - half;
    }
    return piece_of(b, next, nk > 0 ? min_i64(n, end - next) : 0, k0, nk, parts);
}

// n <= NR finished sums to the output; NR can be read.
INLINE void put_row(const GemmProblem *p, int64_t row, int64_t j, int64_t n, const float *c) {
#ifdef STORE_BF16
    if (p->y.t == DT_BF16) {
        STORE_BF16((uint16_t *)p->y.p + row * p->y.ld + j, c, n);
        return;
    }
#endif
    if (n == NR)
        store_row(p, row, j, NR, c);
    else
        store_row(p, row, j, n, c);
}

// All rows x nj columns at j.
static void run_columns(const Work *t, int64_t j, int64_t nj) {
    static const float zeros[NR];
    const GemmProblem *p = t->p;
    GemmWork *w = t->w;
    GemmScaling scaling = pack_columns_at(t, j, nj);
    bool is_to_y = t->is_last && p->y.t == DT_F32 && nj == NR;
    bool is_whole = t->is_first && t->is_last; // else the sums of all columns wait for the rest
    float *c = w->c + (is_whole ? 0 : j - t->n0);
    int64_t c_ld = is_whole ? NR : GEMM_LDC;
    int64_t most = scaling == UNSCALED ? MR : MR_SCALED, strips = ceil_div(t->mn, most);
    int64_t low = t->mn / strips, high = t->mn % strips; // rows of a strip; strips with one more
    int64_t size = p->y.t == DT_F32 ? 4 : 2;
    const char *y = (const char *)p->y.p + j * size;
    Fetch next = columns_ahead(t, j, strips * t->slices);
    for (int64_t s = 0, r = 0, h = 0; s < strips; s++, r += h) {
        h = low + (s < high);
        Strip x = {.slices = t->slices,
                   .last = ceil_div(slice_length(t, t->slices - 1), KU * STEP) * STEP,
                   .a = w->a + r * AS,
                   .b = w->b,
                   .a_step = t->stride * AS,
                   .sa = (scaling == ROWS_SCALED ? w->s : w->sa) + r,
                   .sb = w->sb,
                   .sa_step = t->stride,
                   .from = t->is_first ? zeros : c + r * c_ld,
                   .from_ld = t->is_first ? 0 : c_ld,
                   .between = w->between,
                   .to = is_to_y ? (float *)p->y.p + (t->m0 + r) * p->y.ld + j : c + r * c_ld,
                   .to_ld = is_to_y ? p->y.ld : c_ld,
                   .is_added = is_to_y && p->acc,
                   .output = y + (t->m0 + r) * p->y.ld * size,
                   .output_step = p->y.ld * size,
                   .output_last = nj * size - 1,
                   .next = &next};
        kernels[scaling][h](&x);
        for (int64_t i = r; i < r + h && t->is_last && !is_to_y; i++)
            put_row(p, t->m0 + i, j, nj, c + i * c_ld);
    }
}

// The contraction of p, in parts that the panels hold. begins: no sums wait; ends: none will.
static void run_contraction(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                            bool begins, bool ends, GemmWork *w) {
    int64_t slices = ceil_div(p->k, TILE), stride = ceil_div(mn, 16) * 16;
    int64_t held = min_i64(GEMM_DEPTH / AS, GEMM_PANEL / (stride * AS));
    held = min_i64(slices, held);
    for (int64_t i = 0; i < slices; i += held) {
        bool is_first = begins && i == 0, is_last = ends && i + held >= slices;
        Work t = {p, m0, mn, n0, nn, stride, i, min_i64(held, slices - i), is_first, is_last, w};
        if (held < slices || w->packed != p || w->packed_m0 != m0 || w->packed_mn != mn)
            pack_rows(&t);
        w->packed = held < slices ? NULL : p;
        w->packed_m0 = m0;
        w->packed_mn = mn;
        for (int64_t j = n0; j < n0 + nn; j += NR) run_columns(&t, j, min_i64(NR, n0 + nn - j));
    }
}

void GEMM_TILE(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn, GemmWork *w) {
    static const float zeros[GEMM_NB_WIDE];
    if (p->k == 0)
        for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, zeros);
    memset(w->sb, 0, sizeof w->sb);
    run_contraction(p, m0, mn, n0, nn, true, p->k2 == 0, w);
    if (p->k2 == 0) return;
    GemmProblem second = *p;
    second.a = p->a2;
    second.b = p->b2;
    second.k = p->k2;
    run_contraction(&second, m0, mn, n0, nn, false, true, w);
    w->packed = NULL; // `second` ends here
}

// Peak: as many independent accumulators as the micro-kernel has, nothing from memory.
double GEMM_PEAK(int64_t n, float *sink) {
    vf acc[MR][NV];
    vf x = vset1(sink[0]), y = vset1(sink[1]);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++)
            acc[r][v] = vset1(sink[2] + (float)(r * NV + v)); // all different
    for (int64_t i = 0; i < n; i++) {
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) acc[r][v] = vdot(x, y, acc[r][v]);
    }
    vf sum = vset1(0.0f);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum = vadd(sum, acc[r][v]);
    float out[VW];
    vstore(out, sum);
    sink[7] = out[0];
    return 2.0 * KU * VW * NV * MR * (double)n;
}
