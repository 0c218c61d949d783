// solo.c - one rank, one model, no launcher.
#include "solo.h"

#include <omp.h>
#include <string.h>

#include "checkpoint.h"

// Windows that lack tokens past their end need copies of hidden states that complete ones do not.
static size_t incomplete_bytes(const Shape *s) {
    size_t rows = (size_t)(s->B * s->S), width = (size_t)s->D * sizeof(float);
    return (size_t)s->nmtp * (rows * (width + sizeof(int32_t)) + 4 * ARENA_ALIGN);
}

// What an evaluation keeps beside its passes: tokens, targets, document starts and a few numbers per sequence.
static size_t evaluation_bytes(const Shape *s) {
    size_t per_row = (size_t)(3 * s->S + 1 + s->nmtp + 4) * sizeof(int32_t);
    return (size_t)s->B * per_row + 8 * ARENA_ALIGN;
}

// One rank, and the shapes of the model on it.
static Err alone(Solo *s, const Config *c) {
    memset(s, 0, sizeof *s);
    s->boot.nranks = s->boot.local_nranks = 1;
    TRY(comm_self(&s->boot.world, "world"));
    TRY(comm_self(&s->boot.ep, "ep"));
    TRY(comm_self(&s->boot.edp, "edp"));
    TRY(mesh_build(&s->mesh, 1, 0, 1));
    return shape_from_config(&s->shape, c, &s->mesh);
}

Err solo_open(Solo *s, const Config *c, bool with_grad, int nthreads) {
    TRY(alone(s, c));
    MemoryPlan plan;
    TRY(memory_measure(&plan, &s->shape, &s->mesh, with_grad, false));
    plan.acts += incomplete_bytes(&s->shape) + evaluation_bytes(&s->shape);
    plan.scratch += incomplete_bytes(&s->shape);
    TRY(cx_create(&s->cx, &s->boot, &s->mesh, &s->shape, &plan, nthreads));
    return model_create(&s->model, &s->shape, &s->cx, with_grad, false);
}

Err solo_table(Solo *s, const Config *c, int nthreads) {
    TRY(alone(s, c));
    Cx *cx = &s->cx;
    cx->ops = ops_cpu();
    cx->dev = device_null(); // the memory of the entries is only measured: nothing may touch it
    cx->mesh = s->mesh;
    cx->world = s->boot.world;
    cx->ep = s->boot.ep;
    cx->edp = s->boot.edp;
    cx->op.nthreads = nthreads;
    TRY(arena_create(&cx->params, "params", 0, true));
    TRY(arena_create(&cx->state, "state", 0, true));
    return params_create(&s->table, &s->shape, cx, false, false);
}

Err solo_find(char *out, size_t n, const char *path) {
    Cx cx = {0}; // only who is there
    TRY(comm_self(&cx.world, "world"));
    Err err = checkpoint_need(out, n, "--checkpoint", path, -1, &cx);
    comm_destroy(&cx.world);
    return err;
}

Err solo_publish(Solo *s) {
    return params_publish(model_params(s->model), &s->shape, &s->cx);
}

void solo_close(Solo *s) {
    model_free(&s->model);
    params_free(&s->table);
    cx_destroy(&s->cx);
    comm_destroy(&s->boot.world);
    comm_destroy(&s->boot.ep);
    comm_destroy(&s->boot.edp);
    memset(s, 0, sizeof *s);
}

int solo_threads(int64_t asked) {
    return asked > 0 ? (int)asked : omp_get_max_threads();
}
