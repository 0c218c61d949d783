// quant_cuda.cu - the quantisers along rows and of weights on the GPU, bit for bit those of quant_cpu.c; those along
// tokens are in quant_cuda_tokens.cu. Contract: quant.h.
//
// Each reads its input once, in 16-byte loads where addresses allow it, and writes codes the same way: 8 threads per
// tile of 128, 16 elements each, the largest by shuffles. Blocks loop over tiles, so that each adds to the counters
// once. Bytes per value of BF16: 2 read, 1 written, 1/128 to 1/32 of scales.
#include "quant_cuda_turn.h"
extern "C" {
#include "quant_cuda_recipe.h"
}

// The GPU has the framework's own recipe; the baselines of the literature are the CPU's.
extern "C" Err quant_cuda_recipe(const char *op, MatQ y, QuantRule rule) {
    static const char *const scopes[] = {"tile", "block", "row", "tensor", "static"};
    CHECK(rule.scope >= SCOPE_TILE && rule.scope <= SCOPE_STATIC, E_INTERNAL, "%s: no scope has the number %d", op,
          (int)rule.scope);
    CHECK(rule.scope == SCOPE_TILE && y.ct == CODE_E4M3, E_INTERNAL,
          "%s: scope '%s' with %s codes and %s scales is not there on the CUDA backend; it quantises with scope 'tile' "
          "into E4M3 codes with FP32 or E8M0 scales; the CPU backend has the others",
          op, scopes[rule.scope], y.ct == CODE_E4M3 ? "E4M3" : "E5M2", y.st == SCALE_F32 ? "FP32" : "E8M0");
    return OK;
}
extern "C" Err quant_cuda_source(const char *op, MatQ x) {
    CHECK(x.ct == CODE_E4M3, E_INTERNAL, "%s: the CUDA backend reads E4M3 codes only, these are E5M2", op);
    return OK;
}

static __global__ void __launch_bounds__(QUANT_THREADS) quant_tile_kernel(MatQ y, Mat x, QuantCount *n) {
    SMEM(QuantTally, tally);
    tally_clear(&tally);
    uint32_t per_row = (uint32_t)((x.cols + TILE - 1) / TILE), tiles = (uint32_t)x.rows * per_row;
    QuantPart part = {0, 0};
    for (uint32_t first = first_tile(); first < tiles; first += gridDim.x * OCTETS)
        quant_place(y, x, place_of(first, tiles, per_row, x.cols), &tally, &part);
    tally_add(n, &tally, part);
}

extern "C" Err quant_tile_cuda(OpCx *cx, MatQ y, Mat x, QuantRule rule, QuantCount *n) {
    (void)cx;
    TRY(quant_cuda_recipe("quant_tile", y, rule));
    CHECK(y.rows == x.rows && y.cols == x.cols && y.tile_rows == 1, E_INTERNAL, "quant_tile: shapes disagree");
    int64_t tiles = x.rows * ceil_div(x.cols, TILE);
    TRY(check_tiles("quant_tile", tiles));
    if (tiles == 0) return OK;
    LAUNCH(quant_tile_kernel, blocks_at_once(ceil_div(tiles, OCTETS), QUANT_PER_SM), dim3(QUANT_THREADS), 0, STREAM, y,
           x, n);
    CHECK_LAUNCH("quant_tile");
    return OK;
}

// 16 neighbouring values per thread.
static __global__ void __launch_bounds__(QUANT_THREADS) dequant_kernel(Mat y, MatQ x) {
    uint32_t per_row = (uint32_t)((x.cols + PER_LANE - 1) / PER_LANE), all = (uint32_t)x.rows * per_row;
    for (uint32_t i = blockIdx.x * QUANT_THREADS + threadIdx.x; i < all; i += gridDim.x * QUANT_THREADS) {
        int64_t r = i / per_row, c = i % per_row * PER_LANE;
        int n = (int)(x.cols - c < PER_LANE ? x.cols - c : PER_LANE);
        float v[PER_LANE];
        decode16(v, load16(x.q + r * x.ld + c, n), load_scale(x, r, c));
        put16(y, r, c, n, v);
    }
}

extern "C" Err dequant_cuda(OpCx *cx, Mat y, MatQ x) {
    (void)cx;
    TRY(quant_cuda_source("dequant", x));
    CHECK(y.rows == x.rows && y.cols == x.cols, E_INTERNAL, "dequant: shapes disagree");
    int64_t pieces = x.rows * ceil_div(x.cols, PER_LANE);
    TRY(check_tiles("dequant", pieces));
    if (pieces == 0) return OK;
    LAUNCH(dequant_kernel, blocks_at_once(ceil_div(pieces, QUANT_THREADS), QUANT_PER_SM), dim3(QUANT_THREADS), 0,
           STREAM, y, x);
    CHECK_LAUNCH("dequant");
    return OK;
}

// One 128x128 block of one of the stacked weights: its values wait in shared memory for their scale, each for the
// thread that read it.
static __global__ void __launch_bounds__(QUANT_THREADS) weight_kernel(MatQ w, Mat x, QuantCount *n) {
    SMEM(TurnTile, tile);
    SMEM(QuantTally, tally);
    SMEM(int32_t, room, [QUANT_THREADS / 32]);
    tally_clear(&tally);
    int64_t brows = (w.rows + TILE - 1) / TILE, bcols = (w.cols + TILE - 1) / TILE, b = blockIdx.x;
    int64_t e = b / (brows * bcols), r0 = b / bcols % brows * TILE, c0 = b % bcols * TILE;
    int rows = (int)(w.rows - r0 < TILE ? w.rows - r0 : TILE), cols = (int)(w.cols - c0 < TILE ? w.cols - c0 : TILE);
    int octet = (int)threadIdx.x / OCTET, c = (int)threadIdx.x % OCTET * PER_LANE;
    int32_t most = 0, bad = 0;
    for (int r = octet; r < rows; r += OCTETS) {
        float v[PER_LANE];
        rows16(v, x, e * w.rows + r0 + r, c0 + c, cols - c);
        UNROLL
        for (int i = 0; i < PER_LANE; i++) {
            v[i] = quant_round(v[i]);
            int32_t m = quant_magnitude(v[i]);
            most = m > most ? m : most;
            bad |= is_nonfinite(v[i]);
        }
        turn_put(&tile, r, c, v);
    }
    most = block_max(most, room);
    bad = block_max(bad, room);
    QuantScale s = scale_for(w.st, most);
    QuantPart part = {0, 0};
    for (int r = octet; r < rows; r += OCTETS) {
        float v[PER_LANE];
        turn_get(v, &tile, r, c);
        store16(w.q + e * w.qstep + (r0 + r) * w.ld + c0 + c, encode16(v, s, &part), cols - c);
    }
    if (threadIdx.x == 0) {
        store_scale(w, e * w.sstep + r0 / TILE * w.srow + c0 / TILE * w.scol, s);
        tally_tile(&tally, rows * cols, most, bad, s.s);
    }
    tally_add(n, &tally, part);
}

extern "C" Err weight_prepare_cuda(OpCx *cx, MatQ w, Mat x, QuantRule rule, QuantCount *n) {
    (void)cx;
    TRY(quant_cuda_recipe("weight_prepare", w, rule));
    CHECK(x.rows == w.nmat * w.rows && x.cols == w.cols && w.tile_rows == TILE, E_INTERNAL,
          "weight_prepare: shapes disagree");
    int64_t blocks = w.nmat * ceil_div(w.rows, TILE) * ceil_div(w.cols, TILE);
    if (blocks == 0) return OK;
    LAUNCH(weight_kernel, dim3((unsigned)blocks), dim3(QUANT_THREADS), 0, STREAM, w, x, n);
    CHECK_LAUNCH("weight_prepare");
    return OK;
}
