// model_rig.h - what tests of a whole model on one rank begin with: settings on top of settings, and parameters in
// which a missing bias or factor shows.
#pragma once
#include "must.h"

#include "config.h"
#include "params.h"
#include "rng.h"

#define RIG_SETS 48

// rig_config: base [nbase] and then sets (ends with NULL; NULL: none), "section.key=value" each.
static inline void rig_config(Config **out, const char *const *base, int nbase, const char *const *sets) {
    const char *all[RIG_SETS];
    int n = nbase;
    assert_true(nbase <= RIG_SETS);
    memcpy(all, base, (size_t)nbase * sizeof *base);
    for (; sets && *sets; sets++) {
        assert_true(n < RIG_SETS);
        all[n++] = *sets;
    }
    MUST_OK(config_load(out, NULL, all, n));
}

// rig_init: masters from the seed, norm weights away from 1, biases that decide some selections. Not published.
static inline void rig_init(Params *p, const Shape *s, Cx *cx) {
    MUST_OK(params_init(p, s, cx));
    for (int64_t b = 0; b < p->nblocks; b++) {
        for (int64_t e = 0; p->bias[b] && e < s->E; e++)
            p->bias[b][e] = 0.1f * (float)rng_normal(3, (uint64_t)b, (uint64_t)e);
    }
    for (int i = 0; i < p->n; i++) {
        float *w = p->p[i].master.p;
        for (int64_t j = 0; p->p[i].is_init_one && j < p->p[i].cols; j++)
            w[j] += 0.2f * (float)rng_normal(5, (uint64_t)i, (uint64_t)j);
    }
}
