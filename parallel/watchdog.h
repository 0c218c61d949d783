// watchdog.h - a thread beside the training that notices when a run stands still, finds out over TCP which rank never
// entered which operation, says so in one sentence, and ends the job with code 69.
//
// Every rank has one. It looks at its own ledger about once a second. If the rank waits in an operation, or gave no
// sign of life, for longer than its phase allows, it looks for the lowest rank whose thread answers: that one asks all
// others what they are in (verdict.h), whatever rank is the stopped one. A rank that does not answer is judged by its
// ledger's file, where that can be read. None of this uses the library that the ranks may be stuck in.
//
// Time in which this process was stopped itself (a suspended job) does not count.
#pragma once
#include "verdict.h"

typedef struct Watchdog Watchdog;

typedef struct WatchdogSpec {
    Ledger *ledger;              // borrowed, of this rank
    double limit[LEDGER_PHASES]; // seconds without a sign of life; 0: no limit
    bool is_one_host;            // all ranks are on this host: only the loopback interface is used
    // say: the sentence, or with is_hang false why the run waits; called by the thread of one rank, at most once for a
    // hang. end: of this process, at once, with code 69 and without the library that it may be stuck in; on the rank
    // that spoke after all others were told. Must not return.
    void (*say)(void *user, bool is_hang, const char *text);
    void (*end)(void *user);
    void *user;
} WatchdogSpec;

// watchdog_start: exchange addresses and start the thread; with all limits 0 nothing is started and *out is NULL.
// Without sockets a rank still judges itself. Errors: E_PEER, E_INTERNAL. Collective over the world.
Err watchdog_start(Watchdog **out, const WatchdogSpec *spec, Comm *world) MUST_CHECK;
// watchdog_files: the ledgers' files of all ranks are in this folder from now on. Local.
void watchdog_files(Watchdog *w, const char *dir);
// watchdog_stop: end the thread; *w = NULL; accepts NULL. Local.
void watchdog_stop(Watchdog **w);
