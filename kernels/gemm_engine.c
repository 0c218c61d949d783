// gemm_engine.c - which instruction set, which output tiles, which thread.
#include "gemm_engine.h"

#include <string.h>

#include "cpu_has.h"
#include "gemm.h"

// Threads' work lies one behind the other, and tile registers' panels are stored by aligned lines.
_Static_assert(sizeof(GemmWork) % ARENA_ALIGN == 0, "the next thread's work starts on a line, too");

static const GemmTiles other_tiles = {GEMM_MB / 2, GEMM_NB, 48, 64, 4, false}; // of `sum`
static const GemmTiles wide_tiles = {GEMM_WIDE_ROWS, GEMM_WIDE_COLUMNS, 48, 64, 4, false};

static const GemmIsa isas[] = {
    {"amx", gemm_tile_avx512, gemm_tile_amx, gemm_accumulate_avx512, gemm_peak_avx512,
     gemm_peak_amx, 0, false, NULL},
    {"avx512-bf16", gemm_tile_avx512, gemm_tile_avx512bf16, gemm_accumulate_avx512,
     gemm_peak_avx512, gemm_peak_avx512bf16, 2, true, NULL},
    {"avx512", gemm_tile_avx512, gemm_tile_avx512, gemm_accumulate_avx512, gemm_peak_avx512,
     gemm_peak_avx512, 1, true, NULL},
    {"avx2", gemm_tile_avx2, gemm_tile_avx2, gemm_accumulate_avx2, gemm_peak_avx2, gemm_peak_avx2,
     1, true, &wide_tiles},
    {"portable", gemm_tile_portable, gemm_tile_portable, gemm_accumulate_portable,
     gemm_peak_portable, gemm_peak_portable, 1, true, NULL},
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static const GemmIsa *chosen;

static bool isa_is_usable(int i) {
    switch (i) {
    case 0: return cpu_has_avx512bf16() && gemm_amx_permit();
    case 1: return cpu_has_avx512bf16() && cpu_has_avx512vbmi();
    case 2: return cpu_has_avx512();
    case 3: return cpu_has_avx2();
    }
    return true;
}

// Intel's processors issue vdpbf16ps at half the rate of the FP32 multiply-add or less: no gain
// there.
static bool isa_is_preferred(int i) {
#if defined(__x86_64__)
    return i != 1 || !__builtin_cpu_is("intel");
#else
    (void)i;
    return true;
#endif
}

bool gemm_select(const char *name) {
    for (int i = 0; i < ISA_COUNT; i++) {
        if (name ? strcmp(name, isas[i].name) != 0 : !isa_is_preferred(i)) continue;
        if (!isa_is_usable(i)) continue;
        chosen = &isas[i];
        return true;
    }
    return false;
}

const GemmIsa *gemm_current(void) {
    if (!chosen) gemm_select(NULL);
    return chosen;
}

const char *gemm_isa(void) {
    return gemm_current()->name;
}

const char *gemm_isa_name(int i) {
    return i >= 0 && i < ISA_COUNT ? isas[i].name : NULL;
}

GemmOperand gemm_operand_mat(Mat m, bool is_k_contig) {
    GemmOperand o = {
        .p = m.p, .t = m.t == DT_F32 ? SRC_F32 : SRC_BF16, .is_k_contig = is_k_contig, .ld = m.ld};
    return o;
}

GemmOperand gemm_operand_q(MatQ m, bool is_k_contig) {
    GemmOperand o = {
        .p = m.q, .t = SRC_E4M3, .is_k_contig = is_k_contig, .ld = m.ld, .s = m.s, .st = m.st};
    if (m.ct == CODE_E5M2) o.t = SRC_E5M2;
    o.s_tile = is_k_contig ? m.tile_rows : TILE;
    o.s_outer = is_k_contig ? m.srow : m.scol;
    o.s_k = is_k_contig ? m.scol : m.srow;
    return o;
}

size_t gemm_scratch_bytes(int nthreads, int64_t ngroups) {
    size_t n = (size_t)max_i64(ngroups, 1);
    return (size_t)nthreads * sizeof(GemmWork) + n * sizeof(GemmProblem) +
           (n + 1) * sizeof(int64_t) + 3 * ARENA_ALIGN;
}

// A product that changes nothing: no output, or no contraction to add.
static bool is_idle(const GemmProblem *p) {
    return p->m == 0 || p->n == 0 || (p->k == 0 && p->acc);
}

// How the FP8 products of a call are summed: by the tile function of the instruction set, or
// otherwise.
typedef struct Sum {
    GemmAccumulate how;
    int64_t every;
    bool is_other;
} Sum;

static Err sum_of(Sum *s, const OpCx *cx) {
    s->how = cx->accumulate;
    s->every = cx->promote_every ? cx->promote_every : TILE;
    CHECK(s->how >= GEMM_PROMOTE128 && s->how <= GEMM_PROMOTE128_HOPPER14, E_INTERNAL,
          "gemm: no accumulation has the number %d", (int)s->how);
    CHECK(s->every > 0 && s->every % GEMM_CUT_EVERY == 0, E_INTERNAL,
          "gemm: promotion every %lld, expected a multiple of %d", (long long)s->every,
          GEMM_CUT_EVERY);
    s->is_other = s->how != GEMM_PROMOTE128 || s->every != TILE;
    return OK;
}

// is_half: does the instruction set's tile function for 8 and 16 bits take this product?
static bool is_half(const GemmIsa *isa, const GemmProblem *p) {
    if (p->a.t == SRC_E5M2 || p->b.t == SRC_E5M2) return isa->is_half_e5m2;
    return p->a.t == p->b.t && p->a.t != SRC_F32;
}

// The tiles of the function that computes this product.
static GemmTiles tiles_of(const GemmIsa *isa, const GemmProblem *p, const Sum *sum) {
    if (gemm_is_fp8(p->a.t) && sum->is_other) return other_tiles;
    if (isa->tiles) return *isa->tiles;
    int unit = is_half(isa, p) ? isa->unit_half : 1;
    if (!unit) { // multiply so fast that packing decides: large tiles
        int64_t length = gemm_length(p);
        bool is_long = length > GEMM_AMX_KEPT, is_wide = length <= GEMM_AMX_KB;
        return (GemmTiles){is_long ? GEMM_AMX_MB_LONG : GEMM_AMX_MB, is_wide ? GEMM_AMX_NB_WIDE : GEMM_AMX_NB, 64, 64,
                           2, true};
    }
    int64_t row = max_i64(ceil_div(p->k, TILE), 1) * TILE / unit; // units of the panel of a
    GemmTiles t = {GEMM_MB, GEMM_NB, 48, 64, 4, false};
    if (p->k2 > 0) return t; // the sums wait for the second contraction
    if (row > GEMM_DEPTH || row * GEMM_MB > GEMM_PANEL) return t;
    t.rows = min_i64(GEMM_MB_MAX, GEMM_PANEL / row / 16 * 16);
    t.columns = GEMM_NB_WIDE;
    return t;
}

// Products of a call cut into tiles.
typedef struct Cut {
    const GemmIsa *isa;
    const Sum *sum;
    int64_t rows, columns; // of a tile, unless the product's function takes only smaller ones
} Cut;

// Tiles down and across the output of a product. `columns` is a multiple of 64.
static int64_t count_tiles(const Cut *cut, const GemmProblem *p, int64_t *down, int64_t *columns) {
    GemmTiles most = tiles_of(cut->isa, p, cut->sum);
    *down = ceil_div(p->m, min_i64(cut->rows, most.rows));
    *columns = min_i64(cut->columns, most.columns);
    return is_idle(p) ? 0 : *down * ceil_div(p->n, *columns);
}

static int64_t count_all(const Cut *cut, const GemmProblem *problems, int64_t np) {
    int64_t n = 0, down, columns;
    for (int64_t i = 0; i < np; i++) n += count_tiles(cut, &problems[i], &down, &columns);
    return n;
}

// Halves tiles, none below rows x columns, until there are as many as wanted.
static void halve_tiles(Cut *cut, const GemmProblem *problems, int64_t np, int64_t wanted,
                        int64_t rows, int64_t columns) {
    while (count_all(cut, problems, np) < wanted && (cut->rows > rows || cut->columns > columns)) {
        if (cut->columns <= columns || (cut->rows > rows && cut->rows >= cut->columns))
            cut->rows /= 2;
        else
            cut->columns = ceil_div(cut->columns / 2, 64) * 64;
    }
}

// The largest tiles that keep all threads busy. Fewer columns cost little where a thread that gets
// the next ones finds the rows packed, so there may be more of such tiles than are needed.
static Cut choose_tiles(const GemmIsa *isa, const Sum *sum, const GemmProblem *problems, int64_t np,
                        int nthreads) {
    Cut cut = {isa, sum, 1, 64};
    GemmTiles most = {0};
    for (int64_t i = 0; i < np; i++) {
        most = tiles_of(isa, &problems[i], sum);
        cut.rows = max_i64(cut.rows, min_i64(most.rows, problems[i].m));
        cut.columns = max_i64(cut.columns, min_i64(most.columns, ceil_div(problems[i].n, 64) * 64));
    }
    if (nthreads == 1) return cut;
    if (most.columns > GEMM_NB && most.rows <= GEMM_MB)
        halve_tiles(&cut, problems, np, 4 * most.per_thread * nthreads, most.rows, GEMM_NB);
    halve_tiles(&cut, problems, np, most.per_thread * nthreads, most.rows_least,
                most.columns_least);
    return cut;
}

// The t-th tile of a product; tiles of a row or column of tiles differ by at most one row or column
// multiple, so that no thread gets a sliver.
static void run_tile(const Cut *cut, const GemmProblem *p, int64_t t, GemmWork *w) {
    int64_t down, columns, tiles = count_tiles(cut, p, &down, &columns), across = tiles / down;
    bool is_down = tiles_of(cut->isa, p, cut->sum).is_down;
    int64_t i = is_down ? t % down : t / across, j = is_down ? t / down : t % across;
    int64_t m0 = p->m * i / down, m1 = p->m * (i + 1) / down;
    int64_t n0 = min_i64(j * columns, p->n), n1 = min_i64((j + 1) * columns, p->n);
    if (gemm_is_fp8(p->a.t) && cut->sum->is_other) {
        cut->isa->sum(p, m0, m1 - m0, n0, n1 - n0, w, cut->sum->how, cut->sum->every);
        return;
    }
    GemmTileFn tile = is_half(cut->isa, p) ? cut->isa->tile_half : cut->isa->tile;
    tile(p, m0, m1 - m0, n0, n1 - n0, w);
}

bool gemm_takes_pairs(const OpCx *cx, const GemmProblem *p) {
    Sum sum;
    return sum_of(&sum, cx) == OK && !(gemm_is_fp8(p->a.t) && sum.is_other);
}

static Err check_problem(const OpCx *cx, const GemmProblem *p) {
    CHECK(p->m >= 0 && p->n >= 0 && p->k >= 0, E_INTERNAL, "gemm: size %lld x %lld x %lld",
          (long long)p->m, (long long)p->n, (long long)p->k);
    CHECK(gemm_is_fp8(p->a.t) == gemm_is_fp8(p->b.t), E_INTERNAL,
          "gemm: one operand is FP8, the other is not");
    CHECK(p->y.t == DT_F32 || (p->y.t == DT_BF16 && !p->acc), E_INTERNAL, "gemm: output type %s%s",
          dtype_name(p->y.t), p->acc ? " cannot be added to" : "");
    CHECK(p->k2 == 0 || (p->k2 > 0 && p->k > 0 && p->a2.t == p->a.t && p->b2.t == p->b.t &&
                         gemm_takes_pairs(cx, p)),
          E_INTERNAL, "gemm: no such pair of products");
    return OK;
}

Err gemm_run(OpCx *cx, const GemmProblem *problems, int64_t np) {
    double flops = 0;
    Sum sum;
    TRY(sum_of(&sum, cx));
    for (int64_t i = 0; i < np; i++) {
        const GemmProblem *p = &problems[i];
        TRY(check_problem(cx, p));
        flops += 2.0 * (double)p->m * (double)p->n * (double)(p->k + p->k2 + 1);
    }
    // Below this a second thread costs more than it brings.
    int nthreads = flops < 1e5 || cx->nthreads < 1 ? 1 : cx->nthreads;
    Cut cut = choose_tiles(gemm_current(), &sum, problems, np, nthreads);
    size_t mark = arena_mark(cx->scratch);
    int64_t *first = NULL;
    GemmWork *work = NULL;
    ARENA_NEW(cx->scratch, first, np + 1);
    ARENA_NEW(cx->scratch, work, nthreads);
    first[0] = 0;
    for (int64_t i = 0; i < np; i++) first[i + 1] = first[i] + count_all(&cut, &problems[i], 1);
    int64_t ntiles = first[np];
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        GemmWork *w = NULL;
        int64_t i = 0;
#pragma omp critical(gemm_work)
        w = work++;
        w->packed = NULL;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < ntiles; t++) {
            while (i > 0 && t < first[i]) i--;
            while (t >= first[i + 1]) i++;
            run_tile(&cut, &problems[i], t - first[i], w);
        }
    }
    arena_release(cx->scratch, mark);
    return OK;
}
