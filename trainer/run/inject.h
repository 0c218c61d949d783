// inject.h - faults on demand, for trying out what a run does about them: `tessera train --inject FAULT`, repeatable.
//
//     kill@step=30,rank=2[,layer=1]            the rank's process is killed (SIGKILL)
//     hang@step=30,rank=2[,layer=1]            the rank stops for ever and enters nothing any more
//     nan@step=30[-34],rank=2[,layer=1][,in=output|gradient]
//                                              one value of a block's output, or of its first gradient, is NaN
//     slow@step=5[-20],rank=1,factor=1.5       every pass takes that many times as long, or so many seconds longer
//     slow@step=5[-20],rank=1,seconds=0.2[,in=pass|data]
//                                              in=data: its data come so many seconds late, before every pass
//     diskfull@save=2[,rank=0]                 the second save of this start meets a full disk on that rank
//     corrupt@save=3[,rank=0]                  a byte of the rank's shard is wrong on disk
//
// Steps, saves and layers are counted as in the log: steps and saves from 1, layers from 0 (MTP modules follow the
// blocks); a rank is one of the world. A fault with a layer happens at the end of that block in the step's first pass,
// forward (a gradient: backward); kill and hang without one happen as the step begins, nan without one means layer 0.
//
// Every fault but slow happens once in a run directory, a range once at each of its steps: what has happened is
// remembered in RUN_DIR/injected, one line each, so that a supervised or requeued run, given the same flags again, gets
// past it; remove the file to have it again. A start from a checkpoint of a later step never reaches it anyway.
#pragma once
#include "model.h"

#define INJECT_MAX 16

typedef enum InjectKind {
    INJECT_KILL,
    INJECT_HANG,
    INJECT_NAN,
    INJECT_SLOW,
    INJECT_DISKFULL,
    INJECT_CORRUPT,
    INJECT_KINDS
} InjectKind;

typedef struct Fault {
    InjectKind kind;
    char text[96];       // as given
    int64_t first, last; // steps, or saves
    int64_t rank, layer; // layer -1: none was given
    double factor, seconds;
    bool is_gradient;
    bool is_data; // slow: before the pass, not after it
    bool is_due; // in the running step, on this rank
} Fault;

typedef struct Inject {
    Fault fault[INJECT_MAX];
    int n;
    int64_t rank, step, saves; // this rank; the running step; saves begun
    uint64_t done[INJECT_MAX]; // bit i: happened at step (save) first + i
    char path[1100];           // RUN_DIR/injected
} Inject;

// inject_parse: the values of all --inject flags. Errors: E_USAGE that says what is wrong and names the nearest word.
// Local.
Err inject_parse(Inject *in, const char *const *texts, int n) MUST_CHECK;
// inject_check: ranks and layers exist. Errors: E_USAGE. Local.
Err inject_check(const Inject *in, int world, int64_t nblocks) MUST_CHECK;
// inject_start: what this run directory has seen already, as rank 0 finds it; then one loud line for each fault.
// Collective over world. Errors: E_INPUT.
Err inject_start(Inject *in, const char *run_dir, Comm *world) MUST_CHECK;

// inject_step: step `step` begins: remembers what happens in it (E_OUTPUT if that cannot be written), and does it where
// it happens at once: does not return from kill and hang. Local.
Err inject_step(Inject *in, int64_t step) MUST_CHECK;

// One pass of a step with its faults.
typedef struct InjectPass {
    Inject *in;
    Params *params;
    Cx *cx;
    const Taps *inner; // of the caller, hidden and grads only; NULL = none
    bool is_first;     // pass of the step
    Taps taps;
} InjectPass;

// inject_taps: the taps with which pass number `pass` (0, 1, ...) of the running step is to be run: `inner` itself
// where nothing is due. p must live as long as the taps. Local.
const Taps *inject_taps(InjectPass *p, Inject *in, Params *params, Cx *cx, int64_t pass, const Taps *inner);
// inject_delay: after a pass that took this rank `seconds` of its own, waits for others not counted: sleeps if it is to
// be slow. Local.
void inject_delay(const Inject *in, double seconds);
// inject_data: while the data of a pass are waited for: sleeps if they are to come late. Local.
void inject_data(const Inject *in);

// What is to go wrong in a save, on this rank.
typedef struct InjectSave {
    bool is_disk_full; // the shard's write fails with ENOSPC
    bool is_corrupt;   // one byte of the shard is flipped after it was written, before it is read back
} InjectSave;
// inject_save: the next save begins; every rank calls it once for each. Local.
Err inject_save(Inject *in, InjectSave *out) MUST_CHECK;
