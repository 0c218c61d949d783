// plot_heat.c - heat maps, see plot_svg.h.
#include <math.h>

#include "plot_axis.h"

// cells: all cells of one shade of a row in one path, neighbours joined.
static void cells(FILE *f, const PlotHeat *h, int row, int shade, PlotBox box, double height) {
    const signed char *at = h->shade + (size_t)row * (size_t)h->cols;
    double width = box.width / h->cols;
    for (int c = 0; c < h->cols; c++) {
        if (at[c] != shade) continue;
        int end = c + 1;
        while (end < h->cols && at[end] == shade) end++;
        fprintf(f, "M%.1f %.1fh%.1fv%.1fh%.1fz", box.left + c * width, box.top + row * height,
                (end - c) * width, height, (c - end) * width);
        c = end;
    }
}

void plot_heat(FILE *f, const PlotHeat *h, PlotBox box) {
    PlotPanel p = {.x = h->x, .y = {NULL, PLOT_LINEAR, 0, 1}};
    Axis x = {.start = box.left, .len = box.width};
    axis_fit(&x, &p, true);
    x.lo = h->x.lo; // to the edges of the cells, without a margin
    x.hi = h->x.hi;
    double height = box.height / h->rows;
    axis_draw_x(f, &x, box.top + box.height);
    fputs("<g shape-rendering=\"crispEdges\">", f); // no seams between cells
    for (int s = 0; s < PLOT_SHADES; s++) {
        fprintf(f, "<path class=\"%c%d\" d=\"", h->is_diverging ? 'd' : 'h', s);
        for (int r = 0; r < h->rows; r++) cells(f, h, r, s, box, height);
        fputs("\"/>\n", f);
    }
    fputs("</g>", f);
    fprintf(f, "<path class=\"frame\" d=\"M%.1f %.1fh%.1fv%.1fh%.1fz\"/>\n", box.left, box.top,
            box.width, box.height, -box.width);
    for (int r = 0; r < h->rows; r++) {
        double y = box.top + (r + 0.5) * height + 4;
        if (h->row_names && h->row_names[r]) {
            fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", box.left - 8, y);
            plot_text(f, h->row_names[r]);
            fputs("</text>\n", f);
        }
        if (!h->row_ends || !h->row_ends[r]) continue;
        fprintf(f, "<text x=\"%.1f\" y=\"%.1f\">", box.left + box.width + 8, y);
        plot_text(f, h->row_ends[r]);
        fputs("</text>\n", f);
    }
    if (!h->x.label) return;
    fprintf(f, "<text class=\"label\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">",
            box.left + box.width / 2, box.top + box.height + 46);
    plot_text(f, h->x.label);
    fputs("</text>\n", f);
}
