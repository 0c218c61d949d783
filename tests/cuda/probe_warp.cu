// probe_warp.cu - do the instructions of one warp do what kernels/ptx.h and tests/cuda/tc_warp.h say? cp.async,
// ldmatrix, mma of BF16 and of E4M3. On any GPU from sm_80 on (sm_89 for E4M3; say the GPU's own number twice):
//   nvcc -gencode=arch=compute_90a,code=sm_90a -std=c++17 -O2 -Ibase -Ikernels tests/cuda/probe_warp.cu -o probe_warp
//       && ./probe_warp
// test_probe_warp.c runs the same probes under the fibers, where all must pass, and each with an instruction left out,
// where none may.
#include "probe.h"
#include "ptx.h"

static int major_minor() {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return 0;
    return p.major * 10 + p.minor;
}

// copies: three stages in turn, two groups under way; every thread reads what its neighbour copied. Lengths that end
// inside leave zeros.
static __global__ void copies_kernel(uint32_t *y, const uint32_t *x, int rounds, int length) {
    DYN_SMEM(uint32_t, stage); // [3][256 + 64]
    const int t = (int)threadIdx.x, next = (t + 33) % 64;
    for (int i = 0; i < 2; i++) {
        uint32_t *to = stage + i * 320;
        copy_async16(to + t * 4, x + i * 320 + t * 4, i * 320 + t * 4 + 4 <= length);
        copy_async4(to + 256 + t, x + i * 320 + 256 + t, i * 320 + 256 + t < length);
        copy_async_commit();
    }
    uint32_t sum = 0;
    for (int i = 0; i < rounds; i++) {
        copy_async_wait<1>();
        block_sync(); // all parts of this stage are there, and the one before is free
        if (i + 2 < rounds) {
            int at = (i + 2) * 320;
            uint32_t *to = stage + (i + 2) % 3 * 320;
            copy_async16(to + t * 4, x + at + t * 4, at + t * 4 + 4 <= length);
            copy_async4(to + 256 + t, x + at + 256 + t, at + 256 + t < length);
        }
        copy_async_commit();
        const uint32_t *from = stage + i % 3 * 320;
        for (int k = 0; k < 4; k++) sum = sum * 31 + from[next * 4 + k];
        sum = sum * 31 + from[256 + next];
    }
    y[t] = sum;
}
static bool probe_copies() {
    const int rounds = 11, n = rounds * 320;
    for (int length = n; length > 0; length -= 1012) {
        Both<uint32_t> x((size_t)n), y(64);
        for (int i = 0; i < n; i++) x.host[i] = (uint32_t)i * 2654435761u + 1;
        if (!x.up()) return fails("copy to the device");
        LAUNCH(copies_kernel, dim3(1), dim3(64), 3 * 320 * 4, 0, y.device, x.device, rounds, length);
        DOWN(y);
        for (int t = 0; t < 64; t++) {
            uint32_t sum = 0;
            int from = (t + 33) % 64;
            for (int i = 0; i < rounds; i++)
                for (int k = 0; k < 5; k++) {
                    int at = i * 320 + (k < 4 ? from * 4 + k : 256 + from);
                    sum = sum * 31 + (at < length ? x.host[at] : 0);
                }
            if (y.host[t] != sum) return fails("length %d: thread %d read something else", length, t);
        }
    }
    return true;
}

// ldmatrix: four matrices, their rows scattered; all registers of all lanes.
static __global__ void ldmatrix_kernel(uint32_t *y, const uint16_t *x) {
    DYN_SMEM(uint16_t, tile);
    const int lane = (int)threadIdx.x % 32;
    for (int i = (int)threadIdx.x; i < 256; i += 64) tile[i] = x[i]; // each warp fills what the other reads
    block_sync();
    const uint16_t *row = tile + (lane * 5 + 3) % 32 * 8;
    uint32_t a[4], b[2], c, at[4], bt[2], ct;
    ldmatrix4(a, row);
    ldmatrix2(b, row);
    ldmatrix1(c, row);
    ldmatrix4_turned(at, row);
    ldmatrix2_turned(bt, row);
    ldmatrix1_turned(ct, row);
    const uint32_t all[14] = {a[0], a[1], a[2], a[3], b[0], b[1], c, at[0], at[1], at[2], at[3], bt[0], bt[1], ct};
    for (int i = 0; i < 14; i++) y[threadIdx.x * 14 + i] = all[i];
}
static bool probe_ldmatrix() {
    static const int matrix_of[7] = {0, 1, 2, 3, 0, 1, 0};
    Both<uint16_t> x(256);
    Both<uint32_t> y(64 * 14);
    for (int i = 0; i < 256; i++) x.host[i] = (uint16_t)(i * 257 + 1);
    if (!x.up()) return fails("copy to the device");
    LAUNCH(ldmatrix_kernel, dim3(1), dim3(64), 512, 0, y.device, x.device);
    DOWN(y);
    for (int t = 0; t < 64; t++)
        for (int i = 0; i < 14; i++)
            for (int e = 0; e < 2; e++) {
                int l = t % 32;
                int r = i < 7 ? l / 4 : l % 4 * 2 + e, c = i < 7 ? l % 4 * 2 + e : l / 4, m = matrix_of[i % 7];
                uint16_t want = x.host[((m * 8 + r) * 5 + 3) % 32 * 8 + c];
                uint16_t have = (uint16_t)(y.host[t * 14 + i] >> 16 * e);
                if (have != want) return fails("thread %d, value %d of 28: %d, not %d", t, i * 2 + e, have, want);
            }
    return true;
}

// mma: small integers, whose sums are exact: the place of every element in the fragments. Two products in one sum.
template <int E> static __global__ void mma_kernel(float *d, const uint32_t *a, const uint32_t *b) {
    const int lane = (int)threadIdx.x % 32, words = 8; // of a row: 16 BF16 or 32 E4M3
    float sum[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    for (int i = 0; i < 2; i++) {
        uint32_t fa[4];
        for (int k = 0; k < 4; k++) fa[k] = a[(i * 16 + lane / 4 + k % 2 * 8) * words + lane % 4 + k / 2 * 4];
        uint32_t b0 = b[(i * 8 + lane / 4) * words + lane % 4], b1 = b[(i * 8 + lane / 4) * words + lane % 4 + 4];
        if (E == 2)
            mma_bf16(sum, fa, b0, b1);
        else
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
            mma_e4m3(sum, fa, b0, b1);
#else
            sum[0] = b1;
#endif
    }
    for (int i = 0; i < 4; i++) d[threadIdx.x * 4 + i] = sum[i];
}
static void put_element(void *p, int bytes, int i, float v) {
    if (bytes == 2)
        ((uint16_t *)p)[i] = bf16_from_f32(v);
    else
        ((uint8_t *)p)[i] = e4m3_from_f32(v);
}
template <int E> static bool try_mma() {
    const int k_all = 8 * E;
    Both<uint32_t> a(2 * 16 * 8), b(2 * 8 * 8);
    Both<float> d(128);
    float fa[2][16][32], fb[2][8][32];
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < k_all; k++) {
            for (int r = 0; r < 16; r++) {
                fa[i][r][k] = (float)(small_random(17) - 8);
                put_element(a.host, 4 / E, (i * 16 + r) * k_all + k, fa[i][r][k]);
            }
            for (int n = 0; n < 8; n++) {
                fb[i][n][k] = (float)(small_random(17) - 8);
                put_element(b.host, 4 / E, (i * 8 + n) * k_all + k, fb[i][n][k]);
            }
        }
    if (!a.up() || !b.up()) return fails("copy to the device");
    LAUNCH(mma_kernel<E>, dim3(1), dim3(32), 0, 0, d.device, a.device, b.device);
    DOWN(d);
    for (int l = 0; l < 32; l++)
        for (int j = 0; j < 4; j++) {
            int r = l / 4 + j / 2 * 8, n = l % 4 * 2 + j % 2;
            float want = (float)(j + 1);
            for (int i = 0; i < 2; i++)
                for (int k = 0; k < k_all; k++) want += fa[i][r][k] * fb[i][n][k];
            if (d.host[l * 4 + j] != want)
                return fails("row %d column %d (lane %d): %g, not %g", r, n, l, d.host[l * 4 + j], want);
        }
    return true;
}
static bool probe_mma_bf16() {
    return try_mma<2>();
}
static bool probe_mma_e4m3() {
    if (major_minor() < 89) {
        fails("this GPU has none");
        return true;
    }
    return try_mma<4>();
}

// sums: what becomes of an addend 2^-j beside 1, in one product and from one to the next: FP32 keeps j <= 23 (24 with
// a rounding that is not to even); fewer would make the bounds of the attention's tests too small.
static bool probe_sums() {
    int kept[2] = {0, 0};
    for (int apart = 0; apart < 2; apart++)
        for (int j = 1; j <= 30; j++) {
            Both<uint32_t> a(2 * 16 * 8), b(2 * 8 * 8);
            Both<float> d(128);
            // d(0, 0) starts with 1: the product adds 0 - 1 + 1 + 2^-j, or 2^-j in the second product.
            float v[4] = {0.0f, -1.0f, 1.0f, apart ? 0.0f : ldexpf(1.0f, -j)};
            for (int k = 0; k < 4; k++) put_element(a.host, 2, k, v[k]);
            if (apart) put_element(a.host, 2, 16 * 16, ldexpf(1.0f, -j));
            for (int k = 0; k < 32; k++) put_element(b.host, 2, k < 16 ? k : 8 * 16 + k - 16, 1.0f);
            if (!a.up() || !b.up()) return fails("copy to the device");
            LAUNCH(mma_kernel<2>, dim3(1), dim3(32), 0, 0, d.device, a.device, b.device);
            DOWN(d);
            if (d.host[0] != 1.0f) kept[apart] = j;
        }
    fails("an addend counts down to 2^-%d of the sum, 2^-%d from one product to the next", kept[0], kept[1]);
    return kept[0] >= 23 && kept[1] >= 23;
}

// exp2: the error of the fast exponential on the numbers that softmax asks for.
static __global__ void exp2_kernel(float *y, const float *x) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    y[i] = exp2_fast(x[i]);
}
static bool probe_exp2() {
    const int n = 16384;
    Both<float> x(n), y(n);
    for (int i = 0; i < n; i++) x.host[i] = -(float)i / 256.0f - (float)(i % 7) / 4096.0f;
    x.host[n - 1] = -INFINITY;
    x.host[n - 2] = -1e30f;
    if (!x.up()) return fails("copy to the device");
    LAUNCH(exp2_kernel, dim3(n / 256), dim3(256), 0, 0, y.device, x.device);
    DOWN(y);
    double worst = 0.0;
    for (int i = 0; i < n - 2; i++) worst = fmax(worst, fabs((double)y.host[i] / exp2((double)x.host[i]) - 1.0));
    fails("largest relative error 2^%.2f", log2(worst));
    return y.host[0] == 1.0f && worst <= ldexp(1.0, -22) && y.host[n - 1] == 0.0f && y.host[n - 2] == 0.0f;
}

static const Probe probes[] = {
    {"copies", probe_copies},     {"ldmatrix", probe_ldmatrix}, {"mma_bf16", probe_mma_bf16},
    {"mma_e4m3", probe_mma_e4m3}, {"sums", probe_sums},         {"exp2", probe_exp2},
};
PROBES(probe_warp)

#if !defined(__CUDACC__)
// What the fibers must report. 0: a warp of 16 lanes; 1: half a warp; 2: lanes at two products; 3: a misaligned row;
// 4: a copy that nobody waits for.
static __global__ void wrong_kernel(int how) {
    DYN_SMEM(uint16_t, tile);
    uint32_t r[4] = {0, 0, 0, 0};
    float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    static const uint32_t source[4] = {1, 2, 3, 4};
    if (how == 0) ldmatrix4(r, tile);
    if (how == 1 && threadIdx.x < 16) mma_bf16(d, r, 0, 0);
    if (how == 2) {
        if (threadIdx.x < 16)
            mma_bf16(d, r, 0, 0);
        else
            mma_bf16(d, r, 1, 1);
    }
    if (how == 3) ldmatrix1(r[0], tile + threadIdx.x * 4);
    if (how == 4) copy_async16(tile + threadIdx.x * 8, source, true);
}
extern "C" void probe_warp_wrong(int how) {
    for (int i = 0; i < 2; i++) LAUNCH(wrong_kernel, dim3(1), dim3(how == 0 ? 16 : 32), 1024, 0, how);
}
#endif
