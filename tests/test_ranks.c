// test_ranks.c - the rank layer on real ranks: started by mpirun with 1, 2, 4 and 8 ranks, and once
// without a launcher.
//
// Everything that any rank sends is a pure function of (rank, token, ...), so each rank computes
// what it must receive by itself, from everybody's data: the gather-everything reference. A check
// that fails on any rank fails the test on all; rank 0 prints the summary.
#include <stdlib.h>
#include <string.h>

#include "boot.h"
#include "exchange.h"
#include "rng.h"
#include "zero.h"

static Boot boot;
static int64_t failures; // of this rank, in this test

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond) && failures++ < 5) {                                                           \
            fprintf(stderr, "rank %d: %s:%d: %s\n", boot.rank, __FILE__, __LINE__, #cond);         \
        }                                                                                          \
    } while (0)

// must: a failed collective leaves the ranks out of step; end the job.
static void must(Err err, int line) {
    if (err == OK) return;
    fprintf(stderr, "rank %d: %s:%d: %s\n", boot.rank, __FILE__, line, fail_message());
    boot_abort(&boot, err);
    exit(err);
}
#define MUST(call) must((call), __LINE__)

static uint32_t draw(uint64_t stream, uint64_t i) {
    return philox(11, stream, i).v[0];
}

static void *zeroed(int64_t bytes) {
    void *p = calloc(1, (size_t)bytes + 1);
    if (!p) MUST(fail_at(E_INTERNAL, __FILE__, __LINE__, "out of memory"));
    return p;
}

// groups: make the expert groups of size ep.
static void groups(int ep) {
    Mesh m;
    MUST(mesh_build(&m, boot.nranks, boot.rank, ep));
    MUST(boot_groups(&boot, &m, "auto"));
}

// ---- comm -------------------------------------------------------------------------------------

// byte of the block that rank `from` has for rank `to`.
static uint8_t byte_of(int from, int to, int64_t i) {
    return (uint8_t)(draw((uint64_t)(from * 64 + to), (uint64_t)i / 16) >> (i % 16));
}

static void blocks(Comm *c, int64_t bytes) {
    int n = c->nranks;
    uint8_t *src = zeroed(n * bytes), *dst = zeroed(n * bytes);
    for (int to = 0; to < n; to++) {
        for (int64_t i = 0; i < bytes; i++) src[to * bytes + i] = byte_of(c->rank, to, i);
    }
    MUST(c->all_to_all(c, dst, src, (size_t)bytes));
    bool is_same = true;
    for (int r = 0; r < n; r++) {
        for (int64_t i = 0; i < bytes; i++)
            is_same = is_same && dst[r * bytes + i] == byte_of(r, c->rank, i);
    }
    EXPECT(is_same);
    for (int in_place = 0; in_place < 2; in_place++) {
        memset(dst, 0, (size_t)(n * bytes));
        if (in_place) memcpy(dst + c->rank * bytes, src, (size_t)bytes);
        MUST(c->all_gather(c, dst, in_place ? dst + c->rank * bytes : src, (size_t)bytes));
        is_same = true;
        for (int r = 0; r < n; r++) {
            for (int64_t i = 0; i < bytes; i++)
                is_same = is_same && dst[r * bytes + i] == byte_of(r, 0, i);
        }
        EXPECT(is_same);
    }
    for (int root = 0; root < n; root++) {
        memset(dst, 0, (size_t)bytes);
        if (c->rank == root) memcpy(dst, src, (size_t)bytes);
        MUST(c->broadcast(c, dst, (size_t)bytes, root));
        is_same = true;
        for (int64_t i = 0; i < bytes; i++) is_same = is_same && dst[i] == byte_of(root, 0, i);
        EXPECT(is_same);
    }
    free(src);
    free(dst);
}

static int64_t rows_of(int from, int to, uint64_t seed) {
    uint32_t x = draw(1000 + seed, (uint64_t)(from * 64 + to));
    return x % 3 == 0 ? 0 : x % 41;
}

// Ragged rows, with gaps between the blocks on both sides that must stay untouched.
static void ragged(Comm *c, int64_t row, uint64_t seed) {
    int n = c->nranks;
    int64_t sc[64], so[64], rc[64], ro[64], stotal = 0, rtotal = 0;
    for (int r = 0; r < n; r++) {
        sc[r] = rows_of(c->rank, r, seed);
        rc[r] = rows_of(r, c->rank, seed);
        so[r] = stotal + 1;
        ro[r] = rtotal + 2;
        stotal += sc[r] + 1;
        rtotal += rc[r] + 2;
    }
    uint8_t *src = zeroed(stotal * row), *dst = zeroed(rtotal * row), *want = zeroed(rtotal * row);
    for (int r = 0; r < n; r++) {
        for (int64_t i = 0; i < sc[r] * row; i++) src[so[r] * row + i] = byte_of(c->rank, r, i);
        for (int64_t i = 0; i < rc[r] * row; i++) want[ro[r] * row + i] = byte_of(r, c->rank, i);
    }
    MUST(c->all_to_all_v(c, dst, rc, ro, src, sc, so, (size_t)row));
    EXPECT(memcmp(dst, want, (size_t)(rtotal * row)) == 0);
    free(src);
    free(dst);
    free(want);
}

static void test_comm(void) {
    for (int ep = 1; ep <= boot.nranks; ep++) {
        if (boot.nranks % ep != 0) continue;
        groups(ep);
        EXPECT(boot.ep->nranks == ep && boot.ep->rank == boot.rank % ep);
        EXPECT(boot.edp->nranks == boot.nranks / ep && boot.edp->rank == boot.rank / ep);
        Comm *list[] = {boot.world, boot.ep, boot.edp};
        for (int g = 0; g < 3; g++) {
            Comm *c = list[g];
            int64_t normal = c->round_bytes;
            EXPECT(c->world_rank == boot.rank);
            EXPECT(normal > 0 && normal <= INT32_MAX);
            for (int rounds = 0; rounds < 3; rounds++) { // one round; many; a byte at a time
                c->round_bytes = rounds == 0 ? normal : rounds == 1 ? 37 : 1;
                MUST(c->barrier(c));
                blocks(c, 0);
                blocks(c, 1);
                blocks(c, rounds == 2 ? 5 : 1000);
                ragged(c, 1, 1);
                ragged(c, rounds == 2 ? 2 : 132, 2);
                if (rounds == 0) ragged(c, 4096, 3);
            }
            c->round_bytes = normal;
        }
    }
}

static double number_of(int rank, int i) {
    uint32_t x = draw(77, (uint64_t)rank << 32 | (uint64_t)i);
    return ldexp((double)(int32_t)x, (int)(x % 90) - 60); // wild exponents: the order of a sum
                                                          // shows
}

static void test_sums(void) {
    enum { N = 65536 };
    double *x = zeroed(N * 8);
    int64_t *v = zeroed(N * 8), *w = zeroed(N * 8);
    static const int sizes[] = {0, 1, 7, 1024, 1025, N};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        int n = sizes[s];
        for (int i = 0; i < n; i++) {
            x[i] = number_of(boot.rank, i);
            v[i] = (int64_t)draw(5, (uint64_t)i) * (boot.rank + 1) - ((int64_t)1 << 40);
            w[i] = (int64_t)draw(6, (uint64_t)(i * 64 + boot.rank)) - ((int64_t)1 << 31);
        }
        MUST(comm_sum(boot.world, x, n));
        MUST(comm_sum_i64(boot.world, v, n));
        MUST(comm_max_i64(boot.world, w, n));
        bool is_same = true;
        for (int i = 0; i < n; i++) {
            double sum = number_of(0, i);
            int64_t isum = 0, top = INT64_MIN;
            for (int r = 1; r < boot.nranks; r++) sum += number_of(r, i);
            for (int r = 0; r < boot.nranks; r++) {
                isum += (int64_t)draw(5, (uint64_t)i) * (r + 1) - ((int64_t)1 << 40);
                int64_t one = (int64_t)draw(6, (uint64_t)(i * 64 + r)) - ((int64_t)1 << 31);
                if (one > top) top = one;
            }
            is_same = is_same && memcmp(&sum, &x[i], 8) == 0 && v[i] == isum && w[i] == top;
        }
        EXPECT(is_same);
    }
    EXPECT(comm_sum(boot.world, x, N + 1) == E_INTERNAL);
    fail_clear();
    free(x);
    free(v);
    free(w);
}

static Err fail_with(Err code) {
    if (code == OK) return OK;
    return fail_at(code, __FILE__, __LINE__, "code %d here", (int)code);
}

static void test_agree(void) {
    int n = boot.nranks, me = boot.rank;
    char want[64];
    EXPECT(comm_agree(boot.world, OK) == OK);
    for (int a = 0; a < n; a++) {
        for (int b = 0; b < n; b++) {
            // a fails with 65, b with 78 (or, a == b, only one does); then both with 69
            for (int same = 0; same < 2; same++) {
                Err ea = same ? E_PEER : E_INPUT, eb = same ? E_PEER : E_CONFIG;
                Err mine = me == b ? eb : me == a ? ea : OK;
                int first = same ? (a < b ? a : b) : b;
                Err got = comm_agree(boot.world, fail_with(mine));
                EXPECT(got == eb);
                snprintf(want, sizeof want,
                         me == first ? "code %d here" : "rank %2$d: code %1$d here", (int)eb,
                         first);
                EXPECT(strcmp(fail_message(), want) == 0);
                EXPECT(fail_code() == eb);
                fail_clear();
            }
        }
    }
    // First in the expert group, then in the world: the rank is named once, by its number in the
    // world.
    if (n >= 2 && n % 2 == 0) {
        groups(2);
        int bad = n - 1;
        Err err = comm_agree(boot.ep, fail_with(me == bad ? E_NUMERIC : OK));
        EXPECT(err == (me / 2 == bad / 2 ? E_NUMERIC : OK));
        EXPECT(comm_agree(boot.world, err) == E_NUMERIC);
        snprintf(want, sizeof want, "rank %d: code 80 here", bad);
        EXPECT(me == bad || strcmp(fail_message(), want) == 0);
        fail_clear();
    }
    EXPECT(comm_agree(boot.world, OK) == OK);
}

// ---- exchange ---------------------------------------------------------------------------------

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
    MUST(exchange_dispatch(ep, p, recv, send, bytes, sent));
    for (int64_t r = 0; r < p->nrecv && p->nrecv == ref->n; r++) {
        row_fill(row, bytes, ref->src[r], ref->tok[r], 0);
        EXPECT(memcmp(row, recv + r * bytes, (size_t)bytes) == 0);
    }
    MUST(exchange_combine(ep, p, back, recv, bytes, NULL));
    EXPECT(memcmp(back, send, (size_t)(p->nsend * bytes)) == 0);

    for (int64_t r = 0; r < p->nrecv; r++) { // now rows that name the rank they come from
        row_fill(recv + r * bytes, bytes, ref->src[r], ref->tok[r], 1 + ep->rank);
    }
    memset(back, 0, (size_t)(p->nsend * bytes));
    MUST(exchange_combine(ep, p, back, recv, bytes, sent));
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

static void check_gate_grads(const Case *c, Comm *ep, const ExPlan *p, Arena *scratch,
                             const Reference *ref, ExBytes *sent) {
    int64_t T = tokens_of(c, boot.rank);
    uint32_t *dpair = zeroed(p->npair * 4), *dgate = zeroed(T * c->K * 4);
    for (int64_t i = 0; i < p->npair; i++) {
        int64_t r = p->pair_recv[i];
        dpair[i] = grad_of(ref->src[r], ref->tok[r], p->pair_slot[i]);
    }
    memset(dgate, 0xFF, (size_t)(T * c->K) * 4);
    MUST(exchange_gate_grads(ep, p, scratch, (float *)dgate, (const float *)dpair, sent));
    for (int64_t t = 0; t < T; t++) {
        for (int64_t k = 0; k < c->K; k++) EXPECT(dgate[t * c->K + k] == grad_of(boot.rank, t, k));
    }
    free(dpair);
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
    MUST(exchange_plan(ep, &p, keep, scratch, idx, gate, T, c->K, c->L, &sent));
    EXPECT(p.off_rank_send == off_send);
    EXPECT(sent.meta == off_send * c->K * 8);
    check_plan(c, ep, &p, &ref);
    sent = (ExBytes){0};
    rows_there_and_back(c, ep, &p, &ref, 132, &sent);
    EXPECT(sent.dispatch == off_send * 132);
    EXPECT(sent.combine == off_recv * 132);
    rows_there_and_back(c, ep, &p, &ref, 7, NULL);
    check_gate_grads(c, ep, &p, scratch, &ref, &sent);
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
    MUST(exchange_plan(boot.ep, &p, keep, scratch, idx, gate, T, K, L, NULL));
    MUST(exchange_plan(null, &m, mkeep, mscratch, NULL, NULL, T, K, L, NULL));
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

// ---- zero -------------------------------------------------------------------------------------

enum { NT = 9 };
static const int64_t zrows[NT] = {1500, 1, 130, 0, 1024, 77, 256, 2048, 3};
static const int64_t zcols[NT] = {9, 600, 33, 5, 16, 1, 64, 3, 1000};

static float contribution(int rank, int64_t tensor, int64_t i) {
    uint32_t x = draw((uint64_t)(rank * 100 + tensor), (uint64_t)i);
    return ldexpf((float)(int32_t)x, (int)(x % 40) - 40);
}

static uint8_t param_byte(int64_t tensor, int64_t i) {
    return (uint8_t)(draw(900 + (uint64_t)tensor, (uint64_t)i) >> 5);
}

static void zero_case(Comm *g, const int *members, size_t bucket, bool is_alias, Arena *scratch) {
    int n = g->nranks;
    ShardRange *ranges = zeroed(NT * n * (int64_t)sizeof *ranges);
    plan_shards(ranges, zrows, zcols, NT, n);
    ZeroTensor t[NT];
    float *grad[NT], *shard[NT];
    uint8_t *param[NT];
    for (int64_t i = 0; i < NT; i++) {
        int64_t size = zrows[i] * zcols[i];
        const ShardRange *own = &ranges[i * n + g->rank];
        int pb = i % 2 ? 4 : 2;
        grad[i] = zeroed(size * 4);
        param[i] = zeroed(size * pb);
        for (int64_t j = 0; j < size; j++) grad[i][j] = contribution(boot.rank, i, j);
        memset(param[i], 0xEE, (size_t)(size * pb));
        int64_t row = zcols[i] * pb;
        for (int64_t j = own->row0 * row; j < (own->row0 + own->nrows) * row; j++)
            param[i][j] = param_byte(i, j);
        shard[i] = is_alias ? grad[i] + own->row0 * zcols[i] : zeroed(own->nrows * zcols[i] * 4);
        t[i] = (ZeroTensor){zrows[i], zcols[i], ranges + i * n, grad[i], shard[i], param[i], pb};
    }
    size_t mark = arena_mark(scratch);
    MUST(zero_reduce(g, t, NT, scratch, bucket));
    MUST(zero_gather(g, t, NT, scratch, bucket));
    EXPECT(arena_mark(scratch) == mark);
    for (int64_t i = 0; i < NT; i++) {
        const ShardRange *own = &ranges[i * n + g->rank];
        bool is_same = true;
        for (int64_t j = 0; j < own->nrows * zcols[i]; j++) {
            int64_t at = own->row0 * zcols[i] + j;
            float sum = contribution(members[0], i, at);
            for (int r = 1; r < n; r++) sum += contribution(members[r], i, at);
            is_same = is_same && memcmp(&sum, &shard[i][j], 4) == 0;
        }
        EXPECT(is_same);
        is_same = true;
        for (int64_t j = 0; j < zrows[i] * zcols[i] * t[i].param_bytes; j++) {
            is_same = is_same && param[i][j] == param_byte(i, j);
        }
        EXPECT(is_same);
        if (!is_alias) { // grad itself is only read
            for (int64_t j = 0; j < zrows[i] * zcols[i]; j++) {
                is_same = is_same && grad[i][j] == contribution(boot.rank, i, j);
            }
            EXPECT(is_same);
            free(shard[i]);
        }
        free(grad[i]);
        free(param[i]);
    }
    free(ranges);
}

static void test_zero(void) {
    Arena *scratch = NULL, *measure = NULL;
    MUST(arena_create(&scratch, "scratch", 1 << 24, false));
    MUST(arena_create(&measure, "scratch", 0, true));
    arena_poison(true);
    static const size_t buckets[] = {1 << 20, 20000, 1000, 1};
    for (int ep = 1; ep <= boot.nranks; ep++) {
        if (boot.nranks % ep != 0) continue;
        groups(ep);
        int members[64];
        for (int r = 0; r < boot.edp->nranks; r++) members[r] = boot.rank % ep + r * ep;
        for (int b = 0; b < 4; b++) {
            zero_case(boot.edp, members, buckets[b], b % 2 == 0, scratch);
            zero_case(boot.edp, members, buckets[b], b % 2 == 1, scratch);
        }
    }
    arena_poison(false);

    // Measure mode takes the same memory and needs the shapes alone.
    Comm *null = NULL;
    ZeroTensor t[NT];
    for (int i = 0; i < NT; i++) t[i] = (ZeroTensor){zrows[i], zcols[i], NULL, NULL, NULL, NULL, 2};
    MUST(comm_null(&null, "world", boot.rank, boot.nranks));
    ShardRange *ranges = zeroed(NT * boot.nranks * (int64_t)sizeof *ranges);
    plan_shards(ranges, zrows, zcols, NT, boot.nranks);
    MUST(zero_reduce(null, t, NT, measure, 20000));
    MUST(zero_gather(null, t, NT, measure, 20000));
    arena_reset_high(scratch);
    groups(1);
    int all[64];
    for (int r = 0; r < boot.nranks; r++) all[r] = r;
    zero_case(boot.edp, all, 20000, true, scratch);
    EXPECT(arena_high(scratch) == arena_high(measure));
    t[2].param_bytes = 3;
    EXPECT(boot.nranks == 1 || zero_gather(boot.world, t, NT, scratch, 1000) == E_INTERNAL);
    fail_clear();
    comm_destroy(&null);
    arena_destroy(&scratch);
    arena_destroy(&measure);
    free(ranges);
}

// ---- boot -------------------------------------------------------------------------------------

// maps_have: this process has loaded something with this name.
static bool maps_have(const char *name) {
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    bool found = false;
    while (f && fgets(line, sizeof line, f)) found = found || strstr(line, name);
    if (f) fclose(f);
    return found;
}

static void test_boot(void) {
    // Open MPI loads its message layer in MPI_Init; without a launcher that must not have happened.
    if (maps_have("libmpi.so")) EXPECT(boot.is_mpi == maps_have("mca_pml"));
    EXPECT(boot.is_mpi == boot_is_launched());
    int64_t *ranks = zeroed(boot.nranks * 8), mine = boot.rank;
    MUST(boot.world->all_gather(boot.world, ranks, &mine, 8));
    for (int r = 0; r < boot.nranks; r++) EXPECT(ranks[r] == r);
    EXPECT(boot.local_nranks == boot.nranks && boot.local_rank == boot.rank); // the tests use one
                                                                              // node
    free(ranks);
    Mesh m;
    EXPECT(mesh_build(&m, boot.nranks, boot.rank, 1) == OK);
    EXPECT(boot_groups(&boot, &m, "self") == (boot.nranks == 1 ? OK : E_CONFIG));
    EXPECT(boot_groups(&boot, &m, "mpi") == (boot.is_mpi ? OK : E_CONFIG));
    EXPECT(boot_groups(&boot, &m, "tcp") == E_CONFIG);
    fail_clear();
    // Nothing is allocated by collectives, however often they run.
    int64_t before = mem_count(), sum = 1;
    for (int i = 0; i < 20; i++) {
        MUST(comm_sum_i64(boot.world, &sum, 1));
        EXPECT(comm_agree(boot.world, OK) == OK);
        sum = 1;
    }
    EXPECT(mem_count() == before);
}

// ---- all of them ------------------------------------------------------------------------------

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    {"test_boot", test_boot},   {"test_comm", test_comm},         {"test_sums", test_sums},
    {"test_agree", test_agree}, {"test_exchange", test_exchange}, {"test_measure", test_measure},
    {"test_zero", test_zero},
};
enum { NTESTS = sizeof tests / sizeof *tests };

int main(void) {
    MUST(boot_init(&boot));
    bool is_first = boot.rank == 0;
    int failed = 0;
    if (is_first) printf("[==========] Running %d test(s).\n", NTESTS);
    for (int i = 0; i < NTESTS; i++) {
        if (is_first) printf("[ RUN      ] %s (%d ranks)\n", tests[i].name, boot.nranks);
        fflush(stdout);
        failures = 0;
        tests[i].run();
        int64_t all[64] = {0}; // not comm_agree or comm_sum: those are under test
        int64_t total = 0;
        MUST(boot.world->all_gather(boot.world, all, &failures, sizeof failures));
        for (int r = 0; r < boot.nranks; r++) total += all[r];
        failed += total > 0;
        if (is_first) printf("[ %s ] %s\n", total > 0 ? " FAILED " : "      OK", tests[i].name);
        fflush(stdout);
    }
    if (is_first) {
        printf("[==========] %d test(s) run.\n[  PASSED  ] %d test(s).\n", NTESTS, NTESTS - failed);
        if (failed) printf("[  FAILED  ] %d test(s)\n", failed);
        fflush(stdout);
    }
    boot_finish(&boot);
    return failed ? 1 : 0;
}
