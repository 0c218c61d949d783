// gemm_cuda_tile.h - the FP8 matrix product of Hopper: one persistent kernel per kind of scales and type of output.
//
// y [M,N] = sum over blocks of 128 of the contraction: (sa * sb) * (A B^T of the block), A and B K-major codes.
// A block of 384 threads computes tiles of 128 x BN: warpgroups 0 and 1 multiply, 64 rows each; of warpgroup 2, warp
// 8 copies codes (TMA), warp 9 and, for 1x128 x 1x128, warp 10 fetch scales from wherever MatQ keeps them, in FP32 or
// as bytes. They meet in a ring of STAGES stages:
//   full[s]   ends when the codes are there (expected bytes) and each fetching warp has arrived
//   empty[s]  ends when each of the 8 warps that multiply has arrived: nothing reads the stage any more
// The tensor cores keep 14 bits of a sum, so every block of 128 starts from zero and is added in FP32, times its
// scales, in registers ("promotion"; DeepSeek-V3 report 3.3.2). While one warpgroup promotes, the other multiplies.
// All roles walk the same list of tiles; it comes from counts in device memory, so the host never knows them.
#pragma once
#include "ptx.h"
#include "rows_cuda.h"

namespace sm90 {

enum { BM = 128, BK = 128, HALF = 64, THREADS = 384, WARPS = 8, PANEL = 8 };

// Where the scales of an operand lie: scale of (outer, k block) = s[outer * outer_step + block * k_step]; for the
// 128x128 grid of weights outer counts blocks, and matrices lie mat_step apart.
struct Scales {
    const void *s;
    int64_t outer_step, k_step, mat_step;
    bool is_byte; // E8M0
};
// What a launch computes. Groups divide the rows (kind ROWS) or the contraction (kind TOKENS).
struct Problem {
    int m, n, k; // ROWS: m = all rows; TOKENS: k = all tokens
    int groups;  // 0: one group of everything
    const int64_t *start, *count;
    Scales sa, sb;
    void *y; // for tiles that TMA cannot store: rows [.., ld]
    int64_t ld;
    bool is_acc, is_tma; // add to y; y can be stored by TMA at all
    DeviceFault *fault;  // where a group outside of the matrix is reported
};
// One tile of the output, and its part of the contraction.
struct Tile {
    int a_row, b_row, b_mat, y_row, y_mat; // first row of A, B, y; matrix of B, y
    int rows;                              // rows of y in the tile, more than BM: all
    int k0, k;                             // first element and length of the contraction
    int block;                             // scales of the first block
};

static __device__ __forceinline__ int lesser(int a, int b) {
    return a < b ? a : b;
}
static __device__ __forceinline__ int blocks_of(int n, int size) {
    return (n + size - 1) / size;
}

// The list of tiles. Each block of the grid takes every gridDim.x-th; a group's tiles are walked in panels of PANEL
// row blocks, column by column, so that neighbours in time share operands in L2.
template <bool TOKENS, int BN> struct Walk {
    int at, first, group, block;

    __device__ __forceinline__ Walk() : at((int)blockIdx.x), first(0), group(0), block(0) {
    }

    __device__ __forceinline__ bool next(const Problem &p, Tile &t) {
        const int nb = blocks_of(p.n, BN);
        for (; group < (p.groups ? p.groups : 1); group++) {
            int whole = TOKENS ? p.k : p.m;
            if (p.groups && group_is_bad(Groups{p.start, p.count, p.groups}, group, whole, p.fault)) break;
            int count = p.groups ? (int)p.count[group] : whole;
            int start = p.groups ? (int)p.start[group] : 0;
            int m = TOKENS ? p.m : count, mb = blocks_of(m, BM);
            if (at < first + mb * nb) {
                int i = at - first, panel = i / (PANEL * nb), rest = i % (PANEL * nb);
                int high = lesser(PANEL, mb - panel * PANEL);
                int m0 = (panel * PANEL + rest % high) * BM, n0 = rest / high * BN;
                t.a_row = TOKENS ? m0 : start + m0;
                t.b_row = n0;
                t.b_mat = TOKENS ? 0 : group;
                t.y_row = TOKENS ? m0 : start + m0;
                t.y_mat = TOKENS ? group : 0;
                t.rows = m - m0;
                t.k0 = TOKENS ? start : 0;
                t.k = TOKENS ? count : p.k;
                t.block = TOKENS ? block : 0;
                at += (int)gridDim.x;
                return true;
            }
            first += mb * nb;
            if (TOKENS) block += blocks_of(count, BK);
        }
        return false;
    }
};

template <int BN, int STAGES, class Out> struct Smem {
    uint8_t a[STAGES][BM * BK];
    uint8_t b[STAGES][BN * BK];
    uint8_t y[2][HALF * BN * sizeof(Out)]; // each warpgroup's part of the tile, in panels
    float sa[STAGES][BM];
    float sb[STAGES][BM]; // 128x128 scales: the first two
    uint64_t full[STAGES], empty[STAGES];
};
// A position in the ring, carried from tile to tile.
template <int STAGES> struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void step() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// scale_at: a scale at its address, in either form.
static __device__ __forceinline__ float scale_at(const char *at, bool is_byte) {
    if (is_byte) return __uint_as_float((uint32_t)__ldg((const uint8_t *)at) << 23);
    return __ldg((const float *)at);
}
static __device__ __forceinline__ int64_t scale_bytes(const Scales &s, int64_t n) {
    return s.is_byte ? n : 4 * n;
}

// Warp 8, one lane: codes of every block of every tile.
template <bool TOKENS, int BN, int STAGES, class Out>
__device__ __forceinline__ void copy_codes(Smem<BN, STAGES, Out> &sm, const TMap *ma, const TMap *mb,
                                           const Problem &p) {
    Walk<TOKENS, BN> walk;
    Ring<STAGES> ring;
    for (Tile t; walk.next(p, t);)
        for (int k = 0; k < t.k; k += BK, ring.step()) {
            int s = ring.stage;
            mbar_wait(&sm.empty[s], ring.phase ^ 1);
            mbar_expect(&sm.full[s], (BM + BN) * BK);
            tma_load(sm.a[s], ma, &sm.full[s], t.k0 + k, t.a_row, 0);
            tma_load(sm.b[s], mb, &sm.full[s], t.k0 + k, t.b_row, t.b_mat);
        }
}

// The scales of up to 128 consecutive outer indices, four per lane; those from the n-th on are 0.
struct Fetched {
    float v[4];
};
static __device__ __forceinline__ Fetched fetch(const char *at, int64_t step, int n, bool is_byte) {
    Fetched f;
    UNROLL
    for (int i = 0; i < 4; i++) f.v[i] = 32 * i < n ? scale_at(at + i * step, is_byte) : 0.0f;
    return f;
}
static __device__ __forceinline__ void put(float *dst, const Fetched &f) {
    UNROLL
    for (int i = 0; i < 4; i++) dst[32 * i] = f.v[i];
}

// Warp 9: the scales of A, and of the 128x128 grid. Warp 10, where each row of B has its own: those (IS_B). The
// scales of the next block are under way while a warp waits for room.
template <bool TOKENS, bool IS_B, int BN, int STAGES, class Out>
__device__ __forceinline__ void fetch_scales(Smem<BN, STAGES, Out> &sm, const Problem &p, int lane) {
    static_assert(!IS_B || BN <= 128, "four scales per lane");
    Walk<TOKENS, BN> walk;
    Ring<STAGES> ring;
    const Scales &s = IS_B ? p.sb : p.sa;
    const int64_t step = scale_bytes(s, 32 * s.outer_step), next_k = scale_bytes(s, s.k_step);
    for (Tile t; walk.next(p, t);) {
        const int n = (IS_B ? lesser(p.n - t.b_row, BN) : lesser(t.rows, BM)) - lane;
        const char *at = (const char *)s.s;
        at += scale_bytes(s, ((IS_B ? t.b_row : t.a_row) + lane) * s.outer_step + t.block * s.k_step);
        const int grid = t.b_row / 128 + lane;
        const bool has_grid = !TOKENS && lane < 2 && grid * 128 < p.n;
        const char *at_grid =
            (const char *)p.sb.s + scale_bytes(p.sb, grid * p.sb.outer_step + t.b_mat * p.sb.mat_step);
        Fetched next = {};
        float next_grid = 0.0f;
        for (int k = -BK; k < t.k; k += BK) {
            const Fetched f = next;
            const float g = next_grid;
            if (k + BK < t.k) {
                next = fetch(at, step, n, s.is_byte);
                at += next_k;
                if (has_grid) {
                    next_grid = scale_at(at_grid, p.sb.is_byte);
                    at_grid += scale_bytes(p.sb, p.sb.k_step);
                }
            }
            if (k < 0) continue;
            mbar_wait(&sm.empty[ring.stage], ring.phase ^ 1);
            put((IS_B ? sm.sb[ring.stage] : sm.sa[ring.stage]) + lane, f);
            if (!TOKENS && lane < 2) sm.sb[ring.stage][lane] = g;
            warp_sync();
            if (lane == 0) mbar_arrive(&sm.full[ring.stage]);
            ring.step();
        }
    }
}

// Zero the codes past `left` (1..127) of a row of a stage, if it has that row: what follows a group's last token
// belongs to nobody, and 0 times a NaN there would be NaN.
static __device__ __forceinline__ void clear_tail(uint8_t *tile, int row, int rows, int left) {
    if (row < rows)
        for (int c = left / 16; c < 8; c++) {
            uint8_t *chunk = tile + row * 128 + ((c ^ (row & 7)) * 16);
            uint4 v = *(const uint4 *)chunk;
            uint32_t w[4] = {v.x, v.y, v.z, v.w};
            UNROLL
            for (int i = 0; i < 4; i++) {
                int keep = left - c * 16 - i * 4; // bytes of this word to keep
                w[i] = keep >= 4 ? w[i] : keep <= 0 ? 0u : w[i] & ((1u << (8 * keep)) - 1u);
            }
            st_shared16(chunk, uint4{w[0], w[1], w[2], w[3]});
        }
}

// The output tile of a warpgroup in shared memory: panels of 64 rows, WIDTH bytes each, the widest that divides a
// row.
template <int BN, class Out> struct Panels {
    enum {
        ROW = BN * (int)sizeof(Out),
        WIDTH = ROW % 128 == 0  ? 128
                : ROW % 64 == 0 ? 64
                                : 32,
        COUNT = ROW / WIDTH,
        COLUMNS = WIDTH / (int)sizeof(Out)
    };
    static_assert(ROW % WIDTH == 0, "panels fill the row");
    // Byte of (row, column byte), swizzled as the tensor map of y says.
    static __device__ __forceinline__ uint32_t at(int row, int byte) {
        uint32_t o = (uint32_t)(byte / WIDTH * (HALF * WIDTH) + row * WIDTH + byte % WIDTH);
        return o ^ ((o >> 7 & (WIDTH / 16 - 1)) << 4);
    }
};

template <int BN>
__device__ __forceinline__ void put_panels(uint8_t *y, const float (&sum)[BN / 2], int warp, int lane, float *) {
    const int row = warp * 16 + lane / 4;
    UNROLL
    for (int j = 0; j < BN / 8; j++) {
        int byte = (8 * j + 2 * (lane % 4)) * 4;
        st_shared2((float *)(y + Panels<BN, float>::at(row, byte)), sum[4 * j], sum[4 * j + 1]);
        st_shared2((float *)(y + Panels<BN, float>::at(row + 8, byte)), sum[4 * j + 2], sum[4 * j + 3]);
    }
}
template <int BN>
__device__ __forceinline__ void put_panels(uint8_t *y, const float (&sum)[BN / 2], int warp, int lane, uint16_t *) {
    static_assert(BN % 16 == 0, "two groups of 8 columns at a time");
    const int row = warp * 16 + lane % 16;
    UNROLL
    for (int j = 0; j < BN / 8; j += 2)
        stmatrix4(y + Panels<BN, uint16_t>::at(row, (j + lane / 16) * 16), pack_bf16(sum[4 * j], sum[4 * j + 1]),
                  pack_bf16(sum[4 * j + 2], sum[4 * j + 3]), pack_bf16(sum[4 * j + 4], sum[4 * j + 5]),
                  pack_bf16(sum[4 * j + 6], sum[4 * j + 7]));
}

static __device__ __forceinline__ void put_one(float *y, float v, bool is_acc) {
    *y = is_acc ? *y + v : v;
}
static __device__ __forceinline__ void put_one(uint16_t *y, float v, bool) {
    *y = (uint16_t)pack_bf16(v, 0.0f);
}
// The first `rows` rows of a warpgroup's part, straight to y: where a group ends inside, or TMA does not reach.
template <int BN, class Out>
__device__ void put_rows(const Problem &p, const Tile &t, const float (&sum)[BN / 2], int half, int rows, int warp,
                         int lane) {
    const int64_t y_row = (int64_t)t.y_mat * p.m + t.y_row + half * HALF;
    UNROLL
    for (int high = 0; high < 2; high++) {
        const int row = warp * 16 + lane / 4 + high * 8;
        if (row >= rows) continue;
        Out *y = (Out *)p.y + (y_row + row) * p.ld + t.b_row;
        UNROLL
        for (int i = 0; i < BN / 4; i++) {
            int column = i / 2 * 8 + 2 * (lane % 4) + i % 2;
            if (t.b_row + column < p.n) put_one(y + column, sum[i / 2 * 4 + 2 * high + i % 2], p.is_acc);
        }
    }
}

// A finished part of a tile: rounded once, or added to y.
template <bool TOKENS, int BN, int STAGES, class Out>
__device__ __forceinline__ void finish(Smem<BN, STAGES, Out> &sm, const TMap *my, const Problem &p, const Tile &t,
                                       const float (&sum)[BN / 2], int half, int warp, int lane) {
    typedef Panels<BN, Out> P;
    const int rows = lesser(t.rows - half * HALF, HALF);
    if (rows <= 0 || (p.is_acc && t.k == 0)) return;
    // The map of y ends after the last row, or after each matrix; inside, only whole boxes may be stored.
    if (!p.is_tma || (!TOKENS && p.groups && rows < HALF)) {
        put_rows<BN, Out>(p, t, sum, half, rows, warp, lane);
        return;
    }
    uint8_t *y = sm.y[half];
    const bool is_first = warp == 0 && lane == 0;
    // A barrier of this warpgroup's own: the other one need not be here. Ids are literals, because for one in a
    // register ptxas reserves all 16.
    if (is_first) tma_store_wait_read();
    if (half == 0)
        named_sync<1, 128>();
    else
        named_sync<2, 128>();
    put_panels<BN>(y, sum, warp, lane, (Out *)nullptr);
    proxy_fence();
    if (half == 0)
        named_sync<1, 128>();
    else
        named_sync<2, 128>();
    if (!is_first) return;
    UNROLL
    for (int i = 0; i < P::COUNT; i++) {
        if (t.b_row + i * P::COLUMNS >= p.n) break;
        const uint8_t *panel = y + i * HALF * P::WIDTH;
        if (p.is_acc)
            tma_store_add(my, panel, t.b_row + i * P::COLUMNS, t.y_row + half * HALF, t.y_mat);
        else
            tma_store(my, panel, t.b_row + i * P::COLUMNS, t.y_row + half * HALF, t.y_mat);
    }
    tma_store_commit();
}

// Promotion of one block: sum += (sa * sb) * part. 128x128: columns from `edge` on are of the next grid column.
template <int BN>
__device__ __forceinline__ void promote(float (&sum)[BN / 2], const float (&part)[BN / 2], float a0, float a8,
                                        float b0, float b1, int edge) {
    const float s0 = a0 * b0, s8 = a8 * b0, e0 = a0 * b1, e8 = a8 * b1;
    UNROLL
    for (int j = 0; j < BN / 8; j++) {
        const bool is_past = 128 % BN != 0 && 8 * j >= edge;
        const float x = is_past ? e0 : s0, z = is_past ? e8 : s8;
        sum[4 * j] = fma_rn(x, part[4 * j], sum[4 * j]);
        sum[4 * j + 1] = fma_rn(x, part[4 * j + 1], sum[4 * j + 1]);
        sum[4 * j + 2] = fma_rn(z, part[4 * j + 2], sum[4 * j + 2]);
        sum[4 * j + 3] = fma_rn(z, part[4 * j + 3], sum[4 * j + 3]);
    }
}
template <int BN>
__device__ __forceinline__ void promote_each(float (&sum)[BN / 2], const float (&part)[BN / 2], float a0, float a8,
                                             const float *sb) {
    UNROLL
    for (int j = 0; j < BN / 8; j++) {
        const float2 b = *(const float2 *)(sb + 8 * j);
        sum[4 * j] = fma_rn(a0 * b.x, part[4 * j], sum[4 * j]);
        sum[4 * j + 1] = fma_rn(a0 * b.y, part[4 * j + 1], sum[4 * j + 1]);
        sum[4 * j + 2] = fma_rn(a8 * b.x, part[4 * j + 2], sum[4 * j + 2]);
        sum[4 * j + 3] = fma_rn(a8 * b.y, part[4 * j + 3], sum[4 * j + 3]);
    }
}

// part = A B^T of one block of the contraction. Its steps of 32 that are all zeros are left out, because adding zeros
// would cut the sum to 14 bits once more; the last block goes step by step, since ptxas serialises wgmma in branches.
template <int BN>
__device__ __forceinline__ void multiply_block(float (&part)[BN / 2], uint64_t a, uint64_t b, int left) {
    if (left > BK - 32) {
        wgmma_fence(part);
        UNROLL
        for (int i = 0; i < BK / 32; i++, a += WGMMA_STEP, b += WGMMA_STEP) wgmma_e4m3(part, a, b, i > 0);
        wgmma_commit();
        wgmma_wait(part);
        return;
    }
    for (int i = 0; i < left; i += 32, a += WGMMA_STEP, b += WGMMA_STEP) {
        wgmma_fence(part);
        wgmma_e4m3(part, a, b, i > 0);
        wgmma_commit();
        wgmma_wait(part);
    }
}

// Warpgroups 0 and 1.
template <bool TOKENS, int BN, int STAGES, class Out>
__device__ __forceinline__ void multiply(Smem<BN, STAGES, Out> &sm, const TMap *my, const Problem &p, int half,
                                         int warp, int lane) {
    const int row = half * HALF + warp * 16 + lane / 4;
    Walk<TOKENS, BN> walk;
    Ring<STAGES> ring;
    float part[BN / 2], sum[BN / 2];
    for (Tile t; walk.next(p, t);) {
        const bool is_empty = t.rows <= half * HALF; // all rows are padding
        const int edge = 128 - t.b_row % 128;
        UNROLL
        for (int i = 0; i < BN / 2; i++) sum[i] = 0.0f;
        for (int k = 0; k < t.k; k += BK, ring.step()) {
            const int s = ring.stage;
            mbar_wait(&sm.full[s], ring.phase);
            if (TOKENS && p.groups && t.k - k < BK) {
                const int thread = half * 128 + warp * 32 + lane;
                clear_tail(sm.a[s], thread, BM, t.k - k);
                clear_tail(sm.b[s], thread, BN, t.k - k);
                proxy_fence();
                named_sync<3, 256>();
            }
            if (!is_empty) {
                const float a0 = sm.sa[s][row], a8 = sm.sa[s][row + 8];
                const float b0 = TOKENS ? 0.0f : sm.sb[s][0], b1 = TOKENS ? 0.0f : sm.sb[s][1];
                const uint64_t da = wgmma_desc(sm.a[s] + half * HALF * BK), db = wgmma_desc(sm.b[s]);
                multiply_block<BN>(part, da, db, t.k - k);
                if (TOKENS) {
                    promote_each<BN>(sum, part, a0, a8, sm.sb[s] + 2 * (lane % 4));
                } else {
                    promote<BN>(sum, part, a0, a8, b0, b1, edge);
                }
            }
            warp_sync(); // all lanes have seen the phase and read their scales
            if (lane == 0) mbar_arrive(&sm.empty[s]);
        }
        finish<TOKENS>(sm, my, p, t, sum, half, warp, lane);
    }
    if (warp == 0 && lane == 0) tma_store_wait();
}

// Registers: (DROP + 2 TAKE) * 128 <= 65536, and what a role needs above its share is spilled.
template <bool TOKENS, int BN, int STAGES, class Out, int DROP, int TAKE>
__global__ void __launch_bounds__(THREADS, 1)
    gemm_sm90(const __grid_constant__ TMap ma, const __grid_constant__ TMap mb, const __grid_constant__ TMap my,
              const __grid_constant__ Problem p) {
    static_assert(DROP + 2 * TAKE <= 3 * 168, "more registers than an SM has");
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    DYN_SMEM(unsigned char, raw);
    Smem<BN, STAGES, Out> &sm = *reinterpret_cast<Smem<BN, STAGES, Out> *>(raw);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbar_init(&sm.full[s], TOKENS ? 3 : 2);
            mbar_init(&sm.empty[s], WARPS);
        }
        mbar_init_fence();
        if (p.k) {
            tma_prefetch(&ma);
            tma_prefetch(&mb);
        }
        if (p.is_tma) tma_prefetch(&my);
    }
    block_sync();
    if (warp >= WARPS) {
        regs_drop<DROP>();
        if (warp == WARPS) {
            if (lane == 0) copy_codes<TOKENS>(sm, &ma, &mb, p);
        } else if (warp == WARPS + 1) {
            fetch_scales<TOKENS, false>(sm, p, lane);
        } else if (warp == WARPS + 2) {
            if constexpr (TOKENS) fetch_scales<true, true>(sm, p, lane);
        }
    } else {
        regs_take<TAKE>();
        multiply<TOKENS>(sm, &my, p, warp / 4, warp % 4, lane);
    }
#else
    __trap(); // not compiled for sm_90a: never a result that nobody made
#endif
}

} // namespace sm90
