// nccl_on_cpu.cpp - the functions of NCCL that parallel/comm_nccl.c calls, between processes of one machine.
//
// Linked into cuda-on-cpu tests instead of libnccl. A communicator is a piece of shared memory with a ring for each
// ordered pair of ranks; operations are tasks of their streams (streams_on_cpu.h), done by the worker. What NCCL
// promises holds, and no more: nothing moves before ncclGroupEnd; messages of a pair arrive in the order of the sends;
// an operation begins when its stream has come to it, or later (nccl_on_cpu_late), and what it will overwrite is filled
// with 0xFF as it begins; a send is over when the other side has taken it; a non-blocking communicator puts an
// operation on its stream only while it is asked for its state. What NCCL leaves undefined is an error here: sizes or
// kinds that differ between the sides, a message that nobody fetches, memory that is not the device's.
#include "nccl_on_cpu.h"

#include <atomic>
#include <deque>
#include <errno.h>
#include <fcntl.h>
#include <nccl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>

#include "streams_on_cpu.h"

namespace {

enum { RANKS = 16, RING = 1 << 16 };
constexpr uint32_t MAGIC = 0x4C43434E;
enum Kind : uint32_t { PAIR, ALL_GATHER, BROADCAST };

struct Ring {
    std::atomic<uint64_t> head, tail; // bytes written by the sender, taken by the receiver
    char data[RING];
};
struct Member {
    std::atomic<int> pid;
    std::atomic<int> is_gone; // it has left the communicator, in order or not
};
struct Shared {
    std::atomic<int> attached;
    Member member[RANKS];
    Ring ring[RANKS][RANKS]; // [from][to]
};
// In an id: where the first rank keeps the memory.
struct Address {
    uint32_t magic;
    int pid, fd;
};
struct Header {
    uint32_t magic, kind;
    uint64_t number; // of the pair's messages
    uint64_t bytes;
};
struct Move { // one message at one of its ends
    int peer;
    char *p;
    size_t bytes, done;
    Kind kind;
    bool has_header;
};

int64_t mistakes, operations;
int version = NCCL_VERSION_CODE;
int communicators; // of this process, that have not left
int late_us = 300;
bool is_blind, is_failing_silently, is_refusing;
int64_t fail_at = -1; // operations until then; -1: none fails
uint64_t dice = 88172645463325252ull;

uint64_t now_us() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

} // namespace

struct ncclComm {
    int rank, n, fd = -1;
    Shared *shared;
    bool is_connected = false, is_aborted = false, is_finalized = false;
    ncclResult_t state = ncclSuccess;
    std::string error;
    uint64_t sent[RANKS] = {}, received[RANKS] = {};
    // Issued, but not on its stream yet: the communicator has not been asked for its state.
    streams::Task *waiting = nullptr;
    cudaStream_t waiting_on = nullptr;
    int under_way = 0;
};

namespace {

void mistake(ncclComm *c, ncclResult_t state, const char *format, ...) {
    char text[300];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "nccl on cpu, rank %d of %d: %s\n", c->rank, c->n, text);
    mistakes++;
    if (c->state == ncclSuccess || c->state == ncclInProgress) c->state = state;
    c->error = text;
}

size_t ring_write(Ring &r, const void *p, size_t bytes) {
    uint64_t head = r.head.load(), room = RING - (head - r.tail.load());
    size_t n = bytes < room ? bytes : (size_t)room;
    for (size_t at = 0; at < n;) {
        size_t from = (size_t)((head + at) % RING), piece = n - at < RING - from ? n - at : RING - from;
        memcpy(r.data + from, (const char *)p + at, piece);
        at += piece;
    }
    r.head.store(head + n);
    return n;
}
size_t ring_read(Ring &r, void *p, size_t bytes) {
    uint64_t tail = r.tail.load(), there = r.head.load() - tail;
    size_t n = bytes < there ? bytes : (size_t)there;
    for (size_t at = 0; at < n;) {
        size_t from = (size_t)((tail + at) % RING), piece = n - at < RING - from ? n - at : RING - from;
        memcpy((char *)p + at, r.data + from, piece);
        at += piece;
    }
    r.tail.store(tail + n);
    return n;
}

// is_lost: the process is no more, or is only waiting for its parent to hear of it.
bool is_lost(const Member &m) {
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", m.pid.load());
    FILE *f = fopen(path, "r");
    if (!f) return true;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    const char *state = strrchr(text, ')');
    return state && state[1] == ' ' && state[2] == 'Z';
}

struct Operation : streams::Task {
    ncclComm *c;
    std::deque<Move> sends[RANKS], receives[RANKS];
    bool has_begun = false;
    uint64_t begin_at = 0, look_at = 0;

    // Both ends of messages to oneself are in the same operation.
    void to_self() {
        auto &out = sends[c->rank], &in = receives[c->rank];
        while (!out.empty() && !in.empty()) {
            if (out.front().bytes != in.front().bytes) {
                mistake(c, ncclInvalidUsage, "%zu bytes to itself, %zu expected", out.front().bytes, in.front().bytes);
                return;
            }
            if (out.front().p != in.front().p) memmove(in.front().p, out.front().p, in.front().bytes);
            out.pop_front();
            in.pop_front();
        }
    }
    bool send(Move &m) {
        Ring &r = c->shared->ring[c->rank][m.peer];
        if (!m.has_header) {
            if (RING - (r.head.load() - r.tail.load()) < sizeof(Header)) return false;
            Header h = {MAGIC, m.kind, c->sent[m.peer]++, m.bytes};
            ring_write(r, &h, sizeof h);
            m.has_header = true;
        }
        m.done += ring_write(r, m.p + m.done, m.bytes - m.done);
        return m.done == m.bytes && r.head.load() == r.tail.load(); // the other side has taken it
    }
    bool receive(Move &m) {
        Ring &r = c->shared->ring[m.peer][c->rank];
        if (!m.has_header) {
            if (r.head.load() - r.tail.load() < sizeof(Header)) return false;
            Header h;
            ring_read(r, &h, sizeof h);
            if (h.magic != MAGIC || h.kind != m.kind || h.number != c->received[m.peer] || h.bytes != m.bytes) {
                mistake(c, ncclInvalidUsage, "message %llu from rank %d: kind %u, %llu bytes; expected: kind %u, %zu bytes",
                        (unsigned long long)c->received[m.peer], m.peer, h.kind, (unsigned long long)h.bytes, m.kind,
                        m.bytes);
                return false;
            }
            c->received[m.peer]++;
            m.has_header = true;
        }
        m.done += ring_read(r, m.p + m.done, m.bytes - m.done);
        return m.done == m.bytes;
    }
    void begin() {
        has_begun = true;
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        begin_at = now_us() + (late_us > 0 ? dice % (uint64_t)late_us : 0);
        for (int r = 0; r < c->n; r++) {
            if (r == c->rank) continue; // may be in place
            for (auto &m : receives[r]) memset(m.p, 0xFF, m.bytes);
        }
    }
    // look: now and then, whether those it waits for are still there.
    void look() {
        if (now_us() < look_at) return;
        look_at = now_us() + 50000;
        for (int r = 0; r < c->n && !is_blind; r++) {
            bool is_needed = !sends[r].empty() || !receives[r].empty();
            const Member &m = c->shared->member[r];
            if (r == c->rank || !is_needed || !(m.is_gone || is_lost(m)) || c->state != ncclSuccess) continue;
            c->state = ncclRemoteError;
            c->error = "rank " + std::to_string(r) + " is gone";
        }
    }
    bool advance() override {
        if (c->is_aborted) {
            c->under_way--;
            return true;
        }
        if (!has_begun && c->state == ncclSuccess) {
            if (fail_at == 0 && is_failing_silently) return false;
            if (fail_at == 0) {
                c->state = ncclSystemError;
                c->error = "a link broke";
            }
            if (fail_at >= 0) fail_at--;
            begin();
        }
        if (c->state != ncclSuccess) return false; // stands still until it is aborted
        if (now_us() < begin_at) return false;
        to_self();
        bool is_over = true;
        for (int r = 0; r < c->n; r++) {
            if (!receives[r].empty() && r != c->rank && receive(receives[r].front())) receives[r].pop_front();
            if (!sends[r].empty() && r != c->rank && send(sends[r].front())) sends[r].pop_front();
            is_over = is_over && sends[r].empty() && receives[r].empty();
        }
        if (is_over) c->under_way--;
        else look();
        return is_over;
    }
};

// The group that is being made.
int depth;
ncclComm *group_comm;
cudaStream_t group_stream;
Operation *group;

ncclResult_t close_group() {
    ncclComm *c = group_comm;
    Operation *o = group;
    group_comm = nullptr;
    group = nullptr;
    if (!c) return ncclSuccess;
    streams::Lock hold;
    for (auto *list : {o->sends, o->receives}) {
        size_t own = list[c->rank].size();
        if (own != (list == o->sends ? o->receives : o->sends)[c->rank].size()) {
            mistake(c, ncclInvalidUsage, "messages to itself without a partner");
            delete o;
            return ncclInvalidUsage;
        }
    }
    if (!streams::is_behind(group_stream)) {
        fprintf(stderr, "nccl on cpu, rank %d: an operation is not ordered behind the device's stream\n", c->rank);
        abort();
    }
    // NCCL's guide, "Using multiple NCCL communicators concurrently": else their kernels may wait for each other.
    const char *order = getenv("NCCL_LAUNCH_ORDER_IMPLICIT");
    if (communicators > 1 && !(order && atoi(order) == 1)) {
        fprintf(stderr, "nccl on cpu, rank %d: %d communicators, and no order of their operations\n", c->rank,
                communicators);
        abort();
    }
    operations++;
    c->waiting = o;
    c->waiting_on = group_stream;
    c->under_way++;
    return ncclInProgress;
}

ncclResult_t add(ncclComm *c, cudaStream_t stream, bool is_send, const void *p, size_t bytes, int peer, Kind kind) {
    streams::Lock hold;
    if (c->state != ncclSuccess && c->state != ncclInProgress) return c->state;
    char *alias = runtime_alias(p, bytes);
    if (!c->is_connected || c->waiting || (group_comm && (group_comm != c || group_stream != stream)) || peer < 0 ||
        peer >= c->n || !alias || bytes == 0) {
        mistake(c, ncclInvalidArgument, "%s %d: %zu bytes at %p cannot be sent or received", is_send ? "to" : "from",
                peer, bytes, p);
        return ncclInvalidArgument;
    }
    if (!group_comm) {
        group_comm = c;
        group_stream = stream;
        group = new Operation;
        group->c = c;
    }
    (is_send ? group->sends : group->receives)[peer].push_back(Move{peer, alias, bytes, 0, kind, false});
    static int calls; // a call inside of a group may say so of a communicator that does not block
    return kind == PAIR && ++calls % 3 == 0 ? ncclInProgress : ncclSuccess;
}

} // namespace

extern "C" {

int64_t nccl_on_cpu_mistakes(void) {
    return mistakes;
}
int64_t nccl_on_cpu_operations(void) {
    return operations;
}
void nccl_on_cpu_late(int microseconds) {
    late_us = microseconds;
}
void nccl_on_cpu_fail(int64_t after, int is_silent) {
    streams::Lock hold;
    fail_at = after;
    is_failing_silently = is_silent != 0;
}
void nccl_on_cpu_is_blind(int blind) {
    is_blind = blind != 0;
}

void nccl_on_cpu_refuse(int refusing) {
    is_refusing = refusing != 0;
}
void nccl_on_cpu_version(int code) {
    version = code ? code : NCCL_VERSION_CODE;
}

ncclResult_t ncclGetVersion(int *out) {
    *out = version;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    Address a = {MAGIC, (int)getpid(), memfd_create("nccl", MFD_CLOEXEC)};
    static_assert(sizeof a <= sizeof *id, "an id holds an address");
    if (a.fd < 0 || ftruncate(a.fd, sizeof(Shared)) != 0) return ncclSystemError;
    memcpy(id, &a, sizeof a);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n, ncclUniqueId id, int rank, ncclConfig_t *config) {
    Address a;
    memcpy(&a, &id, sizeof a);
    if (n < 1 || n > RANKS || rank < 0 || rank >= n || a.magic != MAGIC || config->blocking != 0)
        return ncclInvalidArgument;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", a.pid, a.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return ncclSystemError;
    void *p = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) return ncclSystemError;
    ncclComm *c = new ncclComm;
    c->rank = rank;
    c->n = n;
    c->fd = rank == 0 ? a.fd : -1;
    c->shared = (Shared *)p;
    c->state = ncclInProgress;
    c->shared->member[rank].pid = (int)getpid();
    if (!is_refusing) c->shared->attached++;
    communicators++;
    *comm = c;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *state) {
    streams::Lock hold;
    if (!c->is_connected && c->shared->attached == c->n) {
        c->is_connected = true;
        if (c->fd >= 0) close(c->fd);
        c->fd = -1;
        if (c->state == ncclInProgress) c->state = ncclSuccess;
    }
    if (c->waiting) {
        streams::add(c->waiting_on, c->waiting);
        c->waiting = nullptr;
        *state = ncclInProgress; // the next time it is done
        return ncclSuccess;
    }
    *state = c->is_finalized && c->under_way > 0 && c->state == ncclSuccess ? ncclInProgress : c->state;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t c) {
    streams::Lock hold;
    c->is_finalized = true;
    return c->under_way > 0 ? ncclInProgress : c->state;
}

static ncclResult_t leave(ncclComm_t c) {
    communicators--;
    c->shared->member[c->rank].is_gone = 1;
    if (c->fd >= 0) close(c->fd);
    return ncclSuccess; // its memory stays: tasks may still look at it
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    streams::Lock hold;
    if (!c->is_finalized || c->under_way > 0) mistake(c, ncclInvalidUsage, "destroyed before its end");
    for (int r = 0; r < c->n; r++) {
        const Ring &in = c->shared->ring[r][c->rank];
        if (in.head.load() != in.tail.load()) mistake(c, ncclInvalidUsage, "a message of rank %d was never fetched", r);
    }
    return leave(c);
}

ncclResult_t ncclCommAbort(ncclComm_t c) {
    streams::Lock hold;
    c->is_aborted = true;
    return leave(c);
}

ncclResult_t ncclGroupStart() {
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
    if (depth == 0) return ncclInvalidUsage;
    return --depth == 0 ? close_group() : ncclSuccess;
}

ncclResult_t ncclSend(const void *p, size_t count, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
    if (type != ncclUint8 || depth == 0) return ncclInvalidArgument; // not modelled
    return add(c, stream, true, p, count, peer, PAIR);
}

ncclResult_t ncclRecv(void *p, size_t count, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
    if (type != ncclUint8 || depth == 0) return ncclInvalidArgument;
    return add(c, stream, false, p, count, peer, PAIR);
}

ncclResult_t ncclAllGather(const void *src, void *dst, size_t count, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t stream) {
    if (type != ncclUint8 || depth != 0) return ncclInvalidArgument;
    ncclResult_t rc = ncclSuccess;
    ncclGroupStart();
    for (int r = 0; r < c->n && rc == ncclSuccess; r++) {
        rc = add(c, stream, true, src, count, r, ALL_GATHER);
        if (rc == ncclSuccess) rc = add(c, stream, false, (char *)dst + (size_t)r * count, count, r, ALL_GATHER);
    }
    ncclResult_t end = ncclGroupEnd();
    return rc != ncclSuccess ? rc : end;
}

ncclResult_t ncclBroadcast(const void *src, void *dst, size_t count, ncclDataType_t type, int root, ncclComm_t c,
                           cudaStream_t stream) {
    if (type != ncclUint8 || depth != 0 || root < 0 || root >= c->n) return ncclInvalidArgument;
    ncclResult_t rc = ncclSuccess;
    ncclGroupStart();
    for (int r = 0; r < c->n && rc == ncclSuccess && c->rank == root; r++) {
        rc = add(c, stream, true, src, count, r, BROADCAST);
        if (r == root && rc == ncclSuccess) rc = add(c, stream, false, dst, count, r, BROADCAST);
    }
    if (c->rank != root) rc = add(c, stream, false, dst, count, root, BROADCAST);
    ncclResult_t end = ncclGroupEnd();
    return rc != ncclSuccess ? rc : end;
}

const char *ncclGetErrorString(ncclResult_t rc) {
    static const char *const names[] = {"no error",         "unhandled cuda error", "unhandled system error",
                                        "internal error",   "invalid argument",     "invalid usage",
                                        "remote process exited or there was a network error", "NCCL operation in progress"};
    return rc >= 0 && rc < 8 ? names[rc] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t c) {
    return c->error.c_str();
}
}
