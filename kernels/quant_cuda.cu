// quant_cuda.cu - the quantisers on the GPU, bit for bit those of quant_cpu.c. Contract: quant.h.
//
// One warp per 1x128 tile; one block per 128 tokens and 32 channels of the transposed form; one block per 128x128
// block of a weight. The arithmetic is that of quant_core.h; what hardware may change is kept out of it: the sign of
// a NaN is taken from the input's bits, because the GPU's divider returns one NaN only.
#include "rows_cuda.h"

#include "quant_core.h"

#define TILES_PER_BLOCK 8 // warps of a block, one tile each
#define CHANNELS 32       // channels of one block of the transposed form

// The GPU has the framework's own recipe; the baselines of the literature are the CPU's.
static Err check_recipe(const char *op, MatQ y, QuantRule rule) {
    static const char *const scopes[] = {"tile", "block", "row", "tensor", "static"};
    CHECK(rule.scope >= SCOPE_TILE && rule.scope <= SCOPE_STATIC, E_INTERNAL, "%s: no scope has the number %d", op,
          (int)rule.scope);
    CHECK(rule.scope == SCOPE_TILE && y.ct == CODE_E4M3, E_INTERNAL,
          "%s: scope '%s' with %s codes and %s scales is not there on the CUDA backend; it quantises with scope 'tile' "
          "into E4M3 codes with FP32 or E8M0 scales; the CPU backend has the others",
          op, scopes[rule.scope], y.ct == CODE_E4M3 ? "E4M3" : "E5M2", y.st == SCALE_F32 ? "FP32" : "E8M0");
    return OK;
}
static Err check_source(const char *op, MatQ x) {
    CHECK(x.ct == CODE_E4M3, E_INTERNAL, "%s: the CUDA backend reads E4M3 codes only, these are E5M2", op);
    return OK;
}

// What one thread has counted; added up per warp, then to the counters.
typedef struct QuantPart {
    int saturated, underflow;
} QuantPart;

// The scale of a tile and, where dividing by it is multiplying, its inverse (else 0).
typedef struct QuantScale {
    float s, inv;
    uint8_t e8m0;
} QuantScale;

DEV QuantScale scale_for(ScaleType st, int32_t amax_bits) {
    float amax = f32_from_bits((uint32_t)amax_bits);
    QuantScale k = {0.0f, 0.0f, 0};
    if (st == SCALE_F32) {
        k.s = tile_scale_f32(amax);
        return k;
    }
    k.e8m0 = tile_scale_e8m0(amax);
    k.s = f32_from_e8m0(k.e8m0);
    k.inv = f32_from_e8m0((uint8_t)(254 - k.e8m0));
    return k;
}

DEV void store_scale(MatQ y, int64_t at, QuantScale k) {
    if (y.st == SCALE_F32)
        ((float *)y.s)[at] = k.s;
    else
        ((uint8_t *)y.s)[at] = k.e8m0;
}

DEV float load_scale(MatQ x, int64_t r, int64_t c) {
    int64_t at = r / x.tile_rows * x.srow + c / TILE * x.scol;
    return x.st == SCALE_F32 ? ((const float *)x.s)[at] : f32_from_e8m0(((const uint8_t *)x.s)[at]);
}

// The code of a rounded value x, counted.
DEV uint8_t encode(float x, QuantScale k, QuantPart *part) {
    float v = k.inv != 0.0f ? x * k.inv : x / k.s;
    int32_t m = (int32_t)(f32_bits(v) & 0x7FFFFFFFu);
    uint32_t code = (quant_code(v, x) & 0x7Fu) | ((f32_bits(x) >> 24) & 0x80u);
    part->saturated += m > 0x43E00000 && m < F32_INF_BITS; // 448
    part->underflow += (code & 0x7Fu) == 0 && (f32_bits(x) & 0x7FFFFFFFu) != 0;
    return (uint8_t)code;
}

// The value of a code; a NaN code gives a NaN of its sign.
DEV float decode(uint8_t c, float scale) {
    if ((c & 0x7F) == E4M3_NAN) return quant_value(c);
    return quant_value(c) * scale;
}

DEV bool is_nonfinite(float x) {
    return (f32_bits(x) & 0x7F800000u) == 0x7F800000u;
}

DEV void add_parts(QuantCount *n, QuantPart part, int64_t values, int64_t tiles, int64_t bad) {
    int saturated = warp_sum(part.saturated), underflow = warp_sum(part.underflow);
    if (!n || threadIdx.x % 32 != 0) return;
    count_add(&n->values, values);
    count_add(&n->saturated, saturated);
    count_add(&n->underflow, underflow);
    count_add(&n->tiles, tiles);
    count_add(&n->nonfinite_tiles, bad);
}

// One tile is done: one thread of it says so. amax: quant_magnitude of its largest value.
DEV void add_scale(QuantCount *n, int32_t amax, QuantScale k) {
    if (!n) return;
    count_add(&n->scales[quant_scale_bin(k.s)], amax != 0);
    count_most(&n->amax_bits, amax);
}

static __global__ void quant_tile_kernel(MatQ y, Mat x, QuantCount *n) {
    int64_t per_row = (x.cols + TILE - 1) / TILE;
    int64_t tile = (int64_t)blockIdx.x * TILES_PER_BLOCK + threadIdx.x / 32;
    if (tile >= x.rows * per_row) return;
    int64_t r = tile / per_row, c0 = tile % per_row * TILE;
    int lane = (int)(threadIdx.x % 32), w = (int)(x.cols - c0 < TILE ? x.cols - c0 : TILE);
    float v[TILE / 32];
    int32_t most = 0;
    int bad = 0;
    for (int k = 0; k < TILE / 32; k++) {
        int i = lane + 32 * k;
        v[k] = i < w ? quant_round(row_value(x, r, c0 + i)) : 0.0f;
        int32_t m = quant_magnitude(v[k]);
        most = m > most ? m : most;
        bad |= is_nonfinite(v[k]);
    }
    most = warp_max(most);
    QuantScale s = scale_for(y.st, most);
    QuantPart part = {0, 0};
    for (int k = 0; k < TILE / 32; k++) {
        int i = lane + 32 * k;
        if (i < w) y.q[r * y.ld + c0 + i] = encode(v[k], s, &part);
    }
    if (lane == 0) {
        store_scale(y, r * y.srow + c0 / TILE * y.scol, s);
        add_scale(n, most, s);
    }
    add_parts(n, part, w, 1, warp_max(bad));
}

extern "C" Err quant_tile_cuda(OpCx *cx, MatQ y, Mat x, QuantRule rule, QuantCount *n) {
    (void)cx;
    TRY(check_recipe("quant_tile", y, rule));
    CHECK(y.rows == x.rows && y.cols == x.cols && y.tile_rows == 1, E_INTERNAL, "quant_tile: shapes disagree");
    int64_t tiles = x.rows * ceil_div(x.cols, TILE);
    if (tiles == 0) return OK;
    LAUNCH(quant_tile_kernel, blocks_for(tiles, TILES_PER_BLOCK), dim3(32 * TILES_PER_BLOCK), 0, STREAM, y, x, n);
    CHECK_LAUNCH("quant_tile");
    return OK;
}

// Where the values of a transposed quantisation come from: a matrix, or codes.
typedef struct TokenSource {
    Mat x; // x.p NULL: q
    MatQ q;
} TokenSource;

DEV float token_value(const TokenSource &from, int64_t r, int64_t c) {
    if (from.x.p) return quant_round(row_value(from.x, r, c));
    return quant_round(decode(from.q.q[r * from.q.ld + c], load_scale(from.q, r, c)));
}

// Tokens of one tile x 32 channels: read along the channels, written along the tokens.
static __global__ void quant_tokens_kernel(MatQ y, TokenSource from, int64_t rows, Groups g, QuantCount *n,
                                           DeviceFault *fault) {
    SMEM(float, v, [TILE][CHANNELS + 1]);
    SMEM(int32_t, most, [TILE / 32][CHANNELS]);
    SMEM(int, bad, [TILE / 32][CHANNELS]);
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32), warps = TILE / 32;
    GroupTile at = group_tile(g, rows, TILE, blockIdx.x, fault);
    if (at.rows == 0) return;
    int64_t c0 = (int64_t)blockIdx.y * CHANNELS, c = c0 + lane;
    int width = (int)(y.rows - c0 < CHANNELS ? y.rows - c0 : CHANNELS);
    int32_t my_most = 0;
    int my_bad = 0;
    for (int i = warp; i < at.rows; i += warps) {
        float x = lane < width ? token_value(from, at.row + i, c) : 0.0f;
        int32_t m = quant_magnitude(x);
        my_most = m > my_most ? m : my_most;
        my_bad |= is_nonfinite(x);
        v[i][lane] = x;
    }
    most[warp][lane] = my_most;
    bad[warp][lane] = my_bad;
    __syncthreads();
    QuantPart part = {0, 0};
    int64_t bad_tiles = 0, tiles = 0;
    for (int j = warp; j < width; j += warps) {
        int32_t all = most[0][j];
        int is_bad = bad[0][j];
        for (int k = 1; k < warps; k++) {
            all = most[k][j] > all ? most[k][j] : all;
            is_bad |= bad[k][j];
        }
        QuantScale s = scale_for(y.st, all);
        for (int i = lane; i < at.rows; i += 32) y.q[(c0 + j) * y.ld + at.row + i] = encode(v[i][j], s, &part);
        if (lane == 0) {
            store_scale(y, (c0 + j) * y.srow + (int64_t)blockIdx.x * y.scol, s);
            add_scale(n, all, s);
        }
        bad_tiles += is_bad;
        tiles++;
    }
    add_parts(n, part, at.rows * tiles, tiles, bad_tiles);
}

static Err quant_tokens(const char *op, MatQ y, TokenSource from, int64_t rows, int64_t cols, Groups g,
                        QuantRule rule, QuantCount *n) {
    TRY(check_recipe(op, y, rule));
    CHECK(y.rows == cols && y.cols == rows && y.tile_rows == 1, E_INTERNAL, "%s: shapes disagree", op);
    if (rows == 0 || cols == 0) return OK;
    dim3 grid((unsigned)group_tiles_most(g, rows, TILE), (unsigned)ceil_div(cols, CHANNELS));
    CHECK(grid.y <= 65535, E_INTERNAL, "%s: %lld channels", op, (long long)cols);
    LAUNCH(quant_tokens_kernel, grid, dim3(TILE), 0, STREAM, y, from, rows, g, n, device_cuda_fault());
    CHECK_LAUNCH(op);
    return OK;
}

extern "C" Err quant_tile_t_cuda(OpCx *cx, MatQ y, Mat x, Groups g, QuantRule rule, QuantCount *n) {
    (void)cx;
    TokenSource from = {};
    from.x = x;
    TRY(quant_tokens("quant_tile_t", y, from, x.rows, x.cols, g, rule, n));
    return OK;
}

extern "C" Err quant_tile_pair_cuda(OpCx *cx, MatQ y, MatQ yt, Mat x, Groups g, QuantRule rule, QuantRule rule_t,
                                    QuantCount *n, QuantCount *n_t) {
    TRY(check_recipe("quant_tile_pair", yt, rule_t)); // before anything is written
    TRY(quant_tile_cuda(cx, y, x, rule, n));
    TRY(quant_tile_t_cuda(cx, yt, x, g, rule_t, n_t));
    return OK;
}

extern "C" Err requant_tile_t_cuda(OpCx *cx, MatQ y, MatQ x, Groups g, QuantRule rule, QuantCount *n) {
    (void)cx;
    TokenSource from = {};
    from.q = x;
    TRY(check_source("requant_tile_t", x));
    TRY(quant_tokens("requant_tile_t", y, from, x.rows, x.cols, g, rule, n));
    return OK;
}

static __global__ void dequant_kernel(Mat y, MatQ x) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= x.rows * x.cols) return;
    int64_t r = i / x.cols, c = i % x.cols;
    row_store(y, r, c, decode(x.q[r * x.ld + c], load_scale(x, r, c)));
}

extern "C" Err dequant_cuda(OpCx *cx, Mat y, MatQ x) {
    (void)cx;
    TRY(check_source("dequant", x));
    CHECK(y.rows == x.rows && y.cols == x.cols, E_INTERNAL, "dequant: shapes disagree");
    if (x.rows * x.cols == 0) return OK;
    LAUNCH(dequant_kernel, blocks_for(x.rows * x.cols, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, x);
    CHECK_LAUNCH("dequant");
    return OK;
}

// One 128x128 block of one of the stacked weights.
static __global__ void weight_kernel(MatQ w, Mat x, QuantCount *n) {
    SMEM(int32_t, room, [ROW_THREADS / 32]);
    int64_t brows = (w.rows + TILE - 1) / TILE, bcols = (w.cols + TILE - 1) / TILE, b = blockIdx.x;
    int64_t e = b / (brows * bcols), r0 = b / bcols % brows * TILE, c0 = b % bcols * TILE;
    int64_t rows = w.rows - r0 < TILE ? w.rows - r0 : TILE, cols = w.cols - c0 < TILE ? w.cols - c0 : TILE;
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    int32_t most = 0, bad = 0;
    for (int64_t r = warp; r < rows; r += ROW_THREADS / 32)
        for (int64_t c = lane; c < cols; c += 32) {
            float v = quant_round(row_value(x, e * w.rows + r0 + r, c0 + c));
            int32_t m = quant_magnitude(v);
            most = m > most ? m : most;
            bad |= is_nonfinite(v);
        }
    most = block_max(most, room);
    QuantScale s = scale_for(w.st, most);
    bad = block_max(bad, room);
    QuantPart part = {0, 0};
    for (int64_t r = warp; r < rows; r += ROW_THREADS / 32)
        for (int64_t c = lane; c < cols; c += 32)
            w.q[e * w.qstep + (r0 + r) * w.ld + c0 + c] =
                encode(quant_round(row_value(x, e * w.rows + r0 + r, c0 + c)), s, &part);
    if (threadIdx.x == 0) {
        store_scale(w, e * w.sstep + r0 / TILE * w.srow + c0 / TILE * w.scol, s);
        add_scale(n, most, s);
    }
    add_parts(n, part, warp == 0 ? rows * cols : 0, warp == 0, warp == 0 ? bad : 0);
}

extern "C" Err weight_prepare_cuda(OpCx *cx, MatQ w, Mat x, QuantRule rule, QuantCount *n) {
    (void)cx;
    TRY(check_recipe("weight_prepare", w, rule));
    CHECK(x.rows == w.nmat * w.rows && x.cols == w.cols && w.tile_rows == TILE, E_INTERNAL,
          "weight_prepare: shapes disagree");
    int64_t blocks = w.nmat * ceil_div(w.rows, TILE) * ceil_div(w.cols, TILE);
    if (blocks == 0) return OK;
    LAUNCH(weight_kernel, dim3((unsigned)blocks), dim3(ROW_THREADS), 0, STREAM, w, x, n);
    CHECK_LAUNCH("weight_prepare");
    return OK;
}
