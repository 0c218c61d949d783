// calibrate.c - the steps of static calibration. See calibrate.h and trainer/model/calibration.h.
#include "calibrate.h"

#include "fp8.h"
#include "log.h"

// record: table = max(table, what this step saw on any rank). Bits of positive floats are in the order of the floats.
static Err record(Cx *cx, Calibration *c) {
    size_t mark = arena_mark(cx->scratch);
    int64_t n = c->nblocks * SITE_COUNT, *bits = NULL;
    ARENA_NEW(cx->scratch, bits, n);
    for (int64_t i = 0; i < n; i++) bits[i] = max_i64((int64_t)f32_bits(c->amax[i]), cx->health[i].amax_bits);
    TRY(comm_max_i64(cx->world, bits, (int)n));
    for (int64_t i = 0; i < n; i++) c->amax[i] = f32_from_bits((uint32_t)bits[i]);
    arena_release(cx->scratch, mark);
    c->steps += 1.0f;
    return OK;
}

// fix: the table is complete.
static Err fix(Params *p, const Shape *s, Cx *cx, const Calibration *c) {
    QuantCount *health = cx->health;
    cx->health = NULL; // the same weights were counted when the update prepared them
    Err err = params_prepare(p, s, cx);
    cx->health = health;
    TRY(err);
    int64_t seen = 0;
    for (int64_t i = 0; i < c->nblocks * SITE_COUNT; i++) seen += c->amax[i] > 0.0f;
    log_line("fp8        calibration of %lld steps is done: the scales of %lld sites are fixed", (long long)c->steps,
             (long long)seen);
    return OK;
}

static Err warn_unseen(Cx *cx, Calibration *c) {
    int64_t n = c->unseen;
    if (c->is_warned) return OK;
    TRY(comm_sum_i64(cx->world, &n, 1));
    if (n == 0) return OK;
    c->is_warned = true;
    log_warn("fp8.scaling static: calibration never saw the sites of %lld tensors of this step, or only zeros there: "
             "each of them has a scale of its own, now and later",
             (long long)n);
    return OK;
}

Err calibrate_step(Params *p, const Shape *s, Cx *cx) {
    Calibration *c = cx->calibration;
    if (!c) return OK;
    if (calibration_is_fixed(c, &s->recipe)) return warn_unseen(cx, c);
    TRY(record(cx, c));
    if (calibration_is_fixed(c, &s->recipe)) TRY(fix(p, s, cx, c));
    return OK;
}
