// zero.h - ZeRO-1: gradients are summed to the rank that owns their rows; updated rows are gathered
// back.
//
// Gradient reduce-scatter = all-to-all of pieces, then a sum in rank order in FP32: the same bits
// every run. Pieces travel in buckets, a few of them under way: while some travel the next is
// packed and the oldest summed. A reduction may be fed as gradients become final (zero_start,
// zero_ready, zero_end), so that it runs beside the backward.
#pragma once
#include "comm.h"
#include "device.h"
#include "plan.h"

// What the trainer passes as bucket_bytes: a megabyte per rank, so that the buckets of ranks on one
// machine stay in its shared cache, and at most 8, so that they stay bounded however many ranks
// there are.
#define ZERO_BUCKET_BYTES(nranks) ((size_t)((nranks) < 8 ? (nranks) : 8) << 20)
// The same where devices exchange memory: messages of 4 MiB, whose start costs little beside their transfer.
#define ZERO_DEVICE_BUCKET_BYTES(nranks) (4 * ZERO_BUCKET_BYTES(nranks))

// What a reduction or gathering needs of the device where its group has a table for it (Comm.on_device): everything
// then happens in the device's memory and order, on the group's stream, and the host waits for nothing.
typedef struct ZeroRows {
    Arena *arena; // memory of the device, for one bucket
    // sum: parts_sum of the device (permute.h), with `user` in the place of its context.
    Err (*sum)(void *user, float *y, const float *own, int64_t own_at, const float *parts, int64_t stride,
               int64_t nparts, int64_t n);
    void *user;
} ZeroRows;
// zero_rows_bytes: what they take of the arena, at most, for tensors whose rows are at most `widest` bytes.
// Local, pure.
size_t zero_rows_bytes(int nranks, int64_t widest, size_t bucket_bytes);

// One tensor as ZeRO sees it: rows of bytes, cut by plan_shards over the group.
typedef struct ZeroTensor {
    int64_t rows, cols;
    const ShardRange *range; // [group's nranks]
    // grad, grad_shard and param lie in memory of the device
    float *grad;       // [rows,cols] f32, this rank's contribution
    float *grad_shard; // [own rows,cols] f32 out: sum over ranks in rank order (may be the same
                       // memory as grad + row0*cols)
    void *param;     // [rows,cols] compute copy, own rows already updated; elements of param_bytes
    int param_bytes; // 2 or 4
} ZeroTensor;

#define ZERO_UNDER_WAY 4 // buckets

// A run of the stream of rows (zero.c).
typedef struct ZeroRun {
    int64_t tensor, row;       // where it starts
    int64_t to_tensor, to_row; // where it ends
} ZeroRun;

// A bucket under way.
typedef struct ZeroBucket {
    ZeroRun run;
    char *send, *recv;
    int64_t *scount, *soff, *rcount, *roff; // [nranks] bytes
    int request;                            // -1: free
} ZeroBucket;

// A reduction or a gathering under way; the caller's, filled by zero_start.
typedef struct Zero {
    Comm *group;
    const Device *dev;
    const ZeroTensor *t;
    int64_t n, ready;    // tensors; of them final
    bool is_params;      // rows of `param`, else FP32 rows of `grad`
    int64_t limit;       // bytes of one owner in a bucket
    int64_t tensor, row; // where the next bucket starts
    int64_t *used;       // [nranks] bytes of each owner in the bucket that is being made
    float *stage; // an owner's part of a bucket, where the host cannot add in the device's memory;
                  // else NULL
    ZeroBucket bucket[ZERO_UNDER_WAY];
    int next; // the oldest of them
    Arena *scratch;
    size_t mark;
    Comm *device; // the group's table for memory of devices, or NULL
    ZeroRows rows;
    size_t rows_mark;
} Zero;

// zero_start: begin to reduce the gradients (is_params: to gather the parameters) of n tensors,
// which must stay where they are until zero_end. Nothing is sent yet. Buckets of at most
// `bucket_bytes` each (a larger tensor is cut by rows; no rank sends or receives more in one,
// except that it holds one row per owner at least) lie on scratch, memory of the host, until
// zero_end; with a table for memory of devices one bucket lies on rows->arena (else rows may be
// NULL). Local.
Err zero_start(Zero *z, Comm *group, const Device *dev, const ZeroTensor *t, int64_t n,
               bool is_params, Arena *scratch, size_t bucket_bytes, const ZeroRows *rows) MUST_CHECK;
// zero_ready: tensors 0..n-1 are final from now on. zero_advance: buckets that they fill are sent,
// as long as there is a free one; what does not find one goes with a later call. Neither waits. All
// ranks of the group say the same in the same order, but advance whenever they like, except with a
// table for memory of devices: then at the same places of the program. Between zero_start and
// zero_end no all-to-all of this group is started by other means. Local.
void zero_ready(Zero *z, int64_t n);
Err zero_advance(Zero *z) MUST_CHECK;
// zero_end: all tensors are final: send the rest, wait; then every grad_shard holds the sum over
// ranks of its rows in rank order, or every param all rows. Releases scratch, which must be as
// zero_start left it. On a device grad_shard must lie in grad where there is one rank (E_INTERNAL).
// Collective over the group.
Err zero_end(Zero *z) MUST_CHECK;

// zero_reduce: a whole reduction at once. Collective over the group.
Err zero_reduce(Comm *group, const Device *dev, const ZeroTensor *t, int64_t n, Arena *scratch,
                size_t bucket_bytes, const ZeroRows *rows) MUST_CHECK;
// zero_gather: every rank's updated rows of every tensor's `param` to all ranks. Collective over
// the group.
Err zero_gather(Comm *group, const Device *dev, const ZeroTensor *t, int64_t n, Arena *scratch,
                size_t bucket_bytes, const ZeroRows *rows) MUST_CHECK;
