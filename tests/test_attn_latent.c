// test_attn_latent.c - attention on cached latents against keys and values made of them, in double; its bits do not
// depend on threads nor on how a text is cut into calls; beside the attention of training.
#include "reference.h"

#include "attn_latent.h"

typedef struct Input {
    Mat q, cache, w;
    LatentShape a;
} Input;

static Input make(DType t, int64_t P, int64_t H, int64_t Dn, int64_t Dr, int64_t Dv, int64_t R) {
    Input in = {.a = {0, H, Dn, Dr, Dv, R, 0.7f}};
    in.q = ref_random(t, P, H * (Dn + Dr), 3, 1.0);
    in.cache = ref_random(t, P, R + Dr, 5, 1.0);
    in.w = ref_random(t, H * (Dn + Dv), R, 0, 1.0 / sqrt((double)R));
    return in;
}

static void drop(Input *in) {
    free(in->q.p);
    free(in->cache.p);
    free(in->w.p);
}

static double dot_at(Mat x, int64_t r, int64_t c, Mat y, int64_t ry, int64_t cy, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += ref_at(x, r, c + i) * ref_at(y, ry, cy + i);
    return s;
}

// expect: o [H*Dv] of the query in row t at that position, with keys and values in full; *size: of the largest value.
static void expect(const Input *in, int64_t t, double *o, double *size) {
    const LatentShape *a = &in->a;
    double *p = ref_zeros(t + 1), *k = ref_zeros(a->Dn);
    *size = 0;
    for (int64_t h = 0; h < a->H; h++) {
        int64_t up = h * (a->Dn + a->Dv), qc = h * (a->Dn + a->Dr);
        double top = -INFINITY, total = 0;
        for (int64_t j = 0; j <= t; j++) {
            p[j] = dot_at(in->q, t, qc + a->Dn, in->cache, j, a->R, a->Dr);
            for (int64_t i = 0; i < a->Dn; i++) {
                k[i] = dot_at(in->w, up + i, 0, in->cache, j, 0, a->R);
                p[j] += ref_at(in->q, t, qc + i) * k[i];
            }
            p[j] *= (double)a->scale;
            top = fmax(top, p[j]);
        }
        for (int64_t j = 0; j <= t; j++) total += p[j] = exp(p[j] - top);
        for (int64_t v = 0; v < a->Dv; v++) {
            o[h * a->Dv + v] = 0;
            for (int64_t j = 0; j <= t; j++) {
                double value = dot_at(in->w, up + a->Dn + v, 0, in->cache, j, 0, a->R);
                o[h * a->Dv + v] += p[j] / total * value;
                *size = fmax(*size, fabs(value));
            }
        }
    }
    free(p);
    free(k);
}

// run: the queries in calls of `chunk`.
static Mat run(const Input *in, int64_t chunk, int nthreads) {
    OpCx cx = ref_cx(nthreads);
    Mat o = ref_mat(in->q.t, in->q.rows, in->a.H * in->a.Dv, 2);
    for (int64_t t = 0; t < in->q.rows; t += chunk) {
        int64_t n = min_i64(chunk, in->q.rows - t);
        LatentShape a = in->a;
        a.at = t;
        // What lies behind the last query is not looked at: it is not there.
        Mat seen = mat_rows(in->cache, 0, t + n);
        MUST_OK(attn_latent_fwd_cpu(&cx, mat_rows(o, t, n), mat_rows(in->q, t, n), seen, in->w, a));
    }
    ref_pads(o, "o");
    return o;
}

static void check(DType t, int64_t P, int64_t H, int64_t Dn, int64_t Dr, int64_t Dv, int64_t R) {
    Input in = make(t, P, H, Dn, Dr, Dv, R);
    Mat o = run(&in, P, 1);
    double *want = ref_zeros(H * Dv), size;
    for (int64_t i = 0; i < 24; i++) {
        int64_t at = i < 3 ? P - 1 - i % P : ref_pick(i, 24, P);
        if (at < 0 || at >= P) continue;
        expect(&in, at, want, &size);
        // Scores have errors of some roundings of sums of Dn*R + R + Dr terms of size 1, p relatively as much.
        double tol = size * (ref_unit(t) + 64 * U32 * sqrt((double)(R + Dn)));
        for (int64_t v = 0; v < H * Dv; v++) ref_near(ref_at(o, at, v), want[v], tol, "o", at, v);
    }
    for (int64_t chunk = 1; chunk <= P; chunk = chunk * 3 + 1) { // 1, 4, 13, 40, ...
        Mat again = run(&in, chunk, chunk % 2 ? 1 : 3);
        ref_same(o, again, "in parts");
        free(again.p);
    }
    free(want);
    free(o.p);
    drop(&in);
}

static void test_shapes(void **state) {
    (void)state;
    check(DT_F32, 150, 3, 12, 6, 10, 20);
    check(DT_F32, 65, 4, 32, 16, 32, 64);
    check(DT_F32, 9, 1, 1, 2, 1, 1);
    check(DT_F32, 1, 2, 40, 4, 70, 17);
    check(DT_BF16, 130, 4, 32, 16, 32, 64);
    check(DT_BF16, 70, 2, 128, 64, 128, 512);
}

// The attention that training uses, on keys and values in FP32.
static void test_beside_training(void **state) {
    (void)state;
    enum { P = 100, H = 4, Dn = 32, Dr = 16, Dv = 32, R = 64 };
    Input in = make(DT_F32, P, H, Dn, Dr, Dv, R);
    OpCx cx = ref_cx(2);
    Mat kv = ref_mat(DT_F32, P, H * (Dn + Dv), 0), want = ref_mat(DT_F32, P, H * Dv, 0), o = run(&in, 7, 2);
    float lse[H * P];
    MUST_OK(gemm_nt_cpu(&cx, kv, mat_cols(in.cache, 0, R), in.w, false));
    AttnShape shape = {1, P, H, Dn, Dr, Dv, in.a.scale};
    MUST_OK(attn_fwd_cpu(&cx, want, lse, in.q, kv, mat_cols(in.cache, R, Dr), shape, NULL));
    for (int64_t t = 0; t < P; t++)
        for (int64_t v = 0; v < H * Dv; v++) ref_near(ref_at(o, t, v), ref_at(want, t, v), 2e-5, "o", t, v);
    free(kv.p);
    free(want.p);
    free(o.p);
    drop(&in);
}

static void test_refuses(void **state) {
    (void)state;
    Input in = make(DT_F32, 8, 2, 4, 2, 4, 6);
    OpCx cx = ref_cx(1);
    Mat o = ref_mat(DT_F32, 8, 2 * 4, 0);
    LatentShape late = in.a;
    late.at = 1;
    MUST_FAIL(attn_latent_fwd_cpu(&cx, o, in.q, in.cache, in.w, late), E_INTERNAL, "8 queries from position 1");
    MUST_FAIL(attn_latent_fwd_cpu(&cx, o, in.q, in.cache, mat_rows(in.w, 0, 15), in.a), E_INTERNAL, "w is f32 [15, 6]");
    ref_set(in.cache, 3, 0, NAN); // is seen by later queries only, and not hidden by any
    MUST_OK(attn_latent_fwd_cpu(&cx, o, in.q, in.cache, in.w, in.a));
    for (int64_t t = 0; t < 8; t++)
        for (int64_t v = 0; v < 8; v++) assert_true(isnan(ref_at(o, t, v)) == (t >= 3));
    free(o.p);
    drop(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_beside_training),
        cmocka_unit_test(test_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
