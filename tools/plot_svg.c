// plot_svg.c - see plot_svg.h. Coordinates are pixels; an axis maps values, or their logarithms,
// linearly to them.
#include "plot_svg.h"

#include <math.h>
#include <string.h>

#include "outfile.h"

enum {
    LEFT = 82, // room for labels around a panel
    RIGHT = 24,
    TOP = 84,
    BOTTOM = 64,
    LEGEND_LINE = 24,
    MAX_TICKS = 64,
    MAX_BOXES = 512,
};

// Of the plotting area of one panel.
typedef struct PanelSize {
    int width, height;
} PanelSize;

static PanelSize panel_size(int npanels) {
    return npanels == 1 ? (PanelSize){640, 440} : (PanelSize){430, 330};
}

// What is drawn where, so that labels find a free place; pixels.
typedef struct Boxes {
    struct Box {
        double x0, y0, x1, y1;
    } at[MAX_BOXES];
    int n;
} Boxes;

// Told apart by people who see colours differently (Okabe and Ito), and by their markers.
static const char *const colours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                      "#e69f00", "#56b4e9", "#555555"};
enum { COLOURS = sizeof colours / sizeof *colours, MARKERS = 5 };

typedef struct Axis {
    PlotScale scale;
    double lo, hi;     // in the unit of the axis: the value or its logarithm
    double start, len; // pixels; len < 0: upwards
} Axis;

// unit: a value in the unit of its axis; NaN if it has no place there.
static double unit(PlotScale scale, double v) {
    if (!isfinite(v)) return NAN;
    if (scale == PLOT_LINEAR) return v;
    if (v <= 0) return NAN;
    return scale == PLOT_LOG10 ? log10(v) : log2(v);
}

static double place(const Axis *a, double v) {
    return a->start + (unit(a->scale, v) - a->lo) / (a->hi - a->lo) * a->len;
}

// linear_step: 1, 2 or 5 times a power of ten, so that there are 4 to 10 steps.
static double linear_step(double span) {
    double ten = pow(10, floor(log10(span / 4)));
    double wish = span / 4 / ten;
    return (wish >= 5 ? 5 : wish >= 2 ? 2 : 1) * ten;
}

// fit: limits that hold all values of one direction: whole decades, octaves with a margin, whole
// linear steps.
static void fit(Axis *a, const PlotPanel *p, bool is_x) {
    a->scale = is_x ? p->x.scale : p->y.scale;
    a->lo = INFINITY;
    a->hi = -INFINITY;
    for (int s = 0; s < p->nseries; s++)
        for (int i = 0; i < p->series[s].n; i++) {
            double x = unit(p->x.scale, p->series[s].x[i]);
            double y = unit(p->y.scale, p->series[s].y[i]);
            if (isnan(x) || isnan(y)) continue;
            a->lo = fmin(a->lo, is_x ? x : y);
            a->hi = fmax(a->hi, is_x ? x : y);
        }
    if (a->lo > a->hi) a->lo = 0, a->hi = 1; // nothing to show
    if (a->scale == PLOT_LOG10) {
        a->lo = floor(a->lo + 1e-9);
        a->hi = ceil(a->hi - 1e-9);
        if (a->hi <= a->lo) a->hi = a->lo + 1;
    } else if (a->scale == PLOT_LOG2) {
        a->lo -= 0.25;
        a->hi += 0.25;
    } else {
        if (a->hi <= a->lo) a->lo -= 0.5, a->hi += 0.5;
        double step = linear_step(a->hi - a->lo);
        a->lo = floor(a->lo / step + 1e-9) * step;
        a->hi = ceil(a->hi / step - 1e-9) * step;
    }
}

// ticks: places in the unit of the axis; *step is their distance.
static int ticks(const Axis *a, double *at, double *step) {
    *step = a->scale == PLOT_LINEAR ? linear_step(a->hi - a->lo) : 1;
    if (a->scale != PLOT_LINEAR) *step = ceil((a->hi - a->lo) / 12);
    int n = 0;
    for (double v = ceil(a->lo / *step - 1e-9) * *step; v <= a->hi + 1e-9 * *step && n < MAX_TICKS;
         v += *step)
        at[n++] = fabs(v) < 1e-9 * *step ? 0 : v;
    return n;
}

static void text(FILE *f, const char *s) {
    for (; *s; s++) {
        if (*s == '<')
            fputs("&lt;", f);
        else if (*s == '>')
            fputs("&gt;", f);
        else if (*s == '&')
            fputs("&amp;", f);
        else
            fputc(*s, f);
    }
}

// tick_label: powers of ten with an exponent unless all of the axis reads well without.
static void tick_label(FILE *f, const Axis *a, double v) {
    if (a->scale == PLOT_LINEAR)
        fprintf(f, "%g", v);
    else if (a->scale == PLOT_LOG2)
        fprintf(f, "%g", exp2(v));
    else if (a->lo >= -3 && a->hi <= 3)
        fprintf(f, "%g", pow(10, v));
    else
        fprintf(f, "10<tspan dy=\"-6\" font-size=\"10\">%g</tspan>", v);
}

static void draw_grid(FILE *f, const Axis *x, const Axis *y) {
    double at[MAX_TICKS], step;
    int n = ticks(x, at, &step);
    for (int i = 0; i < n; i++) {
        double px = x->start + (at[i] - x->lo) / (x->hi - x->lo) * x->len;
        fprintf(f, "<path class=\"grid\" d=\"M%.1f %.1fv%.1f\"/>", px, y->start, y->len);
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", px, y->start + 20);
        tick_label(f, x, at[i]);
        fputs("</text>\n", f);
    }
    n = ticks(y, at, &step);
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

static void draw_marker(FILE *f, int which, double x, double y) {
    static const char *const shape[MARKERS] = {
        "M%.1f %.1fm-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", // circle
        "M%.1f %.1fm-3.5 -3.5h7v7h-7z",                  // square
        "M%.1f %.1fm0 -5l5 8.5h-10z",                    // triangle
        "M%.1f %.1fm0 -5l5 5l-5 5l-5 -5z",               // diamond
        "M%.1f %.1fm0 5l5 -8.5h-10z",                    // triangle on its point
    };
    fputs("<path class=\"mark\" d=\"", f);
    fprintf(f, shape[which % MARKERS], x, y);
    fputs("\"/>", f);
}

static bool has_markers(const PlotSeries *s) {
    return s->style == PLOT_LINE || s->style == PLOT_POINTS;
}

static void open_series(FILE *f, int which, PlotStyle style) {
    const char *c = style == PLOT_REFERENCE ? "#888888" : colours[which % COLOURS];
    fprintf(f, "<g stroke=\"%s\" fill=\"%s\"%s>", c, c,
            style == PLOT_DASHED ? " stroke-dasharray=\"7 5\"" : "");
}

static void box_add(Boxes *b, double x0, double y0, double x1, double y1) {
    if (b->n < MAX_BOXES) b->at[b->n++] = (struct Box){x0, y0, x1, y1};
}

static bool box_is_free(const Boxes *b, struct Box w) {
    for (int i = 0; i < b->n; i++)
        if (w.x0 < b->at[i].x1 && b->at[i].x0 < w.x1 && w.y0 < b->at[i].y1 && b->at[i].y0 < w.y1)
            return false;
    return true;
}

// draw_label: beside the point, where there is room: right, left, above, below, then further away.
// A reference's stand below the foot of its line, or above its end.
static void draw_label(FILE *f, const char *label, const PlotSeries *s, int i, const Axis *x,
                       double px, double py, Boxes *boxes) {
    enum { PLACES = 24 };
    double w = 6.3 * (double)strlen(label), h = 12, end = x->start + x->len;
    struct Box at = {px + 8, py + 1, px + 8 + w, py + 1 + h};
    if (s->style == PLOT_REFERENCE && i > 0) at = (struct Box){px - w - 4, py - 18, px - 4, py - 6};
    for (int k = 0; s->style == PLOT_REFERENCE && i == 0 && k < PLACES; k++) {
        if (box_is_free(boxes, at)) break;
        at.y0 += 5;
        at.y1 += 5;
    }
    for (int k = 0; s->style != PLOT_REFERENCE && k < PLACES; k++) {
        double far = 7.0 + 11.0 * (double)(k / 4);
        double left = k % 4 == 0 ? px + far : k % 4 == 1 ? px - far - w : px - w / 2;
        double top = k % 4 == 2 ? py - far - h : k % 4 == 3 ? py + far : py - h / 2;
        at = (struct Box){left, top, left + w, top + h};
        if (at.x0 > x->start && at.x1 < end && box_is_free(boxes, at)) break;
    }
    box_add(boxes, at.x0, at.y0, at.x1, at.y1);
    fprintf(f, "<text stroke=\"none\" font-size=\"11\" x=\"%.1f\" y=\"%.1f\">", at.x0, at.y1 - 2);
    text(f, label);
    fputs("</text>\n", f);
}

static void draw_line(FILE *f, const PlotSeries *s, const Axis *x, const Axis *y) {
    fputs("<path class=\"line\" d=\"", f);
    bool is_down = false; // the pen
    for (int i = 0; i < s->n; i++) {
        double px = place(x, s->x[i]), py = place(y, s->y[i]);
        bool is_there = isfinite(px) && isfinite(py);
        if (is_there) fprintf(f, "%c%.1f %.1f", is_down ? 'L' : 'M', px, py);
        is_down = is_there;
    }
    fputs("\"/>", f);
}

static void draw_series(FILE *f, const PlotSeries *s, int which, const Axis *x, const Axis *y,
                        Boxes *boxes) {
    open_series(f, which, s->style);
    if (s->style != PLOT_POINTS) draw_line(f, s, x, y);
    for (int i = 0; i < s->n && has_markers(s); i++) {
        double px = place(x, s->x[i]), py = place(y, s->y[i]);
        if (!isfinite(px) || !isfinite(py)) continue;
        draw_marker(f, which, px, py);
        box_add(boxes, px - 5, py - 5, px + 5, py + 5);
    }
    fputs("</g>\n", f);
}

static void draw_labels(FILE *f, const PlotSeries *s, int which, const Axis *x, const Axis *y,
                        Boxes *boxes) {
    if (!s->labels) return;
    open_series(f, which, s->style);
    for (int i = 0; i < s->n; i++) {
        double px = place(x, s->x[i]), py = place(y, s->y[i]);
        if (s->labels[i] && isfinite(px) && isfinite(py))
            draw_label(f, s->labels[i], s, i, x, px, py, boxes);
    }
    fputs("</g>\n", f);
}

static void draw_panel(FILE *f, const PlotPanel *p, double left, PanelSize size) {
    Axis x = {.start = left, .len = size.width},
         y = {.start = TOP + size.height, .len = -size.height};
    Boxes boxes = {.n = 0};
    fit(&x, p, true);
    fit(&y, p, false);
    draw_grid(f, &x, &y);
    for (int s = p->nseries - 1; s >= 0; s--) draw_series(f, &p->series[s], s, &x, &y, &boxes);
    for (int s = p->nseries - 1; s >= 0; s--) draw_labels(f, &p->series[s], s, &x, &y, &boxes);
    fprintf(f, "<text class=\"panel\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">",
            left + size.width / 2.0, TOP - 14);
    text(f, p->title);
    fprintf(f, "</text>\n<text class=\"label\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">",
            left + size.width / 2.0, TOP + size.height + 46);
    text(f, p->x.label);
    double mid = TOP + size.height / 2.0;
    fprintf(f,
            "</text>\n<text class=\"label\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" "
            "transform=\"rotate(-90 %.1f %.1f)\">",
            left - 58, mid, left - 58, mid);
    text(f, p->y.label);
    fputs("</text>\n", f);
}

static void draw_legend(FILE *f, const PlotPanel *p, double left) {
    double y = TOP + 14;
    for (int s = 0; s < p->nseries; s++) {
        const PlotSeries *q = &p->series[s];
        if (q->style == PLOT_REFERENCE || (q->style == PLOT_POINTS && q->n == 0)) continue;
        open_series(f, s, q->style);
        if (q->n > 1 && q->style != PLOT_POINTS)
            fprintf(f, "<path class=\"line\" d=\"M%.1f %.1fh34\"/>", left, y);
        if (has_markers(q)) draw_marker(f, s, left + 17, y);
        fprintf(f, "</g><text class=\"label\" x=\"%.1f\" y=\"%.1f\">", left + 44, y + 5);
        text(f, q->name);
        fputs("</text>\n", f);
        y += LEGEND_LINE;
    }
}

// legend_width: as wide as its longest name; 7.4 pixels a character is ample at this size.
static double legend_width(const PlotPanel *p) {
    size_t most = 0;
    for (int s = 0; s < p->nseries; s++)
        if (p->series[s].style != PLOT_REFERENCE && strlen(p->series[s].name) > most)
            most = strlen(p->series[s].name);
    return 44 + 7.4 * (double)most;
}

Err plot_svg(const char *path, const char *title, const PlotPanel *panels, int npanels) {
    OutFile o;
    CHECK(npanels > 0, E_INTERNAL, "a plot without panels");
    TRY(outfile_open(&o, path));
    FILE *f = o.f;
    double legend = legend_width(&panels[0]);
    PanelSize size = panel_size(npanels);
    int height = TOP + size.height + BOTTOM;
    double width = npanels * (LEFT + size.width + RIGHT) + legend + RIGHT;
    fprintf(f,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%d\" viewBox=\"0 0 "
            "%.0f %d\" font-family=\"DejaVu Sans, Verdana, Helvetica, Arial, sans-serif\" "
            "font-size=\"12\" fill=\"#222\">\n",
            width, height, width, height);
    fputs("<style>.grid{stroke:#dddddd;fill:none}.frame{stroke:#666666;fill:none}"
          ".line{fill:none;stroke-width:2}.mark{stroke:#ffffff;stroke-width:1}"
          ".label{font-size:13px}.panel{font-size:14px}.title{font-size:17px;font-weight:bold}"
          "</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
          f);
    fprintf(f, "<text class=\"title\" x=\"%d\" y=\"32\">", LEFT);
    text(f, title);
    fputs("</text>\n", f);
    for (int i = 0; i < npanels; i++)
        draw_panel(f, &panels[i], LEFT + (double)i * (LEFT + size.width + RIGHT), size);
    draw_legend(f, &panels[0], (double)npanels * (LEFT + size.width + RIGHT));
    fputs("</svg>\n", f);
    TRY(outfile_finish(&o, false));
    return OK;
}
