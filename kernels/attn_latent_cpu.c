// attn_latent_cpu.c - attention on cached latents. Contract: attn_latent.h.
//
// A task is a head and a few of its queries: the head's projections and the cache are made FP32 once for all of them.
// The softmax is online, over tiles of positions.
#include "attn_latent.h"

#include <omp.h>

#include "exp_core.h"
#include "rows.h"

#define QUERIES 8 // of a task
#define KEYS 64   // positions of a tile

typedef struct Call {
    LatentShape a;
    Mat o, q, cache, w;
    int64_t wld, kld; // floats of a row of the projections, of the cache: multiples of 16, filled up with zeros
} Call;

// What one thread works in.
typedef struct Room {
    float *w;    // [max(Dn,Dv), wld] one of the head's projections
    float *keys; // [KEYS, kld]
    float *q;    // [QUERIES, kld] q' | q_rope
    float *sum;  // [QUERIES, wld] sum of p c, not yet divided
    float *f;    // [max(KEYS,Dn,Dv)] factors: a query, scores, an output
    float top[QUERIES], total[QUERIES]; // largest score, sum of the terms
} Room;

static int64_t lanes_of(int64_t n) {
    return ceil_div(n, ROW_LANES) * ROW_LANES;
}

static int64_t room_floats(const Call *c) {
    int64_t head = max_i64(c->a.Dn, c->a.Dv);
    return head * c->wld + KEYS * c->kld + QUERIES * (c->kld + c->wld) + lanes_of(max_i64(KEYS, head));
}

static Room room_at(const Call *c, float *p) {
    Room r = {.w = p};
    r.keys = r.w + max_i64(c->a.Dn, c->a.Dv) * c->wld;
    r.q = r.keys + KEYS * c->kld;
    r.sum = r.q + QUERIES * c->kld;
    r.f = r.sum + QUERIES * c->wld;
    return r;
}

// dots: out[j] = x . row j of y; n values, a multiple of 16.
ROW_CLONES static void dots(float *out, const float *x, const float *y, int64_t ld, int64_t rows, int64_t n) {
    int64_t j = 0;
    for (; j + 4 <= rows; j += 4) { // four sums side by side, each in the order of v16_dot
        V16 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, a, b;
        const float *r = y + j * ld;
        for (int64_t i = 0; i < n; i += ROW_LANES) {
            v16_load(&a, x + i);
            v16_load(&b, r + i);
            s0 += a * b;
            v16_load(&b, r + ld + i);
            s1 += a * b;
            v16_load(&b, r + 2 * ld + i);
            s2 += a * b;
            v16_load(&b, r + 3 * ld + i);
            s3 += a * b;
        }
        out[j] = v16_sum(&s0);
        out[j + 1] = v16_sum(&s1);
        out[j + 2] = v16_sum(&s2);
        out[j + 3] = v16_sum(&s3);
    }
    for (; j < rows; j++) {
        V16 s = {0};
        v16_dot(&s, x, y + j * ld, n);
        out[j] = v16_sum(&s);
    }
}

// mix: sum = sum * keep + sum over j of f[j] * row j of y; n values, a multiple of 16.
ROW_CLONES static void mix(float *sum, float keep, const float *f, const float *y, int64_t ld, int64_t rows,
                           int64_t n) {
    int64_t i = 0;
    for (; i + 2 * ROW_LANES <= n; i += 2 * ROW_LANES) {
        V16 s0, s1, a;
        v16_load(&s0, sum + i);
        v16_load(&s1, sum + i + ROW_LANES);
        s0 *= keep;
        s1 *= keep;
        for (int64_t j = 0; j < rows; j++) {
            v16_load(&a, y + j * ld + i);
            s0 += f[j] * a;
            v16_load(&a, y + j * ld + i + ROW_LANES);
            s1 += f[j] * a;
        }
        v16_store(sum + i, &s0);
        v16_store(sum + i + ROW_LANES, &s1);
    }
    for (; i < n; i += ROW_LANES) {
        V16 s, a;
        v16_load(&s, sum + i);
        s *= keep;
        for (int64_t j = 0; j < rows; j++) {
            v16_load(&a, y + j * ld + i);
            s += f[j] * a;
        }
        v16_store(sum + i, &s);
    }
}

// terms: f[j] = exp(f[j] - top); returns their sum.
ROW_CLONES static float terms(float *f, int64_t n, float top) {
    V16 s = {0};
    for (int64_t j = 0; j < n; j++) f[j] = exp_f32(f[j] - top);
    v16_add(&s, f, n);
    return v16_sum(&s);
}

// load: rows [r0, r0+n) of m as floats, filled up with zeros to ld.
ROW_CLONES static void load(float *to, int64_t ld, Mat m, int64_t r0, int64_t n) {
    for (int64_t r = 0; r < n; r++) {
        row_copy(to + r * ld, m, r0 + r, 0, m.cols);
        memset(to + r * ld + m.cols, 0, (size_t)(ld - m.cols) * sizeof *to);
    }
}

// begin: query t of the matrix as the i-th of the task: q' and the rotated part, nothing seen yet. W_UK is in r->w.
static void begin(const Call *c, Room *r, int64_t h, int64_t i, int64_t t) {
    const LatentShape *a = &c->a;
    float *q = r->q + i * c->kld;
    memset(q, 0, (size_t)c->kld * sizeof *q);
    row_copy(r->f, c->q, t, h * (a->Dn + a->Dr), a->Dn);
    mix(q, 0.0f, r->f, r->w, c->wld, a->Dn, c->wld);
    row_copy(q + a->R, c->q, t, h * (a->Dn + a->Dr) + a->Dn, a->Dr);
    memset(r->sum + i * c->wld, 0, (size_t)c->wld * sizeof *r->sum);
    r->top[i] = -INFINITY;
    r->total[i] = 0.0f;
}

// look: query i of the task sees the first n positions of the tile.
static void look(const Call *c, Room *r, int64_t i, int64_t n) {
    dots(r->f, r->q + i * c->kld, r->keys, c->kld, n, c->kld);
    for (int64_t j = 0; j < n; j++) r->f[j] *= c->a.scale;
    float top = row_max(r->f, n, r->top[i]), keep = exp_f32(r->top[i] - top);
    r->total[i] = r->total[i] * keep + terms(r->f, n, top);
    r->top[i] = top;
    mix(r->sum + i * c->wld, keep, r->f, r->keys, c->kld, n, c->wld);
}

// end: the i-th output. W_UV is in r->w.
static void end(const Call *c, Room *r, int64_t h, int64_t i, int64_t t) {
    dots(r->f, r->sum + i * c->wld, r->w, c->wld, c->a.Dv, c->wld);
    for (int64_t v = 0; v < c->a.Dv; v++) r->f[v] /= r->total[i];
    row_put(c->o, t, h * c->a.Dv, c->a.Dv, r->f);
}

static void task(const Call *c, Room *r, int64_t h, int64_t t0) {
    const LatentShape *a = &c->a;
    int64_t n = min_i64(QUERIES, c->q.rows - t0), first = h * (a->Dn + a->Dv), last = a->at + t0 + n;
    load(r->w, c->wld, c->w, first, a->Dn);
    for (int64_t i = 0; i < n; i++) begin(c, r, h, i, t0 + i);
    for (int64_t j0 = 0; j0 < last; j0 += KEYS) {
        int64_t keys = min_i64(KEYS, last - j0);
        load(r->keys, c->kld, c->cache, j0, keys);
        for (int64_t i = 0; i < n; i++) {
            int64_t sees = min_i64(keys, a->at + t0 + i + 1 - j0);
            if (sees > 0) look(c, r, i, sees);
        }
    }
    load(r->w, c->wld, c->w, first + a->Dn, a->Dv);
    for (int64_t i = 0; i < n; i++) end(c, r, h, i, t0 + i);
}

Err attn_latent_fwd_cpu(OpCx *cx, Mat o, Mat q, Mat cache, Mat w, LatentShape a) {
    int64_t T = q.rows;
    ROW_MAT(q, T, a.H * (a.Dn + a.Dr));
    ROW_MAT(o, T, a.H * a.Dv);
    ROW_MAT(cache, cache.rows, a.R + a.Dr);
    ROW_MAT(w, a.H * (a.Dn + a.Dv), a.R);
    CHECK(a.at >= 0 && cache.rows >= a.at + T, E_INTERNAL, "attn_latent: %lld queries from position %lld on, %lld rows",
          (long long)T, (long long)a.at, (long long)cache.rows);
    Call c = {a, o, q, cache, w, lanes_of(a.R), lanes_of(a.R + a.Dr)};
    int64_t parts = ceil_div(T, QUERIES), tasks = parts * a.H, floats = room_floats(&c);
    int nthreads = (int)max_i64(1, min_i64(row_threads(cx, a.H * T * (a.at + T + a.Dn + a.Dv) * a.R), tasks));
    size_t mark = arena_mark(cx->scratch);
    float *rooms = NULL;
    TRY(arena_push(cx->scratch, (void **)&rooms, (size_t)(nthreads * floats) * sizeof(float), "attention on latents"));
#pragma omp parallel for schedule(dynamic, 1) num_threads(nthreads)
    for (int64_t i = 0; i < tasks; i++) {
        Room r = room_at(&c, rooms + omp_get_thread_num() * floats);
        task(&c, &r, i % a.H, (parts - 1 - i / a.H) * QUERIES); // the last rows see most: first
    }
    arena_release(cx->scratch, mark);
    return OK;
}
