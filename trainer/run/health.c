// health.c - FP8 health counters: over ranks, and as shares. See health.h.
#include "health.h"

#include <math.h>
#include <string.h>

#include "fp8.h"
#include "staging.h"

enum {
    PARTS = 5 + SCALE_BINS, // what is added of one QuantCount
    PIECE = 65536           // numbers of one sum over ranks
};

Err health_create(Health **out, const Cx *cx) {
    Health *h = NULL;
    MEM_NEW(h, 1);
    *out = h;
    h->n = cx->nblocks * SITE_COUNT;
    MEM_NEW(h->since, h->n);
    if (!staging_is_host(cx)) MEM_NEW(h->seen, h->n);
    MEM_NEW(h->packed, h->n * (PARTS + 1));
    MEM_NEW(h->row, h->n);
    return OK;
}

void health_free(Health **h) {
    if (!*h) return;
    mem_free((*h)->since);
    mem_free((*h)->seen);
    mem_free((*h)->packed);
    mem_free((*h)->row);
    mem_free(*h);
    *h = NULL;
}

// is_counted_here: this rank's counters of the site go into sums: everything but copies of a weight.
static bool is_counted_here(const Cx *cx, Site site) {
    if (site_class(site) != CLASS_WEIGHT) return true;
    bool is_expert = strncmp(site_name(site), "expert.", 7) == 0;
    return (is_expert ? cx->edp : cx->world)->rank == 0;
}

Err health_step(Health *h, Cx *cx, HealthTotals *out) {
    int64_t v[4] = {0};
    size_t bytes = (size_t)h->n * sizeof *cx->health;
    const QuantCount *seen = h->seen ? h->seen : cx->health;
    if (cx->health && h->seen) TRY(cx->dev->to_host(h->seen, cx->health, bytes));
    for (int64_t i = 0; cx->health && i < h->n; i++) {
        const QuantCount *c = &seen[i];
        if (c->values == 0 || !is_counted_here(cx, (Site)(i % SITE_COUNT))) continue;
        v[0] += c->values;
        v[1] += c->saturated;
        v[2] += c->underflow;
        v[3] += c->nonfinite_tiles;
        quant_count_add(&h->since[i], c);
    }
    if (cx->health) TRY(cx->dev->zero(cx->health, bytes));
    TRY(comm_sum_i64(cx->world, v, 4));
    double values = v[0] > 0 ? (double)v[0] : 1.0;
    out->saturated = (double)v[1] / values;
    out->underflow = (double)v[2] / values;
    out->nonfinite_tiles = v[3];
    return OK;
}

static void pack(int64_t *to, const QuantCount *c) {
    to[0] = c->values;
    to[1] = c->saturated;
    to[2] = c->underflow;
    to[3] = c->tiles;
    to[4] = c->nonfinite_tiles;
    memcpy(to + 5, c->scales, sizeof c->scales);
}

static QuantCount unpack(const int64_t *from, int64_t amax_bits) {
    QuantCount c = {from[0], from[1], from[2], from[3], from[4], .amax_bits = (int32_t)amax_bits};
    memcpy(c.scales, from + 5, sizeof c.scales);
    return c;
}

static HealthRow row_of(int64_t at, const QuantCount *c) {
    double values = (double)c->values, s[3];
    for (int i = 0; i < 3; i++) {
        s[i] = quant_count_scale_quantile(c, 0.5 * i);
        if (s[i] == 0.0) s[i] = NAN;
    }
    HealthRow r = {site_label(at / SITE_COUNT, (Site)(at % SITE_COUNT)),
                   (double)c->saturated / values,
                   (double)c->underflow / values,
                   c->nonfinite_tiles,
                   s[0],
                   s[1],
                   s[2],
                   (double)f32_from_bits((uint32_t)c->amax_bits)};
    return r;
}

Err health_rows(Health *h, const Cx *cx) {
    int64_t *sum = h->packed, *most = h->packed + h->n * PARTS;
    for (int64_t i = 0; i < h->n; i++) {
        pack(sum + i * PARTS, &h->since[i]);
        most[i] = h->since[i].amax_bits;
    }
    for (int64_t i = 0; i < h->n * PARTS; i += PIECE)
        TRY(comm_sum_i64(cx->world, sum + i, (int)min_i64(PIECE, h->n * PARTS - i)));
    for (int64_t i = 0; i < h->n; i += PIECE)
        TRY(comm_max_i64(cx->world, most + i, (int)min_i64(PIECE, h->n - i)));
    h->nrows = 0;
    for (int64_t i = 0; i < h->n; i++) {
        QuantCount c = unpack(sum + i * PARTS, most[i]);
        if (c.values > 0) h->row[h->nrows++] = row_of(i, &c);
    }
    memset(h->since, 0, (size_t)h->n * sizeof *h->since);
    return OK;
}

const HealthRow *health_worst_saturated(const Health *h) {
    const HealthRow *w = h->nrows > 0 ? h->row : NULL;
    for (int64_t i = 1; i < h->nrows; i++) {
        if (h->row[i].saturated > w->saturated) w = &h->row[i];
    }
    return w;
}

const HealthRow *health_worst_underflow(const Health *h) {
    const HealthRow *w = h->nrows > 0 ? h->row : NULL;
    for (int64_t i = 1; i < h->nrows; i++) {
        if (h->row[i].underflow > w->underflow) w = &h->row[i];
    }
    return w;
}

const HealthRow *health_worst_nonfinite(const Health *h) {
    const HealthRow *w = h->nrows > 0 ? h->row : NULL;
    for (int64_t i = 1; i < h->nrows; i++) {
        if (h->row[i].nonfinite_tiles > w->nonfinite_tiles) w = &h->row[i];
    }
    return w;
}
