// comm_nccl.c - groups of ranks whose GPUs exchange memory directly, over NCCL.
//
// What is small and the host's (counts, metadata, sums, agreement, the identity of the groups) stays with MPI, which
// is there anyway and whose calls return in the order they were made; what is large and the device's goes here. A
// reduction is an all-to-all of pieces and a sum in rank order on the device (zero.c), as everywhere in this program:
// NCCL's own reductions choose their order by algorithm and message size, so they promise no bits. All-to-alls are
// grouped sends and receives.
//
// Each group has a stream. A call first makes it wait for the device's stream as it is now, and comm_wait makes the
// device's stream wait for the call, so that what is computed in between runs beside the transfer. Every rank issues
// the operations of all groups in one order, that of the program, because nothing here depends on what has arrived, and
// NCCL begins them in that order (boot.c): both are what it asks of several communicators on one device.
//
// No call hangs. Communicators are non-blocking: whatever NCCL has to do on the host is polled for, with a time limit.
// What the host waits for later (device_cuda.c) is looked after from there: an error that NCCL found, or a wait beyond
// the limit with messages under way, aborts the communicators of all groups; their kernels end, the wait returns
// E_PEER, and the job ends (boot_abort).
#include "comm_nccl.h"

#include <nccl.h>
#include <sched.h>
#include <string.h>

#include "arena.h"
#include "device.h"
#include "log.h"

enum { BLOCKING = COMM_REQUESTS, EVENTS }; // the last is the blocking calls'

typedef struct NcclGroup {
    Comm *host; // the same ranks, for memory of the host
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t before;       // of the device's stream
    cudaEvent_t done[EVENTS]; // of the group's, behind a request
    void *outer;              // the stream in use before fork; NULL: not forked
    double limit;             // seconds
    bool is_broken;           // the communicator was aborted
    int64_t issued;           // operations so far, for messages
} NcclGroup;

#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t cuda_ = (call);                                                                \
        CHECK(cuda_ == cudaSuccess, E_PEER, "%s: %s", #call, cudaGetErrorString(cuda_));           \
    } while (0)
#define TRY_NCCL(c, call) TRY(finish_call((c), (call), #call))

// drop: abort the communicator: its kernels end, nothing more is sent.
static void drop(void *user) {
    NcclGroup *g = user;
    if (g->comm && !g->is_broken) ncclCommAbort(g->comm);
    g->is_broken = true;
}

// lost: what is known of a failure of NCCL's.
static Err lost(Comm *c, const char *call, ncclResult_t rc) {
    NcclGroup *g = c->impl;
    const char *more = g->comm && !g->is_broken ? ncclGetLastError(g->comm) : NULL;
    char text[256];
    snprintf(text, sizeof text, "%s", more ? more : "");
    drop(g);
    FAIL(E_PEER, "comm %s: %.*s, operation %lld: %s%s%s", c->name, (int)strcspn(call, "("), call,
         (long long)g->issued, ncclGetErrorString(rc), text[0] ? ": " : "", text);
}

// finish_call: the result of a call of NCCL that goes on by itself, with the time limit.
static Err finish_call(Comm *c, ncclResult_t rc, const char *call) {
    NcclGroup *g = c->impl;
    double start = now_seconds();
    while (rc == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(g->comm, &rc);
        if (asked != ncclSuccess) rc = asked;
        if (rc != ncclInProgress) break;
        if (now_seconds() - start > g->limit) {
            drop(g);
            FAIL(E_PEER, "comm %s: %.*s, operation %lld: other ranks of the group did not answer within %g seconds",
                 c->name, (int)strcspn(call, "("), call, (long long)g->issued, g->limit);
        }
        sched_yield();
    }
    return rc == ncclSuccess ? OK : lost(c, call, rc);
}

// look: see DeviceWatch. A long computation of one rank is no fault as long as no message waits for it.
static Err look(void *user, double waited) {
    Comm *c = user;
    NcclGroup *g = c->impl;
    ncclResult_t rc = ncclSuccess;
    CHECK(!g->is_broken, E_PEER, "comm %s: given up after an earlier error", c->name);
    ncclResult_t asked = ncclCommGetAsyncError(g->comm, &rc);
    if (asked != ncclSuccess) rc = asked;
    if (rc != ncclSuccess && rc != ncclInProgress) return lost(c, "message between GPUs", rc);
    if (waited <= g->limit || cudaStreamQuery(g->stream) != cudaErrorNotReady) return OK;
    FAIL(E_PEER,
         "comm %s: a message between GPUs (operation %lld or an earlier one) is under way for more than %g seconds: a "
         "rank was lost or stands still",
         c->name, (long long)g->issued, g->limit);
}

static void drop_group(void *user) {
    drop(((Comm *)user)->impl);
}

// ---- streams ----------------------------------------------------------------------------------

static Err nccl_fork(Comm *c) {
    NcclGroup *g = c->impl;
    CHECK(!g->outer, E_INTERNAL, "comm %s: forked twice", c->name);
    TRY_CUDA(cudaEventRecord(g->before, (cudaStream_t)device_cuda_stream()));
    TRY_CUDA(cudaStreamWaitEvent(g->stream, g->before, 0));
    g->outer = device_cuda_use(g->stream);
    return OK;
}

static Err nccl_unfork(Comm *c) {
    NcclGroup *g = c->impl;
    device_cuda_use(g->outer);
    g->outer = NULL;
    return OK;
}

// wait_for: the device's stream waits for what event e stands behind.
static Err wait_for(Comm *c, int e) {
    NcclGroup *g = c->impl;
    TRY_CUDA(cudaStreamWaitEvent((cudaStream_t)device_cuda_stream(), g->done[e], 0));
    return OK;
}

static Err nccl_join(Comm *c) {
    NcclGroup *g = c->impl;
    TRY_CUDA(cudaEventRecord(g->done[BLOCKING], g->stream));
    TRY(wait_for(c, BLOCKING));
    return OK;
}

// ---- messages ---------------------------------------------------------------------------------

// The arguments of an all_to_all_v.
typedef struct Way {
    char *dst;
    const char *src;
    const int64_t *rcount, *roff, *scount, *soff;
    int64_t row;
} Way;

// is_fine: a call inside of a group may say that the communicator is still at work; the end of the group is polled for.
static bool is_fine(ncclResult_t rc) {
    return rc == ncclSuccess || rc == ncclInProgress;
}

// send_all: one group of sends and receives; partners in the order of comm_mpi.c. No message is empty.
static Err send_all(Comm *c, const Way *w) {
    NcclGroup *g = c->impl;
    int me = c->rank, n = c->nranks;
    ncclResult_t rc = ncclGroupStart();
    for (int s = 1; s < n; s++) {
        int from = (me - s + n) % n, to = (me + s) % n;
        if (w->rcount[from] > 0 && is_fine(rc))
            rc = ncclRecv(w->dst + w->roff[from] * w->row, (size_t)(w->rcount[from] * w->row), ncclUint8, from, g->comm,
                          g->stream);
        if (w->scount[to] > 0 && is_fine(rc))
            rc = ncclSend(w->src + w->soff[to] * w->row, (size_t)(w->scount[to] * w->row), ncclUint8, to, g->comm,
                          g->stream);
    }
    ncclResult_t end = ncclGroupEnd();
    TRY(finish_call(c, is_fine(rc) ? end : rc, "ncclGroupEnd"));
    return OK;
}

// exchange: all_to_all_v on the group's stream.
static Err exchange(Comm *c, const Way *w) {
    NcclGroup *g = c->impl;
    int me = c->rank;
    CHECK(w->rcount[me] == w->scount[me], E_INTERNAL, "comm %s: rank %d sends %lld rows to itself but expects %lld",
          c->name, me, (long long)w->scount[me], (long long)w->rcount[me]);
    g->issued++;
    TRY(send_all(c, w));
    const char *from = w->src + w->soff[me] * w->row;
    char *to = w->dst + w->roff[me] * w->row;
    if (w->scount[me] > 0 && from != to)
        TRY_CUDA(cudaMemcpyAsync(to, from, (size_t)(w->scount[me] * w->row), cudaMemcpyDeviceToDevice, g->stream));
    return OK;
}

// enter, leave: a call of the table is a fork of its own where the caller has made none; `event` then stands behind it,
// and the device's stream waits for a blocking call.
static Err enter(Comm *c, bool *is_inner) {
    NcclGroup *g = c->impl;
    CHECK(!g->is_broken, E_PEER, "comm %s: given up after an earlier error", c->name);
    *is_inner = g->outer != NULL;
    return *is_inner ? OK : nccl_fork(c);
}

static Err leave(Comm *c, bool is_inner, int event, Err err) {
    NcclGroup *g = c->impl;
    if (is_inner) return err;
    TRY(nccl_unfork(c));
    TRY(err);
    TRY_CUDA(cudaEventRecord(g->done[event], g->stream));
    return event == BLOCKING ? wait_for(c, event) : OK;
}

static Err nccl_start(Comm *c, int request, void *dst, const int64_t *rcount, const int64_t *roff, const void *src,
                      const int64_t *scount, const int64_t *soff, size_t row_bytes) {
    Way w = {dst, src, rcount, roff, scount, soff, (int64_t)row_bytes};
    bool is_inner = false;
    TRY(enter(c, &is_inner));
    CHECK(!is_inner, E_INTERNAL, "comm %s: a request cannot be started between fork and unfork", c->name);
    TRY(leave(c, false, request, exchange(c, &w)));
    return OK;
}

static Err nccl_finish(Comm *c, int request) {
    TRY(wait_for(c, request));
    return OK;
}

static Err nccl_advance(Comm *c, int request, bool *is_complete) {
    NcclGroup *g = c->impl;
    cudaError_t is = cudaEventQuery(g->done[request]);
    CHECK(is == cudaSuccess || is == cudaErrorNotReady, E_PEER, "comm %s: %s", c->name, cudaGetErrorString(is));
    *is_complete = is == cudaSuccess;
    return OK;
}

static Err nccl_all_to_all_v(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff, const void *src,
                             const int64_t *scount, const int64_t *soff, size_t row_bytes) {
    Way w = {dst, src, rcount, roff, scount, soff, (int64_t)row_bytes};
    bool is_inner = false;
    TRY(enter(c, &is_inner));
    return leave(c, is_inner, BLOCKING, exchange(c, &w));
}

static Err nccl_all_to_all(Comm *c, void *dst, const void *src, size_t bytes) {
    int64_t *count = c->scratch, *off = count + c->nranks; // of COMM_CHUNK bytes per rank
    for (int r = 0; r < c->nranks; r++) {
        count[r] = 1;
        off[r] = r;
    }
    if (bytes == 0) return OK;
    TRY(nccl_all_to_all_v(c, dst, count, off, src, count, off, bytes));
    return OK;
}

static Err gather(Comm *c, void *dst, const void *src, size_t bytes) {
    NcclGroup *g = c->impl;
    g->issued++;
    TRY_NCCL(c, ncclAllGather(src, dst, bytes, ncclUint8, g->comm, g->stream));
    return OK;
}

static Err nccl_all_gather(Comm *c, void *dst, const void *src, size_t bytes) {
    bool is_inner = false;
    if (bytes == 0) return OK;
    TRY(enter(c, &is_inner));
    return leave(c, is_inner, BLOCKING, gather(c, dst, src, bytes));
}

static Err spread(Comm *c, void *buf, size_t bytes, int root) {
    NcclGroup *g = c->impl;
    g->issued++;
    TRY_NCCL(c, ncclBroadcast(buf, buf, bytes, ncclUint8, root, g->comm, g->stream));
    return OK;
}

static Err nccl_broadcast(Comm *c, void *buf, size_t bytes, int root) {
    CHECK(root >= 0 && root < c->nranks, E_INTERNAL, "comm %s: broadcast from rank %d of %d", c->name, root, c->nranks);
    bool is_inner = false;
    if (bytes == 0) return OK;
    TRY(enter(c, &is_inner));
    return leave(c, is_inner, BLOCKING, spread(c, buf, bytes, root));
}

// A barrier of the device's work means nothing to the host; this one is the host's.
static Err nccl_barrier(Comm *c) {
    NcclGroup *g = c->impl;
    return g->host->barrier(g->host);
}

// ---- life -------------------------------------------------------------------------------------

static void nccl_destroy(Comm *c) {
    NcclGroup *g = c->impl;
    if (!g) return;
    device_cuda_unwatch(c);
    if (g->comm && !g->is_broken) {
        // A finish that fails or takes too long has aborted the communicator.
        if (finish_call(c, ncclCommFinalize(g->comm), "ncclCommFinalize()") == OK) ncclCommDestroy(g->comm);
        else fail_clear();
    }
    for (int i = 0; i < EVENTS; i++)
        if (g->done[i]) cudaEventDestroy(g->done[i]);
    if (g->before) cudaEventDestroy(g->before);
    if (g->stream) cudaStreamDestroy(g->stream);
    mem_free(g);
    c->impl = NULL;
}

// connect: the communicator, its stream and events. Collective over the group.
static Err connect_group(Comm *c) {
    NcclGroup *g = c->impl;
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    Err mine = OK;
    if (c->rank == 0) {
        ncclResult_t rc = ncclGetUniqueId(&id);
        if (rc != ncclSuccess)
            mine = fail_at(E_PEER, __FILE__, __LINE__, "comm %s: ncclGetUniqueId: %s", c->name, ncclGetErrorString(rc));
    }
    TRY(comm_agree(g->host, mine)); // before anyone waits for rank 0
    TRY(g->host->broadcast(g->host, &id, sizeof id, 0));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    TRY_NCCL(c, ncclCommInitRankConfig(&g->comm, c->nranks, id, c->rank, &config));
    TRY_CUDA(cudaStreamCreateWithFlags(&g->stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreateWithFlags(&g->before, cudaEventDisableTiming));
    for (int i = 0; i < EVENTS; i++) TRY_CUDA(cudaEventCreateWithFlags(&g->done[i], cudaEventDisableTiming));
    DeviceWatch w = {look, drop_group, c};
    TRY(device_cuda_watch(w));
    return OK;
}

Err comm_nccl_attach(Comm *host, double limit_s) {
    Comm *c = NULL;
    comm_destroy(&host->on_device);
    TRY(comm_new(&c, host->name, host->rank, host->nranks));
    Err err = mem_alloc(&c->impl, sizeof(NcclGroup), "NCCL group");
    if (err != OK) goto failed;
    NcclGroup *g = c->impl;
    g->host = host;
    g->limit = limit_s;
    c->world_rank = host->world_rank;
    c->is_device = true;
    c->destroy = nccl_destroy;
    c->barrier = nccl_barrier;
    c->all_gather = nccl_all_gather;
    c->all_to_all = nccl_all_to_all;
    c->all_to_all_v = nccl_all_to_all_v;
    c->start = nccl_start;
    c->finish = nccl_finish;
    c->advance = nccl_advance;
    c->broadcast = nccl_broadcast;
    c->fork = nccl_fork;
    c->unfork = nccl_unfork;
    c->join = nccl_join;
    err = connect_group(c);
    if (err != OK) drop(g); // what is half made cannot be finished in order
    TRY_OR(comm_agree(host, err), failed);
    host->on_device = c;
    return OK;
failed:
    comm_destroy(&c);
    return err;
}

int comm_nccl_version(void) {
    int v = 0;
    return ncclGetVersion(&v) == ncclSuccess ? v : 0;
}
