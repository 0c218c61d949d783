// comm.h - the ranks of one group, and the few things they do together: one of the three function
// tables.
//
// A Comm is a group of ranks (the world, the expert-parallel group, the ranks that hold the same
// experts). All data are bytes: floating-point sums are done by the callers in rank order, because
// MPI's own reduction order is not a promise; integers may be summed in any order. Every call is
// Collective over the group and must be entered by all its ranks in the same order, but for
// comm_progress.
//
// The functions of the table block. An all_to_all_v may also be started and waited for later, so that
// rows travel while the rank computes: comm_start_all_to_all_v, comm_wait.
//
// These take memory of the host. A group may have a second table, `on_device`, for memory of a device
// (comm_nccl.c): the same calls, but they only issue work, in the order of the device's own: what was issued before
// is done before, what is issued after a call (after comm_wait, where a request was started) finds its result. None
// of them waits on the host. Sums and agreement are the host's in either case.
#pragma once
#include "view.h"

#define COMM_CHUNK 8192 // bytes per rank that a sum gathers at a time
#define COMM_REQUESTS 8 // all-to-alls of one group that may be under way

typedef struct Comm Comm;
struct Comm {
    const char *name;    // "world", "ep", "edp"
    int rank, nranks;    // of this group
    int world_rank;      // of this process, for messages
    bool is_null;        // measure mode: pretends, touches nothing
    bool is_balanced;    // measure mode: plan for perfect balance instead of the worst case
    int64_t round_bytes; // most bytes one message carries, at most 2^31 - 1; longer blocks go in
                         // rounds. The same on every rank; tests lower it.
    void *scratch; // [nranks * COMM_CHUNK] bytes for the sums below
    bool is_started[COMM_REQUESTS]; // requests that nobody has waited for yet
    void *impl;    // backend state
    const char *what;        // what for is the next operation: a word for the ledger, which takes it; NULL = none
    struct Ledger *ledger;   // who records (ledger.h), NULL = nobody
    struct CommWatch *watch; // of ledger_watch
    Comm *on_device; // the same ranks for memory of the device; NULL: its bytes go through the host
    bool is_device;  // this is such a table
    // barrier: everybody is here. Collective over the group.
    Err (*barrier)(Comm *c);
    // all_gather: dst [nranks][bytes] = every rank's src [bytes], in rank order. Collective over
    // the group.
    Err (*all_gather)(Comm *c, void *dst, const void *src, size_t bytes);
    // all_to_all: dst block r = block `rank` of rank r's src; blocks of `bytes`. Collective over
    // the group.
    Err (*all_to_all)(Comm *c, void *dst, const void *src, size_t bytes);
    // all_to_all_v: rows of row_bytes; scount/soff, rcount/roff [nranks] in rows. Any int64 sizes
    // (split inside). Collective over the group.
    Err (*all_to_all_v)(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff,
                        const void *src, const int64_t *scount, const int64_t *soff,
                        size_t row_bytes);
    // start, finish: the two ends of all_to_all_v, for request number `request`; advance: what can be done for it
    // without waiting, *is_complete: that was all. NULL: comm_start_all_to_all_v does it all at once. start and
    // finish are Collective over the group; advance is Local.
    Err (*start)(Comm *c, int request, void *dst, const int64_t *rcount, const int64_t *roff,
                 const void *src, const int64_t *scount, const int64_t *soff, size_t row_bytes);
    Err (*finish)(Comm *c, int request);
    Err (*advance)(Comm *c, int request, bool *is_complete);
    // broadcast: bytes from rank `root` to all. Collective over the group.
    Err (*broadcast)(Comm *c, void *buf, size_t bytes, int root);
    // reduce_i64: x[i] = the sum (modulo 2^64) or the maximum over the ranks, on all of them; any
    // order of the ranks gives the same integers. NULL: the sums below gather instead. Collective
    // over the group.
    Err (*reduce_i64)(Comm *c, int64_t *x, int n, bool is_max);
    // fork, unfork, join: of a table for memory of a device, else NULL. Between fork and unfork operations, copies and
    // calls of this table are issued on the group's own stream, behind everything issued before, and run beside what
    // the device does next; whose memory they use must stay until join, from which on the device waits for them. No
    // call between may wait for the device. Local.
    Err (*fork)(Comm *c);
    Err (*unfork)(Comm *c);
    Err (*join)(Comm *c);
    void (*destroy)(Comm *c);
};

// comm_new: for backends: a Comm with everything but the functions and `impl` (all zero). Local.
Err comm_new(Comm **out, const char *name, int rank, int nranks) MUST_CHECK;
// comm_self: the group of one rank; copies memory, never touches MPI. Local.
Err comm_self(Comm **out, const char *name) MUST_CHECK;
// comm_null: the group of measure mode: pretends to be `rank` of `nranks`, does nothing, returns
// OK. The sums below leave their values as they are and comm_agree returns its argument. Local.
Err comm_null(Comm **out, const char *name, int rank, int nranks) MUST_CHECK;
// comm_rows: the table for rows in memory of the device: on_device, or the group itself, for memory of the host.
// Local.
static inline Comm *comm_rows(Comm *c) {
    return c->on_device ? c->on_device : c;
}
// comm_destroy: free it and its on_device; *c = NULL. Accepts NULL. Collective over the group under MPI.
void comm_destroy(Comm **c);

// comm_start_all_to_all_v: begin all_to_all_v and return; *request is what to wait for. Until then dst, src
// and the four arrays must stay, and dst must not be read nor src written. Other calls of the group may come
// between, further starts too, up to COMM_REQUESTS under way (else E_INTERNAL). Collective over the group.
Err comm_start_all_to_all_v(Comm *c, int *request, void *dst, const int64_t *rcount, const int64_t *roff,
                            const void *src, const int64_t *scount, const int64_t *soff,
                            size_t row_bytes) MUST_CHECK;
// comm_wait: until dst is complete and src free; *request = -1. Requests may be waited for in any order that
// is the same on all ranks; -1 and what was waited for already is E_INTERNAL. Collective over the group.
Err comm_wait(Comm *c, int *request) MUST_CHECK;
// comm_test: *is_complete = comm_wait would return at once. Local.
Err comm_test(Comm *c, int request, bool *is_complete) MUST_CHECK;
// comm_progress: let all started requests go on, without waiting: MPI moves large messages only inside its own
// calls, so whoever computes for long calls this now and then. Costs little, next to nothing if none is
// under way. Local.
Err comm_progress(Comm *c) MUST_CHECK;

// comm_sum: x[i] = sum over ranks in rank order, in double. Collective over the group. n <= 65536.
Err comm_sum(Comm *c, double *x, int n) MUST_CHECK;
// comm_sum_list: the same for at most COMM_CHUNK / 8 numbers, and list[r] = rank r's own x[n - 1], for nothing more:
// the sum gathers them anyway. Collective over the group.
Err comm_sum_list(Comm *c, double *x, int n, double *list) MUST_CHECK;
// comm_sum_i64 / comm_max_i64: exact integer sum (modulo 2^64) and maximum, in place. The cost does
// not grow with the ranks where the backend has reduce_i64. Collective over the group. n <= 65536.
Err comm_sum_i64(Comm *c, int64_t *x, int n) MUST_CHECK;
Err comm_max_i64(Comm *c, int64_t *x, int n) MUST_CHECK;
// comm_agree: every rank passes its own result; all return the worst (the largest code), so that
// all stop together. The message of the lowest rank with that code is copied to the others, with
// its rank in the world in front ("rank 3: ..."); that rank keeps its own message and trace.
// Collective over the group.
Err comm_agree(Comm *c, Err mine) MUST_CHECK;
// comm_is_agreed: an error of this process came out of comm_agree, so the whole group has it and will return it; other
// errors under MPI end the job with boot_abort. Local.
bool comm_is_agreed(void);
