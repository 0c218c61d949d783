// weights.c - see weights.h.
#include "weights.h"

#include "log.h"

#define SAY_SECONDS 10.0

Carried carried_begin(const char *what, double total) {
    double now = now_seconds();
    return (Carried){.what = what, .total = total, .start = now, .said = now};
}

void carried_add(Carried *c, double bytes) {
    c->done += bytes;
    double now = now_seconds(), seconds = now - c->start;
    if (now - c->said < SAY_SECONDS || c->done >= c->total) return;
    c->said = now;
    log_line("%s %s of %s, %s/s, eta %s", c->what, text_bytes(c->done).s, text_bytes(c->total).s,
             text_bytes(c->done / seconds).s, text_duration((c->total - c->done) * seconds / c->done).s);
}
