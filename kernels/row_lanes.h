// row_lanes.h - the loops over one row of the elementwise operations, compiled once per instruction
// set. Inside kernels/ and its tests only.
//
// Every function takes matrices of F32 or BF16 and the number r of a row. The bits are those of the
// scalar functions in the *_core.h files, on every instruction set; sums run in 16 lanes (rows.h).
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "adam.h"
#include "view.h"

typedef struct RowLanes {
    const char *name;
    // norm.h. part [D] += dy * xhat of the row.
    void (*norm_fwd)(Mat y, float *rstd, Mat x, const float *w, float eps, int64_t r);
    void (*norm_bwd)(Mat dx, float *part, Mat dy, Mat x, const float *w, float rstd, Mat dres,
                     int64_t r);
    void (*add)(Mat y, Mat a, Mat b, int64_t r);
    // Row r of y = row rx of x, rounded if y is narrower.
    void (*cast)(Mat y, int64_t r, Mat x, int64_t rx);
    // to [n] += columns [c, c+n) of row r.
    void (*accumulate)(float *to, Mat x, int64_t r, int64_t c, int64_t n);
    // permute.h: row m of rows_sum.
    void (*sum)(Mat y, Mat x, const int32_t *idx, int64_t n, Mat add1, Mat add2, int64_t m);
    // swiglu.h. The backward returns the gradient of the gate, and makes what the forward made, h, unless it
    // is mat_none(); dg and du may be the memory of g and u.
    void (*swiglu_fwd)(Mat h, Mat g, Mat u, float gate, int64_t r);
    float (*swiglu_bwd)(Mat dg, Mat du, Mat h, Mat dh, Mat g, Mat u, float gate, int64_t r);
    // xent.h: returns sum exp(l - max) of a row of logits and its *max; the terms go to e [V]
    // unless it is NULL. Then the gradient from the terms.
    double (*xent_sum)(float *e, const float *l, int64_t V, float *max);
    void (*xent_grad)(Mat dlogits, const float *e, float inv, float scale, int64_t target,
                      int64_t r);
    // adam.h.
    void (*adam)(Mat master, Mat m, Mat v, Mat grad, Mat copy, AdamStep s, int64_t r);
    // adam.h: the sums of ROW_SUMSQ blocks of 128 rows from block b0; what is beyond is not
    // written.
    void (*sumsq)(double *out, Mat x, int64_t b0);
} RowLanes;

#define ROW_SUMSQ 8 // blocks whose sums of squares are made side by side

extern const RowLanes row_lanes_avx512bf16, row_lanes_avx512, row_lanes_avx2, row_lanes_portable;

// row_lanes: the loops chosen. row_select: use these from now on ("avx512bf16", "avx512", "avx2", "portable");
// NULL = the best of this processor. False, and nothing changed, if unknown or not there. Not
// thread-safe.
const RowLanes *row_lanes(void);
bool row_select(const char *name);

// row_swiglu_bwd: rows [r0, r1) of swiglu.h's backward, and of h unless it is mat_none(). gate and dgate may be NULL.
static inline void row_swiglu_bwd(Mat dg, Mat du, Mat h, float *dgate, Mat dh, Mat g, Mat u, const float *gate,
                                  int64_t r0, int64_t r1) {
    const RowLanes *lanes = row_lanes();
    for (int64_t r = r0; r < r1; r++) {
        float d = lanes->swiglu_bwd(dg, du, h, dh, g, u, gate ? gate[r] : 1.0f, r);
        if (dgate) dgate[r] = d;
    }
}
