// zero.h - ZeRO-1: gradients are summed to the rank that owns their rows; updated rows are gathered
// back.
//
// Gradient reduce-scatter = all-to-all of pieces, then a sum in rank order in FP32: the same bits
// every run.
#pragma once
#include "comm.h"
#include "plan.h"

#define ZERO_BUCKET_BYTES ((size_t)16 << 20) // what the trainer passes as bucket_bytes

// One tensor as ZeRO sees it: rows of bytes, cut by plan_shards over the group.
typedef struct ZeroTensor {
    int64_t rows, cols;
    const ShardRange *range; // [group's nranks]
    float *grad;             // [rows,cols] f32, this rank's contribution
    float *grad_shard; // [own rows,cols] f32 out: sum over ranks in rank order (may be the same
                       // memory as grad + row0*cols)
    void *param;     // [rows,cols] compute copy, own rows already updated; elements of param_bytes
    int param_bytes; // 2 or 4
} ZeroTensor;

// zero_reduce: grad_shard = sum over ranks of their rows. Tensors are packed into buckets of at
// most `bucket_bytes` per all-to-all (a larger tensor is cut by rows; no rank sends or receives
// more, except that a bucket holds one row per owner at least). Collective over the group.
Err zero_reduce(Comm *group, const ZeroTensor *t, int64_t n, Arena *scratch,
                size_t bucket_bytes) MUST_CHECK;
// zero_gather: every rank's updated rows of every tensor's `param` to all ranks. Collective over
// the group.
Err zero_gather(Comm *group, const ZeroTensor *t, int64_t n, Arena *scratch,
                size_t bucket_bytes) MUST_CHECK;
