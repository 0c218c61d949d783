// prof.h - where the time of a step goes. Regions are exclusive: entering one pauses the one around it,
// so the seconds of all regions add up to the time spent between prof_reset and prof_get.
#pragma once
#include "fail.h"

typedef enum ProfRegion {
    PROF_OTHER,
    PROF_DATA,
    PROF_EMBED,
    PROF_LINEAR,
    PROF_ATTENTION,
    PROF_ELEMENTWISE,
    PROF_QUANT,
    PROF_ROUTE,
    PROF_EXCHANGE,
    PROF_EXPERT,
    PROF_HEAD,
    PROF_REDUCE,
    PROF_OPTIMIZER,
    PROF_EVAL,
    PROF_CHECKPOINT,
    PROF_COUNT
} ProfRegion;

const char *prof_name(ProfRegion r);
// prof_enter / prof_leave: nestable, one thread (the rank's main thread). Local.
void prof_enter(ProfRegion r);
void prof_leave(void);
// prof_reset: forget all times. prof_get: seconds per region since then.
void prof_reset(void);
void prof_get(double seconds[PROF_COUNT]);
// prof_calls: how often each region was entered since prof_reset.
void prof_calls(int64_t calls[PROF_COUNT]);
// prof_current: the innermost region, for reports about a stuck or failed rank.
ProfRegion prof_current(void);
