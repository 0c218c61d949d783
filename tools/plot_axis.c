// plot_axis.c - see plot_axis.h.
#include "plot_axis.h"

#include <math.h>

// unit: a value in the unit of its axis; NaN if it has no place there.
static double unit(PlotScale scale, double v) {
    if (!isfinite(v)) return NAN;
    if (scale == PLOT_LINEAR || scale == PLOT_WHOLE) return v;
    if (v <= 0) return NAN;
    return scale == PLOT_LOG10 ? log10(v) : log2(v);
}

double axis_place(const Axis *a, double v) {
    return a->start + (unit(a->scale, v) - a->lo) / (a->hi - a->lo) * a->len;
}

// linear_step: 1, 2 or 5 times a power of ten, so that there are 4 to 10 steps.
static double linear_step(double span) {
    double ten = pow(10, floor(log10(span / 4)));
    double wish = span / 4 / ten;
    return (wish >= 5 ? 5 : wish >= 2 ? 2 : 1) * ten;
}

// span: the least and the largest value, in the unit of the axis.
static void span(Axis *a, const PlotPanel *p, bool is_x) {
    for (int s = 0; s < p->nseries; s++)
        for (int i = 0; i < p->series[s].n; i++) {
            const PlotSeries *q = &p->series[s];
            double x = unit(p->x.scale, q->x[i]), y = unit(p->y.scale, q->y[i]);
            double high = q->high ? unit(p->y.scale, q->high[i]) : y;
            if (isnan(x) || isnan(y) || isnan(high)) continue;
            a->lo = fmin(a->lo, is_x ? x : y);
            a->hi = fmax(a->hi, is_x ? x : high);
        }
}

void axis_fit(Axis *a, const PlotPanel *p, bool is_x) {
    const PlotAxis *ask = is_x ? &p->x : &p->y;
    a->scale = ask->scale;
    a->is_asked = ask->hi > ask->lo;
    a->lo = a->is_asked ? unit(a->scale, ask->lo) : INFINITY;
    a->hi = a->is_asked ? unit(a->scale, ask->hi) : -INFINITY;
    if (!a->is_asked) span(a, p, is_x);
    if (a->lo > a->hi) a->lo = 0, a->hi = 1; // nothing to show
    if (a->scale == PLOT_LOG10 && a->is_asked) return;
    if (a->scale == PLOT_LOG10) {
        a->lo = floor(a->lo + 1e-9);
        a->hi = ceil(a->hi - 1e-9);
        if (a->hi <= a->lo) a->hi = a->lo + 1;
    } else if (a->scale == PLOT_LOG2) {
        a->lo -= 0.25;
        a->hi += 0.25;
    } else if (a->scale == PLOT_WHOLE) { // close to the values: a run fills its width
        double margin = a->hi > a->lo ? 0.015 * (a->hi - a->lo) : 0.5;
        a->lo -= margin;
        a->hi += margin;
    } else {
        if (a->hi <= a->lo) a->lo -= 0.5, a->hi += 0.5;
        for (int i = 0; i < 2; i++) { // the wider span may have another step
            double step = linear_step(a->hi - a->lo);
            a->lo = floor(a->lo / step + 1e-9) * step;
            a->hi = ceil(a->hi / step - 1e-9) * step;
        }
    }
}

// A few decades that need not be whole have ticks inside of them as well.
static bool is_short_log(const Axis *a) {
    return a->scale == PLOT_LOG10 && a->is_asked && a->hi - a->lo < 3.2;
}

// ticks: places in the unit of the axis.
static int ticks(const Axis *a, double *at) {
    bool is_linear = a->scale == PLOT_LINEAR || a->scale == PLOT_WHOLE;
    double step = is_linear ? linear_step(a->hi - a->lo) : ceil((a->hi - a->lo) / 12);
    if (a->scale == PLOT_WHOLE && step < 1) step = 1;
    int n = 0;
    double first = is_short_log(a) ? floor(a->lo) : ceil(a->lo / step - 1e-9) * step;
    for (double v = first; v <= a->hi + 1e-9 * step && n < MAX_TICKS; v += step) {
        if (v >= a->lo - 1e-9 * step) at[n++] = fabs(v) < 1e-9 * step ? 0 : v;
        for (int k = 2; k <= 5 && n < MAX_TICKS && is_short_log(a); k += 3)
            if (v + log10(k) >= a->lo && v + log10(k) <= a->hi) at[n++] = v + log10(k);
    }
    return n;
}

// number: 12000 as 12k, unless that is not the number.
static void number(FILE *f, double v) {
    static const char *const names[] = {"k", "M", "G", "T", "P"};
    int k = -1;
    double s = v;
    while (fabs(v) >= 1e4 && fabs(s) >= 1e3 && k < 4) s /= 1e3, k++;
    fprintf(f, "%g%s", s, k < 0 ? "" : names[k]);
}

// tick_label: powers of ten with an exponent unless all of the axis reads well without.
static void tick_label(FILE *f, const Axis *a, double v) {
    if (a->scale == PLOT_LINEAR || a->scale == PLOT_WHOLE)
        number(f, v);
    else if (a->scale == PLOT_LOG2)
        fprintf(f, "%g", exp2(v));
    else if ((a->lo >= -3 && a->hi <= 3) || is_short_log(a))
        fprintf(f, "%.4g", pow(10, v));
    else
        fprintf(f, "10<tspan dy=\"-6\" font-size=\"10\">%g</tspan>", v);
}

static void draw_x(FILE *f, const Axis *x, double bottom, double height) {
    double at[MAX_TICKS];
    int n = ticks(x, at);
    for (int i = 0; i < n; i++) {
        double px = x->start + (at[i] - x->lo) / (x->hi - x->lo) * x->len;
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fv%.1f\"/>", px, bottom, height);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", px, bottom + 20);
        tick_label(f, x, at[i]);
        fputs("</text>\n", f);
    }
}

void axis_draw_x(FILE *f, const Axis *x, double bottom) {
    draw_x(f, x, bottom, 5);
}

void axis_draw(FILE *f, const Axis *x, const Axis *y) {
    double at[MAX_TICKS];
    draw_x(f, x, y->start, y->len);
    int n = ticks(y, at);
    for (int i = 0; i < n; i++) {
        double py = y->start + (at[i] - y->lo) / (y->hi - y->lo) * y->len;
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fh%.1f\"/>", x->start, py, x->len);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", x->start - 8, py + 4);
        tick_label(f, y, at[i]);
        fputs("</text>\n", f);
    }
    fprintf(f, "<path class=\"frame\" d=\"M%.1f %.1fh%.1fv%.1fh%.1fz\"/>\n", x->start, y->start,
            x->len, y->len, -x->len);
}
