// test_plan.c - rank arithmetic and dispatch plans against brute force, ZeRO cuts by their
// properties, and what a user is told when a grid does not fit. No ranks are started: all of them
// are played in this process.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "exchange.h"
#include "mesh.h"
#include "plan.h"
#include "rng.h"

#define MAX_P 5
#define MAX_T 40

enum { RANDOM, ONE_EXPERT, LAST_RANK, ROUTINGS };

typedef struct Play {
    int64_t K, L, P, T[MAX_P];
    int32_t *idx[MAX_P]; // [T,K]
    float *gate[MAX_P];
    ExPlan plan[MAX_P];
    Arena *arena;
} Play;

static uint32_t draw(uint64_t stream, uint64_t i) {
    return philox(7, stream, i).v[0];
}

// Routes one token: K distinct experts of E in ascending order.
static void route(int32_t *out, int64_t K, int64_t E, int how, uint64_t stream, int64_t t) {
    bool taken[256] = {false};
    for (int64_t k = 0; k < K; k++) {
        int64_t e = draw(stream, (uint64_t)(t * 64 + k)) % (uint64_t)E;
        if (how == ONE_EXPERT) e = 0;
        if (how == LAST_RANK) e = E - 1;
        while (taken[e]) e = (e + 1) % E;
        taken[e] = true;
    }
    for (int64_t e = 0; e < E; e++) {
        if (taken[e]) *out++ = (int32_t)e;
    }
}

static void play_open(Play *g, int64_t P, int64_t L, int64_t K, int how, uint64_t seed) {
    memset(g, 0, sizeof *g);
    g->P = P;
    g->L = L;
    g->K = K;
    assert_int_equal(arena_create(&g->arena, "plan", 1 << 24, false), OK);
    for (int64_t r = 0; r < P; r++) {
        g->T[r] = (seed + (uint64_t)r) % 3 == 0 ? 0 : draw(seed, (uint64_t)r) % MAX_T;
        g->idx[r] = calloc((size_t)(g->T[r] * K + 1), 4);
        g->gate[r] = calloc((size_t)(g->T[r] * K + 1), 4);
        for (int64_t t = 0; t < g->T[r]; t++) {
            route(g->idx[r] + t * K, K, L * P, how, seed * 100 + (uint64_t)r, t);
            for (int64_t k = 0; k < K; k++)
                g->gate[r][t * K + k] = (float)(r * 10000 + t * 100 + k) + 0.5f;
        }
    }
}

static void play_close(Play *g) {
    for (int64_t r = 0; r < g->P; r++) {
        free(g->idx[r]);
        free(g->gate[r]);
    }
    arena_destroy(&g->arena);
}

// slot_at: slot of token t of rank r whose expert is e, -1 if none.
static int64_t slot_at(const Play *g, int64_t r, int64_t t, int64_t e) {
    for (int64_t k = 0; k < g->K; k++) {
        if (g->idx[r][t * g->K + k] == e) return k;
    }
    return -1;
}

static bool goes_to(const Play *g, int64_t r, int64_t t, int64_t dest) {
    for (int64_t e = dest * g->L; e < (dest + 1) * g->L; e++) {
        if (slot_at(g, r, t, e) >= 0) return true;
    }
    return false;
}

static void check_send(const Play *g, int64_t r) {
    const ExPlan *p = &g->plan[r];
    int64_t s = 0;
    for (int64_t dest = 0; dest < g->P; dest++) {
        assert_int_equal(p->send_off[dest], s);
        for (int64_t t = 0; t < g->T[r]; t++) {
            if (!goes_to(g, r, t, dest)) continue;
            assert_int_equal(p->send_tok[s], t);
            int64_t nth = 0; // how many lower ranks get this token
            for (int64_t d = 0; d < dest; d++) nth += goes_to(g, r, t, d);
            assert_in_range(p->tok_first[t] + nth, 0, p->tok_first[t + 1] - 1);
            assert_int_equal(p->tok_row[p->tok_first[t] + nth], s);
            s++;
        }
        assert_int_equal(p->send_count[dest], s - p->send_off[dest]);
    }
    assert_int_equal(p->nsend, s);
    assert_int_equal(p->tok_first[0], 0);
    assert_int_equal(p->tok_first[p->T], s);
}

// deliver: what the exchange does between the halves, by copying from the other players' plans.
static void deliver(Play *g, int64_t me) {
    ExPlan *p = &g->plan[me];
    assert_int_equal(plan_push_sources(p, g->arena), OK);
    p->nrecv = 0;
    for (int64_t r = 0; r < g->P; r++) {
        p->recv_off[r] = p->nrecv;
        p->recv_count[r] = g->plan[r].send_count[me];
        p->nrecv += p->recv_count[r];
    }
    assert_int_equal(plan_push_meta(p, g->arena), OK);
    for (int64_t r = 0; r < g->P; r++) {
        const ExPlan *from = &g->plan[r];
        size_t n = (size_t)(from->nsend * g->K + 1);
        int32_t *expert = malloc(n * 4);
        float *gate = malloc(n * 4);
        plan_meta(from, expert, gate, g->idx[r], g->gate[r]);
        size_t bytes = (size_t)(p->recv_count[r] * g->K) * 4;
        memcpy(p->recv_expert + p->recv_off[r] * g->K, expert + from->send_off[me] * g->K, bytes);
        memcpy(p->recv_gate + p->recv_off[r] * g->K, gate + from->send_off[me] * g->K, bytes);
        free(expert);
        free(gate);
    }
}

static void check_recv(const Play *g, int64_t me) {
    const ExPlan *p = &g->plan[me];
    int64_t i = 0;
    for (int64_t e = 0; e < g->L; e++) {
        assert_int_equal(p->start[e], i);
        int64_t row = 0; // of (source, token)
        for (int64_t r = 0; r < g->P; r++) {
            for (int64_t t = 0; t < g->T[r]; t++) {
                if (!goes_to(g, r, t, me)) continue;
                int64_t k = slot_at(g, r, t, me * g->L + e);
                if (k >= 0) {
                    assert_int_equal(p->pair_recv[i], row);
                    assert_int_equal(p->pair_slot[i], k);
                    assert_memory_equal(&p->pair_gate[i], &g->gate[r][t * g->K + k], 4);
                    int64_t nth = 0; // how many lower local experts see this row
                    for (int64_t f = 0; f < e; f++) nth += slot_at(g, r, t, me * g->L + f) >= 0;
                    assert_int_equal(p->recv_pair[p->recv_first[row] + nth], i);
                    i++;
                }
                row++;
            }
        }
        assert_int_equal(row, p->nrecv);
        assert_int_equal(p->count[e], i - p->start[e]);
    }
    assert_int_equal(p->npair, i);
    assert_int_equal(p->recv_first[0], 0);
    assert_int_equal(p->recv_first[p->nrecv], i);
}

static void test_plan_brute_force(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {// P, L, K
                                        {1, 1, 1}, {1, 6, 3}, {2, 1, 1}, {2, 1, 2},  {2, 4, 8},
                                        {3, 5, 4}, {4, 1, 3}, {4, 4, 2}, {5, 3, 15}, {5, 2, 6}};
    arena_poison(true);
    int64_t pairs = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        for (int how = 0; how < ROUTINGS; how++) {
            for (uint64_t seed = 1; seed < 5; seed++) {
                Play g;
                play_open(&g, shapes[i][0], shapes[i][1], shapes[i][2], how, seed);
                for (int64_t r = 0; r < g.P; r++) {
                    assert_int_equal(
                        plan_send(&g.plan[r], g.arena, g.idx[r], g.T[r], g.K, g.L, g.P), OK);
                    check_send(&g, r);
                }
                int64_t total = 0, tokens = 0;
                for (int64_t r = 0; r < g.P; r++) {
                    deliver(&g, r);
                    assert_int_equal(plan_recv(&g.plan[r], g.arena), OK);
                    check_recv(&g, r);
                    total += g.plan[r].npair;
                    tokens += g.T[r];
                }
                assert_int_equal(total, tokens * g.K); // no token is dropped
                pairs += total;
                play_close(&g);
            }
        }
    }
    arena_poison(false);
    assert_true(pairs > 1000);
}

static void test_plan_refuses(void **state) {
    (void)state;
    Arena *a = NULL;
    assert_int_equal(arena_create(&a, "plan", 1 << 20, false), OK);
    ExPlan p = {0};
    const int32_t good[] = {0, 3, 1, 2}, down[] = {0, 3, 2, 1}, twice[] = {0, 3, 2, 2},
                  high[] = {0, 3, 1, 4}, low[] = {0, 3, -1, 2};
    assert_int_equal(plan_send(&p, a, good, 2, 2, 2, 2), OK);
    assert_int_equal(plan_send(&p, a, down, 2, 2, 2, 2), E_INTERNAL);
    assert_int_equal(plan_send(&p, a, twice, 2, 2, 2, 2), E_INTERNAL);
    assert_int_equal(plan_send(&p, a, high, 2, 2, 2, 2), E_INTERNAL);
    assert_non_null(strstr(fail_message(), "token 1, slot 1: expert 4"));
    assert_int_equal(plan_send(&p, a, low, 2, 2, 2, 2), E_INTERNAL);
    assert_int_equal(plan_send(&p, a, good, -1, 2, 2, 2), E_INTERNAL);
    assert_int_equal(plan_send(&p, a, good, 1, 3, 1, 2), E_INTERNAL);
    assert_int_equal(plan_send(&p, a, good, INT32_MAX, 2, 2, 2), E_INTERNAL);

    // Received lists for 2 rows, K 3, L 2.
    static const int32_t lists[][6] = {{0, 1, -1, -1, -1, 1},
                                       {0, 2, -1, -1, -1, 1},
                                       {0, 1, -1, -2, -1, 1},
                                       {1, -1, 1, -1, -1, 1},
                                       {1, 0, -1, -1, -1, 1}};
    for (int i = 0; i < 5; i++) {
        int32_t expert[6];
        float gate[6] = {0};
        memcpy(expert, lists[i], sizeof expert);
        ExPlan q = {
            .T = 0, .K = 3, .L = 2, .P = 2, .nrecv = 2, .recv_expert = expert, .recv_gate = gate};
        assert_int_equal(plan_recv(&q, a), i == 0 ? OK : E_INTERNAL);
    }
    Arena *small = NULL;
    assert_int_equal(arena_create(&small, "small", 64, false), OK);
    assert_int_equal(plan_send(&p, small, good, 2, 2, 2, 2), E_INTERNAL);
    assert_non_null(strstr(fail_message(), "arena small"));
    arena_destroy(&small);
    arena_destroy(&a);
    fail_clear();
}

// Measure mode takes exactly what a real exchange takes when every token goes to every expert.
static void test_plan_worst(void **state) {
    (void)state;
    for (int64_t L = 1; L <= 4; L++) {
        const int64_t T = 37;
        Comm *self = NULL, *null = NULL;
        Arena *keep = NULL, *scratch = NULL, *mkeep = NULL, *mscratch = NULL;
        assert_int_equal(comm_self(&self, "ep"), OK);
        assert_int_equal(comm_null(&null, "ep", 0, 1), OK);
        assert_int_equal(arena_create(&keep, "keep", 1 << 20, false), OK);
        assert_int_equal(arena_create(&scratch, "scratch", 1 << 20, false), OK);
        assert_int_equal(arena_create(&mkeep, "keep", 0, true), OK);
        assert_int_equal(arena_create(&mscratch, "scratch", 0, true), OK);
        int32_t idx[37 * 4];
        float gate[37 * 4], dpair[37 * 4], here[37 * 4], back[37 * 4];
        for (int64_t i = 0; i < T * L; i++) {
            idx[i] = (int32_t)(i % L);
            gate[i] = (float)i;
            dpair[i] = (float)i;
        }
        ExPlan p, m;
        ExFlight f = {NULL, -1};
        int request = -1;
        assert_int_equal(exchange_plan(self, &p, &f, keep, scratch, idx, gate, T, L, L, NULL), OK);
        assert_int_equal(exchange_plan_end(self, &p, &f, keep), OK);
        assert_int_equal(p.npair, T * L);
        for (int64_t i = 0; i < p.npair; i++) here[p.pair_recv[i] * L + p.pair_slot[i]] = dpair[i];
        assert_int_equal(exchange_gates(self, &p, &request, back, here, NULL), OK);
        assert_int_equal(comm_wait(self, &request), OK);
        for (int64_t t = 0; t < T; t++) {
            assert_int_equal(p.tok_first[t + 1] - p.tok_first[t], 1); // one row for each rank, of which there is one
            for (int64_t k = 0; k < L; k++) // pairs are by expert
                assert_true(back[p.tok_row[p.tok_first[t]] * L + k] == dpair[k * T + t]);
        }
        assert_int_equal(exchange_plan(null, &m, &f, mkeep, mscratch, NULL, NULL, T, L, L, NULL),
                         OK);
        assert_int_equal(exchange_plan_end(null, &m, &f, mkeep), OK);
        assert_int_equal(exchange_gates(null, &m, &request, NULL, NULL, NULL), OK);
        assert_int_equal(comm_wait(null, &request), OK);
        assert_int_equal(exchange_dispatch(null, &m, &request, NULL, NULL, 100, NULL), OK);
        assert_int_equal(comm_wait(null, &request), OK);
        assert_int_equal(exchange_combine(null, &m, &request, NULL, NULL, 100, NULL), OK);
        assert_int_equal(comm_wait(null, &request), OK);
        assert_int_equal(m.nsend, p.nsend);
        assert_int_equal(m.nrecv, p.nrecv);
        assert_int_equal(m.npair, p.npair);
        assert_int_equal(arena_high(mkeep), arena_high(keep));
        assert_int_equal(arena_high(mscratch), arena_high(scratch));
        assert_int_equal(arena_mark(mscratch), arena_mark(scratch));
        comm_destroy(&self);
        comm_destroy(&null);
        arena_destroy(&keep);
        arena_destroy(&scratch);
        arena_destroy(&mkeep);
        arena_destroy(&mscratch);
    }
    Arena *a = NULL;
    assert_int_equal(arena_create(&a, "m", 0, true), OK);
    ExPlan p;
    assert_int_equal(plan_worst(&p, a, 100, 8, 32, 4, false), OK);
    assert_int_equal(p.nsend, 400);
    assert_int_equal(p.nrecv, 400);
    assert_int_equal(p.npair, 3200);
    assert_int_equal(plan_worst(&p, a, 100, 2, 32, 4, true), OK);
    assert_int_equal(p.nsend, 200);
    assert_int_equal(p.nrecv, 200);
    assert_int_equal(p.npair, 200);
    assert_int_equal(plan_worst(&p, a, 100, 8, 1, 16, false), OK);
    assert_int_equal(p.nsend, 800);
    assert_int_equal(p.nrecv, 1600);
    assert_int_equal(p.npair, 1600);
    assert_int_equal(p.off_rank_send, 800);
    arena_destroy(&a);
}

static void test_shards(void **state) {
    (void)state;
    for (int n = 1; n <= 9; n++) {
        enum { N = 24 };
        int64_t rows[N], cols[N], load[9] = {0}, total = 0, small_max = 0;
        ShardRange out[N * 9];
        for (int i = 0; i < N; i++) {
            rows[i] = i % 3 == 0 ? draw(3, (uint64_t)i) % 200 : draw(4, (uint64_t)i) % 6000;
            cols[i] = 1 + draw(5, (uint64_t)i) % 300;
        }
        rows[5] = 0;
        if (n % 2 == 0)
            rows[N - 1] = 100; // the last tensor whole, or cut
        else
            rows[N - 1] = 128 * 9 + 1;
        memset(out, 0x55, sizeof out);
        plan_shards(out, rows, cols, N, n);
        for (int i = 0; i < N; i++) {
            int64_t nblocks = (rows[i] + 127) / 128;
            const ShardRange *s = out + i * n;
            if (nblocks >= n) {
                int64_t next = 0;
                for (int r = 0; r < n; r++) {
                    assert_int_equal(s[r].row0, next);
                    assert_int_equal(s[r].row0, r * nblocks / n * 128);
                    next += s[r].nrows;
                    assert_true(next == rows[i] || next % 128 == 0);
                    int64_t blocks = (s[r].nrows + 127) / 128;
                    assert_in_range(blocks, nblocks / n, nblocks / n + 1);
                    load[r] += s[r].nrows * cols[i];
                }
                assert_int_equal(next, rows[i]);
            } else {
                int least = 0; // independent search of the owner
                for (int r = n - 1; r >= 0; r--) {
                    if (load[r] <= load[least]) least = r;
                }
                for (int r = 0; r < n; r++) {
                    assert_int_equal(s[r].nrows, r == least ? rows[i] : 0);
                    assert_int_equal(s[r].row0, 0);
                }
                load[least] += rows[i] * cols[i];
                small_max = max_i64(small_max, rows[i] * cols[i]);
            }
            total += rows[i] * cols[i];
        }
        int64_t lo = load[0], hi = load[0], sum = 0;
        for (int r = 0; r < n; r++) {
            lo = min_i64(lo, load[r]);
            hi = max_i64(hi, load[r]);
            sum += load[r];
        }
        assert_int_equal(sum, total);
        assert_true(hi - lo <= total / n + small_max);
    }
    int64_t row = 1, col = 1;
    ShardRange one = {5, 5};
    plan_shards(&one, &row, &col, 1, 1);
    assert_int_equal(one.row0, 0);
    assert_int_equal(one.nrows, 1);
    plan_shards(&one, NULL, NULL, 0, 1);
}

// Many equal small tensors end evenly spread.
static void test_shards_balance(void **state) {
    (void)state;
    enum { N = 80, R = 8 };
    int64_t rows[N], cols[N], load[R] = {0};
    static ShardRange out[N * R];
    for (int i = 0; i < N; i++) {
        rows[i] = 256;
        cols[i] = 10;
    }
    plan_shards(out, rows, cols, N, R);
    for (int i = 0; i < N * R; i++) load[i % R] += out[i].nrows * 10;
    for (int r = 0; r < R; r++) assert_int_equal(load[r], N / R * 2560);
}

static void test_mesh(void **state) {
    (void)state;
    Mesh m;
    for (int world = 1; world <= 12; world++) {
        for (int ep = 1; ep <= world; ep++) {
            for (int rank = 0; rank < world; rank++) {
                Err err = mesh_build(&m, world, rank, ep);
                assert_int_equal(err, world % ep == 0 ? OK : E_CONFIG);
                if (err != OK) continue;
                assert_int_equal(m.dp_rank * m.ep + m.ep_rank, rank);
                assert_int_equal(m.dp * m.ep, world);
                assert_true(m.ep_rank < m.ep && m.dp_rank < m.dp);
                int64_t first = -1, n = -1;
                assert_int_equal(mesh_experts(&m, 3 * ep, &first, &n), OK);
                assert_int_equal(n, 3);
                assert_int_equal(first, 3 * (rank % ep));
            }
        }
    }
    assert_int_equal(mesh_build(&m, 4, 0, 3), E_CONFIG);
    assert_non_null(strstr(fail_message(), "parallel.ep (3) does not divide the world (4)"));
    assert_non_null(strstr(fail_message(), "1, 2, 4"));
    assert_int_equal(mesh_build(&m, 4, 0, 8), E_CONFIG);
    assert_non_null(strstr(fail_message(), "parallel.ep (8) does not divide the world (4)"));
    assert_int_equal(mesh_build(&m, 4, 0, 0), E_CONFIG);
    assert_int_equal(mesh_build(&m, 4, 0, -2), E_CONFIG);
    assert_non_null(strstr(fail_message(), "(-2)"));
    assert_int_equal(mesh_build(&m, 4, 4, 1), E_INTERNAL);
    assert_int_equal(mesh_build(&m, 4, 0, 4), OK);
    int64_t first, n;
    assert_int_equal(mesh_experts(&m, 6, &first, &n), E_CONFIG);
    assert_non_null(
        strstr(fail_message(), "parallel.ep (4) does not divide model.n_routed_experts (6)"));
    assert_int_equal(mesh_experts(&m, 0, &first, &n), E_CONFIG);
    fail_clear();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan_brute_force), cmocka_unit_test(test_plan_refuses),
        cmocka_unit_test(test_plan_worst),       cmocka_unit_test(test_shards),
        cmocka_unit_test(test_shards_balance),   cmocka_unit_test(test_mesh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
