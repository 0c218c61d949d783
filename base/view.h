// view.h - views of memory. Views never own: arenas do.
//
// After batch and sequence are flattened everything in this trainer is a row-major matrix, so there are
// two views: Mat (plain numbers) and MatQ (FP8 codes with their scales, so that data and scale cannot
// part). Both are passed by value.
#pragma once
#include "fail.h"

#define TILE 128 // elements that share a scale along a contraction; also the promotion interval N_C

typedef enum DType { DT_F32, DT_BF16, DT_F64, DT_I32, DT_I64, DT_U8, DT_U16, DT_U32, DT_U64 } DType;

// dtype_bytes: size of one element in bytes. dtype_name: "f32", "bf16", ...
size_t dtype_bytes(DType t);
const char *dtype_name(DType t);

typedef struct Mat {
    void *p;      // first element; NULL = no matrix (an optional argument left out)
    DType t;      // element type
    int64_t rows; // rows
    int64_t cols; // columns
    int64_t ld;   // elements from one row to the next, >= cols
} Mat;

typedef enum ScaleType {
    SCALE_F32, // one float per tile
    SCALE_E8M0 // one byte per tile, value 2^(byte-127), never 0 or 255
} ScaleType;

typedef enum CodeType {
    CODE_E4M3, // largest finite 448
    CODE_E5M2  // largest finite 57344; only gradients, and only if asked for
} CodeType;

// A matrix of FP8 codes; value = code * scale of its tile.
//   Row-quantised activation  [rows=tokens, cols=channels]: tile_rows 1, tile_cols 128.
//     scale of (r, c): s[r*srow + (c/128)*scol].
//   Transposed for Wgrad      [rows=channels, cols=tokens]: tile_rows 1, tile_cols 128, and the tiles
//     restart at the start of each group (see Groups): scale of (r, token i of group g):
//     s[r*srow + (tile0(g) + i/128)*scol], tile0(g) = sum over earlier groups of ceil(count/128).
//   Weight block grid         [rows=N, cols=K]: tile_rows 128, tile_cols 128:
//     s[(r/128)*srow + (c/128)*scol]; nmat matrices (experts) stacked, each with its own grid.
typedef struct MatQ {
    uint8_t *q; // codes
    void *s;    // scales, float or uint8_t
    ScaleType st;
    CodeType ct;
    int64_t rows, cols, ld;  // of one matrix; ld in codes
    int64_t srow, scol;      // scale strides, in scales
    int tile_rows;           // 1 or 128 (tile_cols is always 128)
    int64_t nmat;            // stacked matrices (experts), 1 for activations
    int64_t qstep, sstep;    // codes / scales from one stacked matrix to the next
} MatQ;

// Rows of a matrix divided into consecutive groups (experts). n == 0 means: one group of all rows.
typedef struct Groups {
    const int64_t *start; // [n] first row of each group
    const int64_t *count; // [n] rows of each group, 0 allowed; rows between groups are padding
    int64_t n;
} Groups;

static inline int64_t ceil_div(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
static inline int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

// mat: a dense matrix view over p.
static inline Mat mat(void *p, DType t, int64_t rows, int64_t cols) {
    Mat m = {p, t, rows, cols, cols};
    return m;
}
static inline Mat mat_none(void) {
    Mat m = {NULL, DT_F32, 0, 0, 0};
    return m;
}
// mat_at: address of element (r, c).
static inline void *mat_at(Mat m, int64_t r, int64_t c) {
    return (char *)m.p + (size_t)(r * m.ld + c) * dtype_bytes(m.t);
}
// mat_rows / mat_cols: n rows from r0, n columns from c0, of the same memory.
static inline Mat mat_rows(Mat m, int64_t r0, int64_t n) {
    m.p = mat_at(m, r0, 0);
    m.rows = n;
    return m;
}
static inline Mat mat_cols(Mat m, int64_t c0, int64_t n) {
    m.p = mat_at(m, 0, c0);
    m.cols = n;
    return m;
}
// matq_mat: the e-th stacked matrix.
static inline MatQ matq_mat(MatQ w, int64_t e) {
    w.q += e * w.qstep;
    w.s = (char *)w.s + (size_t)(e * w.sstep) * (w.st == SCALE_F32 ? 4 : 1);
    w.nmat = 1;
    return w;
}
// matq_rows: n rows from r0 of a row-quantised activation.
static inline MatQ matq_rows(MatQ x, int64_t r0, int64_t n) {
    x.q += r0 * x.ld;
    x.s = (char *)x.s + (size_t)(r0 * x.srow) * (x.st == SCALE_F32 ? 4 : 1);
    x.rows = n;
    return x;
}
// matq_cols: n columns from c0 of a transposed activation; `tile` is the number of c0's tile.
static inline MatQ matq_cols(MatQ x, int64_t c0, int64_t n, int64_t tile) {
    x.q += c0;
    x.s = (char *)x.s + (size_t)(tile * x.scol) * (x.st == SCALE_F32 ? 4 : 1);
    x.cols = n;
    return x;
}
// groups_tiles: number of 128-row tiles of all groups (rows = rows of the matrix, for n == 0).
int64_t groups_tiles(Groups g, int64_t rows);
