// bench_gemm.c - how fast the matrix products of linears and experts are here.
//
// A shape is that of a linear, M rows through weights [N, K], for every group; its three products
// are measured with the operands and outputs that training gives them: codes or BF16 in, BF16 out,
// gradients of weights added to FP32.
#include "bench.h"
#include "blas_cuda_fp8.h"
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
    const Ops *ops;
    OpCx cx;
    Mat y, a, b;
    MatQ qa, qb;
    Groups g;
    BlasFp8 blas; // the library's product of the same shape, where it has one (of one group)
    bool has_blas;
} GemmCase;

static Err run_dense(GemmCase *c) {
    const Ops *ops = c->ops;
    switch (c->kind) {
    case FP8_FPROP: return ops->gemm_fp8_fprop(&c->cx, c->y, c->qa, c->qb, false);
    case FP8_DGRAD: return ops->gemm_fp8_dgrad(&c->cx, c->y, c->qa, c->qb, false);
    case FP8_WGRAD: return ops->gemm_fp8_wgrad(&c->cx, c->y, c->qa, c->qb, true);
    case BF16_DGRAD: return ops->gemm_nn(&c->cx, c->y, c->a, c->b, false);
    case BF16_WGRAD: return ops->gemm_tn(&c->cx, c->y, c->a, c->b, true);
    default: return ops->gemm_nt(&c->cx, c->y, c->a, c->b, false);
    }
}

static Err run_gemm(void *user) {
    GemmCase *c = user;
    const Ops *ops = c->ops;
    if (c->groups == 0) return run_dense(c);
    switch (c->kind) {
    case FP8_FPROP: return ops->ggemm_fp8_fprop(&c->cx, c->y, c->qa, c->qb, c->g, false);
    case FP8_DGRAD: return ops->ggemm_fp8_dgrad(&c->cx, c->y, c->qa, c->qb, c->g, false);
    case FP8_WGRAD: return ops->ggemm_fp8_wgrad(&c->cx, c->y, c->qa, c->qb, c->g, true);
    case BF16_DGRAD: return ops->ggemm_nn(&c->cx, c->y, c->a, c->b, c->g, false);
    case BF16_WGRAD: return ops->ggemm_tn(&c->cx, c->y, c->a, c->b, c->g, true);
    default: return ops->ggemm_nt(&c->cx, c->y, c->a, c->b, c->g, false);
    }
}

static Err make_values(Bench *b, Mat *x, DType t, int64_t rows, int64_t cols) {
    TRY(arena_mat(b->arena, x, t, rows, cols, "bench operand"));
    return bench_fill(b, *x, false);
}

// Codes of `tokens` rows by `channels`, in tiles along the tokens, for Wgrad.
static Err make_turned(Bench *b, GemmCase *c, MatQ *q, int64_t tokens, int64_t channels) {
    Mat x;
    TRY(arena_matq_cols(b->arena, q, SCALE_E8M0, CODE_E4M3, channels, tokens, max_i64(c->groups, 1),
                        "bench operand"));
    TRY(make_values(b, &x, DT_BF16, tokens, channels));
    TRY(b->on.ops->quant_tile_t(&c->cx, *q, x, c->g, (QuantRule){0}, NULL));
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
    TRY(b->on.ops->quant_tile(&c->cx, c->qa, x, (QuantRule){0}, NULL));
    TRY(make_values(b, &x, DT_BF16, L * rows, cols));
    TRY(b->on.ops->weight_prepare(&c->cx, c->qb, x, (QuantRule){0}, NULL));
    return OK;
}

// Groups of equal length, in the memory of the backend.
static Err make_groups(Bench *b, GemmCase *c) {
    int64_t table[2 * MAX_GROUPS], *start = NULL, n = c->groups;
    CHECK(n <= MAX_GROUPS, E_USAGE, "bench gemm: at most %d groups", MAX_GROUPS);
    for (int64_t e = 0; e < n; e++) {
        table[n + e] = is_wgrad(c->kind) ? c->k : c->m;
        table[e] = e * table[n + e];
    }
    ARENA_NEW(b->arena, start, 2 * n);
    if (n) TRY(b->on.dev->to_device(start, table, (size_t)(2 * n) * sizeof *table));
    c->g = (Groups){start, start + n, n};
    return OK;
}

static Err make_case(Bench *b, GemmCase *c) {
    int64_t L = max_i64(c->groups, 1);
    TRY(make_groups(b, c));
    DType out = is_wgrad(c->kind) || c->kind == F32_FPROP ? DT_F32 : DT_BF16;
    TRY(arena_mat(b->arena, &c->y, out, L * c->m, c->n, "bench output"));
    TRY(bench_fill(b, c->y, false));
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

// The library's product of the same shape: random codes of its own, every scale 1. Groups one after the other.
static Err make_blas(Bench *b, GemmCase *c) {
    bool is_rows = is_wgrad(c->kind);
    int64_t L = max_i64(c->groups, 1), na = blas_fp8_scales(c->m, c->k, false);
    int64_t nb = blas_fp8_scales(c->n, c->k, !is_rows);
    if (!b->is_device || !is_fp8(c->kind) || c->m % 16 || c->n % 16 || c->k % 16) return OK;
    Mat y, scales, values;
    MatQ codes[2];
    for (int i = 0; i < 2; i++) { // dense codes of random numbers: [rows, k], scales apart
        int64_t rows = L * (i ? c->n : c->m);
        size_t mark = 0;
        void *q = NULL, *s = NULL;
        TRY(arena_push(b->arena, &q, (size_t)(rows * c->k), "bench codes"));
        mark = arena_mark(b->arena);
        TRY(arena_push(b->arena, &s, (size_t)(rows * ceil_div(c->k, TILE)), "bench scales"));
        TRY(make_values(b, &values, DT_BF16, rows, c->k));
        codes[i] = (MatQ){q, s, SCALE_E8M0, CODE_E4M3, rows, c->k, c->k, ceil_div(c->k, TILE), 1, 1, 1, 0, 0};
        TRY(b->on.ops->quant_tile(&c->cx, codes[i], values, (QuantRule){0}, NULL));
        arena_release(b->arena, mark);
    }
    TRY(arena_mat(b->arena, &y, is_rows ? DT_F32 : DT_BF16, L * c->m, c->n, "bench output"));
    TRY(arena_mat(b->arena, &scales, DT_F32, 1, na + nb + 64, "bench scales"));
    TRY(bench_fill(b, y, false));
    TRY(bench_fill(b, scales, true));
    int64_t second = ceil_div(na, 4) * 4; // the library wants scales at multiples of 16 bytes
    c->blas = (BlasFp8){is_rows ? BLAS_FP8_ROWS : BLAS_FP8_BLOCKS, c->m, c->n, c->k, y.p, codes[0].q, codes[1].q,
                        scales.p, (float *)scales.p + second, NULL, NULL};
    TRY(arena_push(b->arena, &c->blas.workspace, blas_fp8_workspace_bytes(), "cuBLASLt"));
    return blas_fp8_open(&c->blas, &c->has_blas);
}

static Err run_blas(void *user) {
    GemmCase *c = user;
    BlasFp8 at = c->blas;
    size_t row = (size_t)c->n * (is_wgrad(c->kind) ? 4 : 2);
    for (int64_t e = 0; e < max_i64(c->groups, 1); e++) {
        TRY(blas_fp8_run(&at));
        at.y = (char *)at.y + (size_t)c->m * row;
        at.a += c->m * c->k;
        at.b += c->n * c->k;
    }
    return OK;
}

// time_case: the case, and beside it the yardstick: arithmetic in registers, or the library's product.
static Err time_case(Bench *b, GemmCase *c, BenchTime *t, double *top) {
    PeakYard peak = {0};
    Err err = OK;
    if (!b->is_device) peak = bench_peak_yard(b, c->kind != F32_FPROP);
    TRY_OR(make_case(b, c), done);
    TRY_OR(make_blas(b, c), done);
    if (b->is_device) {
        TRY_OR(bench_time(b, t, run_gemm, c, c->has_blas ? run_blas : NULL, c), done);
        *top = c->kind == F32_FPROP ? b->peak.f32 : is_fp8(c->kind) && b->fp8 > 0 ? b->fp8 : b->peak.half;
    } else {
        TRY_OR(bench_time(b, t, run_gemm, c, bench_run_peak, &peak), done);
        *top = peak.flops / t->best_yard;
    }
done:
    blas_fp8_close(&c->blas);
    return err;
}

static Err report_gemm(Bench *b, GemmKind kind, int64_t m, int64_t n, int64_t k, int64_t groups) {
    GemmCase c = {.kind = kind, .m = m, .n = n, .k = k, .groups = groups, .ops = b->on.ops,
                  .cx = {b->scratch, b->threads}};
    size_t mark = arena_mark(b->arena);
    BenchTime t;
    double top = 0.0;
    TRY(time_case(b, &c, &t, &top));
    arena_release(b->arena, mark);
    double flops = 2.0 * (double)m * (double)n * (double)k * (double)max_i64(groups, 1);
    double rate = flops / t.median;
    char op[32], label[40], beside[32] = "";
    snprintf(op, sizeof op, "%s_%s", groups ? "ggemm" : "gemm", kind_names[kind]);
    if (c.has_blas) snprintf(beside, sizeof beside, " %8.3f", t.yard * 1e3);
    double best = flops / t.best / top;
    log_line("%-16s %6lld %6lld %6lld %6lld %9.3f %8.1f %7.3f %7.3f %8.1f %6.1f%%%s", op, (long long)m,
             (long long)n, (long long)k, (long long)groups, t.median * 1e3, rate * 1e-9, rate / top, best,
             top * 1e-9, t.spread * 100, beside);
    if (b->json) {
        bench_json(b, op);
        fprintf(b->json,
                ",\"m\":%lld,\"n\":%lld,\"k\":%lld,\"groups\":%lld,\"ms\":%.5f,\"spread\":%.4f,"
                "\"gflops\":%.2f,\"peak_gflops\":%.2f,\"fraction_of_peak\":%.4f,\"best_fraction\":%.4f",
                (long long)m, (long long)n, (long long)k, (long long)groups, t.median * 1e3, t.spread,
                rate * 1e-9, top * 1e-9, rate / top, best);
        if (c.has_blas)
            fprintf(b->json, ",\"cublaslt_ms\":%.5f,\"cublaslt_gflops\":%.2f", t.yard * 1e3, flops / t.yard * 1e-9);
        fprintf(b->json, "}\n");
    }
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

// M, N, K of one linear, groups; the first FEW without --all.
enum { FEW = 4 };
static const int64_t processor_shapes[][4] = {
    {2048, 1024, 1024, 0}, {2048, 2048, 2048, 0}, {8192, 512, 512, 0},  {64, 1024, 512, 64},
    {256, 512, 512, 0},    {256, 1024, 1024, 0},  {2048, 1024, 512, 0}, {8192, 2048, 2048, 0},
    {64, 1024, 512, 16},   {128, 1024, 512, 32},  {256, 1024, 512, 16}, {77, 1024, 512, 32},
    {16, 1024, 512, 64},   {1024, 512, 512, 16},  {96, 256, 256, 64},
};
// On a device: the linears of DeepSeek-V3 for 4096 tokens, and its experts' rows; those of a model of width 2048 for
// 8192 tokens.
enum { DEVICE_FEW = 7 };
static const int64_t device_shapes[][4] = {
    {4096, 2112, 7168, 0},  {4096, 24576, 1536, 0}, {4096, 32768, 512, 0},  {4096, 7168, 16384, 0},
    {8192, 4096, 7168, 4},  {8192, 7168, 2048, 4},  {4096, 4096, 7168, 0},  {4096, 7168, 2048, 0},
    {4096, 4096, 7168, 8},  {4096, 7168, 2048, 8},  {8192, 3072, 2048, 0},  {8192, 576, 2048, 0},
    {8192, 4096, 512, 0},   {8192, 2048, 2048, 0},  {768, 2816, 2048, 64},  {768, 2048, 1408, 64},
};

Err bench_gemm(Bench *b) {
    const int64_t (*shapes)[4] = b->is_device ? device_shapes : processor_shapes;
    int few = b->is_device ? DEVICE_FEW : FEW;
    int all = b->is_device ? (int)(sizeof device_shapes / sizeof *device_shapes)
                           : (int)(sizeof processor_shapes / sizeof *processor_shapes);
    int n = b->is_all ? all : few;
    if (b->nshapes) {
        shapes = (const int64_t(*)[4])b->shapes;
        n = b->nshapes;
    }
    log_line("matrix products, %s, %d thread%s", b->on.ops->isa, b->threads, b->threads == 1 ? "" : "s");
    TRY(bench_peak(b));
    log_line("%-16s %6s %6s %6s %6s %9s %8s %7s %7s %8s %7s%s", "op", "m", "n", "k", "groups", "ms",
             "GFLOP/s", "of peak", "best", "peak", "spread", b->is_device ? " cuBLASLt ms" : "");
    for (int i = 0; i < n; i++)
        for (int kind = 0; kind < KIND_COUNT; kind++) {
            // Nothing of a training on a device multiplies such matrices in FP32.
            if (b->is_device && kind == F32_FPROP && !b->nshapes) continue;
            TRY(report_linear(b, (GemmKind)kind, shapes[i]));
        }
    return OK;
}
