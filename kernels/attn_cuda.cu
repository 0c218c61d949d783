// attn_cuda.cu - causal attention of MLA on the GPU. Contract: attn.h. What the tensor cores take goes to
// attn_cuda_mma.cu; here are the plain kernels for all else, in FP32 on the CUDA cores: the on-device reference.
//
// Forward: one block per (row, head) goes through the keys in panels of 128 with a running maximum. Backward: the
// same for dq from the saved log-sums; dk and dv by one block per position, which takes all heads in order, so that
// the gradient of the shared key is a sum in head order. No scores are kept; scratch: one float per (row, head).
#include "attn_cuda.h"

#define KEYS 128 // of a panel, and threads of a block

// Element i of the key of row t and head h.
DEV float key_at(const AttnCall &c, int64_t t, int64_t h, int64_t i) {
    return i < c.a.Dn ? row_value(c.kv, t, h * (c.a.Dn + c.a.Dv) + i) : row_value(c.kr, t, i - c.a.Dn);
}
DEV float value_at(const AttnCall &c, int64_t t, int64_t h, int64_t i) {
    return row_value(c.kv, t, h * (c.a.Dn + c.a.Dv) + c.a.Dn + i);
}
// q [D] (in shared memory) times the key of row t.
DEV float key_dot(const AttnCall &c, const float *q, int64_t t, int64_t h) {
    float s = 0.0f;
    for (int64_t i = 0; i < c.a.Dn + c.a.Dr; i++) s = fmaf(q[i], key_at(c, t, h, i), s);
    return s;
}
DEV float value_dot(const AttnCall &c, const float *d, int64_t t, int64_t h) {
    float s = 0.0f;
    for (int64_t i = 0; i < c.a.Dv; i++) s = fmaf(d[i], value_at(c, t, h, i), s);
    return s;
}

static __global__ void attn_fwd_kernel(AttnCall c) {
    DYN_SMEM(float, q); // [D], then the output [Dv]
    SMEM(float, p, [KEYS]);
    SMEM(float, room, [KEYS / 32]);
    int64_t t = blockIdx.x, h = blockIdx.y, D = c.a.Dn + c.a.Dr, t0 = t / c.a.S * c.a.S;
    float *out = q + D, most = -INFINITY, sum = 0.0f;
    int tid = (int)threadIdx.x;
    for (int64_t i = tid; i < D; i += KEYS) q[i] = row_value(c.q, t, h * D + i);
    for (int64_t i = tid; i < c.a.Dv; i += KEYS) out[i] = 0.0f;
    __syncthreads();
    for (int64_t j0 = t0 + first_key(c, t, t - t0); j0 <= t; j0 += KEYS) {
        int64_t j = j0 + tid, n = t + 1 - j0 < KEYS ? t + 1 - j0 : KEYS;
        float score = j <= t ? key_dot(c, q, j, h) * c.a.scale : -INFINITY;
        float now = block_max(score, room);
        now = now > most ? now : most;
        float shrink = exp_f32(most - now), mine = j <= t ? exp_f32(score - now) : 0.0f;
        p[tid] = mine;
        sum = sum * shrink + block_sum(mine, room);
        for (int64_t i = tid; i < c.a.Dv; i += KEYS) {
            float v = out[i] * shrink;
            for (int64_t k = 0; k < n; k++) v = fmaf(p[k], value_at(c, j0 + k, h, i), v);
            out[i] = v;
        }
        most = now; // the barriers of the next block_max keep p until all have used it
    }
    for (int64_t i = tid; i < c.a.Dv; i += KEYS) row_store(c.o, t, h * c.a.Dv + i, out[i] / sum);
    if (tid == 0) c.lse[h * c.q.rows + t] = most + (float)log((double)sum);
}

// delta = dout . o of each row and head, one warp each.
static __global__ void attn_delta_kernel(AttnCall c) {
    int64_t t = blockIdx.x, h = blockIdx.y;
    float s = 0.0f;
    for (int64_t i = threadIdx.x; i < c.a.Dv; i += 32)
        s = fmaf(row_value(c.dout, t, h * c.a.Dv + i), row_value(c.o, t, h * c.a.Dv + i), s);
    s = warp_sum(s);
    if (threadIdx.x == 0) c.delta[h * c.q.rows + t] = s;
}

static __global__ void attn_dq_kernel(AttnCall c) {
    DYN_SMEM(float, q); // [D], then its gradient [D], then dout [Dv]
    SMEM(float, ds, [KEYS]);
    int64_t t = blockIdx.x, h = blockIdx.y, D = c.a.Dn + c.a.Dr, t0 = t / c.a.S * c.a.S;
    float *dq = q + D, *dout = dq + D, lse = c.lse[h * c.q.rows + t], delta = c.delta[h * c.q.rows + t];
    int tid = (int)threadIdx.x;
    for (int64_t i = tid; i < D; i += KEYS) {
        q[i] = row_value(c.q, t, h * D + i);
        dq[i] = 0.0f;
    }
    for (int64_t i = tid; i < c.a.Dv; i += KEYS) dout[i] = row_value(c.dout, t, h * c.a.Dv + i);
    __syncthreads();
    for (int64_t j0 = t0 + first_key(c, t, t - t0); j0 <= t; j0 += KEYS) {
        int64_t j = j0 + tid, n = t + 1 - j0 < KEYS ? t + 1 - j0 : KEYS;
        if (j <= t) {
            float p = attn_prob(key_dot(c, q, j, h), c.a.scale, lse);
            ds[tid] = attn_dscore(p, value_dot(c, dout, j, h), delta, c.a.scale);
        }
        __syncthreads();
        for (int64_t i = tid; i < D; i += KEYS) {
            float v = dq[i];
            for (int64_t k = 0; k < n; k++) v = fmaf(ds[k], key_at(c, j0 + k, h, i), v);
            dq[i] = v;
        }
        __syncthreads();
    }
    for (int64_t i = tid; i < D; i += KEYS) row_store(c.dq, t, h * D + i, dq[i]);
}

// One block per position j: its key's and value's gradients for every head, from the queries that look at it.
static __global__ void attn_dkv_kernel(AttnCall c) {
    DYN_SMEM(float, key); // [D], its gradient [D], value [Dv], its gradient [Dv], sum over heads [Dr]
    SMEM(float, p, [KEYS]);
    SMEM(float, ds, [KEYS]);
    int64_t j = blockIdx.x, D = c.a.Dn + c.a.Dr, Dv = c.a.Dv, T = c.q.rows, t0 = j / c.a.S * c.a.S, end = t0 + c.a.S;
    float *dk = key + D, *value = dk + D, *dv = value + Dv, *shared_key = dv + Dv;
    int tid = (int)threadIdx.x;
    for (int64_t i = tid; i < c.a.Dr; i += KEYS) shared_key[i] = 0.0f;
    for (int64_t h = 0; h < c.a.H; h++) {
        for (int64_t i = tid; i < D; i += KEYS) {
            key[i] = key_at(c, j, h, i);
            dk[i] = 0.0f;
        }
        for (int64_t i = tid; i < Dv; i += KEYS) {
            value[i] = value_at(c, j, h, i);
            dv[i] = 0.0f;
        }
        __syncthreads();
        for (int64_t i0 = j; i0 < end; i0 += KEYS) {
            int64_t t = i0 + tid, n = end - i0 < KEYS ? end - i0 : KEYS;
            p[tid] = ds[tid] = 0.0f;
            if (t < end && t0 + first_key(c, t, t - t0) <= j) {
                float score = 0.0f, dp = 0.0f;
                for (int64_t i = 0; i < D; i++) score = fmaf(row_value(c.q, t, h * D + i), key[i], score);
                for (int64_t i = 0; i < Dv; i++) dp = fmaf(row_value(c.dout, t, h * Dv + i), value[i], dp);
                p[tid] = attn_prob(score, c.a.scale, c.lse[h * T + t]);
                ds[tid] = attn_dscore(p[tid], dp, c.delta[h * T + t], c.a.scale);
            }
            __syncthreads();
            for (int64_t i = tid; i < D; i += KEYS)
                for (int64_t k = 0; k < n; k++) dk[i] = fmaf(ds[k], row_value(c.q, i0 + k, h * D + i), dk[i]);
            for (int64_t i = tid; i < Dv; i += KEYS)
                for (int64_t k = 0; k < n; k++) dv[i] = fmaf(p[k], row_value(c.dout, i0 + k, h * Dv + i), dv[i]);
            __syncthreads();
        }
        int64_t col = h * (c.a.Dn + Dv);
        for (int64_t i = tid; i < c.a.Dn; i += KEYS) row_store(c.dkv, j, col + i, dk[i]);
        for (int64_t i = tid; i < Dv; i += KEYS) row_store(c.dkv, j, col + c.a.Dn + i, dv[i]);
        for (int64_t i = tid; i < c.a.Dr; i += KEYS) shared_key[i] += dk[c.a.Dn + i];
        __syncthreads();
    }
    for (int64_t i = tid; i < c.a.Dr; i += KEYS) row_store(c.dkr, j, i, shared_key[i]);
}

static Err attn_check(Mat q, Mat kv, Mat kr, AttnShape a) {
    int64_t T = a.nseq * a.S;
    CUDA_MAT(q, T, a.H * (a.Dn + a.Dr));
    CUDA_MAT(kv, T, a.H * (a.Dn + a.Dv));
    CUDA_MAT(kr, T, a.Dr);
    CHECK(a.H <= 65535 && 2 * (a.Dn + a.Dr) + 2 * a.Dv + a.Dr <= 10240, E_INTERNAL,
          "attention: %lld heads of %lld + %lld and %lld are too large for the CUDA backend", (long long)a.H,
          (long long)a.Dn, (long long)a.Dr, (long long)a.Dv);
    return OK;
}

extern "C" Err attn_fwd_cuda(OpCx *cx, Mat o, float *lse, Mat q, Mat kv, Mat kr, AttnShape a,
                             const int32_t *doc_start) {
    (void)cx;
    TRY(attn_check(q, kv, kr, a));
    CUDA_MAT(o, q.rows, a.H * a.Dv);
    if (q.rows * a.H == 0) return OK;
    AttnCall c = {};
    c.q = q;
    c.kv = kv;
    c.kr = kr;
    c.o = o;
    c.a = a;
    c.doc_start = doc_start;
    c.lse = lse;
    if (attn_mma_takes(&c)) return attn_mma_fwd(c);
    LAUNCH(attn_fwd_kernel, dim3((unsigned)q.rows, (unsigned)a.H), dim3(KEYS), (size_t)(a.Dn + a.Dr + a.Dv) * 4,
           STREAM, c);
    CHECK_LAUNCH("attn_fwd");
    return OK;
}

extern "C" Err attn_bwd_cuda(OpCx *cx, Mat dq, Mat dkv, Mat dkr, Mat dout, Mat o, const float *lse, Mat q, Mat kv,
                             Mat kr, AttnShape a, const int32_t *doc_start) {
    TRY(attn_check(q, kv, kr, a));
    TRY(attn_check(dq, dkv, dkr, a));
    CUDA_MAT(o, q.rows, a.H * a.Dv);
    CUDA_MAT(dout, q.rows, a.H * a.Dv);
    if (q.rows * a.H == 0) return OK;
    AttnCall c = {q, kv, kr, o, dout, dq, dkv, dkr, a, doc_start, (float *)lse, NULL};
    size_t mark = arena_mark(cx->scratch);
    ARENA_NEW(cx->scratch, c.delta, a.H * q.rows);
    int64_t D = a.Dn + a.Dr;
    dim3 rows_heads((unsigned)q.rows, (unsigned)a.H);
    LAUNCH(attn_delta_kernel, rows_heads, dim3(32), 0, STREAM, c);
    if (attn_mma_takes(&c)) {
        TRY(attn_mma_bwd(cx, c));
        arena_release(cx->scratch, mark);
        return OK;
    }
    LAUNCH(attn_dq_kernel, rows_heads, dim3(KEYS), (size_t)(2 * D + a.Dv) * 4, STREAM, c);
    LAUNCH(attn_dkv_kernel, dim3((unsigned)q.rows), dim3(KEYS), (size_t)(2 * D + 2 * a.Dv + a.Dr) * 4, STREAM, c);
    CHECK_LAUNCH("attn_bwd");
    arena_release(cx->scratch, mark);
    return OK;
}
