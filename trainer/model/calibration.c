// calibration.c - the table of static scales. See calibration.h.
#include "calibration.h"

#include <string.h>

#include "arena.h"

Err calibration_create(Calibration **out, int64_t nblocks) {
    Calibration *c = NULL;
    MEM_NEW(c, 1);
    *out = c;
    c->nblocks = nblocks;
    MEM_NEW(c->amax, nblocks * SITE_COUNT);
    return OK;
}

void calibration_free(Calibration **c) {
    if (!*c) return;
    mem_free((*c)->amax);
    mem_free(*c);
    *c = NULL;
}

void calibration_reset(Calibration *c) {
    memset(c->amax, 0, (size_t)(c->nblocks * SITE_COUNT) * sizeof *c->amax);
    c->steps = 0;
    c->unseen = 0;
    c->is_warned = false;
}

bool calibration_is_fixed(const Calibration *c, const Recipe *r) {
    return c->steps >= (float)r->static_steps;
}

QuantRule calibration_rule(Calibration *c, const Recipe *r, int64_t layer, Site site) {
    QuantRule rule = {r->row[site_class(site)].scope, 0.0f};
    if (rule.scope != SCOPE_STATIC) return rule;
    float amax = c ? c->amax[layer * SITE_COUNT + site] : 0.0f;
    if (c && calibration_is_fixed(c, r)) {
        rule.amax = amax * r->static_margin;
        if (!(amax > 0.0f)) c->unseen++;
    }
    if (!(rule.amax > 0.0f)) rule.scope = SCOPE_TENSOR;
    return rule;
}
