// route_cuda.cu - the router on the GPU, one warp per token. Contract: route.h.
//
// Scores are computed by all lanes, sums over experts in the order of the CPU backend (warp_sum16), the selection by
// one lane with the code of route_core.h: the same bits as the CPU.
#include "rows_cuda.h"

#include "route_core.h"

static Err route_check(RouteShape s) {
    CHECK(s.E >= 1 && s.K >= 1 && s.K <= s.E && s.T >= 0, E_INTERNAL, "route: %lld of %lld experts", (long long)s.K,
          (long long)s.E);
    CHECK(s.ngroup >= 1 && s.E % s.ngroup == 0 && s.topk_group >= 1 && s.topk_group <= s.ngroup &&
              s.K <= s.topk_group * (s.E / s.ngroup),
          E_INTERNAL, "route: %lld of %lld groups of %lld experts cannot give %lld experts", (long long)s.topk_group,
          (long long)s.ngroup, (long long)s.E, (long long)s.K);
    CHECK(s.E <= 4096, E_INTERNAL, "route: %lld experts; the CUDA backend takes up to 4096", (long long)s.E);
    return OK;
}

// Shared memory of a token: biased scores [E], room of the selection [max(K, ngroup)], group scores [ngroup], kept
// groups [topk_group], mask [E] bytes.
static size_t route_room_bytes(RouteShape s) {
    return (size_t)(s.E + max_i64(s.K, s.ngroup) + s.ngroup + s.topk_group) * 4 + (size_t)s.E;
}

DEV void route_scores(float *score, const float *logits, RouteShape s, int lane) {
    if (s.is_sigmoid) {
        for (int64_t e = lane; e < s.E; e += 32) score[e] = sigmoid_f32(logits[e]);
        return;
    }
    float most = -INFINITY;
    for (int64_t e = lane; e < s.E; e += 32) most = logits[e] > most ? logits[e] : most;
    most = warp_max(most);
    float sum = warp_sum16(s.E, [=](int64_t e) { return exp_f32(logits[e] - most); });
    for (int64_t e = lane; e < s.E; e += 32) score[e] = exp_f32(logits[e] - most) / sum;
}

static __global__ void route_fwd_kernel(int32_t *idx, float *gate, float *score, int64_t *count, Mat logits,
                                        const float *bias, RouteShape s) {
    DYN_SMEM(float, biased);
    int64_t room = s.K > s.ngroup ? s.K : s.ngroup, t = blockIdx.x, per = s.E / s.ngroup;
    float *best = biased + s.E, *group = best + room;
    int32_t *kept = (int32_t *)(group + s.ngroup);
    uint8_t *mask = (uint8_t *)(kept + s.topk_group);
    int lane = (int)threadIdx.x;
    idx += t * s.K;
    gate += t * s.K;
    score += t * s.E;
    route_scores(score, (const float *)logits.p + t * logits.ld, s, lane);
    for (int64_t e = lane; e < s.E; e += 32) biased[e] = bias ? score[e] + bias[e] : score[e];
    for (int64_t e = lane; e < s.E; e += 32) mask[e] = 1;
    __syncwarp();
    if (lane != 0) return;
    if (s.topk_group < s.ngroup) {
        for (int64_t g = 0; g < s.ngroup; g++) group[g] = route_group_score(biased + g * per, per, bias != nullptr);
        route_top(kept, best, s.topk_group, group, nullptr, s.ngroup);
        for (int64_t e = 0; e < s.E; e++) mask[e] = 0;
        for (int64_t k = 0; k < s.topk_group; k++)
            for (int64_t e = 0; e < per; e++) mask[kept[k] * per + e] = 1;
    }
    route_top(idx, best, s.K, biased, mask, s.E);
    route_gates(gate, score, idx, s);
    for (int64_t k = 0; k < s.K; k++) count_add(&count[idx[k]], 1);
}

extern "C" Err route_fwd_cuda(OpCx *cx, int32_t *idx, float *gate, float *score, int64_t *count, Mat logits,
                              const float *bias, RouteShape s) {
    (void)cx;
    TRY(route_check(s));
    CUDA_MAT(logits, s.T, s.E);
    CHECK(logits.t == DT_F32, E_INTERNAL, "route: logits are %s, not f32", dtype_name(logits.t));
    if (s.T == 0) return OK;
    LAUNCH(route_fwd_kernel, dim3((unsigned)s.T), dim3(32), route_room_bytes(s), STREAM, idx, gate, score, count,
           logits, bias, s);
    CHECK_LAUNCH("route_fwd");
    return OK;
}

// What the balance loss needs of one token, by one warp: the sum of its scores, and its K experts without a bias.
static __global__ void __launch_bounds__(32)
    balance_token_kernel(float *sums, int32_t *tops, const float *score, RouteShape s) {
    DYN_SMEM(float, best);
    int64_t t = blockIdx.x;
    const float *row = score + t * s.E;
    float sum = s.is_sigmoid ? warp_sum16(s.E, [=](int64_t e) { return row[e]; }) : 1.0f;
    if (threadIdx.x != 0) return;
    sums[t] = sum;
    route_top(tops + t * s.K, best, s.K, row, nullptr, s.E);
}
// Partial sums of up to 128 tokens of one sequence, a thread per expert, tokens in order: prob [E] of score / sum of
// scores, and how many tokens have the expert among their unbiased top K.
static __global__ void __launch_bounds__(ROW_THREADS)
    balance_part_kernel(double *prob, int64_t *count, const float *score, const float *sums, const int32_t *tops,
                        RouteShape s, int64_t S) {
    int64_t per = (S + ROW_BLOCK - 1) / ROW_BLOCK, q = blockIdx.x / per, t0 = blockIdx.x % per * ROW_BLOCK;
    int64_t e = (int64_t)blockIdx.y * ROW_THREADS + threadIdx.x, end = S - t0 < ROW_BLOCK ? S : t0 + ROW_BLOCK;
    if (e >= s.E) return;
    double p = 0.0;
    int64_t n = 0;
    for (int64_t t = q * S + t0; t < q * S + end; t++) {
        p += (double)(score[t * s.E + e] / sums[t]);
        for (int64_t k = 0; k < s.K; k++) n += tops[t * s.K + k] == e;
    }
    prob[blockIdx.x * s.E + e] = p;
    count[blockIdx.x * s.E + e] = n;
}

// coef and the loss from the parts by one block, a thread per expert; the terms are added in the order of the CPU.
static __global__ void __launch_bounds__(ROW_THREADS)
    balance_loss_kernel(double *loss, float *coef, const double *prob, const int64_t *count, RouteShape s, int64_t nseq,
                        int64_t S) {
    SMEM(double, term, [ROW_THREADS]);
    int64_t per = (S + ROW_BLOCK - 1) / ROW_BLOCK;
    double total = 0.0;
    for (int64_t q = 0; q < nseq; q++)
        for (int64_t first = 0; first < s.E; first += ROW_THREADS) {
            int64_t e = first + threadIdx.x, here = s.E - first < ROW_THREADS ? s.E - first : ROW_THREADS;
            double p = 0.0;
            int64_t n = 0;
            for (int64_t b = 0; e < s.E && b < per; b++) {
                p += prob[(q * per + b) * s.E + e];
                n += count[(q * per + b) * s.E + e];
            }
            double f = (double)s.E * (double)n / ((double)s.K * (double)S);
            if (e < s.E) coef[q * s.E + e] = (float)f;
            term[threadIdx.x] = f * (p / (double)S);
            __syncthreads();
            for (int64_t i = 0; threadIdx.x == 0 && i < here; i++) total += term[i];
            __syncthreads();
        }
    if (threadIdx.x == 0) *loss += total;
}

extern "C" Err route_seqbal_cuda(OpCx *cx, double *loss, float *coef, const float *score, RouteShape s, int64_t nseq) {
    TRY(route_check(s));
    if (s.T == 0) return OK;
    CHECK(nseq > 0 && s.T % nseq == 0, E_INTERNAL, "route_seqbal: %lld tokens in %lld sequences", (long long)s.T,
          (long long)nseq);
    int64_t S = s.T / nseq, nparts = nseq * ceil_div(S, ROW_BLOCK);
    size_t mark = arena_mark(cx->scratch);
    double *prob = NULL;
    int64_t *count = NULL;
    float *sums = NULL;
    int32_t *tops = NULL;
    ARENA_NEW(cx->scratch, prob, nparts * s.E);
    ARENA_NEW(cx->scratch, count, nparts * s.E);
    ARENA_NEW(cx->scratch, sums, s.T);
    ARENA_NEW(cx->scratch, tops, s.T * s.K);
    LAUNCH(balance_token_kernel, dim3((unsigned)s.T), dim3(32), (size_t)s.K * 4, STREAM, sums, tops, score, s);
    LAUNCH(balance_part_kernel, dim3((unsigned)nparts, (unsigned)ceil_div(s.E, ROW_THREADS)), dim3(ROW_THREADS), 0,
           STREAM, prob, count, score, sums, tops, s, S);
    LAUNCH(balance_loss_kernel, dim3(1), dim3(ROW_THREADS), 0, STREAM, loss, coef, prob, count, s, nseq, S);
    CHECK_LAUNCH("route_seqbal");
    arena_release(cx->scratch, mark);
    return OK;
}

// One token; d [E] ends as the gradient of the logits. coef: f_e of its sequence or NULL.
static __global__ void route_bwd_kernel(Mat dlogits, const float *dgate, const float *score, const int32_t *idx,
                                        const float *coef, float weight, RouteShape s, int64_t S) {
    int64_t t = blockIdx.x;
    int lane = (int)threadIdx.x;
    float *d = (float *)dlogits.p + t * dlogits.ld;
    score += t * s.E;
    // P_e = score_e / R: dP_e/dscore_j = (delta_ej - P_e) / R. Softmax scores are P themselves.
    float R = 1.0f, mean = 0.0f;
    const float *f = coef ? coef + t / S * s.E : nullptr;
    if (f && s.is_sigmoid) {
        R = warp_sum16(s.E, [=](int64_t e) { return score[e]; });
        mean = warp_sum16(s.E, [=](int64_t e) { return score[e] * f[e]; }) / R;
    }
    for (int64_t e = lane; e < s.E; e += 32) d[e] = f ? weight * ((f[e] - mean) / R) : 0.0f;
    __syncwarp();
    if (lane == 0) route_score_grad(d, dgate + t * s.K, score, idx + t * s.K, s);
    __syncwarp();
    if (s.is_sigmoid) {
        for (int64_t e = lane; e < s.E; e += 32) d[e] = d[e] * (score[e] * (1.0f - score[e]));
        return;
    }
    float dot = warp_sum16(s.E, [=](int64_t e) { return d[e] * score[e]; });
    for (int64_t e = lane; e < s.E; e += 32) d[e] = score[e] * (d[e] - dot);
}

extern "C" Err route_bwd_cuda(OpCx *cx, Mat dlogits, const float *dgate, const float *gate, const float *score,
                              const int32_t *idx, const float *coef, RouteShape s, int64_t nseq) {
    (void)cx;
    (void)gate; // the gradient needs only the scores; backends may use either
    TRY(route_check(s));
    CUDA_MAT(dlogits, s.T, s.E);
    CHECK(dlogits.t == DT_F32, E_INTERNAL, "route: dlogits are %s, not f32", dtype_name(dlogits.t));
    if (s.T == 0) return OK;
    CHECK(!coef || (nseq > 0 && s.T % nseq == 0), E_INTERNAL, "route_bwd: %lld tokens in %lld sequences",
          (long long)s.T, (long long)nseq);
    int64_t S = coef ? s.T / nseq : s.T;
    float weight = coef ? s.seqbal_scale / (float)S : 0.0f;
    LAUNCH(route_bwd_kernel, dim3((unsigned)s.T), dim3(32), 0, STREAM, dlogits, dgate, score, idx, coef, weight, s, S);
    CHECK_LAUNCH("route_bwd");
    return OK;
}
