// stop.h - when a run ends before its last step: signals and the time limit, and whether the time they leave is enough
// for a save.
//
// Every rank looks at its own signal flag and its own clock; what one rank sees counts for all of them: stop_agree is
// entered by all ranks at the same places, between micro-batches (and between passes of an evaluation, and between the
// parts of the start). Once agreed, a reason stays.
#pragma once
#include "comm.h"

#define STOP_TIME 1000 // the reason that is no signal: the time limit is near

typedef struct Stop {
    int (*signalled)(void); // number of the signal that came to this process, or 0; NULL: none ever comes
    int64_t reason;         // agreed by all ranks: 0 go on, a signal's number, STOP_TIME
    double deadline;        // now_seconds() at which the run must have ended; 0 = no limit
    const char *limit_name; // where the deadline comes from, for messages
    double grace;           // seconds between a signal and the end, as the user says; 0 = not known
    bool is_limited;        // some rank has a deadline or a grace period (stop_settle)
    double save_s;          // the longest save so far, from its start to verified; 0 = none yet
    bool is_measured;       // one of them came through
    bool is_saving;         // one goes on beside the training: the last one has to wait for it
    bool is_beside;         // one may, whenever a signal comes
    int64_t pause, wait;    // steps between the last tries to measure a save; that are left until the next one
    double step_s;          // the longest of the last steps: what may pass between two looks at the flag
    double warned_s;        // save and step of the last warning
} Stop;

// stop_limit: the nearer of `time_limit` seconds after `started` (now_seconds; time_limit 0 = none) and the end of the
// batch job (end_time and now_time, seconds since 1970; end_time 0, past or a year away: not sensible, none). Local.
void stop_limit(Stop *s, double started, double time_limit, int64_t end_time, int64_t now_time);
// stop_margin: seconds before the deadline at which a run must stop to save in time: 1.5 saves, one more while one is
// under way, one step, 2 s. Local.
double stop_margin(const Stop *s);
// stop_look: what this rank sees now: 0, a signal's number or STOP_TIME. s may be NULL: 0. Local.
int64_t stop_look(const Stop *s);
// stop_agree: comm_agree of `mine`, and in the same exchange s->reason. s may be NULL. Collective over world.
Err stop_agree(Stop *s, Comm *world, Err mine) MUST_CHECK;
// stop_is_due: all ranks agreed to stop. s may be NULL: never. Local.
bool stop_is_due(const Stop *s);
// stop_reason: "SIGTERM", "the time limit (--time-limit)". The text lives until the next call. Local.
const char *stop_reason(const Stop *s);
// stop_settle: what one rank knows of a limit counts for all: environments may differ. Before the first step.
// Collective over world.
Err stop_settle(Stop *s, Comm *world) MUST_CHECK;
// stop_wants_save: a limit or a grace period is set, and no save has come through that it could be compared with: the
// run saves after its next step. After one that failed it waits 2 steps, then 4, 8 and so on. The same on all ranks.
// Local.
bool stop_wants_save(const Stop *s);
// stop_note_step, stop_note_save, stop_note_failed_save: a step or a save took so long, the failed one until it failed.
// After a save with a grace period that is too short for a step and a save (two, if one may be under way beside the
// training), a warning that says what to change: once, and again when it gets 20 % worse. Local.
void stop_note_step(Stop *s, double seconds);
void stop_note_save(Stop *s, double seconds);
void stop_note_failed_save(Stop *s, double seconds);
