// run_pace.c - which rank holds the others up, and what a crash now would cost.
#include "arena.h"
#include "log.h"
#include "run.h"

Err run_pace_start(Run *r) {
    MEM_NEW(r->own_s, r->boot.nranks);
    r->start_step = r->at.step;
    return straggler_create(&r->straggler, r->boot.nranks, r->config->straggler.factor, r->config->straggler.steps);
}

void run_pace_stop(Run *r) {
    straggler_free(&r->straggler);
    mem_free(r->own_s);
}

static void tell(Run *r, const StragglerNews *x) {
    const char *host = r->places[x->rank].host;
    char inside[2 * sizeof r->places->host];
    if (x->is_over) {
        log_line("slow       no more: rank %d (%s), %.2f times the median rank's seconds", x->rank, host, x->factor);
    } else {
        log_warn("slow: rank %d (%s) computes %.2f times as long as the median rank, %lld steps in a row (%.3f s "
                 "against %.3f s in step %lld)",
                 x->rank, host, x->factor, (long long)r->config->straggler.steps, x->seconds, x->median,
                 (long long)r->at.step);
    }
    if (!r->metrics) return;
    metrics_escape(inside, sizeof inside, host);
    Err err = metrics_event(r->metrics, x->is_over ? "straggler_over" : "straggler",
                            "\"step\":%lld,\"rank\":%d,\"host\":\"%s\",\"factor\":%.4g,\"seconds\":%.6g,"
                            "\"median\":%.6g",
                            (long long)r->at.step, x->rank, inside, x->factor, x->seconds, x->median);
    if (err == OK) return;
    log_warn("not in events.jsonl: %s", fail_message()); // no reason to end a run
    fail_clear();
}

void run_pace(Run *r, StepMetrics *m) {
    int64_t saved = saver_saved_step(r->saver);
    m->unsaved_steps = r->at.step - (saved >= 0 ? saved : r->start_step);
    m->unsaved_s = m->unsaved_steps > 0 ? now_seconds() - saver_saved_time(r->saver) : 0.0;
    if (r->boot.nranks == 1) return;
    m->has_slow = true;
    straggler_step(r->straggler, r->own_s, &m->slow_rank, &m->slow_factor);
    for (StragglerNews x; (x = straggler_news(r->straggler)).rank >= 0;) tell(r, &x);
}
