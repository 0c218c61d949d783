// probe_sm90.cu - the first minutes on a Hopper GPU: does the hardware do what kernels/ptx.h and tests/cuda/tc.h say?
//
// One small question per probe, one PASS or FAIL line each, smallest first: a wrong descriptor is found here and not
// in a matrix product. On the GPU:
//   nvcc -gencode=arch=compute_90a,code=sm_90a -std=c++17 -O2 -DPTX_WAIT_LIMIT=4000000000ll -Ibase -Ikernels
//       tests/cuda/probe_sm90.cu -o probe_sm90 && ./probe_sm90
// test_probe_sm90.c runs the same probes under the fibers, where all must pass: a FAIL on the GPU is a difference
// between it and tc.h. The products' own probe is the last.
#include <cudaTypedefs.h>

#include "gemm_cuda_tile.h"
#include "probe.h"

// A map of [rows, cols] elements with boxes of `width` bytes x `high` rows.
static bool map_of(TMap *map, CUtensorMapDataType type, int bytes, void *p, int cols, int rows, int width, int high) {
    void *fn = NULL;
    cudaDriverEntryPointQueryResult found;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        !fn)
        return fails("no cuTensorMapEncodeTiled");
    cuuint64_t dim[3] = {(cuuint64_t)cols, (cuuint64_t)rows, 1};
    cuuint64_t stride[2] = {(cuuint64_t)cols * bytes, (cuuint64_t)cols * bytes * rows};
    cuuint32_t box[3] = {(cuuint32_t)(width / bytes), (cuuint32_t)high, 1}, each[3] = {1, 1, 1};
    CUtensorMapSwizzle s = width == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                           : width == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                         : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult r = ((PFN_cuTensorMapEncodeTiled_v12000)fn)(
        map, type, 3, p, dim, stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, s, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return r == CUDA_SUCCESS || fails("cuTensorMapEncodeTiled: error %d", (int)r);
}

// device: what this machine is.
static bool probe_device() {
    cudaDeviceProp p;
    NEED(cudaGetDeviceProperties(&p, 0));
    fails("%s, sm_%d%d, %d multiprocessors, %zu bytes of shared memory for a block, L2 %d bytes", p.name, p.major,
          p.minor, p.multiProcessorCount, p.sharedMemPerBlockOptin, p.l2CacheSize);
#if defined(__CUDACC__)
    if (p.sharedMemPerBlockOptin < 232448) return false;
#endif
    return p.major == 9;
}

// tma: a box as it lies in shared memory, the zeros outside, and its way back.
static __global__ void tma_kernel(const __grid_constant__ TMap in, const __grid_constant__ TMap out, uint8_t *dump,
                                  int bytes, int x, int y) {
    DYN_SMEM(uint8_t, raw);
    uint64_t *bar = (uint64_t *)(raw + 32768);
    if (threadIdx.x == 0) {
        mbar_init(bar, 1);
        mbar_init_fence();
        mbar_expect(bar, (uint32_t)bytes);
        tma_load(raw, &in, bar, x, y, 0);
    }
    block_sync();
    mbar_wait(bar, 0);
    for (int i = (int)threadIdx.x; i < bytes; i += (int)blockDim.x) dump[i] = raw[i];
    if (threadIdx.x == 0) {
        tma_store(&out, raw, x, y, 0);
        tma_store_commit();
        tma_store_wait();
    }
}
static bool probe_tma() {
    const int cols = 272, rows = 70, high = 64;
    for (int width = 128; width >= 32; width /= 2)
        for (int corner = 0; corner < 3; corner++) {
            int x = corner == 0 ? 0 : corner == 1 ? 37 : 201, y = corner * 11; // inside; odd; odd and over both edges
            Both<uint8_t> in(cols * rows), out(cols * rows), dump((size_t)width * high);
            for (int i = 0; i < cols * rows; i++) in.host[i] = (uint8_t)(i * 7 + i / cols * 3 + 1);
            memset(out.host, 0xEE, out.n);
            if (!in.up() || !out.up()) return fails("copy to the device");
            TMap ma, mo;
            if (!map_of(&ma, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, in.device, cols, rows, width, high) ||
                !map_of(&mo, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, out.device, cols, rows, width, high))
                return false;
            LAUNCH(tma_kernel, dim3(1), dim3(128), 32768 + 64, 0, ma, mo, dump.device, width * high, x, y);
            DOWN(dump);
            DOWN(out);
            for (int r = 0; r < high; r++)
                for (int c = 0; c < width; c++) {
                    bool is_inside = y + r < rows && x + c < cols;
                    int want = is_inside ? in.host[(y + r) * cols + x + c] : 0, at = r * width + c;
                    at ^= (at >> 7 & (width / 16 - 1)) << 4;
                    if (dump.host[at] != want)
                        return fails("%d-byte swizzle at (%d,%d): row %d byte %d is not at %d: %d, not %d", width, x,
                                     y, r, c, at, dump.host[at], want);
                }
            for (int r = 0; r < rows; r++)
                for (int c = 0; c < cols; c++) {
                    bool is_inside = r >= y && r < y + high && c >= x && c < x + width;
                    if (out.host[r * cols + c] != (is_inside ? in.host[r * cols + c] : 0xEE))
                        return fails("store at (%d,%d), swizzle %d: row %d byte %d", x, y, width, r, c);
                }
        }
    return true;
}

// A [128, 128] and B [N, 128] codes, swizzled by hand; every thread's registers come back.
template <int N>
static __global__ void wgmma_kernel(float *d, const uint8_t *codes, int half, int steps, float start, int lbo,
                                    int split) {
    DYN_SMEM(uint8_t, raw);
    uint8_t *b = raw + 16384;
    for (int i = (int)threadIdx.x; i < (128 + N) * 8; i += 128) {
        int row = i / 8 < 128 ? i / 8 : i / 8 - 128, c = i % 8;
        uint8_t *tile = i / 8 < 128 ? raw : b;
        st_shared16(tile + row * 128 + ((c ^ (row & 7)) * 16), ((const uint4 *)codes)[i]);
    }
    proxy_fence();
    block_sync();
    float sum[N / 2];
    UNROLL
    for (int i = 0; i < N / 2; i++) sum[i] = start;
    const uint64_t flip = (uint64_t)(1 ^ lbo) << 16;
    uint64_t da = wgmma_desc(raw + half * 8192) ^ flip, db = wgmma_desc(b) ^ flip;
    for (int i = 0; i < steps; i++, da += WGMMA_STEP, db += WGMMA_STEP) {
        wgmma_fence(sum);
        wgmma_e4m3(sum, da, db, i > 0 || split);
        wgmma_commit();
        wgmma_wait(sum);
    }
    UNROLL
    for (int i = 0; i < N / 2; i++) d[threadIdx.x * (N / 2) + i] = sum[i];
}
// d of 128 threads x N/2 registers. steps of 32; added: d starts with `start`.
template <int N>
static bool multiply_once(Both<float> &d, Both<uint8_t> &codes, int half, int steps, float start, int lbo,
                          int is_added) {
    const int bytes = (128 + N) * 128;
    NEED(cudaFuncSetAttribute((const void *)wgmma_kernel<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (!codes.up()) return fails("copy to the device");
    LAUNCH((wgmma_kernel<N>), dim3(1), dim3(128), (size_t)bytes, 0, d.device, codes.device, half, steps, start, lbo,
           is_added);
    DOWN(d);
    return true;
}
static int row_of(int t, int i) {
    return t / 32 * 16 + t % 32 / 4 + (i / 2 % 2) * 8;
}
static int column_of(int t, int i) {
    return i / 4 * 8 + t % 4 * 2 + i % 2;
}

// fragments: row and column of every register, by operands with one column that is not zero.
static bool probe_fragments() {
    Both<uint8_t> codes((128 + 128) * 128);
    Both<float> d(128 * 64);
    for (int side = 0; side < 2; side++) {
        memset(codes.host, 0, codes.n);
        for (int i = 0; i < 128; i++) {
            codes.host[i * 128] = side == 0 ? (uint8_t)(i % 64 + 1) : 0x38; // 0x38 is 1
            codes.host[(128 + i) * 128] = side == 0 ? 0x38 : (uint8_t)(i < 127 ? i : 0x80 + i - 1);
        }
        if (!multiply_once<128>(d, codes, 0, 1, 0.0f, 1, 0)) return false;
        for (int t = 0; t < 128; t++)
            for (int i = 0; i < 64; i++) {
                int at = side == 0 ? row_of(t, i) : 128 + column_of(t, i);
                float want = f32_from_e4m3(codes.host[at * 128]);
                if (d.host[t * 64 + i] != want)
                    return fails("thread %d register %d holds %g, its %s should give %g", t, i, d.host[t * 64 + i],
                                 side == 0 ? "row" : "column", want);
            }
    }
    return true;
}

// descriptor: small integers, exact in any order: all four steps, both halves, the widths of the kernels.
template <int N> static bool try_width() {
    static const uint8_t integer[9] = {0xC8, 0xC4, 0xC0, 0xB8, 0, 0x38, 0x40, 0x44, 0x48}; // -4 .. 4
    Both<uint8_t> codes((size_t)(128 + N) * 128);
    Both<float> d((size_t)128 * N / 2);
    for (int turn = 0; turn < 4; turn++) { // the leading byte offset is not used by this layout: 1, and 0
        for (size_t i = 0; i < codes.n; i++) codes.host[i] = integer[small_random(9)];
        int half = turn % 2;
        if (!multiply_once<N>(d, codes, half, 4, 0.0f, turn < 2, 0)) return false;
        for (int t = 0; t < 128; t++)
            for (int i = 0; i < N / 2; i++) {
                int r = half * 64 + row_of(t, i), n = 128 + column_of(t, i);
                float want = 0.0f;
                for (int k = 0; k < 128; k++)
                    want += f32_from_e4m3(codes.host[r * 128 + k]) * f32_from_e4m3(codes.host[n * 128 + k]);
                if (d.host[t * (N / 2) + i] != want)
                    return fails("N %d half %d, leading offset %d: (%d,%d) is %g, not %g", N, half, turn < 2, r,
                                 n - 128, d.host[t * (N / 2) + i], want);
            }
    }
    return true;
}
static bool probe_descriptor() {
    return try_width<64>() && try_width<128>() && try_width<152>() && try_width<160>() && try_width<192>();
}

// half: BF16 of both kinds: [64, 64] x [128, 64]^T from shared memory, and [64, 64] in registers x [64, 128] turned.
static __global__ void half_kernel(float *d, const uint16_t *a, const uint16_t *b, int is_left) {
    DYN_SMEM(uint16_t, raw);
    uint16_t *tile = raw + 64 * 64;
    const int t = (int)threadIdx.x, warp = t / 32, lane = t % 32;
    for (int i = t; i < 64 * 8; i += 128) // rows of 8 chunks, swizzled by hand
        st_shared16(raw + i / 8 * 64 + (i % 8 ^ (i / 8 & 7)) * 8, ((const uint4 *)a)[i]);
    for (int i = t; i < 128 * 8; i += 128) { // left: [64, 128] in two panels of 64 columns
        int row = is_left ? i / 16 : i / 8, chunk = i % 8, panel = is_left ? i / 8 % 2 * 64 : 0;
        st_shared16(tile + (panel + row) * 64 + (chunk ^ (row & 7)) * 8, ((const uint4 *)b)[i]);
    }
    proxy_fence();
    block_sync();
    float sum[64];
    uint32_t left[4][4];
    UNROLL
    for (int i = 0; i < 64; i++) sum[i] = 1.0f;
    UNROLL
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) {
            const int row = warp * 16 + lane / 4 + i % 2 * 8, column = k * 16 + i / 2 * 8 + lane % 4 * 2;
            left[k][i] = *(const uint32_t *)(a + row * 64 + column);
        }
    if (is_left) {
        const uint64_t db = wgmma_desc_turned(tile, 64 * 128);
        wgmma_fence(sum);
        UNROLL
        for (int k = 0; k < 4; k++) wgmma_bf16_left(sum, left[k], db + k * WGMMA_ROWS_16, true);
    } else {
        const uint64_t da = wgmma_desc(raw), db = wgmma_desc(tile);
        wgmma_fence(sum);
        UNROLL
        for (int k = 0; k < 4; k++) wgmma_bf16(sum, da + k * WGMMA_STEP, db + k * WGMMA_STEP, k > 0);
    }
    wgmma_commit();
    wgmma_wait(sum);
    UNROLL
    for (int i = 0; i < 64; i++) d[t * 64 + i] = sum[i];
}
static bool probe_half() {
    Both<uint16_t> a(64 * 64), b(128 * 64);
    Both<float> d(128 * 64);
    for (size_t i = 0; i < a.n; i++) a.host[i] = bf16_from_f32((float)(small_random(17) - 8));
    for (size_t i = 0; i < b.n; i++) b.host[i] = bf16_from_f32((float)(small_random(17) - 8));
    if (!a.up() || !b.up()) return fails("copy to the device");
    for (int is_left = 0; is_left < 2; is_left++) {
        LAUNCH(half_kernel, dim3(1), dim3(128), (64 + 128) * 128, 0, d.device, a.device, b.device, is_left);
        DOWN(d);
        for (int t = 0; t < 128; t++)
            for (int i = 0; i < 64; i++) {
                int r = row_of(t, i), n = column_of(t, i);
                float want = is_left ? 1.0f : 0.0f; // the first product overwrites the sum
                for (int k = 0; k < 64; k++)
                    want += f32_from_bf16(a.host[r * 64 + k]) *
                            f32_from_bf16(b.host[is_left ? k * 128 + n : n * 64 + k]);
                if (d.host[t * 64 + i] != want)
                    return fails("%s: (%d,%d) is %g, not %g", is_left ? "left side in registers" : "both in memory", r,
                                 n, d.host[t * 64 + i], want);
            }
    }
    return true;
}

// precision: which addends a sum keeps. d(0,0) for a row of A and a column of B given as pairs.
static bool one_sum(float *out, const float (*pair)[2], int n, float start, int steps) {
    Both<uint8_t> codes((128 + 64) * 128);
    Both<float> d(128 * 32);
    for (int k = 0; k < n; k++) {
        codes.host[k] = e4m3_from_f32(pair[k][0]);
        codes.host[128 * 128 + k] = e4m3_from_f32(pair[k][1]);
    }
    if (!multiply_once<64>(d, codes, 0, steps, start, 1, 1)) return false;
    *out = d.host[0];
    return true;
}
static float power(int e) {
    return ldexpf(1.0f, e);
}
static bool probe_precision() {
    int kept[2] = {0, 0}, later = 0, before = 0;
    float v, many[64][2] = {}, preset;
    for (int sign = 0; sign < 2; sign++)
        for (int j = 1; j <= 30; j++) {
            float pair[2][2] = {{256.0f, 256.0f},
                                {power((17 - j) / 2) * (sign ? -1.0f : 1.0f), power(16 - j - (17 - j) / 2)}};
            if (!one_sum(&v, pair, 2, 0.0f, 1)) return false;
            if (v != 65536.0f) kept[sign] = j;
        }
    for (int j = 1; j <= 30; j++) { // the large one is in the sum already
        float pair[33][2] = {{256.0f, 256.0f}};
        pair[32][0] = power((17 - j) / 2), pair[32][1] = power(16 - j - (17 - j) / 2);
        if (!one_sum(&v, pair, 33, 0.0f, 2)) return false;
        if (v != 65536.0f) later = j;
        float back[33][2] = {{power((17 - j) / 2), power(16 - j - (17 - j) / 2)}};
        back[32][0] = back[32][1] = 256.0f;
        if (!one_sum(&v, back, 33, 0.0f, 2)) return false;
        if (v != 65536.0f) before = j;
    }
    many[0][0] = many[0][1] = 256.0f;
    for (int k = 1; k < 32; k++) many[k][0] = many[k][1] = 2.0f; // 31 x 4 = 2^16 / 2^14 each
    if (!one_sum(&v, many, 32, 0.0f, 1)) return false;
    if (!one_sum(&preset, many, 0, 1.0f + power(-22), 1)) return false;
    fails(
        "an addend counts down to 2^-%d (-: 2^-%d) of the largest, 2^-%d (2^-%d) across two steps; 31 of 2^-14: %g; "
        "1 + 2^-22 plus zeros: 1 + %g. tc.h and promote128_hopper14 say 13, 13, 13, 13, 0, 0",
        kept[0], kept[1], later, before, v - 65536.0f, preset - 1.0f);
    return kept[0] == 13 && kept[1] == 13 && later == 13 && before == 13 && v == 65536.0f && preset == 1.0f;
}

// ring: one thread copies, a warp reads, three stages, many rounds.
static __global__ void ring_kernel(const __grid_constant__ TMap in, uint32_t *wrong, int rounds) {
    DYN_SMEM(uint8_t, raw);
    uint64_t *full = (uint64_t *)(raw + 3 * 1024), *empty = full + 3;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 3; s++) {
            mbar_init(&full[s], 1);
            mbar_init(&empty[s], 1);
        }
        mbar_init_fence();
    }
    block_sync();
    sm90::Ring<3> ring;
    uint32_t bad = 0;
    for (int i = 0; i < rounds; i++, ring.step()) {
        if (warp == 0 && lane == 0) {
            mbar_wait(&empty[ring.stage], ring.phase ^ 1);
            mbar_expect(&full[ring.stage], 1024);
            tma_load(raw + ring.stage * 1024, &in, &full[ring.stage], 0, i % 64 * 8, 0);
        } else if (warp == 1) {
            mbar_wait(&full[ring.stage], ring.phase);
            for (int r = 0; r < 8; r++) bad += raw[ring.stage * 1024 + r * 128 + lane] != (uint8_t)(i % 64 * 8 + r);
            warp_sync();
            if (lane == 0) mbar_arrive(&empty[ring.stage]);
        }
    }
    if (warp == 1) wrong[lane] = bad;
}
static bool probe_ring() {
#if defined(__CUDACC__)
    const int rounds = 100000;
#else
    const int rounds = 300;
#endif
    Both<uint8_t> in(512 * 128);
    Both<uint32_t> wrong(32);
    for (int i = 0; i < 512 * 128; i++) in.host[i] = (uint8_t)(i / 128);
    TMap m;
    if (!in.up() || !map_of(&m, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, in.device, 128, 512, 128, 8)) return fails("map");
    LAUNCH(ring_kernel, dim3(1), dim3(64), 4096, 0, m, wrong.device, rounds);
    DOWN(wrong);
    for (int i = 0; i < 32; i++)
        if (wrong.host[i]) return fails("lane %d read %u wrong bytes in %d rounds", i, wrong.host[i], rounds);
    fails("%d rounds", rounds);
    return true;
}

// registers: the hand-overs of the kernels come back, with barriers of one warpgroup each.
template <int DROP, int TAKE> static __global__ void __launch_bounds__(384, 1) regs_kernel(int *out) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
    SMEM(int, part, [2][128]);
    const int group = (int)threadIdx.x / 128, t = (int)threadIdx.x % 128;
    if (group == 2) {
        regs_drop<DROP>();
    } else {
        regs_take<TAKE>();
        part[group][t] = t;
        if (group == 0)
            named_sync<1, 128>();
        else
            named_sync<2, 128>();
        out[threadIdx.x] = part[group][127 - t];
    }
#endif
}
template <int DROP, int TAKE> static bool try_registers() {
    Both<int> out(256);
    LAUNCH((regs_kernel<DROP, TAKE>), dim3(1), dim3(384), 0, 0, out.device);
    DOWN(out);
    for (int i = 0; i < 256; i++)
        if (out.host[i] != 127 - i % 128) return fails("%d/%d: thread %d read %d", DROP, TAKE, i, out.host[i]);
    return true;
}
static bool probe_registers() {
    return try_registers<24, 240>() && try_registers<40, 232>() && try_registers<56, 224>();
}

// stores: stmatrix and float pairs into panels, stored and added by TMA.
static __global__ void stores_kernel(const __grid_constant__ TMap half, const __grid_constant__ TMap full) {
    DYN_SMEM(uint8_t, raw);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    float sum[32];
    UNROLL
    for (int i = 0; i < 32; i++) {
        int row = warp * 16 + lane / 4 + (i >> 1 & 1) * 8, column = i / 4 * 8 + lane % 4 * 2 + (i & 1);
        sum[i] = (float)(row + column * 0.5f);
    }
    sm90::put_panels<64>(raw, sum, warp, lane, (uint16_t *)nullptr);
    sm90::put_panels<64>(raw + 8192, sum, warp, lane, (float *)nullptr);
    proxy_fence();
    block_sync();
    if (threadIdx.x == 0) {
        tma_store(&half, raw, 0, 0, 0);
        tma_store_add(&full, raw + 8192, 0, 0, 0);
        tma_store_add(&full, raw + 16384, 32, 0, 0);
        tma_store_commit();
        tma_store_wait();
    }
}
static bool probe_stores() {
    Both<uint16_t> half(64 * 64);
    Both<float> full(64 * 64);
    for (int i = 0; i < 64 * 64; i++) full.host[i] = 1000.0f;
    TMap mh, mf;
    if (!full.up() || !half.up() || !map_of(&mh, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, half.device, 64, 64, 128, 64) ||
        !map_of(&mf, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, full.device, 64, 64, 128, 64))
        return fails("map");
    LAUNCH(stores_kernel, dim3(1), dim3(128), 8192 + 16384, 0, mh, mf);
    DOWN(half);
    DOWN(full);
    for (int r = 0; r < 64; r++)
        for (int c = 0; c < 64; c++) {
            float want = (float)(r + c * 0.5f);
            if (f32_from_bf16(half.host[r * 64 + c]) != want)
                return fails("bf16 (%d,%d): %g", r, c, f32_from_bf16(half.host[r * 64 + c]));
            if (full.host[r * 64 + c] != 1000.0f + want) return fails("f32 (%d,%d): %g", r, c, full.host[r * 64 + c]);
        }
    return true;
}

// product: the kernel itself, 1x128 x 128x128 and 1x128 x 1x128, integers whose sums are exact, scales 1/2 and 2.
template <bool TOKENS> static bool try_product(int m, int n, int k) {
    typedef sm90::Smem<128, 4, float> S;
    const int kb = (k + 127) / 128, ld = (k + 15) / 16 * 16;
    Both<uint8_t> a((size_t)m * ld), b((size_t)n * ld);
    Both<float> sa((size_t)m * kb), sb((size_t)n * kb), y((size_t)m * n);
    for (size_t i = 0; i < a.n; i++) a.host[i] = e4m3_from_f32((float)(small_random(5) - 2));
    for (size_t i = 0; i < b.n; i++) b.host[i] = e4m3_from_f32((float)(small_random(5) - 2));
    for (size_t i = 0; i < sa.n; i++) sa.host[i] = small_random(2) ? 0.5f : 2.0f;
    for (size_t i = 0; i < sb.n; i++) sb.host[i] = small_random(2) ? 0.5f : 2.0f;
    if (!a.up() || !b.up() || !sa.up() || !sb.up() || !y.up()) return fails("copy to the device");
    TMap ma, mb, my;
    if (!map_of(&ma, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, a.device, ld, m, 128, 128) ||
        !map_of(&mb, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, b.device, ld, n, 128, 128) ||
        !map_of(&my, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, y.device, n, m, 128, 64))
        return false;
    sm90::Problem p = {};
    p.m = m, p.n = n, p.k = ld;
    p.sa = sm90::Scales{sa.device, kb, 1, 0, false};
    p.sb = sm90::Scales{sb.device, kb, 1, 0, false};
    p.y = y.device, p.ld = n, p.is_tma = true;
    auto *kernel = sm90::gemm_sm90<TOKENS, 128, 4, float, 56, 224>;
    NEED(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(S)));
    LAUNCH((sm90::gemm_sm90<TOKENS, 128, 4, float, 56, 224>), dim3(3), dim3(384), sizeof(S), 0, ma, mb, my, p);
    DOWN(y);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float want = 0.0f;
            for (int c = 0; c < ld; c++)
                want += f32_from_e4m3(a.host[i * ld + c]) * f32_from_e4m3(b.host[j * ld + c]) *
                        sa.host[i * kb + c / 128] * sb.host[(TOKENS ? j : j / 128) * kb + c / 128];
            if (y.host[i * n + j] != want)
                return fails("%d x %d x %d: (%d,%d) is %g, not %g", m, n, ld, i, j, y.host[i * n + j], want);
        }
    return true;
}
static bool probe_product() {
    return try_product<false>(128, 128, 128) && try_product<true>(128, 128, 128) &&
           try_product<false>(200, 264, 400) && try_product<true>(200, 264, 400);
}

static const Probe probes[] = {
    {"device", probe_device},       {"tma", probe_tma},
    {"fragments", probe_fragments}, {"descriptor", probe_descriptor},
    {"half", probe_half},
    {"precision", probe_precision}, {"ring", probe_ring},
    {"registers", probe_registers}, {"stores", probe_stores},
    {"product", probe_product},
};
PROBES(probe_sm90)
