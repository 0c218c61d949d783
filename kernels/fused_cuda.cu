// fused_cuda.cu - the fused producers on the GPU. Contract: fused.h.
//
// One kernel each, with the arithmetic of the single operations (norm_cuda.h, swiglu_cuda.h, quant_cuda.h), so that the
// bits are theirs. Bytes per element: norm 2 read, 1 written (3 with y); unit forward 4 read, 3 written; unit backward
// 4 read, or 6 where blocks have little shared memory, 5 written; and scales. Of the backward only the parts of the
// gates' gradients, one number per row and 128 columns, go through memory.
#include "norm_cuda.h"
#include "quant_cuda_turn.h"
#include "swiglu_cuda.h"
extern "C" {
#include "quant_cuda_recipe.h"
}

static const QuantRule tiles = {SCOPE_TILE, 0.0f};

static Err check_out(const char *op, QuantOut o, int64_t rows, int64_t cols) {
    TRY(quant_cuda_recipe(op, o.q, tiles));
    CHECK(o.q.rows == rows && o.q.cols == cols && o.q.tile_rows == 1, E_INTERNAL, "%s: shapes disagree", op);
    return OK;
}

extern "C" Err norm_quant_fwd_cuda(OpCx *cx, QuantOut q, Mat y, float *rstd, Mat x, const float *w, float eps) {
    (void)cx;
    int64_t T = x.rows, D = x.cols;
    TRY(check_out("norm_quant_fwd", q, T, D));
    CUDA_MAT(x, T, D);
    if (y.p) CUDA_MAT(y, T, D);
    CHECK(!y.p || y.t == DT_BF16, E_INTERNAL, "norm_quant_fwd: the output is %s, not bf16", dtype_name(y.t));
    if (T == 0 || D == 0) return OK;
    int threads = norm_threads(D);
    LAUNCH(norm_fwd_kernel<true>, norm_blocks(T, threads), dim3((unsigned)threads), 0, STREAM, y, q.q, q.n, rstd, x, w,
           eps);
    CHECK_LAUNCH("norm_quant_fwd");
    return OK;
}

static __global__ void __launch_bounds__(QUANT_THREADS)
    swiglu_quant_fwd_kernel(QuantOut h, QuantOut g_kept, QuantOut u_kept, Mat g, Mat u, const float *gate) {
    SMEM(QuantTally, tally, [3]);
    for (int i = 0; i < 3; i++) tally_clear(&tally[i]);
    uint32_t per_row = (uint32_t)((g.cols + TILE - 1) / TILE), ntiles = (uint32_t)g.rows * per_row;
    QuantPart part[3] = {};
    for (uint32_t first = first_tile(); first < ntiles; first += gridDim.x * OCTETS) {
        TilePlace p = place_of(first, ntiles, per_row, g.cols);
        float a[PER_LANE], b[PER_LANE], v[PER_LANE];
        rows16(a, g, p.r, p.c, p.mine);
        rows16(b, u, p.r, p.c, p.mine);
        quant16(g_kept.q, p.r, p.c, p.mine, a, p.is_there, &tally[1], &part[1], p.width);
        quant16(u_kept.q, p.r, p.c, p.mine, b, p.is_there, &tally[2], &part[2], p.width);
        gated16(v, a, b, gate ? gate[p.r] : 1.0f);
        UNROLL
        for (int i = 0; i < PER_LANE; i++) v[i] = i < p.mine ? quant_round(v[i]) : 0.0f;
        quant16(h.q, p.r, p.c, p.mine, v, p.is_there, &tally[0], &part[0], p.width);
    }
    tally_add(h.n, &tally[0], part[0]);
    tally_add(g_kept.n, &tally[1], part[1]);
    tally_add(u_kept.n, &tally[2], part[2]);
}

extern "C" Err swiglu_quant_fwd_cuda(OpCx *cx, QuantOut h, QuantOut g_kept, QuantOut u_kept, Mat g, Mat u,
                                     const float *gate) {
    (void)cx;
    int64_t M = g.rows, F = g.cols, ntiles = M * ceil_div(F, TILE);
    TRY(check_out("swiglu_quant_fwd", h, M, F));
    TRY(check_out("swiglu_quant_fwd", g_kept, M, F));
    TRY(check_out("swiglu_quant_fwd", u_kept, M, F));
    CUDA_MAT(g, M, F);
    CUDA_MAT(u, M, F);
    CHECK(g.t == DT_BF16 && u.t == DT_BF16, E_INTERNAL, "swiglu_quant_fwd: g and u are %s and %s, not bf16",
          dtype_name(g.t), dtype_name(u.t));
    TRY(check_tiles("swiglu_quant_fwd", ntiles));
    if (ntiles == 0) return OK;
    LAUNCH(swiglu_quant_fwd_kernel, blocks_at_once(ceil_div(ntiles, OCTETS), QUANT_PER_SM), dim3(QUANT_THREADS), 0,
           STREAM, h, g_kept, u_kept, g, u, gate);
    CHECK_LAUNCH("swiglu_quant_fwd");
    return OK;
}

// What a block of the backward keeps in shared memory: counters, and its tiles of dg, du and h. Where a block cannot
// have so much, there are two kernels: for the gradients, and for h, whose tile is then in dg's place.
typedef struct GatedRoom {
    TurnMost most;
    QuantTally tally[5];
    TurnTile dg, du, h;
} GatedRoom;

// 16 values of row r from c on: rounded, into the tile and, if they exist, into codes.
DEV void emit(QuantOut out, TurnTile *tile, int i, int64_t r, int64_t c0, int c, int mine, float *v, bool is_there,
              QuantTally *tally, QuantPart *part, int width) {
    UNROLL
    for (int k = 0; k < PER_LANE; k++) v[k] = k < mine ? quant_round(v[k]) : 0.0f;
    turn_put(tile, i, c, v);
    quant16(out.q, r, c0 + c, mine, v, is_there, tally, part, width);
}

// The values that the codes of v would have, in the formats of q: what a row of h goes through before it is turned.
DEV void through_codes(MatQ q, float *v) {
    TileStat stat = octet_stat(v);
    QuantScale s = scale_for(q.st, stat.most);
    QuantPart uncounted = {0, 0};
    decode16(v, encode16(v, s, &uncounted), s.s);
    UNROLL
    for (int k = 0; k < PER_LANE; k++) v[k] = quant_round(v[k]);
}

template <bool WITH_GRADS, bool WITH_H>
static __global__ void __launch_bounds__(QUANT_THREADS, 2)
    swiglu_quant_bwd_kernel(SwigluQuantBwd out, float *dgate_part, Mat dh, MatQ g, MatQ u, const float *gate,
                            Groups groups, DeviceFault *fault) {
    DYN_SMEM(GatedRoom, room);
    TurnTile *h = WITH_GRADS ? &room->h : &room->dg;
    GroupTile at = group_tile(groups, dh.rows, TILE, blockIdx.x, fault);
    if (at.rows == 0) return;
    for (int i = 0; i < 5; i++) tally_clear(&room->tally[i]);
    int64_t c0 = (int64_t)blockIdx.y * TILE;
    int width = (int)(dh.cols - c0 < TILE ? dh.cols - c0 : TILE);
    int octet = (int)threadIdx.x / OCTET, c = (int)threadIdx.x % OCTET * PER_LANE;
    QuantPart part[5] = {};
    for (int i = octet; i < TILE; i += OCTETS) {
        bool is_there = i < at.rows;
        int64_t r = at.row + (is_there ? i : 0);
        int mine = is_there ? width - c : 0;
        float a[PER_LANE], b[PER_LANE], v[PER_LANE], weight = gate ? gate[r] : 1.0f;
        decode16(a, load16(g.q + r * g.ld + c0 + c, mine), load_scale(g, r, c0));
        decode16(b, load16(u.q + r * u.ld + c0 + c, mine), load_scale(u, r, c0));
        UNROLL
        for (int k = 0; k < PER_LANE; k++) a[k] = quant_round(a[k]), b[k] = quant_round(b[k]);
        if constexpr (WITH_H) {
            gated16(v, a, b, weight);
            UNROLL
            for (int k = 0; k < PER_LANE; k++) v[k] = k < mine ? quant_round(v[k]) : 0.0f;
            through_codes(out.h_t.q, v);
            turn_put(h, i, c, v);
        }
        if constexpr (WITH_GRADS) {
            rows16(v, dh, r, c0 + c, mine);
            float sum = octet_sum(gated16_grad(a, b, v, weight));
            if (dgate_part && is_there && c == 0) dgate_part[r * gridDim.y + blockIdx.y] = sum;
            emit(out.dg, &room->dg, i, r, c0, c, mine, a, is_there, &room->tally[0], &part[0], width);
            emit(out.du, &room->du, i, r, c0, c, mine, b, is_there, &room->tally[1], &part[1], width);
        }
    }
    __syncthreads();
    if constexpr (WITH_GRADS) {
        turn_tile(out.dg_t.q, c0, width, at, blockIdx.x, &room->dg, &room->most, &room->tally[2], &part[2]);
        turn_tile(out.du_t.q, c0, width, at, blockIdx.x, &room->du, &room->most, &room->tally[3], &part[3]);
    }
    if constexpr (WITH_H) turn_tile(out.h_t.q, c0, width, at, blockIdx.x, h, &room->most, &room->tally[4], &part[4]);
    if constexpr (WITH_GRADS) {
        tally_add(out.dg.n, &room->tally[0], part[0]);
        tally_add(out.du.n, &room->tally[1], part[1]);
        tally_add(out.dg_t.n, &room->tally[2], part[2]);
        tally_add(out.du_t.n, &room->tally[3], part[3]);
    }
    if constexpr (WITH_H) tally_add(out.h_t.n, &room->tally[4], part[4]);
}
// One pass, with so many bytes of GatedRoom.
template <bool WITH_GRADS, bool WITH_H>
static Err start_bwd(dim3 grid, size_t bytes, SwigluQuantBwd out, float *part, Mat dh, MatQ g, MatQ u,
                     const float *gate, Groups groups) {
    TRY_CUDA(cudaFuncSetAttribute((const void *)swiglu_quant_bwd_kernel<WITH_GRADS, WITH_H>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    LAUNCH((swiglu_quant_bwd_kernel<WITH_GRADS, WITH_H>), grid, dim3(QUANT_THREADS), bytes, STREAM, out, part, dh, g, u,
           gate, groups, device_cuda_fault());
    CHECK_LAUNCH("swiglu_quant_bwd");
    return OK;
}

// The gates' gradients from their parts, one thread per row of a group, tiles in order.
static __global__ void __launch_bounds__(TILE)
    gate_sum_kernel(float *dgate, const float *part, int64_t ntiles, int64_t rows, Groups groups, DeviceFault *fault) {
    GroupTile at = group_tile(groups, rows, TILE, blockIdx.x, fault);
    if ((int64_t)threadIdx.x >= at.rows) return;
    int64_t r = at.row + threadIdx.x;
    float sum = 0.0f;
    for (int64_t t = 0; t < ntiles; t++) sum += part[r * ntiles + t];
    dgate[r] = sum;
}

extern "C" Err swiglu_quant_bwd_cuda(OpCx *cx, SwigluQuantBwd out, float *dgate, Mat dh, MatQ g, MatQ u,
                                     const float *gate, Groups groups) {
    const char *op = "swiglu_quant_bwd";
    int64_t M = dh.rows, F = dh.cols, ntiles = ceil_div(F, TILE);
    TRY(check_out(op, out.dg, M, F));
    TRY(check_out(op, out.du, M, F));
    TRY(check_out(op, out.dg_t, F, M));
    TRY(check_out(op, out.du_t, F, M));
    TRY(check_out(op, out.h_t, F, M));
    TRY(quant_cuda_source(op, g));
    TRY(quant_cuda_source(op, u));
    CHECK(g.rows == M && g.cols == F && u.rows == M && u.cols == F && dh.t == DT_BF16, E_INTERNAL,
          "swiglu_quant_bwd: shapes disagree");
    if (M == 0 || F == 0) return OK;
    dim3 grid((unsigned)group_tiles_most(groups, M, TILE), (unsigned)ntiles);
    CHECK(grid.y <= 65535, E_INTERNAL, "swiglu_quant_bwd: %lld columns", (long long)F);
    size_t mark = arena_mark(cx->scratch);
    float *part = NULL;
    if (dgate) ARENA_NEW(cx->scratch, part, M * ntiles);
    if (sizeof(GatedRoom) <= shared_most()) {
        TRY((start_bwd<true, true>(grid, sizeof(GatedRoom), out, part, dh, g, u, gate, groups)));
    } else {
        TRY((start_bwd<true, false>(grid, offsetof(GatedRoom, h), out, part, dh, g, u, gate, groups)));
        TRY((start_bwd<false, true>(grid, offsetof(GatedRoom, du), out, part, dh, g, u, gate, groups)));
    }
    if (dgate)
        LAUNCH(gate_sum_kernel, dim3(grid.x), dim3(TILE), 0, STREAM, dgate, part, ntiles, M, groups,
               device_cuda_fault());
    CHECK_LAUNCH(op);
    arena_release(cx->scratch, mark);
    return OK;
}
