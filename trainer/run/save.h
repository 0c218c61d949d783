// save.h - the saves of a run: when they are done, what they cost, what happens if one fails.
//
// With checkpoint.async a save is a copy of the own rows (the stall), then a thread of every rank writes it,
// reads a neighbour's part back and commits while the training goes on. The thread never calls other ranks:
// between its three parts (checkpoint_write.h) the ranks agree at the end of a step, in saver_poll. One save is
// under way at a time; the next one, and the end of the run, wait for it. Without checkpoint.async all of that
// happens in saver_save.
//
// A save that fails leaves the earlier checkpoints as they are. With checkpoint.on_error stop the run ends with
// E_OUTPUT; with continue it is a warning and an event, and only the save of the last step must succeed.
#pragma once
#include "checkpoint.h"
#include "inject.h"
#include "metrics.h"
#include "stop.h"

typedef struct SaverSpec {
    const char *dir;      // of the checkpoints
    const Config *config; // section checkpoint
    Metrics *metrics;     // of rank 0, else NULL
    Inject *inject;       // NULL: no faults
    Stop *stop;           // hears how long a save works; NULL: nobody
    int64_t saved_step;   // a step that is on disk there already, -1 none
} SaverSpec;

typedef struct Saver Saver;

// saver_create: saves of p, with all memory they need beside the staging of reads. Everything is borrowed. Local;
// errors: E_INTERNAL, E_OUTPUT.
Err saver_create(Saver **out, const SaverSpec *spec, const Params *p, Cx *cx) MUST_CHECK;
// saver_free: waits for what this rank's thread is doing; an unfinished save is given up. *s = NULL; accepts NULL.
// Local.
void saver_free(Saver **s);
// saver_save: the state after step `at->step` is saved, unless it is on disk or on its way. Waits for the save
// before. Collective over world.
Err saver_save(Saver *s, const CheckpointInfo *at) MUST_CHECK;
// saver_poll: lets a save under way go on to its next part if all ranks are through the last one; costs nothing
// if none is. At the end of every step. Collective over world.
Err saver_poll(Saver *s) MUST_CHECK;
// saver_rewind: the run has gone back to the state of saved_step, which is on disk (-1: not in this folder): later
// steps are saved again, and events go to these metrics (as in SaverSpec). No save may be under way. Local.
void saver_rewind(Saver *s, int64_t saved_step, Metrics *metrics);
// saver_saved_step: the last step that is on disk and verified, -1 none. Local.
int64_t saver_saved_step(const Saver *s);
// saver_saved_time: when this process reached the state that is on disk (now_seconds): its last save that came through
// began then; before there is one, when the saver was made. Local.
double saver_saved_time(const Saver *s);
// saver_is_busy: a save is under way; the same on all ranks. Local. saver_wait: until none is. Collective over
// world.
bool saver_is_busy(const Saver *s);
Err saver_wait(Saver *s) MUST_CHECK;
// saver_finish: the same; errors: that of the last save, whatever checkpoint.on_error is. Collective over world.
Err saver_finish(Saver *s) MUST_CHECK;
// saver_drain: the same on the way out with an error that all ranks have, which is kept and returned; another one is
// warned of. Collective over world.
Err saver_drain(Saver *s, Err err);
// saver_memory: bytes of this rank's snapshot. Local.
int64_t saver_memory(const Saver *s);
