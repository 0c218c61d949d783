// gemm_cuda_sm90.cu - the FP8 products of Hopper: checks, tensor maps and launches; the kernel is gemm_cuda_tile.h.
//
// A tensor map tells TMA where a tensor lies and what box of it one copy moves. They are made anew for every launch
// (on the host, about a microsecond each) and travel as arguments of the kernel. All have three dimensions: the third
// counts stacked matrices, so that boxes end where a matrix ends.
#include "gemm_cuda_codes.h"
extern "C" {
#include "gemm_cuda_sm90.h"
}
#include "gemm_cuda_tile.h"
#include "tma_cuda.h"

using namespace sm90;

static int reserved, width, chosen = -1;
static int64_t products, copies;

void gemm_sm90_counts(int64_t *out_products, int64_t *out_copies) {
    *out_products = products;
    *out_copies = copies;
}

void gemm_sm90_reserve(int multiprocessors) {
    reserved = multiprocessors;
}
void gemm_sm90_width(int columns) {
    width = columns;
}
void gemm_sm90_choose(int is_on) {
    chosen = is_on;
}

// One product of codes. What is done with groups: Problem in gemm_cuda_tile.h.
typedef struct Product {
    const char *op;
    bool is_tokens; // 1x128 x 1x128 scales, groups divide the contraction
    Stack a, b;     // codes, both with the contraction contiguous
    Scales sa, sb;
    Mat y;
    int64_t y_mats; // y is so many matrices
    Groups g;
    bool acc;
} Product;

static Stack codes(MatQ q) {
    Stack s = {q.q,  CU_TENSOR_MAP_DATA_TYPE_UINT8,       1, q.cols, q.rows, q.nmat,
               q.ld, q.nmat > 1 ? q.qstep : q.ld * q.rows};
    if (s.mats == 1) s.step = ceil_div(s.step, 16) * 16; // unused, but the encoder looks at it
    return s;
}
static Scales scales(MatQ q) {
    Scales s = {q.s, q.srow, q.scol, q.nmat > 1 ? q.sstep : 0, q.st == SCALE_E8M0};
    return s;
}

static size_t aligned_bytes(MatQ q) {
    return is_regular(codes(q)) ? 0 : (size_t)(q.nmat * q.rows * ceil_div(q.cols, 16) * 16);
}
bool gemm_sm90_takes(const OpCx *cx, MatQ a, MatQ b, bool is_turned) {
    if (chosen < 0) chosen = is_hopper(device_major());
    bool is_sum = (cx->accumulate == GEMM_PROMOTE128 || cx->accumulate == GEMM_PROMOTE128_HOPPER14) &&
                  (cx->promote_every == 0 || cx->promote_every == TILE);
    size_t bytes = aligned_bytes(a) + (is_turned ? gemm_sm90_turned_bytes(b) : aligned_bytes(b));
    size_t room = arena_size(cx->scratch) - arena_mark(cx->scratch);
    return chosen == 1 && is_sum && (bytes == 0 || bytes + 1024 <= room);
}

// Codes that TMA cannot copy get rows of a multiple of 16 bytes in scratch.
static Err make_regular(OpCx *cx, Stack *s) {
    if (is_regular(*s) || s->cols == 0 || s->rows == 0) return OK;
    int64_t ld = ceil_div(s->cols, 16) * 16;
    void *p = NULL;
    copies++;
    TRY(arena_push(cx->scratch, &p, (size_t)(s->mats * s->rows * ld), "gemm: aligned codes"));
    for (int64_t i = 0; i < s->mats; i++) {
        LAUNCH(copy_rows, dim3((unsigned)min_i64(ceil_div(s->rows, 8), 2048)), dim3(256), 0, STREAM,
               (uint8_t *)p + i * s->rows * ld, ld, (const uint8_t *)s->p + i * s->step, s->ld, s->rows, s->cols);
        CHECK_LAUNCH("gemm: aligned codes");
    }
    s->p = p;
    s->ld = ld;
    s->step = s->rows * ld;
    return OK;
}

template <bool TOKENS, int BN, int STAGES, class Out, int DROP, int TAKE>
static Err start(const Product &d, Problem p, int blocks) {
    typedef Smem<BN, STAGES, Out> S;
    static_assert(sizeof(S) <= 232448, "shared memory of one block");
    static_assert(sizeof(((S *)0)->y[0]) % 1024 == 0, "panels are aligned for their swizzle");
    static bool is_ready;
    auto *kernel = gemm_sm90<TOKENS, BN, STAGES, Out, DROP, TAKE>;
    if (!is_ready) {
        TRY_CUDA(
            cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(S)));
        is_ready = true;
    }
    TMap ma = {}, mb = {}, my = {};
    if (p.k) {
        TRY(map_stack(&ma, d.a, BK, BM));
        TRY(map_stack(&mb, d.b, BK, BN));
    }
    Stack y = {d.y.p,
               sizeof(Out) == 4 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
               (int)sizeof(Out),
               d.y.cols,
               d.y.rows / d.y_mats,
               d.y_mats,
               d.y.ld,
               d.y.rows / d.y_mats * d.y.ld};
    p.is_tma = is_regular(y);
    if (p.is_tma) TRY(map_stack(&my, y, Panels<BN, Out>::WIDTH, HALF));
    LAUNCH((gemm_sm90<TOKENS, BN, STAGES, Out, DROP, TAKE>), dim3((unsigned)blocks), dim3(THREADS), sizeof(S), STREAM,
           ma, mb, my, p);
    CHECK_LAUNCH(d.op);
    return OK;
}

// Tiles at most: with groups, each may end inside a tile.
static int64_t most_tiles(const Product &d, int64_t m, int64_t bn) {
    int64_t rows = ceil_div(m, BM);
    if (d.g.n) rows = d.is_tokens ? rows * d.g.n : rows + d.g.n;
    return rows * ceil_div(d.y.cols, bn);
}

static Err check(const OpCx *cx, const Product &d, bool is_shape_ok) {
    CHECK(is_shape_ok, E_INTERNAL, "%s: shapes disagree", d.op);
    CHECK(cx->accumulate == GEMM_PROMOTE128 || cx->accumulate == GEMM_PROMOTE128_HOPPER14, E_INTERNAL,
          "%s: the tensor cores sum with promotion, not otherwise", d.op);
    CHECK(cx->promote_every == 0 || cx->promote_every == TILE, E_INTERNAL, "%s: promotion every %d, not %d", d.op,
          TILE, cx->promote_every);
    CHECK(!d.acc || d.y.t == DT_F32, E_INTERNAL, "%s: only f32 is added to", d.op);
    CHECK(d.y.t == DT_F32 || d.y.t == DT_BF16, E_INTERNAL, "%s: the output is %s", d.op, dtype_name(d.y.t));
    int64_t most = max_i64(max_i64(d.a.rows, d.a.cols), max_i64(d.b.rows, d.y.rows));
    CHECK(most <= INT32_MAX - TILE, E_INTERNAL, "%s: a dimension of %lld", d.op, (long long)most);
    return OK;
}

static Err check_codes(const char *op, MatQ a, MatQ b) {
    CHECK(a.ct == CODE_E4M3 && b.ct == CODE_E4M3, E_INTERNAL,
          "%s: operands with %s and %s codes; the CUDA backend multiplies E4M3 by E4M3 only, the CPU backend both", op,
          a.ct == CODE_E5M2 ? "E5M2" : "E4M3", b.ct == CODE_E5M2 ? "E5M2" : "E4M3");
    return OK;
}

// Columns of a tile: the fewer cycles for all waves of tiles. A block of the contraction costs what is slowest of the
// tensor cores (4 cycles a column), shared memory at 128 bytes and L2 at 46 bytes a cycle; a tile costs some 1500
// cycles besides. The counts of groups are not known here: all rows count.
static int pick_width(const Product &d, const Problem &p, int blocks) {
    if (d.is_tokens || d.y.t != DT_BF16) return 128;
    if (width) return width;
    int64_t best = INT64_MAX;
    int pick = 128;
    for (int bn = 128; bn <= 160; bn += 32) {
        int64_t copied = (BM + bn) * (BK + 4), read = 2 * (4 * HALF * 32 + bn * BK);
        int64_t each = max_i64(4 * bn, max_i64((copied + read) / 128, copied / 46));
        int64_t waves = ceil_div(most_tiles(d, p.m, bn), blocks);
        int64_t cost = waves * (ceil_div(p.k, BK) * each + 1500);
        if (cost < best) best = cost, pick = bn;
    }
    return pick;
}

static Err run(OpCx *cx, Product d) {
    Problem p = {};
    p.m = (int)d.a.rows;
    p.n = (int)d.y.cols;
    p.k = (int)d.a.cols;
    p.groups = (int)d.g.n;
    p.start = d.g.start;
    p.count = d.g.count;
    p.sa = d.sa;
    p.sb = d.sb;
    p.y = d.y.p;
    p.ld = d.y.ld;
    p.is_acc = d.acc;
    p.fault = device_cuda_fault();
    if (p.m == 0 || p.n == 0 || (p.k == 0 && d.acc)) return OK;
    int device = 0, all = 0;
    TRY_CUDA(cudaGetDevice(&device));
    TRY_CUDA(cudaDeviceGetAttribute(&all, cudaDevAttrMultiProcessorCount, device));
    int bn = pick_width(d, p, (int)max_i64(1, all - reserved));
    int blocks = (int)max_i64(1, min_i64(all - reserved, most_tiles(d, p.m, bn)));
    products++;
    size_t mark = arena_mark(cx->scratch);
    TRY(make_regular(cx, &d.a));
    TRY(make_regular(cx, &d.b));
    if (d.is_tokens && d.y.t == DT_F32)
        TRY((start<true, 128, 4, float, 56, 224>(d, p, blocks)));
    else if (d.is_tokens)
        TRY((start<true, 128, 5, uint16_t, 56, 224>(d, p, blocks)));
    else if (d.y.t == DT_F32)
        TRY((start<false, 128, 4, float, 56, 224>(d, p, blocks)));
    else if (bn == 160)
        TRY((start<false, 160, 5, uint16_t, 56, 224>(d, p, blocks)));
    else
        TRY((start<false, 128, 5, uint16_t, 56, 224>(d, p, blocks)));
    arena_release(cx->scratch, mark);
    return OK;
}

static Groups no_groups(void) {
    Groups g = {NULL, NULL, 0};
    return g;
}

static Err fprop(OpCx *cx, const char *op, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    TRY(check_codes(op, a, w));
    Product d = {op, false, codes(a), codes(w), scales(a), scales(w), y, 1, g, acc};
    TRY(check(cx, d,
              a.rows == y.rows && a.cols == w.cols && y.cols == w.rows && w.nmat == max_i64(1, g.n) &&
                  a.tile_rows == 1 && w.tile_rows == TILE));
    return run(cx, d);
}

static int64_t turned_ld(MatQ w) {
    return ceil_div(w.rows, 16) * 16;
}
size_t gemm_sm90_turned_bytes(MatQ w) {
    return (size_t)(w.nmat * w.cols * turned_ld(w));
}
Err gemm_sm90_turn(uint8_t *wt, MatQ w) {
    if (w.rows == 0 || w.cols == 0) return OK;
    dim3 grid((unsigned)ceil_div(w.cols, 64), (unsigned)ceil_div(w.rows, 64), (unsigned)w.nmat);
    LAUNCH(turn, grid, dim3(256), 0, STREAM, wt, turned_ld(w), w.q, w.ld, w.qstep, (int)w.rows, (int)w.cols);
    CHECK_LAUNCH("gemm: turned codes");
    return OK;
}

// Dgrad as a product, with the codes of w turned at wt.
static Err dgrad_product(const OpCx *cx, Product *out, Mat y, MatQ a, MatQ w, const uint8_t *wt, Groups g, bool acc) {
    int64_t ld = turned_ld(w);
    Stack b = {(void *)wt, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, w.rows, w.cols, w.nmat, ld, w.cols * ld};
    Scales sb = scales(w);
    sb.outer_step = w.scol; // the grid turned too
    sb.k_step = w.srow;
    const char *op = g.n ? "ggemm_fp8_dgrad" : "gemm_fp8_dgrad";
    TRY(check_codes(op, a, w));
    Product d = {op, false, codes(a), b, scales(a), sb, y, 1, g, acc};
    TRY(check(cx, d,
              a.rows == y.rows && a.cols == w.rows && y.cols == w.cols && w.nmat == max_i64(1, g.n) &&
                  a.tile_rows == 1 && w.tile_rows == TILE));
    *out = d;
    return OK;
}

Err gemm_sm90_dgrad_turned(OpCx *cx, Mat y, MatQ a, MatQ w, const uint8_t *wt, Groups g, bool acc) {
    Product d;
    TRY(dgrad_product(cx, &d, y, a, w, wt, g, acc));
    return run(cx, d);
}

static Err dgrad(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    Product d;
    void *wt = NULL;
    TRY(dgrad_product(cx, &d, y, a, w, NULL, g, acc));
    size_t mark = arena_mark(cx->scratch);
    TRY(arena_push(cx->scratch, &wt, gemm_sm90_turned_bytes(w), "gemm: turned codes"));
    TRY(gemm_sm90_turn((uint8_t *)wt, w));
    d.b.p = wt;
    TRY(run(cx, d));
    arena_release(cx->scratch, mark);
    return OK;
}

static Err wgrad(OpCx *cx, const char *op, Mat y, MatQ at, MatQ bt, Groups g, bool acc) {
    TRY(check_codes(op, at, bt));
    int64_t mats = max_i64(1, g.n);
    Product d = {op, true, codes(at), codes(bt), scales(at), scales(bt), y, mats, g, acc};
    TRY(check(cx, d,
              y.rows == mats * at.rows && y.cols == bt.rows && at.cols == bt.cols && at.tile_rows == 1 &&
                  bt.tile_rows == 1));
    return run(cx, d);
}

Err gemm_fp8_fprop_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) {
    return fprop(cx, "gemm_fp8_fprop", y, a, w, no_groups(), acc);
}
Err gemm_fp8_dgrad_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, bool acc) {
    return dgrad(cx, y, a, w, no_groups(), acc);
}
Err gemm_fp8_wgrad_sm90(OpCx *cx, Mat y, MatQ at, MatQ bt, bool acc) {
    return wgrad(cx, "gemm_fp8_wgrad", y, at, bt, no_groups(), acc);
}
Err ggemm_fp8_fprop_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    return fprop(cx, "ggemm_fp8_fprop", y, a, w, g, acc);
}
Err ggemm_fp8_dgrad_sm90(OpCx *cx, Mat y, MatQ a, MatQ w, Groups g, bool acc) {
    return dgrad(cx, y, a, w, g, acc);
}
Err ggemm_fp8_wgrad_sm90(OpCx *cx, Mat y, MatQ at, MatQ bt, Groups g, bool acc) {
    return wgrad(cx, "ggemm_fp8_wgrad", y, at, bt, g, acc);
}
