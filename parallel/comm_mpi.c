// comm_mpi.c - groups of MPI ranks, host memory.
//
// MPI counts blocks in int. Blocks up to round_bytes use the library's collectives; larger ones,
// and every all_to_all_v, are plain messages in rounds of at most round_bytes. All_to_all_v is
// always done so because "does it fit an int" is something only one rank knows, and all must take
// the same path; with messages a pair of ranks agrees by itself. Errors are E_PEER with MPI's text.
#include <string.h>

#include "arena.h"
#include "mpi_try.h"

typedef struct MpiGroup {
    MPI_Comm comm;
    MPI_Request *request; // [2 * nranks]
    MPI_Status *status;   // [2 * nranks]
    int64_t *block; // [4 * nranks]: rcount, roff, scount, soff of all_gather and all_to_all in
                    // rounds
} MpiGroup;

#define TAG_ROWS 1

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

// wait_all: wait for n messages and name the first that went wrong.
static Err wait_all(Comm *c, int n) {
    MpiGroup *g = c->impl;
    int rc = MPI_Waitall(n, g->request, g->status);
    if (rc == MPI_ERR_IN_STATUS) {
        for (int i = 0; i < n; i++) {
            int one = g->status[i].MPI_ERROR;
            if (one != MPI_SUCCESS && one != MPI_ERR_PENDING) {
                return mpi_fail(one, "MPI_Waitall", __FILE__, __LINE__);
            }
        }
    }
    TRY_MPI(rc);
    return OK;
}

// Round j carries bytes [j*round_bytes, (j+1)*round_bytes) of every block. Messages of one pair
// arrive in order, and round j of one rank only waits for rounds <= j of the others, so this cannot
// lock up.
static Err mpi_all_to_all_v(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff,
                            const void *src, const int64_t *scount, const int64_t *soff,
                            size_t row_bytes) {
    MpiGroup *g = c->impl;
    int me = c->rank, n = c->nranks;
    int64_t row = (int64_t)row_bytes;
    CHECK(rcount[me] == scount[me], E_INTERNAL,
          "comm %s: rank %d sends %lld rows to itself but expects %lld", c->name, me,
          (long long)scount[me], (long long)rcount[me]);
    for (int64_t done = 0;; done += c->round_bytes) {
        int pending = 0;
        for (int s = 1; s < n; s++) {
            int peer = (me - s + n) % n;
            int64_t left = rcount[peer] * row - done;
            if (left <= 0) continue;
            TRY_MPI(MPI_Irecv((char *)dst + roff[peer] * row + done,
                              (int)min_i64(left, c->round_bytes), MPI_BYTE, peer, TAG_ROWS, g->comm,
                              &g->request[pending++]));
        }
        for (int s = 1; s < n; s++) {
            int peer = (me + s) % n;
            int64_t left = scount[peer] * row - done;
            if (left <= 0) continue;
            TRY_MPI(MPI_Isend((const char *)src + soff[peer] * row + done,
                              (int)min_i64(left, c->round_bytes), MPI_BYTE, peer, TAG_ROWS, g->comm,
                              &g->request[pending++]));
        }
        if (done == 0 && scount[me] > 0) { // while the others' rows are on their way
            const char *from = (const char *)src + soff[me] * row;
            char *to = (char *)dst + roff[me] * row;
            if (from != to) memmove(to, from, (size_t)(scount[me] * row));
        }
        if (pending == 0) return OK;
        TRY(wait_all(c, pending));
    }
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
    MEM_NEW(g->request, 2 * c->nranks);
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
    c->broadcast = mpi_broadcast;
    c->reduce_i64 = mpi_reduce_i64;
    TRY_OR(fill_group(c), failed);
    *out = c;
    return OK;
failed:
    comm_destroy(&c);
    return err;
}
