// simt_probe.cu - small kernels that show what simt.h does and what it notices, for test_simt.c.
#include "cuda_launch.h"

// Each block reverses its 256 values through shared memory. Without the barrier threads read what others may not
// have written yet.
template <bool HAS_BARRIER> static __global__ void reverse(float *y, const float *x) {
    SMEM(float, s, [256]);
    int t = (int)threadIdx.x;
    s[t] = x[blockIdx.x * 256 + t];
    if (HAS_BARRIER) __syncthreads();
    y[blockIdx.x * 256 + t] = s[255 - t];
}
// Sum of each warp by shuffles, of the block through shared memory in warp order.
static __global__ void block_sum(float *y, const float *x, int n) {
    DYN_SMEM(float, part);
    float v = 0.0f;
    for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x) v += x[i];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.0f;
        for (int w = 0; w < (int)blockDim.x / 32; w++) sum += part[w];
        *y = sum;
    }
}
// Half of the threads wait for a barrier that the others never reach.
static __global__ void divergent(float *y) {
    if (threadIdx.x < 40) __syncthreads();
    __syncwarp();
    y[threadIdx.x] = 1.0f;
    if (threadIdx.x < 10) __syncthreads();
}
static __global__ void bad_mask(int *y) {
    y[threadIdx.x] = __shfl_sync(0xFFFEu, (int)threadIdx.x, 1);
}
// Rank of each lane among the lanes with the same key.
static __global__ void same_key(int *y, const int *key) {
    int t = (int)threadIdx.x;
    uint32_t same = __match_any_sync(~0u, key[t]);
    y[t] = __popc(same & ((1u << (t & 31)) - 1));
}
// One SMEM variable is written by the first block only: the second must not see its values.
static __global__ void stale(float *y) {
    SMEM(float, s, [1]);
    if (blockIdx.x == 0) s[0] = 1.0f;
    __syncthreads();
    y[blockIdx.x] = s[0];
}

extern "C" {
void probe_reverse(float *y, const float *x, int blocks, bool has_barrier) {
    if (has_barrier)
        LAUNCH((reverse<true>), dim3((unsigned)blocks), dim3(256), 0, 0, y, x);
    else
        LAUNCH((reverse<false>), dim3((unsigned)blocks), dim3(256), 0, 0, y, x);
}
void probe_sum(float *y, const float *x, int n, int threads) {
    LAUNCH(block_sum, dim3(1), dim3((unsigned)threads), (size_t)threads / 32 * 4, 0, y, x, n);
}
void probe_divergent(float *y) {
    LAUNCH(divergent, dim3(1), dim3(64), 0, 0, y);
}
void probe_bad_mask(int *y) {
    LAUNCH(bad_mask, dim3(1), dim3(32), 0, 0, y);
}
void probe_same_key(int *y, const int *key) {
    LAUNCH(same_key, dim3(1), dim3(64), 0, 0, y, key);
}
void probe_unasked(float *y) {
    LAUNCH(stale, dim3(1), dim3(32), (48 << 10) + 4, 0, y);
}
void probe_stale(float *y) {
    LAUNCH(stale, dim3(2), dim3(32), 0, 0, y);
}
}
