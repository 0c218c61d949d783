// report_series.h - one quantity over the steps of a run of any length, in memory that does not
// grow.
//
// The steps are cut into at most `cap` stretches of equal length; when a step comes that has no
// place, neighbours are joined and stretches become twice as long. Of each stretch mean, least and
// largest value are kept, so that a spike of one step in a million is still seen.
#pragma once
#include "fail.h"

typedef struct SeriesPart {
    double sum, lo, hi;
    int64_t n; // values; 0: a gap
} SeriesPart;

typedef struct Series {
    SeriesPart *part;    // [cap]
    int cap, n;          // n: up to the last one with a value
    int64_t first, last; // steps with a value
    int64_t width;       // steps of a part
    bool is_sparse;      // has no value at most steps: parts without are no gaps
} Series;

// What is drawn: one entry per part, or per part that is not empty if the series is sparse.
typedef struct SeriesPoints {
    double *x, *mean, *lo, *hi, *smooth; // [n]; NAN: a gap. One block of memory, at x
    int n;
} SeriesPoints;

// series_create: empty, cap parts (even). series_free: gives its memory back. Local.
Err series_create(Series *s, int cap, bool is_sparse) MUST_CHECK;
void series_free(Series *s);
// series_add: value of a step; steps below the first are left out, values that are not finite are
// gaps. Local.
void series_add(Series *s, int64_t step, double value);
// series_total: mean, least and largest of all values; n 0: none. Pure.
SeriesPart series_total(const Series *s);
// series_points: for drawing, all values times `factor`; `smooth` is the mean of the parts within
// `window` steps around, never across a gap. Free with series_points_free. Errors: E_INTERNAL.
// Local.
Err series_points(const Series *s, double factor, int64_t window, SeriesPoints *out) MUST_CHECK;
void series_points_free(SeriesPoints *p);
