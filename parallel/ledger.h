// ledger.h - what a rank did together with others, and what it is in now: a ring of operations in a memory-mapped file
// that outlives the process however it ends.
//
// The rank's main thread writes: two clock reads and some stores for each operation, no system call, no lock. Others
// read at any time: the watchdog's thread (watchdog.h), and `tessera inspect RUN_DIR/ledger` when all is over. What
// they read may be half an operation old, never torn in a way that matters: counters are written last.
//
// Everything here is Local but for what ledger_watch makes of the group's calls.
#pragma once
#include "comm.h"

#define LEDGER_RING 512 // operations that are remembered
#define LEDGER_SAID "hang.txt" // beside the ledgers: the sentence with which a run was ended that stood still
enum { LEDGER_GROUPS = 6, LEDGER_VERSION = 1 };

// Where a run is. Each has a limit of its own (watchdog.h).
typedef enum LedgerPhase {
    PHASE_START, // until the first step
    PHASE_DATA,  // reading samples, and agreeing that all ranks have theirs
    PHASE_STEP,
    PHASE_SAVE,
    PHASE_EVAL,
    LEDGER_PHASES
} LedgerPhase;

typedef enum LedgerOp {
    LEDGER_BARRIER,
    LEDGER_ALL_GATHER,
    LEDGER_ALL_TO_ALL,
    LEDGER_BROADCAST,
    LEDGER_REDUCE,
    LEDGER_OPS
} LedgerOp;

typedef enum LedgerPass { LEDGER_NO_PASS, LEDGER_FORWARD, LEDGER_BACKWARD, LEDGER_PASSES } LedgerPass;

// One operation. Times are of the rank's monotonic clock; left 0: not complete yet.
typedef struct LedgerEntry {
    int64_t seq; // number of the operation in its group, from 1: the same on all its ranks
    double entered, left;
    int64_t bytes; // of one block, or sent in all
    int64_t step;
    int32_t layer;                  // block that ran, -1 none
    uint8_t op, group, pass, phase; // LedgerOp, index of LedgerHead.group, LedgerPass, LedgerPhase
    char what[16];                  // what for, "" if nobody said
} LedgerEntry;

// Ranks first, first + stride, ... of the world.
typedef struct LedgerGroup {
    char name[16]; // "ep"; "ep on device": only issues work, nobody waits in it
    int32_t first, stride, n, unused;
    int64_t entered; // operations begun
} LedgerGroup;

// The file: this, then LEDGER_RING entries; operation i is entry i modulo LEDGER_RING.
typedef struct LedgerHead {
    char magic[8]; // "TSLEDGER"
    int32_t version, ring;
    int32_t rank, nranks, pid, is_closed; // closed: the run ended by itself
    char host[64];
    double wall; // seconds to add to the monotonic clock for the time of day
    LedgerGroup group[LEDGER_GROUPS];
    int32_t ngroups, phase, layer, pass;
    int64_t step;
    int64_t count;                   // operations begun, of all groups
    int64_t inside;                  // the operation that the rank waits in, -1 none
    double inside_since;             // it came to wait
    double progress, phase_since;    // last sign of life; begin of the phase
    double waited;                   // seconds in operations, in all
    double alive;                    // the watchdog's thread saw this time last; 0: there is none
} LedgerHead;

typedef struct Ledger Ledger;

// ledger_create: in memory. Errors: E_INTERNAL.
Err ledger_create(Ledger **out, int rank, int nranks, const char *host) MUST_CHECK;
// ledger_open: from now on in the file DIR/rank_%05d.bin, DIR being made if need be; the one of the start before is
// kept as rank_%05d.old.bin. Rank 0 removes DIR/LEDGER_SAID. Errors: E_OUTPUT.
Err ledger_open(Ledger *l, const char *dir) MUST_CHECK;
// ledger_close: the run ended by itself. *l = NULL; accepts NULL. The groups must be gone or not be used any more.
void ledger_close(Ledger **l);
// ledger_watch: from now on every operation of the group is recorded; of a group of one rank, which never waits, none
// is. The group is ranks first, first + stride, ... of the world; at most LEDGER_GROUPS of them. Errors: E_INTERNAL.
// The calls stay Collective over the group.
Err ledger_watch(Ledger *l, Comm *c, int first, int stride) MUST_CHECK;
const LedgerHead *ledger_head(const Ledger *l);
const LedgerEntry *ledger_ring(const Ledger *l);
const char *ledger_phase_name(int phase);

// Signs of life and where they come from. All accept NULL.
// ledger_phase: the run is in this phase; returns the one before.
LedgerPhase ledger_phase(Ledger *l, LedgerPhase phase);
// ledger_step: step `step` begins, in PHASE_STEP.
void ledger_step(Ledger *l, int64_t step);
// ledger_block: this block begins its pass; -1: none does.
void ledger_block(Ledger *l, int64_t layer, LedgerPass pass);
// ledger_alive: the process runs: of the watchdog's thread, once a tick.
void ledger_alive(Ledger *l);
// ledger_waited: seconds that this rank spent in operations of its groups, in all. 0 for NULL.
double ledger_waited(const Ledger *l);

// For backends of ledger_watch. ledger_begin: an operation of group `group` is begun; returns its number. ledger_wait:
// the rank waits in it from now on. ledger_end: it is complete.
int64_t ledger_begin(Ledger *l, int group, LedgerOp op, int64_t bytes, const char *what);
void ledger_wait(Ledger *l, int64_t number);
void ledger_end(Ledger *l, int64_t number);

// What a rank is in, as others see it: times are ages in seconds, so that clocks of hosts need not agree.
typedef struct LedgerState {
    bool is_known;   // the rest is filled
    bool is_silent;  // it does not answer: this is what its file said, or the answer before
    bool is_gone;    // its process is not there any more
    bool is_closed;
    int32_t rank, pid, phase, layer, pass, ngroups;
    char host[64];
    int64_t step;
    double idle, phase_age; // since the last sign of life; in this phase
    LedgerGroup group[LEDGER_GROUPS];
    bool is_inside, has_last;
    LedgerEntry inside, last; // the operation it waits in; the last one that it left
    double inside_age, last_age;
} LedgerState;

// ledger_state: at time `now` of the rank's own clock; nothing is older than `since` (it was stopped until then).
void ledger_state(LedgerState *s, const LedgerHead *h, const LedgerEntry *ring, double now, double since);
// ledger_read: a file of this or another process into h and ring [LEDGER_RING]. Errors: E_INPUT.
Err ledger_read(const char *path, LedgerHead *h, LedgerEntry *ring) MUST_CHECK;

// ledger_describe: "all-to-all of block 12 (dispatch, forward, sequence 88121 of ep)".
void ledger_describe(char *out, size_t n, const LedgerEntry *e, const LedgerGroup *groups);
