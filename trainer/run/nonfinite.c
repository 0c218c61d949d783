// nonfinite.c - who made a step's loss or gradient not finite. See nonfinite.h.
#include "nonfinite.h"

#include <math.h>
#include <string.h>

#include "staging.h"

// The first cause that a rank found; the one with the largest `order` is the earliest of the step.
typedef struct Cause {
    int64_t order; // -1: none
    int64_t layer; // block; the number of blocks: a head
    int64_t pass, param;
} Cause;

// count_bad: values of x that are not finite.
static Err count_bad(Cx *cx, Mat x, int64_t *count) {
    CxMark mark = cx_mark_scratch(cx);
    double *part = NULL;
    int64_t *bad = NULL;
    ARENA_NEW(cx->scratch, part, ceil_div(x.rows, TILE));
    ARENA_NEW(cx->scratch, bad, 1);
    TRY(cx->dev->zero(bad, sizeof *bad));
    if (x.rows > 0) TRY(cx->ops->sumsq_blocks(&cx->op, part, bad, x));
    TRY(staging_read(cx, (void **)&bad, bad, sizeof *bad));
    *count = *bad;
    cx_release_scratch(cx, mark);
    return OK;
}

// Each pass of the step once more.
typedef struct Watch {
    const Replay *r;
    Cause mine;
    int64_t pass;
} Watch;

static Err look_at_output(void *user, int64_t layer, Mat x) {
    Watch *w = user;
    int64_t bad = 0;
    if (w->mine.order >= 0) return OK;
    TRY(count_bad(w->r->cx, x, &bad));
    if (bad == 0) return OK;
    Cause found = {model_params(w->r->model)->nblocks - layer, layer, w->pass, -1};
    w->mine = found;
    return OK;
}

// backward_order: gradients are made from the heads down; where rows of tokens cross ranks the experts have what came
// from others, so at one place the tensors of the rank itself count first.
static int64_t backward_order(const Params *p, const Param *e) {
    int64_t layer = e->family == P_HEAD ? p->nblocks : e->layer;
    return 2 * (layer + 1) + !e->is_expert;
}

static Err look_at_gradients(Watch *w) {
    Params *p = model_params(w->r->model);
    if (w->mine.order >= 0) return OK; // an earlier pass
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        int64_t bad = 0;
        if (backward_order(p, e) <= w->mine.order) continue;
        TRY(count_bad(w->r->cx, e->grad, &bad));
        if (bad == 0) continue;
        Cause found = {backward_order(p, e), e->family == P_HEAD ? p->nblocks : e->layer, w->pass, i};
        w->mine = found;
    }
    return OK;
}

static Err run_again(Watch *w, const Batch *b, bool is_gradient) {
    const Replay *r = w->r;
    Params *p = model_params(r->model);
    LossSums sums = {0};
    InjectPass spoil;
    Taps taps = {.user = w, .hidden = look_at_output};
    const Taps *own = is_gradient ? NULL : &taps;
    const Taps *with = inject_taps(&spoil, r->inject, p, r->cx, w->pass, own);
    if (!is_gradient) return model_fwd(r->model, r->cx, b, &sums, with);
    TRY(params_zero_grad(p, r->cx));
    TRY(model_fwd_bwd(r->model, r->cx, b, r->scale, &sums, with));
    return look_at_gradients(w);
}

static Err replay(Watch *w, bool is_gradient) {
    const Replay *r = w->r;
    QuantCount *health = r->cx->health;
    Err err = OK;
    r->cx->health = NULL; // counted once already
    for (int64_t i = 0; i < r->share.n && err == OK; i += r->share.micro, w->pass++) {
        Batch b;
        err = comm_agree(r->cx->world, r->load(r->user, r->share.first + i,
                                               min_i64(r->share.micro, r->share.n - i), &b));
        if (err == OK) err = run_again(w, &b, is_gradient);
    }
    r->cx->health = health;
    return err;
}

// agree: the earliest cause of all ranks, by order, then rank; how many had one. Collective over world.
static Err agree(const Replay *r, const Cause *mine, Cause *out, BadStep *bad) {
    Comm *world = r->cx->world;
    size_t mark = arena_mark(r->cx->host_scratch);
    Cause *all = NULL;
    int64_t first[2] = {0, 0};
    ARENA_NEW(r->cx->host_scratch, all, world->nranks);
    TRY(world->all_gather(world, all, mine, sizeof *mine));
    *out = all[0];
    bad->rank = all[0].order >= 0 ? 0 : -1;
    for (int i = 0; i < world->nranks; i++) {
        bad->nranks += all[i].order >= 0;
        if (all[i].order <= out->order) continue;
        *out = all[i];
        bad->rank = i;
    }
    arena_release(r->cx->host_scratch, mark);
    bool is_mine = bad->rank == world->rank;
    if (is_mine) {
        first[0] = r->share.first + out->pass * r->share.micro;
        first[1] = min_i64(first[0] + r->share.micro, r->share.first + r->share.n) - 1;
    }
    if (bad->rank < 0) { // all of them
        first[0] = r->share.first - world->rank * r->share.n;
        first[1] = first[0] + world->nranks * r->share.n - 1;
    }
    TRY(comm_max_i64(world, first, 2));
    bad->first = first[0];
    bad->last = first[1];
    return OK;
}

// say: "WHAT is not finite on rank 2: samples 20 to 23", and how many others.
static void say(BadStep *bad, const char *what, double loss, bool is_loss) {
    char where[160] = "on no rank alone: a sum over ranks left the range", value[40] = "";
    if (bad->rank >= 0) {
        size_t at = (size_t)snprintf(where, sizeof where, "on rank %d", bad->rank);
        if (bad->nranks > 1) snprintf(where + at, sizeof where - at, " (the first of %d ranks)", bad->nranks);
    }
    if (is_loss) snprintf(value, sizeof value, isnan(loss) ? "the loss is NaN: " : "the loss is %g: ", loss);
    snprintf(bad->text, sizeof bad->text, "%s%s is not finite %s: samples %lld to %lld", value, what, where,
             (long long)bad->first, (long long)bad->last);
}

Err nonfinite_loss(const Replay *r, double loss, bool mine, BadStep *out) {
    Watch w = {.r = r, .mine = {.order = -1}};
    Cause cause;
    char what[64] = "the loss of a head";
    int64_t nblocks = model_params(r->model)->nblocks;
    memset(out, 0, sizeof *out);
    TRY(replay(&w, false));
    if (mine && w.mine.order < 0) { // every block was fine: its head was not
        Cause head = {0, nblocks, 0, -1};
        w.mine = head;
    }
    TRY(agree(r, &w.mine, &cause, out));
    out->is_bad = true;
    out->layer = out->rank >= 0 && cause.layer < nblocks ? cause.layer : -1;
    if (out->layer >= 0) snprintf(what, sizeof what, "the output of layer %lld", (long long)out->layer);
    snprintf(out->tensor, sizeof out->tensor, "%s", out->layer >= 0 ? "output" : "loss");
    say(out, what, loss, true);
    return OK;
}

Err nonfinite_gradient(const Replay *r, const char *reduced, BadStep *out) {
    Watch w = {.r = r, .mine = {.order = -1}};
    Cause cause;
    char what[160];
    const Params *p = model_params(r->model);
    memset(out, 0, sizeof *out);
    TRY(replay(&w, true));
    TRY(agree(r, &w.mine, &cause, out));
    out->is_bad = true;
    out->layer = -1;
    snprintf(what, sizeof what, "the %s", reduced[0] ? reduced : "norm of the gradient");
    if (out->rank >= 0) {
        const Param *e = &p->p[cause.param];
        out->layer = e->layer;
        snprintf(out->tensor, sizeof out->tensor, "%s", e->name);
        snprintf(what, sizeof what, "the gradient of %s", e->name);
    }
    say(out, what, 0.0, false);
    return OK;
}
