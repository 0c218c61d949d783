// attn_cuda_fwd_sm90.h - the attention's forward on Hopper (sm_90a): TMA, wgmma. Private to kernels/attn_cuda*.
//
// A block owns 128 queries of a head: two warpgroups of 64 rows multiply, one lane of a third copies keys and values
// ahead of them, 128 positions at a time, two stages of each. Queries stay in shared memory, scores, probabilities and
// outputs in registers; a warpgroup's softmax runs under the products of the other. Keys are copied from where they
// are, kv and the shared kr. Values stand in shared memory as they do outside, rows of positions: wgmma turns them.
#pragma once
#include "attn_cuda_fwd.h"

namespace attn {

constexpr int HEAD_V = 128, KEYS_90 = 128, QUERIES_90 = 128;

// Tiles are panels [128 rows][64 columns], 128 bytes a row, swizzled over them.
constexpr int PANEL = 128 * 64;
template <int DK> struct Smem90 {
    uint16_t q[DK / 64][PANEL];
    uint16_t k[2][DK / 64][PANEL];
    uint16_t v[2][HEAD_V / 64][PANEL];
    uint64_t full_q, full_k[2], empty_k[2], full_v[2], empty_v[2];
};
struct Ring90 {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void step() {
        stage ^= 1;
        phase ^= stage == 0;
    }
};
// [N][4] registers as wgmma counts them.
template <int N> DEV float (&flat(float (&d)[N][4]))[4 * N] {
    return reinterpret_cast<float (&)[4 * N]>(d);
}

// The lane that copies. Columns of kv: keys of head h, then its values.
template <int DK>
DEV void copy_blocks(Smem90<DK> &m, const TMap &q, const TMap &kv, const TMap &kr, const AttnCall &c, int i0, int n0,
                     int n1) {
    const int h = (int)blockIdx.y, z = (int)blockIdx.z, Dn = (int)c.a.Dn, at_k = h * (Dn + HEAD_V);
    mbar_expect(&m.full_q, DK / 64 * PANEL * 2);
    for (int p = 0; p < DK / 64; p++) tma_load(m.q[p], &q, &m.full_q, h * DK + p * 64, i0, z);
    Ring90 ring;
    for (int n = n0; n <= n1; n++, ring.step()) {
        const int s = ring.stage, j0 = n * KEYS_90;
        mbar_wait(&m.empty_k[s], ring.phase ^ 1);
        mbar_expect(&m.full_k[s], DK / 64 * PANEL * 2);
        for (int p = 0; p < DK / 64; p++) {
            const bool is_own = p * 64 < Dn;
            tma_load(m.k[s][p], is_own ? &kv : &kr, &m.full_k[s], is_own ? at_k + p * 64 : p * 64 - Dn, j0, z);
        }
        mbar_wait(&m.empty_v[s], ring.phase ^ 1);
        mbar_expect(&m.full_v[s], HEAD_V / 64 * PANEL * 2);
        for (int p = 0; p < HEAD_V / 64; p++) tma_load(m.v[s][p], &kv, &m.full_v[s], at_k + Dn + p * 64, j0, z);
    }
}

// One warpgroup's 64 rows from i0 on against blocks n0..n1 of keys.
template <int DK> DEV void multiply_blocks(Smem90<DK> &m, const AttnCall &c, int i0, int n0, int n1, int most_first) {
    const int group = (int)threadIdx.x / 128, warp = (int)threadIdx.x % 128 / 32, lane = (int)threadIdx.x % 32;
    const int h = (int)blockIdx.y, t0 = (int)blockIdx.z * (int)c.a.S;
    float o[HEAD_V / 8][4];
    Running run = start_rows(c, t0, i0 + warp * 16 + row_of(0));
    clear(o);
    Ring90 ring;
    mbar_wait(&m.full_q, 0);
    for (int n = n0; n <= n1; n++, ring.step()) {
        const int st = ring.stage, j0 = n * KEYS_90;
        float s[KEYS_90 / 8][4]; // the first product overwrites it
        mbar_wait(&m.full_k[st], ring.phase);
        wgmma_fence(flat(s));
        UNROLL
        for (int p = 0; p < DK / 64; p++) {
            const uint64_t q = wgmma_desc(m.q[p] + group * 64 * 64), k = wgmma_desc(m.k[st][p]);
            UNROLL
            for (int i = 0; i < 4; i++) wgmma_bf16(flat(s), q + i * WGMMA_STEP, k + i * WGMMA_STEP, p + i > 0);
        }
        wgmma_commit();
        wgmma_wait(flat(s));
        if (lane == 0) mbar_arrive(&m.empty_k[st]);
        const bool is_masked = j0 + KEYS_90 - 1 > i0 + warp * 16 || most_first > j0;
        scale_scores(s, run, j0, c.a.scale * LOG2E, is_masked);
        softmax(s, o, run);
        uint32_t p[KEYS_90 / 16][4];
        to_fragments(p, s);
        mbar_wait(&m.full_v[st], ring.phase);
        const uint64_t v = wgmma_desc_turned(m.v[st][0], PANEL * 2);
        wgmma_fence(flat(o));
        UNROLL
        for (int i = 0; i < KEYS_90 / 16; i++) wgmma_bf16_left(flat(o), p[i], v + i * WGMMA_ROWS_16, true);
        wgmma_commit();
        wgmma_wait(flat(o));
        if (lane == 0) mbar_arrive(&m.empty_v[st]);
    }
    store_rows(c, o, run, t0, h);
}

// Grid: (blocks of 128 queries, heads, sequences).
template <int DK>
static __global__ void __launch_bounds__(384, 1)
    attn_fwd_sm90(const __grid_constant__ TMap q, const __grid_constant__ TMap kv, const __grid_constant__ TMap kr,
                  AttnCall c) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    DYN_SMEM(Smem90<DK>, room);
    Smem90<DK> &m = *room;
    const int S = (int)c.a.S, i0 = (int)(gridDim.x - 1 - blockIdx.x) * QUERIES_90;
    const Span span = span_of<QUERIES_90>(c, (int)blockIdx.z * S, i0);
    const int n0 = span.least / KEYS_90, n1 = ((i0 + QUERIES_90 < S ? i0 + QUERIES_90 : S) - 1) / KEYS_90;
    if (threadIdx.x == 0) {
        mbar_init(&m.full_q, 1);
        for (int s = 0; s < 2; s++) {
            mbar_init(&m.full_k[s], 1);
            mbar_init(&m.full_v[s], 1);
            mbar_init(&m.empty_k[s], 8); // one arrival of each warp that multiplies
            mbar_init(&m.empty_v[s], 8);
        }
        mbar_init_fence();
    }
    block_sync();
    if (threadIdx.x >= 256) {
        regs_drop<40>();
        if (threadIdx.x == 256) copy_blocks(m, q, kv, kr, c, i0, n0, n1);
    } else {
        regs_take<232>();
        multiply_blocks(m, c, i0 + (int)threadIdx.x / 128 * 64, n0, n1, span.most);
    }
#else
    __trap(); // not compiled for sm_90a
#endif
}

} // namespace attn
