// ptx.h - the instructions that CUDA C has no name for. Of Hopper: bulk tensor copies (TMA), mbarriers, warpgroup
// matrix products (wgmma), stmatrix, named barriers, register hand-over. Of sm_80 and later: matrix products of one
// warp, ldmatrix, asynchronous copies.
//
// Device only, one instruction each, nothing decided here. g++ reads tests/cuda/tc.h instead, which gives the same
// names their meaning on the CPU: what is added here is added there. Names follow what an instruction is for, not
// its spelling. PTX ISA 8.0 and later, sm_90a; from copy_async16 on sm_80, mma_e4m3 sm_89.
//
//   mbar_*       barriers in shared memory that count arrivals and bytes
//   tma_*        box of a tensor <-> shared memory; coordinates in elements, innermost first
//   wgmma_*      D [64,N] f32 in registers += A [64,K] B [N,K]^T, E4M3 (K = 32) or BF16 (16) in shared memory, K-major
//   proxy_fence  makes ordinary stores to shared memory visible to tma_store and wgmma; every writing thread calls it
//   copy_async*  global to shared memory by one thread, there once it has waited for the group
//   ldmatrix*    8x8 matrices of 16-bit elements from shared memory to the fragments of a warp
//   mma_*        D [16,8] f32 in registers of a warp += A [16,K] B [8,K]^T in registers
#pragma once
#if !defined(__CUDACC__)
#include "tc.h"
#else
#include <cuda.h>
#include <cuda_bf16.h>
#include <stdint.h>

typedef CUtensorMap TMap;
#define PTX static __device__ __forceinline__
#define UNROLL _Pragma("unroll")

PTX uint32_t smem_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// mbar_init: a barrier whose phases end after `arrivals` arrivals and all expected bytes. One thread; then
// mbar_init_fence by the same thread, then block_sync.
PTX void mbar_init(uint64_t *bar, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)), "r"(arrivals) : "memory");
}
PTX void mbar_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
PTX void mbar_arrive(uint64_t *bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(bar)) : "memory");
}
// mbar_expect: one arrival, and `bytes` more to come before the phase can end.
PTX void mbar_expect(uint64_t *bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(bar)), "r"(bytes)
                 : "memory");
}
// mbar_wait: until the phase of this parity has ended. A barrier starts in phase 0: waiting for parity 1 returns at
// once. With PTX_WAIT_LIMIT (cycles) a wait that takes longer traps, so that a hang becomes an error.
PTX void mbar_wait(uint64_t *bar, uint32_t parity) {
#ifdef PTX_WAIT_LIMIT
    long long start = clock64();
    for (uint32_t done = 0; !done;) {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(smem_address(bar)), "r"(parity)
                     : "memory");
        if (!done && clock64() - start > PTX_WAIT_LIMIT) __trap();
    }
#else
    asm volatile("{\n.reg .pred p;\n"
                 "WAIT_%=:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE_%=;\n"
                 "bra WAIT_%=;\n"
                 "DONE_%=:\n}" ::"r"(smem_address(bar)),
                 "r"(parity)
                 : "memory");
#endif
}

PTX void tma_prefetch(const TMap *m) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory");
}
// tma_load: the box at (x, y, z) into shared memory; its bytes count on bar. Elements outside the tensor are 0 and
// count as well.
PTX void tma_load(void *dst, const TMap *m, uint64_t *bar, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(smem_address(dst)),
                 "l"(m), "r"(smem_address(bar)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
// tma_store, tma_store_add: shared memory to the box at (x, y, z), or added to it in FP32; what lies outside the
// tensor is left alone. tma_store_commit ends a group; tma_store_wait_read: the groups of this thread have read
// shared memory; tma_store_wait: they are complete.
PTX void tma_store(const TMap *m, const void *src, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(m),
                 "r"(smem_address(src)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
PTX void tma_store_add(const TMap *m, const void *src, int x, int y, int z) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group "
                 "[%0, {%2, %3, %4}], [%1];" ::"l"(m),
                 "r"(smem_address(src)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
PTX void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
PTX void tma_store_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
PTX void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
PTX void proxy_fence() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// block_sync: __syncthreads. warp_sync: __syncwarp. named_sync: a barrier of `THREADS` threads, ID 1..15.
PTX void block_sync() {
    __syncthreads();
}
PTX void warp_sync() {
    __syncwarp();
}
template <int ID, int THREADS> PTX void named_sync() {
    static_assert(ID > 0 && ID < 16 && THREADS % 32 == 0, "a named barrier is shared by whole warps");
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}
// regs_drop, regs_take: registers per thread from here on, multiples of 8. All warps of a warpgroup call it.
template <int N> PTX void regs_drop() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> PTX void regs_take() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

// wgmma_desc: descriptor of a K-major tile with rows of 128 bytes in the 128-byte swizzle, 8 rows every 1024 bytes.
// The tile starts at a multiple of 1024; add WGMMA_STEP for the next 32 elements of the contraction.
enum { WGMMA_STEP = 32 >> 4 };
PTX uint64_t wgmma_desc(const void *tile) {
    uint64_t at = (smem_address(tile) & 0x3FFFF) >> 4;
    return at | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
// wgmma_fence: before the first wgmma after ordinary code has touched d. wgmma_wait: all committed products are in d.
// Both name d, so that the compiler moves no access to it across.
template <int R> PTX void wgmma_hold(float (&d)[R]) {
    UNROLL
    for (int i = 0; i < R; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int R> PTX void wgmma_fence(float (&d)[R]) {
    wgmma_hold(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
PTX void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int R> PTX void wgmma_wait(float (&d)[R]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    wgmma_hold(d);
}

// wgmma_e4m3: d = (is_added ? d : 0) + A B^T of 32 elements. N = 2 R. Thread t of the warpgroup, warp w, lane l:
// d[4j + i] is row 16w + l/4 + (i >= 2 ? 8 : 0), column 8j + 2(l%4) + i%2.
#define PTX_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_F16(i) PTX_F4(i), PTX_F4(i + 4), PTX_F4(i + 8), PTX_F4(i + 12)
#define PTX_R0                                                                                     \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28," \
    "%29,%30,%31"
#define PTX_R32                                                                                    \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
    "%59,%60,%61,%62,%63"
#define PTX_R64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75"
#define PTX_R76 ",%76,%77,%78,%79"
#define PTX_R80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define PTX_WGMMA(N, REGS, A, B, P, ...)                                                           \
    PTX void wgmma_e4m3(float(&d)[N / 2], uint64_t a, uint64_t b, bool is_added) {                 \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                \
                     "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" REGS "}, " A ", " B  \
                     ", p, 1, 1;\n}"                                                               \
                     : __VA_ARGS__                                                                 \
                     : "l"(a), "l"(b), "r"((int)is_added));                                        \
    }
PTX_WGMMA(64, PTX_R0, "%32", "%33", "%34", PTX_F16(0), PTX_F16(16))
PTX_WGMMA(128, PTX_R0 PTX_R32, "%64", "%65", "%66", PTX_F16(0), PTX_F16(16), PTX_F16(32), PTX_F16(48))
PTX_WGMMA(152, PTX_R0 PTX_R32 PTX_R64, "%76", "%77", "%78", PTX_F16(0), PTX_F16(16), PTX_F16(32), PTX_F16(48),
          PTX_F4(64), PTX_F4(68), PTX_F4(72))
PTX_WGMMA(160, PTX_R0 PTX_R32 PTX_R64 PTX_R76, "%80", "%81", "%82", PTX_F16(0), PTX_F16(16), PTX_F16(32),
          PTX_F16(48), PTX_F16(64))
PTX_WGMMA(192, PTX_R0 PTX_R32 PTX_R64 PTX_R76 PTX_R80, "%96", "%97", "%98", PTX_F16(0), PTX_F16(16), PTX_F16(32),
          PTX_F16(48), PTX_F16(64), PTX_F16(80))
#undef PTX_WGMMA

// wgmma_bf16: the same of 16 elements of BF16; a K-major tile has 64 of them in its 128 bytes. wgmma_bf16_left: A in
// registers, a[i] as for mma_bf16 with the warp's 16 rows of d; B turned: a tile of rows of the contraction, 64 columns
// in 128 bytes, further panels of 64 columns `panel` bytes apart (wgmma_desc_turned); add WGMMA_ROWS_16 for 16 more.
enum { WGMMA_ROWS_16 = 16 * 128 >> 4 };
PTX uint64_t wgmma_desc_turned(const void *tile, uint32_t panel) {
    uint64_t at = (smem_address(tile) & 0x3FFFF) >> 4;
    return at | (uint64_t)(panel >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
PTX void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool is_added) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PTX_R0 PTX_R32 "}, %64, %65, "
                 "p, 1, 1, 0, 0;\n}"
                 : PTX_F16(0), PTX_F16(16), PTX_F16(32), PTX_F16(48)
                 : "l"(a), "l"(b), "r"((int)is_added));
}
PTX void wgmma_bf16_left(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool is_added) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PTX_R0 PTX_R32 "}, "
                 "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
                 : PTX_F16(0), PTX_F16(16), PTX_F16(32), PTX_F16(48)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)is_added));
}

// Stores to shared memory that tma_store or wgmma will read.
PTX void st_shared2(float *p, float x, float y) {
    *(float2 *)p = make_float2(x, y);
}
PTX void st_shared16(void *p, uint4 v) {
    *(uint4 *)p = v;
}
// stmatrix4: four 8x8 matrices of 16-bit elements. Lane l gives the address of row l%8 of matrix l/8, 16 bytes, and in
// r_m the elements 2(l%4), +1 of row l/4 of matrix m.
PTX void stmatrix4(void *row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(row)), "r"(r0),
                 "r"(r1), "r"(r2), "r"(r3)
                 : "memory");
}
PTX uint32_t pack_bf16(float low, float high) {
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
// fma_rn: x * y + z, rounded once, whatever the compiler's flags.
PTX float fma_rn(float x, float y, float z) {
    return __fmaf_rn(x, y, z);
}

// copy_async16, copy_async4: 16 (past L1) or 4 bytes, aligned so, from global to shared memory; zeros, and src is not
// read, if !is_there. copy_async_commit ends a group of this thread's copies; copy_async_wait<LEFT>: all its groups but
// the last LEFT are there, for this thread; for others after a barrier.
PTX void copy_async16(void *dst, const void *src, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(dst)),
                 "l"(__cvta_generic_to_global(src)), "r"(is_there ? 16 : 0)
                 : "memory");
}
PTX void copy_async4(void *dst, const void *src, bool is_there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_address(dst)),
                 "l"(__cvta_generic_to_global(src)), "r"(is_there ? 4 : 0)
                 : "memory");
}
PTX void copy_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int LEFT> PTX void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// ldmatrix1, 2, 4: that many 8x8 matrices. Lane l gives the address of row l%8 of matrix l/8 (16 bytes, aligned); r[m]
// gets the elements 2(l%4), +1 of row l/4 of matrix m. _turned: of column l/4, rows 2(l%4), +1. All lanes of the warp.
#define PTX_LDMATRIX(NAME, SHAPE, R, LIST, ROW, ...)                                                \
    PTX void NAME(R, const void *row) {                                                            \
        asm volatile("ldmatrix.sync.aligned.m8n8." SHAPE ".shared.b16 {" LIST "}, [" ROW "];"       \
                     : __VA_ARGS__                                                                 \
                     : "r"(smem_address(row))                                                      \
                     : "memory");                                                                  \
    }
#define PTX_R2 "=r"(r[0]), "=r"(r[1])
#define PTX_R4 PTX_R2, "=r"(r[2]), "=r"(r[3])
PTX_LDMATRIX(ldmatrix1, "x1", uint32_t &r, "%0", "%1", "=r"(r))
PTX_LDMATRIX(ldmatrix2, "x2", uint32_t (&r)[2], "%0, %1", "%2", PTX_R2)
PTX_LDMATRIX(ldmatrix4, "x4", uint32_t (&r)[4], "%0, %1, %2, %3", "%4", PTX_R4)
PTX_LDMATRIX(ldmatrix1_turned, "x1.trans", uint32_t &r, "%0", "%1", "=r"(r))
PTX_LDMATRIX(ldmatrix2_turned, "x2.trans", uint32_t (&r)[2], "%0, %1", "%2", PTX_R2)
PTX_LDMATRIX(ldmatrix4_turned, "x4.trans", uint32_t (&r)[4], "%0, %1, %2, %3", "%4", PTX_R4)
#undef PTX_LDMATRIX

// mma_bf16 (K = 16, sm_80), mma_e4m3 (K = 32, sm_89). Lane l, E elements side by side along k in a register (2, 4):
//   d[0], d[1]  row l/4, columns 2(l%4), +1; d[2], d[3] of row l/4 + 8
//   a[i]        row l/4 + 8(i%2), k = E(l%4) + 4E(i/2) ..
//   b0, b1      column l/4, k = E(l%4) .., and 4E more
// so that two d of neighbouring columns, rounded in pairs, are an a of mma_bf16. All lanes of the warp.
#define PTX_MMA(NAME, SHAPE)                                                                       \
    PTX void NAME(float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) {                 \
        asm volatile("mma.sync.aligned." SHAPE " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                              \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));              \
    }
PTX_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
PTX_MMA(mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32")
#undef PTX_MMA

// exp2_fast: 2^x, relative error below 2^-22; results below 2^-126 are 0; exactly 0 for -infinity and 1 for 0.
PTX float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif
