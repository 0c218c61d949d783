// rows_cuda.h - what the CUDA kernels of all families share: elements of F32 or BF16 matrices, sums in a fixed order,
// groups of rows, counters. Private to kernels/*_cuda.cu, which include it first: it brings the C headers in.
//
// Sums have one order whatever the schedule: a thread adds its own elements in ascending order, a warp adds by
// halves, warps are added in ascending order. There are no floating-point atomics.
#pragma once
#include "cuda_launch.h"
#include "fp8.h"

#define DEV static __device__ __forceinline__
#define WARP_ALL 0xFFFFFFFFu
#define ROW_BLOCK 128   // rows that share one partial sum, as on the CPU
#define ROW_LANES 16    // lanes of a sum in the CPU's order
#define ROW_THREADS 256 // threads of a block that works on one row

// CUDA_MAT: the contract of a matrix argument: R rows, C columns, F32 or BF16.
static inline bool mat_is(Mat m, int64_t R, int64_t C) {
    return (m.t == DT_F32 || m.t == DT_BF16) && m.rows == R && m.cols == C && (m.ld >= m.cols || m.rows <= 1);
}
#define CUDA_MAT(m, R, C)                                                                          \
    CHECK(mat_is(m, R, C), E_INTERNAL,                                                             \
          "%s: " #m " is %s [%lld, %lld], ld %lld; expected f32 or bf16 [%lld, %lld]", __func__,   \
          dtype_name((m).t), (long long)(m).rows, (long long)(m).cols, (long long)(m).ld,          \
          (long long)(R), (long long)(C))

// blocks_for: blocks of `per` elements that cover n, as a grid size.
static inline dim3 blocks_for(int64_t n, int64_t per) {
    return dim3((unsigned)ceil_div(n, per));
}

// blocks_at_once: blocks that loop over n pieces of work: no more than `per_sm` for each multiprocessor, so that all of
// them run at the same time.
static inline dim3 blocks_at_once(int64_t n, int per_sm) {
    static int multiprocessors;
    int device = 0;
    if (multiprocessors == 0 && (cudaGetDevice(&device) != cudaSuccess ||
                                 cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
                                     cudaSuccess))
        multiprocessors = 132;
    int64_t most = (int64_t)multiprocessors * per_sm;
    return dim3((unsigned)(n < most ? n : most));
}

// shared_most: bytes of shared memory that a block of this device can have for the asking: 227 KiB with compute
// capability 9.0, 163 with 8.0, 99 with 8.6, 8.9 and 12.0.
static inline size_t shared_most(void) {
    int device = 0, bytes = 0;
    bool is_known = cudaGetDevice(&device) == cudaSuccess &&
                    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
    return is_known ? (size_t)bytes : (size_t)48 << 10;
}

// rows16: elements c .. c + 15 of a row as floats, n of them; what lies beyond is 0. In 16-byte loads where the address
// allows it. put16: the same elements, each rounded once.
DEV void rows16(float *v, Mat m, int64_t r, int64_t c, int n) {
    if (m.t == DT_BF16) {
        const uint16_t *from = (const uint16_t *)m.p + r * m.ld + c;
        if (n >= 16 && (uintptr_t)from % 16 == 0) {
            for (int k = 0; k < 2; k++) {
                uint4 w = ((const uint4 *)from)[k];
                uint32_t part[4] = {w.x, w.y, w.z, w.w};
                for (int i = 0; i < 4; i++) {
                    v[8 * k + 2 * i] = f32_from_bits(part[i] << 16);
                    v[8 * k + 2 * i + 1] = f32_from_bits(part[i] & 0xFFFF0000u);
                }
            }
        } else {
            for (int i = 0; i < 16; i++) v[i] = i < n ? f32_from_bf16(from[i]) : 0.0f;
        }
        return;
    }
    const float *from = (const float *)m.p + r * m.ld + c;
    if (n >= 16 && (uintptr_t)from % 16 == 0) {
        for (int k = 0; k < 4; k++) {
            float4 w = ((const float4 *)from)[k];
            v[4 * k] = w.x, v[4 * k + 1] = w.y, v[4 * k + 2] = w.z, v[4 * k + 3] = w.w;
        }
    } else {
        for (int i = 0; i < 16; i++) v[i] = i < n ? from[i] : 0.0f;
    }
}
DEV void put16(Mat m, int64_t r, int64_t c, int n, const float *v) {
    if (m.t == DT_BF16) {
        uint16_t *to = (uint16_t *)m.p + r * m.ld + c;
        if (n >= 16 && (uintptr_t)to % 16 == 0) {
            for (int k = 0; k < 2; k++) {
                uint32_t w[4];
                for (int i = 0; i < 4; i++) {
                    w[i] = bf16_from_f32(v[8 * k + 2 * i]);
                    w[i] |= (uint32_t)bf16_from_f32(v[8 * k + 2 * i + 1]) << 16;
                }
                ((uint4 *)to)[k] = uint4{w[0], w[1], w[2], w[3]};
            }
        } else {
            for (int i = 0; i < 16; i++)
                if (i < n) to[i] = bf16_from_f32(v[i]);
        }
        return;
    }
    float *to = (float *)m.p + r * m.ld + c;
    if (n >= 16 && (uintptr_t)to % 16 == 0) {
        for (int k = 0; k < 4; k++) ((float4 *)to)[k] = float4{v[4 * k], v[4 * k + 1], v[4 * k + 2], v[4 * k + 3]};
    } else {
        for (int i = 0; i < 16; i++)
            if (i < n) to[i] = v[i];
    }
}

// row_value / row_store: element (r, c) as float; stored with one rounding.
DEV float row_value(Mat m, int64_t r, int64_t c) {
    if (m.t == DT_F32) return ((const float *)m.p)[r * m.ld + c];
    return f32_from_bf16(((const uint16_t *)m.p)[r * m.ld + c]);
}
DEV void row_store(Mat m, int64_t r, int64_t c, float v) {
    if (m.t == DT_F32)
        ((float *)m.p)[r * m.ld + c] = v;
    else
        ((uint16_t *)m.p)[r * m.ld + c] = bf16_from_f32(v);
}

// each16: f(row, column, how many) for 16 neighbouring elements at a time, by a loop of all threads of all blocks;
// each16_blocks: as many blocks as run at once. Errors: E_INTERNAL for more than 2^31 pieces.
template <class F> DEV void each16(int64_t rows, int64_t cols, F f) {
    uint32_t per_row = (uint32_t)((cols + 15) / 16), all = (uint32_t)rows * per_row;
    for (uint32_t i = blockIdx.x * ROW_THREADS + threadIdx.x; i < all; i += gridDim.x * ROW_THREADS) {
        int64_t r = i / per_row, c = i % per_row * 16;
        f(r, c, (int)(cols - c < 16 ? cols - c : 16));
    }
}
static inline Err each16_blocks(const char *op, int64_t rows, int64_t cols, dim3 *blocks) {
    int64_t n = rows * ceil_div(cols, 16);
    CHECK(n < INT32_MAX - 65536, E_INTERNAL, "%s: [%lld, %lld] elements", op, (long long)rows, (long long)cols);
    *blocks = blocks_at_once(ceil_div(n, ROW_THREADS), 2048 / ROW_THREADS);
    return OK;
}

// warp_sum / warp_max: over the 32 lanes, by halves; every lane gets the result.
template <class T> DEV T warp_sum(T v) {
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(WARP_ALL, v, d);
    return v;
}
template <class T> DEV T warp_max(T v) {
    for (int d = 16; d > 0; d /= 2) {
        T other = __shfl_xor_sync(WARP_ALL, v, d);
        v = other > v ? other : v;
    }
    return v;
}
// block_sum: over all threads of the block (full warps only); every thread gets the result. room: one T per warp in
// shared memory; it may be used again after the next barrier.
template <class T> DEV T block_sum(T v, T *room) {
    int warps = (int)blockDim.x / 32;
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    T sum = room[0];
    for (int w = 1; w < warps; w++) sum += room[w];
    __syncthreads();
    return sum;
}
template <class T> DEV T block_max(T v, T *room) {
    int warps = (int)blockDim.x / 32;
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = v;
    __syncthreads();
    T most = room[0];
    for (int w = 1; w < warps; w++) most = room[w] > most ? room[w] : most;
    __syncthreads();
    return most;
}
// warp_sum16: sum of n values in the order of the CPU backend: element i goes to lane i % 16, lanes are added by
// halves. f(i) gives element i. All 32 lanes call it and get the result.
template <class F> DEV float warp_sum16(int64_t n, F f) {
    int lane = (int)(threadIdx.x % 32);
    float s = 0.0f;
    if (lane < ROW_LANES)
        for (int64_t i = lane; i < n; i += ROW_LANES) s += f(i);
    for (int d = ROW_LANES / 2; d > 0; d /= 2) s += __shfl_xor_sync(WARP_ALL, s, d);
    return __shfl_sync(WARP_ALL, s, 0);
}

// Where a tile of rows lies: group e, its rows [row, row + rows) of the matrix, and the number of the group's first
// tile among the tiles of all groups. rows == 0: past the last tile.
typedef struct GroupTile {
    int64_t e, row, rows, first;
} GroupTile;

// fault_report: what only the device can see to be wrong (device.h); the first one stays.
DEV void fault_report(DeviceFault *fault, FaultCode code, int64_t value, int64_t at, int64_t limit) {
    if (atomicCAS((int *)&fault->code, (int)FAULT_NONE, (int)code) != FAULT_NONE) return;
    fault->value = value;
    fault->at = at;
    fault->limit = limit;
}
// group_is_bad: whether group e leaves the matrix; reported.
DEV bool group_is_bad(Groups g, int64_t e, int64_t all_rows, DeviceFault *fault) {
    int64_t start = g.start[e], count = g.count[e];
    if (start >= 0 && count >= 0 && start + count <= all_rows) return false;
    fault_report(fault, FAULT_GROUP, start + count, e, all_rows);
    return true;
}

// group_tile: the t-th tile of `size` rows, tiles starting anew in each group; g.n == 0: one group of all rows. A
// group outside of the matrix is reported and ends the list. Whole warps, t the same in all lanes: 32 groups are looked
// at together.
DEV GroupTile group_tile(Groups g, int64_t all_rows, int64_t size, int64_t t, DeviceFault *fault) {
    GroupTile at = {0, t * size, 0, 0};
    if (g.n == 0) {
        if (at.row < all_rows) at.rows = all_rows - at.row < size ? all_rows - at.row : size;
        return at;
    }
    int lane = (int)(threadIdx.x % 32);
    for (int64_t base = 0; base < g.n; base += 32) {
        int64_t e = base + lane, start = 0, count = 0;
        if (e < g.n) start = g.start[e], count = g.count[e];
        uint32_t bad = __ballot_sync(WARP_ALL, start < 0 || count < 0 || start + count > all_rows);
        int good = bad ? __ffs((int)bad) - 1 : 32; // lanes before the first bad group
        int64_t tiles = lane < good ? (count + size - 1) / size : 0, end = tiles;
        for (int d = 1; d < 32; d *= 2) {
            int64_t before = __shfl_up_sync(WARP_ALL, end, d);
            if (lane >= d) end += before;
        }
        end += at.first;
        uint32_t hit = __ballot_sync(WARP_ALL, t >= end - tiles && t < end);
        if (hit) {
            int from = __ffs((int)hit) - 1;
            at.e = base + from;
            at.first = __shfl_sync(WARP_ALL, end - tiles, from);
            start = __shfl_sync(WARP_ALL, start, from);
            count = __shfl_sync(WARP_ALL, count, from);
            int64_t i = (t - at.first) * size;
            at.row = start + i;
            at.rows = count - i < size ? count - i : size;
            return at;
        }
        if (bad) {
            if (lane == good) group_is_bad(g, e, all_rows, fault);
            return at;
        }
        at.first = __shfl_sync(WARP_ALL, end, 31);
    }
    return at;
}
// group_tiles_most: an upper bound of the tiles, for the grid: group sizes are only known on the device.
static inline int64_t group_tiles_most(Groups g, int64_t rows, int64_t size) {
    return ceil_div(rows, size) + (g.n > 0 ? g.n : 0);
}

// count_add: add to a counter in the memory of the device. Integers, so the order is free.
DEV void count_add(int64_t *counter, int64_t n) {
    if (n) atomicAdd((unsigned long long *)counter, (unsigned long long)n);
}
// count_most: raise a counter to n, n >= 0.
DEV void count_most(int32_t *counter, int32_t n) {
    if (n) atomicMax((int *)counter, (int)n);
}
