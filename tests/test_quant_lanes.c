// test_quant_lanes.c - every instruction set's quantiser against the portable loops, bit for bit
// and count for count: every BF16 value under scales of every size, every code under every scale.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "e5m6.h"
#include "must.h"
#include "ops.h"
#include "quant_lanes.h"

enum {
    PER_TILE = TILE - 1,                      // values of a tile besides its largest
    ROWS = (65536 + PER_TILE - 1) / PER_TILE, // tiles that hold every BF16 value
};

// Instruction sets, and from how many bytes on codes go past the caches (quant_far_select).
static const struct {
    const char *name;
    int64_t far;
} isas[] = {{"avx512-bf16", -1}, {"avx512", -1}, {"avx512-bf16", 0}, {"avx2", -1}};
enum { ISAS = 4 };

static bool select_isa(int i) {
    quant_far_select(isas[i].far);
    return quant_select(isas[i].name);
}

// What one instruction set makes of a matrix, in memory of one size for all operations.
typedef struct Made {
    uint8_t *q, *qt;
    void *s, *st;
    QuantCount n, n_t;
} Made;

enum { CODES = ROWS * 2 * TILE, SCALES = CODES * 4 };

static Made made(void) {
    // Whole lines of memory: codes can go past the caches without a buffer.
    Made m = {aligned_alloc(64, CODES), aligned_alloc(64, CODES), malloc(SCALES), malloc(SCALES),
              {0}, {0}};
    memset(m.q, 0x55, CODES);
    memset(m.qt, 0x55, CODES);
    memset(m.s, 0x55, SCALES);
    memset(m.st, 0x55, SCALES);
    return m;
}

static void drop(Made m) {
    free(m.q), free(m.qt), free(m.s), free(m.st);
}

static void assert_same(const Made *a, const Made *b) {
    assert_memory_equal(a->q, b->q, CODES);
    assert_memory_equal(a->qt, b->qt, CODES);
    assert_memory_equal(a->s, b->s, SCALES);
    assert_memory_equal(a->st, b->st, SCALES);
    assert_memory_equal(&a->n, &b->n, offsetof(QuantCount, amax_bits));
    assert_memory_equal(&a->n_t, &b->n_t, offsetof(QuantCount, amax_bits));
    assert_int_equal(a->n.amax_bits, b->n.amax_bits);
    assert_int_equal(a->n_t.amax_bits, b->n_t.amax_bits);
}

static MatQ rows_of(Made *m, ScaleType st, CodeType ct, int64_t rows, int64_t cols) {
    return (MatQ){m->q, m->s, st, ct, rows, cols, cols, ceil_div(cols, TILE), 1, 1, 1, 0, 0};
}
static MatQ cols_of(Made *m, ScaleType st, CodeType ct, int64_t rows, int64_t cols) {
    return (MatQ){m->qt, m->st, st, ct, rows, cols, cols, 1, rows, 1, 1, 0, 0};
}

// One operation of each kind on x; `turn` has the tiles along its rows.
typedef enum Kind { PAIR, ROW, TURN, WEIGHT, PACK, KINDS } Kind;

static Made make(const char *isa, Kind kind, Mat x, Mat turned, ScaleType st, CodeType ct) {
    OpCx cx = {.nthreads = 1};
    Made m = made();
    assert_true(quant_select(isa));
    QuantRule rule = {SCOPE_TILE, 0};
    Groups all = {0};
    MatQ w = rows_of(&m, st, CODE_E4M3, x.rows, x.cols);
    w.tile_rows = TILE;
    if (kind == PAIR)
        MUST_OK(quant_tile_pair_cpu(&cx, rows_of(&m, st, ct, x.rows, x.cols),
                                    cols_of(&m, st, ct, x.cols, x.rows), x, all, rule, rule, &m.n,
                                    &m.n_t));
    if (kind == ROW)
        MUST_OK(quant_tile_cpu(&cx, rows_of(&m, st, ct, x.rows, x.cols), x, rule, &m.n));
    if (kind == TURN)
        MUST_OK(quant_tile_t_cpu(&cx, cols_of(&m, st, ct, turned.cols, turned.rows), turned, all,
                                 rule, &m.n_t));
    if (kind == WEIGHT) MUST_OK(weight_prepare_cpu(&cx, w, x, rule, &m.n));
    if (kind == PACK) {
        int64_t bytes = e5m6_row_bytes(x.cols);
        MUST_OK(quant_e5m6_cpu(&cx, mat(m.q, DT_U8, x.rows, bytes), x, &m.n));
    }
    return m;
}

// Tiles with this largest magnitude (BF16 bits) and all other values, those above it cut to it
// unless `is_raw`; F32 ones are a little off, to be rounded.
static void fill(Mat x, Mat turned, int amax, bool is_raw) {
    for (int i = 0; i < ROWS * TILE; i++) {
        int r = i / TILE, c = i % TILE, v = (r * PER_TILE + c - 1) & 0xFFFF;
        if (c == 0) v = amax;
        if (!is_raw && (v & 0x7FFF) > amax) v = (v & 0x8000) | amax;
        uint32_t f = (uint32_t)v << 16;
        // Half of the lost bits or one more or less, that rounds back; NaN of any kind stays one.
        if (is_raw)
            f |= (uint32_t)i * 40503u & 0xFFFF;
        else if (v & 0x7FFF && (v & 0x7FFF) < 0x7F80)
            f += (uint32_t)(i % 3 - 1) * 0x7FFF;
        if (x.t == DT_F32) {
            ((uint32_t *)x.p)[r * TILE + c] = f;
            ((uint32_t *)turned.p)[c * ROWS + r] = f;
        } else {
            ((uint16_t *)x.p)[r * TILE + c] = (uint16_t)v;
            ((uint16_t *)turned.p)[c * ROWS + r] = (uint16_t)v;
        }
    }
}

static void every_value(void **state) {
    (void)state;
    // Scales at their floor, where BF16 has no bits to spare, in the middle and at the top; with
    // mantissas at the step of a power of two (0x60) and where FP32 scales give exact ties (0x40).
    static const int amax[] = {0,      1,      0x60,   0x7F,   0x80,   0x460,  0x8FF,
                               0x960,  0x961,  0x9E0,  0x9E1,  0xA40,  0xA60,  0xA61,
                               0xE60,  0xE61,  0xFE0,  0xFE1,  0x3F40, 0x3F80, 0x3FE0,
                               0x3FE1, 0x43E0, 0x439A, 0x7AFF, 0x7F60, 0x7F61, 0x7F7F};
    for (size_t a = 0; a < 2 * sizeof amax / sizeof amax[0]; a++) {
        DType t = a % 2 ? DT_F32 : DT_BF16;
        Mat x = mat(malloc(ROWS * TILE * 4), t, ROWS, TILE);
        Mat turned = mat(malloc(ROWS * TILE * 4), t, TILE, ROWS);
        for (int raw = 0; raw < 2; raw++) {
            fill(x, turned, amax[a / 2], raw);
            for (int form = 0; form < KINDS * 2; form++) {
                ScaleType st = (ScaleType)(form % 2);
                CodeType ct = a % 14 == 3 ? CODE_E5M2 : CODE_E4M3;
                Kind kind = (Kind)(form / 2);
                Made want = make("portable", kind, x, turned, st, ct);
                for (int i = 0; i < ISAS; i++) {
                    if (!select_isa(i)) continue;
                    Made got = make(isas[i].name, kind, x, turned, st, ct);
                    assert_same(&got, &want);
                    drop(got);
                }
                drop(want);
            }
        }
        free(x.p);
        free(turned.p);
    }
}

// Codes of x in 128x1 tiles and as values of both types.
static Made decode(const char *isa, MatQ x, ScaleType st) {
    OpCx cx = {.nthreads = 1};
    Made m = made();
    Groups all = {0};
    assert_true(quant_select(isa));
    MUST_OK(requant_tile_t_cpu(&cx, cols_of(&m, st, CODE_E4M3, x.cols, x.rows), x, all,
                               (QuantRule){0}, &m.n_t));
    MUST_OK(dequant_cpu(&cx, mat(m.q, DT_BF16, x.rows, x.cols), x));
    MUST_OK(dequant_cpu(&cx, mat(m.s, DT_F32, x.rows, x.cols), x));
    return m;
}

static void every_code(void **state) {
    (void)state;
    enum { COLS = 256 };
    static uint8_t q[TILE * COLS], e8m0[TILE * 2];
    static float f32[TILE * 2];
    for (int form = 0; form < 4 * 256; form++) {
        int b = form / 4;
        bool is_pow2 = form % 2, has_one_scale = form & 2;
        for (int i = 0; i < TILE * COLS; i++) {
            int r = i / COLS, c = i % COLS; // each channel has every other code
            q[i] = (uint8_t)(has_one_scale ? c + 2 * r : (c + 2 * r) % 0x7F);
        }
        for (int i = 0; i < TILE * 2; i++) {
            int e = has_one_scale ? b : (b + i / 16) % 256;
            e = e < 1 ? 1 : e > 254 ? 254 : e;
            e8m0[i] = (uint8_t)e;
            f32[i] = f32_from_bits((uint32_t)e << 23 | (uint32_t)(form * 977 + i * 31) % 0x7FFFFF);
        }
        MatQ x = {q,
                  is_pow2 ? (void *)e8m0 : f32,
                  is_pow2 ? SCALE_E8M0 : SCALE_F32,
                  CODE_E4M3,
                  TILE,
                  COLS,
                  COLS,
                  2,
                  1,
                  1,
                  1,
                  0,
                  0};
        ScaleType st = (ScaleType)(b % 3 == 0 ? SCALE_F32 : SCALE_E8M0);
        Made want = decode("portable", x, st);
        for (int i = 0; i < ISAS; i++) {
            if (!select_isa(i)) continue;
            Made got = decode(isas[i].name, x, st);
            assert_same(&got, &want);
            drop(got);
        }
        drop(want);
    }
}

static void every_e5m6_code(void **state) {
    (void)state;
    enum { COLS = 4096 };
    int64_t bytes = e5m6_row_bytes(COLS);
    uint8_t *packed = calloc((size_t)bytes, 1);
    uint16_t want[COLS], got[COLS];
    for (int i = 0; i < COLS / 2; i++) {
        int a = 2 * i, b = (2 * i + 1) * 5 % COLS;
        packed[3 * i] = (uint8_t)a;
        packed[3 * i + 1] = (uint8_t)(a >> 8 | b << 4);
        packed[3 * i + 2] = (uint8_t)(b >> 4);
    }
    for (int scale = 1; scale < 255; scale++) {
        OpCx cx = {.nthreads = 1};
        memset(packed + COLS / 2 * 3, scale, COLS / TILE);
        Mat x = mat(packed, DT_U8, 1, bytes);
        assert_true(quant_select("portable"));
        MUST_OK(dequant_e5m6_cpu(&cx, mat(want, DT_BF16, 1, COLS), x));
        for (int i = 0; i < ISAS; i++) {
            if (!select_isa(i)) continue;
            MUST_OK(dequant_e5m6_cpu(&cx, mat(got, DT_BF16, 1, COLS), x));
            assert_memory_equal(got, want, sizeof want);
        }
    }
    free(packed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value),
        cmocka_unit_test(every_code),
        cmocka_unit_test(every_e5m6_code),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
