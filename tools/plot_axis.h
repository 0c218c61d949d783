// plot_axis.h - the axes of a plot: which values they span, where their ticks stand, and what is
// drawn of them. Private to plot_*.c.
//
// Coordinates are pixels. An axis maps values, or their logarithms, linearly to them.
#pragma once
#include "plot_svg.h"

enum { MAX_TICKS = 64 };

typedef struct Axis {
    PlotScale scale;
    bool is_asked;     // the panel says what it spans: it need not be whole decades
    double lo, hi;     // in the unit of the axis: the value or its logarithm
    double start, len; // pixels; len < 0: upwards
} Axis;

// axis_fit: limits that hold all values of the panel in one direction: whole decades, octaves with
// a margin, whole linear steps; or the limits that the panel asks for.
void axis_fit(Axis *a, const PlotPanel *p, bool is_x);
// axis_place: pixels; NaN if the value has no place on the axis.
double axis_place(const Axis *a, double v);
// axis_draw: grid, ticks and frame of both. axis_draw_x: ticks alone, below `bottom`.
void axis_draw(FILE *f, const Axis *x, const Axis *y);
void axis_draw_x(FILE *f, const Axis *x, double bottom);
