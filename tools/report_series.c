// report_series.c - see report_series.h.
#include "report_series.h"

#include <math.h>
#include <string.h>

#include "arena.h"

Err series_create(Series *s, int cap, bool is_sparse) {
    *s = (Series){.cap = cap, .width = 1, .is_sparse = is_sparse};
    MEM_NEW(s->part, cap);
    return OK;
}

void series_free(Series *s) {
    mem_free(s->part);
    *s = (Series){0};
}

static void join(SeriesPart *a, const SeriesPart *b) {
    if (b->n == 0) return;
    a->lo = a->n > 0 ? fmin(a->lo, b->lo) : b->lo;
    a->hi = a->n > 0 ? fmax(a->hi, b->hi) : b->hi;
    a->sum = a->n > 0 ? a->sum + b->sum : b->sum;
    a->n += b->n;
}

static void halve(Series *s) {
    for (int i = 0; i < s->cap / 2; i++) {
        SeriesPart p = s->part[2 * i];
        join(&p, &s->part[2 * i + 1]);
        s->part[i] = p;
    }
    memset(s->part + s->cap / 2, 0, (size_t)(s->cap / 2) * sizeof *s->part);
    s->n = (s->n + 1) / 2;
    s->width *= 2;
}

void series_add(Series *s, int64_t step, double value) {
    if (!isfinite(value)) return;
    if (s->n == 0) s->first = step;
    if (step < s->first) return;
    while ((step - s->first) / s->width >= s->cap) halve(s);
    int i = (int)((step - s->first) / s->width);
    join(&s->part[i], &(SeriesPart){value, value, value, 1});
    if (i >= s->n) s->n = i + 1;
    if (step > s->last) s->last = step;
}

SeriesPart series_total(const Series *s) {
    SeriesPart all = {0};
    for (int i = 0; i < s->n; i++) join(&all, &s->part[i]);
    return all;
}

Err series_points(const Series *s, double factor, int64_t window, SeriesPoints *out) {
    *out = (SeriesPoints){0};
    MEM_NEW(out->x, 5 * s->n + 1);
    out->mean = out->x + s->n;
    out->lo = out->mean + s->n;
    out->hi = out->lo + s->n;
    out->smooth = out->hi + s->n;
    for (int i = 0; i < s->n; i++) {
        const SeriesPart *p = &s->part[i];
        if (p->n == 0 && s->is_sparse) continue;
        int k = out->n++;
        int64_t from = s->first + i * s->width, to = from + s->width - 1;
        out->x[k] = 0.5 * ((double)from + (double)(to < s->last ? to : s->last));
        out->mean[k] = p->n > 0 ? factor * p->sum / (double)p->n : NAN;
        out->lo[k] = p->n > 0 ? factor * p->lo : NAN;
        out->hi[k] = p->n > 0 ? factor * p->hi : NAN;
    }
    double reach = 0.5 * (double)window;
    for (int k = 0; k < out->n; k++) {
        double sum = 0;
        int n = 0;
        for (int d = -1; d <= 1; d += 2) // back from here, then forth from behind it
            for (int i = d < 0 ? k : k + 1;
                 i >= 0 && i < out->n && fabs(out->x[i] - out->x[k]) <= reach; i += d) {
                if (isnan(out->mean[i])) break;
                sum += out->mean[i];
                n++;
            }
        out->smooth[k] = isnan(out->mean[k]) ? NAN : sum / n;
    }
    return OK;
}

void series_points_free(SeriesPoints *p) {
    mem_free(p->x);
    *p = (SeriesPoints){0};
}
