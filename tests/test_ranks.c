// test_ranks.c - the rank layer on real ranks: booting, collectives against everybody's data, sums
// in one order on all ranks, agreement on errors, and the sharded optimizer's reduce and gather.
#include "rank_tests.h"
#include "zero.h"

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
typedef struct Ragged {
    int64_t sc[64], so[64], rc[64], ro[64]; // counts and offsets, both ways
    int64_t bytes;                          // of dst
    uint8_t *src, *dst, *want;
} Ragged;

static void ragged_make(Ragged *x, const Comm *c, int64_t row, uint64_t seed) {
    int64_t stotal = 0, rtotal = 0;
    for (int r = 0; r < c->nranks; r++) {
        x->sc[r] = rows_of(c->rank, r, seed);
        x->rc[r] = rows_of(r, c->rank, seed);
        x->so[r] = stotal + 1;
        x->ro[r] = rtotal + 2;
        stotal += x->sc[r] + 1;
        rtotal += x->rc[r] + 2;
    }
    x->bytes = rtotal * row;
    x->src = zeroed(stotal * row);
    x->dst = zeroed(rtotal * row);
    x->want = zeroed(rtotal * row);
    for (int r = 0; r < c->nranks; r++) {
        for (int64_t i = 0; i < x->sc[r] * row; i++) x->src[x->so[r] * row + i] = byte_of(c->rank, r, i);
        for (int64_t i = 0; i < x->rc[r] * row; i++) x->want[x->ro[r] * row + i] = byte_of(r, c->rank, i);
    }
}

static void ragged_check(Ragged *x) {
    EXPECT(memcmp(x->dst, x->want, (size_t)x->bytes) == 0);
    free(x->src);
    free(x->dst);
    free(x->want);
}

static void ragged(Comm *c, int64_t row, uint64_t seed) {
    Ragged x;
    ragged_make(&x, c, row, seed);
    MUST(c->all_to_all_v(c, x.dst, x.rc, x.ro, x.src, x.sc, x.so, (size_t)row));
    ragged_check(&x);
}

static Err ragged_start(Comm *c, Ragged *x, int *request, int64_t row) {
    return comm_start_all_to_all_v(c, request, x->dst, x->rc, x->ro, x->src, x->sc, x->so, (size_t)row);
}

// several: a full table of requests of all sizes, waited for in some order, with other calls of the group between.
static void several(Comm *c, uint64_t seed) {
    static const int64_t rows[] = {1, 132, 0, 7, 4096, 2, 33, 1000};
    static Ragged x[COMM_REQUESTS];
    int request[COMM_REQUESTS], none = -1;
    for (int i = 0; i < COMM_REQUESTS; i++) {
        int64_t row = rows[(i + (int)seed) % 8];
        ragged_make(&x[i], c, row, seed * 100 + (uint64_t)i);
        MUST(ragged_start(c, &x[i], &request[i], row));
        if (i % 3 == 1) ragged(c, 5, seed + (uint64_t)i); // a blocking one overtakes them
        if (i % 3 == 2) MUST(comm_progress(c));
    }
    EXPECT(ragged_start(c, &x[0], &none, 1) == E_INTERNAL); // no place left
    EXPECT(none == -1 && comm_wait(c, &none) == E_INTERNAL);
    fail_clear();
    bool is_done[COMM_REQUESTS] = {false};
    for (int n = 0; n < COMM_REQUESTS; n++) {
        int i = (int)(draw(2000 + seed, (uint64_t)n) % COMM_REQUESTS);
        while (is_done[i]) i = (i + 1) % COMM_REQUESTS;
        is_done[i] = true;
        int was = request[i];
        MUST(comm_wait(c, &request[i]));
        EXPECT(request[i] == -1);
        EXPECT(comm_wait(c, &was) == E_INTERNAL);
        fail_clear();
        ragged_check(&x[i]);
        if (n % 2 == 0) blocks(c, 9);
    }
}

static void test_requests(void) {
    for (int ep = 1; ep <= boot.nranks; ep++) {
        if (boot.nranks % ep != 0) continue;
        groups(ep);
        Comm *list[] = {boot.world, boot.ep, boot.edp};
        int64_t before = mem_count();
        for (int g = 0; g < 3; g++) {
            Comm *c = list[g];
            int64_t normal = c->round_bytes;
            for (uint64_t seed = 0; seed < 6; seed++) {
                c->round_bytes = seed % 3 == 0 ? normal : seed % 3 == 1 ? 997 : 64; // one round; several; many
                several(c, seed + (uint64_t)(10 * ep + g));
            }
            c->round_bytes = normal;
        }
        EXPECT(mem_count() == before);
    }
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

// Integers that wrap around, by the backend's own reduction and by gathering: the same.
static void integers_both_ways(Comm *c) {
    enum { N = 3000 };
    Err (*reduce)(Comm *c, int64_t *x, int n, bool is_max) = c->reduce_i64;
    EXPECT(c->nranks == 1 || reduce);
    int64_t *x = zeroed(2 * N * 8);
    for (int way = 0; way < 2; way++) {
        int64_t *v = x + way * N;
        for (int i = 0; i < N; i++) {
            uint64_t high = draw(41, (uint64_t)(i * 64 + boot.rank));
            v[i] = (int64_t)(high << 32 | draw(42, (uint64_t)(i * 64 + boot.rank)));
        }
        c->reduce_i64 = way == 0 ? reduce : NULL;
        MUST(comm_sum_i64(c, v, 2 * N / 3));
        MUST(comm_max_i64(c, v + 2 * N / 3, N / 3));
        MUST(comm_sum_i64(c, v, 0));
    }
    c->reduce_i64 = reduce;
    EXPECT(memcmp(x, x + N, N * 8) == 0);
    free(x);
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
    for (int ep = 1; ep <= boot.nranks; ep++) {
        if (boot.nranks % ep != 0) continue;
        groups(ep);
        integers_both_ways(boot.world);
        integers_both_ways(boot.ep);
        integers_both_ways(boot.edp);
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

// zero_stepwise: the same as zero_reduce, fed as a backward does it: a few tensors, some of them empty, at a time.
static void zero_stepwise(Comm *g, const ZeroTensor *t, size_t bucket, Arena *scratch) {
    Zero z;
    MUST(zero_start(&z, g, device_cpu(), t, NT, false, scratch, bucket, NULL));
    for (int64_t n = 0; n < NT; n += draw(33, (uint64_t)n) % 3) {
        zero_ready(&z, n);
        for (uint32_t i = draw(35 + (uint64_t)g->rank, (uint64_t)n) % 4; i > 0; i--) MUST(zero_advance(&z));
        if (n % 2) MUST(g->barrier(g)); // other calls of the group may come between
        n++;
    }
    MUST(zero_end(&z));
}

static void zero_case(Comm *g, const int *members, size_t bucket, bool is_alias, bool is_stepwise,
                      Arena *scratch) {
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
    if (is_stepwise) zero_stepwise(g, t, bucket, scratch);
    else MUST(zero_reduce(g, device_cpu(), t, NT, scratch, bucket, NULL));
    MUST(zero_gather(g, device_cpu(), t, NT, scratch, bucket, NULL));
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
            for (int how = 0; how < 4; how++)
                zero_case(boot.edp, members, buckets[b], how % 2 == 0, how / 2 == 0, scratch);
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
    MUST(zero_reduce(null, device_null(), t, NT, measure, 20000, NULL));
    MUST(zero_gather(null, device_null(), t, NT, measure, 20000, NULL));
    arena_reset_high(scratch);
    groups(1);
    int all[64];
    for (int r = 0; r < boot.nranks; r++) all[r] = r;
    zero_case(boot.edp, all, 20000, true, false, scratch);
    EXPECT(arena_high(scratch) == arena_high(measure));
    t[2].param_bytes = 3;
    EXPECT(boot.nranks == 1 || zero_gather(boot.world, device_cpu(), t, NT, scratch, 1000, NULL) == E_INTERNAL);
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
    // All ranks here may use the same cores (bound to none), or each has its own.
    double cores = boot.cores;
    MUST(comm_sum(boot.world, &cores, 1));
    EXPECT(boot.cores > 0.0 && boot.cores <= boot_cores() + 1e-6);
    EXPECT(fabs(cores - boot_cores()) < 1e-6 || fabs(boot.cores - boot_cores()) < 1e-6);
    EXPECT(boot_threads(&boot, 7) == 7);
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

static const RankTest tests[] = {{"test_boot", test_boot},
                                 {"test_comm", test_comm},
                                 {"test_requests", test_requests},
                                 {"test_sums", test_sums},
                                 {"test_agree", test_agree},
                                 {"test_zero", test_zero}};

int main(void) {
    MUST(boot_init(&boot));
    int failed = rank_tests_run(tests, sizeof tests / sizeof *tests);
    boot_finish(&boot);
    return failed ? 1 : 0;
}
