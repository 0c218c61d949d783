// bench_adam.c - the optimizer's passes over memory against a plain copy of as many bytes.
#include "adam.h"
#include "bench.h"
#include "log.h"
#include "ops.h"

typedef enum AdamKind { ADAM_BF16, ADAM_F32, SUMSQ, ADAM_KINDS } AdamKind;

typedef struct AdamCase {
    AdamKind kind;
    const Ops *ops;
    OpCx cx;
    Mat master, m, v, grad, copy;
    double *sums;
    int64_t *bad;
} AdamCase;

static Err run_adam(void *user) {
    AdamCase *c = user;
    AdamStep s = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 1.0f};
    if (c->kind == SUMSQ) return c->ops->sumsq_blocks(&c->cx, c->sums, c->bad, c->grad);
    return c->ops->adam_step(&c->cx, c->master, c->m, c->v, c->grad, c->copy, s);
}

static Err make_case(Bench *b, AdamCase *c, int64_t rows, int64_t cols) {
    DType t = c->kind == ADAM_F32 ? DT_F32 : DT_BF16;
    TRY(arena_mat(b->arena, &c->grad, DT_F32, rows, cols, "bench gradients"));
    TRY(bench_fill(b, c->grad, false));
    ARENA_NEW(b->arena, c->sums, ceil_div(rows, 128));
    ARENA_NEW(b->arena, c->bad, 1);
    TRY(b->on.dev->zero(c->bad, sizeof *c->bad));
    if (c->kind == SUMSQ) return OK;
    TRY(arena_mat(b->arena, &c->master, DT_F32, rows, cols, "bench weights"));
    TRY(arena_mat(b->arena, &c->m, t, rows, cols, "bench moments"));
    TRY(arena_mat(b->arena, &c->v, t, rows, cols, "bench moments"));
    TRY(arena_mat(b->arena, &c->copy, t, rows, cols, "bench compute copy"));
    TRY(bench_fill(b, c->master, false));
    TRY(bench_fill(b, c->m, false));
    TRY(bench_fill(b, c->v, true)); // second moments are not negative
    return OK;
}

static Err measure(Bench *b, AdamKind kind, int64_t rows, int64_t cols) {
    static const char *const names[] = {"adam_bf16_moments", "adam_f32_moments", "sumsq_blocks"};
    // Bytes read and written for a parameter: weight, both moments, gradient, compute copy. Operations
    // as in adam_core.h.
    static const double bytes_of[] = {8 + 8 + 4 + 2, 8 + 16 + 4 + 4, 4}, flops_of[] = {17, 17, 2};
    AdamCase c = {.kind = kind, .ops = b->on.ops, .cx = {b->scratch, b->threads}};
    CopyYard copy;
    BenchTime t;
    double n = (double)(rows * cols), bytes = bytes_of[kind] * n;
    size_t mark = arena_mark(b->arena);
    TRY(make_case(b, &c, rows, cols));
    TRY(bench_copy_yard(b, &copy, (int64_t)bytes));
    copy.is_plain = true;
    TRY(bench_time(b, &t, run_adam, &c, bench_run_copy, &copy));
    arena_release(b->arena, mark);
    log_line("%-18s %9lld %9.3f %9.2f %7.1f %7.3f %6.1f%%", names[kind], (long long)(rows * cols),
             t.median * 1e3, n / t.median * 1e-9, bytes / t.median * 1e-9, t.yard / t.median,
             t.spread * 100);
    bench_json(b, names[kind]);
    if (b->json)
        fprintf(b->json,
                ",\"parameters\":%lld,\"ms\":%.5f,"
                "\"spread\":%.4f,\"gparam_per_s\":%.3f,\"gb_per_s\":%.2f,"
                "\"fraction_of_peak\":%.4f}\n",
                (long long)(rows * cols), t.median * 1e3,
                t.spread, n / t.median * 1e-9, bytes / t.median * 1e-9, t.yard / t.median);
    bench_point(b, SERIES_ADAM,
                kind == ADAM_BF16 ? "AdamW"
                : kind == SUMSQ   ? "norm"
                                  : "",
                flops_of[kind] * n, bytes, t.median);
    return OK;
}

Err bench_adam(Bench *b) {
    log_line("optimizer, %s, %d thread%s", b->on.ops->isa, b->threads, b->threads == 1 ? "" : "s");
    TRY(bench_memory(b));
    log_line("%-18s %9s %9s %9s %7s %7s %7s", "op", "params", "ms", "Gparam/s", "GB/s", "of copy",
             "spread");
    // A device's share of a model is some hundreds of millions of parameters.
    int64_t rows = b->nshapes ? b->shapes[0][0] : b->is_device ? (int64_t)1 << 18 : (int64_t)1 << 14;
    for (int kind = 0; kind < ADAM_KINDS; kind++) TRY(measure(b, (AdamKind)kind, rows, 1024));
    if (b->nshapes || !b->is_all) return OK;
    for (int kind = 0; kind < ADAM_KINDS; kind++) TRY(measure(b, (AdamKind)kind, 512, 512));
    return OK;
}
