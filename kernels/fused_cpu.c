// fused_cpu.c - the fused producers on the CPU: the single operations, block of rows by block of rows.
//
// Threads share out blocks; inside a block one thread calls the single operations on views, so bits and counters are
// theirs and what lies between them stays in that core's cache. Contract: fused.h.
#include "fused.h"

#include <string.h>

#include "ops.h"
#include "quant_cpu.h"
#include "row_lanes.h"

enum { ROWS = 32 };      // rows of a block where tiles do not run along the tokens
enum { AT_ONCE = 4096 }; // values of g that the backward decodes at a time

// What one thread works in.
typedef struct Room {
    OpCx cx; // one thread
    char *at;
    size_t bytes;
} Room;

// A block of the backward is a tile of tokens of a group; where transposed codes go past the caches as many tiles as
// quant_cpu.h then writes at once, if the cache has room for their values.
enum { FAR_VALUES = 1 << 17 };

static int64_t bwd_rows(int64_t cols) {
    return min_i64(FAR_RUN, max_i64(1, FAR_VALUES / max_i64(cols, 1) / TILE) * TILE);
}

size_t fused_scratch_bytes(int nthreads, int64_t cols) {
    // g, u and h of a block of the backward in BF16, and the codes of h.
    int64_t row = 3 * 2 * cols + matq_row_bytes(SCALE_F32, cols);
    return (size_t)nthreads * ((size_t)(bwd_rows(cols) * row) + 8 * ARENA_ALIGN);
}

static Err rooms_make(OpCx *cx, Room **rooms, int nthreads, int64_t cols) {
    ARENA_NEW(cx->scratch, *rooms, nthreads);
    for (int i = 0; i < nthreads; i++) {
        Room *r = *rooms + i;
        r->cx = *cx;
        r->cx.nthreads = 1;
        r->bytes = fused_scratch_bytes(1, cols);
        ARENA_NEW(cx->scratch, r->at, r->bytes);
    }
    return OK;
}

// Memory of a room, from its start on; nothing is given back.
static void *take(Room *r, size_t *used, size_t bytes) {
    void *p = r->at + *used;
    *used += (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    return p;
}

static Mat take_mat(Room *r, size_t *used, int64_t rows, int64_t cols) {
    return mat(take(r, used, (size_t)(rows * cols) * 2), DT_BF16, rows, cols);
}

static int threads_for(const OpCx *cx, int64_t values, int64_t blocks) {
    if (values < 8192 || cx->nthreads < 1) return 1;
    return (int)max_i64(1, min_i64(cx->nthreads, blocks));
}

// A block of rows, with all that its operation needs.
typedef Err (*BlockFn)(const void *job, Room *room, int64_t block);

// Every block once, on all threads; the first error of any.
static Err run_blocks(OpCx *cx, BlockFn fn, const void *job, int64_t blocks, int64_t cols, int64_t values) {
    Err first = OK;
    Room *rooms = NULL;
    int nthreads = threads_for(cx, values, blocks), next = 0;
    size_t mark = arena_mark(cx->scratch);
    TRY(rooms_make(cx, &rooms, nthreads, cols));
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        Room *room = NULL;
#pragma omp critical(fused_room)
        room = rooms + next++;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < blocks; i++) {
            Err e = fn(job, room, i);
            if (e == OK) continue;
#pragma omp critical(fused_room)
            first = first == OK ? e : first;
        }
        quant_settle(nthreads > 1);
    }
    arena_release(cx->scratch, mark);
    return first;
}

// --- RMSNorm ---

typedef struct NormJob {
    QuantOut q;
    Mat y, x;
    float *rstd;
    const float *w;
    float eps;
} NormJob;

static Err norm_block(const void *job, Room *room, int64_t block) {
    const NormJob *j = job;
    size_t used = 0;
    int64_t r0 = block * ROWS, n = min_i64(ROWS, j->x.rows - r0);
    Mat y = j->y.p ? mat_rows(j->y, r0, n) : take_mat(room, &used, n, j->x.cols);
    TRY(norm_rms_fwd_cpu(&room->cx, y, j->rstd ? j->rstd + r0 : NULL, mat_rows(j->x, r0, n), j->w, j->eps));
    return quant_tile_cpu(&room->cx, matq_rows(j->q.q, r0, n), y, (QuantRule){0}, j->q.n);
}

Err norm_quant_fwd_cpu(OpCx *cx, QuantOut q, Mat y, float *rstd, Mat x, const float *w, float eps) {
    CHECK(q.q.rows == x.rows && q.q.cols == x.cols && (!y.p || (y.rows == x.rows && y.cols == x.cols)), E_INTERNAL,
          "norm_quant_fwd: shapes disagree");
    NormJob job = {q, y, x, rstd, w, eps};
    return run_blocks(cx, norm_block, &job, ceil_div(x.rows, ROWS), x.cols, x.rows * x.cols);
}

// --- SwiGLU ---

typedef struct GatedJob {
    QuantOut h, g_kept, u_kept;
    Mat g, u;
    const float *gate;
} GatedJob;

static Err gated_block(const void *job, Room *room, int64_t block) {
    const GatedJob *j = job;
    size_t used = 0;
    QuantRule tiles = {0};
    int64_t r0 = block * ROWS, n = min_i64(ROWS, j->g.rows - r0);
    Mat h = take_mat(room, &used, n, j->g.cols), g = mat_rows(j->g, r0, n), u = mat_rows(j->u, r0, n);
    TRY(swiglu_fwd_cpu(&room->cx, h, g, u, j->gate ? j->gate + r0 : NULL));
    TRY(quant_tile_cpu(&room->cx, matq_rows(j->h.q, r0, n), h, tiles, j->h.n));
    TRY(quant_tile_cpu(&room->cx, matq_rows(j->g_kept.q, r0, n), g, tiles, j->g_kept.n));
    return quant_tile_cpu(&room->cx, matq_rows(j->u_kept.q, r0, n), u, tiles, j->u_kept.n);
}

static bool is_shape(QuantOut o, int64_t rows, int64_t cols) {
    return o.q.rows == rows && o.q.cols == cols;
}

Err swiglu_quant_fwd_cpu(OpCx *cx, QuantOut h, QuantOut g_kept, QuantOut u_kept, Mat g, Mat u, const float *gate) {
    int64_t M = g.rows, F = g.cols;
    CHECK(u.rows == M && u.cols == F && is_shape(h, M, F) && is_shape(g_kept, M, F) && is_shape(u_kept, M, F),
          E_INTERNAL, "swiglu_quant_fwd: shapes disagree");
    GatedJob job = {h, g_kept, u_kept, g, u, gate};
    return run_blocks(cx, gated_block, &job, ceil_div(M, ROWS), F, M * F * 8);
}

typedef struct GatedBwdJob {
    SwigluQuantBwd out;
    float *dgate;
    Mat dh;
    MatQ g, u;
    const float *gate;
    Groups groups;
    int64_t rows; // of a block
} GatedBwdJob;

// From h in BF16 its 128x1 tiles; its codes exist for this block only.
static Err turned_h(const GatedBwdJob *j, Room *room, size_t used, Mat h, MatQ h_t) {
    int64_t bytes = matq_row_bytes(h_t.st, h.cols) * h.rows;
    MatQ hq = matq_wire(take(room, &used, (size_t)bytes), h_t.st, h_t.ct, h.rows, h.cols);
    TRY(quant_tile_cpu(&room->cx, hq, h, (QuantRule){0}, NULL));
    return requant_tile_t_cpu(&room->cx, h_t, hq, (Groups){0}, (QuantRule){0}, j->out.h_t.n);
}

// Rows [r0, r0+n) of group e in both forms.
static Err both_forms(Room *room, QuantOut rows, QuantOut cols, Mat x, int64_t r0, int64_t tile) {
    QuantRule tiles = {0};
    return quant_tile_pair_cpu(&room->cx, matq_rows(rows.q, r0, x.rows), matq_cols(cols.q, r0, x.rows, tile), x,
                               (Groups){0}, tiles, tiles, rows.n, cols.n);
}

// Gradients g and u, and h, of rows [r0, r0+n): swiglu_bwd of what was kept, and swiglu_fwd, which needs the same
// exponentials. A few rows at a time, so that what is decoded is worked on in the first cache.
static Err unit_rows(const GatedBwdJob *j, Room *room, Mat g, Mat u, Mat h, int64_t r0) {
    int64_t step = max_i64(1, AT_ONCE / max_i64(g.cols, 1)), n;
    for (int64_t at = 0; at < g.rows; at += n) {
        n = min_i64(step, g.rows - at);
        Mat gr = mat_rows(g, at, n), ur = mat_rows(u, at, n), hr = mat_rows(h, at, n), dh = mat_rows(j->dh, r0 + at, n);
        TRY(dequant_cpu(&room->cx, gr, matq_rows(j->g, r0 + at, n)));
        TRY(dequant_cpu(&room->cx, ur, matq_rows(j->u, r0 + at, n)));
        row_swiglu_bwd(gr, ur, hr, j->dgate ? j->dgate + r0 + at : NULL, dh, gr, ur, j->gate ? j->gate + r0 + at : NULL,
                       0, n);
    }
    return OK;
}

static Err gated_bwd_block(const void *job, Room *room, int64_t block) {
    const GatedBwdJob *j = job;
    SpanWalk walk = {0};
    Span p = span_at(j->groups, j->rows, block, &walk);
    int64_t r0 = p.row, n = p.rows, tile = p.tile, F = j->dh.cols;
    size_t used = 0;
    Mat g = take_mat(room, &used, n, F), u = take_mat(room, &used, n, F), h = take_mat(room, &used, n, F);
    TRY(unit_rows(j, room, g, u, h, r0));
    TRY(turned_h(j, room, used, h, matq_cols(j->out.h_t.q, r0, n, tile)));
    TRY(both_forms(room, j->out.dg, j->out.dg_t, g, r0, tile));
    return both_forms(room, j->out.du, j->out.du_t, u, r0, tile);
}

Err swiglu_quant_bwd_cpu(OpCx *cx, SwigluQuantBwd out, float *dgate, Mat dh, MatQ g, MatQ u, const float *gate,
                         Groups groups) {
    int64_t M = dh.rows, F = dh.cols, start = 0;
    CHECK(g.rows == M && g.cols == F && u.rows == M && u.cols == F && is_shape(out.dg, M, F) &&
              is_shape(out.du, M, F) && is_shape(out.dg_t, F, M) && is_shape(out.du_t, F, M) &&
              is_shape(out.h_t, F, M) && (dh.t == DT_F32 || dh.t == DT_BF16),
          E_INTERNAL, "swiglu_quant_bwd: shapes disagree");
    if (groups.n == 0) groups = (Groups){&start, &M, 1};
    for (int64_t e = 0; e < groups.n; e++)
        CHECK(groups.start[e] >= 0 && groups.count[e] >= 0 && groups.start[e] + groups.count[e] <= M, E_INTERNAL,
              "swiglu_quant_bwd: group %lld has rows %lld..%lld of %lld", (long long)e, (long long)groups.start[e],
              (long long)(groups.start[e] + groups.count[e]), (long long)M);
    int64_t rows = quant_is_far(quant_chosen(), F * M) ? bwd_rows(F) : TILE;
    GatedBwdJob job = {out, dgate, dh, g, u, gate, groups, rows};
    return run_blocks(cx, gated_bwd_block, &job, spans_of(groups, rows), F, M * F * 16);
}
