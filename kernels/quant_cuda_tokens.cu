// quant_cuda_tokens.cu - the quantisers along tokens on the GPU: from a matrix or from codes, alone or together with
// the form along rows. Contract: quant.h.
//
// One block per 128 tokens of a group and 128 channels. It reads its tile once: 2 bytes a value of a BF16 matrix, 1 of
// codes; and writes 1 byte a value for each form.
#include "quant_cuda_turn.h"
extern "C" {
#include "quant_cuda_recipe.h"
}

// Where the values come from: a matrix, or codes (x.p NULL).
typedef struct TokenSource {
    Mat x;
    MatQ q;
} TokenSource;

// IS_PAIR: rows are quantised too, into `row`.
template <bool IS_PAIR>
static __global__ void __launch_bounds__(QUANT_THREADS, 3)
    quant_tokens_kernel(MatQ y, MatQ row, TokenSource from, int64_t rows, Groups g, QuantCount *n, QuantCount *n_row,
                        DeviceFault *fault) {
    SMEM(TurnTile, tile);
    SMEM(TurnMost, most);
    SMEM(QuantTally, tally);
    SMEM(QuantTally, row_tally);
    GroupTile at = group_tile(g, rows, TILE, blockIdx.x, fault);
    if (at.rows == 0) return;
    tally_clear(&tally);
    if (IS_PAIR) tally_clear(&row_tally);
    int64_t c0 = (int64_t)blockIdx.y * TILE;
    int width = (int)(y.rows - c0 < TILE ? y.rows - c0 : TILE);
    int octet = (int)threadIdx.x / OCTET, c = (int)threadIdx.x % OCTET * PER_LANE;
    QuantPart part = {0, 0}, row_part = {0, 0};
    for (int i = octet; i < TILE; i += OCTETS) {
        bool is_there = i < at.rows;
        int64_t r = at.row + (is_there ? i : 0);
        int mine = is_there ? width - c : 0;
        float v[PER_LANE];
        if (from.x.p)
            rows16(v, from.x, r, c0 + c, mine);
        else
            decode16(v, load16(from.q.q + r * from.q.ld + c0 + c, mine), load_scale(from.q, r, c0));
        UNROLL
        for (int k = 0; k < PER_LANE; k++) v[k] = quant_round(v[k]);
        turn_put(&tile, i, c, v);
        if (IS_PAIR) quant16(row, r, c0 + c, mine, v, is_there, &row_tally, &row_part, width);
    }
    __syncthreads();
    turn_tile(y, c0, width, at, blockIdx.x, &tile, &most, &tally, &part);
    tally_add(n, &tally, part);
    if (IS_PAIR) tally_add(n_row, &row_tally, row_part);
}

// Rows that no group has, one warp each: only the form along rows.
static __global__ void __launch_bounds__(QUANT_THREADS) quant_outside_kernel(MatQ y, Mat x, Groups g, QuantCount *n) {
    SMEM(QuantTally, tally);
    tally_clear(&tally);
    QuantPart part = {0, 0};
    int64_t r = (int64_t)blockIdx.x * (QUANT_THREADS / 32) + threadIdx.x / 32;
    int lane = (int)(threadIdx.x % 32);
    bool is_inside = r >= x.rows;
    for (int64_t e = lane; e < g.n; e += 32) is_inside |= r >= g.start[e] && r < g.start[e] + g.count[e];
    if (!__any_sync(WARP_ALL, is_inside))
        for (int64_t first = 0; first < x.cols; first += 4 * TILE) {
            int64_t c0 = first + lane / OCTET * TILE;
            quant_place(y, x, place_in(r, c0, x.cols, c0 < x.cols), &tally, &part);
        }
    tally_add(n, &tally, part);
}

static Err quant_tokens(const char *op, MatQ y, TokenSource from, int64_t rows, int64_t cols, Groups g,
                        QuantRule rule, QuantCount *n, const MatQ *row, QuantCount *n_row) {
    TRY(quant_cuda_recipe(op, y, rule));
    CHECK(y.rows == cols && y.cols == rows && y.tile_rows == 1, E_INTERNAL, "%s: shapes disagree", op);
    if (rows == 0 || cols == 0) return OK;
    dim3 grid((unsigned)group_tiles_most(g, rows, TILE), (unsigned)ceil_div(cols, TILE));
    CHECK(grid.y <= 65535, E_INTERNAL, "%s: %lld channels", op, (long long)cols);
    DeviceFault *fault = device_cuda_fault();
    if (row)
        LAUNCH(quant_tokens_kernel<true>, grid, dim3(QUANT_THREADS), 0, STREAM, y, *row, from, rows, g, n, n_row,
               fault);
    else
        LAUNCH(quant_tokens_kernel<false>, grid, dim3(QUANT_THREADS), 0, STREAM, y, y, from, rows, g, n, n, fault);
    CHECK_LAUNCH(op);
    return OK;
}

extern "C" Err quant_tile_t_cuda(OpCx *cx, MatQ y, Mat x, Groups g, QuantRule rule, QuantCount *n) {
    (void)cx;
    TokenSource from = {};
    from.x = x;
    TRY(quant_tokens("quant_tile_t", y, from, x.rows, x.cols, g, rule, n, NULL, NULL));
    return OK;
}

extern "C" Err quant_tile_pair_cuda(OpCx *cx, MatQ y, MatQ yt, Mat x, Groups g, QuantRule rule, QuantRule rule_t,
                                    QuantCount *n, QuantCount *n_t) {
    (void)cx;
    TokenSource from = {};
    from.x = x;
    TRY(quant_cuda_recipe("quant_tile_pair", y, rule));
    CHECK(y.rows == x.rows && y.cols == x.cols && y.tile_rows == 1, E_INTERNAL, "quant_tile_pair: shapes disagree");
    TRY(quant_tokens("quant_tile_pair", yt, from, x.rows, x.cols, g, rule_t, n_t, &y, n));
    if (g.n == 0 || x.rows == 0 || x.cols == 0) return OK;
    LAUNCH(quant_outside_kernel, blocks_for(x.rows, QUANT_THREADS / 32), dim3(QUANT_THREADS), 0, STREAM, y, x, g, n);
    CHECK_LAUNCH("quant_tile_pair");
    return OK;
}

extern "C" Err requant_tile_t_cuda(OpCx *cx, MatQ y, MatQ x, Groups g, QuantRule rule, QuantCount *n) {
    (void)cx;
    TokenSource from = {};
    from.q = x;
    TRY(quant_cuda_source("requant_tile_t", x));
    TRY(quant_tokens("requant_tile_t", y, from, x.rows, x.cols, g, rule, n, NULL, NULL));
    return OK;
}
