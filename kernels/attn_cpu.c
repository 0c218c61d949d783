// attn_cpu.c - causal attention on the CPU: which instruction set, which thread. Contract: attn.h.
//
// A task is a (sequence, head), in the forward also a piece of its rows where threads would be idle
// otherwise: pieces share nothing, so the bits do not depend on the cut.
#include "attn.h"

#include <omp.h>

#include "attn_engine.h"
#include "cpu_has.h"
#include "gemm.h"
#include "gemm_engine.h"

// What takes calls whose inputs are all BF16, and all others.
typedef struct Chosen {
    const char *name;
    const AttnIsa *half, *any;
} Chosen;

static const Chosen all[] = {
    {"amx", &attn_amx, &attn_avx512},
    {"avx512-bf16", &attn_avx512bf16, &attn_avx512},
    {"avx512", &attn_avx512, &attn_avx512},
    {"avx2", &attn_avx2, &attn_avx2},
    {"portable", &attn_portable, &attn_portable},
};
enum { COUNT = sizeof all / sizeof all[0] };

static const Chosen *chosen;

static bool is_usable(int i) {
    switch (i) {
    case 0: return cpu_has_avx512bf16() && gemm_amx_permit() && attn_amx.fwd;
    case 1: return cpu_has_avx512bf16() && attn_avx512bf16.fwd;
    case 2: return cpu_has_avx512() && attn_avx512.fwd;
    case 3: return cpu_has_avx2() && attn_avx2.fwd;
    }
    return true;
}

bool attn_select(const char *name) {
    if (!name) name = gemm_isa();
    for (int i = 0; i < COUNT; i++) {
        if (strcmp(name, all[i].name) != 0 || !is_usable(i)) continue;
        chosen = &all[i];
        return true;
    }
    return false;
}

static const AttnIsa *isa_for(const AttnCall *c) {
    if (!chosen) attn_select(NULL);
    bool is_half = c->q.t == DT_BF16 && c->kv.t == DT_BF16 && c->kr.t == DT_BF16 &&
                   (!c->dout.p || c->dout.t == DT_BF16);
    return is_half ? chosen->half : chosen->any;
}

static Err attn_check(Mat q, Mat kv, Mat kr, AttnShape a) {
    int64_t T = a.nseq * a.S;
    ROW_MAT(q, T, a.H * (a.Dn + a.Dr));
    ROW_MAT(kv, T, a.H * (a.Dn + a.Dv));
    ROW_MAT(kr, T, a.Dr);
    return OK;
}

// Threads for `tasks` tasks, and a room for each.
static Err attn_rooms(OpCx *cx, float **rooms, int *nthreads, int64_t tasks, AttnShape a,
                      int64_t floats) {
    *nthreads = (int)max_i64(1, min_i64(row_threads(cx, tasks * a.S * a.S * (a.Dn + a.Dr)), tasks));
    return arena_push(cx->scratch, (void **)rooms, (size_t)(*nthreads * floats) * sizeof(float),
                      "attention");
}

Err attn_fwd_cpu(OpCx *cx, Mat o, float *lse, Mat q, Mat kv, Mat kr, AttnShape a,
                 const int32_t *doc_start) {
    TRY(attn_check(q, kv, kr, a));
    ROW_MAT(o, q.rows, a.H * a.Dv);
    AttnCall c = {.a = a, .doc_start = doc_start, .q = q, .kv = kv, .kr = kr, .o = o, .lse = lse};
    int64_t heads = a.nseq * a.H;
    if (heads * a.S == 0) return OK;
    const AttnIsa *isa = isa_for(&c);
    // Every piece packs the keys before it: cut only where heads are too few.
    int64_t pieces = heads >= 4 * (int64_t)cx->nthreads ? 1 : ceil_div(a.S, ATTN_SPLIT);
    int64_t piece = pieces == 1 ? a.S : ATTN_SPLIT, floats = isa->room(a, false);
    size_t mark = arena_mark(cx->scratch);
    float *rooms = NULL;
    int nthreads = 1;
    TRY(attn_rooms(cx, &rooms, &nthreads, heads * pieces, a, floats));
#pragma omp parallel for schedule(dynamic, 1) num_threads(nthreads)
    for (int64_t i = 0; i < heads * pieces; i++) {
        // The last rows see most: first, so that threads end together.
        int64_t i0 = (pieces - 1 - i / heads) * piece;
        isa->fwd(&c, i % heads / a.H, i % heads % a.H, i0, min_i64(i0 + piece, a.S),
                 rooms + omp_get_thread_num() * floats);
    }
    arena_release(cx->scratch, mark);
    return OK;
}

// dkr rows of n sequences from s0: the heads' parts [n][H][S][Dr] in head order.
ROW_CLONES static void sum_heads(Mat dkr, const float *part, AttnShape a, int64_t t) {
    float sum[ROW_CHUNK];
    const float *first = part + (t / a.S * a.H * a.S + t % a.S) * a.Dr;
    for (int64_t c = 0; c < a.Dr; c += ROW_CHUNK) {
        int64_t n = min_i64(a.Dr - c, ROW_CHUNK);
        for (int64_t i = 0; i < n; i++) sum[i] = first[c + i];
        for (int64_t h = 1; h < a.H; h++)
            for (int64_t i = 0; i < n; i++) sum[i] += first[h * a.S * a.Dr + c + i];
        row_put(dkr, t, c, n, sum);
    }
}

Err attn_bwd_cpu(OpCx *cx, Mat dq, Mat dkv, Mat dkr, Mat dout, Mat o, const float *lse, Mat q,
                 Mat kv, Mat kr, AttnShape a, const int32_t *doc_start) {
    TRY(attn_check(q, kv, kr, a));
    TRY(attn_check(dq, dkv, dkr, a));
    ROW_MAT(o, q.rows, a.H * a.Dv);
    ROW_MAT(dout, q.rows, a.H * a.Dv);
    if (a.nseq * a.H * a.S == 0) return OK;
    AttnCall c = {a, doc_start, q, kv, kr, o, dout, dq, dkv, (float *)(uintptr_t)lse};
    const AttnIsa *isa = isa_for(&c);
    // As many sequences at a time as keep all threads busy, so that the heads' parts stay small.
    int64_t round = max_i64(1, min_i64(a.nseq, ceil_div(4 * (int64_t)cx->nthreads, a.H)));
    int64_t floats = isa->room(a, true);
    size_t mark = arena_mark(cx->scratch);
    float *rooms = NULL, *part = NULL;
    int nthreads = 1;
    TRY(attn_rooms(cx, &rooms, &nthreads, round * a.H, a, floats));
    ARENA_NEW(cx->scratch, part, round * a.H * a.S * a.Dr);
    for (int64_t s0 = 0; s0 < a.nseq; s0 += round) {
        int64_t n = min_i64(round, a.nseq - s0);
#pragma omp parallel num_threads(nthreads)
        {
            float *room = rooms + omp_get_thread_num() * floats;
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < n * a.H; i++)
                isa->bwd(&c, s0 + i / a.H, i % a.H, part + i * a.S * a.Dr, room);
#pragma omp for schedule(static)
            for (int64_t t = 0; t < n * a.S; t++)
                sum_heads(mat_rows(dkr, s0 * a.S, n * a.S), part, a, t);
        }
    }
    arena_release(cx->scratch, mark);
    return OK;
}
