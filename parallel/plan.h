// plan.h - pure arithmetic of who sends what: expert dispatch from routing decisions, and the row
// ranges of ZeRO shards. No communication here, no allocation but the arena's.
#pragma once
#include "arena.h"

// The way of T tokens to the experts of P ranks and back, as rank `me` of the expert group sees it.
// A token goes at most once to each rank. Sent rows are ordered by (destination rank, token);
// received rows by (source rank, token); pair rows (one per received row and local expert) by
// (expert, received row).
typedef struct ExPlan {
    int64_t T, K, L, P;  // tokens here, experts per token, experts here, ranks of the group
    int64_t nsend;       // rows sent (own rank included)
    int64_t nrecv;       // rows received (own rank included)
    int64_t npair;       // (row, local expert) pairs = rows of the grouped GEMMs
    int64_t *send_count, *send_off; // [P] rows per destination
    int64_t *recv_count, *recv_off; // [P] rows per source
    int32_t *send_tok;   // [nsend] token of each sent row
    int32_t *tok_first;  // [T+1] sent rows of token t: tok_row[tok_first[t] .. tok_first[t+1])
    int32_t *tok_row;    // [nsend] in rank order
    int32_t *recv_expert; // [nrecv,K] local expert of each slot of the token's list, -1 = elsewhere
    float *recv_gate;     // [nrecv,K] gate value of each slot
    int32_t *pair_recv;  // [npair] received row of each pair row
    int32_t *pair_slot;  // [npair] slot of the token's list
    float *pair_gate;    // [npair]
    int32_t *recv_first; // [nrecv+1] pair rows of received row r: recv_pair[recv_first[r] .. )
    int32_t *recv_pair;  // [nrecv*min(K,L)] in expert order
    int64_t *start, *count; // [L] rows of each local expert (Groups of the grouped GEMMs)
    int64_t off_rank_send;  // rows sent to other ranks
} ExPlan;

// The arrays of each half are one run of memory, pushed one after the other, tok_row and pair_gate last.
//
// plan_send: the sending half, from idx [T,K] (global expert numbers, ascending per token; expert e
// lives on rank e / L). Fills T K L P nsend send_* tok_*. Local, pure.
Err plan_send(ExPlan *p, Arena *a, const int32_t *idx, int64_t T, int64_t K, int64_t L,
              int64_t P) MUST_CHECK;
// plan_meta: the metadata of sent rows, in sent order: expert [nsend,K] (local number there or -1),
// gate [nsend,K] (copied for every slot). Local, pure.
void plan_meta(const ExPlan *p, int32_t *expert, float *gate, const int32_t *idx,
               const float *gates);
// plan_recv: the receiving half, from recv_count (already filled, with recv_off and nrecv) and the
// received recv_expert, recv_gate. Fills pair_*, recv_first, recv_pair, start, count, npair.
// Errors: E_INTERNAL on an expert number out of range. Local, pure.
Err plan_recv(ExPlan *p, Arena *a) MUST_CHECK;
// plan_push_sources / plan_push_meta: memory of recv_count, recv_off [P] and of recv_expert,
// recv_gate [nrecv,K], which the exchange fills between the halves. Local.
Err plan_push_sources(ExPlan *p, Arena *a) MUST_CHECK;
Err plan_push_meta(ExPlan *p, Arena *a) MUST_CHECK;
// plan_worst: the plan of measure mode: worst-case sizes (every token to every rank, every expert
// slot here: nsend = T*min(P,K), nrecv = T*P, npair = T*P*min(K,L)), arrays pushed but not touched.
// `is_balanced`: the sizes of perfect balance instead (nrecv = nsend, npair = T*K), for reports.
// Local.
Err plan_worst(ExPlan *p, Arena *a, int64_t T, int64_t K, int64_t L, int64_t P,
               bool is_balanced) MUST_CHECK;

// The rows [row0, row0+nrows) of one tensor that one rank of a ZeRO group owns; nrows may be 0.
typedef struct ShardRange {
    int64_t row0, nrows;
} ShardRange;

// plan_shards: cut ntensors tensors of rows[i] x cols[i] over n ranks: out[i*n + r]. A tensor with
// at least n blocks of 128 rows is cut into n runs of whole blocks, block boundaries at
// i*nblocks/n; a smaller one goes whole to the rank with the fewest elements so far (lowest rank on
// ties), tensors in order. Local and pure: all ranks agree.
void plan_shards(ShardRange *out, const int64_t *rows, const int64_t *cols, int64_t ntensors,
                 int n);
