// report_plots.c - the figures of a report whose x is the step.
//
// Of one run every quantity has a colour; of several every run has one, and the quantities of a
// figure differ in their dashes. The values stand faint behind a smoothed curve: themselves where
// every step has a point, from the least to the largest where a point stands for several steps.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "log.h"
#include "plot_svg.h"
#include "report.h"

enum { LINES = 4, FEW = 40, WIDTH = 640, HEIGHT = 252, MAX_MARKS = 4 * REPORT_PARTS };
static const PlotBox box = {66, 10, 560, 190};

typedef enum How {
    SMOOTH = 1,    // values and their running mean; else values alone
    FROM_ZERO = 2, // the axis begins at 0
    LOG = 4,
    BYTES = 8, // in the largest unit that fits
    PERCENT = 16,
    VARIES = 32,  // left out where it never changes
    NONZERO = 64, // left out where it is always 0
} How;

typedef struct Figure {
    const char *title, *unit;
    int how;
    struct {
        const char *name;
        Quantity of;
        bool is_alone; // only of a single run
    } line[LINES];
} Figure;

static const Figure figures[] = {
    {"Loss", "nats per token", SMOOTH,
     {{"next token", Q_LM}, {"held-out", Q_EVAL, true}, {"MTP", Q_MTP}, {"total", Q_LOSS}}},
    {"Held-out loss", "nats per token", 0, {{"held-out", Q_EVAL}}},
    {"Held-out bits per byte", "", 0, {{"bits per byte", Q_BITS}}},
    {"Gradient norm", "before clipping", SMOOTH | LOG, {{"norm", Q_GRAD_NORM}}},
    {"Learning rate", "", FROM_ZERO, {{"rate", Q_LR}}},
    {"Global batch", "sequences", FROM_ZERO | VARIES, {{"batch", Q_BATCH}}},
    {"Throughput", "tokens per second, all ranks", SMOOTH | FROM_ZERO, {{"speed", Q_TOKENS_PER_S}}},
    {"MFU", "% of the measured peak", SMOOTH | FROM_ZERO | PERCENT, {{"MFU", Q_MFU}}},
    {"Step time", "ms", SMOOTH | FROM_ZERO, {{"step", Q_STEP_MS}}},
    {"Slowest rank", "its time over the median rank's", SMOOTH, {{"slowest", Q_SLOW}}},
    {"MaxVio", "largest load of an expert over the mean, less 1; mean of layers",
     SMOOTH | FROM_ZERO, {{"MaxVio", Q_MAXVIO}}},
    {"Dead experts", "% without a token in the step", SMOOTH | FROM_ZERO | PERCENT, {{"dead", Q_DEAD}}},
    {"Balance loss", "part of the total", SMOOTH | FROM_ZERO | NONZERO, {{"balance", Q_BALANCE}}},
    {"FP8 saturation", "% of values", SMOOTH | LOG | PERCENT | NONZERO,
     {{"all", Q_SATURATED}, {"worst site", Q_WORST_SATURATED}}},
    {"FP8 underflow", "% of values", SMOOTH | LOG | PERCENT | NONZERO,
     {{"all", Q_UNDERFLOW}, {"worst site", Q_WORST_UNDERFLOW}}},
    {"FP8 tiles with NaN or infinity", "in the step", FROM_ZERO | NONZERO, {{"tiles", Q_NAN_TILES}}},
    {"Error of FP8 products", "% RMS, against BF16", LOG | PERCENT,
     {{"worst product", Q_SHADOW_WORST}, {"mean", Q_SHADOW_MEAN}}},
    {"Expert exchange", "per step, all ranks", SMOOTH | FROM_ZERO | BYTES | NONZERO,
     {{"dispatch", Q_DISPATCH}, {"combine", Q_COMBINE}, {"counts and indices", Q_META}}},
    {"Memory", "resident, largest rank", FROM_ZERO | BYTES, {{"memory", Q_RSS}}},
    {"Saves", "seconds; how long one took, and the training stood still for it", FROM_ZERO,
     {{"save", Q_SAVE_S}, {"stall", Q_STALL}}},
};

// What one figure draws.
typedef struct Drawing {
    const Figure *is;
    double factor;
    const char *unit; // of bytes
    SeriesPoints points[REPORT_RUNS][LINES];
    PlotSeries series[2 * REPORT_RUNS * LINES];
    int nseries, nlines;
    bool has_run[REPORT_RUNS], has_line[LINES]; // have values
    double least, most; // values, whatever the axis shows
    PlotAxis y;
} Drawing;

void report_span(const Report *p, int64_t *first, int64_t *last) {
    *first = INT64_MAX;
    *last = 0;
    for (int r = 0; r < p->nruns; r++) {
        const ReportRun *run = &p->run[r];
        const Series *of[] = {&run->of[Q_LOSS], &run->of[Q_STEP_MS], &run->of[Q_EVAL]};
        for (int i = 0; i < 3; i++) {
            if (of[i]->n == 0) continue;
            if (of[i]->first < *first) *first = of[i]->first;
            if (of[i]->last > *last) *last = of[i]->last;
        }
    }
}

static bool is_line(const Figure *f, int l) {
    return l < LINES && f->line[l].name != NULL;
}

// is_shown: some run has values, and such as the figure is for.
static bool is_shown(const Report *p, const Figure *f) {
    SeriesPart all = {.lo = INFINITY, .hi = -INFINITY};
    for (int r = 0; r < p->nruns; r++)
        for (int l = 0; is_line(f, l); l++) {
            SeriesPart t = series_total(&p->run[r].of[f->line[l].of]);
            if (t.n == 0) continue;
            all.n += t.n;
            all.lo = fmin(all.lo, t.lo);
            all.hi = fmax(all.hi, t.hi);
        }
    if (all.n == 0 || ((f->how & NONZERO) && all.lo == 0 && all.hi == 0)) return false;
    return !(f->how & VARIES) || all.lo < all.hi;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// unit_of_bytes: so that the largest value is some units.
static void unit_of_bytes(Drawing *d) {
    static const char *const names[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int k = 0;
    for (double v = d->most; v >= 1024 && k < 5; v /= 1024) k++;
    d->factor = pow(1024, -k);
    d->unit = names[k];
}

// limits: what the axis spans. Of a linear one single values far outside of what the others take
// are cut off: a spike is seen to leave the figure, and the rest is still seen.
static Err limits(Drawing *d, int nruns) {
    enum { MOST = REPORT_RUNS * LINES * REPORT_PARTS };
    double *los, *his;
    int n = 0;
    MEM_NEW(los, 2 * MOST);
    his = los + MOST;
    for (int r = 0; r < nruns; r++)
        for (int l = 0; is_line(d->is, l); l++)
            for (int i = 0; i < d->points[r][l].n; i++) {
                if (!isfinite(d->points[r][l].mean[i])) continue;
                los[n] = d->points[r][l].lo[i];
                his[n++] = d->points[r][l].hi[i];
            }
    qsort(los, (size_t)n, sizeof *los, ascending);
    qsort(his, (size_t)n, sizeof *his, ascending);
    double low = n > 0 ? los[n / 100] : 0, high = n > 0 ? his[n - 1 - n / 100] : 0,
           usual = high - low;
    double lo = d->least, hi = d->most;
    mem_free(los);
    if (usual > 0 && hi > high + 8 * usual) hi = high + 4 * usual;
    if (usual > 0 && lo < low - 8 * usual) lo = low - 4 * usual;
    if ((d->is->how & FROM_ZERO) && lo >= 0) {
        lo = 0;
        hi = hi > 0 ? 1.04 * hi : 1; // a level does not lie on the frame
    } else {
        double room = 0.02 * (hi - lo); // nor a marker
        lo -= room;
        hi += room;
    }
    if (!(hi > lo)) { // one value
        double margin = lo != 0 ? 0.1 * fabs(lo) : 0.5;
        lo -= margin;
        hi += margin;
    }
    d->y = (PlotAxis){NULL, PLOT_LINEAR, lo, hi};
    return OK;
}

// limits_log: from the least positive value; a stretch that has zeros too begins at the lower edge.
static void limits_log(Drawing *d, int nruns) {
    double lo = INFINITY;
    for (int r = 0; r < nruns; r++)
        for (int l = 0; is_line(d->is, l); l++)
            for (int i = 0; i < d->points[r][l].n; i++)
                if (d->points[r][l].lo[i] > 0) lo = fmin(lo, d->points[r][l].lo[i]);
    d->y = (PlotAxis){NULL, PLOT_LOG10, lo / 1.3, d->most * 1.3};
    for (int r = 0; r < nruns; r++)
        for (int l = 0; is_line(d->is, l); l++)
            for (int i = 0; i < d->points[r][l].n; i++)
                if (d->points[r][l].lo[i] <= 0 && d->points[r][l].hi[i] > 0)
                    d->points[r][l].lo[i] = d->y.lo;
}

// load: the points of all runs and lines, in the figure's unit.
static Err load(Report *p, Drawing *d) {
    int64_t first, last;
    report_span(p, &first, &last);
    int64_t window = p->smooth > 0 ? p->smooth : (last - first + 1) / 100;
    d->least = INFINITY;
    d->most = -INFINITY;
    for (int r = 0; r < p->nruns; r++)
        for (int l = 0; is_line(d->is, l); l++) {
            SeriesPart t = series_total(&p->run[r].of[d->is->line[l].of]);
            if (t.n == 0 || (d->is->line[l].is_alone && p->nruns > 1)) continue;
            d->least = fmin(d->least, t.lo);
            d->most = fmax(d->most, t.hi);
            d->has_run[r] = d->has_line[l] = true;
        }
    for (int l = 0; l < LINES; l++) d->nlines += d->has_line[l];
    d->factor = d->is->how & PERCENT ? 100 : 1;
    if (d->is->how & BYTES) unit_of_bytes(d);
    d->least *= d->factor;
    d->most *= d->factor;
    for (int r = 0; r < p->nruns; r++)
        for (int l = 0; is_line(d->is, l); l++)
            if (d->has_line[l])
                TRY(series_points(&p->run[r].of[d->is->line[l].of], d->factor, window,
                                  &d->points[r][l]));
    return OK;
}

// dash_of: the quantities of several runs: solid, dashed, dotted.
static int dash_of(const Drawing *d, int line) {
    int n = 0;
    for (int l = 0; l < line; l++) n += d->has_line[l];
    return n % 3;
}

// add_curves: the first ones of the list lie on top: curves and points, then what is faint.
static void add_curves(Report *p, Drawing *d, bool is_faint) {
    bool is_one = p->nruns == 1;
    for (int r = 0; r < p->nruns; r++)
        for (int l = 0; is_line(d->is, l); l++) {
            const SeriesPoints *q = &d->points[r][l];
            const Series *of = &p->run[r].of[d->is->line[l].of];
            if (q->n == 0) continue;
            bool is_few = q->n <= FEW && (of->width == 1 || of->is_sparse),
                 is_eval = d->is->line[l].of == Q_EVAL;
            PlotSeries s = {.name = is_one ? d->is->line[l].name : p->run[r].name,
                            .x = q->x,
                            .y = q->mean,
                            .n = q->n,
                            .style = is_few ? PLOT_LINE : PLOT_CURVE,
                            .colour = 1 + (is_one ? l : r),
                            .dash = is_one ? 0 : dash_of(d, l)};
            bool has_faint = (d->is->how & SMOOTH) && !is_few && !is_eval && (is_one || l == 0);
            if (is_faint && !has_faint) continue;
            if (is_faint && of->width == 1) {
                s.style = PLOT_THIN;
            } else if (is_faint) {
                s.style = PLOT_BAND;
                s.y = q->lo;
                s.high = q->hi;
            } else if ((d->is->how & SMOOTH) && !is_few) {
                s.y = q->smooth;
            }
            if (is_eval) s.y = q->mean; // few and far between: nothing to smooth
            d->series[d->nseries++] = s;
        }
}

// What is marked in every figure.
static const struct {
    Quantity of;
    PlotMarkKind kind;
    const char *name;
    bool is_alone; // only where there is one run
} kinds[] = {{Q_SAVES, MARK_SAVE, "save", true},
             {Q_EVALS, MARK_EVAL, "evaluation", true},
             {Q_STARTS, MARK_RESTART, "restart", false},
             {Q_BAD, MARK_BAD, "step not finite", false}};

// marks: those of one kind a few pixels apart, so that they can be told apart.
static int add_marks(const Report *p, PlotMark *out) {
    int64_t first, last;
    int n = 0;
    report_span(p, &first, &last);
    for (int k = 0; k < 4; k++)
        for (int r = 0; r < p->nruns && !(kinds[k].is_alone && p->nruns > 1); r++) {
            const Series *s = &p->run[r].of[kinds[k].of];
            double pixels = box.width / (double)(last - first + 1), before = -INFINITY;
            for (int i = 0; i < s->n && n < MAX_MARKS; i++) {
                double x = (double)(s->first + i * s->width) + 0.5 * (double)(s->width - 1);
                if (s->part[i].n == 0 || (x - before) * pixels < (kinds[k].is_alone ? 7 : 1.5))
                    continue;
                out[n++] = (PlotMark){x, kinds[k].kind, p->nruns > 1 ? 1 + r : 0};
                before = x;
            }
        }
    return n;
}

void report_legend(Report *p) {
    fputs("<p class=\"unit\">", p->f);
    for (int i = 0; i < 4; i++) {
        int n = 0;
        for (int r = 0; r < p->nruns; r++) n += p->run[r].of[kinds[i].of].n;
        if (n == 0 || (kinds[i].is_alone && p->nruns > 1)) continue;
        fputs("<span class=\"key\"><svg width=\"14\" height=\"14\" viewBox=\"0 0 14 14\">", p->f);
        plot_mark_sample(p->f, &(PlotMark){7, kinds[i].kind, p->nruns > 1 ? PLOT_COLOURS : 0}, 13);
        fprintf(p->f, "</svg>%s%s</span>\n", kinds[i].name,
                p->nruns > 1 ? ", in its run's colour" : "");
    }
    fputs("Curves are running means; what is faint behind them are the values, or what lies "
          "between the least and the "
          "largest of several steps.</p>\n",
          p->f);
}

static void sample(FILE *f, const PlotSeries *s, const char *name) {
    fputs("<span class=\"key\"><svg width=\"34\" height=\"12\" viewBox=\"0 0 34 12\">", f);
    plot_sample(f, s, 0, 0, 6);
    fputs("</svg>", f);
    plot_text(f, name);
    fputs("</span>\n", f);
}

// caption: title, unit, and what the lines are: of one run the quantities; of several the runs by
// colour, then the quantities by dashes.
static void caption(Report *p, const Drawing *d) {
    static const double two[2] = {0, 0};
    FILE *f = p->f;
    fputs("<figcaption><b>", f);
    plot_text(f, d->is->title);
    fputs("</b> <span class=\"unit\">", f);
    if (d->unit) fprintf(f, "%s ", d->unit);
    plot_text(f, d->is->unit);
    if (d->y.scale == PLOT_LINEAR && d->most > d->y.hi)
        fprintf(f, "; largest %.4g, outside", d->most);
    if (d->y.scale == PLOT_LINEAR && d->least < d->y.lo)
        fprintf(f, "; least %.4g, outside", d->least);
    if (d->y.scale == PLOT_LOG10 && d->least <= 0) fputs("; 0 leaves a gap", f);
    fputs("</span>\n", f);
    for (int r = 0; r < p->nruns && p->nruns > 1; r++) {
        PlotSeries s = {.x = two, .y = two, .n = 2, .style = PLOT_CURVE, .colour = 1 + r};
        if (d->has_run[r]) sample(f, &s, p->run[r].name);
    }
    for (int l = 0; d->nlines > 1 && is_line(d->is, l); l++) {
        PlotSeries s = {.x = two, .y = two, .n = 2, .style = PLOT_CURVE, .colour = 1 + l};
        if (p->nruns > 1)
            s = (PlotSeries){
                .x = two, .y = two, .n = 2, .style = PLOT_REFERENCE, .dash = dash_of(d, l)};
        if (d->has_line[l]) sample(f, &s, d->is->line[l].name);
    }
    fputs("</figcaption>\n", f);
}

static Err draw(Report *p, const Figure *figure, const PlotMark *marks, int nmarks) {
    Drawing *d;
    int64_t first, last;
    MEM_NEW(d, 1);
    d->is = figure;
    Err err = OK;
    TRY_OR(load(p, d), done);
    if ((figure->how & LOG) &&
        !(d->least > d->most / 5)) // else there is little to see in a logarithm
        limits_log(d, p->nruns);
    else
        TRY_OR(limits(d, p->nruns), done);
    add_curves(p, d, false);
    add_curves(p, d, true);
    report_span(p, &first, &last);
    PlotPanel panel = {.x = {"step", PLOT_WHOLE, (double)first, (double)last},
                       .y = d->y,
                       .series = d->series,
                       .nseries = d->nseries,
                       .marks = marks,
                       .nmarks = nmarks};
    fputs("<figure>", p->f);
    caption(p, d);
    fprintf(p->f, "<svg class=\"plot\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH,
            HEIGHT);
    plot_text(p->f, figure->title);
    fputs("\">\n", p->f);
    plot_panel(p->f, &panel, box);
    fputs("</svg></figure>\n", p->f);
done:
    for (int r = 0; r < p->nruns; r++)
        for (int l = 0; l < LINES; l++) series_points_free(&d->points[r][l]);
    mem_free(d);
    return err;
}

Err report_curves(Report *p) {
    PlotMark *marks;
    MEM_NEW(marks, MAX_MARKS);
    int nmarks = add_marks(p, marks);
    Err err = OK;
    for (size_t i = 0; i < sizeof figures / sizeof *figures && err == OK; i++)
        if (is_shown(p, &figures[i])) err = draw(p, &figures[i], marks, nmarks);
    mem_free(marks);
    return err;
}
