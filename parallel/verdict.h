// verdict.h - from what every rank is in to the one sentence about a run that stands still: which rank never entered
// which operation. Pure: the watchdog (watchdog.h) collects, `tessera inspect RUN_DIR/ledger` reads files.
//
// Everything here is Local.
#pragma once
#include "ledger.h"

#define VERDICT_TEXT 1024

typedef enum VerdictKind {
    VERDICT_NONE, // nobody waits for longer than its phase allows
    VERDICT_WAIT, // some do, for a rank that is within its own phase's limit (a long save, say)
    VERDICT_HANG
} VerdictKind;

typedef struct Verdict {
    VerdictKind kind;
    int culprit;             // the rank that is named first, -1: none in particular
    double left;             // VERDICT_WAIT: seconds until it is late itself; infinite if its phase has no limit
    char text[VERDICT_TEXT]; // the sentence
} Verdict;

// verdict_find: of ranks r [n], where r[i] is what rank i of the world is in. limit: seconds without a sign of life in
// each phase, 0 = for ever. marks [2 * n]: scratch.
//
// Whoever waits in an operation waits for the ranks of its group that have not entered it; if those wait themselves,
// for those that they wait for. At the end of such a chain is a rank that waits for nobody, does not answer, or is not
// there any more: it is named. A chain that comes back to itself names the ranks that wait for each other. Of an
// operation that all its ranks have entered: where some have left it and wait in a later one of the group, those still
// in it are named; else the operation, as one that does not end, once the last to come has been in it for too long too.
void verdict_find(Verdict *v, const LedgerState *r, int n, const double limit[LEDGER_PHASES], bool *marks);
// verdict_ranks: "ranks 0-2, 5" or "rank 3", of those with is_in[i]; at most 12 pieces, then how many more.
void verdict_ranks(char *out, size_t size, const bool *is_in, int n);
