// run.h - a training run from command line to last checkpoint: `tessera train`.
//
// run_setup.c builds everything (config, ranks, run directory, data, model, checkpoint to continue from); run.c is
// the loop; run_report.c what `--dry-run` and the first lines print.
#pragma once
#include "boot.h"
#include "checkpoint.h"
#include "evaluate.h"
#include "model_memory.h"
#include "rank_map.h"
#include "run_dir.h"
#include "save.h"
#include "step.h"
#include "straggler.h"
#include "watchdog.h"

typedef struct TrainOptions {
    const char *config_path;
    const char *run_dir;     // NULL: runs/<config stem>
    const char *resume;      // NULL or "never", "auto", PATH or PATH@STEP
    const char *init_from;   // checkpoint whose weights start a new run, NULL = random
    const char *const *sets; // section.key=value
    int nsets;
    Inject inject;           // faults on demand, as inject_parse left them
    int64_t steps;           // stop here, 0 = train.steps
    const char *device;      // "auto", "cpu" or "cuda"; NULL: auto
    double time_limit;       // seconds from the start, 0 = none
    double grace;            // seconds between a signal and the end, 0 = not known
    int threads;             // per rank, 0 = cores / local ranks, or OMP_NUM_THREADS
    bool is_dry_run, is_print_config;
} TrainOptions;

typedef struct Run {
    TrainOptions opt;
    Boot boot;
    Config *config;
    Mesh mesh;
    Backend backend;
    Shape shape;
    MemoryPlan memory;
    double memory_free; // of this rank's machine before the run takes any, bytes; -1: unknown
    Cx cx;
    Model *model;
    Loader *loader, *eval;   // eval NULL without data.eval
    int eval_corpora;
    RunLock *lock;           // rank 0
    Ledger *ledger;          // what this rank does with others (run_watch.c)
    Watchdog *watchdog;      // NULL without limits
    Metrics *metrics;
    Health *health;          // FP8 counters, on every rank
    Inject inject;           // faults on demand
    Shadow *shadow;          // with fp8.shadow_every, else NULL
    char dir[1024], checkpoints[1100];
    char resume_from[1100];  // checkpoint to load, "" = none
    char origin[1100];       // what --resume names outside of `dir`, "" = nothing
    char init_from[1100];    // checkpoint whose weights start the run, "" = none
    CheckpointInfo at;       // where the run stands; at.read is that of the checkpoint it resumed
    ReadProof read;          // by this rank since then
    Saver *saver;
    int64_t last_step;       // stop after this one
    bool owes_eval;          // the start before gave up the evaluation of the step that is resumed
    int64_t bad_step;        // the furthest that was not finite
    int bad_in_row;          // batches that were not finite since it was passed last
    Stop stop;               // signals, the time limit
    RankPlace *places;       // [nranks] hosts, cores and GPUs of all ranks
    Straggler *straggler;    // who is slow (run_pace.c)
    double *own_s;           // [world] seconds of each rank in the last step
    int64_t start_step;      // where this process began
    int64_t crowded;         // ranks with more threads than cores of their own
    double peak_flops;       // of all ranks, measured at start; 0 = not known
    int32_t *tokens, *doc_start;
} Run;

// run_setup: everything before the first step. *is_done: nothing to do (a message said why). Collective over world.
Err run_setup(Run *r, bool *is_done) MUST_CHECK;
// run_loop: steps, evaluations, saves. E_STOPPED after a signal and a verified save. Collective over world.
Err run_loop(Run *r) MUST_CHECK;
// run_state_hash: of masters, moments, biases and data position, in any layout the same. Collective over world.
Err run_state_hash(Run *r, uint64_t *out) MUST_CHECK;
// run_close: give everything back. Local.
void run_close(Run *r);

// run_resume_has_path: --resume names a run or a checkpoint, so neither "auto" nor "never". Pure.
bool run_resume_has_path(const char *resume);
// run_resume_split: "PATH@STEP" -> path [n] and step (-1 without one). Errors: E_USAGE if it is too long. Local.
Err run_resume_split(const char *resume, char *path, size_t n, int64_t *step) MUST_CHECK;
// run_train: all of it. Under a launcher on all ranks. On an error that only this rank knows the whole job is
// aborted with its code; an agreed one is printed by the first rank and returned by all. Collective over world.
Err run_train(const TrainOptions *o) MUST_CHECK;

// run_fill: the state of resume_from, else of --init-from or the seed. Collective over world.
Err run_fill(Run *r) MUST_CHECK;
// run_bad_step: the next step was not finite, with so many sequences: train.on_nonfinite; what at.samples says
// afterwards is where the next one begins. E_NUMERIC if the run has to end. run_good_step: a step was finished.
// Collective over world.
Err run_bad_step(Run *r, const BadStep *bad, int64_t batch) MUST_CHECK;
void run_good_step(Run *r);
// run_pace.c: run_pace_start: before the first step. run_pace: who is slow, and what a crash would cost, into the
// step's numbers and, where it changes, the log and the events. Local.
Err run_pace_start(Run *r) MUST_CHECK;
void run_pace(Run *r, StepMetrics *m);
void run_pace_stop(Run *r);
// run_watch.c: the ledger and the watchdog of a run. run_watch_start: once config and groups are there.
// run_watch_devices: once the groups have their tables for memory of devices. run_watch_files: once the run directory
// is there; a ledger that cannot have a file stays in memory, with a warning. Collective over world.
// run_watch_stop: before the groups go. Local.
Err run_watch_start(Run *r) MUST_CHECK;
Err run_watch_devices(Run *r) MUST_CHECK;
Err run_watch_files(Run *r) MUST_CHECK;
void run_watch_stop(Run *r);

// run_dry: print parameter counts and memory per rank, open nothing. Local.
Err run_dry(const Config *c, int world) MUST_CHECK;
// run_banner: the first lines of a run: model, ranks, threads, memory. Local.
void run_banner(const Run *r);
// run_rss: resident bytes of this process now.
double run_rss(void);
