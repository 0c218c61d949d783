// test_exchange.c - the exchange of tokens between ranks that hold different experts, on real
// ranks: plans, rows there and back and gradients of gates, for every size of group and extreme
// routings.
#include "exchange.h"
#include "rank_tests.h"

enum { RANDOM, ONE_EXPERT, LAST_RANK, FEW, ROUTINGS };

typedef struct Case {
    int64_t K, L;
    int how;    // routing
    int tokens; // 0: none anywhere, 1: the same on all, 2: different, none on some
    uint64_t seed;
} Case;

static int64_t tokens_of(const Case *c, int rank) {
    if (c->tokens == 0) return 0;
    if (c->tokens == 1) return 23;
    return (rank + (int)c->seed) % 3 == 0 ? 0 : 1 + draw(c->seed + 300, (uint64_t)rank) % 50;
}

// route: experts [K] of token t of rank r, ascending.
static void route(const Case *c, int64_t E, int r, int64_t t, int32_t *out) {
    bool taken[256] = {false};
    for (int64_t k = 0; k < c->K; k++) {
        int64_t e = draw(c->seed * 1000 + (uint64_t)r, (uint64_t)(t * 64 + k)) % (uint64_t)E;
        if (c->how == ONE_EXPERT) e = 0;
        if (c->how == LAST_RANK) e = E - c->L;
        if (c->how == FEW) e = e / 3 * 3; // two thirds of the experts are rarely used
        while (taken[e]) e = (e + 1) % E;
        taken[e] = true;
    }
    for (int64_t e = 0; e < E; e++) {
        if (taken[e]) *out++ = (int32_t)e;
    }
}

static float gate_of(int r, int64_t t, int64_t k) {
    return (float)draw((uint64_t)r + 5000, (uint64_t)(t * 64 + k)) * 0x1p-32f;
}

// grad_of: the bits of the gradient of one gate; zeros of both signs and NaN among them.
static uint32_t grad_of(int r, int64_t t, int64_t k) {
    uint32_t x = draw((uint64_t)r + 6000, (uint64_t)(t * 64 + k));
    return x % 7 == 0 ? 0x80000000u : x % 7 == 1 ? 0x7FC12345u : x;
}

static void row_fill(uint8_t *row, int64_t bytes, int r, int64_t t, int way) {
    for (int64_t i = 0; i < bytes; i++) {
        row[i] = (uint8_t)(draw((uint64_t)(7000 + r * 128 + way), (uint64_t)(t * 512 + i / 4)) >>
                           (i % 4 * 8));
    }
}

// What must arrive at this rank: every (source, token) in order.
typedef struct Reference {
    int64_t n;              // rows received
    int src[1024];          // [n] source, its rank in the world
    int32_t tok[1024];      // [n]
    int32_t list[1024][16]; // [n] experts of the token
} Reference;

static void reference(Reference *ref, const Case *c, Comm *ep, int first_rank) {
    ref->n = 0;
    int64_t E = c->L * ep->nranks;
    for (int r = 0; r < ep->nranks; r++) {
        for (int64_t t = 0; t < tokens_of(c, first_rank + r); t++) {
            int32_t list[16];
            route(c, E, first_rank + r, t, list);
            bool is_here = false;
            for (int64_t k = 0; k < c->K; k++) is_here = is_here || list[k] / c->L == ep->rank;
            if (!is_here) continue;
            ref->src[ref->n] = first_rank + r;
            ref->tok[ref->n] = (int32_t)t;
            memcpy(ref->list[ref->n++], list, sizeof list);
        }
    }
}

// check_plan: pairs by (expert, source, token), bit for bit.
static void check_plan(const Case *c, Comm *ep, const ExPlan *p, const Reference *ref) {
    EXPECT(p->nrecv == ref->n);
    if (p->nrecv != ref->n) return;
    int64_t i = 0;
    for (int64_t e = 0; e < c->L; e++) {
        EXPECT(p->start[e] == i);
        for (int64_t r = 0; r < ref->n; r++) {
            for (int64_t k = 0; k < c->K; k++) {
                int64_t local = ref->list[r][k] - ep->rank * c->L;
                if (local != e) continue;
                float gate = gate_of(ref->src[r], ref->tok[r], k);
                EXPECT(i < p->npair && p->pair_recv[i] == r && p->pair_slot[i] == k);
                EXPECT(memcmp(&p->pair_gate[i], &gate, 4) == 0);
                EXPECT(p->recv_expert[r * c->K + k] == e);
                i++;
            }
        }
        EXPECT(p->count[e] == i - p->start[e]);
    }
    EXPECT(p->npair == i);
}

// rows_there_and_back: dispatch against the reference, new rows back, and the identity of both
// ways.
static void rows_there_and_back(const Case *c, Comm *ep, const ExPlan *p, const Reference *ref,
                                int64_t bytes, ExBytes *sent) {
    int64_t T = tokens_of(c, boot.rank);
    uint8_t *send = zeroed(p->nsend * bytes), *recv = zeroed(p->nrecv * bytes),
            *back = zeroed(p->nsend * bytes);
    uint8_t *row = zeroed(bytes);
    for (int64_t s = 0; s < p->nsend; s++)
        row_fill(send + s * bytes, bytes, boot.rank, p->send_tok[s], 0);
    int request = -1;
    MUST(exchange_dispatch(ep, p, &request, recv, send, bytes, sent));
    MUST(comm_progress(ep));
    MUST(comm_wait(ep, &request));
    for (int64_t r = 0; r < p->nrecv && p->nrecv == ref->n; r++) {
        row_fill(row, bytes, ref->src[r], ref->tok[r], 0);
        EXPECT(memcmp(row, recv + r * bytes, (size_t)bytes) == 0);
    }
    MUST(exchange_combine(ep, p, &request, back, recv, bytes, NULL));
    MUST(comm_wait(ep, &request));
    EXPECT(memcmp(back, send, (size_t)(p->nsend * bytes)) == 0);

    for (int64_t r = 0; r < p->nrecv; r++) { // now rows that name the rank they come from
        row_fill(recv + r * bytes, bytes, ref->src[r], ref->tok[r], 1 + ep->rank);
    }
    memset(back, 0, (size_t)(p->nsend * bytes));
    MUST(exchange_combine(ep, p, &request, back, recv, bytes, sent));
    MUST(comm_wait(ep, &request));
    for (int64_t t = 0; t < T; t++) {
        int32_t list[16];
        route(c, c->L * ep->nranks, boot.rank, t, list);
        int32_t i = p->tok_first[t];
        for (int r = 0; r < ep->nranks; r++) {
            bool is_there = false;
            for (int64_t k = 0; k < c->K; k++) is_there = is_there || list[k] / c->L == r;
            if (!is_there) continue;
            row_fill(row, bytes, boot.rank, t, 1 + r);
            EXPECT(i < p->tok_first[t + 1]);
            EXPECT(memcmp(row, back + p->tok_row[i] * bytes, (size_t)bytes) == 0);
            i++;
        }
        EXPECT(i == p->tok_first[t + 1]); // once per rank, no more
    }
    free(send);
    free(recv);
    free(back);
    free(row);
}

// rows_under_way: as a layer does it: rows are dispatched while the metadata still travel.
static void rows_under_way(const Case *c, Comm *ep, ExPlan *p, const Reference *ref, ExFlight *meta,
                           Arena *keep) {
    const int64_t bytes = 36;
    uint8_t *send = zeroed(p->nsend * bytes), *recv = zeroed(p->nrecv * bytes),
            *row = zeroed(bytes);
    int request = -1;
    for (int64_t s = 0; s < p->nsend; s++)
        row_fill(send + s * bytes, bytes, boot.rank, p->send_tok[s], 2);
    MUST(exchange_dispatch(ep, p, &request, recv, send, bytes, NULL));
    if (c->seed % 2) MUST(comm_progress(ep));
    MUST(exchange_plan_end(ep, p, meta, keep));
    MUST(comm_wait(ep, &request));
    EXPECT(p->nrecv == ref->n);
    for (int64_t r = 0; r < p->nrecv && p->nrecv == ref->n; r++) {
        row_fill(row, bytes, ref->src[r], ref->tok[r], 2);
        EXPECT(memcmp(row, recv + r * bytes, (size_t)bytes) == 0);
    }
    free(send);
    free(recv);
    free(row);
}

static void check_gate_grads(const Case *c, Comm *ep, const ExPlan *p, const Reference *ref, ExBytes *sent) {
    int64_t T = tokens_of(c, boot.rank);
    uint32_t *dgate = zeroed(T * c->K * 4), *here = zeroed(p->nrecv * c->K * 4), *back = zeroed(p->nsend * c->K * 4);
    for (int64_t i = 0; i < p->npair; i++) {
        int64_t r = p->pair_recv[i];
        here[r * c->K + p->pair_slot[i]] = grad_of(ref->src[r], ref->tok[r], p->pair_slot[i]);
    }
    int request = -1;
    MUST(exchange_gates(ep, p, &request, back, here, sent));
    MUST(comm_wait(ep, &request));
    // Each slot's expert lives on exactly one rank; the others have sent zero bits.
    for (int64_t t = 0; t < T; t++)
        for (int32_t i = p->tok_first[t]; i < p->tok_first[t + 1]; i++)
            for (int64_t k = 0; k < c->K; k++) dgate[t * c->K + k] |= back[p->tok_row[i] * c->K + k];
    for (int64_t t = 0; t < T; t++) {
        for (int64_t k = 0; k < c->K; k++) EXPECT(dgate[t * c->K + k] == grad_of(boot.rank, t, k));
    }
    free(here);
    free(back);
    free(dgate);
}

static void exchange_case(const Case *c, Comm *ep, Arena *keep, Arena *scratch) {
    static Reference ref;
    int first_rank = boot.rank - ep->rank;
    int64_t T = tokens_of(c, boot.rank), E = c->L * ep->nranks;
    int32_t *idx = zeroed(T * c->K * 4);
    float *gate = zeroed(T * c->K * 4);
    int64_t off_send = 0, off_recv = 0;
    for (int64_t t = 0; t < T; t++) {
        route(c, E, boot.rank, t, idx + t * c->K);
        for (int64_t k = 0; k < c->K; k++) {
            gate[t * c->K + k] = gate_of(boot.rank, t, k);
            int64_t r = idx[t * c->K + k] / c->L;
            bool is_first = k == 0 || r != idx[t * c->K + k - 1] / c->L;
            off_send += is_first && r != ep->rank;
        }
    }
    reference(&ref, c, ep, first_rank);
    for (int64_t r = 0; r < ref.n; r++) off_recv += ref.src[r] != boot.rank;

    size_t keep_mark = arena_mark(keep), scratch_mark = arena_mark(scratch);
    ExPlan p;
    ExBytes sent = {0};
    ExFlight meta;
    MUST(exchange_plan(ep, &p, &meta, keep, scratch, idx, gate, T, c->K, c->L, &sent));
    rows_under_way(c, ep, &p, &ref, &meta, keep);
    arena_release(scratch, scratch_mark);
    EXPECT(p.off_rank_send == off_send);
    EXPECT(sent.meta == off_send * c->K * 8);
    check_plan(c, ep, &p, &ref);
    sent = (ExBytes){0};
    rows_there_and_back(c, ep, &p, &ref, 132, &sent);
    EXPECT(sent.dispatch == off_send * 132);
    EXPECT(sent.combine == off_recv * 132);
    rows_there_and_back(c, ep, &p, &ref, 7, NULL);
    check_gate_grads(c, ep, &p, &ref, &sent);
    EXPECT(sent.meta == off_recv * c->K * 4);
    EXPECT(arena_mark(scratch) == scratch_mark);
    arena_release(keep, keep_mark);
    free(idx);
    free(gate);
}

static void test_exchange(void) {
    Arena *keep = NULL, *scratch = NULL;
    MUST(arena_create(&keep, "keep", 1 << 24, false));
    MUST(arena_create(&scratch, "scratch", 1 << 24, false));
    arena_poison(true);
    for (int ep = 1; ep <= boot.nranks; ep++) {
        if (boot.nranks % ep != 0) continue;
        groups(ep);
        int64_t normal = boot.ep->round_bytes;
        for (int how = 0; how < ROUTINGS; how++) {
            for (int tokens = 0; tokens < 3; tokens++) {
                // (K, L): one expert per rank; some; every expert
                const int64_t sizes[][2] = {{1, 1},
                                            {ep, 1},
                                            {min_i64(3, 4 * ep), 4},
                                            {min_i64(8, 6 * ep), 6},
                                            {2 * ep <= 16 ? 2 * ep : 2, 2}};
                for (int s = 0; s < 5; s++) {
                    Case c = {sizes[s][0], sizes[s][1], how, tokens,
                              (uint64_t)(how * 10 + tokens + s)};
                    boot.ep->round_bytes = s == 2 ? 200 : normal;
                    exchange_case(&c, boot.ep, keep, scratch);
                }
            }
        }
        boot.ep->round_bytes = normal;
    }
    arena_poison(false);
    arena_destroy(&keep);
    arena_destroy(&scratch);
}

// Measure mode against the real thing where the worst case happens: the same T, every token to
// every expert.
static void test_measure(void) {
    groups(boot.nranks);
    Arena *keep = NULL, *scratch = NULL, *mkeep = NULL, *mscratch = NULL;
    Comm *null = NULL;
    MUST(comm_null(&null, "ep", boot.rank, boot.nranks));
    MUST(arena_create(&keep, "keep", 1 << 24, false));
    MUST(arena_create(&scratch, "scratch", 1 << 24, false));
    MUST(arena_create(&mkeep, "keep", 0, true));
    MUST(arena_create(&mscratch, "scratch", 0, true));
    int64_t L = 2, K = L * boot.nranks, T = 23;
    int32_t *idx = zeroed(T * K * 4);
    float *gate = zeroed(T * K * 4);
    for (int64_t i = 0; i < T * K; i++) idx[i] = (int32_t)(i % K);
    ExPlan p, m;
    ExFlight f;
    MUST(exchange_plan(boot.ep, &p, &f, keep, scratch, idx, gate, T, K, L, NULL));
    MUST(exchange_plan_end(boot.ep, &p, &f, keep));
    MUST(exchange_plan(null, &m, &f, mkeep, mscratch, NULL, NULL, T, K, L, NULL));
    MUST(exchange_plan_end(null, &m, &f, mkeep));
    EXPECT(arena_high(keep) == arena_high(mkeep));
    EXPECT(arena_high(scratch) == arena_high(mscratch));
    EXPECT(p.nsend == m.nsend && p.nrecv == m.nrecv && p.npair == m.npair);
    EXPECT(p.off_rank_send == m.off_rank_send);
    comm_destroy(&null);
    arena_destroy(&keep);
    arena_destroy(&scratch);
    arena_destroy(&mkeep);
    arena_destroy(&mscratch);
    free(idx);
    free(gate);
}

static const RankTest tests[] = {{"test_exchange", test_exchange}, {"test_measure", test_measure}};

int main(void) {
    MUST(boot_init(&boot));
    int failed = rank_tests_run(tests, sizeof tests / sizeof *tests);
    boot_finish(&boot);
    return failed ? 1 : 0;
}
