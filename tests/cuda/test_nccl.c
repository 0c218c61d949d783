// test_nccl.c - groups of ranks with memory of devices (parallel/comm_nccl.c), over the NCCL on the CPU, on real ranks:
// the bytes of the MPI table, in the order of the device's work; what is lost or wrong is E_PEER within the time limit.
//
// Messages begin late and overwrite what they receive with 0xFF when they begin, so that a missing wait shows.
#include <math.h>

#include "arena.h"
#include "device.h"
#include "log.h"
#include "nccl_on_cpu.h"
#include "ops.h"
#include "rank_tests.h"
#include "zero.h"

void runtime_on_cpu_place(const char *name);
uint64_t runtime_on_cpu_blocks(void);

enum { ROOM = 1 << 20, MOST = 16 };
static const Device *dev;
static char *on_device[4]; // ROOM bytes each

// connect: groups of ep ranks, with their tables for the device.
static void connect(int ep, double limit) {
    char why[256];
    boot_devices_finish(&boot);
    groups(ep);
    MUST(boot_devices(&boot, "nccl", limit, why, sizeof why));
}

static void fill(uint8_t *p, int64_t bytes, uint64_t seed) {
    for (int64_t i = 0; i < bytes; i++) p[i] = (uint8_t)(draw(seed, (uint64_t)i / 4) >> (i % 4 * 8));
}

// Sizes that rank `from` sends to rank `to` in round i, in rows; nothing now and then.
static int64_t rows_of(int i, int from, int to) {
    uint32_t x = draw(900 + (uint64_t)i, (uint64_t)(from * 64 + to));
    return x % 5 == 0 ? 0 : x % 300;
}

// A round's arrays, for both tables.
typedef struct Round {
    int64_t rcount[MOST], roff[MOST], scount[MOST], soff[MOST], in, out;
    uint8_t *send, *want;
} Round;

static void round_make(Round *r, Comm *c, int i, int64_t row) {
    r->in = r->out = 0;
    for (int p = 0; p < c->nranks; p++) {
        r->scount[p] = rows_of(i, c->world_rank, p);
        r->rcount[p] = rows_of(i, c->world_rank - c->rank + p, c->rank); // groups of neighbours
        r->soff[p] = r->out;
        r->roff[p] = r->in;
        r->out += r->scount[p];
        r->in += r->rcount[p];
    }
    EXPECT(r->in * row <= ROOM && r->out * row <= ROOM);
    r->send = zeroed(r->out * row);
    r->want = zeroed(r->in * row);
    fill(r->send, r->out * row, (uint64_t)(i * 64 + c->world_rank));
    MUST(c->all_to_all_v(c, r->want, r->rcount, r->roff, r->send, r->scount, r->soff, (size_t)row));
}

static void round_free(Round *r) {
    free(r->send);
    free(r->want);
}

static void check_bytes(const void *device, const uint8_t *want, int64_t bytes) {
    uint8_t *have = zeroed(bytes);
    MUST(dev->to_host(have, device, (size_t)bytes));
    EXPECT(memcmp(have, want, (size_t)bytes) == 0);
    free(have);
}

// rows: all-to-alls of odd rows and sizes, at once and as several requests under way, in two groups, while the device
// works on; what they read is written by work issued just before, and their results are copied right behind the wait.
static void rows(void) {
    for (int ep = 1; ep <= boot.nranks; ep *= 2) {
        connect(ep, 60);
        Comm *groups_here[] = {boot.world, boot.ep};
        for (int i = 0; i < 12; i++) {
            Comm *c = groups_here[i % 2];
            if (c->nranks == 1 || c->world_rank - c->rank + c->nranks > boot.nranks) continue;
            Comm *d = comm_rows(c);
            EXPECT(d != c && d->is_device && d->nranks == c->nranks && d->rank == c->rank);
            int64_t row = 1 + (int64_t)(draw(77, (uint64_t)i) % 97);
            Round r[2];
            int request[2] = {-1, -1};
            for (int k = 0; k < 2; k++) {
                round_make(&r[k], c, i * 2 + k, row);
                MUST(dev->to_device(on_device[2 * k], r[k].send, (size_t)(r[k].out * row)));
                MUST(comm_start_all_to_all_v(d, &request[k], on_device[2 * k + 1], r[k].rcount, r[k].roff,
                                             on_device[2 * k], r[k].scount, r[k].soff, (size_t)row));
                MUST(comm_progress(d));
            }
            for (int k = 1; k >= 0; k--) {
                MUST(comm_wait(d, &request[k]));
                // Behind the wait: the sent rows may be overwritten, the received ones read.
                MUST(dev->copy(on_device[2 * k], on_device[2 * k + 1], (size_t)(r[k].in * row)));
            }
            for (int k = 0; k < 2; k++) {
                check_bytes(on_device[2 * k], r[k].want, r[k].in * row);
                round_free(&r[k]);
            }
        }
    }
}

// whole: the other functions of the table.
static void whole(void) {
    connect(boot.nranks, 60);
    Comm *c = boot.world, *d = comm_rows(c);
    int64_t bytes = 3001, all = bytes * c->nranks;
    uint8_t *send = zeroed(all), *want = zeroed(all);
    fill(send, all, 5 + (uint64_t)c->rank);
    MUST(dev->to_device(on_device[0], send, (size_t)all));
    MUST(c->all_gather(c, want, send, (size_t)bytes));
    MUST(d->all_gather(d, on_device[1], on_device[0], (size_t)bytes));
    check_bytes(on_device[1], want, all);
    MUST(dev->copy(on_device[2] + c->rank * bytes, on_device[0], (size_t)bytes)); // in place
    MUST(d->all_gather(d, on_device[2], on_device[2] + c->rank * bytes, (size_t)bytes));
    check_bytes(on_device[2], want, all);
    MUST(c->all_to_all(c, want, send, (size_t)bytes));
    MUST(d->all_to_all(d, on_device[1], on_device[0], (size_t)bytes));
    check_bytes(on_device[1], want, all);
    for (int root = 0; root < c->nranks; root++) {
        fill(want, bytes, 5 + (uint64_t)root);
        MUST(dev->copy(on_device[3], on_device[0], (size_t)bytes));
        MUST(d->broadcast(d, on_device[3], (size_t)bytes, root));
        check_bytes(on_device[3], want, bytes);
    }
    MUST(d->barrier(d));
    double x = 1;
    EXPECT(comm_sum(d, &x, 1) == E_INTERNAL);
    fail_clear();
    free(send);
    free(want);
}

// beside: work between fork and unfork runs on the group's stream, in order, and is there after join; the host waits
// for none of it.
static void beside(void) {
    connect(boot.nranks, 60);
    Comm *c = boot.world, *d = comm_rows(c);
    Round r;
    round_make(&r, c, 50, 64);
    nccl_on_cpu_late(20000);
    MUST(dev->to_device(on_device[0], r.send, (size_t)(r.out * 64)));
    int64_t waits = device_cuda_waits();
    uint64_t blocks = runtime_on_cpu_blocks();
    MUST(d->fork(d));
    MUST(dev->copy(on_device[1], on_device[0], (size_t)(r.out * 64)));
    MUST(d->all_to_all_v(d, on_device[2], r.rcount, r.roff, on_device[1], r.scount, r.soff, 64));
    MUST(dev->copy(on_device[3], on_device[2], (size_t)(r.in * 64)));
    MUST(d->unfork(d));
    MUST(dev->zero(on_device[0], (size_t)(r.out * 64) / 2)); // the device's own stream goes on beside it
    MUST(d->join(d));
    MUST(dev->copy(on_device[0], on_device[3], (size_t)(r.in * 64)));
    EXPECT(device_cuda_waits() == waits && runtime_on_cpu_blocks() == blocks);
    check_bytes(on_device[0], r.want, r.in * 64);
    EXPECT(device_cuda_waits() == waits + 1 && runtime_on_cpu_blocks() == blocks + 1);
    nccl_on_cpu_late(300);
    round_free(&r);
}

// late: nothing has arrived when the start returns, and the host can tell.
static void late(void) {
    connect(boot.nranks, 60);
    Comm *c = boot.world, *d = comm_rows(c);
    int64_t one[MOST], off[MOST];
    for (int p = 0; p < MOST; p++) one[p] = 1, off[p] = p;
    bool is_complete = true;
    int request = -1;
    MUST(c->barrier(c));
    nccl_on_cpu_late(0);
    if (c->rank == 0) MUST(dev->zero(on_device[1], 8 * MOST));
    MUST(dev->zero(on_device[0], 8 * MOST));
    if (c->rank > 0) MUST(comm_start_all_to_all_v(d, &request, on_device[1], one, off, on_device[0], one, off, 8));
    // Rank 0 has not started yet: nobody is complete, however long they wait.
    if (c->rank > 0) MUST(comm_test(d, request, &is_complete));
    EXPECT(c->rank == 0 || !is_complete);
    MUST(c->barrier(c));
    if (c->rank == 0) MUST(comm_start_all_to_all_v(d, &request, on_device[1], one, off, on_device[0], one, off, 8));
    MUST(comm_wait(d, &request));
    uint8_t zeros[8 * MOST] = {0};
    check_bytes(on_device[1], zeros, 8 * c->nranks);
    nccl_on_cpu_late(300);
}

// ---- gradients and parameters -----------------------------------------------------------------

enum { NT = 7 };

// A few tensors, of some blocks of rows and of less than one, with gradients of this rank's own and parameters of
// which only own rows are right yet.
typedef struct Tensors {
    ZeroTensor t[NT];
    ShardRange range[NT * MOST];
} Tensors;

static Err sum_on_device(void *user, float *y, const float *own, int64_t own_at, const float *parts, int64_t stride,
                         int64_t nparts, int64_t n) {
    return parts_sum_cuda(user, y, own, own_at, parts, stride, nparts, n);
}

static void tensors_make(Tensors *a, int param_bytes, bool is_on_device) {
    static const int64_t rows[NT] = {1, 640, 5, 1300, 129, 0, 256}, cols[NT] = {37, 24, 512, 3, 64, 9, 1};
    int n = boot.nranks;
    plan_shards(a->range, rows, cols, NT, n);
    for (int i = 0; i < NT; i++) {
        ZeroTensor *t = &a->t[i];
        const ShardRange *own = &a->range[i * n + boot.rank];
        int64_t size = rows[i] * cols[i], row = cols[i] * param_bytes;
        float *grad = zeroed(size * 4);
        uint8_t *param = zeroed(rows[i] * row);
        for (int64_t j = 0; j < size; j++)
            grad[j] = ldexpf((float)(int32_t)draw(40 + (uint64_t)(i * 8 + boot.rank), (uint64_t)j), (int)(j % 9) - 40);
        fill(param + own->row0 * row, own->nrows * row, (uint64_t)(i * 8 + boot.rank));
        *t = (ZeroTensor){rows[i], cols[i], a->range + i * n, grad, NULL, param, param_bytes};
        if (is_on_device) {
            MUST(dev->alloc((void **)&t->grad, (size_t)size * 4, "gradient"));
            MUST(dev->alloc(&t->param, (size_t)(rows[i] * row), "parameter"));
            MUST(dev->to_device(t->grad, grad, (size_t)size * 4));
            MUST(dev->to_device(t->param, param, (size_t)(rows[i] * row)));
            free(grad);
            free(param);
        }
        t->grad_shard = t->grad + own->row0 * cols[i];
    }
}

// zero: reductions and gatherings in small and large buckets, at once and fed step by step: the bits of those through
// the host, and no wait.
static void zero(void) {
    Arena *host = NULL, *rows = NULL;
    OpCx op = {0};
    connect(boot.nranks, 60);
    MUST(arena_create(&host, "scratch", (size_t)16 << 20, false));
    MUST(arena_create_on(&rows, dev, "rows", (size_t)1 << 20, false));
    ZeroRows on = {rows, sum_on_device, &op};
    const size_t buckets[] = {1, 5000, 200000};
    for (int k = 0; k < 6; k++) {
        static Tensors a, b;
        size_t bucket = buckets[k / 2];
        int bytes = k % 2 ? 2 : 4;
        tensors_make(&a, bytes, true);
        tensors_make(&b, bytes, false);
        int64_t waits = device_cuda_waits(), mark = (int64_t)arena_mark(host);
        Zero z;
        MUST(zero_start(&z, boot.world, dev, a.t, NT, false, host, bucket, &on));
        EXPECT(arena_mark(rows) > 0 && arena_mark(rows) <= zero_rows_bytes(boot.nranks, 512 * 4, bucket));
        for (int i = 0; i <= NT; i++) {
            zero_ready(&z, i);
            MUST(zero_advance(&z));
        }
        MUST(zero_end(&z));
        MUST(zero_gather(boot.world, dev, a.t, NT, host, bucket, &on));
        EXPECT(device_cuda_waits() == waits);
        EXPECT(arena_mark(rows) == 0 && (int64_t)arena_mark(host) == mark);
        Comm *device = boot.world->on_device;
        boot.world->on_device = NULL; // the same ranks through the host
        MUST(zero_reduce(boot.world, device_cpu(), b.t, NT, host, bucket, NULL));
        MUST(zero_gather(boot.world, device_cpu(), b.t, NT, host, bucket, NULL));
        boot.world->on_device = device;
        for (int i = 0; i < NT; i++) {
            const ShardRange *own = &a.range[i * boot.nranks + boot.rank];
            check_bytes(a.t[i].grad_shard, (const uint8_t *)b.t[i].grad_shard, own->nrows * a.t[i].cols * 4);
            check_bytes(a.t[i].param, b.t[i].param, a.t[i].rows * a.t[i].cols * bytes);
            dev->release(a.t[i].grad);
            dev->release(a.t[i].param);
            free(b.t[i].grad);
            free(b.t[i].param);
        }
    }
    Zero z;
    static Tensors a;
    tensors_make(&a, 2, false);
    EXPECT(zero_start(&z, boot.world, dev, a.t, NT, true, host, 1000, NULL) == E_INTERNAL);
    fail_clear();
    arena_destroy(&host);
    arena_destroy(&rows);
}

// refuses: who cannot use NCCL is told, or goes through the host.
static void refuses(void) {
    char why[256] = "x";
    boot_devices_finish(&boot);
    groups(boot.nranks);
    runtime_on_cpu_place("shared");
    EXPECT(boot_devices(&boot, "nccl", 60, why, sizeof why) == E_CONFIG);
    EXPECT(strstr(fail_message(), "ranks 0 and 1 share one GPU (shared:0 on ") != NULL);
    fail_clear();
    MUST(boot_devices(&boot, "auto", 60, why, sizeof why));
    EXPECT(strstr(why, "share one GPU") && !boot.world->on_device && comm_rows(boot.ep) == boot.ep);
    runtime_on_cpu_place("");
    nccl_on_cpu_version(22512);
    MUST(boot_devices(&boot, "auto", 60, why, sizeof why));
    EXPECT(strstr(why, "NCCL is 22512: before 2.26") && !boot.world->on_device);
    nccl_on_cpu_version(0);
    MUST(boot_devices(&boot, "mpi", 60, why, sizeof why));
    EXPECT(!why[0] && !boot.world->on_device);
    MUST(boot_devices(&boot, "auto", 60, why, sizeof why));
    EXPECT(!why[0] && boot.world->on_device && boot.ep->on_device && !boot.edp->on_device);
    EXPECT(strcmp(boot_nccl_version(), "") != 0);
}

// ---- faults -----------------------------------------------------------------------------------

// exchange_once: every rank sends each other one row; what the wait for the device says. The sizes of rank 0's rows
// can differ from what the others expect.
static Err exchange_once(Comm *d, int64_t extra) {
    int64_t rcount[MOST], scount[MOST], off[MOST];
    uint8_t host[8];
    int request = -1;
    for (int p = 0; p < MOST; p++) {
        rcount[p] = scount[p] = 16;
        if (d->rank == 0 && p != 0) scount[p] += extra;
        off[p] = p * 32;
    }
    MUST(dev->zero(on_device[0], ROOM));
    TRY(comm_start_all_to_all_v(d, &request, on_device[1], rcount, off, on_device[0], scount, off, 1));
    TRY(comm_wait(d, &request));
    return dev->to_host(host, on_device[1], sizeof host);
}

// given_up: after a fault of one group nothing works on devices any more, and nothing hangs; new groups do.
static void given_up(void) {
    Comm *d = comm_rows(boot.world);
    EXPECT(exchange_once(d, 0) == E_PEER);
    fail_clear();
    double start = now_seconds();
    boot_devices_finish(&boot);
    MUST(dev->sync());
    EXPECT(now_seconds() - start < 20);
    MUST(boot.world->barrier(boot.world));
    connect(boot.nranks, 60);
    MUST(exchange_once(comm_rows(boot.world), 0));
}

// An error that NCCL reports while the host waits.
static void async_error(void) {
    connect(boot.nranks, 60);
    MUST(exchange_once(comm_rows(boot.world), 0));
    nccl_on_cpu_fail(0, 0);
    double start = now_seconds();
    EXPECT(exchange_once(comm_rows(boot.world), 0) == E_PEER);
    EXPECT(strstr(fail_message(), "comm world") && strstr(fail_message(), "a link broke"));
    EXPECT(now_seconds() - start < 20);
    fail_clear();
    given_up();
}

// A rank that does not come: the others give up after the limit, whether NCCL notices or not.
static void stands_still(void) {
    connect(boot.nranks, 1.0);
    nccl_on_cpu_is_blind(1);
    int last = boot.nranks - 1;
    if (boot.rank != last) {
        double start = now_seconds();
        EXPECT(exchange_once(comm_rows(boot.world), 0) == E_PEER);
        EXPECT(strstr(fail_message(), "for more than 1 seconds: a rank was lost or stands still") != NULL);
        double took = now_seconds() - start;
        EXPECT(took >= 1.0 && took < 20);
        fail_clear();
    }
    MUST(boot.world->barrier(boot.world));
    if (boot.rank == last) { // now it finds the others gone
        nccl_on_cpu_is_blind(0);
        EXPECT(exchange_once(comm_rows(boot.world), 0) == E_PEER);
        EXPECT(strstr(fail_message(), "is gone") != NULL);
        fail_clear();
    }
    nccl_on_cpu_is_blind(0);
    MUST(boot.world->barrier(boot.world));
    given_up();
}

// A rank that never makes its part of a group.
static void never_connects(void) {
    char why[256];
    boot_devices_finish(&boot);
    groups(boot.nranks);
    int last = boot.nranks - 1;
    nccl_on_cpu_refuse(boot.rank == last);
    Err err = boot_devices(&boot, "nccl", 1.0, why, sizeof why);
    EXPECT(err == E_PEER);
    fail_clear();
    nccl_on_cpu_refuse(0);
    EXPECT(!boot.world->on_device);
    connect(boot.nranks, 60);
    MUST(exchange_once(comm_rows(boot.world), 0));
}

// Ranks that disagree about sizes: the double says so, and it is an error, not a hang.
static void wrong_sizes(void) {
    connect(boot.nranks, 2.0);
    int64_t mistakes = nccl_on_cpu_mistakes();
    EXPECT(exchange_once(comm_rows(boot.world), 3) == E_PEER);
    EXPECT(boot.rank == 0 || nccl_on_cpu_mistakes() > mistakes);
    fail_clear();
    MUST(boot.world->barrier(boot.world));
    given_up();
}

// No test before this one has used NCCL wrongly.
static void no_mistakes(void) {
    EXPECT(nccl_on_cpu_mistakes() == 0);
    EXPECT(nccl_on_cpu_operations() > 0);
}

int main(void) {
    const RankTest tests[] = {
        {"rows", rows},
        {"whole", whole},
        {"beside", beside},
        {"late", late},
        {"zero", zero},
        {"refuses", refuses},
        {"async_error", async_error},
        {"stands_still", stands_still},
        {"never_connects", never_connects},
        {"no_mistakes", no_mistakes},
        {"wrong_sizes", wrong_sizes},
    };
    MUST(boot_init(&boot));
    MUST(device_cuda_open(&dev, 0));
    for (int i = 0; i < 4; i++) MUST(dev->alloc((void **)&on_device[i], ROOM, "test"));
    int failed = rank_tests_run(tests, (int)(sizeof tests / sizeof *tests));
    for (int i = 0; i < 4; i++) dev->release(on_device[i]);
    boot_devices_finish(&boot);
    device_cuda_close();
    boot_finish(&boot);
    return failed;
}
