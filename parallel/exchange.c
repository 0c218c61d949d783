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

typedef struct MetaBuffers {
    int32_t *expert; // [nsend,K]
    float *gate;     // [nsend,K]
    uint32_t *out;   // [nsend,2K]
    uint32_t *in;    // [nrecv,2K]
} MetaBuffers;

static Err push_meta_buffers(MetaBuffers *m, const ExPlan *p, Arena *scratch) {
    ARENA_NEW(scratch, m->expert, p->nsend * p->K);
    ARENA_NEW(scratch, m->gate, p->nsend * p->K);
    ARENA_NEW(scratch, m->out, p->nsend * 2 * p->K);
    ARENA_NEW(scratch, m->in, p->nrecv * 2 * p->K);
    return OK;
}

// measure_plan: what exchange_plan would take from both arenas, at worst.
static Err measure_plan(Comm *ep, ExPlan *p, Arena *keep, Arena *scratch, int64_t T, int64_t K,
                        int64_t L) {
    TRY(plan_worst(p, keep, T, K, L, ep->nranks, ep->is_balanced));
    MetaBuffers m = {0};
    size_t mark = arena_mark(scratch);
    TRY(push_meta_buffers(&m, p, scratch));
    arena_release(scratch, mark);
    return OK;
}

Err exchange_plan(Comm *ep, ExPlan *plan, Arena *keep, Arena *scratch, const int32_t *idx,
                  const float *gate, int64_t T, int64_t K, int64_t L, ExBytes *bytes) {
    CHECK(keep != scratch, E_INTERNAL, "exchange: the plan and its temporaries need two arenas");
    if (ep->is_null) {
        TRY(measure_plan(ep, plan, keep, scratch, T, K, L));
        return OK;
    }
    ExPlan *p = plan;
    memset(p, 0, sizeof *p);
    TRY(plan_send(p, keep, idx, T, K, L, ep->nranks));
    p->off_rank_send = p->nsend - p->send_count[ep->rank];
    TRY(plan_push_sources(p, keep));

    // The one wait of a layer: how many rows come from whom.
    TRY(ep->all_to_all(ep, p->recv_count, p->send_count, sizeof *p->send_count));
    p->nrecv = fill_offsets(p->recv_off, p->recv_count, p->P);

    MetaBuffers m = {0};
    size_t mark = arena_mark(scratch);
    TRY(plan_push_meta(p, keep));
    TRY(push_meta_buffers(&m, p, scratch));
    plan_meta(p, m.expert, m.gate, idx, gate);
    pack_meta(m.out, m.expert, m.gate, p->nsend, K);
    size_t row_bytes = (size_t)K * 8;
    TRY(ep->all_to_all_v(ep, m.in, p->recv_count, p->recv_off, m.out, p->send_count, p->send_off,
                         row_bytes));
    unpack_meta(p->recv_expert, p->recv_gate, m.in, p->nrecv, K);
    arena_release(scratch, mark);
    if (bytes) bytes->meta += p->off_rank_send * (int64_t)row_bytes;

    TRY(plan_recv(p, keep));
    return OK;
}

Err exchange_dispatch(Comm *ep, const ExPlan *plan, void *recv, const void *send, int64_t row_bytes,
                      ExBytes *bytes) {
    if (ep->is_null) return OK;
    TRY(ep->all_to_all_v(ep, recv, plan->recv_count, plan->recv_off, send, plan->send_count,
                         plan->send_off, (size_t)row_bytes));
    if (bytes) bytes->dispatch += plan->off_rank_send * row_bytes;
    return OK;
}

// send_back: received rows return to where they came from; *sent = bytes that left this rank.
static Err send_back(Comm *ep, const ExPlan *plan, void *back, const void *recv, int64_t row_bytes,
                     int64_t *sent) {
    TRY(ep->all_to_all_v(ep, back, plan->send_count, plan->send_off, recv, plan->recv_count,
                         plan->recv_off, (size_t)row_bytes));
    *sent = (plan->nrecv - plan->recv_count[ep->rank]) * row_bytes;
    return OK;
}

Err exchange_combine(Comm *ep, const ExPlan *plan, void *back, const void *recv, int64_t row_bytes,
                     ExBytes *bytes) {
    if (ep->is_null) return OK;
    int64_t sent = 0;
    TRY(send_back(ep, plan, back, recv, row_bytes, &sent));
    if (bytes) bytes->combine += sent;
    return OK;
}

Err exchange_gate_grads(Comm *ep, const ExPlan *plan, Arena *scratch, float *dgate,
                        const float *dpair, ExBytes *bytes) {
    const ExPlan *p = plan;
    int64_t K = p->K;
    uint32_t *here = NULL; // [nrecv,K] at the experts
    uint32_t *back = NULL; // [nsend,K] at the tokens
    size_t mark = arena_mark(scratch);
    ARENA_NEW(scratch, here, p->nrecv * K);
    ARENA_NEW(scratch, back, p->nsend * K);
    if (ep->is_null) {
        arena_release(scratch, mark);
        return OK;
    }
    memset(here, 0, (size_t)(p->nrecv * K) * 4);
    for (int64_t i = 0; i < p->npair; i++) {
        memcpy(&here[p->pair_recv[i] * K + p->pair_slot[i]], &dpair[i], 4);
    }
    int64_t sent = 0;
    TRY(send_back(ep, p, back, here, K * 4, &sent));
    // Each slot's expert lives on exactly one rank and the others sent zero bits: OR is a copy,
    // where a sum would lose the sign of -0.
    for (int64_t t = 0; t < p->T; t++) {
        uint32_t *out = (uint32_t *)(dgate + t * K);
        memset(out, 0, (size_t)K * 4);
        for (int32_t i = p->tok_first[t]; i < p->tok_first[t + 1]; i++) {
            const uint32_t *row = back + p->tok_row[i] * K;
            for (int64_t k = 0; k < K; k++) out[k] |= row[k];
        }
    }
    arena_release(scratch, mark);
    if (bytes) bytes->meta += sent;
    return OK;
}
