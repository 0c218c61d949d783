// gemm_engine.c - which instruction set, which output tiles, which thread.
#include "gemm_engine.h"

#include <string.h>

#include "gemm.h"

static const GemmTiles vector_tiles = {GEMM_MB, GEMM_NB, 48, 64, 4};
static const GemmTiles other_tiles = {GEMM_MB / 2, GEMM_NB, 48, 64, 4}; // of `sum`
// Tile registers multiply so fast that packing decides: large tiles.
static const GemmTiles register_tiles = {GEMM_AMX_MB, GEMM_AMX_NB, 64, 64, 2};

static const GemmIsa isas[] = {
    {"amx", gemm_tile_avx512, gemm_tile_amx, gemm_accumulate_avx512, gemm_peak_avx512,
     gemm_peak_amx, &register_tiles, false},
    {"avx512-bf16", gemm_tile_avx512, gemm_tile_avx512bf16, gemm_accumulate_avx512,
     gemm_peak_avx512, gemm_peak_avx512bf16, &vector_tiles, true},
    {"avx512", gemm_tile_avx512, gemm_tile_avx512, gemm_accumulate_avx512, gemm_peak_avx512,
     gemm_peak_avx512, &vector_tiles, true},
    {"avx2", gemm_tile_avx2, gemm_tile_avx2, gemm_accumulate_avx2, gemm_peak_avx2, gemm_peak_avx2,
     &vector_tiles, true},
    {"portable", gemm_tile_portable, gemm_tile_portable, gemm_accumulate_portable,
     gemm_peak_portable, gemm_peak_portable, &vector_tiles, true},
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

static const GemmIsa *chosen;

static bool isa_is_usable(int i) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("fma");
    switch (i) {
    case 0: return has_avx512 && gemm_amx_permit();
    case 1: return has_avx512 && __builtin_cpu_supports("avx512bf16");
    case 2: return has_avx512;
    case 3: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    }
    return true;
#else
    return i == ISA_COUNT - 1;
#endif
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

static int64_t tiles_of(const GemmProblem *p, int64_t mb, int64_t nb) {
    return is_idle(p) ? 0 : ceil_div(p->m, mb) * ceil_div(p->n, nb);
}

static int64_t count_tiles(const GemmProblem *problems, int64_t np, int64_t mb, int64_t nb) {
    int64_t n = 0;
    for (int64_t i = 0; i < np; i++) n += tiles_of(&problems[i], mb, nb);
    return n;
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

// The t-th tile of a product; tiles of a row or column of tiles differ by at most one row or column
// multiple, so that no thread gets a sliver.
static void run_tile(const GemmIsa *isa, const GemmProblem *p, int64_t t, int64_t mb, int64_t nb,
                     const Sum *sum, GemmWork *w) {
    int64_t tm = ceil_div(p->m, mb), tn = ceil_div(p->n, nb);
    int64_t i = t / tn, j = t % tn;
    int64_t m0 = p->m * i / tm, m1 = p->m * (i + 1) / tm;
    int64_t n0 = min_i64(j * nb, p->n), n1 = min_i64((j + 1) * nb, p->n);
    if (gemm_is_fp8(p->a.t) && sum->is_other) {
        isa->sum(p, m0, m1 - m0, n0, n1 - n0, w, sum->how, sum->every);
        return;
    }
    (is_half(isa, p) ? isa->tile_half : isa->tile)(p, m0, m1 - m0, n0, n1 - n0, w);
}

Err gemm_run(OpCx *cx, const GemmProblem *problems, int64_t np) {
    const GemmIsa *isa = gemm_current();
    double flops = 0;
    bool is_any_fp8 = false, is_all_half = true;
    Sum sum;
    TRY(sum_of(&sum, cx));
    for (int64_t i = 0; i < np; i++) {
        const GemmProblem *p = &problems[i];
        bool is_fp8 = gemm_is_fp8(p->a.t);
        CHECK(p->m >= 0 && p->n >= 0 && p->k >= 0, E_INTERNAL, "gemm: size %lld x %lld x %lld",
              (long long)p->m, (long long)p->n, (long long)p->k);
        CHECK(is_fp8 == gemm_is_fp8(p->b.t), E_INTERNAL,
              "gemm: one operand is FP8, the other is not");
        CHECK(p->y.t == DT_F32 || (p->y.t == DT_BF16 && !p->acc), E_INTERNAL,
              "gemm: output type %s%s", dtype_name(p->y.t), p->acc ? " cannot be added to" : "");
        is_any_fp8 = is_any_fp8 || is_fp8;
        is_all_half = is_all_half && is_half(isa, p);
        flops += 2.0 * (double)p->m * (double)p->n * (double)(p->k + 1);
    }
    // Below this a second thread costs more than it brings.
    int nthreads = flops < 1e5 || cx->nthreads < 1 ? 1 : cx->nthreads;
    const GemmTiles *tiles = is_any_fp8 && sum.is_other ? &other_tiles
                             : is_all_half              ? isa->tiles_half
                                                        : &vector_tiles;
    int64_t mb = tiles->rows, nb = tiles->columns;
    while (nthreads > 1 && count_tiles(problems, np, mb, nb) < tiles->per_thread * nthreads &&
           (mb > tiles->rows_least || nb > tiles->columns_least)) {
        if (mb >= nb)
            mb /= 2;
        else
            nb /= 2;
    }
    size_t mark = arena_mark(cx->scratch);
    int64_t *first = NULL;
    GemmWork *work = NULL;
    ARENA_NEW(cx->scratch, first, np + 1);
    ARENA_NEW(cx->scratch, work, nthreads);
    first[0] = 0;
    for (int64_t i = 0; i < np; i++) first[i + 1] = first[i] + tiles_of(&problems[i], mb, nb);
    int64_t ntiles = first[np];
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        GemmWork *w = NULL;
        int64_t i = 0;
#pragma omp critical(gemm_work)
        w = work++;
#pragma omp for schedule(dynamic, 1)
        for (int64_t t = 0; t < ntiles; t++) {
            while (i > 0 && t < first[i]) i--;
            while (t >= first[i + 1]) i++;
            run_tile(isa, &problems[i], t - first[i], mb, nb, &sum, w);
        }
    }
    arena_release(cx->scratch, mark);
    return OK;
}
