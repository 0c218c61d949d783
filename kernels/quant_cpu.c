// quant_cpu.c - the quantiser on the CPU: which tile, which thread; the loops are in quant_lanes.c.
//
// Work is dealt out in whole tiles (or blocks), so threads change no bit; counters are integers.
#include <string.h>

#include "ops.h"
#include "quant_core.h"
#include "quant_lanes.h"

enum { CHANNELS = 64 }; // channels of one transposed piece of work; divides TILE

static const QuantLanes *chosen;

bool quant_select(const char *name) {
    static const QuantLanes *const all[] = {&quant_lanes_avx512, &quant_lanes_avx2,
                                            &quant_lanes_portable};
    bool is_usable[3] = {false, false, true};
#if defined(__x86_64__)
    __builtin_cpu_init();
    is_usable[0] = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    is_usable[1] = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    for (int i = 0; i < 3; i++) {
        if (!is_usable[i] || (name && strcmp(name, all[i]->name) != 0)) continue;
        chosen = all[i];
        return true;
    }
    return false;
}

static const QuantLanes *lanes(void) {
    if (!chosen) quant_select(NULL);
    return chosen;
}

// Threads worth starting for n values.
static int threads_for(const OpCx *cx, int64_t n) {
    return n < 8192 || cx->nthreads < 1 ? 1 : cx->nthreads;
}

static void add_counts(QuantCount *to, const QuantCount *from) {
    if (!to) return;
#pragma omp critical(quant_count)
    {
        to->values += from->values;
        to->saturated += from->saturated;
        to->underflow += from->underflow;
        to->tiles += from->tiles;
        to->nonfinite_tiles += from->nonfinite_tiles;
    }
}

static void load_rounded(const QuantLanes *l, float *dst, Mat x, int64_t r, int64_t c, int64_t n) {
    if (x.t == DT_F32)
        l->round_f32(dst, mat_at(x, r, c), n);
    else
        l->round_bf16(dst, mat_at(x, r, c), n);
}

// The scale of a tile with this amax, and its inverse if that gives the same bits as dividing (else
// 0).
typedef struct Scale {
    float s, inv;
    uint8_t e8m0;
} Scale;

static Scale scale_for(ScaleType st, int32_t amax_bits) {
    float amax = f32_from_bits((uint32_t)amax_bits);
    Scale k = {0};
    if (st == SCALE_F32) {
        k.s = tile_scale_f32(amax);
        return k;
    }
    k.e8m0 = tile_scale_e8m0(amax);
    k.s = f32_from_e8m0(k.e8m0);
    k.inv = f32_from_e8m0((uint8_t)(254 - k.e8m0));
    return k;
}

static void store_scale(MatQ y, int64_t at, Scale k) {
    if (y.st == SCALE_F32)
        ((float *)y.s)[at] = k.s;
    else
        ((uint8_t *)y.s)[at] = k.e8m0;
}

static float load_scale(MatQ x, int64_t r, int64_t c) {
    int64_t at = r / x.tile_rows * x.srow + c / TILE * x.scol;
    return x.st == SCALE_F32 ? ((const float *)x.s)[at] : f32_from_e8m0(((const uint8_t *)x.s)[at]);
}

Err quant_tile_cpu(OpCx *cx, MatQ y, Mat x, QuantCount *n) {
    CHECK(y.rows == x.rows && y.cols == x.cols && y.tile_rows == 1, E_INTERNAL,
          "quant_tile: shapes disagree");
    const QuantLanes *l = lanes();
    int nthreads = threads_for(cx, x.rows * x.cols);
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        QuantCount count = {0};
        QuantFound found = {0};
#pragma omp for schedule(static)
        for (int64_t r = 0; r < x.rows; r++) {
            for (int64_t c = 0; c < x.cols; c += TILE) {
                float v[TILE];
                int64_t w = min_i64(TILE, x.cols - c);
                bool is_bad = false;
                load_rounded(l, v, x, r, c, w);
                Scale k = scale_for(y.st, l->amax(v, w, &is_bad));
                l->encode(y.q + r * y.ld + c, v, k.s, k.inv, w, &found);
                store_scale(y, r * y.srow + c / TILE * y.scol, k);
                count.values += w;
                count.tiles++;
                count.nonfinite_tiles += is_bad;
            }
        }
        count.saturated = found.saturated;
        count.underflow = found.underflow;
        add_counts(n, &count);
    }
    return OK;
}

// Where the values of a transposed quantisation come from: a matrix, or codes.
typedef struct TokenSource {
    Mat x; // x.p NULL: q
    MatQ q;
} TokenSource;

// Tokens [m0, m0+m) x channels [c0, c0+w) of the source, w <= CHANNELS, as one 128x1 tile per
// channel.
static void token_tile(const QuantLanes *l, MatQ y, const TokenSource *from, int64_t m0, int64_t m,
                       int64_t c0, int64_t w, int64_t tile, QuantCount *count, QuantFound *found) {
    float v[TILE][CHANNELS], s[CHANNELS], inv[CHANNELS];
    uint8_t codes[TILE][CHANNELS];
    int32_t most[CHANNELS] = {0}, bad[CHANNELS] = {0};
    for (int64_t i = 0; i < m; i++) {
        if (from->x.p) {
            load_rounded(l, v[i], from->x, m0 + i, c0, w);
        } else {
            MatQ q = from->q;
            float scale = load_scale(q, m0 + i, c0);
            // A power of two keeps 4 significant bits, except deep in the subnormals.
            bool is_exact = q.st == SCALE_E8M0 && scale >= 0x1p-120f;
            (is_exact ? l->decode : l->decode_round)(v[i], q.q + (m0 + i) * q.ld + c0, scale, w);
        }
        l->amax_each(most, bad, v[i], w);
    }
    for (int64_t c = 0; c < w; c++) {
        Scale k = scale_for(y.st, most[c]);
        s[c] = k.s;
        inv[c] = k.inv;
        store_scale(y, (c0 + c) * y.srow + tile * y.scol, k);
        count->nonfinite_tiles += bad[c];
    }
    for (int64_t i = 0; i < m; i++)
        l->encode_each(codes[i], v[i], s, y.st == SCALE_E8M0 ? inv : NULL, w, found);
    l->transpose(y.q + c0 * y.ld + m0, y.ld, codes[0], CHANNELS, m, w);
    count->values += m * w;
    count->tiles += w;
}

// Every tile of every group; threads take every nthreads-th piece.
static Err quant_tokens(OpCx *cx, const char *op, MatQ y, const TokenSource *from, int64_t rows,
                        int64_t cols, Groups g, QuantCount *n) {
    CHECK(y.rows == cols && y.cols == rows && y.tile_rows == 1, E_INTERNAL, "%s: shapes disagree",
          op);
    int64_t whole_start = 0;
    if (g.n == 0) g = (Groups){&whole_start, &rows, 1};
    for (int64_t e = 0; e < g.n; e++)
        CHECK(g.start[e] >= 0 && g.count[e] >= 0 && g.start[e] + g.count[e] <= rows, E_INTERNAL,
              "%s: group %lld has rows %lld..%lld of %lld", op, (long long)e, (long long)g.start[e],
              (long long)(g.start[e] + g.count[e]), (long long)rows);
    const QuantLanes *l = lanes();
    int nthreads = threads_for(cx, rows * cols);
    int64_t pieces = groups_tiles(g, rows) * ceil_div(cols, CHANNELS);
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        QuantCount count = {0};
        QuantFound found = {0};
        int64_t e = 0,
                first = 0; // group e begins with tile `first`; pieces come in ascending order
#pragma omp for schedule(static)
        for (int64_t i = 0; i < pieces; i++) {
            int64_t tile = i / ceil_div(cols, CHANNELS),
                    c0 = i % ceil_div(cols, CHANNELS) * CHANNELS;
            while (tile >= first + ceil_div(g.count[e], TILE))
                first += ceil_div(g.count[e++], TILE);
            int64_t i0 = (tile - first) * TILE;
            token_tile(l, y, from, g.start[e] + i0, min_i64(TILE, g.count[e] - i0), c0,
                       min_i64(CHANNELS, cols - c0), tile, &count, &found);
        }
        count.saturated = found.saturated;
        count.underflow = found.underflow;
        add_counts(n, &count);
    }
    return OK;
}

Err quant_tile_t_cpu(OpCx *cx, MatQ y, Mat x, Groups g, QuantCount *n) {
    TokenSource from = {.x = x};
    TRY(quant_tokens(cx, "quant_tile_t", y, &from, x.rows, x.cols, g, n));
    return OK;
}

Err requant_tile_t_cpu(OpCx *cx, MatQ y, MatQ x, Groups g, QuantCount *n) {
    TokenSource from = {.q = x};
    TRY(quant_tokens(cx, "requant_tile_t", y, &from, x.rows, x.cols, g, n));
    return OK;
}

Err dequant_cpu(OpCx *cx, Mat y, MatQ x) {
    CHECK(y.rows == x.rows && y.cols == x.cols, E_INTERNAL, "dequant: shapes disagree");
    const QuantLanes *l = lanes();
    int nthreads = threads_for(cx, x.rows * x.cols);
#pragma omp parallel for schedule(static) num_threads(nthreads) if (nthreads > 1)
    for (int64_t r = 0; r < x.rows; r++) {
        for (int64_t c = 0; c < x.cols; c += TILE) {
            int64_t w = min_i64(TILE, x.cols - c);
            float v[TILE];
            l->decode(y.t == DT_F32 ? mat_at(y, r, c) : v, x.q + r * x.ld + c, load_scale(x, r, c),
                      w);
            if (y.t != DT_F32) l->store_bf16(mat_at(y, r, c), v, w);
        }
    }
    return OK;
}

static int64_t weight_code_bytes(int64_t nmat, int64_t N, int64_t K) {
    return ceil_div(nmat * N * K, ARENA_ALIGN) * ARENA_ALIGN;
}

size_t weight_bytes(int64_t nmat, int64_t N, int64_t K) {
    return (size_t)(weight_code_bytes(nmat, N, K) +
                    nmat * ceil_div(N, TILE) * ceil_div(K, TILE) * 4);
}

MatQ weight_view(void *p, int64_t nmat, int64_t N, int64_t K) {
    MatQ w = {.q = p, .s = (char *)p + weight_code_bytes(nmat, N, K), .st = SCALE_F32};
    w.rows = N;
    w.cols = K;
    w.ld = K;
    w.srow = ceil_div(K, TILE);
    w.scol = 1;
    w.tile_rows = TILE;
    w.nmat = nmat;
    w.qstep = N * K;
    w.sstep = ceil_div(N, TILE) * ceil_div(K, TILE);
    return w;
}

// The block of w (one matrix) at (r0, c0); x is the same matrix in BF16 or F32.
static void weight_block(const QuantLanes *l, MatQ w, Mat x, int64_t r0, int64_t c0,
                         QuantCount *count, QuantFound *found) {
    int64_t rows = min_i64(TILE, w.rows - r0), cols = min_i64(TILE, w.cols - c0);
    int32_t most = 0;
    bool is_bad = false;
    float v[TILE];
    for (int64_t r = 0; r < rows; r++) {
        load_rounded(l, v, x, r0 + r, c0, cols);
        int32_t m = l->amax(v, cols, &is_bad);
        if (m > most) most = m;
    }
    Scale k = scale_for(w.st, most);
    store_scale(w, r0 / TILE * w.srow + c0 / TILE * w.scol, k);
    for (int64_t r = 0; r < rows; r++) {
        load_rounded(l, v, x, r0 + r, c0, cols);
        l->encode(w.q + (r0 + r) * w.ld + c0, v, k.s, k.inv, cols, found);
    }
    count->values += rows * cols;
    count->tiles++;
    count->nonfinite_tiles += is_bad;
}

Err weight_prepare_cpu(OpCx *cx, MatQ w, Mat x, QuantCount *n) {
    CHECK(x.rows == w.nmat * w.rows && x.cols == w.cols && w.tile_rows == TILE, E_INTERNAL,
          "weight_prepare: shapes disagree");
    const QuantLanes *l = lanes();
    int nthreads = threads_for(cx, x.rows * x.cols);
    int64_t brows = ceil_div(w.rows, TILE), bcols = ceil_div(w.cols, TILE);
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        QuantCount count = {0};
        QuantFound found = {0};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < w.nmat * brows * bcols; i++) {
            int64_t e = i / (brows * bcols), r = i / bcols % brows, c = i % bcols;
            weight_block(l, matq_mat(w, e), mat_rows(x, e * w.rows, w.rows), r * TILE, c * TILE,
                         &count, &found);
        }
        count.saturated = found.saturated;
        count.underflow = found.underflow;
        add_counts(n, &count);
    }
    return OK;
}
