// save.c - saves beside the training: one thread per rank, no calls between ranks on it.
#include "save.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "checkpoint_write.h"
#include "ledger.h"
#include "log.h"
#include "prof.h"

typedef enum Part { PART_NONE, PART_SHARD, PART_CHECK, PART_COMMIT } Part;

struct Saver {
    CkWrite *write;
    Cx *cx;
    const Config *config;
    Metrics *metrics;
    Inject *inject;
    Stop *stop;
    CheckpointInfo at;   // of the last save that was begun
    int64_t saved_step;  // last one that is on disk, -1 none
    double saved_time;   // when its save began
    int64_t failed_step; // last one that failed, -1 none
    char why_failed[1024];
    double begun, stall; // when the save at hand began; seconds that the training stood still for it,
    double since;        // until this moment, from which on it does again
    LedgerPhase was;     // what the rank was in then
    double work;         // seconds that this rank's parts took
    Part part;           // of the save at hand, done or being done
    // the thread and what it came to
    pthread_t thread;
    bool has_thread;
    atomic_bool is_ready;
    Err err;
    char why[1024];
};

Err saver_create(Saver **out, const SaverSpec *spec, const Params *p, Cx *cx) {
    const Config *c = spec->config;
    Saver *s = NULL;
    *out = NULL;
    MEM_NEW(s, 1);
    *out = s;
    s->cx = cx;
    s->config = c;
    s->metrics = spec->metrics;
    s->inject = spec->inject;
    s->stop = spec->stop;
    if (s->stop) s->stop->is_beside = c->checkpoint.async && c->checkpoint.every > 0;
    s->saved_step = s->at.step = spec->saved_step;
    s->saved_time = now_seconds();
    s->failed_step = -1;
    TRY(ckwrite_create(&s->write, spec->dir, p, cx, c, c->checkpoint.keep_last, c->checkpoint.keep_every,
                       c->checkpoint.async));
    return OK;
}

int64_t saver_memory(const Saver *s) {
    return ckwrite_snapshot_bytes(s->write);
}

// ---- one part, on the thread or here -----------------------------------------------------------

static void run_part(Saver *s) {
    Err err = OK;
    double t0 = now_seconds();
    switch (s->part) {
    case PART_SHARD: err = ckwrite_shard(s->write); break;
    case PART_CHECK: err = ckwrite_check(s->write); break;
    case PART_COMMIT: err = ckwrite_commit(s->write); break;
    case PART_NONE: break;
    }
    s->work += now_seconds() - t0;
    s->err = err;
    snprintf(s->why, sizeof s->why, "%s", fail_message());
    fail_clear();
    atomic_store(&s->is_ready, true);
}

static void *thread_main(void *saver) {
    run_part(saver);
    return NULL;
}

// What is under way now, for those who ask how long the way out takes.
static void set_part(Saver *s, Part part) {
    s->part = part;
    if (s->stop) s->stop->is_saving = part != PART_NONE;
}

// Signals stay with the training's thread. Where no thread can be had the part is done at once.
static void start_part(Saver *s, Part part) {
    sigset_t all, was;
    set_part(s, part);
    s->err = OK;
    atomic_store(&s->is_ready, false);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &was);
    s->has_thread = s->config->checkpoint.async && pthread_create(&s->thread, NULL, thread_main, s) == 0;
    pthread_sigmask(SIG_SETMASK, &was, NULL);
    if (!s->has_thread) run_part(s);
}

// Waits for the part; its error becomes one of this thread.
static Err join_part(Saver *s) {
    if (s->has_thread) pthread_join(s->thread, NULL);
    s->has_thread = false;
    return s->err == OK ? OK : fail_at(s->err, __FILE__, __LINE__, "%s", s->why);
}

void saver_free(Saver **saver) {
    Saver *s = *saver;
    if (!s) return;
    bool is_unfinished = s->part != PART_NONE;
    if (join_part(s) != OK) fail_clear();
    if (is_unfinished && ckwrite_abandon(s->write, E_OUTPUT) != OK) fail_clear();
    ckwrite_free(&s->write);
    mem_free(s);
    *saver = NULL;
}

// ---- how a save ends ---------------------------------------------------------------------------

static Err saved(Saver *s) {
    int64_t step = s->at.step, bytes = ckwrite_bytes(s->write);
    double now = now_seconds(), seconds = now - s->begun;
    s->stall += now - s->since;
    set_part(s, PART_NONE);
    s->saved_step = step;
    s->saved_time = s->begun;
    if (s->stop) stop_note_save(s->stop, s->work);
    log_line("saved      step %lld, verified, %.1f s, %s; the training stood still for %.3f s", (long long)step,
             seconds, text_bytes((double)bytes).s, s->stall);
    Err mine = s->metrics ? metrics_event(s->metrics, "save",
                                          "\"step\":%lld,\"seconds\":%.3f,\"stall_s\":%.3f,\"bytes\":%lld,\"async\":%s",
                                          (long long)step, seconds, s->stall, (long long)bytes,
                                          s->config->checkpoint.async ? "true" : "false")
                          : OK;
    return comm_agree(s->cx->world, mine);
}

// An agreed error: nothing of the save stays, the earlier ones do.
static Err failed(Saver *s, Err err) {
    char text[1100];
    set_part(s, PART_NONE);
    s->failed_step = s->at.step;
    if (s->stop) stop_note_failed_save(s->stop, s->work);
    err = ckwrite_abandon(s->write, err);
    snprintf(s->why_failed, sizeof s->why_failed, "%s", fail_message());
    metrics_escape(text, sizeof text, s->why_failed);
    Err mine = s->metrics ? metrics_event(s->metrics, "save_failed", "\"step\":%lld,\"why\":\"%s\"",
                                          (long long)s->at.step, text)
                          : OK;
    // The disk of the checkpoints may well be that of the events.
    if (mine != OK) log_warn("the failed save is not in events.jsonl: %s", fail_message());
    if (err != E_OUTPUT || s->config->checkpoint.on_error == ON_ERROR_STOP)
        return fail_at(err, __FILE__, __LINE__, "%s", s->why_failed);
    char last[64] = "it has no checkpoint yet";
    if (s->saved_step >= 0)
        snprintf(last, sizeof last, "the last checkpoint is that of step %lld", (long long)s->saved_step);
    log_warn("step %lld was not saved: %s; the run goes on (checkpoint.on_error continue), %s", (long long)s->at.step,
             s->why_failed, last);
    fail_clear();
    return comm_agree(s->cx->world, OK); // so that a later error of one rank alone is not taken for this one
}

// All ranks are through the part at hand: the next one begins.
static Err next_part(Saver *s) {
    Err err = comm_agree(s->cx->world, join_part(s));
    if (err == OK && s->part == PART_SHARD) err = ckwrite_share(s->write);
    if (err != OK) return failed(s, err);
    if (s->part == PART_COMMIT) return saved(s);
    start_part(s, s->part == PART_SHARD ? PART_CHECK : PART_COMMIT);
    return OK;
}

// ---- from the training -------------------------------------------------------------------------

// What follows holds up the training, until let_go.
static void hold_up(Saver *s) {
    s->since = now_seconds();
    s->was = ledger_phase(s->cx->world->ledger, PHASE_SAVE);
    prof_enter(PROF_CHECKPOINT);
}

static void let_go(Saver *s) {
    prof_leave();
    ledger_phase(s->cx->world->ledger, s->was);
    s->stall += now_seconds() - s->since;
}

// Until the save at hand, if there is one, has ended.
static Err settle(Saver *s) {
    Err err = OK;
    while (s->part != PART_NONE && err == OK) err = next_part(s);
    return err;
}

static Err begin(Saver *s, const CheckpointInfo *at) {
    InjectSave fault;
    TRY(settle(s));
    s->at = *at;
    s->begun = s->since = now_seconds();
    s->stall = s->work = 0.0;
    Err err = comm_agree(s->cx->world, inject_save(s->inject, &fault));
    if (err == OK) err = ckwrite_begin(s->write, at, fault);
    if (err != OK) return failed(s, err);
    s->work = now_seconds() - s->begun;
    start_part(s, PART_SHARD);
    return s->config->checkpoint.async ? OK : settle(s);
}

Err saver_save(Saver *s, const CheckpointInfo *at) {
    if (s->at.step == at->step && s->failed_step != at->step) return OK;
    hold_up(s);
    Err err = begin(s, at);
    let_go(s);
    return err;
}

void saver_rewind(Saver *s, int64_t saved_step, Metrics *metrics) {
    s->metrics = metrics;
    s->saved_step = s->at.step = saved_step;
    s->failed_step = -1;
}

int64_t saver_saved_step(const Saver *s) {
    return s->saved_step;
}

double saver_saved_time(const Saver *s) {
    return s->saved_time;
}

Err saver_poll(Saver *s) {
    if (s->part == PART_NONE) return OK;
    int64_t is_busy = s->has_thread && !atomic_load(&s->is_ready);
    TRY(comm_max_i64(s->cx->world, &is_busy, 1));
    if (is_busy) return OK;
    hold_up(s);
    Err err = next_part(s);
    let_go(s);
    return err;
}

bool saver_is_busy(const Saver *s) {
    return s->part != PART_NONE;
}

Err saver_wait(Saver *s) {
    hold_up(s);
    Err err = settle(s);
    let_go(s);
    return err;
}

Err saver_finish(Saver *s) {
    TRY(saver_wait(s));
    CHECK(s->failed_step != s->at.step || s->at.step < 0, E_OUTPUT, "%s", s->why_failed);
    return OK;
}

Err saver_drain(Saver *s, Err err) {
    char why[1024];
    if (!s || s->part == PART_NONE) return err;
    snprintf(why, sizeof why, "%s", fail_message());
    fail_clear();
    if (saver_wait(s) != OK) log_warn("%s", fail_message());
    fail_clear();
    // Agreed on once more: the last agreement was about the save.
    return comm_agree(s->cx->world, fail_at(err, __FILE__, __LINE__, "%s", why));
}
