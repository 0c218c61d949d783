// plot_svg.c - see plot_svg.h: series, marks, panels, and the figure as a file. Coordinates are
// pixels.
#include "plot_svg.h"

#include <math.h>
#include <string.h>

#include "bytelevel.h"
#include "outfile.h"
#include "plot_axis.h"

enum {
    LEFT = 82, // room for labels around a panel
    RIGHT = 24,
    TOP = 84,
    BOTTOM = 64,
    LEGEND_LINE = 24,
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
static const char *const colours[PLOT_COLOURS] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                  "#e69f00", "#56b4e9", "#555555"};
enum { MARKERS = 5 };

void plot_text(FILE *f, const char *s) {
    size_t n = strlen(s), valid = utf8_valid_bytes(s, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (i >= valid) {
            fputc('?', f);
            valid = i + 1 + utf8_valid_bytes(s + i + 1, n - i - 1);
        } else if (c == '<') {
            fputs("&lt;", f);
        } else if (c == '>') {
            fputs("&gt;", f);
        } else if (c == '&') {
            fputs("&amp;", f);
        } else if (c == '"') {
            fputs("&quot;", f);
        } else if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
            fputc('?', f);
        } else if (c == 0xef && (unsigned char)s[i + 1] == 0xbf &&
                   (unsigned char)s[i + 2] >= 0xbe) {
            fputc('?', f); // U+FFFE, U+FFFF
            i += 2;
        } else {
            fputc(c, f);
        }
    }
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

// open_series: `position` in the list decides about the colour where the series does not.
static void open_series(FILE *f, const PlotSeries *s, int position) {
    static const char *const dashes[] = {"", " stroke-dasharray=\"7 5\"",
                                         " stroke-dasharray=\"2 3\""};
    const char *dash = dashes[s->style == PLOT_DASHED ? 1 : s->dash];
    if (s->style == PLOT_REFERENCE)
        fprintf(f, "<g class=\"ref\"%s>", dash);
    else
        fprintf(f, "<g class=\"s%d\"%s>", (s->colour > 0 ? s->colour - 1 : position) % PLOT_COLOURS,
                dash);
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
    plot_text(f, label);
    fputs("</text>\n", f);
}

static void draw_line(FILE *f, const PlotSeries *s, const Axis *x, const Axis *y) {
    fprintf(f, "<path class=\"%s\" d=\"", s->style == PLOT_THIN ? "thin" : "line");
    bool is_down = false; // the pen
    for (int i = 0; i < s->n; i++) {
        double px = axis_place(x, s->x[i]), py = axis_place(y, s->y[i]);
        bool is_there = isfinite(px) && isfinite(py);
        if (is_there) fprintf(f, "%c%.1f %.1f", is_down ? 'L' : 'M', px, py);
        is_down = is_there;
    }
    fputs("\"/>", f);
}

// draw_band: a polygon for each stretch without a gap: forth along the lower edge, back along the
// upper one.
static void draw_band(FILE *f, const PlotSeries *s, const Axis *x, const Axis *y) {
    fputs("<path class=\"band\" d=\"", f);
    for (int i = 0, end = 0; i < s->n; i = end + 1) {
        for (end = i; end < s->n; end++) {
            double px = axis_place(x, s->x[end]), py = axis_place(y, s->y[end]);
            if (!isfinite(px) || !isfinite(py) || !isfinite(axis_place(y, s->high[end]))) break;
            fprintf(f, "%c%.1f %.1f", end == i ? 'M' : 'L', px, py);
        }
        for (int k = end - 1; k >= i; k--)
            fprintf(f, "L%.1f %.1f%s", axis_place(x, s->x[k]), axis_place(y, s->high[k]),
                    k == i ? "z" : "");
    }
    fputs("\"/>", f);
}

static void draw_series(FILE *f, const PlotSeries *s, int which, const Axis *x, const Axis *y,
                        Boxes *boxes) {
    open_series(f, s, which);
    if (s->style == PLOT_BAND)
        draw_band(f, s, x, y);
    else if (s->style != PLOT_POINTS)
        draw_line(f, s, x, y);
    for (int i = 0; i < s->n && has_markers(s); i++) {
        double px = axis_place(x, s->x[i]), py = axis_place(y, s->y[i]);
        if (!isfinite(px) || !isfinite(py)) continue;
        draw_marker(f, s->colour > 0 ? s->colour - 1 : which, px, py);
        box_add(boxes, px - 5, py - 5, px + 5, py + 5);
    }
    fputs("</g>\n", f);
}

// draw_mark: at pixel x, from the lower edge, y, to the upper one, `height` above.
static void draw_mark(FILE *f, const PlotMark *m, double x, double y, double height) {
    if (m->colour > 0)
        fprintf(f, "<path class=\"cross s%d\"", (m->colour - 1) % PLOT_COLOURS);
    else
        fprintf(f, "<path class=\"%sm%d\"", m->kind == MARK_SAVE ? "" : "cross ", m->kind);
    if (m->kind == MARK_SAVE)
        fprintf(f, " d=\"M%.1f %.1fm-3.5 0h7l-3.5 -6z\"/>", x, y);
    else
        fprintf(f, "%s d=\"M%.1f %.1fv%.1f\"/>",
                m->kind == MARK_RESTART ? " stroke-dasharray=\"5 3\"" : "", x, y,
                m->kind == MARK_EVAL ? -10 : -height);
}

void plot_mark_sample(FILE *f, const PlotMark *m, double y) {
    draw_mark(f, m, m->x, y, 12);
}

static void draw_marks(FILE *f, const PlotPanel *p, const Axis *x, const Axis *y) {
    for (int i = 0; i < p->nmarks; i++) {
        double px = axis_place(x, p->marks[i].x);
        if (px >= x->start && px <= x->start + x->len)
            draw_mark(f, &p->marks[i], px, y->start, -y->len);
    }
    if (p->nmarks > 0) fputc('\n', f);
}

static void draw_labels(FILE *f, const PlotSeries *s, int which, const Axis *x, const Axis *y,
                        Boxes *boxes) {
    if (!s->labels) return;
    open_series(f, s, which);
    for (int i = 0; i < s->n; i++) {
        double px = axis_place(x, s->x[i]), py = axis_place(y, s->y[i]);
        if (s->labels[i] && isfinite(px) && isfinite(py))
            draw_label(f, s->labels[i], s, i, x, px, py, boxes);
    }
    fputs("</g>\n", f);
}

static void draw_names(FILE *f, const PlotPanel *p, PlotBox box) {
    double centre = box.left + box.width / 2, mid = box.top + box.height / 2, left = box.left - 58;
    if (p->title) {
        fprintf(f, "<text class=\"panel\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", centre,
                box.top - 14);
        plot_text(f, p->title);
        fputs("</text>\n", f);
    }
    if (p->x.label) {
        fprintf(f, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", centre,
                box.top + box.height + 46);
        plot_text(f, p->x.label);
        fputs("</text>\n", f);
    }
    if (!p->y.label) return;
    fprintf(f,
            "<text class=\"label\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" "
            "transform=\"rotate(-90 %.1f %.1f)\">",
            left, mid, left, mid);
    plot_text(f, p->y.label);
    fputs("</text>\n", f);
}

void plot_panel(FILE *f, const PlotPanel *p, PlotBox box) {
    enum { OVER = 6 }; // what a marker may stand out on the left and right
    Axis x = {.start = box.left, .len = box.width},
         y = {.start = box.top + box.height, .len = -box.height};
    Boxes boxes = {.n = 0};
    bool is_cut = p->y.hi > p->y.lo;
    axis_fit(&x, p, true);
    axis_fit(&y, p, false);
    axis_draw(f, &x, &y);
    draw_marks(f, p, &x, &y);
    // An svg inside of an svg cuts off what stands out, without a name that must be unique in a
    // page.
    if (is_cut)
        fprintf(f,
                "<svg x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" viewBox=\"%.1f %.1f "
                "%.1f %.1f\">\n",
                box.left - OVER, box.top, box.width + 2 * OVER, box.height, box.left - OVER,
                box.top, box.width + 2 * OVER, box.height);
    for (int s = p->nseries - 1; s >= 0; s--) draw_series(f, &p->series[s], s, &x, &y, &boxes);
    if (is_cut) fputs("</svg>\n", f);
    for (int s = p->nseries - 1; s >= 0; s--) draw_labels(f, &p->series[s], s, &x, &y, &boxes);
    draw_names(f, p, box);
}

void plot_sample(FILE *f, const PlotSeries *s, int position, double left, double y) {
    open_series(f, s, position);
    if (s->n > 1 && s->style != PLOT_POINTS)
        fprintf(f, "<path class=\"line\" d=\"M%.1f %.1fh34\"/>", left, y);
    if (has_markers(s)) draw_marker(f, s->colour > 0 ? s->colour - 1 : position, left + 17, y);
    fputs("</g>", f);
}

static void draw_legend(FILE *f, const PlotPanel *p, double left) {
    double y = TOP + 14;
    for (int s = 0; s < p->nseries; s++) {
        const PlotSeries *q = &p->series[s];
        if (q->style == PLOT_REFERENCE || (q->style == PLOT_POINTS && q->n == 0)) continue;
        plot_sample(f, q, s, left, y);
        fprintf(f, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\">", left + 44, y + 5);
        plot_text(f, q->name);
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

// What a white page needs.
static void write_sheet(FILE *f) {
    fputs("<style>.grid{stroke:#dddddd;fill:none}.frame{stroke:#666666;fill:none}"
          ".ref{stroke:#888888;fill:#888888}"
          ".line,.thin,path.cross{fill:none;stroke-width:2}.mark{stroke:#ffffff;stroke-width:1}"
          ".thin{stroke-width:1;opacity:.4}.band{stroke:none;opacity:.25}"
          ".label{font-size:13px}.panel{font-size:14px}.title{font-size:17px;font-weight:bold}",
          f);
    for (int i = 0; i < PLOT_COLOURS; i++)
        fprintf(f, ".s%d{stroke:%s;fill:%s}", i, colours[i], colours[i]);
    fputs("</style>\n", f);
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
    write_sheet(f);
    fputs("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n", f);
    fprintf(f, "<text class=\"title\" x=\"%d\" y=\"32\">", LEFT);
    plot_text(f, title);
    fputs("</text>\n", f);
    for (int i = 0; i < npanels; i++)
        plot_panel(f, &panels[i],
                   (PlotBox){LEFT + (double)i * (LEFT + size.width + RIGHT), TOP, size.width,
                             size.height});
    draw_legend(f, &panels[0], (double)npanels * (LEFT + size.width + RIGHT));
    fputs("</svg>\n", f);
    TRY(outfile_finish(&o, false));
    return OK;
}
