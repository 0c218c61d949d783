// zero.c - gradients to their owners, updated rows to everybody, in buckets of bounded size.
//
// A bucket is a run of the stream "tensor 0 rows 0,1,2..., tensor 1 rows 0,1,2..., ..." where row j
// of a tensor means row j of every owner's range, so that all owners get their share of each
// bucket. An owner's part of a bucket is at most bucket_bytes / nranks: then neither a sender (all
// owners' parts) nor an owner (its part from every rank) needs more than bucket_bytes, even for
// tensors that one rank owns whole. A rank's own rows are in no message: they are where they are
// needed.
#include "zero.h"

#include <string.h>

static int64_t row_bytes(const Zero *z, const ZeroTensor *t) {
    return t->cols * (z->is_params ? t->param_bytes : (int64_t)sizeof(float));
}

// piece: rows of owner r that run b takes of tensor i: *row0 in the tensor, returns how many.
static int64_t piece(const Zero *z, const ZeroRun *b, int64_t i, int r, int64_t *row0) {
    const ShardRange *range = &z->t[i].range[r];
    int64_t from = i == b->tensor ? min_i64(b->row, range->nrows) : 0;
    int64_t to = i == b->to_tensor ? min_i64(b->to_row, range->nrows) : range->nrows;
    *row0 = range->row0 + from;
    return to - from;
}

// last_tensor: one past the last tensor that the run touches.
static int64_t last_tensor(const ZeroRun *b) {
    return b->to_tensor + (b->to_row > 0 ? 1 : 0);
}

// next_run: the bucket that starts where the last one ended, from the first n tensors; fills
// `used`. At least one row per owner. False if these tensors do not fill it; it then holds what is
// left of them.
static bool next_run(Zero *z, ZeroRun *b, int64_t n) {
    int nranks = z->group->nranks;
    memset(z->used, 0, (size_t)nranks * sizeof *z->used);
    int64_t tensor = z->tensor, row = z->row;
    bool is_empty = true, is_full = false;
    while (tensor < n && !is_full) {
        const ZeroTensor *t = &z->t[tensor];
        int64_t bytes = row_bytes(z, t);
        int64_t left = 0; // of the longest range
        for (int r = 0; r < nranks; r++) left = max_i64(left, t->range[r].nrows - row);
        if (left <= 0 || bytes == 0) {
            tensor++;
            row = 0;
            continue;
        }
        int64_t take = left;
        for (int r = 0; r < nranks; r++) {
            if (t->range[r].nrows > row) take = min_i64(take, (z->limit - z->used[r]) / bytes);
        }
        if (take <= 0) {
            is_full = !is_empty;
            take = is_empty ? 1 : 0; // a row larger than the limit
        }
        for (int r = 0; r < nranks; r++) {
            int64_t end = min_i64(row + take, t->range[r].nrows);
            z->used[r] += max_i64(end - row, 0) * bytes;
        }
        is_empty = false;
        row += take;
    }
    *b = (ZeroRun){z->tensor, z->row, tensor, row};
    return is_full;
}

// take, give: bytes of the device's memory into a bucket, and out of it.
static Err take(const Zero *z, void *bucket, const void *from, int64_t bytes) {
    return z->device ? z->dev->copy(bucket, from, (size_t)bytes) : z->dev->to_host(bucket, from, (size_t)bytes);
}

static Err give(const Zero *z, void *to, const void *bucket, int64_t bytes) {
    return z->device ? z->dev->copy(to, bucket, (size_t)bytes) : z->dev->to_device(to, bucket, (size_t)bytes);
}

// ---- gradients --------------------------------------------------------------------------------

// pack_grads: every other owner's rows of this rank's contribution.
static Err pack_grads(Zero *z, ZeroBucket *b) {
    Comm *g = z->group;
    int64_t off = 0, in = 0;
    for (int r = 0; r < g->nranks; r++) {
        bool is_own = r == g->rank;
        b->scount[r] = is_own ? 0 : z->used[r];
        b->rcount[r] = is_own ? 0 : z->used[g->rank];
        b->soff[r] = off;
        b->roff[r] = in;
        in += b->rcount[r];
        for (int64_t i = b->run.tensor; i < last_tensor(&b->run) && !is_own; i++) {
            const ZeroTensor *t = &z->t[i];
            int64_t row0 = 0, bytes = row_bytes(z, t);
            int64_t rows = piece(z, &b->run, i, r, &row0);
            if (rows <= 0) continue;
            TRY(take(z, b->send + off, t->grad + row0 * t->cols, rows * bytes));
            off += rows * bytes;
        }
    }
    return OK;
}

// sum_block: out = the sum over ranks, rank 0 first; own is this rank's part and may be out. n <=
// SUM_BLOCK.
enum { SUM_BLOCK = 1024 };
static void sum_block(const Zero *z, const ZeroBucket *b, float *out, const float *own, int64_t at,
                      int64_t n) {
    float sum[SUM_BLOCK];
    for (int r = 0; r < z->group->nranks; r++) {
        const float *x = r == z->group->rank ? own : (const float *)(b->recv + b->roff[r] + at);
        if (r == 0)
            memcpy(sum, x, (size_t)n * sizeof *sum);
        else
            for (int64_t j = 0; j < n; j++) sum[j] += x[j];
    }
    memcpy(out, sum, (size_t)n * sizeof *sum);
}

static Err sum_grads(Zero *z, const ZeroBucket *b) {
    int64_t done = 0; // bytes of every source's part
    for (int64_t i = b->run.tensor; i < last_tensor(&b->run); i++) {
        const ZeroTensor *t = &z->t[i];
        int64_t row0 = 0;
        int64_t rows = piece(z, &b->run, i, z->group->rank, &row0);
        if (rows <= 0) continue;
        int64_t n = rows * t->cols;
        float *out = t->grad_shard + (row0 - t->range[z->group->rank].row0) * t->cols;
        const float *own = t->grad + row0 * t->cols;
        float *to = z->stage ? z->stage : out;
        if (z->device) { // the others' parts of this bucket are of the same size, one behind the other
            int me = z->group->rank, n_ranks = z->group->nranks;
            const float *parts = (const float *)(b->recv + done);
            TRY(z->rows.sum(z->rows.user, out, own, me, parts, z->used[me] / (int64_t)sizeof *out, n_ranks, n));
            done += n * (int64_t)sizeof *out;
            continue;
        }
        if (z->stage) {
            TRY(z->dev->to_host(z->stage, own, (size_t)n * sizeof *own));
            own = z->stage;
        }
        for (int64_t j = 0; j < n; j += SUM_BLOCK) {
            sum_block(z, b, to + j, own + j, done + j * (int64_t)sizeof *out,
                      min_i64(n - j, SUM_BLOCK));
        }
        if (z->stage) TRY(z->dev->to_device(out, z->stage, (size_t)n * sizeof *out));
        done += n * (int64_t)sizeof *out;
    }
    return OK;
}

// ---- parameters -------------------------------------------------------------------------------

// pack_params: this rank's rows, the same for everybody.
static Err pack_params(Zero *z, ZeroBucket *b) {
    Comm *g = z->group;
    int64_t mine = 0, in = 0;
    for (int64_t i = b->run.tensor; i < last_tensor(&b->run); i++) {
        const ZeroTensor *t = &z->t[i];
        int64_t row0 = 0, bytes = row_bytes(z, t);
        int64_t rows = piece(z, &b->run, i, g->rank, &row0);
        if (rows <= 0) continue;
        TRY(take(z, b->send + mine, (char *)t->param + row0 * bytes, rows * bytes));
        mine += rows * bytes;
    }
    for (int r = 0; r < g->nranks; r++) {
        b->scount[r] = r == g->rank ? 0 : mine;
        b->rcount[r] = r == g->rank ? 0 : z->used[r];
        b->soff[r] = 0;
        b->roff[r] = in;
        in += b->rcount[r];
    }
    return OK;
}

static Err place_params(Zero *z, const ZeroBucket *b) {
    Comm *g = z->group;
    for (int r = 0; r < g->nranks; r++) {
        const char *from = b->recv + b->roff[r];
        for (int64_t i = b->run.tensor; i < last_tensor(&b->run) && r != g->rank; i++) {
            const ZeroTensor *t = &z->t[i];
            int64_t row0 = 0, bytes = row_bytes(z, t);
            int64_t rows = piece(z, &b->run, i, r, &row0);
            if (rows <= 0) continue;
            TRY(give(z, (char *)t->param + row0 * bytes, from, rows * bytes));
            from += rows * bytes;
        }
    }
    return OK;
}

// ---- buckets ----------------------------------------------------------------------------------

static bool is_idle(const Zero *z) {
    return z->group->nranks == 1 || z->group->is_null;
}

// part_bytes: most bytes of one owner in a bucket.
static int64_t part_bytes(int nranks, int64_t widest, size_t bucket_bytes) {
    return max_i64(max_i64((int64_t)bucket_bytes / nranks, 1), widest);
}

size_t zero_rows_bytes(int nranks, int64_t widest, size_t bucket_bytes) {
    return 2 * ((size_t)(part_bytes(nranks, widest, bucket_bytes) * (nranks - 1)) + ARENA_ALIGN);
}

// make_buckets: memory of n of them; data on `data`.
static Err make_buckets(Zero *z, int n, Arena *data, int64_t part) {
    int nranks = z->group->nranks;
    int64_t others = part * (nranks - 1);
    for (int i = 0; i < n; i++) {
        ZeroBucket *b = &z->bucket[i];
        TRY(arena_push(data, (void **)&b->send, (size_t)(z->is_params ? part : others), "zero send"));
        TRY(arena_push(data, (void **)&b->recv, (size_t)others, "zero recv"));
        ARENA_NEW(z->scratch, b->scount, nranks);
        ARENA_NEW(z->scratch, b->soff, nranks);
        ARENA_NEW(z->scratch, b->rcount, nranks);
        ARENA_NEW(z->scratch, b->roff, nranks);
    }
    return OK;
}

Err zero_start(Zero *z, Comm *group, const Device *dev, const ZeroTensor *t, int64_t n,
               bool is_params, Arena *scratch, size_t bucket_bytes, const ZeroRows *rows) {
    int nranks = group->nranks;
    Zero new = {
        .group = group, .dev = dev, .t = t, .n = n, .is_params = is_params, .scratch = scratch};
    new.device = group->on_device;
    *z = new;
    z->mark = arena_mark(scratch);
    for (int i = 0; i < ZERO_UNDER_WAY; i++) z->bucket[i].request = -1;
    if (nranks == 1) return OK;
    int64_t widest = 1;
    for (int64_t i = 0; i < n; i++) {
        CHECK(!is_params || t[i].param_bytes == 2 || t[i].param_bytes == 4, E_INTERNAL,
              "zero: tensor %lld has parameters of %d bytes", (long long)i, t[i].param_bytes);
        widest = max_i64(widest, row_bytes(z, &t[i]));
    }
    z->limit = max_i64((int64_t)bucket_bytes / nranks, 1);
    int64_t part = part_bytes(nranks, widest, bucket_bytes);
    ARENA_NEW(scratch, z->used, nranks);
    if (z->device) {
        CHECK(rows, E_INTERNAL, "zero: no memory of the device for group %s", group->name);
        z->rows = *rows;
        z->rows_mark = arena_mark(rows->arena);
        TRY(make_buckets(z, 1, rows->arena, part));
        return OK;
    }
    if (dev->alloc && !is_params)
        TRY(arena_push(scratch, (void **)&z->stage, (size_t)part, "zero stage"));
    TRY(make_buckets(z, ZERO_UNDER_WAY, scratch, part));
    return OK;
}

// finish_bucket: what a bucket brought. Buckets are finished in the order of their start.
static Err finish_bucket(Zero *z, ZeroBucket *b) {
    if (b->request < 0) return OK;
    TRY(comm_wait(z->group, &b->request));
    return z->is_params ? place_params(z, b) : sum_grads(z, b);
}

// pass_bucket, on_device: the run in `used`, from packing to its end, issued on the group's stream: its order keeps one
// bucket from the next, so there is one memory for all of them.
static Err pass_bucket(Zero *z, ZeroBucket *b) {
    TRY(z->is_params ? pack_params(z, b) : pack_grads(z, b));
    z->device->what = z->is_params ? "parameters" : "gradients";
    TRY(z->device->all_to_all_v(z->device, b->recv, b->rcount, b->roff, b->send, b->scount, b->soff, 1));
    return z->is_params ? place_params(z, b) : sum_grads(z, b);
}

static Err on_device(Zero *z, const ZeroRun *run) {
    ZeroBucket *b = &z->bucket[0];
    b->run = *run;
    TRY(z->device->fork(z->device));
    Err err = pass_bucket(z, b);
    TRY(z->device->unfork(z->device));
    TRY(err);
    z->tensor = run->to_tensor;
    z->row = run->to_row;
    return OK;
}

// send_run: the run in `used` leaves in the oldest bucket, which is free or complete, or is waited
// for.
static Err send_run(Zero *z, const ZeroRun *run) {
    ZeroBucket *b = &z->bucket[z->next];
    if (z->device) return on_device(z, run);
    TRY(finish_bucket(z, b));
    b->run = *run;
    TRY(z->is_params ? pack_params(z, b) : pack_grads(z, b));
    z->group->what = z->is_params ? "parameters" : "gradients";
    TRY(comm_start_all_to_all_v(z->group, &b->request, b->recv, b->rcount, b->roff, b->send,
                                b->scount, b->soff, 1));
    z->tensor = run->to_tensor;
    z->row = run->to_row;
    z->next = (z->next + 1) % ZERO_UNDER_WAY;
    return OK;
}

void zero_ready(Zero *z, int64_t n) {
    z->ready = n;
}

Err zero_advance(Zero *z) {
    while (!is_idle(z) && z->tensor < z->ready) {
        ZeroRun run;
        bool is_free = true;
        int oldest = z->bucket[z->next].request;
        if (oldest >= 0) TRY(comm_test(z->group, oldest, &is_free));
        if (!is_free || !next_run(z, &run, z->ready)) return OK;
        TRY(send_run(z, &run));
    }
    return OK;
}

Err zero_end(Zero *z) {
    for (int64_t i = 0; i < z->n && z->group->nranks == 1 && !z->group->is_null && !z->is_params;
         i++) {
        const ShardRange *own = &z->t[i].range[0];
        const float *from = z->t[i].grad + own->row0 * z->t[i].cols;
        size_t bytes = (size_t)(own->nrows * z->t[i].cols) * sizeof *from;
        if (z->t[i].grad_shard == from || bytes == 0) continue;
        CHECK(!z->dev->alloc, E_INTERNAL, "zero: on one rank the device's gradients stay in place");
        memmove(z->t[i].grad_shard, from, bytes);
    }
    while (!is_idle(z) && z->tensor < z->n) {
        ZeroRun run;
        next_run(z, &run, z->n);
        TRY(send_run(z, &run));
    }
    for (int i = 0; i < ZERO_UNDER_WAY && !is_idle(z); i++) {
        TRY(finish_bucket(z, &z->bucket[(z->next + i) % ZERO_UNDER_WAY]));
    }
    if (z->device && !is_idle(z)) {
        TRY(z->device->join(z->device));
        arena_release(z->rows.arena, z->rows_mark);
    }
    arena_release(z->scratch, z->mark);
    return OK;
}

static Err at_once(Comm *group, const Device *dev, const ZeroTensor *t, int64_t n, bool is_params,
                   Arena *scratch, size_t bucket_bytes, const ZeroRows *rows) {
    Zero z;
    TRY(zero_start(&z, group, dev, t, n, is_params, scratch, bucket_bytes, rows));
    TRY(zero_end(&z));
    return OK;
}

Err zero_reduce(Comm *group, const Device *dev, const ZeroTensor *t, int64_t n, Arena *scratch,
                size_t bucket_bytes, const ZeroRows *rows) {
    TRY(at_once(group, dev, t, n, false, scratch, bucket_bytes, rows));
    return OK;
}

Err zero_gather(Comm *group, const Device *dev, const ZeroTensor *t, int64_t n, Arena *scratch,
                size_t bucket_bytes, const ZeroRows *rows) {
    TRY(at_once(group, dev, t, n, true, scratch, bucket_bytes, rows));
    return OK;
}
