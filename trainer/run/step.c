// step.c - the training step.
#include "step.h"

#include <math.h>
#include <string.h>

#include "calibrate.h"
#include "log.h"
#include "prof.h"
#include "reduce.h"
#include "schedule.h"
#include "staging.h"

static StepShare rank_share(const Cx *cx, const StepInput *in, int64_t batch) {
    StepShare r;
    r.n = batch / cx->world->nranks;
    r.first = in->samples + r.n * cx->world->rank;
    r.micro = in->config->train.micro_batch;
    return r;
}

static Err load_micro(const Shape *s, const StepInput *in, int64_t first, int64_t n, Batch *b, ReadProof *read) {
    prof_enter(PROF_DATA);
    TRY(loader_batch(in->loader, first, n, in->tokens, in->doc_start, read));
    prof_leave();
    Batch r = {.nseq = n,
               .S = s->S,
               .ld = s->S + 1 + s->nmtp,
               .tokens = in->tokens,
               .doc_start = in->doc_start,
               .is_complete = true};
    *b = r;
    return OK;
}

static LossScale loss_scale(const Config *c, const Shape *s, int64_t step, int64_t batch) {
    double targets = (double)(batch * s->S);
    LossScale r = {0};
    r.lm = 1.0 / targets;
    if (s->nmtp) r.mtp = schedule_mtp_weight(c, step) / (double)s->nmtp / targets;
    r.balance = c->balance.seq_alpha / (double)batch;
    return r;
}

// sum_losses: over ranks, and into the numbers that are logged.
// own: seconds of this rank; own_s [world] those of all, or NULL.
static Err sum_losses(Cx *cx, const Shape *s, const LossScale *scale, const LossSums *sums, double own, double *own_s,
                      StepMetrics *o) {
    double v[MTP_MAX + 3] = {sums->lm, sums->balance};
    memcpy(v + 2, sums->mtp, sizeof sums->mtp);
    v[MTP_MAX + 2] = own;
    if (own_s) TRY(comm_sum_list(cx->world, v, MTP_MAX + 3, own_s));
    else TRY(comm_sum(cx->world, v, MTP_MAX + 2));
    double mtp = 0.0;
    o->nmtp = (int)s->nmtp;
    o->lm_loss = (float)(v[0] * scale->lm);
    o->balance_loss = (float)(v[1] * scale->balance);
    for (int64_t k = 0; k < s->nmtp; k++) {
        o->mtp[k] = (float)(v[2 + k] * scale->lm); // mean over targets
        mtp += v[2 + k];
    }
    o->mtp_loss = s->nmtp ? (float)(mtp * scale->lm / (double)s->nmtp) : 0.0f;
    o->loss = (float)(v[0] * scale->lm + mtp * scale->mtp + v[1] * scale->balance);
    return OK;
}

static Err sum_bytes(Cx *cx, StepMetrics *o) {
    int64_t v[3] = {cx->bytes.dispatch, cx->bytes.combine, cx->bytes.meta};
    TRY(comm_sum_i64(cx->world, v, 3));
    memset(&cx->bytes, 0, sizeof cx->bytes);
    o->a2a_dispatch_bytes = v[0];
    o->a2a_combine_bytes = v[1];
    o->a2a_meta_bytes = v[2];
    return OK;
}

// update: optimizer and bias after a finite loss; nothing but the result where a gradient is not.
static Err update(Model *m, Cx *cx, const StepInput *in, StepMetrics *o, OptResult *r) {
    const Config *c = in->config;
    OptStep opt = {.step = in->step,
                   .lr = schedule_lr(c, in->step),
                   .beta1 = c->train.beta1,
                   .beta2 = c->train.beta2,
                   .eps = c->train.eps,
                   .weight_decay = c->train.weight_decay,
                   .clip = c->train.clip};
    TRY(optimizer_step(model_params(m), model_shape(m), cx, &opt, r));
    if (r->nonfinite > 0) return OK;
    BalanceStats stats;
    double gamma = c->balance.method == BALANCE_BIAS ? schedule_gamma(c, in->step) : 0.0;
    TRY(balance_update(m, cx, gamma, &stats));
    o->grad_norm = r->grad_norm;
    o->lr = opt.lr;
    o->maxvio = stats.maxvio;
    o->dead_experts = stats.dead;
    o->route_hash = stats.hash;
    return OK;
}

typedef struct Reload {
    const Shape *s;
    const StepInput *in;
} Reload;

static Err reload(void *user, int64_t first, int64_t n, Batch *b) {
    const Reload *r = user;
    return load_micro(r->s, r->in, first, n, b, NULL); // read once already
}

// drop: the step is bad: who made it so, and nothing that it counted stays. reduced: NULL where it is the loss.
static Err drop(Model *m, Cx *cx, const StepInput *in, StepShare share, const LossScale *scale, const LossSums *sums,
                const char *reduced, StepOutput *out) {
    Reload files = {model_shape(m), in};
    Replay r = {m, cx, share, scale, in->inject, reload, &files};
    double mine = sums->lm + sums->balance;
    for (int k = 0; k < MTP_MAX; k++) mine += sums->mtp[k];
    if (reduced) TRY(nonfinite_gradient(&r, reduced, &out->bad));
    else TRY(nonfinite_loss(&r, (double)out->m.loss, !isfinite(mine), &out->bad));
    CHECK(in->config->train.on_nonfinite != NONFINITE_ABORT, E_NUMERIC, "step %lld: %s; nothing was updated or saved",
          (long long)in->step, out->bad.text);
    memset(&cx->bytes, 0, sizeof cx->bytes);
    if (cx->health) TRY(cx->dev->zero(cx->health, (size_t)(cx->nblocks * SITE_COUNT) * sizeof *cx->health));
    return model_zero_counts(m, cx);
}

// own_seconds: of this rank so far, without the time in which it waited for others.
static double own_seconds(const Cx *cx) {
    return now_seconds() - ledger_waited(cx->world->ledger);
}

// run_micro: pass number `pass`; the last one sends the gradients to their owners while it goes back.
static Err run_micro(Model *m, Cx *cx, const StepInput *in, const Batch *b, const LossScale *scale, LossSums *sums,
                     int64_t pass, bool is_last) {
    Params *p = model_params(m);
    InjectPass spoil;
    if (!is_last) return model_fwd_bwd(m, cx, b, scale, sums, inject_taps(&spoil, in->inject, p, cx, pass, NULL));
    Reduce reduce;
    Taps taps = {.user = &reduce, .grads = reduce_block};
    TRY(reduce_start(&reduce, p, cx));
    Err err = model_fwd_bwd(m, cx, b, scale, sums, inject_taps(&spoil, in->inject, p, cx, pass, &taps));
    if (err == OK) return reduce_end(&reduce);
    reduce_drop(&reduce);
    return err;
}

Err step_train(Model *m, Cx *cx, const StepInput *in, StepOutput *out) {
    const Shape *s = model_shape(m);
    memset(out, 0, sizeof *out);
    out->batch = schedule_batch(in->config, in->samples);
    StepShare share = rank_share(cx, in, out->batch);
    LossScale scale = loss_scale(in->config, s, in->step, out->batch);
    LossSums sums = {0};
    double begun = own_seconds(cx);
    bool has_shadow = in->shadow && in->step % in->config->fp8.shadow_every == 0;
    Err injected = inject_step(in->inject, in->step); // told with the first pass: it may be one rank's alone
    if (has_shadow) shadow_begin(in->shadow);
    TRY(params_zero_grad(model_params(m), cx));
    for (int64_t i = 0; i < share.n; i += share.micro) {
        Batch b;
        ledger_phase(cx->world->ledger, PHASE_DATA);
        inject_data(in->inject);
        Err mine = injected;
        if (mine == OK)
            mine = load_micro(s, in, share.first + i, min_i64(share.micro, share.n - i), &b, &out->read);
        // A damaged shard on one rank stops all of them, and so does a signal, also one that came while data were
        // waited for.
        TRY(stop_agree(in->stop, cx->world, mine));
        ledger_phase(cx->world->ledger, PHASE_STEP);
        if (stop_is_due(in->stop)) break;
        cx->shadow = has_shadow && i == 0 ? in->shadow : NULL;
        double t0 = own_seconds(cx);
        TRY(run_micro(m, cx, in, &b, &scale, &sums, i / share.micro, i + share.micro >= share.n));
        inject_delay(in->inject, own_seconds(cx) - t0);
        cx->shadow = NULL;
    }
    if (!stop_is_due(in->stop)) TRY(stop_agree(in->stop, cx->world, OK));
    out->is_stopped = stop_is_due(in->stop);
    if (out->is_stopped) return model_zero_counts(m, cx);
    StepMetrics *o = &out->m;
    TRY(sum_losses(cx, s, &scale, &sums, own_seconds(cx) - begun, in->own_s, o));
    if (!isfinite(o->loss)) return drop(m, cx, in, share, &scale, &sums, NULL, out);
    OptResult r;
    TRY(update(m, cx, in, o, &r));
    if (r.nonfinite > 0) return drop(m, cx, in, share, &scale, &sums, r.culprit, out);
    TRY(calibrate_step(model_params(m), s, cx));
    TRY(sum_bytes(cx, o));
    if (has_shadow) {
        TRY(shadow_rows(in->shadow, cx));
        o->shadow = in->shadow;
    }
    o->step = in->step;
    o->global_batch = out->batch;
    o->samples = in->samples + out->batch;
    o->tokens = o->samples * s->S;
    return OK;
}
