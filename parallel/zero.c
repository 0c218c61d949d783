// zero.c - gradients to their owners, updated rows to everybody, in buckets of bounded size.
//
// A bucket is a run of the stream "tensor 0 rows 0,1,2..., tensor 1 rows 0,1,2..., ..." where row j
// of a tensor means row j of every owner's range, so that all owners get their share of each
// bucket. An owner's part of a bucket is at most bucket_bytes / nranks: then neither a sender (all
// owners' parts) nor an owner (its part from every rank) needs more than bucket_bytes, even for
// tensors that one rank owns whole.
#include "zero.h"

#include <string.h>

typedef struct Cursor {
    int64_t tensor, row; // row of each owner's range
} Cursor;

typedef struct Zero {
    Comm *group;
    const ZeroTensor *t;
    int64_t n;
    bool is_params;       // rows of `param`, else FP32 rows of `grad`
    int64_t limit;        // bytes of one owner in a bucket
    char *send, *recv;    // [capacity]
    int64_t *used;        // [nranks] bytes of each owner in this bucket
    int64_t *at;          // [nranks] next byte while packing
    int64_t *soff, *roff; // [nranks]
    int64_t *same;        // [nranks] this rank's part, to or from everybody
} Zero;

static int64_t row_bytes(const Zero *z, const ZeroTensor *t) {
    return t->cols * (z->is_params ? t->param_bytes : (int64_t)sizeof(float));
}

// piece: rows of owner r that the bucket [from, to) takes of tensor i: *row0 in the tensor, returns
// how many.
static int64_t piece(const Zero *z, Cursor from, Cursor to, int64_t i, int r, int64_t *row0) {
    const ShardRange *range = &z->t[i].range[r];
    int64_t a = i == from.tensor ? min_i64(from.row, range->nrows) : 0;
    int64_t b = i == to.tensor ? min_i64(to.row, range->nrows) : range->nrows;
    *row0 = range->row0 + a;
    return b - a;
}

// next_bucket: the end of the bucket that starts at `from`; fills used. At least one row per owner.
static Cursor next_bucket(Zero *z, Cursor from) {
    int nranks = z->group->nranks;
    memset(z->used, 0, (size_t)nranks * sizeof *z->used);
    Cursor to = from;
    bool is_empty = true;
    while (to.tensor < z->n) {
        const ZeroTensor *t = &z->t[to.tensor];
        int64_t bytes = row_bytes(z, t);
        int64_t left = 0; // of the longest range
        for (int r = 0; r < nranks; r++) left = max_i64(left, t->range[r].nrows - to.row);
        if (left <= 0 || bytes == 0) {
            to = (Cursor){to.tensor + 1, 0};
            continue;
        }
        int64_t take = left;
        for (int r = 0; r < nranks; r++) {
            if (t->range[r].nrows > to.row) take = min_i64(take, (z->limit - z->used[r]) / bytes);
        }
        if (take <= 0) {
            if (!is_empty) return to;
            take = 1; // a row larger than the limit
        }
        for (int r = 0; r < nranks; r++) {
            int64_t end = min_i64(to.row + take, t->range[r].nrows);
            z->used[r] += max_i64(end - to.row, 0) * bytes;
        }
        is_empty = false;
        to.row += take;
    }
    return to;
}

// last_tensor: one past the last tensor that the bucket touches.
static int64_t last_tensor(const Zero *z, Cursor to) {
    return min_i64(to.tensor + (to.row > 0 ? 1 : 0), z->n);
}

static Err zero_open(Zero *z, Arena *scratch, size_t bucket_bytes) {
    int nranks = z->group->nranks;
    int64_t widest = 1;
    for (int64_t i = 0; i < z->n; i++) {
        const ZeroTensor *t = &z->t[i];
        CHECK(!z->is_params || t->param_bytes == 2 || t->param_bytes == 4, E_INTERNAL,
              "zero: tensor %lld has parameters of %d bytes", (long long)i, t->param_bytes);
        widest = max_i64(widest, row_bytes(z, t));
    }
    z->limit = max_i64((int64_t)bucket_bytes / nranks, 1);
    int64_t part = max_i64(z->limit, widest);
    TRY(arena_push(scratch, (void **)&z->send, (size_t)(z->is_params ? part : part * nranks),
                   "zero send"));
    TRY(arena_push(scratch, (void **)&z->recv, (size_t)(part * nranks), "zero recv"));
    ARENA_NEW(scratch, z->used, nranks);
    ARENA_NEW(scratch, z->at, nranks);
    ARENA_NEW(scratch, z->soff, nranks);
    ARENA_NEW(scratch, z->roff, nranks);
    ARENA_NEW(scratch, z->same, nranks);
    return OK;
}

// each_bucket: all tensors, bucket by bucket, through memory that lives only here; in measure mode the
// memory alone.
static Err each_bucket(Zero *z, Arena *scratch, size_t bucket_bytes,
                       Err (*exchange)(Zero *z, Cursor from, Cursor to)) {
    size_t mark = arena_mark(scratch);
    TRY(zero_open(z, scratch, bucket_bytes));
    for (Cursor from = {0, 0}; from.tensor < z->n && !z->group->is_null;) {
        Cursor to = next_bucket(z, from);
        TRY(exchange(z, from, to));
        from = to;
    }
    arena_release(scratch, mark);
    return OK;
}

// ---- gradients --------------------------------------------------------------------------------

// reduce_bucket: parts to their owners, then the sum over the sources, rank 0 first.
static Err reduce_bucket(Zero *z, Cursor from, Cursor to) {
    Comm *g = z->group;
    int64_t mine = z->used[g->rank];
    int64_t off = 0;
    for (int r = 0; r < g->nranks; r++) {
        z->soff[r] = z->at[r] = off;
        off += z->used[r];
        z->roff[r] = r * mine;
        z->same[r] = mine;
    }
    for (int64_t i = from.tensor; i < last_tensor(z, to); i++) {
        const ZeroTensor *t = &z->t[i];
        int64_t bytes = row_bytes(z, t);
        for (int r = 0; r < g->nranks; r++) {
            int64_t row0 = 0;
            int64_t rows = piece(z, from, to, i, r, &row0);
            if (rows <= 0) continue;
            memcpy(z->send + z->at[r], t->grad + row0 * t->cols, (size_t)(rows * bytes));
            z->at[r] += rows * bytes;
        }
    }
    TRY(g->all_to_all_v(g, z->recv, z->same, z->roff, z->send, z->used, z->soff, 1));

    int64_t done = 0;
    for (int64_t i = from.tensor; i < last_tensor(z, to); i++) {
        const ZeroTensor *t = &z->t[i];
        int64_t row0 = 0;
        int64_t rows = piece(z, from, to, i, g->rank, &row0);
        if (rows <= 0) continue;
        int64_t n = rows * t->cols;
        float *sum = t->grad_shard + (row0 - t->range[g->rank].row0) * t->cols;
        // The own rows were packed above, so sum may be the same memory as grad.
        memcpy(sum, z->recv + done, (size_t)n * sizeof *sum);
        for (int r = 1; r < g->nranks; r++) {
            const float *x = (const float *)(z->recv + r * mine + done);
            for (int64_t j = 0; j < n; j++) sum[j] += x[j];
        }
        done += n * (int64_t)sizeof *sum;
    }
    return OK;
}

Err zero_reduce(Comm *group, const ZeroTensor *t, int64_t n, Arena *scratch, size_t bucket_bytes) {
    if (group->nranks == 1) {
        for (int64_t i = 0; i < n && !group->is_null; i++) {
            const ShardRange *own = &t[i].range[0];
            const float *from = t[i].grad + own->row0 * t[i].cols;
            size_t bytes = (size_t)(own->nrows * t[i].cols) * sizeof *from;
            if (t[i].grad_shard != from && bytes > 0) memmove(t[i].grad_shard, from, bytes);
        }
        return OK;
    }
    Zero z = {.group = group, .t = t, .n = n};
    return each_bucket(&z, scratch, bucket_bytes, reduce_bucket);
}

// ---- parameters -------------------------------------------------------------------------------

// gather_bucket: this rank's part to everybody; the others' parts into place.
static Err gather_bucket(Zero *z, Cursor from, Cursor to) {
    Comm *g = z->group;
    int64_t mine = 0;
    int64_t off = 0;
    for (int64_t i = from.tensor; i < last_tensor(z, to); i++) {
        const ZeroTensor *t = &z->t[i];
        int64_t row0 = 0;
        int64_t rows = piece(z, from, to, i, g->rank, &row0);
        if (rows <= 0) continue;
        int64_t bytes = row_bytes(z, t);
        memcpy(z->send + mine, (char *)t->param + row0 * bytes, (size_t)(rows * bytes));
        mine += rows * bytes;
    }
    for (int r = 0; r < g->nranks; r++) {
        z->soff[r] = 0;
        z->same[r] = mine;
        z->roff[r] = z->at[r] = off;
        off += z->used[r];
    }
    TRY(g->all_to_all_v(g, z->recv, z->used, z->roff, z->send, z->same, z->soff, 1));
    for (int64_t i = from.tensor; i < last_tensor(z, to); i++) {
        const ZeroTensor *t = &z->t[i];
        int64_t bytes = row_bytes(z, t);
        for (int r = 0; r < g->nranks; r++) {
            int64_t row0 = 0;
            int64_t rows = piece(z, from, to, i, r, &row0);
            if (rows <= 0 || r == g->rank) continue;
            memcpy((char *)t->param + row0 * bytes, z->recv + z->at[r], (size_t)(rows * bytes));
            z->at[r] += rows * bytes;
        }
    }
    return OK;
}

Err zero_gather(Comm *group, const ZeroTensor *t, int64_t n, Arena *scratch, size_t bucket_bytes) {
    if (group->nranks == 1) return OK;
    Zero z = {.group = group, .t = t, .n = n, .is_params = true};
    return each_bucket(&z, scratch, bucket_bytes, gather_bucket);
}
