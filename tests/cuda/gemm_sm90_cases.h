// gemm_sm90_cases.h - problems for Hopper's FP8 products, run under the fibers, with their answers in double.
//
// A case owns its operands. What belongs to nobody is NaN: codes between rows and outside of groups, y before it is
// written; and what must not be written is compared afterwards.
#pragma once
#include "on_cpu.h"

#include "gemm_cuda_sm90.h"
#include "gemm_reference.h"

#ifdef ON_DEVICE // operands lie on the host (mirror.h)
#define SM90(name, B)                                                                                                \
    Err name##_sm90_mirror(OpCx *cx, Mat y, MatQ a, MatQ B, bool acc);                                               \
    Err g##name##_sm90_mirror(OpCx *cx, Mat y, MatQ a, MatQ B, Groups g, bool acc);
SM90(gemm_fp8_fprop, w)
SM90(gemm_fp8_dgrad, w)
SM90(gemm_fp8_wgrad, bt)
#define gemm_fp8_fprop_sm90 gemm_fp8_fprop_sm90_mirror
#define gemm_fp8_dgrad_sm90 gemm_fp8_dgrad_sm90_mirror
#define gemm_fp8_wgrad_sm90 gemm_fp8_wgrad_sm90_mirror
#define ggemm_fp8_fprop_sm90 ggemm_fp8_fprop_sm90_mirror
#define ggemm_fp8_dgrad_sm90 ggemm_fp8_dgrad_sm90_mirror
#define ggemm_fp8_wgrad_sm90 ggemm_fp8_wgrad_sm90_mirror
#endif

void tc_multiprocessors(int n);
void tc_finish(void);
void tc_sum_bits(int bits);

typedef enum Form { FPROP, DGRAD, WGRAD } Form;
// ALIGNED: codes as TMA wants them, scales tile by tile. WIRE: each row its codes, then its scales. ODD: rows of no
// even length.
typedef enum Layout { ALIGNED, WIRE, ODD, LAYOUTS } Layout;
typedef struct Shape3 {
    int m, n, k; // of the output, and the contraction
} Shape3;
typedef struct Options {
    Form form;
    Layout layout;
    ScaleType st;
    DType out;
    bool acc, is_power; // is_power: weight scales are powers of two as well
    int gap;            // rows between groups
    int seed;
} Options;

typedef struct Case {
    Options o;
    MatQ a, b;
    Mat y;
    double *old; // y before, NaN where it must be written
    Groups g;    // n = 0: dense
    int64_t start[4], count[4];
    void *mem[5];
    int nmem;
} Case;

static Arena *case_arena;
static char case_wrong[200];

static inline Arena *case_scratch(void) {
    return case_arena;
}
static inline int case_setup(void **state) {
    (void)state;
    return arena_create(&case_arena, "scratch", 64 << 20, false) == OK ? 0 : 1;
}
static inline int case_teardown(void **state) {
    (void)state;
    arena_destroy(&case_arena);
    return 0;
}
static inline void *case_memory(Case *c, size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);
    memset(p, 0xFF, (bytes + 64) / 64 * 64);
    return c->mem[c->nmem++] = p;
}

// Random codes and scales of nmat matrices [rows, cols]; `tiles` scales along the columns.
static inline MatQ case_operand(Case *c, Layout layout, ScaleType st, int tile_rows, int64_t nmat, int64_t rows,
                                int64_t cols, int64_t tiles) {
    int64_t srows = ceil_div(rows, tile_rows), es = st == SCALE_F32 ? 4 : 1;
    MatQ m = {.st = st, .rows = rows, .cols = cols, .tile_rows = tile_rows, .nmat = nmat};
    bool is_wire = layout == WIRE && tile_rows == 1;
    m.ld = layout == ODD ? cols + 5 : ceil_div(cols, 16) * 16;
    m.srow = layout == ODD ? tiles : 1;
    m.scol = layout == ODD ? 1 : srows;
    m.sstep = srows * tiles;
    if (is_wire) {
        m = matq_wire(NULL, st, CODE_E4M3, rows, cols);
        m.ld +=
            ceil_div(tiles, 4) * 4 * es - ceil_div(ceil_div(cols, TILE) * es, 4) * 4; // groups may have more tiles
        m.srow = m.ld / es;
    } else {
        m.s = case_memory(c, (size_t)(nmat * m.sstep * es + 4));
    }
    m.qstep = rows * m.ld + (layout == ODD ? 3 : 0);
    m.q = case_memory(c, (size_t)(nmat * m.qstep + 16));
    if (layout == ODD) m.q += 3;
    if (is_wire) m.s = m.q + ceil_div(cols, 4) * 4;
    for (int64_t e = 0; e < nmat; e++)
        for (int64_t r = 0; r < srows; r++)
            for (int64_t t = 0; t < tiles; t++) {
                int64_t at = e * m.sstep + r * m.srow + t * m.scol;
                if (st == SCALE_E8M0)
                    ((uint8_t *)m.s)[at] = (uint8_t)(116 + ref_word() % 4);
                else
                    ((float *)m.s)[at] =
                        c->o.is_power ? ldexpf(1.0f, -8 - (int)(ref_word() % 4)) : 0.002f * (1.5f + ref_float());
            }
    for (int64_t e = 0; e < nmat; e++)
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < cols; k++) {
                uint8_t code = (uint8_t)(ref_word() >> 7);
                m.q[e * m.qstep + r * m.ld + k] = (code & 0x7F) == 0x7F ? 0x7E : code;
            }
    return m;
}

// y: NaN where it has to be written, random where it is added to or must stay.
static inline void case_output(Case *c, int64_t rows, int64_t cols) {
    size_t es = dtype_bytes(c->o.out);
    c->y = (Mat){NULL, c->o.out, rows, cols, c->o.layout == ODD ? cols + 5 : ceil_div(cols, 16) * 16};
    c->y.p = case_memory(c, (size_t)(rows * c->y.ld + 1) * es);
    c->old = malloc((size_t)(rows * cols + 1) * sizeof *c->old);
    for (int64_t r = 0; r < rows; r++) {
        bool is_kept = c->o.acc;
        if (c->o.form != WGRAD && c->g.n) {
            bool is_inside = false;
            for (int64_t e = 0; e < c->g.n; e++)
                is_inside = is_inside || (r >= c->start[e] && r < c->start[e] + c->count[e]);
            is_kept = is_kept || !is_inside;
        }
        for (int64_t j = 0; j < cols; j++) {
            float v = is_kept ? bf16_round(ref_float()) : NAN;
            if (c->o.out == DT_F32)
                *(float *)mat_at(c->y, r, j) = v;
            else
                *(uint16_t *)mat_at(c->y, r, j) = bf16_from_f32(v);
            c->old[r * cols + j] = (double)v;
        }
    }
}

static inline Case case_dense(Options o, Shape3 s) {
    Case c = {.o = o};
    ref_seed = (uint32_t)o.seed * 977 + 5;
    Layout rest = o.layout == WIRE ? ALIGNED : o.layout;
    int64_t t = ceil_div(s.k, TILE);
    if (o.form == WGRAD) {
        c.a = case_operand(&c, rest, o.st, 1, 1, s.m, s.k, t);
        c.b = case_operand(&c, rest, o.st, 1, 1, s.n, s.k, t);
    } else {
        int64_t rows = o.form == FPROP ? s.n : s.k, cols = o.form == FPROP ? s.k : s.n;
        c.a = case_operand(&c, o.layout, o.st, 1, 1, s.m, s.k, t);
        c.b = case_operand(&c, rest, SCALE_F32, TILE, 1, rows, cols, ceil_div(cols, TILE));
    }
    case_output(&c, s.m, s.n);
    return c;
}

// Four experts, weights [n, k]. Groups with gaps hold NaN codes in between.
static inline Case case_grouped(Options o, const int *counts, int64_t n, int64_t k) {
    Case c = {.o = o};
    ref_seed = (uint32_t)o.seed * 977 + 11;
    int64_t rows = o.gap, tiles = 0;
    for (int e = 0; e < 4; e++) {
        c.start[e] = rows;
        c.count[e] = counts[e];
        rows += counts[e] + o.gap;
        tiles += ceil_div(counts[e], TILE);
    }
    c.g = (Groups){c.start, c.count, 4};
    Layout rest = o.layout == WIRE ? ALIGNED : o.layout;
    if (o.form == WGRAD) {
        c.a = case_operand(&c, rest, o.st, 1, 1, n, rows, tiles);
        c.b = case_operand(&c, rest, o.st, 1, 1, k, rows, tiles);
        case_output(&c, 4 * n, k);
    } else {
        c.a = case_operand(&c, o.layout, o.st, 1, 1, rows, o.form == FPROP ? k : n,
                           ceil_div(o.form == FPROP ? k : n, TILE));
        c.b = case_operand(&c, rest, SCALE_F32, TILE, 4, n, k, ceil_div(k, TILE));
        case_output(&c, rows, o.form == FPROP ? n : k);
    }
    int64_t at = 0;
    for (int e = 0; e <= 4; e++) { // rows, or columns, between groups
        int64_t end = e < 4 ? c.start[e] : rows;
        for (; at < end; at++) {
            if (o.form == WGRAD) {
                for (int64_t r = 0; r < n; r++) c.a.q[r * c.a.ld + at] = 0x7F;
                for (int64_t r = 0; r < k; r++) c.b.q[r * c.b.ld + at] = 0xFF;
            } else {
                memset(c.a.q + at * c.a.ld, 0x7F, (size_t)c.a.cols);
            }
        }
        if (e < 4) at = c.start[e] + c.count[e];
    }
    // The groups are in device memory; start and count are copied with the case, so point at this one.
    return c;
}

static inline void case_run(Case *c) {
    OpCx cx = {.scratch = case_arena};
    if (c->g.n) c->g = (Groups){c->start, c->count, 4};
    Groups g = c->g;
    switch (c->o.form) {
    case FPROP:
        if (g.n)
            MUST_OK(ggemm_fp8_fprop_sm90(&cx, c->y, c->a, c->b, g, c->o.acc));
        else
            MUST_OK(gemm_fp8_fprop_sm90(&cx, c->y, c->a, c->b, c->o.acc));
        break;
    case DGRAD:
        if (g.n)
            MUST_OK(ggemm_fp8_dgrad_sm90(&cx, c->y, c->a, c->b, g, c->o.acc));
        else
            MUST_OK(gemm_fp8_dgrad_sm90(&cx, c->y, c->a, c->b, c->o.acc));
        break;
    default:
        if (g.n)
            MUST_OK(ggemm_fp8_wgrad_sm90(&cx, c->y, c->a, c->b, g, c->o.acc));
        else
            MUST_OK(gemm_fp8_wgrad_sm90(&cx, c->y, c->a, c->b, c->o.acc));
    }
    tc_finish();
}

static inline bool case_says(int64_t r, int64_t j, double got, const char *what) {
    snprintf(case_wrong, sizeof case_wrong, "y(%lld, %lld) = %.9g: %s", (long long)r, (long long)j, got, what);
    return false;
}

// Rows [r0, r0+m) of y from rows of a and the matrix b, contraction [k0, k0+n) with scales from tile `tile`.
static inline bool case_part_is_right(Case *c, int64_t r0, int64_t m, int64_t a0, MatQ b, int64_t k0, int64_t n,
                                      int64_t tile) {
    bool is_turned = c->o.form == DGRAD;
    int64_t cols = c->y.cols;
    double *va = malloc((size_t)(m * n + 1) * sizeof *va), *vb = malloc((size_t)(cols * n + 1) * sizeof *vb);
    for (int64_t i = 0; i < m; i++)
        for (int64_t k = 0; k < n; k++) va[i * n + k] = ref_value(c->a, a0 + i, k0 + k, tile + k / TILE);
    for (int64_t j = 0; j < cols; j++)
        for (int64_t k = 0; k < n; k++)
            vb[j * n + k] = is_turned ? ref_value(b, k, j, j / TILE) : ref_value(b, j, k0 + k, tile + k / TILE);
    bool is_ok = true;
    for (int64_t i = 0; i < m && is_ok; i++)
        for (int64_t j = 0; j < cols && is_ok; j++) {
            double got = ref_get(c->y, r0 + i, j), old = c->o.acc ? c->old[(r0 + i) * cols + j] : 0;
            if (!ref_is_close(got, old, va + i * n, 1, vb + j * n, 1, n, true, c->y.t == DT_BF16))
                is_ok = case_says(r0 + i, j, got, "not the product");
        }
    free(va), free(vb);
    return is_ok;
}

static inline bool case_is_right(Case *c) {
    if (!c->g.n) return case_part_is_right(c, 0, c->y.rows, 0, c->b, 0, c->a.cols, 0);
    int64_t tile = 0, per = c->y.rows / 4;
    for (int e = 0; e < 4; e++) {
        bool is_ok = c->o.form == WGRAD ? case_part_is_right(c, e * per, per, 0, c->b, c->start[e], c->count[e], tile)
                                        : case_part_is_right(c, c->start[e], c->count[e], c->start[e],
                                                             matq_mat(c->b, e), 0, c->a.cols, 0);
        if (!is_ok) return false;
        tile += ceil_div(c->count[e], TILE);
    }
    for (int64_t r = 0; r < c->y.rows && c->o.form != WGRAD; r++) {
        bool is_inside = false;
        for (int e = 0; e < 4; e++) is_inside = is_inside || (r >= c->start[e] && r < c->start[e] + c->count[e]);
        for (int64_t j = 0; j < c->y.cols && !is_inside; j++)
            if (ref_get(c->y, r, j) != c->old[r * c->y.cols + j])
                return case_says(r, j, ref_get(c->y, r, j), "written");
    }
    return true;
}

static inline uint64_t case_hash(Case *c) {
    uint64_t h = 14695981039346656037ull;
    for (int64_t r = 0; r < c->y.rows; r++) {
        const uint8_t *p = mat_at(c->y, r, 0);
        for (int64_t i = 0; i < c->y.cols * (int64_t)dtype_bytes(c->y.t); i++) h = (h ^ p[i]) * 1099511628211ull;
    }
    return h;
}

// The same bits as the CPU's GEMM_PROMOTE128_HOPPER14?
static inline bool case_equals_cpu(Case *c) {
    OpCx cx = {.scratch = case_arena, .nthreads = 1, .accumulate = GEMM_PROMOTE128_HOPPER14};
    Mat y = c->y;
    y.p = malloc((size_t)(y.rows * y.ld + 1) * dtype_bytes(y.t));
    memcpy(y.p, c->y.p, (size_t)(y.rows * y.ld) * dtype_bytes(y.t));
    Err err = c->o.form == FPROP   ? c->g.n ? ggemm_fp8_fprop_cpu(&cx, y, c->a, c->b, c->g, false)
                                            : gemm_fp8_fprop_cpu(&cx, y, c->a, c->b, false)
                : c->o.form == DGRAD ? c->g.n ? ggemm_fp8_dgrad_cpu(&cx, y, c->a, c->b, c->g, false)
                                              : gemm_fp8_dgrad_cpu(&cx, y, c->a, c->b, false)
                : c->g.n ? ggemm_fp8_wgrad_cpu(&cx, y, c->a, c->b, c->g, false)
                                   : gemm_fp8_wgrad_cpu(&cx, y, c->a, c->b, false);
    assert_int_equal(err, OK);
    bool is_ok = true;
    for (int64_t r = 0; r < y.rows && is_ok; r++)
        for (int64_t j = 0; j < y.cols && is_ok; j++)
            if (ref_get(y, r, j) != ref_get(c->y, r, j)) {
                char what[60];
                snprintf(what, sizeof what, "%.9g on the CPU", ref_get(y, r, j));
                is_ok = case_says(r, j, ref_get(c->y, r, j), what);
            }
    free(y.p);
    return is_ok;
}

static inline void case_free(Case *c) {
    for (int i = 0; i < c->nmem; i++) free(c->mem[i]);
    free(c->old);
}
