// comm_self.c - groups without a library: one rank that copies memory, and the group of measure
// mode that only pretends. Neither ever touches MPI.
#include "comm.h"

#include <string.h>

#include "arena.h"

Err comm_new(Comm **out, const char *name, int rank, int nranks) {
    CHECK(nranks >= 1 && rank >= 0 && rank < nranks, E_INTERNAL, "comm %s: rank %d of %d", name,
          rank, nranks);
    Comm *c = NULL;
    MEM_NEW(c, 1);
    Err err = mem_alloc(&c->scratch, (size_t)nranks * COMM_CHUNK, "comm scratch");
    if (err != OK) {
        mem_free(c);
        return fail_frame(err, __FILE__, __LINE__);
    }
    c->name = name;
    c->rank = rank;
    c->nranks = nranks;
    c->world_rank = rank;
    c->round_bytes = (int64_t)1 << 30;
    *out = c;
    return OK;
}

void comm_destroy(Comm **c) {
    if (!*c) return;
    comm_destroy(&(*c)->on_device);
    if ((*c)->destroy) (*c)->destroy(*c);
    mem_free((*c)->scratch);
    mem_free((*c)->watch);
    mem_free(*c);
    *c = NULL;
}

// ---- one rank ---------------------------------------------------------------------------------

static Err self_barrier(Comm *c) {
    (void)c;
    return OK;
}

// The blocks may be the same memory: then there is nothing to do.
static void copy(void *dst, const void *src, size_t bytes) {
    if (bytes > 0 && dst != src) memmove(dst, src, bytes);
}

static Err self_block(Comm *c, void *dst, const void *src, size_t bytes) {
    (void)c;
    copy(dst, src, bytes);
    return OK;
}

static Err self_all_to_all_v(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff,
                             const void *src, const int64_t *scount, const int64_t *soff,
                             size_t row_bytes) {
    CHECK(rcount[0] == scount[0], E_INTERNAL, "comm %s: sends %lld rows to itself but expects %lld",
          c->name, (long long)scount[0], (long long)rcount[0]);
    copy((char *)dst + (size_t)roff[0] * row_bytes, (const char *)src + (size_t)soff[0] * row_bytes,
         (size_t)scount[0] * row_bytes);
    return OK;
}

static Err self_broadcast(Comm *c, void *buf, size_t bytes, int root) {
    (void)buf;
    (void)bytes;
    CHECK(root == 0, E_INTERNAL, "comm %s: broadcast from rank %d of 1", c->name, root);
    return OK;
}

Err comm_self(Comm **out, const char *name) {
    Comm *c = NULL;
    TRY(comm_new(&c, name, 0, 1));
    c->barrier = self_barrier;
    c->all_gather = self_block;
    c->all_to_all = self_block;
    c->all_to_all_v = self_all_to_all_v;
    c->broadcast = self_broadcast;
    *out = c;
    return OK;
}

// ---- measure mode -----------------------------------------------------------------------------

static Err null_block(Comm *c, void *dst, const void *src, size_t bytes) {
    (void)c;
    (void)dst;
    (void)src;
    (void)bytes;
    return OK;
}

static Err null_all_to_all_v(Comm *c, void *dst, const int64_t *rcount, const int64_t *roff,
                             const void *src, const int64_t *scount, const int64_t *soff,
                             size_t row_bytes) {
    (void)c;
    (void)dst;
    (void)rcount;
    (void)roff;
    (void)src;
    (void)scount;
    (void)soff;
    (void)row_bytes;
    return OK;
}

static Err null_broadcast(Comm *c, void *buf, size_t bytes, int root) {
    (void)c;
    (void)buf;
    (void)bytes;
    (void)root;
    return OK;
}

Err comm_null(Comm **out, const char *name, int rank, int nranks) {
    Comm *c = NULL;
    TRY(comm_new(&c, name, rank, nranks));
    c->is_null = true;
    c->barrier = self_barrier;
    c->all_gather = null_block;
    c->all_to_all = null_block;
    c->all_to_all_v = null_all_to_all_v;
    c->broadcast = null_broadcast;
    *out = c;
    return OK;
}
