// plan.c - who sends what to whom: the two halves of an expert dispatch, and the cut of tensors
// into ZeRO shards.
//
// The plan of a real exchange and the plan of measure mode push the same arrays through the same
// push functions, so measured and used memory cannot drift apart.
#include "plan.h"

#include <string.h>

// ---- memory -----------------------------------------------------------------------------------

static Err push_send_counts(ExPlan *p, Arena *a) {
    ARENA_NEW(a, p->send_count, p->P);
    ARENA_NEW(a, p->send_off, p->P);
    ARENA_NEW(a, p->tok_first, p->T + 1);
    return OK;
}

static Err push_send_rows(ExPlan *p, Arena *a) {
    ARENA_NEW(a, p->send_tok, p->nsend);
    ARENA_NEW(a, p->tok_row, p->nsend);
    return OK;
}

static Err push_groups(ExPlan *p, Arena *a) {
    ARENA_NEW(a, p->start, p->L);
    ARENA_NEW(a, p->count, p->L);
    ARENA_NEW(a, p->recv_first, p->nrecv + 1);
    ARENA_NEW(a, p->recv_pair, p->nrecv * min_i64(p->K, p->L));
    return OK;
}

static Err push_pairs(ExPlan *p, Arena *a) {
    ARENA_NEW(a, p->pair_recv, p->npair);
    ARENA_NEW(a, p->pair_slot, p->npair);
    ARENA_NEW(a, p->pair_gate, p->npair);
    return OK;
}

Err plan_push_sources(ExPlan *p, Arena *a) {
    ARENA_NEW(a, p->recv_count, p->P);
    ARENA_NEW(a, p->recv_off, p->P);
    return OK;
}

Err plan_push_meta(ExPlan *p, Arena *a) {
    ARENA_NEW(a, p->recv_expert, p->nrecv * p->K);
    ARENA_NEW(a, p->recv_gate, p->nrecv * p->K);
    return OK;
}

// ---- the sending half -------------------------------------------------------------------------

static Err check_sizes(int64_t T, int64_t K, int64_t L, int64_t P) {
    CHECK(T >= 0 && K >= 1 && L >= 1 && P >= 1, E_INTERNAL, "plan: T %lld, K %lld, L %lld, P %lld",
          (long long)T, (long long)K, (long long)L, (long long)P);
    CHECK(K <= L * P, E_INTERNAL, "plan: %lld experts per token of only %lld * %lld", (long long)K,
          (long long)L, (long long)P);
    return OK;
}

// count_token: rows that token t needs, one per rank that holds one of its experts.
static Err count_token(ExPlan *p, const int32_t *experts, int64_t t, int64_t *rows) {
    int64_t last_expert = -1;
    int64_t last_rank = -1;
    for (int64_t k = 0; k < p->K; k++) {
        int64_t e = experts[k];
        CHECK(e > last_expert && e < p->L * p->P, E_INTERNAL,
              "plan: token %lld, slot %lld: expert %lld after %lld; the list must ascend and stay "
              "below %lld",
              (long long)t, (long long)k, (long long)e, (long long)last_expert,
              (long long)(p->L * p->P));
        last_expert = e;
        if (e / p->L == last_rank) continue;
        last_rank = e / p->L;
        p->send_count[last_rank]++;
        (*rows)++;
    }
    return OK;
}

Err plan_send(ExPlan *p, Arena *a, const int32_t *idx, int64_t T, int64_t K, int64_t L, int64_t P) {
    TRY(check_sizes(T, K, L, P));
    p->T = T;
    p->K = K;
    p->L = L;
    p->P = P;
    CHECK(T * min_i64(P, K) < INT32_MAX, E_INTERNAL,
          "plan: %lld tokens to %lld ranks are too many rows", (long long)T,
          (long long)min_i64(P, K));
    TRY(push_send_counts(p, a));
    memset(p->send_count, 0, (size_t)P * sizeof *p->send_count);
    int64_t rows = 0;
    for (int64_t t = 0; t < T; t++) {
        p->tok_first[t] = (int32_t)rows;
        TRY(count_token(p, idx + t * K, t, &rows));
    }
    p->tok_first[T] = (int32_t)rows;
    p->nsend = rows;
    TRY(push_send_rows(p, a));

    int64_t off = 0;
    for (int64_t r = 0; r < P; r++) {
        p->send_off[r] = off;
        off += p->send_count[r];
    }
    // send_off serves as the next free row of each destination and is set back below.
    for (int64_t t = 0; t < T; t++) {
        int32_t *row = p->tok_row + p->tok_first[t];
        int64_t last_rank = -1;
        for (int64_t k = 0; k < K; k++) {
            int64_t r = idx[t * K + k] / L;
            if (r == last_rank) continue;
            last_rank = r;
            int64_t s = p->send_off[r]++;
            p->send_tok[s] = (int32_t)t;
            *row++ = (int32_t)s;
        }
    }
    for (int64_t r = 0; r < P; r++) p->send_off[r] -= p->send_count[r];
    return OK;
}

void plan_meta(const ExPlan *p, int32_t *expert, float *gate, const int32_t *idx,
               const float *gates) {
    for (int64_t r = 0; r < p->P; r++) {
        int64_t first = r * p->L;
        for (int64_t s = p->send_off[r]; s < p->send_off[r] + p->send_count[r]; s++) {
            int64_t t = p->send_tok[s];
            for (int64_t k = 0; k < p->K; k++) {
                int64_t local = idx[t * p->K + k] - first;
                bool is_there = local >= 0 && local < p->L;
                expert[s * p->K + k] = is_there ? (int32_t)local : -1;
                gate[s * p->K + k] = gates[t * p->K + k];
            }
        }
    }
}

// ---- the receiving half -----------------------------------------------------------------------

// count_pairs: rows of each local expert, after checking every received list.
static Err count_pairs(ExPlan *p) {
    memset(p->count, 0, (size_t)p->L * sizeof *p->count);
    for (int64_t r = 0; r < p->nrecv; r++) {
        int32_t last = -1;
        for (int64_t k = 0; k < p->K; k++) {
            int32_t e = p->recv_expert[r * p->K + k];
            if (e == -1) continue;
            CHECK(e > last && e < p->L, E_INTERNAL,
                  "plan: received row %lld, slot %lld: local expert %d after %d; the list must "
                  "ascend and stay "
                  "below %lld",
                  (long long)r, (long long)k, (int)e, (int)last, (long long)p->L);
            last = e;
            p->count[e]++;
        }
    }
    int64_t at = 0;
    for (int64_t e = 0; e < p->L; e++) {
        p->start[e] = at;
        at += p->count[e];
    }
    p->npair = at;
    return OK;
}

Err plan_recv(ExPlan *p, Arena *a) {
    CHECK(p->nrecv * min_i64(p->K, p->L) < INT32_MAX, E_INTERNAL,
          "plan: %lld received rows are too many", (long long)p->nrecv);
    TRY(push_groups(p, a));
    TRY(count_pairs(p));
    TRY(push_pairs(p, a));
    // start serves as the next free pair row of each expert and is set back below.
    int32_t n = 0;
    for (int64_t r = 0; r < p->nrecv; r++) {
        p->recv_first[r] = n;
        for (int64_t k = 0; k < p->K; k++) {
            int32_t e = p->recv_expert[r * p->K + k];
            if (e < 0) continue;
            int64_t i = p->start[e]++;
            p->pair_recv[i] = (int32_t)r;
            p->pair_slot[i] = (int32_t)k;
            p->pair_gate[i] = p->recv_gate[r * p->K + k];
            p->recv_pair[n++] = (int32_t)i; // slots ascend by expert
        }
    }
    p->recv_first[p->nrecv] = n;
    for (int64_t e = 0; e < p->L; e++) p->start[e] -= p->count[e];
    return OK;
}

Err plan_worst(ExPlan *p, Arena *a, int64_t T, int64_t K, int64_t L, int64_t P, bool is_balanced) {
    TRY(check_sizes(T, K, L, P));
    memset(p, 0, sizeof *p);
    p->T = T;
    p->K = K;
    p->L = L;
    p->P = P;
    p->nsend = T * min_i64(P, K);
    p->nrecv = is_balanced ? p->nsend : T * P;
    p->npair = is_balanced ? T * K : T * P * min_i64(K, L);
    p->off_rank_send = T * min_i64(P - 1, K);
    TRY(push_send_counts(p, a));
    TRY(push_send_rows(p, a));
    TRY(plan_push_sources(p, a));
    TRY(plan_push_meta(p, a));
    TRY(push_groups(p, a));
    TRY(push_pairs(p, a));
    return OK;
}

// ---- ZeRO shards ------------------------------------------------------------------------------

void plan_shards(ShardRange *out, const int64_t *rows, const int64_t *cols, int64_t ntensors,
                 int n) {
    if (ntensors <= 0) return;
    // Elements given to each rank so far are kept in row0 of the last tensor's ranges, which are
    // written last: no memory of our own.
    ShardRange *last = out + (ntensors - 1) * n;
    memset(out, 0, (size_t)(ntensors * n) * sizeof *out);
    for (int64_t i = 0; i < ntensors; i++) {
        int64_t nblocks = ceil_div(rows[i], TILE);
        ShardRange *mine = out + i * n;
        if (nblocks >= n) {
            for (int r = 0; r < n; r++) {
                int64_t row0 = r * nblocks / n * TILE;
                int64_t end = min_i64((r + 1) * nblocks / n * TILE, rows[i]);
                last[r].row0 += (end - row0) * cols[i];
                mine[r] = (ShardRange){row0, end - row0};
            }
            continue;
        }
        int owner = 0;
        for (int r = 1; r < n; r++) {
            if (last[r].row0 < last[owner].row0) owner = r;
        }
        last[owner].row0 += rows[i] * cols[i];
        if (mine == last) memset(last, 0, (size_t)n * sizeof *last);
        mine[owner] = (ShardRange){0, rows[i]};
    }
}
