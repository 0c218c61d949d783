// attn_cuda_fwd.h - the attention's forward on the tensor cores (mma.sync, sm_80 and later). Private to
// kernels/attn_cuda*.
//
// FlashAttention-2 (Dao 2023), algorithm 1: a block owns 64 queries of a head, a warp 16 of them, whose fragments stay
// in registers. Blocks of 64 keys with their values go by, two in shared memory, the next one under way while one is
// computed. Blocks that no row may see are left out; the last blocks of queries, which see most, start first.
#pragma once
#include "attn_cuda_tile.h"

namespace attn {

// What a warp knows of its rows, row_of(0) and row_of(2): their first positions, running maximum, and sum of this
// lane's columns, in base 2.
struct Running {
    int row, first[2];
    float most[2], sum[2];
};
DEV Running start_rows(const AttnCall &c, int64_t t0, int row) {
    Running run = {row, {0, 0}, {LOWEST, LOWEST}, {0.0f, 0.0f}};
    for (int r = 0; r < 2; r++)
        if (row + 8 * r < c.a.S) run.first[r] = (int)first_key(c, t0 + row + 8 * r, row + 8 * r);
    return run;
}
// Scores of keys from j0 on get the scale; what a row does not see becomes -infinity.
template <int N> DEV void scale_scores(float (&s)[N][4], const Running &run, int j0, float times, bool is_masked) {
    UNROLL
    for (int n = 0; n < N; n++)
        for (int e = 0; e < 4; e++) s[n][e] *= times;
    if (!is_masked) return;
    UNROLL
    for (int n = 0; n < N; n++)
        for (int e = 0; e < 4; e++) {
            const int j = j0 + column_of(n, e);
            if (j > run.row + e / 2 * 8 || j < run.first[e / 2]) s[n][e] = -INFINITY;
        }
}
// Scores become probabilities, up to the factor that the sum will be; o is what it would be with the new maximum.
template <int N, int V> DEV void softmax(float (&s)[N][4], float (&o)[V][4], Running &run) {
    UNROLL
    for (int r = 0; r < 2; r++) {
        float most = run.most[r];
        UNROLL
        for (int n = 0; n < N; n++) most = fmaxf(most, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
        most = over_lanes(most, 4, [](float x, float y) { return fmaxf(x, y); });
        float decay = exp2_fast(run.most[r] - most), sum = run.sum[r] * decay;
        run.most[r] = most;
        UNROLL
        for (int n = 0; n < N; n++)
            for (int e = 2 * r; e < 2 * r + 2; e++) {
                s[n][e] = exp2_fast(s[n][e] - most);
                sum += s[n][e];
            }
        run.sum[r] = sum;
        UNROLL
        for (int n = 0; n < V; n++)
            for (int e = 2 * r; e < 2 * r + 2; e++) o[n][e] *= decay;
    }
}
// The rows' outputs and log-sums.
template <int V> DEV void store_rows(const AttnCall &c, const float (&o)[V][4], const Running &run, int64_t t0, int h) {
    UNROLL
    for (int r = 0; r < 2; r++) {
        const int i = run.row + r * 8;
        const float sum = over_lanes(run.sum[r], 4, [](float x, float y) { return x + y; });
        if (i >= c.a.S) continue;
        UNROLL
        for (int n = 0; n < V; n++)
            if (column_of(n, 0) < c.a.Dv)
                store_pair(c.o, t0 + i, h * c.a.Dv + column_of(n, 0), o[n][2 * r] / sum, o[n][2 * r + 1] / sum);
        if (threadIdx.x % 4 == 0) c.lse[h * c.q.rows + t0 + i] = run.most[r] * LN2 + logf(sum);
    }
}

template <int DK, int DV> struct Forward {
    static constexpr int KEYS = 64;
    static constexpr int STAGE = KEYS * (DK + DV); // elements: keys, then values
    static constexpr int BYTES = 2 * STAGE * 2;
    static_assert(ROWS * DK <= STAGE, "the queries pass through a stage");
};

// Grid: (blocks of queries, heads, sequences).
template <int DK, int DV> static __global__ void __launch_bounds__(THREADS, 2) attn_fwd_mma(AttnCall c) {
    typedef Forward<DK, DV> F;
    DYN_SMEM(uint16_t, room);
    const int warp = (int)threadIdx.x / 32, S = (int)c.a.S;
    const int i0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS;
    const int h = (int)blockIdx.y, t0 = (int)blockIdx.z * S;
    const Span span = span_of<ROWS>(c, t0, i0);
    const int n0 = span.least / F::KEYS, n1 = ((i0 + ROWS < S ? i0 + ROWS : S) - 1) / F::KEYS;

    load_tile<DK, ROWS>(room + F::STAGE, query_rows(c, t0 + i0, h), S - i0);
    copy_async_commit();
    load_keys<DK, DV, F::KEYS>(room, c, t0, h, n0 * F::KEYS);
    copy_async_commit();
    copy_async_wait<1>();
    block_sync();
    uint32_t q[DK / 16][4];
    UNROLL
    for (int k = 0; k < DK / 16; k++) fragment_a<DK>(q[k], room + F::STAGE, warp * 16, k);

    float o[DV / 8][4];
    Running run = start_rows(c, t0, i0 + warp * 16 + row_of(0));
    clear(o);
    for (int n = n0; n <= n1; n++) {
        const uint16_t *stage = room + (n - n0) % 2 * F::STAGE;
        const int j0 = n * F::KEYS;
        copy_async_wait<0>();
        block_sync(); // all of this stage is there, and the other is free
        if (n < n1) load_keys<DK, DV, F::KEYS>(room + (n + 1 - n0) % 2 * F::STAGE, c, t0, h, j0 + F::KEYS);
        copy_async_commit();
        float s[F::KEYS / 8][4];
        clear(s);
        UNROLL
        for (int k = 0; k < DK / 16; k++)
            UNROLL
            for (int m = 0; m < F::KEYS / 8; m += 2) {
                uint32_t b[4];
                fragment_b<DK>(b, stage, m * 8, k);
                mma_bf16(s[m], q[k], b[0], b[1]);
                mma_bf16(s[m + 1], q[k], b[2], b[3]);
            }
        const bool is_masked = j0 + F::KEYS - 1 > i0 + warp * 16 || span.most > j0;
        scale_scores(s, run, j0, c.a.scale * LOG2E, is_masked);
        softmax(s, o, run);
        uint32_t p[F::KEYS / 16][4];
        to_fragments(p, s);
        add_turned<DV>(o, p, stage + F::KEYS * DK);
    }
    store_rows(c, o, run, t0, h);
}

} // namespace attn
