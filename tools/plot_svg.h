// plot_svg.h - plots as SVG files: panels side by side, several series of lines or points, one
// legend.
//
// Text and lines only, no scripts and no fonts of their own, so that any browser shows the file and
// any converter prints it. Values that are not finite, or not positive on a logarithmic axis, leave
// a gap in their line.
#pragma once
#include "fail.h"

typedef enum PlotScale {
    PLOT_LINEAR,
    PLOT_LOG10, // ticks at powers of ten
    PLOT_LOG2,  // ticks at powers of two
} PlotScale;

typedef enum PlotStyle {
    PLOT_LINE,      // a line with markers
    PLOT_DASHED,    // dashed and without markers: for references
    PLOT_POINTS,    // markers alone
    PLOT_REFERENCE, // a grey line without markers or a place in the legend: label it; behind the
                    // others in the list
} PlotStyle;

typedef struct PlotSeries {
    const char *name; // in the legend
    const double *x, *y;
    int n;
    PlotStyle style;
    const char *const *labels; // [n] beside the points, NULL where there is none; NULL: no labels
} PlotSeries;

typedef struct PlotAxis {
    const char *label;
    PlotScale scale;
} PlotAxis;

// One panel; a single one is drawn larger. Equal positions in `series` have equal colours in all
// panels of a figure.
typedef struct PlotPanel {
    const char *title;
    PlotAxis x, y;
    const PlotSeries *series;
    int nseries;
} PlotPanel;

// plot_svg: write a figure to `path`, which appears whole or not at all. `title` stands above all
// panels; the legend has the names of the first panel's series. UTF-8 text, escaped here.
// Errors: E_OUTPUT. Local.
Err plot_svg(const char *path, const char *title, const PlotPanel *panels, int npanels) MUST_CHECK;
