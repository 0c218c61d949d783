// balance.c - auxiliary-loss-free balancing.
#include "balance.h"

#include "hash.h"

// update_layer: one layer's loads (already summed over ranks) into its bias and the statistics.
static void update_layer(const int64_t *load, int64_t E, float gamma, float *bias, BalanceStats *out) {
    int64_t total = 0, most = 0, dead = 0;
    for (int64_t e = 0; e < E; e++) {
        total += load[e];
        most = max_i64(most, load[e]);
        dead += load[e] == 0;
    }
    out->dead += (double)dead;
    if (total == 0) return;
    double mean = (double)total / (double)E;
    out->maxvio += ((double)most - mean) / mean;
    for (int64_t e = 0; bias && gamma != 0.0f && e < E; e++) {
        int64_t d = total - load[e] * E; // sign(mean - load), in integers
        bias[e] += d > 0 ? gamma : d < 0 ? -gamma : 0.0f;
    }
}

Err balance_update(Model *m, Cx *cx, double gamma, BalanceStats *out) {
    const Shape *s = model_shape(m);
    Params *p = model_params(m);
    int64_t **count = model_counts(m), layers = 0;
    size_t mark = arena_mark(cx->host_scratch);
    int64_t *loads = NULL;
    float *biases = NULL;
    ARENA_NEW(cx->host_scratch, loads, p->nblocks * s->E);
    ARENA_NEW(cx->host_scratch, biases, p->nblocks * s->E);
    for (int64_t b = 0; b < p->nblocks; b++) {
        if (!count[b]) continue;
        TRY(cx->dev->read(loads + b * s->E, count[b], (size_t)s->E * sizeof *loads));
        if (p->bias[b]) TRY(cx->dev->read(biases + b * s->E, p->bias[b], (size_t)s->E * sizeof *biases));
    }
    TRY(cx->dev->sync()); // one wait for all of them
    BalanceStats r = {0};
    for (int64_t b = 0; b < p->nblocks; b++) {
        if (!count[b]) continue;
        int64_t *load = loads + b * s->E;
        float *bias = biases + b * s->E;
        layers++;
        TRY(comm_sum_i64(cx->world, load, (int)s->E));
        r.hash = hash64_seeded(load, (size_t)s->E * sizeof *load, r.hash + 1);
        update_layer(load, s->E, (float)gamma, p->bias[b] ? bias : NULL, &r);
        if (p->bias[b]) TRY(cx->dev->to_device(p->bias[b], bias, (size_t)s->E * sizeof *bias));
        TRY(cx->dev->zero(count[b], (size_t)s->E * sizeof *load));
    }
    arena_release(cx->host_scratch, mark);
    if (layers > 0) {
        r.maxvio /= (double)layers;
        r.dead /= (double)(layers * s->E);
    }
    *out = r;
    return OK;
}
