// row_lanes.c - see row_lanes.h. Built with the flags of each instruction set, ROW_LANES_TABLE
// being the name of the table and ROW_LANES_NAME what people call it.
#include "row_lanes.h"

#include "adam_core.h"
#include "norm_core.h"
#include "row_vector.h"

// EACH_SIDE(c, n, K, D, ...): the body for all columns of D: for K = V_SIDE vectors from column c
// where there are as many, then for one, n elements of each; all but the last n are a constant
// V_LANES.
#define EACH_SIDE(c, n, K, D, ...)                                                                 \
    do {                                                                                           \
        const int64_t all_ = (D);                                                                  \
        int64_t c = 0;                                                                             \
        for (; c + V_SIDE * V_LANES <= all_; c += V_SIDE * V_LANES) {                              \
            const int64_t n = V_LANES;                                                             \
            const int K = V_SIDE;                                                                  \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        for (; c + V_LANES <= all_; c += V_LANES) {                                                \
            const int64_t n = V_LANES;                                                             \
            const int K = 1;                                                                       \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        if (c < all_) {                                                                            \
            const int64_t n = all_ - c;                                                            \
            const int K = 1;                                                                       \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    } while (0)
// EACH(c, n, D, ...): the same, one vector at a time.
#define EACH(c, n, D, ...)                                                                         \
    do {                                                                                           \
        const int64_t all_ = (D);                                                                  \
        int64_t c = 0;                                                                             \
        for (; c + V_LANES <= all_; c += V_LANES) {                                                \
            const int64_t n = V_LANES;                                                             \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        if (c < all_) {                                                                            \
            const int64_t n = all_ - c;                                                            \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    } while (0)

// The column of vector k, and its number for vsum_add: V_SIDE vectors start at a multiple of 16.
#define AT(k) (c + (k)*V_LANES)
#define LANE(k) ((K > 1 ? 0 : c) + (k)*V_LANES)

ROW_INLINE Row row_f32(const float *p) {
    return (Row){(char *)(uintptr_t)p, true};
}

// ---- norm.h -----------------------------------------------------------------------------------

ROW_INLINE void norm_square(VSum *acc, Row in, int64_t c, int64_t n, const int K) {
    EACH_V(k) {
        V v = v_get(in, AT(k), n);
        vsum_add(acc, LANE(k), v * v);
    }
}

static void norm_fwd(Mat y, float *rstd, Mat x, const float *w, float eps, int64_t r) {
    Row out = row_of(y, r), in = row_of(x, r), weight = row_f32(w);
    VSum acc = {0};
    EACH_SIDE(c, n, K, x.cols, norm_square(&acc, in, c, n, K););
    float s = norm_rstd(vsum_total(&acc), (float)x.cols, eps);
    if (rstd) rstd[r] = s;
    EACH(c, n, x.cols, v_put(out, c, n, v_get(in, c, n) * s * v_get(weight, c, n)););
}

ROW_INLINE void norm_dot(VSum *acc, Row part, Row grad, Row in, Row weight, float rstd, int64_t c,
                         int64_t n, const int K) {
    EACH_V(k) {
        V gx = v_get(grad, AT(k), n) * (v_get(in, AT(k), n) * rstd);
        v_put(part, AT(k), n, v_get(part, AT(k), n) + gx);
        vsum_add(acc, LANE(k), gx * v_get(weight, AT(k), n));
    }
}

static void norm_bwd(Mat dx, float *part, Mat dy, Mat x, const float *w, float rstd, Mat dres,
                     int64_t r) {
    Row out = row_of(dx, r), grad = row_of(dy, r), in = row_of(x, r), res = row_of(dres, r);
    Row weight = row_f32(w), sum = row_f32(part);
    VSum acc = {0};
    EACH_SIDE(c, n, K, x.cols, norm_dot(&acc, sum, grad, in, weight, rstd, c, n, K););
    float mean = vsum_total(&acc) / (float)x.cols;
    EACH(c, n, x.cols, {
        V base = res.p ? v_get(res, c, n) : v_all(0.0f);
        V d = v_get(grad, c, n) * v_get(weight, c, n) - v_get(in, c, n) * rstd * mean;
        v_put(out, c, n, base + rstd * d);
    });
}

static void add(Mat y, Mat a, Mat b, int64_t r) {
    Row out = row_of(y, r), p = row_of(a, r), q = row_of(b, r);
    EACH(c, n, y.cols, v_put(out, c, n, v_get(p, c, n) + v_get(q, c, n)););
}

static void cast(Mat y, int64_t r, Mat x, int64_t rx) {
    Row out = row_of(y, r), in = row_of(x, rx);
    EACH(c, n, y.cols, v_put(out, c, n, v_get(in, c, n)););
}

static void accumulate(float *to, Mat x, int64_t r, int64_t c0, int64_t cols) {
    Row sum = row_f32(to), in = row_of(x, r);
    in.p += c0 * (in.is_f32 ? 4 : 2);
    EACH(c, n, cols, v_put(sum, c, n, v_get(sum, c, n) + v_get(in, c, n)););
}

// ---- permute.h --------------------------------------------------------------------------------

// The same sums as permute_sum (permute_core.h), K vectors in registers at a time.
ROW_INLINE void sum_some(Row out, Mat x, const int32_t *idx, int64_t count, Row first, Row second,
                         int64_t c, int64_t n, const int K) {
    V s[V_SIDE];
    EACH_V(k) s[k] = v_all(0.0f);
    if (first.p) EACH_V(k) s[k] += v_get(first, AT(k), n);
    if (second.p) EACH_V(k) s[k] += v_get(second, AT(k), n);
    for (int64_t i = 0; i < count; i++) {
        Row in = row_of(x, idx[i]);
        EACH_V(k) s[k] += v_get(in, AT(k), n);
    }
    EACH_V(k) v_put(out, AT(k), n, s[k]);
}

static void sum(Mat y, Mat x, const int32_t *idx, int64_t count, Mat add1, Mat add2, int64_t m) {
    Row out = row_of(y, m), first = row_of(add1, m), second = row_of(add2, m);
    EACH_SIDE(c, n, K, y.cols, sum_some(out, x, idx, count, first, second, c, n, K););
}

// ---- swiglu.h: the vectors of swiglu_core.h ---------------------------------------------------

ROW_INLINE void swiglu_fwd_some(Row out, Row gr, Row ur, float gate, int64_t c, int64_t n,
                                const int K) {
    V x[V_SIDE], e[V_SIDE], s[V_SIDE];
    EACH_V(k) x[k] = v_get(gr, AT(k), n);
    EACH_V(k) e[k] = (V)((Vu)x[k] | 0x80000000u);
    v_exp_neg(e, K);
    EACH_V(k) s[k] = v_if_negative(x[k], e[k], v_all(1.0f)) / (1.0f + e[k]);
    EACH_V(k) x[k] = x[k] * s[k] * v_get(ur, AT(k), n) * gate;
    EACH_V(k) v_put(out, AT(k), n, x[k]);
}

static void swiglu_fwd(Mat h, Mat g, Mat u, float gate, int64_t r) {
    Row out = row_of(h, r), gr = row_of(g, r), ur = row_of(u, r);
    EACH_SIDE(c, n, K, h.cols, swiglu_fwd_some(out, gr, ur, gate, c, n, K););
}

// Adds dh * silu(g) * u to *acc. hr: where h goes, or NULL.
ROW_INLINE void swiglu_bwd_some(Row dgr, Row dur, Row hr, VSum *acc, Row dr, Row gr, Row ur,
                                float gate, int64_t c, int64_t n, const int K) {
    V x[V_SIDE], e[V_SIDE], near[V_SIDE], far[V_SIDE], h[V_SIDE];
    EACH_V(k) x[k] = v_get(gr, AT(k), n);
    EACH_V(k) e[k] = (V)((Vu)x[k] | 0x80000000u);
    v_exp_neg(e, K);
    EACH_V(k) near[k] = 1.0f / (1.0f + e[k]);
    EACH_V(k) far[k] = e[k] * near[k];
    if (hr.p) EACH_V(k) h[k] = v_if_negative(x[k], v_quotient(e[k], near[k], far[k]), near[k]);
    EACH_V(k) {
        V s = v_if_negative(x[k], far[k], near[k]), not_s = v_if_negative(x[k], near[k], far[k]);
        V y = v_get(ur, AT(k), n), in = v_get(dr, AT(k), n);
        V silu = x[k] * s, d = in * gate;
        if (hr.p) v_put(hr, AT(k), n, x[k] * h[k] * y * gate);
        vsum_add(acc, LANE(k), in * (silu * y));
        v_put(dgr, AT(k), n, d * y * (s + silu * not_s));
        v_put(dur, AT(k), n, d * silu);
    }
}

static float swiglu_bwd(Mat dg, Mat du, Mat h, Mat dh, Mat g, Mat u, float gate, int64_t r) {
    Row dgr = row_of(dg, r), dur = row_of(du, r), hr = row_of(h, r), none = {0};
    Row dr = row_of(dh, r), gr = row_of(g, r), ur = row_of(u, r);
    VSum acc = {0};
    if (hr.p)
        EACH_SIDE(c, n, K, dh.cols, swiglu_bwd_some(dgr, dur, hr, &acc, dr, gr, ur, gate, c, n, K););
    else
        EACH_SIDE(c, n, K, dh.cols, swiglu_bwd_some(dgr, dur, none, &acc, dr, gr, ur, gate, c, n, K););
    return vsum_total(&acc);
}

// ---- xent.h -----------------------------------------------------------------------------------

// The largest value; NaN is passed over. Several maxima hide each other's latency.
static float row_largest(const float *l, int64_t cols) {
    Row in = row_f32(l);
    V m[4];
    for (int k = 0; k < 4; k++) m[k] = v_all(-INFINITY);
    int64_t c = 0;
    for (; c + 4 * V_LANES <= cols; c += 4 * V_LANES)
        for (int k = 0; k < 4; k++) m[k] = v_larger(v_get(in, AT(k), V_LANES), m[k]);
    V all = v_larger(v_larger(m[0], m[1]), v_larger(m[2], m[3]));
    float best = -INFINITY;
    for (int k = 0; k < V_LANES; k++) best = all[k] > best ? all[k] : best;
    for (; c < cols; c++) best = l[c] > best ? l[c] : best;
    return best;
}

// exp(l - max) of K vectors, to *acc and to e unless that is NULL.
ROW_INLINE void xent_sum_some(VSum *acc, Row e, Row l, float max, int64_t c, int64_t n,
                              const int K) {
    V x[V_SIDE];
    EACH_V(k) x[k] = v_get(l, AT(k), n) - max;
    v_exp_neg(x, K);
    for (int64_t i = n; i < V_LANES; i++) x[0][i] = 0.0f; // no terms behind the end
    EACH_V(k) vsum_add(acc, LANE(k), x[k]);
    if (!e.p) return;
    EACH_V(k) v_put(e, AT(k), n, x[k]);
}

// FP32 in 16 lanes inside a chunk, chunks in double, so that a vocabulary of 1e5 values loses
// nothing.
static double xent_sum(float *e, const float *l, int64_t cols, float *max) {
    float m = row_largest(l, cols);
    double total = 0.0;
    for (int64_t c0 = 0; c0 < cols; c0 += ROW_CHUNK) {
        Row in = row_f32(l + c0), out = row_f32(e ? e + c0 : NULL);
        VSum acc = {0};
        EACH_SIDE(c, n, K, min_i64(cols - c0, ROW_CHUNK),
                  xent_sum_some(&acc, out, in, m, c, n, K););
        total += (double)vsum_total(&acc);
    }
    *max = m;
    return total;
}

static void xent_grad(Mat dlogits, const float *e, float inv, float scale, int64_t target,
                      int64_t r) {
    Row out = row_of(dlogits, r), in = row_f32(e);
    EACH(c, n, dlogits.cols, v_put(out, c, n, v_get(in, c, n) * inv););
    float at_target = e[target] * inv - scale;
    if (out.is_f32)
        ((float *)out.p)[target] = at_target;
    else
        ((uint16_t *)out.p)[target] = bf16_from_f32(at_target);
}

// ---- adam.h -----------------------------------------------------------------------------------

static void adam(Mat master, Mat m, Mat v, Mat grad, Mat copy, AdamStep s, int64_t r) {
    Row wr = row_of(master, r), mr = row_of(m, r), vr = row_of(v, r), gr = row_of(grad, r);
    Row cr = row_of(copy, r);
    float c1 = 1.0f - s.beta1, c2 = 1.0f - s.beta2;
    EACH(c, n, master.cols, {
        V g = v_get(gr, c, n) * s.grad_scale, w = v_get(wr, c, n);
        V m1 = s.beta1 * v_get(mr, c, n) + c1 * g;
        V v1 = s.beta2 * v_get(vr, c, n) + c2 * (g * g);
        V step = (m1 / s.bias1) / (v_sqrt(v1 / s.bias2) + s.eps);
        w -= s.lr * (step + s.weight_decay * w);
        v_put(mr, c, n, m1);
        v_put(vr, c, n, v1);
        v_put(wr, c, n, w);
        if (cr.p) v_put(cr, c, n, w);
    });
}

typedef float V8 __attribute__((vector_size(32)));
typedef double V8d __attribute__((vector_size(64)));
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t V8i __attribute__((vector_size(32)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (V8i){__VA_ARGS__})
#endif

// turn_8: the columns of eight rows: a[j] lane k = old a[k] lane j.
ROW_INLINE void turn_8(V8 *a) {
    V8 b[8], c[8];
    for (int k = 0; k < 8; k += 2) {
        b[k] = SHUFFLE(a[k], a[k + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        b[k + 1] = SHUFFLE(a[k], a[k + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int k = 0; k < 8; k += 4) {
        c[k] = SHUFFLE(b[k], b[k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        c[k + 1] = SHUFFLE(b[k], b[k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        c[k + 2] = SHUFFLE(b[k + 1], b[k + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        c[k + 3] = SHUFFLE(b[k + 1], b[k + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int k = 0; k < 4; k++) {
        a[k] = SHUFFLE(c[k], c[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        a[k + 4] = SHUFFLE(c[k], c[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

ROW_INLINE V8d v8_square(V8 x) {
#if defined(__AVX512F__)
    V8d v = (V8d)_mm512_cvtps_pd((__m256)x);
#else
    V8d v = __builtin_convertvector(x, V8d);
#endif
    return v * v;
}

// Blocks of 128 rows side by side, one to a lane: each sum stays strictly left to right. Block b
// starts at row 128 b; what is not there counts as zeros, which change no bit of a sum of squares.
#define SUMSQ_COLS 64
static void sumsq(double *out, Mat x, int64_t b0) {
    float buf[ROW_SUMSQ][SUMSQ_COLS];
    static const float none[SUMSQ_COLS];
    int64_t nblocks = min_i64(ceil_div(x.rows, ROW_BLOCK) - b0, ROW_SUMSQ);
    V8d s = {0};
    for (int64_t i = 0; i < ROW_BLOCK; i++) {
        for (int64_t c = 0; c < x.cols; c += SUMSQ_COLS) {
            int64_t n = min_i64(x.cols - c, SUMSQ_COLS);
            const float *row[ROW_SUMSQ];
            for (int64_t k = 0; k < ROW_SUMSQ; k++) {
                int64_t r = (b0 + k) * ROW_BLOCK + i;
                row[k] = r < x.rows ? row_get(x, r, c, n, buf[k]) : none;
                if (n % 8 == 0) continue;
                if (row[k] != buf[k]) memcpy(buf[k], row[k], (size_t)n * sizeof *buf[k]);
                memset(buf[k] + n, 0, (size_t)(8 - n % 8) * sizeof *buf[k]);
                row[k] = buf[k];
            }
            for (int64_t j = 0; j < n; j += 8) {
                V8 a[ROW_SUMSQ];
                for (int k = 0; k < ROW_SUMSQ; k++) memcpy(a + k, row[k] + j, sizeof *a);
                turn_8(a);
                for (int k = 0; k < 8; k++) s += v8_square(a[k]);
            }
        }
    }
    memcpy(out + b0, &s, (size_t)nblocks * sizeof *out);
}

const RowLanes ROW_LANES_TABLE = {
    .name = ROW_LANES_NAME,
    .norm_fwd = norm_fwd,
    .norm_bwd = norm_bwd,
    .add = add,
    .cast = cast,
    .accumulate = accumulate,
    .sum = sum,
    .swiglu_fwd = swiglu_fwd,
    .swiglu_bwd = swiglu_bwd,
    .xent_sum = xent_sum,
    .xent_grad = xent_grad,
    .adam = adam,
    .sumsq = sumsq,
};
