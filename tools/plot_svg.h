// plot_svg.h - plots as SVG: panels of several series of lines, bands or points, marks across
// them, heat maps; as files with a legend, or one by one into a page.
//
// Text and lines only, no scripts and no fonts of their own, so that any browser shows the file and
// any converter prints it. Values that are not finite, or not positive on a logarithmic axis, leave
// a gap in their line.
//
// Colours are classes, which a style sheet fills in: s0 to s6 of series, m0 to m3 of marks, h0 to
// h11 of a heat map's cells, d0 to d11 of one around 0; grid, frame, line, thin, band, mark, cross,
// label, panel, title. plot_svg writes a sheet into its file; a page brings its own.
#pragma once
#include "fail.h"

typedef enum PlotScale {
    PLOT_LINEAR,
    PLOT_LOG10, // ticks at powers of ten
    PLOT_LOG2,  // ticks at powers of two
    PLOT_WHOLE, // linear, ends where the values end, ticks at whole numbers: steps
} PlotScale;

typedef enum PlotStyle {
    PLOT_LINE,      // a line with markers
    PLOT_DASHED,    // dashed and without markers: for references
    PLOT_POINTS,    // markers alone
    PLOT_REFERENCE, // a grey line without markers or a place in the legend: label it; behind the
                    // others in the list
    PLOT_CURVE,     // a line without markers
    PLOT_THIN,      // a faint one: the values behind a smoothed curve
    PLOT_BAND,      // faint, from y to high
} PlotStyle;

enum { PLOT_COLOURS = 7, PLOT_SHADES = 12 };

typedef struct PlotSeries {
    const char *name; // in the legend
    const double *x, *y;
    int n;
    PlotStyle style;
    const char *const *labels; // [n] beside the points, NULL where there is none; NULL: no labels
    const double *high;        // [n] the upper edge of PLOT_BAND, else NULL
    int colour;                // 1 + which of the colours; 0: by its position in the list
    int dash;                  // of PLOT_CURVE: 0 none, 1 dashes, 2 dots
} PlotSeries;

typedef struct PlotAxis {
    const char *label;
    PlotScale scale;
    double lo, hi; // what it spans at least, what lies outside is cut off; both 0: all values
} PlotAxis;

// Something that happened at x, drawn under the series.
typedef enum PlotMarkKind {
    MARK_SAVE,    // a small triangle on the lower edge
    MARK_EVAL,    // a short line on the lower edge
    MARK_RESTART, // a dashed line across
    MARK_BAD,     // a line across
    MARK_KINDS,
} PlotMarkKind;
typedef struct PlotMark {
    double x;
    PlotMarkKind kind;
    int colour; // 1 + which of the series' colours; 0: that of its kind
} PlotMark;

// One panel; a single one is drawn larger. Equal positions in `series` have equal colours in all
// panels of a figure.
typedef struct PlotPanel {
    const char *title; // NULL: none
    PlotAxis x, y;
    const PlotSeries *series;
    int nseries;
    const PlotMark *marks;
    int nmarks;
} PlotPanel;

// Rows of cells along a common axis, each in one of PLOT_SHADES shades.
typedef struct PlotHeat {
    int rows, cols;
    const signed char *shade;     // [rows, cols]; below 0: nothing
    bool is_diverging;            // shades d0 to d5 are of one sign, d6 to d11 of the other
    const char *const *row_names; // [rows] on the left
    const char *const *row_ends;  // [rows] on the right, NULL: none
    PlotAxis x;                   // lo and hi are the outer edges of the cells
} PlotHeat;

typedef struct PlotBox {
    double left, top, width, height; // of the plotting area, pixels
} PlotBox;

// plot_svg: write a figure to `path`, which appears whole or not at all. `title` stands above all
// panels; the legend has the names of the first panel's series. UTF-8 text, escaped here.
// Errors: E_OUTPUT. Local.
Err plot_svg(const char *path, const char *title, const PlotPanel *panels, int npanels) MUST_CHECK;

// plot_panel / plot_heat: the same inside of an <svg> that the caller opened, with room for labels
// around the box: 8 pixels a letter of row names, 58 for ticks of y, 24 for ticks of x, 22 more for
// its label. plot_sample: of a series in a legend, from (left, y), 34 pixels long.
// plot_mark_sample: of a mark in a legend, 12 pixels high, at its x, its foot at y. Local.
void plot_panel(FILE *f, const PlotPanel *p, PlotBox box);
void plot_heat(FILE *f, const PlotHeat *h, PlotBox box);
void plot_sample(FILE *f, const PlotSeries *s, int position, double left, double y);
void plot_mark_sample(FILE *f, const PlotMark *m, double y);
// plot_text: text of any origin inside of XML or HTML, attributes included: what is no UTF-8 or no
// character of XML becomes a question mark. Local.
void plot_text(FILE *f, const char *s);
