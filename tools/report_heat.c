// report_heat.c - the heat maps of a report: the FP8 sites of each run that lose most over its
// steps, and what its routers' biases have become.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "plot_svg.h"
#include "report.h"

enum { WORST = 16, WIDTH = 640, ROW = 18, MAX_HEIGHT = 420 };

// One run's worst sites in one respect.
typedef struct Worst {
    const Series *of[WORST];
    double peak[WORST];
    const char *name[WORST], *end[WORST];
    char text[WORST][24];
    int n;
} Worst;

static void caption(Report *p, const ReportRun *r, const char *title, const char *unit) {
    fputs("<figure><figcaption><b>", p->f);
    plot_text(p->f, title);
    fputs("</b> <span class=\"unit\">", p->f);
    plot_text(p->f, unit);
    fputs("</span>\n", p->f);
    if (p->nruns > 1) {
        fputs("<span class=\"key\">", p->f);
        plot_text(p->f, r->name);
        fputs("</span>\n", p->f);
    }
}

// scale: the shades with what they stand for at both ends; ends the caption.
static void scale(FILE *f, char kind, const char *lo, const char *hi) {
    fprintf(f, "<span class=\"key scale\">%s<svg width=\"96\" height=\"12\" viewBox=\"0 0 96 12\">",
            lo);
    for (int s = 0; s < PLOT_SHADES; s++)
        fprintf(f, "<path class=\"%c%d\" d=\"M%d 1h8v10h-8z\"/>", kind, s, 8 * s);
    fprintf(f, "</svg>%s</span></figcaption>\n", hi);
}

static void open_svg(FILE *f, double height, const char *title) {
    fprintf(f, "<svg class=\"plot\" viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"", WIDTH,
            height);
    plot_text(f, title);
    fputs("\">\n", f);
}

// ---- sites -------------------------------------------------------------------------------------

// find_worst: by their peaks, the largest first.
static void find_worst(const ReportRun *r, bool is_saturated, Worst *w) {
    w->n = 0;
    for (int i = 0; i < r->nsites; i++) {
        const Series *s = is_saturated ? &r->site[i].saturated : &r->site[i].underflow;
        SeriesPart t = series_total(s);
        int at = w->n;
        if (t.n == 0 || !(t.hi > 0) || (at == WORST && t.hi <= w->peak[WORST - 1])) continue;
        if (at == WORST) at--;
        for (; at > 0 && w->peak[at - 1] < t.hi; at--) {
            w->peak[at] = w->peak[at - 1];
            w->of[at] = w->of[at - 1];
            w->name[at] = w->name[at - 1];
        }
        w->peak[at] = t.hi;
        w->of[at] = s;
        w->name[at] = r->site[i].name;
        if (w->n < WORST) w->n++;
    }
    for (int i = 0; i < w->n; i++) {
        snprintf(w->text[i], sizeof w->text[i], "%.3g%%", 100 * w->peak[i]);
        w->end[i] = w->text[i];
    }
}

// least: of the positive values, but not less than a millionth of the largest.
static double least(const Worst *w) {
    double lo = w->peak[0];
    for (int i = 0; i < w->n; i++)
        for (int k = 0; k < w->of[i]->n; k++) {
            const SeriesPart *part = &w->of[i]->part[k];
            if (part->n > 0 && part->hi > 0) lo = fmin(lo, part->hi);
        }
    return fmin(fmax(lo, 1e-6 * w->peak[0]), 0.1 * w->peak[0]);
}

// shade_row: a value stands for all steps since the one before it.
static void shade_row(const Series *s, double lo, double hi, int64_t first, double width, int cols,
                      signed char *out) {
    int begin = 0;
    memset(out, -1, (size_t)cols);
    for (int k = 0; k < s->n; k++) {
        const SeriesPart *part = &s->part[k];
        if (part->n == 0) continue;
        int64_t to = s->first + (k + 1) * s->width - 1;
        if (to > s->last) to = s->last;
        int end = (int)ceil((double)(to - first + 1) / width - 1e-9), shade = -1;
        if (end > cols) end = cols;
        if (part->hi > 0) shade = (int)(log(part->hi / lo) / log(hi / lo) * PLOT_SHADES);
        if (part->hi > 0) shade = shade < 0 ? 0 : shade >= PLOT_SHADES ? PLOT_SHADES - 1 : shade;
        for (int c = begin; c < end; c++)
            if (shade > out[c]) out[c] = (signed char)shade;
        begin = end;
    }
}

static Err draw_sites(Report *p, const ReportRun *r, bool is_saturated) {
    Worst w;
    char lo_text[24], hi_text[24];
    const char *title = is_saturated ? "FP8 saturation by site" : "FP8 underflow by site";
    find_worst(r, is_saturated, &w);
    if (w.n == 0) return OK;
    int64_t steps = r->last_step - r->first_step + 1;
    int cols = steps < REPORT_CELLS ? (int)steps : REPORT_CELLS;
    double lo = least(&w), hi = w.peak[0];
    signed char *shade;
    MEM_NEW(shade, w.n * cols);
    for (int i = 0; i < w.n; i++)
        shade_row(w.of[i], lo, hi, r->first_step, (double)steps / cols, cols, shade + i * cols);
    snprintf(lo_text, sizeof lo_text, "%.2g%%", 100 * lo);
    snprintf(hi_text, sizeof hi_text, "%.2g%%", 100 * hi);
    caption(p, r, title, "% of values; the sites with the highest peaks (right)");
    scale(p->f, 'h', lo_text, hi_text);
    PlotHeat h = {
        .rows = w.n,
        .cols = cols,
        .shade = shade,
        .row_names = w.name,
        .row_ends = w.end,
        .x = {"step", PLOT_WHOLE, (double)r->first_step - 0.5, (double)r->last_step + 0.5}};
    open_svg(p->f, 10 + ROW * w.n + 52, title);
    plot_heat(p->f, &h, (PlotBox){150, 10, WIDTH - 150 - 72, ROW * w.n});
    fputs("</svg></figure>\n", p->f);
    mem_free(shade);
    return OK;
}

// ---- biases ------------------------------------------------------------------------------------

static Err draw_bias(Report *p, const ReportRun *r) {
    double most = 0;
    int n = r->nlayers * r->nexperts;
    for (int i = 0; i < n; i++)
        most = fmax(most, fabs((double)r->bias[i])); // of a number and NAN the number
    if (!(most > 0) || !isfinite(most)) return OK;
    signed char *shade;
    const char **names;
    char(*text)[16], unit[96], hi_text[24], lo_text[24];
    MEM_NEW(shade, n);
    MEM_NEW(names, r->nlayers);
    MEM_NEW(text, r->nlayers);
    for (int i = 0; i < n; i++) {
        double at = ((double)r->bias[i] / most + 1) / 2 * PLOT_SHADES;
        int k = at >= PLOT_SHADES ? PLOT_SHADES - 1 : (int)at;
        shade[i] = (signed char)(r->bias[i] == 0 || isnan(r->bias[i]) ? -1 : k);
    }
    double height = fmin(ROW * r->nlayers, MAX_HEIGHT);
    int every = (int)ceil(14.0 * r->nlayers / height); // rows with a name, so that names have room
    for (int i = 0; i < r->nlayers; i++) {
        snprintf(text[i], sizeof text[i], "layer %lld", (long long)r->bias_layer[i]);
        names[i] = i % every == 0 ? text[i] : NULL;
    }
    snprintf(hi_text, sizeof hi_text, "+%.3g", most);
    snprintf(lo_text, sizeof lo_text, "-%.3g", most);
    snprintf(unit, sizeof unit,
             "added to the scores of experts when they are chosen; checkpoint of step %lld",
             (long long)r->bias_step);
    caption(p, r, "Router biases", unit);
    scale(p->f, 'd', lo_text, hi_text);
    PlotHeat h = {.rows = r->nlayers,
                  .cols = r->nexperts,
                  .shade = shade,
                  .is_diverging = true,
                  .row_names = names,
                  .x = {"expert", PLOT_WHOLE, -0.5, r->nexperts - 0.5}};
    open_svg(p->f, 10 + height + 52, "Router biases");
    plot_heat(p->f, &h, (PlotBox){82, 10, WIDTH - 82 - 14, height});
    fputs("</svg></figure>\n", p->f);
    mem_free(shade);
    mem_free(names);
    mem_free(text);
    return OK;
}

Err report_heats(Report *p) {
    for (int r = 0; r < p->nruns; r++) {
        TRY(draw_sites(p, &p->run[r], true));
        TRY(draw_sites(p, &p->run[r], false));
        if (p->run[r].nlayers > 0) TRY(draw_bias(p, &p->run[r]));
    }
    return OK;
}
