// attn_cuda_bwd.h - the attention's backward on the tensor cores (mma.sync, sm_80 and later). Private to
// kernels/attn_cuda*.
//
// Two kernels, each of which makes the probabilities again from the saved log-sums: one owns 64 keys and goes through
// the queries (dk, dv), one owns 64 queries and goes through the keys (dq). What they own is summed in registers from
// the first block to the last: no atomics, no order but one. Probabilities and their gradients are fragments of the
// next product as they fall out, so nothing of size S x S leaves the registers.
#pragma once
#include "attn_cuda_tile.h"

namespace attn {

constexpr int PASSING = 32; // rows of a block that goes by: queries, or keys

// p of one score: t is it times scale log2 e, lse2 the log-sum in base 2. A probability is at most 1, also where a unit
// in the last place of t is large; NaN stays.
DEV float prob(float t, float lse2) {
    float x = t - lse2;
    return exp2_fast(x > 0.0f ? 0.0f : x);
}

template <int DK, int DV> struct KeyGradient {
    // Shared memory: keys and values; two stages of queries, output gradients, log-sums, deltas, first positions.
    static constexpr int OWN = ROWS * (DK + DV), TILES = PASSING * (DK + DV), STAGE = TILES + 3 * PASSING * 2;
    static constexpr int BYTES = (OWN + 2 * STAGE) * 2;
    static_assert(TILES % 512 == 0 && STAGE % 8 == 0, "rows begin at multiples of 128 bytes, numbers at 4");

    DEV void load(uint16_t *stage, const AttnCall &c, int t0, int h, int i0) {
        const int t = (int)threadIdx.x, which = t / PASSING, i = i0 + t % PASSING;
        load_tile<DK, PASSING>(stage, query_rows(c, t0 + i0, h), (int)c.a.S - i0);
        load_tile<DV, PASSING>(stage + PASSING * DK, dout_rows(c, t0 + i0, h), (int)c.a.S - i0);
        const void *from = which == 0   ? (const void *)(c.lse + h * c.q.rows)
                           : which == 1 ? (const void *)(c.delta + h * c.q.rows)
                                        : (const void *)c.doc_start;
        if (which < 2 || (which == 2 && c.doc_start)) {
            const bool is_there = i < c.a.S;
            copy_async4((float *)(stage + TILES) + t, (const float *)from + (is_there ? t0 + i : 0), is_there);
        }
    }
    // s [16 keys, queries of the stage]: scores become probabilities. What is not seen is 0.
    DEV void probabilities(float (&s)[PASSING / 8][4], const AttnCall &c, const float *lse, const int *doc,
                                  int i0, int key, bool is_masked) {
        const float times = c.a.scale * LOG2E;
        UNROLL
        for (int n = 0; n < PASSING / 8; n++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                const int column = column_of(n, e), i = i0 + column, j = key + e / 2 * 8;
                s[n][e] = prob(s[n][e] * times, lse[column] * LOG2E);
                // A document that begins after its row begins at its row.
                const bool is_other = c.doc_start && j < doc[column] && j < i;
                if (is_masked && (j > i || i >= c.a.S || is_other)) s[n][e] = 0.0f;
            }
    }
};

// span: least and largest first position of every PASSING queries, [sequences][blocks], or NULL: all see all before.
// part [sequences of this launch, H, S, Dr] gets the heads' gradients of the shared key.
// Grid: (blocks of keys, heads, sequences from s0 on).
template <int DK, int DV>
static __global__ void __launch_bounds__(THREADS, 2)
    attn_dkv_mma(AttnCall c, const Span *span, float *part, int s0) {
    typedef KeyGradient<DK, DV> G;
    DYN_SMEM(uint16_t, room);
    const int warp = (int)threadIdx.x / 32, S = (int)c.a.S, blocks = (S + PASSING - 1) / PASSING;
    const int j0 = (int)blockIdx.x * ROWS, key = j0 + warp * 16 + row_of(0), last = (j0 + ROWS < S ? j0 + ROWS : S) - 1;
    const int h = (int)blockIdx.y, t0 = (s0 + (int)blockIdx.z) * S;
    const int spans = (s0 + (int)blockIdx.z) * blocks;
    uint16_t *const values = room + ROWS * DK, *const stages = room + G::OWN;
    float dk[DK / 8][4], dv[DV / 8][4];
    clear(dk);
    clear(dv);
    load_keys<DK, DV, ROWS>(room, c, t0, h, j0);
    int n = j0 / PASSING, turn = 0; // these queries see their own positions
    G::load(stages, c, t0, h, n * PASSING);
    copy_async_commit();
    while (n < blocks) {
        const uint16_t *stage = stages + turn * G::STAGE, *dout = stage + PASSING * DK;
        const float *lse = (const float *)(stage + G::TILES), *delta = lse + PASSING;
        int next = n + 1;
        while (span && next < blocks && span[spans + next].least > last) next++;
        copy_async_wait<0>();
        block_sync(); // all of this stage is there, and the other is free
        if (next < blocks) G::load(stages + (turn ^ 1) * G::STAGE, c, t0, h, next * PASSING);
        copy_async_commit();
        const int i0 = n * PASSING;
        const bool is_masked = i0 < j0 + warp * 16 + 15 || i0 + PASSING > S || (span && span[spans + n].most > j0);
        float s[PASSING / 8][4], dp[PASSING / 8][4];
        uint32_t p[PASSING / 16][4];
        clear(s);
        add_rows<DK>(s, room, warp * 16, stage);
        G::probabilities(s, c, lse, (const int *)(delta + PASSING), i0, key, is_masked);
        to_fragments(p, s);
        add_turned<DV>(dv, p, dout);
        clear(dp);
        add_rows<DV>(dp, values, warp * 16, dout);
        UNROLL
        for (int m = 0; m < PASSING / 8; m++)
            UNROLL
            for (int e = 0; e < 4; e++) s[m][e] *= dp[m][e] - delta[column_of(m, e)];
        to_fragments(p, s);
        add_turned<DK>(dk, p, stage);
        n = next;
        turn ^= 1;
    }
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int j = key + r * 8, Dn = (int)c.a.Dn;
        if (j >= S) continue;
        const int64_t column = h * (c.a.Dn + c.a.Dv);
        float *rope = part + ((blockIdx.z * c.a.H + h) * S + j) * c.a.Dr;
        UNROLL
        for (int m = 0; m < DK / 8; m++) {
            const int k = column_of(m, 0);
            const float x = dk[m][2 * r] * c.a.scale, y = dk[m][2 * r + 1] * c.a.scale;
            if (k < Dn)
                store_pair(c.dkv, t0 + j, column + k, x, y);
            else if (k < Dn + c.a.Dr)
                *(float2 *)(rope + k - Dn) = float2{x, y};
        }
        UNROLL
        for (int m = 0; m < DV / 8; m++)
            if (column_of(m, 0) < c.a.Dv)
                store_pair(c.dkv, t0 + j, column + Dn + column_of(m, 0), dv[m][2 * r], dv[m][2 * r + 1]);
    }
}

template <int DK, int DV> struct QueryGradient {
    static constexpr int OWN = ROWS * (DK + DV), STAGE = PASSING * (DK + DV); // queries, dout; keys, values
    static constexpr int BYTES = (OWN + 2 * STAGE) * 2;
};

// Grid: (blocks of queries, heads, sequences).
template <int DK, int DV> static __global__ void __launch_bounds__(THREADS, 2) attn_dq_mma(AttnCall c) {
    typedef QueryGradient<DK, DV> G;
    DYN_SMEM(uint16_t, room);
    const int warp = (int)threadIdx.x / 32, S = (int)c.a.S;
    const int i0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, row = i0 + warp * 16 + row_of(0);
    const int h = (int)blockIdx.y, t0 = (int)blockIdx.z * S;
    const Span span = span_of<ROWS>(c, t0, i0);
    const int n0 = span.least / PASSING, n1 = ((i0 + ROWS < S ? i0 + ROWS : S) - 1) / PASSING;
    uint16_t *const dout = room + ROWS * DK, *const stages = room + G::OWN;
    const float times = c.a.scale * LOG2E;
    int first[2] = {0, 0};
    float lse[2] = {0.0f, 0.0f}, delta[2] = {0.0f, 0.0f}, dq[DK / 8][4];
    clear(dq);
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int i = row + r * 8;
        if (i >= S) continue;
        first[r] = (int)first_key(c, t0 + i, i);
        lse[r] = c.lse[h * c.q.rows + t0 + i] * LOG2E;
        delta[r] = c.delta[h * c.q.rows + t0 + i];
    }
    load_tile<DK, ROWS>(room, query_rows(c, t0 + i0, h), S - i0);
    load_tile<DV, ROWS>(dout, dout_rows(c, t0 + i0, h), S - i0);
    load_keys<DK, DV, PASSING>(stages, c, t0, h, n0 * PASSING);
    copy_async_commit();
    for (int n = n0; n <= n1; n++) {
        const uint16_t *stage = stages + (n - n0) % 2 * G::STAGE;
        const int j0 = n * PASSING;
        copy_async_wait<0>();
        block_sync(); // all of this stage is there, and the other is free
        if (n < n1) load_keys<DK, DV, PASSING>(stages + (n + 1 - n0) % 2 * G::STAGE, c, t0, h, j0 + PASSING);
        copy_async_commit();
        const bool is_masked = j0 + PASSING - 1 > i0 + warp * 16 || span.most > j0;
        float s[PASSING / 8][4], dp[PASSING / 8][4];
        clear(s);
        add_rows<DK>(s, room, warp * 16, stage);
        clear(dp);
        add_rows<DV>(dp, dout, warp * 16, stage + PASSING * DK);
        UNROLL
        for (int m = 0; m < PASSING / 8; m++)
            UNROLL
            for (int e = 0; e < 4; e++) {
                const int j = j0 + column_of(m, e);
                s[m][e] = prob(s[m][e] * times, lse[e / 2]) * (dp[m][e] - delta[e / 2]);
                if (is_masked && (j > row + e / 2 * 8 || j < first[e / 2])) s[m][e] = 0.0f;
            }
        uint32_t ds[PASSING / 16][4];
        to_fragments(ds, s);
        add_turned<DK>(dq, ds, stage);
    }
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int64_t D = c.a.Dn + c.a.Dr;
        if (row + r * 8 >= S) continue;
        UNROLL
        for (int m = 0; m < DK / 8; m++)
            if (column_of(m, 0) < D)
                store_pair(c.dq, t0 + row + r * 8, h * D + column_of(m, 0), dq[m][2 * r] * c.a.scale,
                           dq[m][2 * r + 1] * c.a.scale);
    }
}

// Spans of every PASSING queries. Grid: (blocks of queries, sequences), one warp each.
static __global__ void attn_spans(AttnCall c, Span *span) {
    Span s = span_of<PASSING>(c, (int64_t)blockIdx.y * c.a.S, (int)blockIdx.x * PASSING);
    if (threadIdx.x == 0) span[blockIdx.y * gridDim.x + blockIdx.x] = s;
}

// Rows of dkr from sequence s0 on: the heads' parts in head order. One thread per element.
static __global__ void attn_sum_heads(AttnCall c, const float *part, int64_t s0, int64_t n) {
    const int64_t Dr = c.a.Dr, S = c.a.S, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n * S * Dr) return;
    const int64_t t = i / Dr;
    const float *first = part + (t / S * c.a.H * S + t % S) * Dr + i % Dr;
    float sum = first[0];
    for (int64_t h = 1; h < c.a.H; h++) sum += first[h * S * Dr];
    row_store(c.dkr, s0 * S + t, i % Dr, sum);
}

} // namespace attn
