// exchange.c - moving rows of tokens to their experts and back, as bytes.
//
// With the group of measure mode (comm_null) the plan has worst-case sizes, the same blocks are
// pushed from the arenas, and nothing is touched.
#include "exchange.h"

#include <string.h>

// fill_offsets: off[r] = sum of count[0..r); returns the whole sum.
static int64_t fill_offsets(int64_t *off, const int64_t *count, int64_t n) {
    int64_t sum = 0;
    for (int64_t r = 0; r < n; r++) {
        off[r] = sum;
        sum += count[r];
    }
    return sum;
}

// On the wire a row's metadata is its K expert numbers, then its K gate values.
static void pack_meta(uint32_t *wire, const int32_t *expert, const float *gate, int64_t rows,
                      int64_t K) {
    size_t part = (size_t)K * 4;
    for (int64_t r = 0; r < rows; r++) {
        memcpy(wire + r * 2 * K, expert + r * K, part);
        memcpy(wire + r * 2 * K + K, gate + r * K, part);
    }
}

static void unpack_meta(int32_t *expert, float *gate, const uint32_t *wire, int64_t rows,
                        int64_t K) {
    size_t part = (size_t)K * 4;
    for (int64_t r = 0; r < rows; r++) {
        memcpy(expert + r * K, wire + r * 2 * K, part);
        memcpy(gate + r * K, wire + r * 2 * K + K, part);
    }
}

// measure_plan: what exchange_plan and exchange_plan_end would take from both arenas, at worst.
static Err measure_plan(Comm *ep, ExPlan *p, ExFlight *meta, Arena *keep, Arena *scratch, int64_t T,
                        int64_t K, int64_t L) {
    uint32_t *out = NULL;
    int32_t *expert = NULL;
    float *gate = NULL;
    TRY(plan_worst(p, keep, T, K, L, ep->nranks, ep->is_balanced));
    ARENA_NEW(scratch, meta->in, p->nrecv * 2 * K);
    ARENA_NEW(scratch, out, p->nsend * 2 * K);
    size_t mark = arena_mark(scratch);
    ARENA_NEW(scratch, expert, p->nsend * K);
    ARENA_NEW(scratch, gate, p->nsend * K);
    arena_release(scratch, mark);
    return OK;
}

Err exchange_plan(Comm *ep, ExPlan *plan, ExFlight *meta, Arena *keep, Arena *scratch,
                  const int32_t *idx, const float *gate, int64_t T, int64_t K, int64_t L,
                  ExBytes *bytes) {
    CHECK(keep != scratch, E_INTERNAL, "exchange: the plan and its temporaries need two arenas");
    if (ep->is_null) {
        TRY(measure_plan(ep, plan, meta, keep, scratch, T, K, L));
        return OK;
    }
    ExPlan *p = plan;
    memset(p, 0, sizeof *p);
    TRY(plan_send(p, keep, idx, T, K, L, ep->nranks));
    p->off_rank_send = p->nsend - p->send_count[ep->rank];
    TRY(plan_push_sources(p, keep));

    // The one thing to wait for before anything can be started: how many rows come from whom.
    ep->what = "counts";
    TRY(ep->all_to_all(ep, p->recv_count, p->send_count, sizeof *p->send_count));
    p->nrecv = fill_offsets(p->recv_off, p->recv_count, p->P);
    TRY(plan_push_meta(p, keep));

    uint32_t *out = NULL;   // [nsend,2K]
    int32_t *expert = NULL; // [nsend,K]
    float *gates = NULL;    // [nsend,K]
    ARENA_NEW(scratch, meta->in, p->nrecv * 2 * K);
    ARENA_NEW(scratch, out, p->nsend * 2 * K);
    size_t mark = arena_mark(scratch);
    ARENA_NEW(scratch, expert, p->nsend * K);
    ARENA_NEW(scratch, gates, p->nsend * K);
    plan_meta(p, expert, gates, idx, gate);
    pack_meta(out, expert, gates, p->nsend, K);
    arena_release(scratch, mark);
    size_t row_bytes = (size_t)K * 8;
    ep->what = "experts of rows";
    TRY(comm_start_all_to_all_v(ep, &meta->request, meta->in, p->recv_count, p->recv_off, out,
                                p->send_count, p->send_off, row_bytes));
    if (bytes) bytes->meta += p->off_rank_send * (int64_t)row_bytes;
    return OK;
}

Err exchange_plan_end(Comm *ep, ExPlan *plan, ExFlight *meta, Arena *keep) {
    if (ep->is_null) return OK;
    TRY(comm_wait(ep, &meta->request));
    unpack_meta(plan->recv_expert, plan->recv_gate, meta->in, plan->nrecv, plan->K);
    TRY(plan_recv(plan, keep));
    return OK;
}

Err exchange_dispatch(Comm *ep, const ExPlan *plan, int *request, void *recv, const void *send,
                      int64_t row_bytes, ExBytes *bytes) {
    ep->what = "dispatch";
    TRY(comm_start_all_to_all_v(ep, request, recv, plan->recv_count, plan->recv_off, send,
                                plan->send_count, plan->send_off, (size_t)row_bytes));
    if (bytes) bytes->dispatch += plan->off_rank_send * row_bytes;
    return OK;
}

// send_back: received rows return to where they came from; *sent = bytes that leave this rank.
static Err send_back(Comm *ep, const ExPlan *plan, int *request, void *back, const void *recv,
                     int64_t row_bytes, int64_t *sent) {
    TRY(comm_start_all_to_all_v(ep, request, back, plan->send_count, plan->send_off, recv,
                                plan->recv_count, plan->recv_off, (size_t)row_bytes));
    *sent = ep->is_null ? 0 : (plan->nrecv - plan->recv_count[ep->rank]) * row_bytes;
    return OK;
}

Err exchange_combine(Comm *ep, const ExPlan *plan, int *request, void *back, const void *recv,
                     int64_t row_bytes, ExBytes *bytes) {
    int64_t sent = 0;
    ep->what = "combine";
    TRY(send_back(ep, plan, request, back, recv, row_bytes, &sent));
    if (bytes) bytes->combine += sent;
    return OK;
}

Err exchange_gates(Comm *ep, const ExPlan *plan, int *request, void *back, const void *here, ExBytes *bytes) {
    int64_t sent = 0;
    ep->what = "gates";
    TRY(send_back(ep, plan, request, back, here, plan->K * 4, &sent));
    if (bytes) bytes->meta += sent;
    return OK;
}
