// test_lanes.c - the loops over rows have, on every instruction set of this machine, the bits of
// the scalar functions of the operation's contract: special values, odd lengths, all pairs of
// types.
#include "reference.h"

#include "adam_core.h"
#include "norm_core.h"
#include "row_lanes.h"
#include "swiglu_core.h"
#include "xent_core.h"

enum { LANES = 16, CHUNK = 1024, MOST = 2500 };
static const int64_t lengths[] = {1, 2, 15, 16, 17, 63, 64, 65, 130, 1024, 1025, 1100, 2500};
#define NLENGTHS (int)(sizeof lengths / sizeof *lengths)

// A row of numbers of all sizes, every seventh of them special.
static Mat make_row(DType t, int64_t n, uint64_t seed, double scale) {
    static const uint32_t special[] = {0x00000000, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00000,
                                       0xFFC12345, 0x7F812345, 0x00000001, 0x80400000, 0x007FFFFF,
                                       0x7F7FFFFF, 0xC2CE0000, 0xC2D00000, 0x3F808000, 0x3F818000};
    Mat m = ref_mat(t, 1, n, 0);
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = philox(seed, 1, (uint64_t)i).v[0];
        float x = (float)(scale * rng_normal(seed, 2, (uint64_t)i));
        if (bits % 7 == 0) x = f32_from_bits(special[bits / 7 % 15]);
        if (t == DT_F32)
            ((float *)m.p)[i] = x;
        else
            ((uint16_t *)m.p)[i] = bf16_from_f32(x);
    }
    return m;
}
static Mat make_plain(DType t, int64_t n, uint64_t seed, double scale) {
    Mat m = ref_mat(t, 1, n, 0);
    for (int64_t i = 0; i < n; i++) ref_set(m, 0, i, scale * rng_normal(seed, 3, (uint64_t)i));
    return m;
}
static float value(Mat m, int64_t i) {
    return m.t == DT_F32 ? ((float *)m.p)[i] : f32_from_bf16(((uint16_t *)m.p)[i]);
}

// is_same: equal bits once `want` is rounded to the type; any NaN for a NaN of arithmetic.
static void is_same(Mat got, int64_t i, float want, const char *isa, const char *what) {
    float is = value(got, i), to = got.t == DT_F32 ? want : bf16_round(want);
    if (isnan(is) && isnan(to)) return;
    if (f32_bits(is) != f32_bits(to))
        fail_msg("%s, %s: element %lld of %lld is %.9g, not %.9g", isa, what, (long long)i,
                 (long long)got.cols, (double)is, (double)to);
}
static void is_same_f32(float is, float want, const char *isa, const char *what) {
    if (isnan(is) && isnan(want)) return;
    if (f32_bits(is) != f32_bits(want))
        fail_msg("%s, %s: %.9g, not %.9g", isa, what, (double)is, (double)want);
}

// Sixteen lanes by halves, as rows.h says.
static float lanes_sum(const float *x, int64_t n) {
    float s[LANES] = {0};
    for (int64_t i = 0; i < n; i++) s[i % LANES] += x[i];
    for (int w = LANES / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}

static void check_swiglu(const RowLanes *lanes, int64_t n, DType t, uint64_t seed) {
    Mat g = make_row(t, n, seed, 8.0), u = make_row(t, n, seed + 1, 2.0);
    Mat d = make_plain(t, n, seed + 2, 1.0), h = ref_mat(t, 1, n, 0);
    Mat dg = ref_mat(t, 1, n, 0), du = ref_mat(t, 1, n, 0), plain = make_plain(t, n, seed, 3.0);
    static float terms[MOST];
    lanes->swiglu_fwd(h, g, u, 0.37f, 0);
    Mat again = ref_mat(t, 1, n, 0);
    lanes->swiglu_bwd(dg, du, again, d, g, u, 0.37f, 0);
    for (int64_t i = 0; i < n; i++) {
        float a, b;
        swiglu_grad(&a, &b, value(d, i) * 0.37f, value(g, i), value(u, i));
        is_same(h, i, swiglu_value(value(g, i), value(u, i)) * 0.37f, lanes->name, "swiglu");
        is_same(again, i, swiglu_value(value(g, i), value(u, i)) * 0.37f, lanes->name, "swiglu of the backward");
        is_same(dg, i, a, lanes->name, "swiglu dg");
        is_same(du, i, b, lanes->name, "swiglu du");
        float silu = swiglu_grad(&a, &b, 1.0f, value(plain, i), value(d, i));
        terms[i] = value(d, i) * (silu * value(d, i));
    }
    // In place, and the gate's gradient.
    Mat up = ref_clone(d);
    float dgate = lanes->swiglu_bwd(plain, up, mat_none(), d, plain, up, 0.5f, 0);
    is_same_f32(dgate, lanes_sum(terms, n), lanes->name, "swiglu dgate");
    free(g.p), free(u.p), free(d.p), free(h.p), free(dg.p), free(du.p), free(plain.p), free(up.p), free(again.p);
}

static void check_xent(const RowLanes *lanes, int64_t n, DType t, uint64_t seed) {
    Mat l = make_plain(DT_F32, n, seed, 30.0), d = ref_mat(t, 1, n, 0);
    static float e[MOST], want[MOST];
    float max = 0.0f, most = -INFINITY;
    if (n > 40) ref_set(l, 0, 5, -INFINITY), ref_set(l, 0, 39, -1e30);
    if (n > 1100) ref_set(l, 0, 1099, NAN); // becomes NaN, and so does the sum
    double sum = 0.0, got = lanes->xent_sum(e, l.p, n, &max);
    for (int64_t i = 0; i < n; i++) most = value(l, i) > most ? value(l, i) : most;
    is_same_f32(max, most, lanes->name, "largest logit");
    for (int64_t i = 0; i < n; i++) {
        want[i] = exp_f32(value(l, i) - most);
        is_same_f32(e[i], want[i], lanes->name, "exp");
    }
    for (int64_t c = 0; c < n; c += CHUNK)
        sum += (double)lanes_sum(want + c, min_i64(n - c, CHUNK));
    assert_true(got == sum || (isnan(got) && isnan(sum)));
    lanes->xent_grad(d, e, 0.25f, 0.125f, n / 2, 0);
    for (int64_t i = 0; i < n; i++) {
        float g = xent_grad(value(l, i), most, 0.25f);
        is_same(d, i, i == n / 2 ? g - 0.125f : g, lanes->name, "dlogits");
    }
    max = 0.0f;
    assert_true(lanes->xent_sum(NULL, l.p, n, &max) == got || isnan(got));
    free(l.p), free(d.p);
}

static void check_norm(const RowLanes *lanes, int64_t n, DType t, uint64_t seed) {
    Mat x = make_plain(t, n, seed, 2.0), dy = make_plain(t, n, seed + 1, 1.0);
    Mat y = ref_mat(t, 1, n, 0), dx = ref_mat(t, 1, n, 0), res = make_plain(t, n, seed + 2, 1.0);
    Mat w = make_plain(DT_F32, n, seed + 3, 1.0), none = mat_none();
    static float sq[MOST], part[MOST], terms[MOST];
    float rstd = 0.0f;
    lanes->norm_fwd(y, &rstd, x, w.p, 1e-6f, 0);
    for (int64_t i = 0; i < n; i++) sq[i] = value(x, i) * value(x, i);
    float want = norm_rstd(lanes_sum(sq, n), (float)n, 1e-6f);
    is_same_f32(rstd, want, lanes->name, "rstd");
    for (int64_t i = 0; i < n; i++) {
        is_same(y, i, norm_value(value(x, i), want, value(w, i)), lanes->name, "norm");
        part[i] = (float)i;
        terms[i] = value(dy, i) * (value(x, i) * want) * value(w, i);
    }
    float mean = lanes_sum(terms, n) / (float)n;
    for (int k = 0; k < 2; k++) {
        lanes->norm_bwd(dx, part, dy, x, w.p, want, k ? none : res, 0);
        for (int64_t i = 0; i < n; i++) {
            float base = k ? 0.0f : value(res, i);
            is_same(dx, i, norm_grad(base, value(dy, i), value(x, i), value(w, i), want, mean),
                    lanes->name, "norm dx");
        }
    }
    for (int64_t i = 0; i < n; i++) {
        float one = value(dy, i) * (value(x, i) * want);
        is_same_f32(part[i], (float)i + one + one, lanes->name, "norm dw");
    }
    free(x.p), free(dy.p), free(y.p), free(dx.p), free(res.p), free(w.p);
}

static void check_moves(const RowLanes *lanes, int64_t n, DType t, DType to, uint64_t seed) {
    Mat a = make_row(t, n, seed, 1.0), b = make_row(to, n, seed + 1, 1.0), y = ref_mat(to, 1, n, 0);
    static float sum[MOST];
    lanes->add(y, a, b, 0);
    for (int64_t i = 0; i < n; i++) is_same(y, i, value(a, i) + value(b, i), lanes->name, "add");
    lanes->cast(y, 0, a, 0);
    for (int64_t i = 0; i < n; i++) { // bits, payloads of NaN included
        if (to == DT_BF16) {
            assert_int_equal(((uint16_t *)y.p)[i], bf16_from_f32(value(a, i)));
        } else {
            is_same(y, i, value(a, i), lanes->name, "cast");
        }
        sum[i] = (float)i;
    }
    lanes->accumulate(sum, a, 0, n / 3, n - n / 3);
    for (int64_t i = 0; i < n - n / 3; i++)
        is_same_f32(sum[i], (float)i + value(a, n / 3 + i), lanes->name, "accumulate");
    const int32_t idx[] = {0, 0, 0};
    lanes->sum(y, a, idx, 3, b, mat_none(), 0);
    for (int64_t i = 0; i < n; i++) {
        float x = value(a, i), s = 0.0f + value(b, i);
        is_same(y, i, s + x + x + x, lanes->name, "sum");
    }
    free(a.p), free(b.p), free(y.p);
}

static void check_adam(const RowLanes *lanes, int64_t n, DType t, uint64_t seed) {
    AdamStep s = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 0.7f};
    Mat w = make_row(DT_F32, n, seed, 1.0), m = make_row(t, n, seed + 1, 1.0);
    Mat v = make_row(t, n, seed + 2, 1e-3), g = make_row(DT_F32, n, seed + 3, 1.0);
    Mat copy = ref_mat(t, 1, n, 0), w0 = ref_clone(w), m0 = ref_clone(m), v0 = ref_clone(v);
    lanes->adam(w, m, v, g, copy, s, 0);
    for (int64_t i = 0; i < n; i++) {
        float m1 = value(m0, i), v1 = value(v0, i);
        float w1 = adam_weight(value(w0, i), &m1, &v1, value(g, i), s);
        is_same(w, i, w1, lanes->name, "w");
        is_same(copy, i, w1, lanes->name, "copy");
        is_same(m, i, m1, lanes->name, "m");
        is_same(v, i, v1, lanes->name, "v");
    }
    free(w.p), free(m.p), free(v.p), free(g.p), free(copy.p), free(w0.p), free(m0.p), free(v0.p);
}

// exp on its own over the whole range of x <= 0, through the terms of the loss.
static void check_exp(const RowLanes *lanes) {
    static float x[CHUNK], e[CHUNK];
    for (uint64_t u = 0x80000000u; u <= 0xFF800000u;) {
        x[0] = 0.0f; // the largest
        for (int k = 1; k < CHUNK; k++, u += 12007)
            x[k] = f32_from_bits(u <= 0xFF800000u ? (uint32_t)u : 0x80000000u);
        float max = 1.0f;
        lanes->xent_sum(e, x, CHUNK, &max);
        for (int k = 0; k < CHUNK; k++) is_same_f32(e[k], exp_f32(x[k]), lanes->name, "exp");
    }
}

static void test_bits(void **state) {
    (void)state;
    static const char *const names[] = {"avx512bf16", "avx512", "avx2", "portable"};
    uint64_t seed = 100;
    for (int k = 0; k < 4; k++) {
        if (!row_select(names[k])) {
            print_message("%s: not on this machine\n", names[k]);
            continue;
        }
        const RowLanes *lanes = row_lanes();
        assert_string_equal(lanes->name, names[k]);
        check_exp(lanes);
        for (int i = 0; i < NLENGTHS; i++) {
            for (int b = 0; b < 2; b++, seed += 10) {
                DType t = b ? DT_BF16 : DT_F32;
                check_swiglu(lanes, lengths[i], t, seed);
                check_xent(lanes, lengths[i], t, seed);
                check_norm(lanes, lengths[i], t, seed);
                check_adam(lanes, lengths[i], t, seed);
                check_moves(lanes, lengths[i], t, DT_BF16, seed);
                check_moves(lanes, lengths[i], t, DT_F32, seed);
            }
        }
    }
    assert_false(row_select("no such"));
    assert_true(row_select(NULL));
}

static void test_sumsq(void **state) {
    (void)state;
    static const char *const names[] = {"avx512bf16", "avx512", "avx2", "portable"};
    Mat x = ref_random(DT_F32, 8 * 128 + 300, 77, 3, 2.0);
    double want[16], out[16];
    for (int64_t b = 0; b < ceil_div(x.rows, 128); b++) {
        want[b] = 0.0;
        for (int64_t r = 128 * b; r < min_i64(x.rows, 128 * b + 128); r++)
            for (int64_t c = 0; c < x.cols; c++) want[b] += ref_at(x, r, c) * ref_at(x, r, c);
    }
    for (int k = 0; k < 4; k++) {
        if (!row_select(names[k])) continue;
        for (int64_t b = 0; b < ceil_div(x.rows, 128); b += ROW_SUMSQ)
            row_lanes()->sumsq(out, x, b);
        assert_memory_equal(out, want, (size_t)ceil_div(x.rows, 128) * sizeof *out);
    }
    assert_true(row_select(NULL));
    free(x.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_bits), cmocka_unit_test(test_sumsq)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
