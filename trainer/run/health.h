// health.h - the FP8 health of a run: what every site of every block lost when it was put into codes, over
// all ranks.
//
// A step counts into cx->health, one QuantCount per site and block (cx.h, site.h). Here these become numbers
// for people and files: totals of the step, and on steps that print a line a row per site, counted since the
// last such step. Everything is summed as integers, so that any number of ranks that quantise the same things
// gives the same numbers. A weight that several ranks hold is counted by the first of them only; the experts
// of a block are one site, together.
#pragma once
#include "cx.h"

// What one site lost since the last line. Scales are rounded down to powers of two; NAN where no tile held
// anything but zeros (and what is not finite).
typedef struct HealthRow {
    SiteLabel site;              // "L3.o.x"
    double saturated, underflow; // shares of the values
    int64_t nonfinite_tiles;
    double scale_min, scale_median, scale_max; // over tiles
    double amax;                               // largest finite magnitude
} HealthRow;

typedef struct Health {
    int64_t n;         // blocks * SITE_COUNT
    QuantCount *since; // [n] this rank, since the last rows
    QuantCount *seen;  // [n] copy of a device's counters; NULL where the host can read them
    int64_t *packed;   // [n * numbers of a QuantCount] what ranks add up
    HealthRow *row;    // [nrows] sites that quantised something, by block and site
    int64_t nrows;
} Health;

// Of one step, all sites and ranks together.
typedef struct HealthTotals {
    double saturated, underflow; // shares of the values
    int64_t nonfinite_tiles;
} HealthTotals;

// health_create: for the blocks of cx. health_free accepts NULL in *h. Local.
Err health_create(Health **out, const Cx *cx) MUST_CHECK;
void health_free(Health **h);
// health_step: the end of a step: its totals; the counters of cx start again at 0. Collective over world.
Err health_step(Health *h, Cx *cx, HealthTotals *out) MUST_CHECK;
// health_rows: h->row from what was counted in the steps since the last call. Collective over world.
Err health_rows(Health *h, const Cx *cx) MUST_CHECK;

// The row with the largest share, or the most tiles that are not finite; the first of equals, NULL without
// rows. Local.
const HealthRow *health_worst_saturated(const Health *h);
const HealthRow *health_worst_underflow(const Health *h);
const HealthRow *health_worst_nonfinite(const Health *h);
