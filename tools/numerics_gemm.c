// numerics_gemm.c - how much FP8 products lose along the contraction, by its length, by the mode of
// accumulation and by the promotion interval. See numerics.h.
//
// The operands are N(0,1), quantised with one scale each (SCOPE_TENSOR); the yardstick is the
// product of the same codes and scales in double precision, so that quantisation error is not in
// it. The scales are powers of two: then it changes no bit where they are multiplied in, as on the
// hardware, where products of codes enter the sum exactly and scales come later; all error is the
// sum's. The operation is gemm_fp8_wgrad, the product of two row-quantised matrices; all FP8
// products share its inner loop.
#include <math.h>
#include <string.h>

#include "log.h"
#include "numerics.h"
#include "plot_svg.h"
#include "rng.h"

enum {
    SIDE = 64, // rows of both operands
    K_MIN = 128,
    K_MAX = 16384,
    K_STEPS = 8, // 128 .. 16384
    K_INTERVAL = 4096,
    INTERVALS = 8, // 32 .. 4096
    MODES = 4,
    SEED = 20241226,
};

// By GemmAccumulate.
static const char *const mode_names[MODES] = {"promote128", "fp32", "hopper14",
                                              "promote128_hopper14"};
// The report's "maximum relative error of nearly 2 %" for K = 4096 without promotion, 3.3.2.
static const double report_k = 4096, report_error = 0.02;

GemmError gemm_error(const float *c, const double *exact, int64_t n) {
    double most = 0, err2 = 0, exact2 = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = fabs((double)c[i] - exact[i]);
        most = e > most ? e : most;
        err2 += e * e;
        exact2 += exact[i] * exact[i];
    }
    GemmError g = {0};
    if (exact2 > 0) {
        g.max_rel = most / sqrt(exact2 / (double)n);
        g.rms_rel = sqrt(err2 / exact2);
    }
    return g;
}

// Operands of one K, and their product in double precision.
typedef struct Product {
    MatQ a, b;
    double *exact; // [SIDE, SIDE]
    float *c;      // [SIDE, SIDE]
} Product;

// random_operand: [SIDE, k] N(0,1) in BF16, one scale for all of them.
static Err random_operand(Numerics *n, MatQ *q, int64_t k, uint64_t stream) {
    Mat x;
    TRY(arena_matq_rows(n->arena, q, SCALE_E8M0, CODE_E4M3, SIDE, k, "operand"));
    size_t mark = arena_mark(n->arena);
    TRY(arena_mat(n->arena, &x, DT_F32, SIDE, k, "values"));
    for (int64_t i = 0; i < SIDE * k; i++)
        ((float *)x.p)[i] = (float)rng_normal(SEED, stream, (uint64_t)i);
    TRY(n->ops->quant_tile(&n->cx, *q, x, (QuantRule){.scope = SCOPE_TENSOR}, NULL));
    arena_release(n->arena, mark);
    return OK;
}

// decode: codes [SIDE, k] times their scale (one for all), in double.
static void decode(double *v, MatQ q) {
    double s = (double)f32_from_e8m0(((uint8_t *)q.s)[0]);
    for (int64_t r = 0; r < q.rows; r++)
        for (int64_t c = 0; c < q.cols; c++)
            v[r * q.cols + c] = (double)f32_from_e4m3(q.q[r * q.ld + c]) * s;
}

static Err product_new(Numerics *n, Product *p, int64_t k) {
    double *a = NULL, *b = NULL;
    ARENA_NEW(n->arena, p->exact, SIDE * SIDE);
    ARENA_NEW(n->arena, p->c, SIDE * SIDE);
    TRY(random_operand(n, &p->a, k, (uint64_t)(2 * k)));
    TRY(random_operand(n, &p->b, k, (uint64_t)(2 * k + 1)));
    size_t mark = arena_mark(n->arena);
    ARENA_NEW(n->arena, a, SIDE * k);
    ARENA_NEW(n->arena, b, SIDE * k);
    decode(a, p->a);
    decode(b, p->b);
    for (int64_t i = 0; i < SIDE * SIDE; i++) {
        const double *ar = a + i / SIDE * k, *br = b + i % SIDE * k;
        double sum = 0;
        for (int64_t j = 0; j < k; j++) sum += ar[j] * br[j];
        p->exact[i] = sum;
    }
    arena_release(n->arena, mark);
    return OK;
}

static Err product_error(Numerics *n, const Product *p, int mode, int64_t interval, GemmError *e) {
    OpCx cx = n->cx;
    cx.accumulate = (GemmAccumulate)mode;
    cx.promote_every = (int)interval;
    Mat c = mat(p->c, DT_F32, SIDE, SIDE);
    TRY(n->ops->gemm_fp8_wgrad(&cx, c, p->a, p->b, false));
    *e = gemm_error(p->c, p->exact, SIDE * SIDE);
    return OK;
}

// --- by K ---

typedef struct ByK {
    double k[K_STEPS], max[MODES][K_STEPS], rms[MODES][K_STEPS];
} ByK;

static Err plot_by_k(Numerics *n, const ByK *t) {
    static const char *const names[MODES] = {
        "promote128: FP32, promoted every 128", "fp32: one FP32 sum",
        "hopper14: 14 bits, no promotion", "promote128_hopper14: 14 bits, every 128"};
    PlotSeries max[MODES + 1], rms[MODES];
    for (int m = 0; m < MODES; m++) {
        PlotSeries a = {names[m], t->k, t->max[m], K_STEPS, PLOT_LINE, NULL};
        PlotSeries b = {names[m], t->k, t->rms[m], K_STEPS, PLOT_LINE, NULL};
        max[m] = a;
        rms[m] = b;
    }
    PlotSeries report = {"DeepSeek-V3 report, 3.3.2: nearly 2 %", &report_k, &report_error, 1,
                         PLOT_LINE, NULL};
    max[MODES] = report;
    PlotPanel panels[2] = {
        {"largest error",
         {"K", PLOT_LOG2},
         {"max |C - C64| / rms(C64)", PLOT_LOG10},
         max,
         MODES + 1},
        {"typical error", {"K", PLOT_LOG2}, {"rms(C - C64) / rms(C64)", PLOT_LOG10}, rms, MODES},
    };
    TRY(plot_svg(numerics_path(n, "accumulation.svg").s,
                 "FP8 products against double precision, by length of the sum", panels, 2));
    return OK;
}

static Err by_k(Numerics *n) {
    ByK t;
    log_line(" ");
    log_line("Error of FP8 products by K: largest (rms), relative to rms(C64); N(0,1), M = N = %d",
             SIDE);
    log_line("  %6s  %21s  %21s  %21s  %21s", "K", mode_names[0], mode_names[1], mode_names[2],
             mode_names[3]);
    for (int i = 0; i < K_STEPS; i++) {
        size_t mark = arena_mark(n->arena);
        int64_t k = (int64_t)K_MIN << i;
        char line[256];
        int at = snprintf(line, sizeof line, "  %6lld", (long long)k);
        Product p;
        TRY(product_new(n, &p, k));
        t.k[i] = (double)k;
        for (int m = 0; m < MODES; m++) {
            GemmError e;
            TRY(product_error(n, &p, m, 0, &e));
            t.max[m][i] = e.max_rel;
            t.rms[m][i] = e.rms_rel;
            at += snprintf(line + at, sizeof line - (size_t)at, "  %10.2e (%.2e)", e.max_rel,
                           e.rms_rel);
            numerics_json(
                n,
                "{\"test\":\"gemm\",\"k\":%lld,\"accumulate\":\"%s\",\"max_rel_err\":%.9g,"
                "\"rms_rel_err\":%.9g}",
                (long long)k, mode_names[m], e.max_rel, e.rms_rel);
        }
        log_line("%s", line);
        arena_release(n->arena, mark);
    }
    TRY(plot_by_k(n, &t));
    return OK;
}

// --- by promotion interval ---

static Err plot_by_interval(Numerics *n, const double *interval, const double *max,
                            const double *rms, GemmError floor) {
    double ends[2] = {interval[0], interval[INTERVALS - 1]};
    double fp32[2] = {floor.max_rel, floor.max_rel};
    PlotSeries series[] = {
        {"14-bit sums, largest error", interval, max, INTERVALS, PLOT_LINE, NULL},
        {"14-bit sums, rms error", interval, rms, INTERVALS, PLOT_LINE, NULL},
        {"FP32 sums every 128, largest error", ends, fp32, 2, PLOT_DASHED, NULL},
    };
    PlotPanel panel = {"K = 4096; an interval of 4096 is no promotion",
                       {"products between promotions to FP32", PLOT_LOG2},
                       {"error / rms(C64)", PLOT_LOG10},
                       series,
                       3};
    TRY(plot_svg(numerics_path(n, "promotion.svg").s, "Error by promotion interval", &panel, 1));
    return OK;
}

static Err by_interval(Numerics *n) {
    double interval[INTERVALS], max[INTERVALS], rms[INTERVALS];
    size_t mark = arena_mark(n->arena);
    Product p;
    TRY(product_new(n, &p, K_INTERVAL));
    log_line(" ");
    log_line("Error of 14-bit sums by promotion interval, K = %d (an interval of K: no promotion)",
             K_INTERVAL);
    log_line("  %8s  %10s  %10s", "interval", "largest", "rms");
    for (int i = 0; i < INTERVALS; i++) {
        GemmError e;
        int64_t every = 32LL << i;
        TRY(product_error(n, &p, GEMM_PROMOTE128_HOPPER14, every, &e));
        interval[i] = (double)every;
        max[i] = e.max_rel;
        rms[i] = e.rms_rel;
        log_line("  %8lld  %10.2e  %10.2e", (long long)every, e.max_rel, e.rms_rel);
        numerics_json(
            n,
            "{\"test\":\"promotion\",\"gemm_k\":%d,\"interval\":%lld,\"max_rel_err\":%.9g,"
            "\"rms_rel_err\":%.9g}",
            K_INTERVAL, (long long)every, e.max_rel, e.rms_rel);
    }
    GemmError floor;
    TRY(product_error(n, &p, GEMM_PROMOTE128, 0, &floor));
    arena_release(n->arena, mark);
    TRY(plot_by_interval(n, interval, max, rms, floor));
    return OK;
}

Err numerics_gemm(Numerics *n) {
    TRY(by_k(n));
    TRY(by_interval(n));
    return OK;
}
