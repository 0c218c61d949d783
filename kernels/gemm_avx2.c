// gemm_avx2.c - output tiles with AVX2 and FMA: FP32 multiply-adds, 6 x 16.
//
// The contraction goes in parts of 256: the columns of the tile are packed once for each, 16 at a
// time, 16 KiB, just before the first rows need them; the rows in blocks of up to 120, 124 KiB, a
// quarter of a second-level cache of 512 KiB. Rows are split into strips of 6 or less, a kernel for
// each height. A plain product's sums stay in registers for a part and wait in memory for the next
// one; an FP8 product's start from zero every 128 and are promoted to totals in memory. So an
// element's sum is the same operations in the same order wherever it lies.
//
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only names that are never called are left.
#include "gemm_engine.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

#include "gemm_avx2_pack.h"
#include "gemm_ends.h"

enum {
    BLOCK = 20,                           // strips of a block of rows
    SLICES = PANEL_DEPTH / TILE,          // of a part of the contraction
    SUMS_LD = GEMM_WIDE_COLUMNS + COLUMNS // row stride of the sums that wait: no power of two
};

// What one thread works in: GemmWork.wide.
typedef struct Room {
    float rows[BLOCK * PANEL];
    float columns[GEMM_WIDE_COLUMNS / COLUMNS][COLUMN_PANEL];
    float sums[GEMM_WIDE_ROWS * SUMS_LD];
    float row_scales[SLICES][GEMM_WIDE_ROWS];
    float column_scales[SLICES][GEMM_WIDE_COLUMNS];
    float products[SLICES][BLOCK * STRIP]; // scales of the rows times that of the columns
    float between[STRIP * COLUMNS];
    float last[STRIP * COLUMNS]; // sums of less than 16 columns
} Room;
_Static_assert(sizeof(Room) <= GEMM_WIDE_BYTES, "the room of a thread");

// How a strip's sums are added up: as they are, times a scale for each row, or times the scales of
// row and column.
typedef enum Scaling { UNSCALED, ROWS_SCALED, BOTH_SCALED, SCALINGS } Scaling;

// Where a strip's sums go: into memory as they are, added to what is there, or rounded to BF16.
typedef enum End { END_F32, END_ADDED, END_BF16 } End;

// One strip: h rows x 16 columns.
typedef struct Job {
    int64_t slices, last; // slices of 128 of the contraction, units of the last one
    const float *a, *b;   // panels
    const float *sa, *sb; // scales of rows (times that of the columns if they have one) and columns
    int64_t sa_step, sb_step;
    const float *from; // earlier sums
    int64_t from_ld;
    float *between; // memory for totals between two slices
    char *to;
    int64_t to_step; // bytes from row to row
    End end;
    Fetch *next;
} Job;

// p += ld, and the compiler must not make a register of each of the rows' addresses.
#define STEP_POINTER(p, ld)                                                                        \
    do {                                                                                           \
        (p) += (ld);                                                                               \
        __asm__("" : "+r"(p));                                                                     \
    } while (0)

INLINE void load_sums(const int h, vf x[STRIP][2], const float *from, int64_t ld) {
#pragma GCC unroll 6
    for (int r = 0; r < h; r++) {
        x[r][0] = vload(from);
        x[r][1] = vload(from + VW);
        STEP_POINTER(from, ld);
    }
}
INLINE void store_sums(const int h, vf x[STRIP][2], float *to, int64_t ld) {
#pragma GCC unroll 6
    for (int r = 0; r < h; r++) {
        vstore(to, x[r][0]);
        vstore(to + VW, x[r][1]);
        STEP_POINTER(to, ld);
    }
}

// 8 sums as BF16 in the lower halves of the lanes, as bf16_from_f32 but for NaN.
INLINE __m256i round_bf16(vf x) {
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    u = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd);
    return _mm256_srli_epi32(u, 16);
}

// The same with NaN. (Vectors by value: an array whose address is known stays in memory.)
static __attribute__((noinline)) void put_row_bf16(uint16_t *to, vf x, vf y) {
    float c[COLUMNS];
    vstore(c, x);
    vstore(c + VW, y);
    for (int j = 0; j < COLUMNS; j++) to[j] = bf16_from_f32(c[j]);
}

INLINE void put_bf16(const int h, vf x[STRIP][2], const Job *t) {
    char *to = t->to;
    vf is_nan = _mm256_cmp_ps(x[0][0], x[0][1], _CMP_UNORD_Q);
#pragma GCC unroll 6
    for (int r = 1; r < h; r++)
        is_nan = _mm256_or_ps(is_nan, _mm256_cmp_ps(x[r][0], x[r][1], _CMP_UNORD_Q));
    if (__builtin_expect(_mm256_movemask_ps(is_nan), 0)) {
#pragma GCC unroll 6
        for (int r = 0; r < h; r++, to += t->to_step)
            put_row_bf16((uint16_t *)to, x[r][0], x[r][1]);
        return;
    }
#pragma GCC unroll 6
    for (int r = 0; r < h; r++, to += t->to_step) {
        __m256i both = _mm256_packus_epi32(round_bf16(x[r][0]), round_bf16(x[r][1]));
        _mm256_storeu_si256((__m256i *)to, _mm256_permute4x64_epi64(both, 0xD8));
    }
}

INLINE void put_sums(const int h, vf x[STRIP][2], const Job *t) {
    if (t->end == END_BF16) {
        put_bf16(h, x, t);
        return;
    }
    const float *old = (const float *)t->to;
    int64_t ld = t->to_step / (int64_t)sizeof *old;
#pragma GCC unroll 6
    for (int r = 0; r < h; r++) {
        if (t->end != END_ADDED) break;
        x[r][0] = vadd(vload(old), x[r][0]);
        x[r][1] = vadd(vload(old + VW), x[r][1]);
        STEP_POINTER(old, ld);
    }
    store_sums(h, x, (float *)t->to, ld);
}

// sums = sums times their scales + what lies at `from`.
INLINE void promote(const int h, const Scaling scaling, vf sums[STRIP][2], const float *sa,
                    const float *sb, const float *from, int64_t ld) {
#pragma GCC unroll 6
    for (int r = 0; r < h; r++) {
        vf s = vset1(sa[r]);
        sums[r][0] = vfma(sums[r][0], scaling == ROWS_SCALED ? s : vmul(s, vload(sb)), vload(from));
        sums[r][1] = vfma(sums[r][1], scaling == ROWS_SCALED ? s : vmul(s, vload(sb + VW)),
                          vload(from + VW));
        STEP_POINTER(from, ld);
    }
}

// Where the sums of this strip or a later one go is written soon, and where the next one's come
// from is read.
INLINE void ask_for_ends(const int h, const Job *t) {
    const char *to = t->to, *from = (const char *)(t->from + h * t->from_ld);
#pragma GCC unroll 6
    for (int r = 0; r < h; r++) {
        __builtin_prefetch(to, 1);
        STEP_POINTER(to, t->to_step);
    }
    if (t->from_ld == 0) return;
#pragma GCC unroll 6
    for (int r = 0; r < h; r++) {
        __builtin_prefetch(from);
        STEP_POINTER(from, t->from_ld * 4);
    }
}

INLINE void kernel(const int h, const Scaling scaling, const Job *t) {
    vf sums[STRIP][2];
    const float *a = t->a, *b = t->b, *sa = t->sa, *sb = t->sb, *from = t->from;
    int64_t ld = t->from_ld, i = t->slices;
    ask_for_ends(h, t);
    if (scaling == UNSCALED) load_sums(h, sums, from, ld);
    while (true) {
        fetch_next(t->next);
#pragma GCC unroll 6
        for (int r = 0; r < h && scaling != UNSCALED; r++) sums[r][0] = sums[r][1] = vset1(0.0f);
        multiply(h, sums, i > 1 ? TILE : t->last, a, b);
        if (scaling != UNSCALED) promote(h, scaling, sums, sa, sb, from, ld);
        if (i == 1) break;
        i--;
        a += TILE * h;
        b += TILE * COLUMNS;
        if (scaling == UNSCALED) continue;
        store_sums(h, sums, t->between, COLUMNS);
        from = t->between;
        ld = COLUMNS;
        sa += t->sa_step;
        sb += t->sb_step;
    }
    put_sums(h, sums, t);
}

typedef void (*KernelFn)(const Job *t);
#define KERNEL(h)                                                                                  \
    static void kernel_plain_##h(const Job *t) {                                                   \
        kernel(h, UNSCALED, t);                                                                    \
    }                                                                                              \
    static void kernel_rows_##h(const Job *t) {                                                    \
        kernel(h, ROWS_SCALED, t);                                                                 \
    }                                                                                              \
    static void kernel_both_##h(const Job *t) {                                                    \
        kernel(h, BOTH_SCALED, t);                                                                 \
    }
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)
KERNEL(5)
KERNEL(6)
#define HEIGHTS(f)                                                                                 \
    { NULL, f##1, f##2, f##3, f##4, f##5, f##6 }
static const KernelFn kernels[SCALINGS][STRIP + 1] = {HEIGHTS(kernel_plain_), HEIGHTS(kernel_rows_),
                                                      HEIGHTS(kernel_both_)};

// One tile on its way: [m0, m0+mn) x [n0, n0+nn), a part of the contraction, a block of rows.
typedef struct Work {
    const GemmProblem *p;
    int64_t m0, mn, n0, nn;
    Strips strips;
    int64_t k0, nk;         // the part
    bool is_first, is_last; // of the parts
    int64_t s0, s1;         // strips of the block
    Fetch next;             // of columns
    Room *room;
} Work;

static int64_t slices_of(const Work *t) {
    return ceil_div(t->nk, TILE);
}

// Columns that are packed together: those of a cache line, if they lie beside each other.
static int64_t columns_together(const GemmOperand *b) {
    if (b->is_k_contig) return COLUMNS;
    return b->t == SRC_F32 ? 16 : b->t == SRC_BF16 ? 32 : 64;
}

// Where the columns at j are packed. Those that no other block of rows needs share a place, which
// stays in cache.
static float *panel_of(const Work *t, int64_t j) {
    int64_t i = (j - t->n0) / COLUMNS;
    if (t->strips.count <= BLOCK) i %= columns_together(&t->p->b) / COLUMNS;
    return t->room->columns[i];
}

// n columns at j, for all rows of the tile.
static void take_columns(const Work *t, int64_t j, int64_t n) {
    const GemmOperand *b = &t->p->b;
    int64_t at = j - t->n0;
    pack_columns(b, j, n, t->k0, t->nk, panel_of(t, j));
    for (int64_t i = 0; i < slices_of(t) && gemm_is_fp8(b->t); i++)
        pack_scales(b, j, n, t->k0 + i * TILE, t->room->column_scales[i] + at);
}

static void take_rows(const Work *t) {
    const GemmOperand *a = &t->p->a;
    pack_strips(a, &t->strips, t->s0, t->s1, t->m0, t->p->m - t->m0, t->k0, t->nk, t->room->rows);
    int64_t r0 = strip_start(&t->strips, t->s0), r1 = strip_start(&t->strips, t->s1);
    for (int64_t i = 0; i < slices_of(t) && gemm_is_fp8(a->t); i++)
        pack_scales(a, t->m0 + r0, r1 - r0, t->k0 + i * TILE, t->room->row_scales[i] + r0);
}

// The columns at j in the block of rows; if they have only one scale, the rows' times it.
static Scaling scaling_of(const Work *t, int64_t j, int64_t nj) {
    const GemmOperand *b = &t->p->b;
    Room *w = t->room;
    if (!gemm_is_fp8(b->t)) return UNSCALED;
    if (b->s_tile == 1 || j / TILE != (j + nj - 1) / TILE) return BOTH_SCALED;
    int64_t r0 = strip_start(&t->strips, t->s0), r1 = strip_start(&t->strips, t->s1);
    for (int64_t i = 0; i < slices_of(t); i++) {
        const float *sa = w->row_scales[i] + r0;
        float sb = w->column_scales[i][j - t->n0];
        for (int64_t r = 0; r < r1 - r0; r++) w->products[i][r] = sa[r] * sb;
    }
    return ROWS_SCALED;
}

// What is packed after the n columns at j: the next ones, or the first ones of the next part of the
// contraction; a piece of it is fetched with every slice of every strip.
static Fetch columns_ahead(const Work *t, int64_t j, int64_t n) {
    const GemmOperand *b = &t->p->b;
    int64_t k0 = t->k0, nk = t->nk, end = t->n0 + t->nn, next = j + n;
    int64_t parts = (t->s1 - t->s0) * slices_of(t) * ceil_div(n, COLUMNS);
    if (next >= end) {
        next = t->n0;
        k0 += nk;
        nk = min_i64(PANEL_DEPTH, t->p->k - k0); // 0 in the last part
    }
    n = min_i64(columns_together(b), end - next);
    return piece_of(b, next, nk > 0 ? n : 0, k0, nk, parts);
}

// Where the sums come from and go to: r rows into the tile, nj columns at j.
static void set_ends(const Work *t, Job *x, int64_t r, int64_t j, int64_t nj) {
    static const float zeros[COLUMNS];
    const Mat *y = &t->p->y;
    int64_t size = y->t == DT_F32 ? 4 : 2;
    float *sums = t->room->sums + r * SUMS_LD + (j - t->n0);
    x->from = t->is_first ? zeros : sums;
    x->from_ld = t->is_first ? 0 : SUMS_LD;
    x->to = (char *)sums;
    x->to_step = SUMS_LD * (int64_t)sizeof *sums;
    x->end = END_F32;
    if (!t->is_last) return;
    if (nj < COLUMNS) {
        x->to = (char *)t->room->last;
        x->to_step = COLUMNS * (int64_t)sizeof(float);
        return;
    }
    x->to = (char *)y->p + ((t->m0 + r) * y->ld + j) * size;
    x->to_step = y->ld * size;
    x->end = y->t == DT_BF16 ? END_BF16 : t->p->acc ? END_ADDED : END_F32;
}

// The rows of the block x nj columns at j.
static void run_columns(Work *t, int64_t j, int64_t nj) {
    Room *w = t->room;
    int64_t at = j - t->n0, slices = slices_of(t), r = strip_start(&t->strips, t->s0);
    Scaling scaling = scaling_of(t, j, nj);
    bool is_one = scaling == ROWS_SCALED, is_short = t->is_last && nj < COLUMNS;
    Job x = {.slices = slices,
             .last = ceil_div(t->nk - (slices - 1) * TILE, STEP) * STEP,
             .a = w->rows,
             .b = panel_of(t, j),
             .sa = is_one ? w->products[0] : w->row_scales[0] + r,
             .sa_step = is_one ? BLOCK * STRIP : GEMM_WIDE_ROWS,
             .sb = w->column_scales[0] + at,
             .sb_step = GEMM_WIDE_COLUMNS,
             .between = w->between,
             .next = &t->next};
    set_ends(t, &x, r, j, nj);
    for (int64_t s = t->s0; s < t->s1; s++) {
        int64_t h = strip_rows(&t->strips, s);
        kernels[scaling][h](&x);
        for (int64_t i = 0; i < h && is_short; i++)
            store_row(t->p, t->m0 + r + i, j, nj, w->last + i * COLUMNS);
        r += h;
        x.a += PANEL;
        x.sa += h;
        x.from += h * x.from_ld;
        if (!is_short) x.to += h * x.to_step;
    }
}

// The contraction of p, in parts. begins: no sums wait; ends: none will.
static void run_contraction(Work *t, bool begins, bool ends) {
    int64_t blocks = ceil_div(t->strips.count, BLOCK), end = t->n0 + t->nn;
    int64_t together = columns_together(&t->p->b);
    for (t->k0 = 0; t->k0 < t->p->k; t->k0 += PANEL_DEPTH) {
        t->nk = min_i64(PANEL_DEPTH, t->p->k - t->k0);
        t->is_first = begins && t->k0 == 0;
        t->is_last = ends && t->k0 + t->nk == t->p->k;
        for (int64_t i = 0; i < blocks; i++) {
            t->s0 = t->strips.count * i / blocks;
            t->s1 = t->strips.count * (i + 1) / blocks;
            take_rows(t);
            for (int64_t j = t->n0; j < end; j += COLUMNS) {
                if (i == 0 && (j - t->n0) % together == 0) {
                    int64_t n = min_i64(together, end - j);
                    take_columns(t, j, n);
                    t->next = columns_ahead(t, j, n);
                }
                run_columns(t, j, min_i64(COLUMNS, end - j));
            }
        }
    }
}

void gemm_tile_avx2(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                    GemmWork *w) {
    static const float zeros[GEMM_WIDE_COLUMNS];
    if (p->k == 0)
        for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, zeros);
    int64_t strips = ceil_div(mn, STRIP);
    Work t = {.p = p,
              .m0 = m0,
              .mn = mn,
              .n0 = n0,
              .nn = nn,
              .strips = {strips, mn / strips, mn % strips},
              .room = (Room *)(void *)w->wide};
    run_contraction(&t, true, p->k2 == 0);
    if (p->k2 == 0) return;
    GemmProblem second = *p;
    second.a = p->a2;
    second.b = p->b2;
    second.k = p->k2;
    t.p = &second;
    run_contraction(&t, false, true);
}

// Peak: as many independent accumulators as the micro-kernel has, nothing from memory.
double gemm_peak_avx2(int64_t n, float *sink) {
    vf acc[STRIP][2];
    vf x = vset1(sink[0]), y = vset1(sink[1]);
#pragma GCC unroll 6
    for (int r = 0; r < STRIP; r++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++)
            acc[r][v] = vset1(sink[2] + (float)(r * 2 + v)); // all different
    for (int64_t i = 0; i < n; i++) {
#pragma GCC unroll 6
        for (int r = 0; r < STRIP; r++)
#pragma GCC unroll 2
            for (int v = 0; v < 2; v++) acc[r][v] = vfma(x, y, acc[r][v]);
    }
    vf sum = vset1(0.0f);
#pragma GCC unroll 6
    for (int r = 0; r < STRIP; r++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) sum = vadd(sum, acc[r][v]);
    float out[VW];
    vstore(out, sum);
    sink[7] = out[0];
    return 2.0 * VW * 2 * STRIP * (double)n;
}
#else
void gemm_tile_avx2(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                    GemmWork *w) {
    (void)p, (void)m0, (void)mn, (void)n0, (void)nn, (void)w;
}
double gemm_peak_avx2(int64_t n, float *sink) {
    (void)n, (void)sink;
    return 0;
}
#endif
