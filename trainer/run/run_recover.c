// run_recover.c - what a run does about a step whose loss or gradient is not finite: train.on_nonfinite.
//
// A dropped batch is no step: no line of metrics, no update, and the same step is taken with the samples behind it. So
// with skip a step is lost to nothing but its samples; with rollback the steps since the checkpoint are taken again,
// with samples behind the bad batch, and all samples from the checkpoint's place to there have left no trace. Either
// way CheckpointInfo.skipped has them, and a run that is resumed from any checkpoint before or after meets the same
// batches and ends in the same state.
#include <string.h>

#include "log.h"
#include "run.h"

// note_skipped: samples first .. end-1 were read and left no trace. The text keeps the last ranges that fit.
static void note_skipped(CheckpointInfo *at, int64_t first, int64_t end) {
    char text[sizeof at->skipped_ranges + 64], open[40];
    at->skipped += end - first;
    snprintf(text, sizeof text, "%s", at->skipped_ranges);
    // A range that ends where this one begins grows.
    snprintf(open, sizeof open, ", %lld)", (long long)first);
    size_t n = strlen(text), k = strlen(open);
    if (n >= k && strcmp(text + n - k, open) == 0) {
        snprintf(text + n - k, sizeof text - n + k, ", %lld)", (long long)end);
    } else {
        snprintf(text + n, sizeof text - n, "%s[%lld, %lld)", n ? " " : "", (long long)first, (long long)end);
    }
    char *from = text;
    while (strlen(from) >= sizeof at->skipped_ranges) {
        char *next = strchr(from + 1, '[');
        if (!next) break;
        from = next;
    }
    snprintf(at->skipped_ranges, sizeof at->skipped_ranges, "%s", from);
}

static Err note_event(Run *r, const BadStep *bad, const char *policy, int64_t first, int64_t end) {
    char text[2 * sizeof bad->text];
    metrics_escape(text, sizeof text, bad->text);
    Err mine = OK;
    if (r->metrics)
        mine = metrics_event(r->metrics, "nonfinite",
                             "\"step\":%lld,\"policy\":\"%s\",\"rank\":%d,\"layer\":%lld,\"tensor\":\"%s\","
                             "\"samples\":[%lld,%lld],\"skipped\":[%lld,%lld],\"text\":\"%s\"",
                             (long long)r->at.step + 1, policy, bad->rank, (long long)bad->layer, bad->tensor,
                             (long long)bad->first, (long long)bad->last, (long long)first, (long long)end, text);
    return comm_agree(r->boot.world, mine);
}

// find_last: the checkpoint to go back to: the last one that this process saved or began with, else the run's newest
// that verifies, else the one it was resumed from. Collective over world.
static Err find_last(Run *r, bool *is_own) {
    char path[sizeof r->resume_from];
    int64_t step = saver_saved_step(r->saver);
    *is_own = false;
    // A run that was resumed from before its newest checkpoint still has that one: its steps are not this run's.
    if (step > 0) {
        Err err = comm_agree(r->boot.world, checkpoint_find(path, sizeof path, is_own, r->dir, step, &r->cx));
        if (err != OK && err != E_INPUT) return err;
        if (err != OK) log_warn("skipping a checkpoint: %s", fail_message());
        fail_clear();
    }
    if (!*is_own) TRY(comm_agree(r->boot.world, checkpoint_find(path, sizeof path, is_own, r->dir, -1, &r->cx)));
    if (*is_own) snprintf(r->resume_from, sizeof r->resume_from, "%s", path);
    CHECK(r->resume_from[0], E_NUMERIC,
          "train.on_nonfinite is rollback, but there is no checkpoint to go back to: set checkpoint.every");
    return OK;
}

// reopen: metrics.jsonl is cut to the steps of the checkpoint. Rank 0.
static Err reopen_metrics(Run *r) {
    if (!r->metrics) return OK;
    metrics_close(&r->metrics);
    return metrics_open(&r->metrics, r->dir, r->at.step, r->boot.rank);
}

// roll_back: the state of the last checkpoint; the samples go on at `end`. Collective over world.
static Err roll_back(Run *r, const BadStep *bad, int64_t end) {
    bool is_own = false;
    int64_t step = r->at.step + 1;
    CheckpointInfo info;
    LedgerPhase was = ledger_phase(r->ledger, PHASE_START);
    TRY(saver_wait(r->saver)); // it may be the one to go back to
    TRY(find_last(r, &is_own));
    TRY(comm_agree(r->boot.world, checkpoint_read_info(r->resume_from, &info)));
    CHECK(info.step < step, E_NUMERIC,
          "step %lld: %s; there is no checkpoint to go back to: the last one that verifies, %s, is of step %lld",
          (long long)step, bad->text, r->resume_from, (long long)info.step);
    TRY(note_event(r, bad, "rollback", info.samples, end));
    info.read = r->at.read; // what was read since the start of the process goes on adding up
    r->at = info;
    TRY(run_fill(r));
    note_skipped(&r->at, info.samples, end);
    TRY(comm_agree(r->boot.world, reopen_metrics(r)));
    saver_rewind(r->saver, is_own ? info.step : -1, r->metrics);
    log_warn("step %lld: %s; back to step %lld, and on with sample %lld: %lld samples in all have left no trace",
             (long long)step, bad->text, (long long)info.step, (long long)end, (long long)r->at.skipped);
    ledger_phase(r->ledger, was);
    return OK;
}

Err run_bad_step(Run *r, const BadStep *bad, int64_t batch) {
    const Config *c = r->config;
    int64_t step = r->at.step + 1, end = r->at.samples + batch;
    if (step > r->bad_step) r->bad_step = step;
    r->bad_in_row++;
    if (r->bad_in_row >= c->train.nonfinite_limit) {
        TRY(note_event(r, bad, "abort", end, end));
        FAIL(E_NUMERIC,
             "step %lld: %s; %d batch%s in a row not finite (train.nonfinite_limit); nothing was updated or saved",
             (long long)step, bad->text, r->bad_in_row, r->bad_in_row == 1 ? "" : "es");
    }
    if (c->train.on_nonfinite == NONFINITE_ROLLBACK) {
        TRY(roll_back(r, bad, end));
    } else {
        TRY(note_event(r, bad, "skip", r->at.samples, end));
        note_skipped(&r->at, r->at.samples, end);
        log_warn("step %lld: %s; the batch is skipped: %lld samples in all have left no trace", (long long)step,
                 bad->text, (long long)r->at.skipped);
    }
    r->at.samples = end;
    r->at.tokens = end * r->shape.S;
    return OK;
}

void run_good_step(Run *r) {
    if (r->at.step >= r->bad_step) r->bad_in_row = 0;
}
