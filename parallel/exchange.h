// exchange.h - token dispatch and combine as byte rows, over the ranks of the expert group.
//
// Forward: exchange_plan (counts, metadata on their way), exchange_dispatch (rows to the experts),
// exchange_plan_end, exchange_combine (rows back). Backward uses the same plan: dispatch carries
// output gradients, combine carries input gradients and, beside them, exchange_gates the gradients
// of the gate values. Everything but the counts is started here and waited for by the caller
// (comm_wait, comm.h), who computes meanwhile. Contents of rows are the callers' (FP8 codes and
// scales, BF16, FP32); no arithmetic here. Plans and metadata are memory of the host; rows are memory of the table
// that is given (comm_rows), the host's or a device's.
#pragma once
#include "comm.h"
#include "plan.h"

// Payload bytes of rows that left this rank, since the counters were last zeroed by the caller.
typedef struct ExBytes {
    int64_t dispatch, combine, meta;
} ExBytes;

// Metadata on their way.
typedef struct ExFlight {
    uint32_t *in; // what arrives
    int request;
} ExFlight;

// exchange_plan: plan_send and counts; starts the metadata. Then all that exchange_dispatch needs
// is there: nrecv, send_*, recv_count, recv_off. idx [T,K] i32 ascending, gate [T,K] f32. Memory of
// the plan comes from `keep` (lives until the backward), buffers of the metadata from `scratch`:
// they must stay until exchange_plan_end. Collective over ep.
Err exchange_plan(Comm *ep, ExPlan *plan, ExFlight *meta, Arena *keep, Arena *scratch,
                  const int32_t *idx, const float *gate, int64_t T, int64_t K, int64_t L,
                  ExBytes *bytes) MUST_CHECK;
// exchange_plan_end: wait for the metadata; plan_recv. Collective over ep.
Err exchange_plan_end(Comm *ep, ExPlan *plan, ExFlight *meta, Arena *keep) MUST_CHECK;
// exchange_dispatch: start recv [nrecv rows] from send [nsend rows], in sent order.
// Collective over ep.
Err exchange_dispatch(Comm *ep, const ExPlan *plan, int *request, void *recv, const void *send,
                      int64_t row_bytes, ExBytes *bytes) MUST_CHECK;
// exchange_combine: the way back: start send-side rows `back` [nsend rows] from `recv` [nrecv
// rows]. Collective over ep. The bytes are counted as bytes->combine.
Err exchange_combine(Comm *ep, const ExPlan *plan, int *request, void *back, const void *recv,
                     int64_t row_bytes, ExBytes *bytes) MUST_CHECK;
// exchange_gates: the same way back for the gradients of the gates, K slots of 4 bytes per row: `back` [nsend,K] from
// `here` [nrecv,K], whose slots of experts elsewhere are zero bits. Counted as meta. Collective over ep.
Err exchange_gates(Comm *ep, const ExPlan *plan, int *request, void *back, const void *here, ExBytes *bytes) MUST_CHECK;
