// exchange.h - token dispatch and combine as byte rows, over the ranks of the expert group.
//
// Forward: exchange_plan (counts and metadata), exchange_dispatch (rows to the experts),
// exchange_combine (rows back). Backward uses the same plan: dispatch carries output gradients,
// combine carries input gradients and, beside them, the gradients of the gate values. The only wait
// of a layer is the one for the counts. Contents of rows are the callers' (FP8 codes and scales,
// BF16, FP32); no arithmetic here.
#pragma once
#include "comm.h"
#include "plan.h"

// Payload bytes of rows that left this rank, since the counters were last zeroed by the caller.
typedef struct ExBytes {
    int64_t dispatch, combine, meta;
} ExBytes;

// exchange_plan: plan_send, counts, metadata, plan_recv. idx [T,K] i32 ascending, gate [T,K] f32.
// Memory of the plan comes from `keep` (lives until the backward), temporaries from `scratch`.
// Collective over ep.
Err exchange_plan(Comm *ep, ExPlan *plan, Arena *keep, Arena *scratch, const int32_t *idx,
                  const float *gate, int64_t T, int64_t K, int64_t L, ExBytes *bytes) MUST_CHECK;
// exchange_dispatch: recv [nrecv rows] from send [nsend rows] (in sent order). Collective over ep.
Err exchange_dispatch(Comm *ep, const ExPlan *plan, void *recv, const void *send, int64_t row_bytes,
                      ExBytes *bytes) MUST_CHECK;
// exchange_combine: the way back: send-side rows `back` [nsend rows] from `recv` [nrecv rows].
// Collective over ep. The bytes are counted as bytes->combine.
Err exchange_combine(Comm *ep, const ExPlan *plan, void *back, const void *recv, int64_t row_bytes,
                     ExBytes *bytes) MUST_CHECK;
// exchange_gate_grads: dgate [T,K] from the per-pair gradients dpair [npair]: sent back slot by
// slot. Counted as meta. Collective over ep.
Err exchange_gate_grads(Comm *ep, const ExPlan *plan, Arena *scratch, float *dgate,
                        const float *dpair, ExBytes *bytes) MUST_CHECK;
