// bench_gemm.c - how fast the matrix products of linears and experts are here.
//
// A shape is that of a linear, M rows through weights [N, K], for every group; its three products
// are measured with the operands and outputs that training gives them: codes or BF16 in, BF16 out,
// gradients of weights added to FP32.
#include "bench.h"
#include "gemm_engine.h"
#include "ggemm.h"
#include "log.h"
#include "quant.h"

enum { MAX_GROUPS = 64 };

typedef enum GemmKind {
    FP8_FPROP,
    FP8_DGRAD,
    FP8_WGRAD,
    BF16_FPROP,
    BF16_DGRAD,
    BF16_WGRAD,
    F32_FPROP,
    KIND_COUNT
} GemmKind;
static const char *const kind_names[] = {"fp8",        "fp8_dgrad",  "fp8_wgrad", "bf16",
                                         "bf16_dgrad", "bf16_wgrad", "f32"};

static bool is_wgrad(GemmKind k) {
    return k == FP8_WGRAD || k == BF16_WGRAD;
}
static bool is_dgrad(GemmKind k) {
    return k == FP8_DGRAD || k == BF16_DGRAD;
}
static bool is_fp8(GemmKind k) {
    return k <= FP8_WGRAD;
}

// One product of m x n outputs per group over k, all operands in the arena.
typedef struct GemmCase {
    GemmKind kind;
    int64_t m, n, k, groups; // groups 0: a dense product
    OpCx cx;
    Mat y, a, b;
    MatQ qa, qb;
    int64_t start[MAX_GROUPS], count[MAX_GROUPS];
    Groups g;
} GemmCase;

static Err run_dense(GemmCase *c) {
    switch (c->kind) {
    case FP8_FPROP: return gemm_fp8_fprop_cpu(&c->cx, c->y, c->qa, c->qb, false);
    case FP8_DGRAD: return gemm_fp8_dgrad_cpu(&c->cx, c->y, c->qa, c->qb, false);
    case FP8_WGRAD: return gemm_fp8_wgrad_cpu(&c->cx, c->y, c->qa, c->qb, true);
    case BF16_DGRAD: return gemm_nn_cpu(&c->cx, c->y, c->a, c->b, false);
    case BF16_WGRAD: return gemm_tn_cpu(&c->cx, c->y, c->a, c->b, true);
    default: return gemm_nt_cpu(&c->cx, c->y, c->a, c->b, false);
    }
}

static Err run_gemm(void *user) {
    GemmCase *c = user;
    if (c->groups == 0) return run_dense(c);
    switch (c->kind) {
    case FP8_FPROP: return ggemm_fp8_fprop_cpu(&c->cx, c->y, c->qa, c->qb, c->g, false);
    case FP8_DGRAD: return ggemm_fp8_dgrad_cpu(&c->cx, c->y, c->qa, c->qb, c->g, false);
    case FP8_WGRAD: return ggemm_fp8_wgrad_cpu(&c->cx, c->y, c->qa, c->qb, c->g, true);
    case BF16_DGRAD: return ggemm_nn_cpu(&c->cx, c->y, c->a, c->b, c->g, false);
    case BF16_WGRAD: return ggemm_tn_cpu(&c->cx, c->y, c->a, c->b, c->g, true);
    default: return ggemm_nt_cpu(&c->cx, c->y, c->a, c->b, c->g, false);
    }
}

static Err make_values(Bench *b, Mat *x, DType t, int64_t rows, int64_t cols) {
    TRY(arena_mat(b->arena, x, t, rows, cols, "bench operand"));
    bench_fill(*x);
    return OK;
}

// Codes of `tokens` rows by `channels`, in tiles along the tokens, for Wgrad.
static Err make_turned(Bench *b, GemmCase *c, MatQ *q, int64_t tokens, int64_t channels) {
    Mat x;
    TRY(arena_matq_cols(b->arena, q, SCALE_E8M0, CODE_E4M3, channels, tokens, max_i64(c->groups, 1),
                        "bench operand"));
    TRY(make_values(b, &x, DT_BF16, tokens, channels));
    TRY(quant_tile_t_cpu(&c->cx, *q, x, c->g, (QuantRule){0}, NULL));
    return OK;
}

static Err make_fp8(Bench *b, GemmCase *c, int64_t L) {
    if (c->kind == FP8_WGRAD) {
        TRY(make_turned(b, c, &c->qa, L * c->k, c->m));
        TRY(make_turned(b, c, &c->qb, L * c->k, c->n));
        return OK;
    }
    // The weights are [outputs, inputs] in both directions.
    int64_t rows = is_dgrad(c->kind) ? c->k : c->n, cols = is_dgrad(c->kind) ? c->n : c->k;
    Mat x;
    void *p = NULL;
    TRY(arena_matq_rows(b->arena, &c->qa, SCALE_E8M0, CODE_E4M3, L * c->m, c->k, "bench operand"));
    TRY(arena_push(b->arena, &p, weight_bytes(L, rows, cols, SCALE_F32), "bench weights"));
    c->qb = weight_view(p, L, rows, cols, SCALE_F32);
    TRY(make_values(b, &x, DT_BF16, L * c->m, c->k));
    TRY(quant_tile_cpu(&c->cx, c->qa, x, (QuantRule){0}, NULL));
    TRY(make_values(b, &x, DT_BF16, L * rows, cols));
    TRY(weight_prepare_cpu(&c->cx, c->qb, x, (QuantRule){0}, NULL));
    return OK;
}

static Err make_case(Bench *b, GemmCase *c) {
    int64_t L = max_i64(c->groups, 1);
    for (int64_t e = 0; e < c->groups; e++) {
        c->count[e] = is_wgrad(c->kind) ? c->k : c->m;
        c->start[e] = e * c->count[e];
    }
    c->g = (Groups){c->start, c->count, c->groups};
    DType out = is_wgrad(c->kind) || c->kind == F32_FPROP ? DT_F32 : DT_BF16;
    TRY(arena_mat(b->arena, &c->y, out, L * c->m, c->n, "bench output"));
    bench_fill(c->y);
    if (is_fp8(c->kind)) return make_fp8(b, c, L);
    DType t = c->kind == F32_FPROP ? DT_F32 : DT_BF16;
    bool is_tn = is_wgrad(c->kind), is_nn = is_dgrad(c->kind);
    TRY(make_values(b, &c->a, t, L * (is_tn ? c->k : c->m), is_tn ? c->m : c->k));
    TRY(make_values(b, &c->b, t, L * (is_tn || is_nn ? c->k : c->n), is_tn || is_nn ? c->n : c->k));
    return OK;
}

// least_bytes: every operand read once, the output written once, or read and written.
static double least_bytes(const GemmCase *c) {
    double in = is_fp8(c->kind) ? 1.0 : c->kind == F32_FPROP ? 4.0 : 2.0;
    double out = is_wgrad(c->kind) ? 8.0 : c->kind == F32_FPROP ? 4.0 : 2.0;
    double m = (double)c->m, n = (double)c->n, k = (double)c->k;
    return (double)max_i64(c->groups, 1) * (in * (m * k + n * k) + out * m * n);
}

static Err report_gemm(Bench *b, GemmKind kind, int64_t m, int64_t n, int64_t k, int64_t groups) {
    GemmCase c = {
        .kind = kind, .m = m, .n = n, .k = k, .groups = groups, .cx = {b->scratch, b->threads}};
    size_t mark = arena_mark(b->arena);
    BenchTime t;
    TRY(make_case(b, &c));
    PeakYard peak = bench_peak_yard(b, kind != F32_FPROP);
    TRY(bench_time(b, &t, run_gemm, &c, bench_run_peak, &peak));
    arena_release(b->arena, mark);
    double flops = 2.0 * (double)m * (double)n * (double)k * (double)max_i64(groups, 1);
    double rate = flops / t.median, top = peak.flops / t.best_yard;
    char op[32], label[40];
    snprintf(op, sizeof op, "%s_%s", groups ? "ggemm" : "gemm", kind_names[kind]);
    double best = flops / t.best / top;
    log_line("%-16s %6lld %6lld %6lld %6lld %9.3f %8.1f %7.3f %7.3f %8.1f %6.1f%%", op,
             (long long)m, (long long)n, (long long)k, (long long)groups, t.median * 1e3,
             rate * 1e-9, rate / top, best, top * 1e-9, t.spread * 100);
    if (b->json)
        fprintf(b->json,
                "{\"op\":\"%s\",\"m\":%lld,\"n\":%lld,\"k\":%lld,\"groups\":%lld,\"isa\":\"%s\","
                "\"threads\":%d,\"clock\":\"%s\",\"ms\":%.5f,\"spread\":%.4f,\"gflops\":%.2f,"
                "\"peak_gflops\":%.2f,\"fraction_of_peak\":%.4f,\"best_fraction\":%.4f}\n",
                op, (long long)m, (long long)n, (long long)k, (long long)groups, gemm_isa(),
                b->threads, bench_clock(b), t.median * 1e3, t.spread, rate * 1e-9, top * 1e-9,
                rate / top, best);
    if (groups)
        snprintf(label, sizeof label, "%lld experts", (long long)groups);
    else
        label[0] = '\0';
    bench_point(b,
                is_fp8(kind)        ? SERIES_FP8
                : kind == F32_FPROP ? SERIES_F32
                                    : SERIES_BF16,
                kind == FP8_FPROP ? label : "", flops, least_bytes(&c), t.median);
    return OK;
}

// report_linear: the products of M rows (of each group) through weights [N, K].
static Err report_linear(Bench *b, GemmKind kind, const int64_t s[4]) {
    int64_t M = s[0], N = s[1], K = s[2], G = s[3];
    if (is_wgrad(kind)) return report_gemm(b, kind, N, K, M, G);
    if (is_dgrad(kind)) return report_gemm(b, kind, M, K, N, G);
    return report_gemm(b, kind, M, N, K, G);
}

Err bench_gemm(Bench *b) {
    // M, N, K of one linear, groups; the first `FEW` without --all.
    static const int64_t shapes[][4] = {
        {2048, 1024, 1024, 0}, {2048, 2048, 2048, 0}, {8192, 512, 512, 0},  {64, 1024, 512, 64},
        {256, 512, 512, 0},    {256, 1024, 1024, 0},  {2048, 1024, 512, 0}, {8192, 2048, 2048, 0},
        {64, 1024, 512, 16},   {128, 1024, 512, 32},  {256, 1024, 512, 16}, {77, 1024, 512, 32},
        {16, 1024, 512, 64},   {1024, 512, 512, 16},  {96, 256, 256, 64},
    };
    enum { FEW = 4, COUNT = sizeof shapes / sizeof shapes[0] };
    log_line("matrix products, %s, %d thread%s", gemm_isa(), b->threads,
             b->threads == 1 ? "" : "s");
    TRY(bench_peak(b));
    log_line("%-16s %6s %6s %6s %6s %9s %8s %7s %7s %8s %7s", "op", "m", "n", "k", "groups", "ms",
             "GFLOP/s", "of peak", "best", "peak", "spread");
    for (int i = 0; i < (b->is_all ? COUNT : FEW); i++)
        for (int kind = 0; kind < KIND_COUNT; kind++)
            TRY(report_linear(b, (GemmKind)kind, shapes[i]));
    return OK;
}
