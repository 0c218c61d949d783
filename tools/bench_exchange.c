// bench_exchange.c - from routing decisions to expert rows and back, as the MoE half does it.
//
// dispatch: rows of FP8 codes and scales gathered, exchanged, gathered again into expert order.
// combine: BF16 rows of each pair summed per received row, exchanged, summed per token. Bytes are
// what this rank sends, its own rows included, counted once; memcpy copies as many. Under a
// launcher all ranks are one expert group; without one the rows stay here. Times are this rank's
// between two barriers; the first rank's are shown.
#include "bench.h"
#include "boot.h"
#include "exchange.h"
#include "log.h"
#include "ops.h"
#include "rng.h"

typedef struct MoeSizes {
    const char *name;
    int64_t T, D, E, K; // tokens of each rank, width, experts in all, experts of a token
} MoeSizes;

typedef enum Part { PART_PLAN, PART_DISPATCH, PART_COMBINE, PART_COUNT } Part;
static const char *const part_names[] = {"exchange_plan", "dispatch", "combine"};

typedef struct ExchangeCase {
    MoeSizes s;
    int64_t L, row; // experts here, bytes of a row to the experts
    Part part;
    OpCx cx;
    Comm *ep;
    Arena *keep; // what a plan lives on
    int32_t *idx;
    float *gate;
    ExPlan plan;
    ExBytes bytes;
    MatQ x;
    void *send, *recv, *rows;
    Mat pairs, sum, back, y;
} ExchangeCase;

static Err make_plan(ExchangeCase *c, ExPlan *plan) {
    ExFlight meta;
    size_t mark = arena_mark(c->cx.scratch);
    TRY(exchange_plan(c->ep, plan, &meta, c->keep, c->cx.scratch, c->idx, c->gate, c->s.T, c->s.K,
                      c->L, &c->bytes));
    TRY(exchange_plan_end(c->ep, plan, &meta, c->keep));
    arena_release(c->cx.scratch, mark);
    return OK;
}

static Err dispatch(ExchangeCase *c) {
    const ExPlan *p = &c->plan;
    int request = -1;
    TRY(rows_gather_cpu(&c->cx, c->send, c->x.q, p->send_tok, p->nsend, c->row));
    TRY(exchange_dispatch(c->ep, p, &request, c->recv, c->send, c->row, &c->bytes));
    TRY(comm_wait(c->ep, &request));
    TRY(rows_gather_cpu(&c->cx, c->rows, c->recv, p->pair_recv, p->npair, c->row));
    return OK;
}

static Err combine(ExchangeCase *c) {
    const ExPlan *p = &c->plan;
    int request = -1;
    TRY(rows_sum_cpu(&c->cx, c->sum, c->pairs, p->recv_first, p->recv_pair, mat_none(),
                     mat_none()));
    TRY(exchange_combine(c->ep, p, &request, c->back.p, c->sum.p, 2 * c->s.D, &c->bytes));
    TRY(comm_wait(c->ep, &request));
    TRY(rows_sum_cpu(&c->cx, c->y, c->back, p->tok_first, p->tok_row, mat_none(), mat_none()));
    return OK;
}

static Err run_part(ExchangeCase *c) {
    if (c->part == PART_DISPATCH) return dispatch(c);
    if (c->part == PART_COMBINE) return combine(c);
    ExPlan again;
    size_t mark = arena_mark(c->keep);
    TRY(make_plan(c, &again));
    arena_release(c->keep, mark);
    return OK;
}

// route: K different experts of each token, in ascending order, any of them as likely.
static void route(ExchangeCase *c) {
    for (int64_t t = 0; t < c->s.T; t++) {
        int64_t need = c->s.K;
        for (int64_t e = 0; e < c->s.E && need > 0; e++) {
            uint64_t at = (uint64_t)(t * c->s.E + e), left = (uint64_t)(c->s.E - e);
            uint32_t u = philox(1, 5 + (uint64_t)c->ep->rank, at).v[0];
            if (((uint64_t)u * left >> 32) >= (uint64_t)need) continue;
            c->idx[t * c->s.K + c->s.K - need] = (int32_t)e;
            c->gate[t * c->s.K + c->s.K - need] = 1.0f / (float)c->s.K;
            need--;
        }
    }
}

static Err make_case(Bench *b, ExchangeCase *c) {
    int64_t T = c->s.T, D = c->s.D;
    Mat x;
    c->row = matq_row_bytes(SCALE_E8M0, D);
    ARENA_NEW(b->arena, c->idx, T * c->s.K);
    ARENA_NEW(b->arena, c->gate, T * c->s.K);
    route(c);
    TRY(make_plan(c, &c->plan));
    TRY(arena_mat(b->arena, &x, DT_BF16, T, D, "bench values"));
    TRY(bench_fill(b, x, false));
    TRY(arena_matq_rows(b->arena, &c->x, SCALE_E8M0, CODE_E4M3, T, D, "bench codes"));
    TRY(quant_tile_cpu(&c->cx, c->x, x, (QuantRule){0}, NULL));
    const ExPlan *p = &c->plan;
    TRY(arena_push(b->arena, &c->send, (size_t)(p->nsend * c->row), "bench rows"));
    TRY(arena_push(b->arena, &c->recv, (size_t)(p->nrecv * c->row), "bench rows"));
    TRY(arena_push(b->arena, &c->rows, (size_t)(p->npair * c->row), "bench rows"));
    TRY(arena_mat(b->arena, &c->pairs, DT_BF16, p->npair, D, "bench rows"));
    TRY(arena_mat(b->arena, &c->sum, DT_BF16, p->nrecv, D, "bench rows"));
    TRY(arena_mat(b->arena, &c->back, DT_BF16, p->nsend, D, "bench rows"));
    TRY(arena_mat(b->arena, &c->y, DT_BF16, T, D, "bench rows"));
    TRY(bench_fill(b, c->pairs, false));
    return OK;
}

// time_part: medians of one call and of the copy. The number of calls is fixed, so that all ranks
// make as many. Collective over ep.
static Err time_part(ExchangeCase *c, CopyYard *copy, double *seconds, double *yard,
                     double *spread) {
    enum { SAMPLES = 25 };
    double t[SAMPLES], y[SAMPLES];
    TRY(run_part(c));
    TRY(bench_run_copy(copy));
    for (int i = 0; i < SAMPLES; i++) {
        TRY(c->ep->barrier(c->ep));
        double start = now_seconds();
        TRY(run_part(c));
        TRY(c->ep->barrier(c->ep));
        t[i] = now_seconds() - start;
        start = now_seconds();
        TRY(bench_run_copy(copy));
        y[i] = now_seconds() - start;
    }
    *seconds = bench_median(t, SAMPLES);
    *yard = bench_median(y, SAMPLES);
    *spread = (t[SAMPLES * 3 / 4] - t[SAMPLES / 4]) / *seconds;
    return OK;
}

static Err measure(Bench *b, ExchangeCase *c) {
    TRY(make_case(b, c));
    for (int part = 0; part < PART_COUNT; part++) {
        c->part = (Part)part;
        int64_t row = part == PART_PLAN ? 8 * c->s.K : part == PART_DISPATCH ? c->row : 2 * c->s.D;
        double bytes = (double)(c->plan.nsend * row), seconds, yard, spread;
        CopyYard copy;
        TRY(bench_copy_yard(b, &copy, 2 * c->plan.nsend * row));
        TRY(time_part(c, &copy, &seconds, &yard, &spread));
        log_line("%-14s %-5s %6lld %6lld %4lld %2lld %9lld %9.3f %8.2f %9.3f %6.1f%%",
                 part_names[part], c->s.name, (long long)c->s.T, (long long)c->s.D,
                 (long long)c->s.E, (long long)c->s.K, (long long)c->plan.nsend, seconds * 1e3,
                 bytes / seconds * 1e-9, yard / seconds, spread * 100);
        if (b->json)
            fprintf(b->json,
                    "{\"op\":\"%s\",\"shape\":\"%s\",\"tokens\":%lld,\"width\":%lld,"
                    "\"experts\":%lld,\"top_k\":%lld,\"rows\":%lld,\"ranks\":%d,\"threads\":%d,"
                    "\"ms\":%.5f,\"spread\":%.4f,\"gb_per_s\":%.3f,\"fraction_of_peak\":%.4f}\n",
                    part_names[part], c->s.name, (long long)c->s.T, (long long)c->s.D,
                    (long long)c->s.E, (long long)c->s.K, (long long)c->plan.nsend, c->ep->nranks,
                    c->cx.nthreads, seconds * 1e3, spread, bytes / seconds * 1e-9, yard / seconds);
    }
    return OK;
}

static Err measure_all(Bench *b, const Boot *boot) {
    static const MoeSizes sizes[] = {{"base", 4096, 512, 16, 4},
                                     {"big", 4096, 1024, 32, 4},
                                     {"fine", 1024, 256, 64, 6},
                                     {"v3", 512, 7168, 256, 8}};
    enum { FEW = 2, COUNT = sizeof sizes / sizeof sizes[0] };
    int threads = boot->is_mpi ? boot_threads(boot, b->asked) : b->threads;
    b->threads = threads; // the copy's, too
    log_line("expert exchange, %d rank%s of %d thread%s", boot->nranks,
             boot->nranks == 1 ? "" : "s", threads, threads == 1 ? "" : "s");
    log_line("%-14s %-5s %6s %6s %4s %2s %9s %9s %8s %9s %7s", "op", "shape", "tokens", "width",
             "E", "K", "rows sent", "ms", "GB/s", "of memcpy", "spread");
    for (int i = 0; i < (b->is_all ? COUNT : FEW); i++) {
        ExchangeCase c = {.s = sizes[i], .cx = {b->scratch, threads}, .ep = boot->ep};
        if (c.s.E % boot->nranks != 0) continue; // experts cannot be shared out evenly
        c.L = c.s.E / boot->nranks;
        c.keep = b->arena;
        size_t mark = arena_mark(b->arena);
        TRY(measure(b, &c));
        arena_release(b->arena, mark);
    }
    return OK;
}

Err bench_exchange(Bench *b) {
    Boot boot = {0};
    Mesh mesh;
    TRY(boot_init(&boot));
    log_init(boot.rank, boot.nranks);
    bench_rank(b, boot.rank);
    Err err = mesh_build(&mesh, boot.nranks, boot.rank, boot.nranks);
    if (err == OK) err = boot_groups(&boot, &mesh, "auto");
    if (err == OK) err = measure_all(b, &boot);
    if (err != OK && boot.nranks > 1) boot_abort(&boot, (int)err); // others wait in a collective
    boot_finish(&boot);
    return err;
}
