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

typedef struct Share {
    int64_t first, n; // this rank's samples of the global batch
    int64_t micro;    // samples per pass
} Share;

static Share rank_share(const Cx *cx, const StepInput *in, int64_t batch) {
    Share r;
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
static Err sum_losses(Cx *cx, const Shape *s, const LossScale *scale, const LossSums *sums,
                      StepMetrics *o) {
    double v[MTP_MAX + 2] = {sums->lm, sums->balance};
    memcpy(v + 2, sums->mtp, sizeof sums->mtp);
    TRY(comm_sum(cx->world, v, MTP_MAX + 2));
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

typedef struct FirstBad {
    Cx *cx;
    int64_t layer; // first block with a non-finite output, -1 none yet
} FirstBad;

static Err find_bad(void *user, int64_t layer, Mat x) {
    FirstBad *f = user;
    Cx *cx = f->cx;
    if (f->layer >= 0) return OK;
    CxMark mark = cx_mark_scratch(cx);
    double *part = NULL;
    int64_t *bad = NULL;
    ARENA_NEW(cx->scratch, part, ceil_div(x.rows, TILE));
    ARENA_NEW(cx->scratch, bad, 1);
    TRY(cx->dev->zero(bad, sizeof *bad));
    TRY(cx->ops->sumsq_blocks(&cx->op, part, bad, x));
    TRY(staging_read(cx, (void **)&bad, bad, sizeof *bad));
    if (*bad > 0) f->layer = layer;
    cx_release_scratch(cx, mark);
    return OK;
}

// explain_bad: the loss is not finite on some rank: run the batch forward again and find the first
// bad block.
static Err explain_bad(Model *m, Cx *cx, const StepInput *in, Share share, double loss) {
    FirstBad f = {cx, -1};
    Taps taps = {.user = &f, .hidden = find_bad};
    for (int64_t i = 0; i < share.n; i += share.micro) {
        Batch b;
        LossSums sums = {0};
        Err read =
            load_micro(model_shape(m), in, share.first + i, min_i64(share.micro, share.n - i), &b, NULL);
        TRY(comm_agree(cx->world, read));
        InjectPass spoil;
        TRY(model_fwd(m, cx, &b, &sums, inject_taps(&spoil, in->inject, model_params(m), cx, i / share.micro, &taps)));
    }
    Err mine = OK;
    if (f.layer >= 0) {
        mine = fail_at(
            E_NUMERIC, __FILE__, __LINE__,
            "step %lld: the loss is %g: the output of layer %lld is the first that is not finite "
            "(samples %lld to %lld); nothing was updated or saved",
            (long long)in->step, loss, (long long)f.layer, (long long)share.first,
            (long long)(share.first + share.n - 1));
    }
    TRY(comm_agree(cx->world, mine));
    FAIL(E_NUMERIC,
         "step %lld: the loss is %g, but no layer's output is: look at the head; nothing was "
         "updated or saved",
         (long long)in->step, loss);
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

// update: optimizer and bias after a finite loss.
static Err update(Model *m, Cx *cx, const StepInput *in, StepMetrics *o) {
    const Config *c = in->config;
    OptStep opt = {.step = in->step,
                   .lr = schedule_lr(c, in->step),
                   .beta1 = c->train.beta1,
                   .beta2 = c->train.beta2,
                   .eps = c->train.eps,
                   .weight_decay = c->train.weight_decay,
                   .clip = c->train.clip};
    OptResult r;
    TRY(optimizer_step(model_params(m), model_shape(m), cx, &opt, &r));
    CHECK(r.nonfinite == 0, E_NUMERIC, "step %lld: not finite: %s; nothing was updated or saved",
          (long long)in->step, r.culprit[0] ? r.culprit : "gradient norm");
    BalanceStats stats;
    double gamma = c->balance.method == BALANCE_BIAS ? schedule_gamma(c, in->step) : 0.0;
    TRY(balance_update(m, cx, gamma, &stats));
    o->grad_norm = r.grad_norm;
    o->lr = opt.lr;
    o->maxvio = stats.maxvio;
    o->dead_experts = stats.dead;
    o->route_hash = stats.hash;
    return OK;
}

// own_seconds: of this rank so far, without the time in which it exchanged rows or gradients and mostly waited.
static double own_seconds(void) {
    double t[PROF_COUNT], waits;
    prof_get(t);
    waits = t[PROF_EXCHANGE] + t[PROF_REDUCE];
    return now_seconds() - waits;
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
    Share share = rank_share(cx, in, out->batch);
    LossScale scale = loss_scale(in->config, s, in->step, out->batch);
    LossSums sums = {0};
    bool has_shadow = in->shadow && in->step % in->config->fp8.shadow_every == 0;
    TRY(inject_step(in->inject, in->step));
    if (has_shadow) shadow_begin(in->shadow);
    TRY(params_zero_grad(model_params(m), cx));
    for (int64_t i = 0; i < share.n; i += share.micro) {
        Batch b;
        ledger_phase(cx->world->ledger, PHASE_DATA);
        inject_data(in->inject);
        Err mine = load_micro(s, in, share.first + i, min_i64(share.micro, share.n - i), &b, &out->read);
        // A damaged shard on one rank stops all of them, and so does a signal, also one that came while data were
        // waited for.
        TRY(stop_agree(in->stop, cx->world, mine));
        ledger_phase(cx->world->ledger, PHASE_STEP);
        if (stop_is_due(in->stop)) break;
        cx->shadow = has_shadow && i == 0 ? in->shadow : NULL;
        double t0 = own_seconds();
        TRY(run_micro(m, cx, in, &b, &scale, &sums, i / share.micro, i + share.micro >= share.n));
        inject_delay(in->inject, own_seconds() - t0);
        cx->shadow = NULL;
    }
    if (!stop_is_due(in->stop)) TRY(stop_agree(in->stop, cx->world, OK));
    out->is_stopped = stop_is_due(in->stop);
    if (out->is_stopped) return model_zero_counts(m, cx);
    StepMetrics *o = &out->m;
    TRY(sum_losses(cx, s, &scale, &sums, o));
    if (!isfinite(o->loss)) return explain_bad(m, cx, in, share, (double)o->loss);
    TRY(update(m, cx, in, o));
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
