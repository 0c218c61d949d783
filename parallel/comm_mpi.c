// comm_mpi.c - groups of MPI ranks, host memory.
//
// MPI counts blocks in int. Blocks up to round_bytes use the library's collectives; larger ones,
// and every all_to_all_v, are plain messages in rounds of at most round_bytes. All_to_all_v is
// always done so because "does it fit an int" is something only one rank knows, and all must take
// the same path; with messages a pair of ranks agrees by itself. Errors are E_PEER with MPI's text.
//
// Every all_to_all_v has a tag of its own, its number in the group's history, so that the rounds of
// several under way cannot be mistaken for each other.
#include <string.h>

#include "arena.h"
#include "mpi_try.h"

// An all_to_all_v under way: its arguments (borrowed) and the messages of the current round.
typedef struct Flight {
    char *dst;
    const char *src;
    const int64_t *rcount, *roff, *scount, *soff;
    int64_t row, done;    // bytes of a row; bytes of every block that earlier rounds moved
    int tag, pending;     // messages of this round; 0: complete
    MPI_Request *request; // [2 * nranks]
} Flight;

enum { BLOCKING = COMM_REQUESTS, FLIGHTS }; // the last flight is the table's blocking all_to_all_v

typedef struct MpiGroup {
    MPI_Comm comm;
    Flight flight[FLIGHTS];
    MPI_Request *request; // [FLIGHTS * 2 * nranks]: memory of all flights
    MPI_Status *status;   // [2 * nranks]
    int64_t started;      // all_to_all_v of this group so far
    int64_t *block; // [4 * nranks]: rcount, roff, scount, soff of all_gather and all_to_all in
                    // rounds
} MpiGroup;

#define TAG_ROWS 1
#define TAGS 16384 // MPI promises tags up to 32767

Err mpi_fail(int rc, const char *call, const char *file, int line) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int n = 0;
    if (MPI_Error_string(rc, text, &n) != MPI_SUCCESS) snprintf(text, sizeof text, "error %d", rc);
    return fail_at(E_PEER, file, line, "%.*s: %s", (int)strcspn(call, "("), call, text);
}

static Err mpi_barrier(Comm *c) {
    MpiGroup *g = c->impl;
    TRY_MPI(MPI_Barrier(g->comm));
    return OK;
}

// first_failure: what went wrong in a round of n messages whose result is rc. Local.
static Err first_failure(const MpiGroup *g, int rc, int n, const char *call) {
    for (int i = 0; i < n && rc == MPI_ERR_IN_STATUS; i++) {
        int one = g->status[i].MPI_ERROR;
        if (one != MPI_SUCCESS && one != MPI_ERR_PENDING)
            return mpi_fail(one, call, __FILE__, __LINE__);
    }
    return rc == MPI_SUCCESS ? OK : mpi_fail(rc, call, __FILE__, __LINE__);
}

// post_round: the messages of the round that begins at f->done.
static Err post_round(Comm *c, Flight *f) {
    MpiGroup *g = c->impl;
    int me = c->rank, n = c->nranks;
    f->pending = 0;
    for (int s = 1; s < n; s++) {
        int peer = (me - s + n) % n;
        int64_t left = f->rcount[peer] * f->row - f->done;
        if (left <= 0) continue;
        TRY_MPI(MPI_Irecv(f->dst + f->roff[peer] * f->row + f->done,
                          (int)min_i64(left, c->round_bytes), MPI_BYTE, peer, f->tag, g->comm,
                          &f->request[f->pending]));
        f->pending++;
    }
    for (int s = 1; s < n; s++) {
        int peer = (me + s) % n;
        int64_t left = f->scount[peer] * f->row - f->done;
        if (left <= 0) continue;
        TRY_MPI(MPI_Isend(f->src + f->soff[peer] * f->row + f->done,
                          (int)min_i64(left, c->round_bytes), MPI_BYTE, peer, f->tag, g->comm,
                          &f->request[f->pending]));
        f->pending++;
    }
    return OK;
}

// next_round: the current one is complete.
static Err next_round(Comm *c, Flight *f) {
    f->done += c->round_bytes;
    return post_round(c, f);
}

// Round j carries bytes [j*round_bytes, (j+1)*round_bytes) of every block. Messages of one pair
// arrive in order, and round j of one rank only waits for rounds <= j of the others, so this cannot
// lock up as long as all ranks wait in the same order.
static Err mpi_start(Comm *c, int request, void *dst, const int64_t *rcount, const int64_t *roff,
                     const void *src, const int64_t *scount, const int64_t *soff,
                     size_t row_bytes) {
    MpiGroup *g = c->impl;
    Flight *f = &g->flight[request];
    int me = c->rank;
    CHECK(rcount[me] == scount[me], E_INTERNAL,
          "comm %s: rank %d sends %lld rows to itself but expects %lld", c->name, me,
          (long long)scount[me], (long long)rcount[me]);
    Flight new = {
        .dst = dst, .src = src, .rcount = rcount, .roff = roff, .scount = scount, .soff = soff};
    new.row = (int64_t)row_bytes;
    new.tag = TAG_ROWS + (int)(g->started++ % TAGS);
    new.request = f->request;
    *f = new;
    TRY(post_round(c, f));
    if (scount[me] > 0) { // while the others' rows are on their way
        const char *from = f->src + soff[me] * f->row;
        char *to = f->dst + roff[me] * f->row;
        if (from != to) memmove(to, from, (size_t)(scount[me] * f->row));
    }
    return OK;
}

static Err mpi_finish(Comm *c, int request) {
    MpiGroup *g = c->impl;
    Flight *f = &g->flight[request];
    while (f->pending > 0) {
        int rc = MPI_Waitall(f->pending, f->request, g->status);
        TRY(first_failure(g, rc, f->pending, "MPI_Waitall"));
        TRY(next_round(c, f));
    }
    return OK;
}

static Err mpi_advance(Comm *c, int request, bool *is_complete) {
    MpiGroup *g = c->impl;
    Flight *f = &g->flight[request];
    int is_over = 1;
    while (f->pending > 0 && is_over) {
        int rc = MPI_Testall(f->pending, f->request, &is_over, g->status);
        TRY(first_failure(g, rc, f->pending, "MPI_Testall"));
        if (is_over) TRY(next_round(c, f));
    }
    *is_complete = f->pending == 0;
    return OK;
}

static Err mpi_all_to_all_v(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff,
                            const void *src, const int64_t *scount, const int64_t *soff,
                            size_t row_bytes) {
    TRY(mpi_start(c, BLOCKING, dst, rcount, roff, src, scount, soff, row_bytes));
    TRY(mpi_finish(c, BLOCKING));
    return OK;
}

// by_messages: all_gather (is_same: everybody gets the same block) or all_to_all of large blocks.
static Err by_messages(Comm *c, void *dst, const void *src, int64_t bytes, bool is_same) {
    MpiGroup *g = c->impl;
    int n = c->nranks;
    int64_t *rcount = g->block, *roff = rcount + n, *scount = roff + n, *soff = scount + n;
    for (int r = 0; r < n; r++) {
        rcount[r] = scount[r] = bytes;
        roff[r] = r * bytes;
        soff[r] = is_same ? 0 : r * bytes;
    }
    TRY(mpi_all_to_all_v(c, dst, rcount, roff, src, scount, soff, 1));
    return OK;
}

// is_small: every rank's part of the collective together fits one int count, whatever algorithm MPI
// takes.
static bool is_small(const Comm *c, size_t bytes) {
    return bytes <= (size_t)(c->round_bytes / c->nranks);
}

static Err mpi_all_gather(Comm *c, void *dst, const void *src, size_t bytes) {
    MpiGroup *g = c->impl;
    if (bytes == 0) return OK;
    if (!is_small(c, bytes)) {
        TRY(by_messages(c, dst, src, (int64_t)bytes, true));
        return OK;
    }
    bool is_in_place = src == (char *)dst + (size_t)c->rank * bytes;
    TRY_MPI(MPI_Allgather(is_in_place ? MPI_IN_PLACE : src, (int)bytes, MPI_BYTE, dst, (int)bytes,
                          MPI_BYTE, g->comm));
    return OK;
}

static Err mpi_all_to_all(Comm *c, void *dst, const void *src, size_t bytes) {
    MpiGroup *g = c->impl;
    if (bytes == 0) return OK;
    if (!is_small(c, bytes)) {
        TRY(by_messages(c, dst, src, (int64_t)bytes, false));
        return OK;
    }
    TRY_MPI(MPI_Alltoall(src, (int)bytes, MPI_BYTE, dst, (int)bytes, MPI_BYTE, g->comm));
    return OK;
}

static Err mpi_broadcast(Comm *c, void *buf, size_t bytes, int root) {
    MpiGroup *g = c->impl;
    CHECK(root >= 0 && root < c->nranks, E_INTERNAL, "comm %s: broadcast from rank %d of %d",
          c->name, root, c->nranks);
    for (size_t at = 0; at < bytes; at += (size_t)c->round_bytes) {
        int64_t piece = min_i64((int64_t)(bytes - at), c->round_bytes);
        TRY_MPI(MPI_Bcast((char *)buf + at, (int)piece, MPI_BYTE, root, g->comm));
    }
    return OK;
}

static Err mpi_reduce_i64(Comm *c, int64_t *x, int n, bool is_max) {
    MpiGroup *g = c->impl;
    if (n == 0) return OK;
    // Unsigned: a sum that wraps around is defined.
    MPI_Datatype type = is_max ? MPI_INT64_T : MPI_UINT64_T;
    TRY_MPI(MPI_Allreduce(MPI_IN_PLACE, x, n, type, is_max ? MPI_MAX : MPI_SUM, g->comm));
    return OK;
}

static void mpi_destroy(Comm *c) {
    MpiGroup *g = c->impl;
    if (!g) return;
    int is_over = 0;
    if (MPI_Finalized(&is_over) == MPI_SUCCESS && !is_over) MPI_Comm_free(&g->comm);
    mem_free(g->request);
    mem_free(g->status);
    mem_free(g->block);
    mem_free(g);
    c->impl = NULL;
}

static Err fill_group(Comm *c) {
    MpiGroup *g = c->impl;
    MEM_NEW(g->request, FLIGHTS * 2 * c->nranks);
    for (int i = 0; i < FLIGHTS; i++)
        g->flight[i].request = g->request + (int64_t)i * 2 * c->nranks;
    MEM_NEW(g->status, 2 * c->nranks);
    MEM_NEW(g->block, 4 * c->nranks);
    return OK;
}

static Err make(Comm **out, const char *name, MPI_Comm group) {
    int rank = 0, nranks = 0;
    TRY_MPI(MPI_Comm_rank(group, &rank));
    TRY_MPI(MPI_Comm_size(group, &nranks));
    TRY_MPI(MPI_Comm_set_errhandler(group, MPI_ERRORS_RETURN));
    TRY(comm_new(out, name, rank, nranks));
    TRY(mem_alloc(&(*out)->impl, sizeof(MpiGroup), "MPI group"));
    return OK;
}

Err comm_mpi(Comm **out, const char *name, MPI_Comm group, int world_rank) {
    Comm *c = NULL;
    Err err = make(&c, name, group);
    if (err != OK) {
        MPI_Comm_free(&group);
        goto failed;
    }
    ((MpiGroup *)c->impl)->comm = group;
    c->world_rank = world_rank;
    c->destroy = mpi_destroy;
    c->barrier = mpi_barrier;
    c->all_gather = mpi_all_gather;
    c->all_to_all = mpi_all_to_all;
    c->all_to_all_v = mpi_all_to_all_v;
    c->start = mpi_start;
    c->finish = mpi_finish;
    c->advance = mpi_advance;
    c->broadcast = mpi_broadcast;
    c->reduce_i64 = mpi_reduce_i64;
    TRY_OR(fill_group(c), failed);
    *out = c;
    return OK;
failed:
    comm_destroy(&c);
    return err;
}
