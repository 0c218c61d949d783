// route_cpu.c - the router on the CPU. Contract: route.h.
#include "route.h"

#include "route_core.h"
#include "rows.h"

static Err route_check(RouteShape s) {
    CHECK(s.E >= 1 && s.K >= 1 && s.K <= s.E && s.T >= 0, E_INTERNAL, "route: %lld of %lld experts",
          (long long)s.K, (long long)s.E);
    CHECK(s.ngroup >= 1 && s.E % s.ngroup == 0 && s.topk_group >= 1 && s.topk_group <= s.ngroup &&
              s.K <= s.topk_group * (s.E / s.ngroup),
          E_INTERNAL, "route: %lld of %lld groups of %lld experts cannot give %lld experts",
          (long long)s.topk_group, (long long)s.ngroup, (long long)s.E, (long long)s.K);
    return OK;
}

// What one thread needs for a token.
typedef struct RouteRoom {
    float *biased;  // [E]
    float *best;    // [max(K, ngroup)]
    float *group;   // [ngroup]
    int32_t *kept;  // [topk_group]
    uint8_t *mask;  // [E]
    int64_t *count; // [E]
} RouteRoom;

static Err route_room(Arena *a, RouteRoom *room, RouteShape s) {
    ARENA_NEW(a, room->biased, s.E);
    ARENA_NEW(a, room->best, max_i64(s.K, s.ngroup));
    ARENA_NEW(a, room->group, s.ngroup);
    ARENA_NEW(a, room->kept, s.topk_group);
    ARENA_NEW(a, room->mask, s.E);
    ARENA_NEW(a, room->count, s.E);
    memset(room->count, 0, (size_t)s.E * sizeof *room->count);
    return OK;
}

ROW_CLONES static void route_scores(float *score, const float *logits, int64_t E, bool is_sigmoid) {
    if (is_sigmoid) {
        for (int64_t e = 0; e < E; e++) score[e] = sigmoid_f32(logits[e]);
        return;
    }
    float m = row_max(logits, E, -INFINITY);
    for (int64_t e = 0; e < E; e++) score[e] = exp_f32(logits[e] - m);
    V16 acc = {0};
    v16_add(&acc, score, E);
    float sum = v16_sum(&acc);
    for (int64_t e = 0; e < E; e++) score[e] = score[e] / sum;
}

static void route_token(int32_t *idx, float *gate, float *score, const float *logits,
                        const float *bias, RouteShape s, RouteRoom *room) {
    route_scores(score, logits, s.E, s.is_sigmoid);
    const float *biased = score;
    if (bias) {
        for (int64_t e = 0; e < s.E; e++) room->biased[e] = score[e] + bias[e];
        biased = room->biased;
    }
    const uint8_t *mask = NULL;
    if (s.topk_group < s.ngroup) {
        int64_t per = s.E / s.ngroup;
        for (int64_t g = 0; g < s.ngroup; g++)
            room->group[g] = route_group_score(biased + g * per, per, bias != NULL);
        route_top(room->kept, room->best, s.topk_group, room->group, NULL, s.ngroup);
        memset(room->mask, 0, (size_t)s.E);
        for (int64_t k = 0; k < s.topk_group; k++)
            memset(room->mask + room->kept[k] * per, 1, (size_t)per);
        mask = room->mask;
    }
    route_top(idx, room->best, s.K, biased, mask, s.E);
    route_gates(gate, score, idx, s);
    for (int64_t k = 0; k < s.K; k++) room->count[idx[k]]++;
}

#define ROUTE_BLOCK 32 // tokens of one task

Err route_fwd_cpu(OpCx *cx, int32_t *idx, float *gate, float *score, int64_t *count, Mat logits,
                  const float *bias, RouteShape s) {
    TRY(route_check(s));
    ROW_MAT(logits, s.T, s.E);
    CHECK(logits.t == DT_F32, E_INTERNAL, "route: logits are %s, not f32", dtype_name(logits.t));
    if (s.T == 0) return OK;
    size_t mark = arena_mark(cx->scratch);
    int nthreads = row_threads(cx, s.T * s.E * 8);
    int64_t tasks = ceil_div(s.T, ROUTE_BLOCK);
    nthreads = (int)min_i64(nthreads, tasks);
    RouteRoom *rooms = NULL;
    ARENA_NEW(cx->scratch, rooms, nthreads);
    for (int i = 0; i < nthreads; i++) TRY(route_room(cx->scratch, rooms + i, s));
        // Thread i takes tasks i, i + n, ...; the counts are integers, so their order is free.
#pragma omp parallel for schedule(static, 1) num_threads(nthreads)
    for (int i = 0; i < nthreads; i++) {
        for (int64_t b = i; b < tasks; b += nthreads) {
            int64_t end = min_i64(s.T, (b + 1) * ROUTE_BLOCK);
            for (int64_t t = b * ROUTE_BLOCK; t < end; t++)
                route_token(idx + t * s.K, gate + t * s.K, score + t * s.E, mat_at(logits, t, 0),
                            bias, s, rooms + i);
        }
    }
    for (int i = 0; i < nthreads; i++)
        for (int64_t e = 0; e < s.E; e++) count[e] += rooms[i].count[e];
    arena_release(cx->scratch, mark);
    return OK;
}

// Partial sums of one block of up to 128 tokens of one sequence.
typedef struct BalancePart {
    double *prob;   // [E] sum of score / sum of scores
    int64_t *count; // [E] tokens that have the expert among their unbiased top K
    float *best;    // [K]
    int32_t *top;   // [K]
} BalancePart;

ROW_CLONES static float balance_sum(const float *score, int64_t E) {
    V16 acc = {0};
    v16_add(&acc, score, E);
    return v16_sum(&acc);
}

static void balance_block(BalancePart p, const float *score, int64_t rows, RouteShape s) {
    memset(p.prob, 0, (size_t)s.E * sizeof *p.prob);
    memset(p.count, 0, (size_t)s.E * sizeof *p.count);
    for (int64_t t = 0; t < rows; t++, score += s.E) {
        float sum = s.is_sigmoid ? balance_sum(score, s.E) : 1.0f;
        for (int64_t e = 0; e < s.E; e++) p.prob[e] += (double)(score[e] / sum);
        route_top(p.top, p.best, s.K, score, NULL, s.E);
        for (int64_t k = 0; k < s.K; k++) p.count[p.top[k]]++;
    }
}

Err route_seqbal_cpu(OpCx *cx, double *loss, float *coef, const float *score, RouteShape s,
                     int64_t nseq) {
    TRY(route_check(s));
    if (s.T == 0) return OK;
    CHECK(nseq > 0 && s.T % nseq == 0, E_INTERNAL, "route_seqbal: %lld tokens in %lld sequences",
          (long long)s.T, (long long)nseq);
    int64_t S = s.T / nseq, per = ceil_div(S, ROW_BLOCK), nparts = nseq * per;
    size_t mark = arena_mark(cx->scratch);
    BalancePart *parts = NULL;
    ARENA_NEW(cx->scratch, parts, nparts);
    for (int64_t i = 0; i < nparts; i++) {
        ARENA_NEW(cx->scratch, parts[i].prob, s.E);
        ARENA_NEW(cx->scratch, parts[i].count, s.E);
        ARENA_NEW(cx->scratch, parts[i].best, s.K);
        ARENA_NEW(cx->scratch, parts[i].top, s.K);
    }
    int threads = row_threads(cx, s.T * s.E * 4);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < nparts; i++) {
        int64_t t = i % per * ROW_BLOCK;
        balance_block(parts[i], score + (i / per * S + t) * s.E, min_i64(S - t, ROW_BLOCK), s);
    }
    double total = 0.0;
    for (int64_t q = 0; q < nseq; q++) {
        for (int64_t e = 0; e < s.E; e++) {
            double prob = 0.0;
            int64_t count = 0;
            for (int64_t b = 0; b < per; b++) {
                prob += parts[q * per + b].prob[e];
                count += parts[q * per + b].count[e];
            }
            double f = (double)s.E * (double)count / ((double)s.K * (double)S);
            coef[q * s.E + e] = (float)f;
            total += f * (prob / (double)S);
        }
    }
    *loss += total;
    arena_release(cx->scratch, mark);
    return OK;
}

// One token; d [E] starts as zero and ends as the gradient of the logits. f: coef of its sequence
// or NULL.
ROW_CLONES static void route_bwd_token(float *d, const float *dgate, const float *score,
                                       const int32_t *idx, const float *f, float weight,
                                       RouteShape s) {
    for (int64_t e = 0; e < s.E; e++) d[e] = 0.0f;
    if (f) {
        // P_e = score_e / R: dP_e/dscore_j = (delta_ej - P_e) / R. Softmax scores are P themselves.
        float R = 1.0f, mean = 0.0f;
        if (s.is_sigmoid) {
            V16 sum = {0}, dot = {0};
            v16_add(&sum, score, s.E);
            v16_dot(&dot, score, f, s.E);
            R = v16_sum(&sum);
            mean = v16_sum(&dot) / R;
        }
        for (int64_t e = 0; e < s.E; e++) d[e] = weight * ((f[e] - mean) / R);
    }
    route_score_grad(d, dgate, score, idx, s);
    if (s.is_sigmoid) {
        for (int64_t e = 0; e < s.E; e++) d[e] = d[e] * (score[e] * (1.0f - score[e]));
    } else {
        V16 acc = {0};
        v16_dot(&acc, d, score, s.E);
        float dot = v16_sum(&acc);
        for (int64_t e = 0; e < s.E; e++) d[e] = score[e] * (d[e] - dot);
    }
}

Err route_bwd_cpu(OpCx *cx, Mat dlogits, const float *dgate, const float *gate, const float *score,
                  const int32_t *idx, const float *coef, RouteShape s, int64_t nseq) {
    (void)gate; // the gradient needs only the scores; backends may use either
    TRY(route_check(s));
    ROW_MAT(dlogits, s.T, s.E);
    CHECK(dlogits.t == DT_F32, E_INTERNAL, "route: dlogits are %s, not f32", dtype_name(dlogits.t));
    if (s.T == 0) return OK;
    CHECK(!coef || (nseq > 0 && s.T % nseq == 0), E_INTERNAL,
          "route_bwd: %lld tokens in %lld sequences", (long long)s.T, (long long)nseq);
    int64_t S = coef ? s.T / nseq : s.T;
    float weight = coef ? s.seqbal_scale / (float)S : 0.0f;
    int threads = row_threads(cx, s.T * s.E * 4);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t t = 0; t < s.T; t++)
        route_bwd_token(mat_at(dlogits, t, 0), dgate + t * s.K, score + t * s.E, idx + t * s.K,
                        coef ? coef + t / S * s.E : NULL, weight, s);
    return OK;
}
