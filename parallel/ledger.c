// ledger.c - the ring of operations and its file. See ledger.h.
#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "arena.h"
#include "log.h"

#define LEDGER_BYTES (sizeof(LedgerHead) + LEDGER_RING * sizeof(LedgerEntry))
#define MAGIC "TSLEDGER"

struct Ledger {
    LedgerHead *head; // [LEDGER_BYTES] mapped: the head, then the ring
    LedgerEntry *ring;
};

Err ledger_create(Ledger **out, int rank, int nranks, const char *host) {
    Ledger *l = NULL;
    struct timespec day;
    MEM_NEW(l, 1);
    void *p = mmap(NULL, LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        mem_free(l);
        FAIL(E_INTERNAL, "no memory for the ledger: %s", strerror(errno));
    }
    LedgerHead *h = l->head = p;
    l->ring = (LedgerEntry *)(h + 1);
    clock_gettime(CLOCK_REALTIME, &day);
    memcpy(h->magic, MAGIC, sizeof h->magic);
    h->version = LEDGER_VERSION;
    h->ring = LEDGER_RING;
    h->rank = rank;
    h->nranks = nranks;
    h->pid = (int32_t)getpid();
    snprintf(h->host, sizeof h->host, "%s", host);
    h->layer = -1;
    h->inside = -1;
    h->progress = h->phase_since = now_seconds();
    h->wall = (double)day.tv_sec + 1e-9 * (double)day.tv_nsec - h->progress;
    *out = l;
    return OK;
}

// write_whole: every byte, so that no later store meets a full disk.
static bool write_whole(int fd, const char *bytes, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t got = write(fd, bytes + done, n - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        done += (size_t)got;
    }
    return true;
}

Err ledger_open(Ledger *l, const char *dir) {
    char path[1400], old[1400];
    snprintf(path, sizeof path, "%s/rank_%05d.bin", dir, (int)l->head->rank);
    snprintf(old, sizeof old, "%s/rank_%05d.old.bin", dir, (int)l->head->rank);
    CHECK(mkdir(dir, 0777) == 0 || errno == EEXIST, E_OUTPUT, "cannot make %s: %s", dir, strerror(errno));
    CHECK(rename(path, old) == 0 || errno == ENOENT, E_OUTPUT, "cannot rename %s: %s", path, strerror(errno));
    snprintf(old, sizeof old, "%s/" LEDGER_SAID, dir);
    if (l->head->rank == 0) unlink(old); // of the start before
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && write_whole(fd, (const char *)l->head, LEDGER_BYTES);
    // At the same address, so that nobody has to be told; elsewhere first, because a mapping that a file system refuses
    // may already have taken the old one away.
    void *p = ok ? mmap(NULL, LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    ok = p != MAP_FAILED && mremap(p, LEDGER_BYTES, LEDGER_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, l->head) != MAP_FAILED;
    int why = errno;
    if (fd >= 0) close(fd);
    CHECK(ok, E_OUTPUT, "cannot write %s: %s", path, strerror(why));
    return OK;
}

void ledger_close(Ledger **l) {
    if (!*l) return;
    (*l)->head->is_closed = 1;
    munmap((*l)->head, LEDGER_BYTES);
    mem_free(*l);
    *l = NULL;
}

const LedgerHead *ledger_head(const Ledger *l) {
    return l->head;
}

const LedgerEntry *ledger_ring(const Ledger *l) {
    return l->ring;
}

// ---- writing ------------------------------------------------------------------------------------

LedgerPhase ledger_phase(Ledger *l, LedgerPhase phase) {
    if (!l) return PHASE_START;
    LedgerHead *h = l->head;
    LedgerPhase was = (LedgerPhase)h->phase;
    h->progress = now_seconds();
    if (was != phase) h->phase_since = h->progress;
    h->phase = (int32_t)phase;
    return was;
}

void ledger_step(Ledger *l, int64_t step) {
    if (!l) return;
    l->head->step = step;
    ledger_phase(l, PHASE_STEP);
}

void ledger_block(Ledger *l, int64_t layer, LedgerPass pass) {
    if (!l) return;
    l->head->layer = (int32_t)layer;
    l->head->pass = (int32_t)pass;
    l->head->progress = now_seconds();
}

void ledger_alive(Ledger *l) {
    if (l) l->head->alive = now_seconds();
}

double ledger_waited(const Ledger *l) {
    return l ? l->head->waited : 0.0;
}

static LedgerEntry *entry_of(Ledger *l, int64_t number) {
    return &l->ring[number % LEDGER_RING];
}

int64_t ledger_begin(Ledger *l, int group, LedgerOp op, int64_t bytes, const char *what) {
    LedgerHead *h = l->head;
    LedgerGroup *g = &h->group[group];
    int64_t number = h->count;
    LedgerEntry *e = entry_of(l, number);
    memset(e, 0, sizeof *e);
    e->seq = g->entered + 1;
    e->entered = h->progress = now_seconds();
    e->bytes = bytes;
    e->step = h->step;
    e->layer = h->layer;
    e->op = (uint8_t)op;
    e->group = (uint8_t)group;
    e->pass = (uint8_t)h->pass;
    e->phase = (uint8_t)h->phase;
    if (what) strncpy(e->what, what, sizeof e->what - 1);
    __atomic_store_n(&h->count, number + 1, __ATOMIC_RELEASE);
    __atomic_store_n(&g->entered, e->seq, __ATOMIC_RELEASE);
    return number;
}

static void wait_since(Ledger *l, int64_t number, double since) {
    l->head->inside_since = l->head->progress = since;
    __atomic_store_n(&l->head->inside, number, __ATOMIC_RELEASE);
}

void ledger_wait(Ledger *l, int64_t number) {
    wait_since(l, number, now_seconds());
}

void ledger_end(Ledger *l, int64_t number) {
    LedgerHead *h = l->head;
    double now = now_seconds();
    if (h->inside == number) h->waited += now - h->inside_since;
    __atomic_store_n(&h->inside, -1, __ATOMIC_RELEASE);
    h->progress = now;
    if (h->count - number <= LEDGER_RING) entry_of(l, number)->left = now; // else its place was taken
}

// ---- reading ------------------------------------------------------------------------------------

void ledger_state(LedgerState *s, const LedgerHead *h, const LedgerEntry *ring, double now, double since) {
    memset(s, 0, sizeof *s);
    s->is_known = true;
    s->is_closed = h->is_closed != 0;
    s->rank = h->rank;
    s->pid = h->pid;
    s->phase = h->phase;
    s->layer = h->layer;
    s->pass = h->pass;
    s->step = h->step;
    s->ngroups = h->ngroups;
    memcpy(s->host, h->host, sizeof s->host);
    memcpy(s->group, h->group, sizeof s->group);
    s->idle = now - (h->progress > since ? h->progress : since);
    s->phase_age = now - h->phase_since;
    int64_t inside = __atomic_load_n(&h->inside, __ATOMIC_ACQUIRE);
    int64_t count = __atomic_load_n(&h->count, __ATOMIC_ACQUIRE);
    if (inside >= 0 && count - inside <= LEDGER_RING) {
        s->is_inside = true;
        s->inside = ring[inside % LEDGER_RING];
        s->inside_age = now - (h->inside_since > since ? h->inside_since : since);
    }
    int64_t oldest = count > LEDGER_RING ? count - LEDGER_RING : 0;
    for (int64_t i = oldest; i < count; i++) {
        const LedgerEntry *e = &ring[i % LEDGER_RING];
        if (!(e->left > 0.0) || (s->has_last && e->left < s->last.left)) continue;
        s->has_last = true;
        s->last = *e;
    }
    if (s->has_last) s->last_age = now - s->last.left;
}

// is_sane: nothing in it leads outside of its arrays.
static bool is_sane(const LedgerHead *h, const LedgerEntry *ring) {
    bool ok = h->rank >= 0 && h->ngroups >= 0 && h->ngroups <= LEDGER_GROUPS && h->count >= 0 &&
              h->inside < h->count && memchr(h->host, 0, sizeof h->host) && h->phase >= 0 &&
              h->phase < LEDGER_PHASES && h->pass >= 0 && h->pass < LEDGER_PASSES;
    for (int g = 0; ok && g < h->ngroups; g++) ok = memchr(h->group[g].name, 0, sizeof h->group[g].name) != NULL;
    for (int64_t i = 0; ok && i < LEDGER_RING && i < h->count; i++) {
        const LedgerEntry *e = &ring[i];
        ok = e->op < LEDGER_OPS && e->group < LEDGER_GROUPS && e->pass < LEDGER_PASSES &&
             e->phase < LEDGER_PHASES && memchr(e->what, 0, sizeof e->what);
    }
    return ok;
}

Err ledger_read(const char *path, LedgerHead *h, LedgerEntry *ring) {
    size_t bytes = LEDGER_RING * sizeof *ring;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, E_INPUT, "cannot read %s: %s", path, strerror(errno));
    bool ok = pread(fd, h, sizeof *h, 0) == (ssize_t)sizeof *h &&
              pread(fd, ring, bytes, sizeof *h) == (ssize_t)bytes;
    close(fd);
    CHECK(ok && memcmp(h->magic, MAGIC, sizeof h->magic) == 0, E_INPUT, "%s is no ledger, or was cut", path);
    CHECK(h->version == LEDGER_VERSION && h->ring == LEDGER_RING, E_INPUT,
          "%s is a ledger of version %d with %d operations; this program reads version %d with %d", path,
          (int)h->version, (int)h->ring, LEDGER_VERSION, LEDGER_RING);
    CHECK(is_sane(h, ring), E_INPUT, "%s is damaged", path);
    return OK;
}

const char *ledger_phase_name(int phase) {
    static const char *const names[LEDGER_PHASES] = {"start", "data", "step", "save", "eval"};
    return phase >= 0 && phase < LEDGER_PHASES ? names[phase] : "?";
}

void ledger_describe(char *out, size_t n, const LedgerEntry *e, const LedgerGroup *groups) {
    static const char *const ops[LEDGER_OPS] = {"barrier", "all-gather", "all-to-all", "broadcast", "reduction"};
    static const char *const passes[LEDGER_PASSES] = {"", "forward, ", "backward, "};
    char block[32] = "";
    const LedgerGroup *g = &groups[e->group];
    // Only the exchange of experts belongs to the block that runs; gradients leave beside any of them.
    bool has_block = e->layer >= 0 && (strcmp(g->name, "ep") == 0 || strcmp(g->name, "ep on device") == 0);
    if (has_block) snprintf(block, sizeof block, " of block %d", (int)e->layer);
    snprintf(out, n, "%s%s (%s%s%ssequence %lld of %s)", e->op < LEDGER_OPS ? ops[e->op] : "operation", block, e->what,
             e->what[0] ? ", " : "", has_block && e->pass < LEDGER_PASSES ? passes[e->pass] : "", (long long)e->seq,
             g->name);
}

// ---- groups -------------------------------------------------------------------------------------

// The calls of the group's table as they were, behind those that record.
struct CommWatch {
    Ledger *ledger;
    int group;
    int64_t number[COMM_REQUESTS]; // of the requests under way
    Comm inner;                    // for its functions
};

#define RECORDED(op, bytes, call)                                                                  \
    struct CommWatch *w = c->watch;                                                                \
    int64_t number = ledger_begin(w->ledger, w->group, op, (int64_t)(bytes), c->what);             \
    c->what = NULL;                                                                                \
    wait_since(w->ledger, number, w->ledger->head->progress); /* the clock was just read */        \
    Err err = w->inner.call;                                                                       \
    ledger_end(w->ledger, number);                                                                 \
    return err == OK ? OK : fail_frame(err, __FILE__, __LINE__)

static int64_t sum_of(const int64_t *count, int n) {
    int64_t sum = 0;
    for (int r = 0; r < n; r++) sum += count[r];
    return sum;
}

static Err watched_barrier(Comm *c) {
    RECORDED(LEDGER_BARRIER, 0, barrier(c));
}

static Err watched_all_gather(Comm *c, void *dst, const void *src, size_t bytes) {
    RECORDED(LEDGER_ALL_GATHER, bytes, all_gather(c, dst, src, bytes));
}

static Err watched_all_to_all(Comm *c, void *dst, const void *src, size_t bytes) {
    RECORDED(LEDGER_ALL_TO_ALL, bytes, all_to_all(c, dst, src, bytes));
}

static Err watched_all_to_all_v(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff, const void *src,
                                const int64_t *scount, const int64_t *soff, size_t row_bytes) {
    RECORDED(LEDGER_ALL_TO_ALL, sum_of(scount, c->nranks) * (int64_t)row_bytes,
             all_to_all_v(c, dst, rcount, roff, src, scount, soff, row_bytes));
}

static Err watched_broadcast(Comm *c, void *buf, size_t bytes, int root) {
    RECORDED(LEDGER_BROADCAST, bytes, broadcast(c, buf, bytes, root));
}

static Err watched_reduce_i64(Comm *c, int64_t *x, int n, bool is_max) {
    RECORDED(LEDGER_REDUCE, (int64_t)n * 8, reduce_i64(c, x, n, is_max));
}

static Err watched_start(Comm *c, int request, void *dst, const int64_t *rcount, const int64_t *roff, const void *src,
                         const int64_t *scount, const int64_t *soff, size_t row_bytes) {
    struct CommWatch *w = c->watch;
    int64_t bytes = sum_of(scount, c->nranks) * (int64_t)row_bytes;
    w->number[request] = ledger_begin(w->ledger, w->group, LEDGER_ALL_TO_ALL, bytes, c->what);
    c->what = NULL;
    return w->inner.start(c, request, dst, rcount, roff, src, scount, soff, row_bytes);
}

static Err watched_finish(Comm *c, int request) {
    struct CommWatch *w = c->watch;
    ledger_wait(w->ledger, w->number[request]);
    Err err = w->inner.finish(c, request);
    ledger_end(w->ledger, w->number[request]);
    return err;
}

Err ledger_watch(Ledger *l, Comm *c, int first, int stride) {
    LedgerHead *h = l->head;
    c->ledger = l;
    if (c->nranks == 1) return OK;
    CHECK(!c->watch && !c->is_null && h->ngroups < LEDGER_GROUPS, E_INTERNAL, "ledger: group %s cannot be recorded",
          c->name);
    struct CommWatch *w = NULL;
    MEM_NEW(w, 1);
    w->ledger = l;
    w->group = h->ngroups;
    w->inner = *c;
    LedgerGroup g = {.first = first, .stride = stride, .n = c->nranks};
    snprintf(g.name, sizeof g.name, "%s%s", c->name, c->is_device ? " on device" : "");
    h->group[h->ngroups] = g;
    h->ngroups++;
    c->watch = w;
    c->barrier = watched_barrier;
    c->all_gather = watched_all_gather;
    c->all_to_all = watched_all_to_all;
    c->all_to_all_v = watched_all_to_all_v;
    c->broadcast = watched_broadcast;
    if (c->reduce_i64) c->reduce_i64 = watched_reduce_i64;
    if (c->start) c->start = watched_start;
    if (c->finish) c->finish = watched_finish;
    return OK;
}
