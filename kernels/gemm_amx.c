// gemm_amx.c - output tiles with the tile registers of AMX (TDPBF16PS): blocks of 32 x 32.
//
// FP8 codes are exact as BF16, and so are products of two BF16 values as FP32; sums are FP32,
// rounded to nearest even. The instruction reads BF16 subnormals as zero and flushes FP32
// subnormals: every E4M3 value is a normal BF16 number, and below 2^-126 nothing is left that
// counts in a sum. One instruction adds, for each element, the products of the even and of the odd
// elements of 16 pairs, each in order, then both to the element: which of two matrices stands on
// the left changes no bit.
//
// The panels of gemm_amx.h hold GEMM_AMX_KB of the contraction; then each block of the output runs
// through them: its rows stay in the first-level cache, columns come from the second. A contraction
// of up to GEMM_AMX_KEPT has all its panels of columns at once, and the next tile of the same columns
// finds them: weights are packed once, not once for every 256 tokens.
//
// A run is the panel (BF16) or 128 elements of it (FP8). Its sums leave the registers during the
// first step of the next run, each just before the register starts anew, and what they are for, the
// vector units do during the steps after that: promotion, sums += part * (scale of the row * scale of
// the column), and after the last run of a block its rows of the output. BF16 sums that wait for
// another panel return to the registers. Compiled with its own flags and called only where
// gemm_amx_permit() says so; without the flags only names are left.
#include "gemm_amx.h"

#if defined(__AMX_BF16__) && defined(__AVX512VBMI__) && defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "gemm_ends.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_SUMS = AMX_STRIP * AMX_STRIP, BLOCK_SUMS = 4 * TILE_SUMS, ROWS = 8 };

// A run of a block whose sums are still in the registers.
typedef struct Waiting {
    int h;                                   // strips of rows, 0: there is none
    float *part;                             // where the registers go, [BLOCK_SUMS]
    bool is_carried;                         // and that is all: BF16, another panel comes
    bool is_done;                            // to the output; else to `sums`
    const float *row_scales, *column_scales; // FP8: [32]
    float *sums;                             // FP8: of the runs before, [BLOCK_SUMS]
    bool is_first;                           // FP8: nothing came before
    int64_t row, rows, col, columns;         // of the output, at most 32 each
} Waiting;

// 32 floats as BF16, rounded to nearest even; subnormals become zeros, as everywhere here.
INLINE __m512i round_bf16(__m512 x, __m512 y) {
    return (__m512i)_mm512_cvtne2ps_pbh(y, x);
}

// n <= 32 sums of a row into y(row, col ...).
INLINE void put(const GemmProblem *p, int64_t row, int64_t col, int64_t n, __m512 a, __m512 b) {
    __mmask32 mask = n >= 32 ? ~0u : (1u << n) - 1;
    if (p->y.t == DT_BF16) {
        uint16_t *y = (uint16_t *)p->y.p + row * p->y.ld + col;
        _mm512_mask_storeu_epi16(y, mask, round_bf16(a, b));
        return;
    }
    float *y = (float *)p->y.p + row * p->y.ld + col;
    __mmask16 low = (__mmask16)mask, high = (__mmask16)(mask >> 16);
    // Gradients come from memory, and no loop here is long enough for the processor to see it coming: the block below
    // is asked for. In the gaps: all of its lines at once would hold up the products.
    const char *below = (const char *)(y + 2 * AMX_STRIP * p->y.ld);
    __builtin_prefetch(below, 0, 2);
    __builtin_prefetch(below + 64, 0, 2);
    if (p->acc) {
        a = _mm512_add_ps(_mm512_maskz_loadu_ps(low, y), a);
        b = _mm512_add_ps(_mm512_maskz_loadu_ps(high, y + AMX_STRIP), b);
    }
    _mm512_mask_storeu_ps(y, low, a);
    _mm512_mask_storeu_ps(y + AMX_STRIP, high, b);
}

// Sums of one row of what waits, at `at` of a block.
INLINE void settled(const bool is_fp8, const bool is_first, const Waiting *w, int at, float row_scale,
                    __m512 c0, __m512 c1, __m512 *x) {
    const float *part = w->part + at, *sums = w->sums + at;
    x[0] = _mm512_load_ps(part);
    x[1] = _mm512_load_ps(part + TILE_SUMS);
    if (!is_fp8) return;
    __m512 s = _mm512_set1_ps(row_scale);
    c0 = _mm512_mul_ps(s, c0);
    c1 = _mm512_mul_ps(s, c1);
    x[0] = is_first ? _mm512_mul_ps(x[0], c0) : _mm512_fmadd_ps(x[0], c0, _mm512_load_ps(sums));
    x[1] = is_first ? _mm512_mul_ps(x[1], c1) : _mm512_fmadd_ps(x[1], c1, _mm512_load_ps(sums + TILE_SUMS));
}

// n rows from the q-th ROWS of what waits on, to `sums` or to `columns` of the output.
INLINE void settle_rows(const bool is_fp8, const bool is_first, const bool is_done, const GemmProblem *p,
                        const Waiting *w, int q, int64_t n, int64_t columns) {
    const int at = q / 2 * 2 * TILE_SUMS + q % 2 * ROWS * AMX_STRIP;
    __m512 c0 = _mm512_setzero_ps(), c1 = c0, x[2];
    if (is_fp8) {
        c0 = _mm512_loadu_ps(w->column_scales);
        c1 = _mm512_loadu_ps(w->column_scales + AMX_STRIP);
    }
    float *sums = w->sums + at;
    const float *rs = w->row_scales + q * ROWS;
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        settled(is_fp8, is_first, w, at + r * AMX_STRIP, is_fp8 ? rs[r] : 0, c0, c1, x);
        if (is_done) {
            put(p, w->row + q * ROWS + r, w->col, columns, x[0], x[1]);
        } else {
            _mm512_store_ps(sums + r * AMX_STRIP, x[0]);
            _mm512_store_ps(sums + r * AMX_STRIP + TILE_SUMS, x[1]);
        }
    }
}

// The same for what is at the edge.
static __attribute__((noinline)) void settle_edge(const bool is_fp8, const GemmProblem *p, const Waiting *w, int q) {
    int64_t n = min_i64(w->rows - q * ROWS, ROWS);
    if (!is_fp8)
        settle_rows(false, false, true, p, w, q, n, w->columns);
    else if (w->is_first)
        settle_rows(true, true, true, p, w, q, n, w->columns);
    else
        settle_rows(true, false, true, p, w, q, n, w->columns);
}

// What waits for: nothing, its first promotion, another one, the output after its only promotion or another one, the
// same at an edge.
typedef enum Kind { CARRIED, FIRST, NEXT, ONLY, LAST, EDGE } Kind;

static Kind kind_of(const bool is_fp8, const Waiting *w) {
    if (w->is_carried) return CARRIED;
    if (!w->is_done) return w->is_first ? FIRST : NEXT;
    if (w->rows < w->h * AMX_STRIP || w->columns < 2 * AMX_STRIP) return EDGE;
    return is_fp8 && w->is_first ? ONLY : LAST;
}

// The q-th ROWS rows of what waits.
INLINE void settle(const bool is_fp8, const Kind kind, const GemmProblem *p, const Waiting *w, const int q) {
    if (kind == FIRST)
        settle_rows(is_fp8, true, false, p, w, q, ROWS, 0);
    else if (kind == NEXT)
        settle_rows(is_fp8, false, false, p, w, q, ROWS, 0);
    else if (kind == ONLY)
        settle_rows(is_fp8, true, true, p, w, q, ROWS, 2 * AMX_STRIP);
    else if (kind == LAST)
        settle_rows(is_fp8, false, true, p, w, q, ROWS, 2 * AMX_STRIP);
    else if (kind == EDGE)
        settle_edge(is_fp8, p, w, q);
}

static void settle_all(const bool is_fp8, const GemmProblem *p, Waiting *w) {
    if (w->h == 0) return;
    Kind kind = kind_of(is_fp8, w);
    amx_store(w->h, w->part, 64, TILE_SUMS * 4, 2 * TILE_SUMS * 4);
    for (int q = 0; q < 2 * w->h; q++) {
        if (is_fp8)
            settle(true, kind, p, w, q);
        else
            settle(false, kind, p, w, q);
    }
    w->h = 0;
}

// One run after one that waits and has as many strips.
INLINE void run_after(const bool is_fp8, const int h, const Kind kind, const GemmProblem *p, int64_t steps,
                      const uint16_t *r, const uint16_t *c, int64_t strip, const float *from,
                      const Waiting *waiting) {
    const Waiting w = *waiting; // which no assembler can change
    amx_turn(h, r, 64, strip, c, 64, strip, w.part, from, 64, TILE_SUMS * 4, 2 * TILE_SUMS * 4);
    // The rows of one strip in the first two steps, of two in all three.
#pragma GCC unroll 4
    for (int k = 1; k < 4; k++) {
        if (k < steps) amx_step(FAR_COLUMNS, h, r + k * AMX_TILE, 64, strip, c + k * AMX_TILE, 64, strip);
        if (h == 1 && k < 3) settle(is_fp8, kind, p, &w, k - 1);
        if (h == 2) settle(is_fp8, kind, p, &w, k);
        if (h == 2 && k == 1) settle(is_fp8, kind, p, &w, 0);
    }
    for (int64_t k = 4; k < steps && !is_fp8; k++)
        amx_step(FAR_COLUMNS, h, r + k * AMX_TILE, 64, strip, c + k * AMX_TILE, 64, strip);
}

// One run of a block, of `steps` steps, beginning with `from` (NULL: zeros); what waits is settled meanwhile. The
// block's own sums stay in the registers.
INLINE void run(const bool is_fp8, const int h, const GemmProblem *p, int64_t steps, const uint16_t *r,
                const uint16_t *c, int64_t strip, const float *from, Waiting *w) {
    strip *= (int64_t)sizeof *r;
    if (w->h != h) {
        settle_all(is_fp8, p, w);
        if (from)
            amx_load(h, from, 64, TILE_SUMS * 4, 2 * TILE_SUMS * 4);
        else
            amx_zero(h);
        for (int64_t k = 0; k < steps; k++)
            amx_step(FAR_COLUMNS, h, r + k * AMX_TILE, 64, strip, c + k * AMX_TILE, 64, strip);
        return;
    }
    Kind kind = kind_of(is_fp8, w);
    if (kind == LAST)
        run_after(is_fp8, h, LAST, p, steps, r, c, strip, from, w);
    else if (kind == EDGE)
        run_after(is_fp8, h, EDGE, p, steps, r, c, strip, from, w);
    else if (!is_fp8)
        run_after(false, h, CARRIED, p, steps, r, c, strip, from, w);
    else if (kind == ONLY)
        run_after(true, h, ONLY, p, steps, r, c, strip, from, w);
    else if (kind == FIRST)
        run_after(true, h, FIRST, p, steps, r, c, strip, from, w);
    else
        run_after(true, h, NEXT, p, steps, r, c, strip, from, w);
}

// One call, and what the panels hold: [v0, v0 + vn) of the length of both contractions.
typedef struct Range {
    const GemmProblem *p;
    int64_t m0, mn, n0, nn, v0, vn, second; // second: where the second contraction begins
    bool is_first, is_last;                 // nothing of the contraction came before, nothing comes after
    const uint16_t *columns;
    const float *column_scales;
    int64_t scales_ld; // of a slice, of column_scales
} Range;

static int64_t blocks(int64_t n) {
    return ceil_div(n, 2 * AMX_STRIP);
}

static bool holds_codes(const GemmProblem *p) {
    return p->a.t == SRC_E4M3;
}

// Steps of the s-th slice of the panels: where a contraction ends it is not full.
static int64_t slice_steps(const Range *g, int64_t s) {
    int64_t v = g->v0 + s * TILE, end = v < g->second ? g->p->k : g->second + g->p->k2;
    return amx_filled(SRC_E4M3, min_i64(TILE, min_i64(end, g->v0 + g->vn) - v)) / AMX_STEP;
}

// Where the rows, the columns and their scales of a block are.
typedef struct Block {
    int64_t i, j, strip;
    const uint16_t *r, *c;
    const float *row_scales, *column_scales;
} Block;

// All runs of a block.
INLINE void run_block(const bool is_fp8, const int h, GemmWork *w, const Range *g, const Block *b,
                      Waiting *waiting) {
    float *sums = w->amx.sums + (b->i * blocks(g->nn) + b->j) * BLOCK_SUMS;
    Waiting next = {.h = h, .part = w->amx.part, .sums = w->amx.block};
    next.row = g->m0 + b->i * 2 * AMX_STRIP;
    next.rows = g->m0 + g->mn - next.row;
    next.col = g->n0 + b->j * 2 * AMX_STRIP;
    next.columns = g->n0 + g->nn - next.col;
    if (!is_fp8) {
        run(false, h, g->p, ceil_div(g->vn, AMX_STEP), b->r, b->c, b->strip, g->is_first ? NULL : sums, waiting);
        next.is_carried = !g->is_last;
        next.is_done = g->is_last;
        if (next.is_carried) next.part = sums;
        *waiting = next;
        return;
    }
    if (!g->is_first || !g->is_last) next.sums = sums;
    next.is_first = g->is_first;
    next.row_scales = b->row_scales;
    next.column_scales = b->column_scales;
    run(true, h, g->p, slice_steps(g, 0), b->r, b->c, b->strip, NULL, waiting);
    int64_t slices = ceil_div(g->vn, TILE), bytes = b->strip * (int64_t)sizeof *b->r;
    for (int64_t s = 1; s < slices; s++) { // what waits is this block's
        const uint16_t *r = b->r + s * TILE * AMX_STRIP, *c = b->c + s * TILE * AMX_STRIP;
        if (next.is_first)
            run_after(true, h, FIRST, g->p, slice_steps(g, s), r, c, bytes, NULL, &next);
        else
            run_after(true, h, NEXT, g->p, slice_steps(g, s), r, c, bytes, NULL, &next);
        next.is_first = false;
        next.row_scales += 2 * AMX_STRIP;
        next.column_scales += g->scales_ld;
    }
    next.is_done = g->is_last;
    *waiting = next;
}

typedef void RunBlock(GemmWork *w, const Range *g, const Block *b, Waiting *waiting);
static __attribute__((noinline)) void run_fp8_1(GemmWork *w, const Range *g, const Block *b, Waiting *waiting) {
    run_block(true, 1, w, g, b, waiting);
}
static __attribute__((noinline)) void run_fp8_2(GemmWork *w, const Range *g, const Block *b, Waiting *waiting) {
    run_block(true, 2, w, g, b, waiting);
}
static __attribute__((noinline)) void run_bf16_1(GemmWork *w, const Range *g, const Block *b, Waiting *waiting) {
    run_block(false, 1, w, g, b, waiting);
}
static __attribute__((noinline)) void run_bf16_2(GemmWork *w, const Range *g, const Block *b, Waiting *waiting) {
    run_block(false, 2, w, g, b, waiting);
}
static RunBlock *const run_blocks[2][2] = {{run_bf16_1, run_bf16_2}, {run_fp8_1, run_fp8_2}};

// The panels' elements that belong to one contraction, [k0, k0 + kn) of it, from `at` on.
typedef struct Piece {
    int64_t k0, kn, at;
} Piece;

static Piece piece_of(const Range *g, bool is_second) {
    int64_t v1 = g->v0 + g->vn;
    if (!is_second) return (Piece){g->v0, min_i64(g->p->k, v1) - g->v0, 0};
    int64_t from = max_i64(g->v0, g->second);
    return (Piece){from - g->second, v1 - from, from - g->v0};
}

// The i-th block's rows of a panel, 32 at a time: they are in the first-level cache when their runs begin, and never in
// the second.
static void pack_rows(const Range *g, int64_t i, uint16_t *rows, float *scales) {
    const GemmProblem *p = g->p;
    const int64_t strip = AMX_STRIP * amx_filled(p->a.t, g->vn), row = i * 2 * AMX_STRIP;
    int64_t n = min_i64(2 * AMX_STRIP, g->mn - row);
    if (n < 2 * AMX_STRIP) memset(scales, 0, GEMM_AMX_KB / TILE * 2 * AMX_STRIP * sizeof *scales);
    for (int second = 0; second < 2; second++) {
        const GemmOperand *a = second ? &p->a2 : &p->a;
        Piece x = piece_of(g, second);
        if (x.kn <= 0) continue;
        amx_pack_rows(a, g->m0 + row, n, x.k0, x.kn, strip, rows + x.at * AMX_STRIP);
        for (int64_t k = 0; k < x.kn && holds_codes(p); k += TILE)
            pack_scales(a, g->m0 + row, n, x.k0 + k, scales + (x.at + k) / TILE * 2 * AMX_STRIP);
    }
}

// The columns of a panel.
static void pack_columns(const Range *g, uint16_t *columns, float *scales) {
    const GemmProblem *p = g->p;
    const int64_t strip = AMX_STRIP * amx_filled(p->a.t, g->vn);
    if (holds_codes(p)) memset(scales, 0, (size_t)(ceil_div(g->vn, TILE) * g->scales_ld) * sizeof *scales);
    for (int second = 0; second < 2; second++) {
        const GemmOperand *b = second ? &p->b2 : &p->b;
        Piece x = piece_of(g, second);
        if (x.kn <= 0) continue;
        amx_pack_columns(b, g->n0, g->nn, x.k0, x.kn, strip, columns + x.at * AMX_STRIP);
        for (int64_t k = 0; k < x.kn && holds_codes(p); k += TILE)
            pack_scales(b, g->n0, g->nn, x.k0 + k, scales + (x.at + k) / TILE * g->scales_ld);
    }
}

// All blocks, row by row.
static void run_panels(GemmWork *w, const Range *g) {
    const int64_t strip = AMX_STRIP * amx_filled(g->p->a.t, g->vn);
    Waiting waiting = {.h = 0};
    for (int64_t i = 0; i < blocks(g->mn); i++) {
        RunBlock *run_one = run_blocks[holds_codes(g->p)][g->mn - i * 2 * AMX_STRIP > AMX_STRIP];
        float *scales = w->amx.row_scales[i % 2]; // what waits needs those of the rows before
        pack_rows(g, i, w->amx.rows, scales);
        __asm__ volatile("" : : : "memory"); // tile loads do not say what they read
        Block b = {i, 0, strip, w->amx.rows, g->columns, scales, g->column_scales};
        for (; b.j < blocks(g->nn); b.j++, b.c += 2 * strip, b.column_scales += 2 * AMX_STRIP)
            run_one(w, g, &b, &waiting);
    }
    settle_all(holds_codes(g->p), g->p, &waiting);
}

void gemm_tile_amx(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                   GemmWork *w) {
    int64_t length = gemm_length(p);
    if (length == 0) {
        static const float zeros[GEMM_AMX_NB_WIDE];
        for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, zeros);
        return;
    }
    _Static_assert(GEMM_AMX_NB_WIDE * GEMM_AMX_KB <= GEMM_AMX_NB * GEMM_AMX_KEPT && GEMM_AMX_MB <= GEMM_AMX_MB_LONG,
                   "panels and sums hold every kind of tile");
    bool is_kept = length <= GEMM_AMX_KEPT;
    bool has_columns = is_kept && w->packed == p && w->packed_m0 == n0 && w->packed_mn == nn;
    const int64_t ld = ceil_div(nn, 64) * 64; // columns that panels have room for
    amx_open();
    for (int64_t v0 = 0; v0 < length; v0 += GEMM_AMX_KB) {
        int64_t vn = min_i64(GEMM_AMX_KB, length - v0), at = is_kept ? v0 : 0;
        uint16_t *columns = w->amx.columns + at * ld;
        float *scales = w->amx.column_scales + at / TILE * ld;
        Range g = {p,       m0,     mn, n0, nn, v0, vn, p->k2 ? length - p->k2 : length, v0 == 0, v0 + vn == length,
                   columns, scales, ld};
        if (!has_columns) pack_columns(&g, columns, scales);
        run_panels(w, &g);
    }
    w->packed = is_kept ? p : NULL;
    w->packed_m0 = n0;
    w->packed_mn = nn;
    _tile_release();
}

bool gemm_amx_is_built(void) {
    return true;
}

// Peak: the block's four registers, operands that stay in registers.
double gemm_peak_amx(int64_t n, float *sink) {
    float x[TILE_SUMS] __attribute__((aligned(64)));
    for (int i = 0; i < TILE_SUMS; i++) x[i] = sink[0];
    amx_open();
    __asm__ volatile("" : : "r"(x) : "memory");
    _tile_loadd(4, x, 64);
    _tile_loadd(5, x, 64);
    _tile_loadd(6, x, 64);
    _tile_loadd(7, x, 64);
    amx_zero(2);
    int64_t rounds = n / 4 + 1; // takes about as long as n rounds of the other kernels
    for (int64_t i = 0; i < rounds; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, x, 64);
    _tile_release();
    sink[7] = x[0];
    return 4.0 * 2.0 * AMX_STRIP * AMX_TILE * (double)rounds;
}
#else
void gemm_tile_amx(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                   GemmWork *w) {
    (void)p, (void)m0, (void)mn, (void)n0, (void)nn, (void)w;
}
bool gemm_amx_is_built(void) {
    return false;
}
double gemm_peak_amx(int64_t n, float *sink) {
    (void)n, (void)sink;
    return 0;
}
#endif
