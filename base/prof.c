// prof.c - exclusive region timers on a small stack.
#include "prof.h"

#include <string.h>

#include "log.h"

#define DEPTH 32

static ProfRegion stack[DEPTH];
static int depth;
static double total[PROF_COUNT];
static int64_t calls_of[PROF_COUNT];
static double last;

static void charge(void) {
    double t = now_seconds();
    if (last > 0.0) total[prof_current()] += t - last;
    last = t;
}

const char *prof_name(ProfRegion r) {
    static const char *const names[PROF_COUNT] = {"other",       "data",   "embed", "linear",   "attention",
                                                  "elementwise", "quant",  "route", "exchange", "expert",
                                                  "head",        "reduce", "optimizer", "eval", "checkpoint"};
    return names[r];
}

void prof_enter(ProfRegion r) {
    charge();
    calls_of[r]++;
    if (depth < DEPTH) stack[depth] = r;
    depth++;
}

void prof_leave(void) {
    charge();
    if (depth > 0) depth--;
}

void prof_reset(void) {
    memset(total, 0, sizeof total);
    memset(calls_of, 0, sizeof calls_of);
    last = now_seconds();
}

void prof_get(double seconds[PROF_COUNT]) {
    charge();
    memcpy(seconds, total, sizeof total);
}

void prof_calls(int64_t calls[PROF_COUNT]) {
    memcpy(calls, calls_of, sizeof calls_of);
}

ProfRegion prof_current(void) {
    if (depth == 0) return PROF_OTHER;
    return stack[depth <= DEPTH ? depth - 1 : DEPTH - 1];
}
