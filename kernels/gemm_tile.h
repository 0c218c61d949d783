// gemm_tile.h - one output tile of a matrix product, written once for every instruction set.
//
// The including file defines the vector: vf (VW floats), VW, and
//   vload vstore vset1 vmul vadd, vfma(a, b, c) = a * b + c, vdot(a, b, c) = c + the products of one
//   unit of a and b per lane;
// a unit being KU consecutive elements of the contraction in 32 bits (1 float, or 2 BF16). It defines
// the micro-kernel's tile, MR rows x NV vectors, and GEMM_TILE, the name of the function made here;
// and it includes what packs its panels (gemm_pack_f32.h, gemm_pack_pairs.h).
//
// The rows of the tile are packed once, for as much of the contraction as the panel holds and for
// all columns: a is [128 of the contraction][row][AS] units and is broadcast. Columns are packed NR
// x 128 at a time, [unit][NR], into memory that stays in the first-level cache while all rows use
// them. Rows are split into strips of at most MR (a kernel for each height), columns are padded with
// zeros. Every 128 of the contraction a strip's sums start from zero and are added to what there is,
// so an element's sum is the same operations in the same order wherever it lies.
#include <string.h>

#include "gemm_ends.h"
#include "gemm_engine.h"

// How a strip's sums are added up: as they are, times a scale for each row, or times the scales of
// row and column.
typedef enum GemmScaling { UNSCALED, ROWS_SCALED, BOTH_SCALED, SCALINGS } GemmScaling;

// Where sums come from and go to.
typedef struct GemmFlow {
    const float *from; // earlier sums
    int64_t from_ld;
    float *to;
    int64_t to_ld;
} GemmFlow;

// p += ld, and the compiler must not make a register of each of the rows' addresses.
#define STEP_POINTER(p, ld)                                                                        \
    do {                                                                                           \
        (p) += (ld);                                                                               \
        __asm__("" : "+r"(p));                                                                     \
    } while (0)

INLINE void put_strip(const int h, const GemmScaling scaling, vf acc[MR][NV], const GemmFlow *flow,
                      const float *sa, const float *sb) {
    const float *from = flow->from;
    float *to = flow->to;
    int64_t from_ld = flow->from_ld, to_ld = flow->to_ld;
#pragma GCC unroll 16
    for (int r = 0; r < h; r++) {
        vf s = vset1(scaling == UNSCALED ? 0.0f : sa[r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            vf sum = vload(from + v * VW);
            if (scaling == UNSCALED)
                acc[r][v] = vadd(sum, acc[r][v]);
            else if (scaling == ROWS_SCALED)
                acc[r][v] = vfma(acc[r][v], s, sum);
            else
                acc[r][v] = vfma(acc[r][v], vmul(s, vload(sb + v * VW)), sum);
        }
        STEP_POINTER(from, from_ld);
    }
    // All loads are under way before the first store.
#pragma GCC unroll 16
    for (int r = 0; r < h; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) vstore(to + v * VW, acc[r][v]);
        STEP_POINTER(to, to_ld);
    }
}

// h rows x NR columns, at most 128 of the contraction.
INLINE void kernel(const int h, const GemmScaling scaling, int64_t nu, const float *a,
                   const float *b, const GemmFlow *f, const float *sa, const float *sb) {
    vf acc[MR][NV];
#pragma GCC unroll 16
    for (int r = 0; r < h; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) acc[r][v] = vset1(0.0f);
    for (int64_t u = 0; u < nu; u += STEP, a += STEP, b += STEP * NR) {
#pragma GCC unroll 8
        for (int i = 0; i < STEP; i++) {
            vf bv[NV];
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) bv[v] = vload(b + i * NR + v * VW);
#pragma GCC unroll 16
            for (int r = 0; r < h; r++) {
                vf av = vset1(a[r * AS + i]);
#pragma GCC unroll 4
                for (int v = 0; v < NV; v++) acc[r][v] = vdot(av, bv[v], acc[r][v]);
            }
        }
    }
    put_strip(h, scaling, acc, f, sa, sb);
}

typedef void (*KernelFn)(int64_t nu, const float *a, const float *b, const GemmFlow *f,
                         const float *sa, const float *sb);
#define KERNEL_AS(name, h, scaling)                                                                \
    static void name##_##h(int64_t nu, const float *a, const float *b, const GemmFlow *f,          \
                           const float *sa, const float *sb) {                                     \
        kernel(h, scaling, nu, a, b, f, sa, sb);                                                   \
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
#if MR > 6
KERNEL(7)
KERNEL(8)
KERNEL(9)
KERNEL(10)
KERNEL(11)
KERNEL(12)
#endif
#define ROWS_4(f) NULL, f##1, f##2, f##3, f##4
#if MR == 12
#define ROWS(f) ROWS_4(f), f##5, f##6, f##7, f##8, f##9, f##10, f##11, f##12
#elif MR == 6
#define ROWS(f) ROWS_4(f), f##5, f##6
#else
#define ROWS(f) ROWS_4(f)
#endif
static const KernelFn kernels[SCALINGS][MR + 1] = {
    {ROWS(kernel_plain_)}, {ROWS(kernel_rows_)}, {ROWS(kernel_both_)}};

// Cache lines of the columns that are packed next: the part-th of `parts` pieces of them. Inline, because
// gcc drops calls of a function that does nothing but this.
INLINE void prefetch_columns(const GemmOperand *o, int64_t j0, int64_t n, int64_t k0, int64_t nk,
                             int64_t part, int64_t parts) {
    enum { LINE = 64 };
    int64_t size = o->t == SRC_F32 ? 4 : o->t == SRC_BF16 ? 2 : 1;
    int64_t rows = o->is_k_contig ? n : nk, bytes = (o->is_k_contig ? nk : n) * size;
    const char *p = (const char *)o->p + (o->is_k_contig ? j0 * o->ld + k0 : k0 * o->ld + j0) * size;
    for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; r++)
        for (int64_t at = 0; at < bytes; at += LINE) __builtin_prefetch(p + r * o->ld * size + at);
}

// One tile on its way: [m0, m0+mn) x [n0, n0+nn), and the part of the contraction in the panel.
typedef struct Work {
    const GemmProblem *p;
    int64_t m0, mn, n0, nn;
    int64_t stride;       // rows of the panel
    int64_t slice, slices; // the first slice of 128 in the panel, and how many
    bool is_first, is_last; // parts of the contraction
    float *c;              // sums that are not in y yet
    int64_t c_ld;
    GemmWork *w;
} Work;

static void pack_rows(const Work *t) {
    const GemmProblem *p = t->p;
    for (int64_t i = 0; i < t->slices; i++) {
        int64_t k0 = (t->slice + i) * TILE;
        pack_a(&p->a, t->m0, t->mn, k0, min_i64(TILE, p->k - k0), t->w->a + i * t->stride * AS);
        if (gemm_is_fp8(p->a.t)) pack_scales(&p->a, t->m0, t->mn, k0, t->w->sa + i * t->stride);
    }
}

// The scales of nj columns at j and, if they have only one, of the rows times it.
static GemmScaling scale_columns(const Work *t, int64_t j, int64_t nj, int64_t i) {
    const GemmOperand *b = &t->p->b;
    GemmWork *w = t->w;
    if (!gemm_is_fp8(b->t)) return UNSCALED;
    pack_scales(b, j, nj, (t->slice + i) * TILE, w->sb);
    if (b->s_tile == 1 || j / TILE != (j + nj - 1) / TILE) return BOTH_SCALED;
    float sb = w->sb[0];
    for (int64_t r = 0; r < t->mn; r++) w->s[r] = w->sa[i * t->stride + r] * sb;
    return ROWS_SCALED;
}

// Cache lines of the output: rows [row, row+h) x nj columns at j, to be written soon.
INLINE void prefetch_output(const GemmProblem *p, int64_t row, int64_t h, int64_t j, int64_t nj) {
    int64_t size = p->y.t == DT_F32 ? 4 : 2;
    char *y = (char *)p->y.p + (row * p->y.ld + j) * size;
    for (int64_t r = 0; r < h; r++, y += p->y.ld * size) {
        __builtin_prefetch(y, 1);
        if (nj * size > 64) __builtin_prefetch(y + nj * size - 1, 1);
    }
}

// The finished sums of nj columns at j go to the output.
static void put_columns(const Work *t, int64_t j, int64_t nj, const float *c) {
    enum { AHEAD = 4 }; // rows; of rows that a large power of two lies between, a cache holds few more
    const GemmProblem *p = t->p;
    for (int64_t r = 0; r < t->mn; r++) {
        if (r + AHEAD < t->mn) prefetch_output(p, t->m0 + r + AHEAD, 1, j, nj);
        if (nj == NR)
            store_row(p, t->m0 + r, j, NR, c + r * t->c_ld);
        else
            store_row(p, t->m0 + r, j, nj, c + r * t->c_ld);
    }
}

// All rows x nj columns at j, the i-th slice of the panel.
static void run_columns(const Work *t, int64_t j, int64_t nj, int64_t i) {
    static const float zeros[NR];
    const GemmProblem *p = t->p;
    GemmWork *w = t->w;
    int64_t k0 = (t->slice + i) * TILE, nu = ceil_div(min_i64(TILE, p->k - k0), KU * STEP) * STEP;
    pack_b(&p->b, j, nj, k0, min_i64(TILE, p->k - k0), w->b);
    GemmScaling scaling = scale_columns(t, j, nj, i);
    const float *sa = scaling == ROWS_SCALED ? w->s : w->sa + i * t->stride;
    int64_t next_j = i + 1 < t->slices ? j : j + nj;
    int64_t next_k = i + 1 < t->slices ? k0 + TILE : t->slice * TILE;
    int64_t next_n = min_i64(NR, t->n0 + t->nn - next_j), next_nk = min_i64(TILE, p->k - next_k);
    bool is_begin = t->is_first && i == 0, is_end = t->is_last && i + 1 == t->slices;
    float *c = t->c + (t->is_first && t->is_last ? 0 : j - t->n0);
    int64_t strips = ceil_div(t->mn, MR), early = min_i64(strips, 6);
    int64_t low = t->mn / strips, high = t->mn % strips; // rows of a strip; strips with one more
    for (int64_t s = 0, r = 0, h = 0; s < strips; s++, r += h) {
        h = low + (s < high);
        GemmFlow f = {c + r * t->c_ld, t->c_ld, c + r * t->c_ld, t->c_ld};
        if (is_begin) f.from = zeros, f.from_ld = 0;
        if (is_end) prefetch_output(p, t->m0 + r, h, j, nj);
        if (s < early && next_n > 0)
            prefetch_columns(&p->b, next_j, next_n, next_k, next_nk, s, early);
        kernels[scaling][h](nu, w->a + (i * t->stride + r) * AS, w->b, &f, sa + r, w->sb);
    }
    if (is_end) put_columns(t, j, nj, c);
}

void GEMM_TILE(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn, GemmWork *w) {
    static const float zeros[GEMM_NB_WIDE];
    int64_t slices = ceil_div(p->k, TILE), stride = ceil_div(mn, 32) * 32;
    int64_t held = min_i64(slices, GEMM_PANEL / (stride * AS));
    if (slices == 0)
        for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, zeros);
    memset(w->sb, 0, sizeof w->sb);
    for (int64_t i = 0; i < slices; i += held) {
        Work t = {p, m0, mn, n0, nn, stride, i, min_i64(held, slices - i), i == 0, i + held >= slices,
                  w->c, held == slices ? NR : GEMM_LDC, w};
        if (held < slices || w->packed != p || w->packed_m0 != m0 || w->packed_mn != mn) pack_rows(&t);
        w->packed = held < slices ? NULL : p;
        w->packed_m0 = m0;
        w->packed_mn = mn;
        for (int64_t j = n0; j < n0 + nn; j += NR)
            for (int64_t s = 0; s < t.slices; s++) run_columns(&t, j, min_i64(NR, n0 + nn - j), s);
    }
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
