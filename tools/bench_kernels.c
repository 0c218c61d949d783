// bench_kernels.c - how fast the matrix products and the quantisers are here.
//
// "Peak" is measured on this machine with the same number of threads: independent multiply-adds in
// registers, with the best instruction set of the processor; for FP8 and BF16 products also its
// BF16 dot products, whichever is faster. For the quantisers it is memcpy of the same number of
// bytes.
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "bench.h"
#include "e5m6.h"
#include "gemm.h"
#include "gemm_engine.h"
#include "ggemm.h"
#include "log.h"
#include "quant.h"

enum { MAX_RUNS = 200, MAX_GROUPS = 64 };

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

Err bench_time(double *seconds, BenchFn fn, void *user) {
    double t[MAX_RUNS], total = 0;
    int n = 0;
    TRY(fn(user));
    while (n < MAX_RUNS && (n < 5 || total < 0.2)) {
        double start = now_seconds();
        TRY(fn(user));
        t[n] = now_seconds() - start;
        total += t[n++];
    }
    *seconds = bench_median(t, n);
    return OK;
}

// --- the machine's peak ---

static void print_peak(FILE *json, const char *what, int threads, double flops) {
    log_line("peak of %d thread%s, %s: %.1f GFLOP/s", threads, threads == 1 ? "" : "s", what,
             flops * 1e-9);
    if (json)
        fprintf(json, "{\"op\":\"peak_%s\",\"isa\":\"%s\",\"threads\":%d,\"gflops\":%.2f}\n", what,
                gemm_isa(), threads, flops * 1e-9);
}

static GemmPeak bench_peak(Bench *b) {
    GemmPeak p = gemm_peak(b->threads);
    print_peak(b->json, "f32", b->threads, p.f32);
    print_peak(b->json, "bf16", b->threads, p.half);
    return p;
}

// --- matrix products ---

typedef enum GemmKind {
    FP8_FPROP,
    FP8_DGRAD,
    FP8_WGRAD,
    BF16_NT,
    BF16_TN,
    F32_NT,
    KIND_COUNT
} GemmKind;
static const char *const kind_names[] = {"fp8",  "fp8_dgrad",  "fp8_wgrad",
                                         "bf16", "bf16_wgrad", "f32"};

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

static Err run_gemm(void *user) {
    GemmCase *c = user;
    bool is_grouped = c->groups > 0;
    switch (c->kind) {
    case FP8_FPROP:
        return is_grouped ? ggemm_fp8_fprop_cpu(&c->cx, c->y, c->qa, c->qb, c->g, false)
                          : gemm_fp8_fprop_cpu(&c->cx, c->y, c->qa, c->qb, false);
    case FP8_DGRAD:
        return is_grouped ? ggemm_fp8_dgrad_cpu(&c->cx, c->y, c->qa, c->qb, c->g, false)
                          : gemm_fp8_dgrad_cpu(&c->cx, c->y, c->qa, c->qb, false);
    case FP8_WGRAD:
        return is_grouped ? ggemm_fp8_wgrad_cpu(&c->cx, c->y, c->qa, c->qb, c->g, false)
                          : gemm_fp8_wgrad_cpu(&c->cx, c->y, c->qa, c->qb, false);
    case BF16_TN:
        return is_grouped ? ggemm_tn_cpu(&c->cx, c->y, c->a, c->b, c->g, false)
                          : gemm_tn_cpu(&c->cx, c->y, c->a, c->b, false);
    default:
        return is_grouped ? ggemm_nt_cpu(&c->cx, c->y, c->a, c->b, c->g, false)
                          : gemm_nt_cpu(&c->cx, c->y, c->a, c->b, false);
    }
}

// Values spread over E4M3's range.
static void fill_f32(Mat x) {
    uint32_t u = 1;
    for (int64_t i = 0; i < x.rows * x.cols; i++) {
        u = u * 1664525u + 1013904223u;
        ((float *)x.p)[i] = (float)(int32_t)u / 2147483648.0f;
    }
}

static Err make_f32(Arena *a, Mat *x, int64_t rows, int64_t cols) {
    TRY(arena_mat(a, x, DT_F32, rows, cols, "bench values"));
    fill_f32(*x);
    return OK;
}

// A matrix [rows, cols] of the type that the case wants.
static Err make_plain(Bench *b, GemmCase *c, Mat *x, int64_t rows, int64_t cols) {
    DType t = c->kind == F32_NT ? DT_F32 : DT_BF16;
    TRY(arena_mat(b->arena, x, t, rows, cols, "bench operand"));
    for (int64_t i = 0; i < rows * cols; i++) {
        if (t == DT_F32)
            ((float *)x->p)[i] = (float)(i % 251) * 0.01f;
        else
            ((uint16_t *)x->p)[i] = (uint16_t)(0x3F00 + i * 7 % 251);
    }
    return OK;
}

static Err make_case(Bench *b, GemmCase *c) {
    int64_t L = max_i64(c->groups, 1), R = L * c->m; // rows of all groups
    bool is_tn = c->kind == FP8_WGRAD || c->kind == BF16_TN;
    if (is_tn) R = L * c->k;
    for (int64_t e = 0; e < c->groups; e++) {
        c->count[e] = is_tn ? c->k : c->m;
        c->start[e] = e * c->count[e];
    }
    c->g = (Groups){c->start, c->count, c->groups};
    TRY(arena_mat(b->arena, &c->y, DT_F32, L * c->m, c->n, "bench output"));
    if (c->kind == BF16_TN) {
        TRY(make_plain(b, c, &c->a, R, c->m));
        TRY(make_plain(b, c, &c->b, R, c->n));
    } else if (c->kind == BF16_NT || c->kind == F32_NT) {
        TRY(make_plain(b, c, &c->a, R, c->k));
        TRY(make_plain(b, c, &c->b, L * c->n, c->k));
    } else if (c->kind == FP8_WGRAD) {
        Mat x;
        TRY(arena_matq_cols(b->arena, &c->qa, SCALE_E8M0, CODE_E4M3, c->m, R, L, "bench operand"));
        TRY(arena_matq_cols(b->arena, &c->qb, SCALE_E8M0, CODE_E4M3, c->n, R, L, "bench operand"));
        TRY(make_f32(b->arena, &x, R, c->m));
        TRY(quant_tile_t_cpu(&c->cx, c->qa, x, c->g, (QuantRule){0}, NULL));
        TRY(make_f32(b->arena, &x, R, c->n));
        TRY(quant_tile_t_cpu(&c->cx, c->qb, x, c->g, (QuantRule){0}, NULL));
    } else {
        bool is_dgrad = c->kind == FP8_DGRAD;
        int64_t wrows = is_dgrad ? c->k : c->n, wcols = is_dgrad ? c->n : c->k;
        Mat x;
        void *p = NULL;
        TRY(arena_matq_rows(b->arena, &c->qa, SCALE_E8M0, CODE_E4M3, R, c->k, "bench operand"));
        TRY(arena_push(b->arena, &p, weight_bytes(L, wrows, wcols, SCALE_F32), "bench weights"));
        c->qb = weight_view(p, L, wrows, wcols, SCALE_F32);
        TRY(make_f32(b->arena, &x, R, c->k));
        TRY(quant_tile_cpu(&c->cx, c->qa, x, (QuantRule){0}, NULL));
        TRY(make_f32(b->arena, &x, L * wrows, wcols));
        TRY(weight_prepare_cpu(&c->cx, c->qb, x, (QuantRule){0}, NULL));
    }
    return OK;
}

static Err report_gemm(Bench *b, GemmPeak peak, GemmKind kind, int64_t m, int64_t n, int64_t k,
                       int64_t groups) {
    GemmCase c = {
        .kind = kind, .m = m, .n = n, .k = k, .groups = groups, .cx = {b->scratch, b->threads}};
    size_t mark = arena_mark(b->arena);
    double seconds = 0;
    TRY(make_case(b, &c));
    TRY(bench_time(&seconds, run_gemm, &c));
    arena_release(b->arena, mark);
    double flops = 2.0 * (double)m * (double)n * (double)k * (double)max_i64(groups, 1) / seconds;
    double fraction = flops / (kind == F32_NT ? peak.f32 : peak.half);
    char op[32];
    snprintf(op, sizeof op, "%s_%s", groups ? "ggemm" : "gemm", kind_names[kind]);
    log_line("%-16s %6lld %6lld %6lld %6lld %10.3f %9.1f %8.3f", op, (long long)m, (long long)n,
             (long long)k, (long long)groups, seconds * 1e3, flops * 1e-9, fraction);
    if (b->json)
        fprintf(b->json,
                "{\"op\":\"%s\",\"m\":%lld,\"n\":%lld,\"k\":%lld,\"groups\":%lld,\"isa\":\"%s\","
                "\"threads\":%d,"
                "\"ms\":%.5f,\"gflops\":%.2f,\"fraction_of_peak\":%.4f}\n",
                op, (long long)m, (long long)n, (long long)k, (long long)groups, gemm_isa(),
                b->threads, seconds * 1e3, flops * 1e-9, fraction);
    return OK;
}

Err bench_gemm(Bench *b) {
    // m, n, k of one product, groups; the first `few` without --all.
    static const int64_t shapes[][4] = {
        {2048, 1024, 1024, 0}, {256, 512, 512, 0},    {64, 512, 1024, 16}, {256, 1024, 1024, 0},
        {2048, 512, 1024, 0},  {2048, 2048, 2048, 0}, {8192, 512, 512, 0}, {64, 512, 1024, 64},
        {128, 512, 1024, 32},  {256, 512, 1024, 16},  {77, 512, 1024, 32}, {16, 512, 1024, 64},
    };
    enum { FEW = 3 };
    log_line("matrix products, %s, %d thread%s", gemm_isa(), b->threads,
             b->threads == 1 ? "" : "s");
    GemmPeak peak = bench_peak(b);
    log_line("%-16s %6s %6s %6s %6s %10s %9s %8s", "op", "m", "n", "k", "groups", "ms", "GFLOP/s",
             "of peak");
    for (int i = 0; i < (b->is_all ? COUNT_OF(shapes) : FEW); i++)
        for (int kind = 0; kind < KIND_COUNT; kind++)
            TRY(report_gemm(b, peak, (GemmKind)kind, shapes[i][0], shapes[i][1], shapes[i][2],
                            shapes[i][3]));
    return OK;
}

// --- quantisers ---

typedef enum QuantKind {
    QUANT_ROWS,
    QUANT_TOKENS,
    REQUANT,
    WEIGHT,
    DEQUANT,
    QUANT_PAIR,
    PACK,
    UNPACK,
    QUANT_KINDS
} QuantKind;
static const char *const quant_names[] = {"quant_tile",     "quant_tile_t", "requant_tile_t",
                                          "weight_prepare", "dequant",      "quant_tile_pair",
                                          "quant_e5m6",     "dequant_e5m6"};
// Bytes of codes that are read or written for one value.
static const double quant_codes[] = {1, 1, 2, 1, 1, 2, 1.5, 1.5};

typedef struct QuantCase {
    QuantKind kind;
    OpCx cx;
    Mat x;      // values, bf16 or f32
    Mat packed; // E5M6
    MatQ rows, tokens, weight;
    QuantCount count;
    void *from, *to; // memcpy
    int64_t bytes;
} QuantCase;

static Err run_quant(void *user) {
    QuantCase *c = user;
    Groups all = {0};
    QuantRule tiles = {0};
    switch (c->kind) {
    case QUANT_ROWS: return quant_tile_cpu(&c->cx, c->rows, c->x, tiles, &c->count);
    case QUANT_TOKENS: return quant_tile_t_cpu(&c->cx, c->tokens, c->x, all, tiles, &c->count);
    case REQUANT: return requant_tile_t_cpu(&c->cx, c->tokens, c->rows, all, tiles, &c->count);
    case WEIGHT: return weight_prepare_cpu(&c->cx, c->weight, c->x, tiles, &c->count);
    case QUANT_PAIR:
        return quant_tile_pair_cpu(&c->cx, c->rows, c->tokens, c->x, all, tiles, tiles, &c->count,
                                   &c->count);
    case PACK: return quant_e5m6_cpu(&c->cx, c->packed, c->x, &c->count);
    case UNPACK: return dequant_e5m6_cpu(&c->cx, c->x, c->packed);
    default: return dequant_cpu(&c->cx, c->x, c->rows);
    }
}

static Err run_copy(void *user) {
    QuantCase *c = user;
    int64_t part = ceil_div(c->bytes / 2, c->cx.nthreads);
#pragma omp parallel for num_threads(c->cx.nthreads) schedule(static, 1)
    for (int i = 0; i < c->cx.nthreads; i++) {
        int64_t at = i * part, n = min_i64(part, c->bytes / 2 - at);
        if (n > 0) memcpy((char *)c->to + at, (char *)c->from + at, (size_t)n);
    }
    return OK;
}

static Err report_quant(Bench *b, QuantKind kind, DType t, ScaleType st, int64_t rows,
                        int64_t cols) {
    QuantCase c = {.kind = kind, .cx = {b->scratch, b->threads}};
    size_t mark = arena_mark(b->arena);
    void *p = NULL;
    Mat f;
    Groups all = {0};
    // Read and written, but the scales.
    c.bytes = (int64_t)((double)(rows * cols) *
                        (quant_codes[kind] + (kind == REQUANT ? 0 : (double)dtype_bytes(t))));
    TRY(make_f32(b->arena, &f, rows, cols));
    TRY(arena_mat(b->arena, &c.x, t, rows, cols, "bench values"));
    TRY(arena_matq_rows(b->arena, &c.rows, st, CODE_E4M3, rows, cols, "bench codes"));
    TRY(arena_matq_cols(b->arena, &c.tokens, st, CODE_E4M3, cols, rows, 1, "bench codes"));
    TRY(arena_push(b->arena, &p, weight_bytes(1, rows, cols, SCALE_F32), "bench weight"));
    TRY(arena_mat(b->arena, &c.packed, DT_U8, rows, e5m6_row_bytes(cols), "bench codes"));
    TRY(arena_push(b->arena, &c.from, (size_t)c.bytes, "bench copy"));
    TRY(arena_push(b->arena, &c.to, (size_t)c.bytes, "bench copy"));
    memset(c.from, 0, (size_t)c.bytes);
    c.weight = weight_view(p, 1, rows, cols, SCALE_F32);
    TRY(quant_tile_cpu(&c.cx, c.rows, f, (QuantRule){0}, NULL));
    TRY(quant_tile_t_cpu(&c.cx, c.tokens, f, all, (QuantRule){0}, NULL));
    TRY(quant_e5m6_cpu(&c.cx, c.packed, f, NULL));
    TRY(dequant_cpu(&c.cx, c.x, c.rows));
    double seconds = 0, copy = 0;
    TRY(bench_time(&seconds, run_quant, &c));
    TRY(bench_time(&copy, run_copy, &c));
    arena_release(b->arena, mark);
    const char *scale = kind == WEIGHT || st == SCALE_F32 ? "f32" : "e8m0";
    double values = (double)(rows * cols) / seconds * 1e-9, gb = (double)c.bytes / seconds * 1e-9;
    log_line("%-16s %6lld %6lld %5s %6s %10.3f %8.2f %8.1f %10.3f", quant_names[kind],
             (long long)rows, (long long)cols, kind == REQUANT ? "e4m3" : dtype_name(t), scale,
             seconds * 1e3, values, gb, copy / seconds);
    if (b->json)
        fprintf(b->json,
                "{\"op\":\"%s\",\"m\":%lld,\"n\":%lld,\"type\":\"%s\",\"scale\":\"%s\",\"isa\":\"%"
                "s\",\"threads\":%d,"
                "\"ms\":%.5f,\"gelem_per_s\":%.3f,\"gb_per_s\":%.2f,\"fraction_of_peak\":%.4f}\n",
                quant_names[kind], (long long)rows, (long long)cols,
                kind == REQUANT ? "e4m3" : dtype_name(t), scale, gemm_isa(), b->threads,
                seconds * 1e3, values, gb, copy / seconds);
    return OK;
}

Err bench_quant(Bench *b) {
    static const int64_t shapes[][2] = {{2048, 1024}, {128, 512}, {8192, 2048}};
    log_line("quantisers, %s, %d thread%s", gemm_isa(), b->threads, b->threads == 1 ? "" : "s");
    log_line("%-16s %6s %6s %5s %6s %10s %8s %8s %10s", "op", "rows", "cols", "type", "scales",
             "ms", "Gelem/s", "GB/s", "of memcpy");
    for (int i = 0; i < (b->is_all ? COUNT_OF(shapes) : 1); i++)
        for (int kind = 0; kind < QUANT_KINDS; kind++)
            for (int t = 0; t < 2; t++)
                for (int st = 0; st < 2; st++) {
                    bool is_repeat = (kind == REQUANT && t) || (kind >= PACK && st == SCALE_F32) ||
                                     (kind == WEIGHT && st == SCALE_E8M0);
                    if (is_repeat || (st == SCALE_F32 && kind != WEIGHT && !b->is_all)) continue;
                    TRY(report_quant(b, (QuantKind)kind, t ? DT_F32 : DT_BF16, (ScaleType)st,
                                     shapes[i][0], shapes[i][1]));
                }
    return OK;
}
