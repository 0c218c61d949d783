// bench_roofline.c - everything that was measured in one figure: operations per second over
// operations per byte, under what the machine offers of both.
//
// Bytes of a case are the least it must move: every operand read once, every result written once.
// A point above the memory's roof works in cache.
#include "bench.h"
#include "gemm_engine.h"
#include "log.h"
#include "plot_svg.h"

enum { ROOFS = 4 };

static const char *const series_names[SERIES_COUNT] = {
    "FP8 products", "BF16 products",    "FP32 products", "quantisers",
    "optimizer",    "attention (bf16)", "whole steps"};

// A roof is two points: from the memory's slope to the arithmetic's level, or a level.
typedef struct Roof {
    double x[2], y[2];
    const char *labels[2];
    char text[80];
} Roof;

static void slope(Roof *r, double rate, double from, double top, const char *what) {
    r->x[0] = from;
    r->x[1] = top / rate;
    r->y[0] = rate * from;
    r->y[1] = top;
    snprintf(r->text, sizeof r->text, "%s: %.0f GB/s", what, rate);
    r->labels[0] = r->text;
}

static void level(Roof *r, double top, double from, double to, const char *what) {
    r->x[0] = from;
    r->x[1] = to;
    r->y[0] = r->y[1] = top;
    snprintf(r->text, sizeof r->text, "%s: %.0f GFLOP/s", what, top);
    r->labels[1] = r->text;
}

Err bench_roofline(Bench *b, const char *path) {
    double x[SERIES_COUNT][BENCH_POINTS], y[SERIES_COUNT][BENCH_POINTS];
    const char *labels[SERIES_COUNT][BENCH_POINTS];
    PlotSeries series[SERIES_COUNT + ROOFS] = {0};
    Roof roofs[ROOFS] = {0};
    TRY(bench_peak(b));
    TRY(bench_memory(b));
    for (int s = 0; s < SERIES_COUNT; s++)
        series[s] = (PlotSeries){.name = series_names[s],
                                 .x = x[s],
                                 .y = y[s],
                                 .labels = labels[s],
                                 .style = PLOT_POINTS};
    double from = 1e9, to = 0;
    for (int i = 0; i < b->npoints; i++) {
        const BenchPoint *p = &b->points[i];
        PlotSeries *s = &series[p->series];
        double intensity = p->flops / p->bytes;
        x[p->series][s->n] = intensity;
        y[p->series][s->n] = p->flops / p->seconds * 1e-9;
        labels[p->series][s->n++] = p->label[0] ? p->label : NULL;
        if (intensity < from) from = intensity;
        if (intensity > to) to = intensity;
    }
    CHECK(b->npoints > 0, E_USAGE, "--plot: nothing was measured that has a place in a roofline");
    double f32 = b->peak.f32 * 1e-9, half = b->peak.half * 1e-9, memory = b->memory * 1e-9,
           cache = (b->cache > 0 ? b->cache : b->memory) * 1e-9; // a device's own caches are not measured
    from /= 1.5;
    to *= 1.5;
    slope(&roofs[0], memory, from, half, "memory, plain copy");
    slope(&roofs[1], cache, from, half, "cache, memcpy");
    level(&roofs[2], f32, f32 / cache, to, "FP32 peak");
    level(&roofs[3], half, half / cache, to, "BF16 peak");
    int n = half > f32 ? ROOFS : ROOFS - 1; // one level where both are the same
    for (int i = 0; i < n; i++)
        series[SERIES_COUNT + i] = (PlotSeries){.name = "",
                                                .x = roofs[i].x,
                                                .y = roofs[i].y,
                                                .n = 2,
                                                .labels = roofs[i].labels,
                                                .style = PLOT_REFERENCE};
    char title[128];
    snprintf(title, sizeof title, "Roofline, %s, %d thread%s", b->on.ops->isa, b->threads,
             b->threads == 1 ? "" : "s");
    PlotPanel panel = {.title = "",
                       .x = {"operations per byte that must move", PLOT_LOG10},
                       .y = {"GFLOP/s", PLOT_LOG10},
                       .series = series,
                       .nseries = SERIES_COUNT + n};
    TRY(plot_svg(path, title, &panel, 1));
    log_line("roofline: %s", path);
    return OK;
}
