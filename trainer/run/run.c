// run.c - the training loop.
#include "run.h"

#include <math.h>
#include <string.h>
#include <time.h>

#include "gemm.h"
#include "log.h"
#include "prof.h"
#include "schedule.h"
#include "staging.h"

// Step times of the recent past, for the ETA.
typedef struct Pace {
    double mean; // seconds per step, exponential average
    int64_t n;
} Pace;

static void pace_add(Pace *p, double seconds) {
    p->n++;
    double w = p->n < 20 ? 1.0 / (double)p->n : 0.05;
    p->mean += w * (seconds - p->mean);
}

// save: this step's checkpoint, if it is not on disk yet or on its way. Collective over world.
static Err save(Run *r) {
    CheckpointInfo at = r->at;
    int64_t read[2] = {r->read.samples, (int64_t)r->read.hash};
    TRY(comm_sum_i64(r->boot.world, read, 2));
    at.world = r->mesh.world;
    at.ep = r->mesh.ep;
    if (at.read.samples >= 0) {
        at.read.samples += read[0];
        at.read.hash += (uint64_t)read[1];
        CHECK(at.read.samples == at.samples, E_INTERNAL,
              "step %lld: %lld samples count as consumed, but %lld were read", (long long)at.step,
              (long long)at.samples, (long long)at.read.samples);
    }
    return saver_save(r->saver, &at);
}

// note_eval: an evaluation in the log and in the events.
static Err note_eval(Run *r, const EvalResult *e, double s) {
    Err mine = OK;
    if (e->is_stopped) {
        log_line("held-out   step %lld: given up, left to a resume", (long long)r->at.step);
        if (r->metrics) mine = metrics_event(r->metrics, EVENT_EVAL_STOPPED, "\"step\":%lld", (long long)r->at.step);
        return comm_agree(r->boot.world, mine);
    }
    char bpb[48] = "";
    if (!isnan(e->bits_per_byte)) snprintf(bpb, sizeof bpb, ", %.4f bits per byte", e->bits_per_byte);
    log_line("held-out   step %lld: loss %.4f%s, %lld tokens, %.1f s", (long long)r->at.step,
             e->loss, bpb, (long long)e->tokens, s);
    if (r->metrics) {
        mine =
            isnan(e->bits_per_byte)
                ? metrics_event(r->metrics, EVENT_EVAL, "\"step\":%lld,\"loss\":%.9g,\"tokens\":%lld",
                                (long long)r->at.step, e->loss, (long long)e->tokens)
                : metrics_event(
                      r->metrics, EVENT_EVAL,
                      "\"step\":%lld,\"loss\":%.9g,\"tokens\":%lld,\"bits_per_byte\":%.9g",
                      (long long)r->at.step, e->loss, (long long)e->tokens, e->bits_per_byte);
    }
    return comm_agree(r->boot.world, mine);
}

Err run_state_hash(Run *r, uint64_t *out) {
    TRY(optimizer_hash(model_params(r->model), &r->cx, out));
    *out += (uint64_t)r->at.samples * 0x9E3779B97F4A7C15ull; // the data position is state too
    return OK;
}

// write_metrics: the step's line; once more if a save took the last room of the disk and, failing, gave it back.
static Err write_metrics(Run *r, const StepMetrics *m, bool print) {
    for (bool is_again = false;; is_again = true) {
        Err mine = r->metrics ? metrics_step(r->metrics, m, r->last_step, print) : OK;
        Err err = comm_agree(r->boot.world, mine);
        if (err != E_OUTPUT || is_again || !saver_is_busy(r->saver)) return err;
        fail_clear();
        TRY(saver_wait(r->saver));
    }
}

// record: times, memory and the hash join the step's numbers; one line of metrics.jsonl. Collective
// over world.
static Err record(Run *r, StepMetrics *m, double seconds, Pace *pace) {
    pace_add(pace, seconds);
    m->step_ms = seconds * 1e3;
    m->tokens_per_s = (double)(m->global_batch * r->shape.S) / seconds;
    m->mfu = r->peak_flops > 0.0
                 ? m->tokens_per_s * model_flops_per_token(&r->shape) / r->peak_flops
                 : NAN;
    m->eta_s = pace->mean * (double)(r->last_step - r->at.step);
    int64_t rss = (int64_t)run_rss();
    TRY(comm_max_i64(r->boot.world, &rss, 1));
    m->rss_bytes = (double)rss;
    m->has_hash = r->config->debug.state_hash;
    if (m->has_hash) TRY(run_state_hash(r, &m->state_hash));
    run_pace(r, m);
    int64_t every = r->config->log.every;
    bool print =
        every <= 1 || r->at.step % every == 0 || r->at.step == 1 || r->at.step == r->last_step;
    TRY(health_step(r->health, &r->cx, &m->fp8));
    if (print && r->shape.mode == MODE_FP8) {
        TRY(health_rows(r->health, &r->cx));
        m->health = r->health;
    }
    return write_metrics(r, m, print);
}

// stopped: the unfinished step was dropped; save the last finished one and say how to go on.
static Err stopped(Run *r) {
    const char *why = stop_reason(&r->stop);
    if (r->at.step > 0) TRY(save(r));
    TRY(saver_finish(r->saver));
    log_line("stopped by %s after step %lld; continue with --run-dir %s --resume auto", why, (long long)r->at.step,
             r->dir);
    Err mine = OK;
    if (r->metrics)
        mine = metrics_event(r->metrics, "stop", "\"step\":%lld,\"reason\":\"%s\"", (long long)r->at.step, why);
    TRY(comm_agree(r->boot.world, mine));
    return E_STOPPED;
}

// evaluate: the held-out loss. One that is given up ends the run as an unfinished step does.
static Err evaluate(Run *r) {
    EvalResult e;
    double t0 = now_seconds();
    LedgerPhase was = ledger_phase(r->ledger, PHASE_EVAL);
    Err err = evaluate_heldout(r->model, &r->cx, r->eval, r->eval_corpora, r->config->eval.max_sequences, &r->stop, &e);
    ledger_phase(r->ledger, was);
    TRY(err);
    TRY(note_eval(r, &e, now_seconds() - t0));
    return e.is_stopped ? stopped(r) : OK;
}

// after_step: what is due at the end of a step: evaluation, checkpoint.
static Err after_step(Run *r) {
    const Config *c = r->config;
    bool is_last = r->at.step == r->last_step;
    TRY(saver_poll(r->saver));
    if (r->eval && c->eval.every && (r->at.step % c->eval.every == 0 || is_last)) TRY(evaluate(r));
    bool is_due = c->checkpoint.every && r->at.step % c->checkpoint.every == 0;
    if (is_last || is_due || (stop_wants_save(&r->stop) && !saver_is_busy(r->saver))) TRY(save(r));
    return OK;
}

static Err loop(Run *r) {
    Pace pace = {0};
    if (r->owes_eval) {
        ledger_step(r->ledger, r->at.step);
        TRY(evaluate(r));
    }
    while (r->at.step < r->last_step) {
        double t0 = now_seconds();
        ledger_step(r->ledger, r->at.step + 1);
        StepInput in = {.config = r->config,
                        .loader = r->loader,
                        .step = r->at.step + 1,
                        .samples = r->at.samples,
                        .tokens = r->tokens,
                        .doc_start = r->doc_start,
                        .stop = &r->stop,
                        .inject = r->inject.n > 0 ? &r->inject : NULL,
                        .own_s = r->own_s,
                        .shadow = r->shadow};
        StepOutput out;
        TRY(step_train(r->model, &r->cx, &in, &out));
        if (out.is_stopped) return stopped(r);
        r->read.samples += out.read.samples;
        r->read.hash += out.read.hash;
        if (out.bad.is_bad) {
            TRY(run_bad_step(r, &out.bad, out.batch));
            continue;
        }
        r->at.step++;
        r->at.samples = out.m.samples;
        r->at.tokens = out.m.tokens;
        out.m.skipped = r->at.skipped;
        run_good_step(r);
        stop_note_step(&r->stop, now_seconds() - t0);
        TRY(record(r, &out.m, now_seconds() - t0, &pace));
        TRY(after_step(r));
    }
    return OK;
}

// one_sided: errors of this kind happen on one rank while the others wait in a collective.
static bool is_one_sided(Err err) {
    return !comm_is_agreed() && (err == E_INTERNAL || err == E_PEER);
}

Err run_loop(Run *r) {
    Err err = loop(r);
    if (err == OK) return saver_finish(r->saver);
    if (err == E_STOPPED || (r->boot.nranks > 1 && is_one_sided(err))) return err;
    return saver_drain(r->saver, err); // what was good before the error is kept
}

// note_start: a line of events.jsonl for every start of the run, the first and the resumed ones.
static Err note_start(Run *r) {
    Err mine = OK;
    if (r->metrics) {
        mine = metrics_event(r->metrics, r->resume_from[0] ? "resume" : "start",
                             "\"step\":%lld,\"samples\":%lld,\"world\":%d,\"ep\":%d,\"threads\":%d",
                             (long long)r->at.step, (long long)r->at.samples, r->mesh.world,
                             r->mesh.ep, r->cx.op.nthreads);
    }
    return comm_agree(r->boot.world, mine);
}

static Err train_on_ranks(Run *r) {
    bool is_done = false;
    TRY(run_setup(r, &is_done));
    if (is_done) return OK;
    TRY(note_start(r));
    if (staging_is_host(&r->cx)) {
        GemmPeak peak = gemm_peak(r->cx.op.nthreads);
        // The fastest sample is that of a rank that has its cores to itself: of shared ones only its part counts.
        double part = r->boot.cores / (double)min_i64(r->cx.op.nthreads, boot_cores());
        r->peak_flops = (r->shape.mode == MODE_FP32 ? peak.f32 : peak.half) * (part < 1.0 ? part : 1.0);
    }
    TRY(comm_sum(r->boot.world, &r->peak_flops, 1));
    log_line("peak       %.1f GFLOP/s measured, all ranks together: MFU is a fraction of it",
             r->peak_flops * 1e-9);
    return run_loop(r);
}

// start_stop: from here on a signal is a request.
static void start_stop(Run *r) {
    if (r->opt.is_dry_run) return;
    boot_signals();
    r->stop.signalled = boot_signalled;
    r->stop.grace = r->opt.grace;
    stop_limit(&r->stop, now_seconds(), r->opt.time_limit, boot_end_time(), (int64_t)time(NULL));
}

Err run_train(const TrainOptions *o) {
    Run r;
    memset(&r, 0, sizeof r);
    r.opt = *o;
    if (o->is_print_config || (o->is_dry_run && !boot_is_launched())) {
        TRY(config_load(&r.config, o->config_path, o->sets, o->nsets));
        Err err = OK;
        if (o->is_print_config) {
            char *text = NULL;
            err = config_dump(r.config, &text);
            if (err == OK) fputs(text, stdout);
            mem_free(text);
        } else {
            err = run_dry(r.config, (int)r.config->parallel.ep);
        }
        config_free(r.config);
        return err;
    }
    start_stop(&r);
    TRY(boot_init(&r.boot));
    log_init(r.boot.rank, r.boot.nranks);
    Err err = o->is_dry_run ? OK : train_on_ranks(&r);
    if (o->is_dry_run) {
        err = comm_agree(r.boot.world, config_load(&r.config, o->config_path, o->sets, o->nsets));
        if (err == OK && r.boot.rank == 0) err = run_dry(r.config, r.boot.nranks);
        err = comm_agree(r.boot.world, err);
    }
    if (err != OK && err != E_STOPPED) {
        if (r.boot.rank == 0 || is_one_sided(err)) log_error();
        if (r.boot.nranks > 1 && is_one_sided(err)) boot_abort(&r.boot, (int)err);
    }
    fail_clear(); // printed; a stop has said so itself
    run_close(&r);
    boot_finish(&r.boot);
    return err;
}
