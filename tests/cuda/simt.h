// simt.h - runs CUDA kernels on the CPU: one fiber per CUDA thread, blocks one after the other.
//
// kernels/cuda_launch.h includes this file instead of the CUDA runtime where g++ compiles a .cu file. threadIdx and
// its like, shared memory, barriers, warp shuffles and votes, atomics and LAUNCH are given their meaning here; a
// kernel's body is the same text for nvcc and for this header.
//
// What it catches: a missing barrier (results differ between the thread orders), a divergent barrier (a report that
// names kernel, block, threads and the primitive they wait in), out of bounds shared memory (with ASan), reads of
// shared memory that nobody wrote (it is filled with 0xFF, which is NaN, before every block), lanes missing from a
// warp mask, a launch with more shared memory than was asked for. What it cannot show: weak memory order, bank
// conflicts, register limits, real PTX.
//
// Thread orders (simt::schedule): 0 forward, 1 reverse, 2 shuffled anew in every round, 3 random priorities of the
// warps, so that some starve until the others wait. Run every kernel test under all four and several seeds.
#pragma once
#include <cuda_runtime_api.h>
#include <functional>
#include <map>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <tuple>
#include <type_traits>
#include <vector_types.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __grid_constant__
#define __shared__ "use SMEM or DYN_SMEM"
#define __constant__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (simt::cur->tid)
#define blockIdx (simt::blk.bid)
#define blockDim (simt::blk.bdim)
#define gridDim (simt::blk.gdim)
#define warpSize 32
// LAUNCH(kernel, grid, block, bytes of dynamic shared memory, stream, arguments...): the arguments are what they are
// now, whenever the stream gets to it.
#define LAUNCH(k, grid, block, smem, stream, ...)                                                  \
    do {                                                                                           \
        auto kernel_ = [=](const auto &...a) { k(a...); };                                         \
        simt::check_shared(#k, (const void *)(k), (size_t)(smem));                                 \
        simt::issue((void *)(stream),                                                              \
                    [kernel_, args = std::make_tuple(__VA_ARGS__), grid_ = dim3(grid),             \
                     block_ = dim3(block), smem_ = (size_t)(smem)] {                               \
                        simt::launch(#k, grid_, block_, smem_, [&] { std::apply(kernel_, args); }); \
                    });                                                                            \
    } while (0)
// DYN_SMEM(T, name): the dynamic shared memory as a pointer to T, aligned to 1024 bytes.
#define DYN_SMEM(T, name) T *name = reinterpret_cast<T *>(simt::blk.dyn)
// SMEM(T, name, dims): `__shared__ T name dims`, dims may be empty.
#define SMEM(T, name, ...)                                                                         \
    struct name##_smem {                                                                           \
        T v __VA_ARGS__;                                                                           \
    };                                                                                             \
    auto &name = simt::shared<name##_smem>().v

namespace simt {

constexpr int MAX_THREADS = 1024;     // of a block
constexpr int MASKS = 8;              // different warp masks in use at once in one warp
constexpr size_t STACK = 64 << 10;    // bytes of a fiber's stack
constexpr size_t DYN_LIMIT = 232448;  // dynamic shared memory of a block on Hopper (227 KiB)
constexpr size_t DYN_FREE = 48 << 10; // what a kernel may have without asking (cudaFuncSetAttribute)

struct Fiber {
    void *sp;             // saved stack pointer
    uint3 tid;            // threadIdx
    int lin;              // linear thread index
    bool done;            // its kernel returned
    const uint64_t *wgen; // it waits until *wgen differs from wval; NULL: it can run
    uint64_t wval;
    const char *where; // the primitive it waits in
    void *fake;        // ASan's fake stack
};
// Lanes that meet under one mask. Two sets of values: a fast lane may post the next value before a slow one has read.
struct WarpMeet {
    uint32_t mask, arrived;
    const char *where; // the primitive they meet in
    uint64_t gen;
    uint64_t val[2][32];
};
struct Warp {
    WarpMeet meet[MASKS];
    uint32_t live; // lanes that have not returned
};
struct Block {
    uint3 bid;
    dim3 bdim, gdim;
    unsigned char *dyn;   // dynamic shared memory
    size_t dyn_bytes;
    int live, arrived;    // threads that have not returned; threads in __syncthreads
    uint64_t gen;         // barriers passed
    uint64_t serial;      // counts blocks ever run: statics of SMEM are poisoned when it moves on
    int acc[3], res[3];   // count, and, or of the predicates of the barrier: gathering, last result
    const char *kernel;
};

inline thread_local Fiber *cur;
inline thread_local Fiber fibers[MAX_THREADS];
inline thread_local Warp warps[MAX_THREADS / 32];
inline thread_local Block blk;
inline thread_local void *main_sp;
inline thread_local void *main_fake;
inline thread_local const void *main_bottom;
inline thread_local size_t main_size;
inline thread_local char *stacks;
inline thread_local void (*body)(void *);
inline thread_local void *body_arg;

inline int order = 0;
inline uint64_t rng = 88172645463325252ull;
inline uint64_t launches = 0; // since the start of the program
inline uint64_t switches = 0;

inline bool is_rotating = false;
inline void (*device_memory)(bool is_open) = nullptr; // opens and closes the device's memory around a launch

// schedule: the thread order of the launches that follow, and the seed of the random ones. Order -1: every launch
// takes the next order.
inline void schedule(int new_order, uint64_t seed) {
    is_rotating = new_order < 0;
    order = is_rotating ? 0 : new_order;
    rng = (seed + 1) * 0x9E3779B97F4A7C15ull;
}
inline uint64_t random_below(uint64_t n) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng % n;
}

#if defined(__x86_64__)
// simt_switch: save the callee-saved registers and the stack pointer, continue on another stack.
extern "C" void simt_switch(void **save, void *to);
asm(".pushsection .text.simt_switch,\"axG\",@progbits,simt_switch,comdat\n"
    ".weak simt_switch\n"
    ".type simt_switch,@function\n"
    "simt_switch:\n"
    "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
    "mov %rsp,(%rdi); mov %rsi,%rsp\n"
    "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp; ret\n"
    ".popsection\n");
#else
#error "simt.h switches stacks with x86-64 instructions"
#endif

// die: end the program with the kernel, the block and the first threads that have not finished.
[[noreturn]] inline void die(const char *message) {
    fprintf(stderr, "simt: %s in %s block (%u,%u,%u)", message, blk.kernel, blk.bid.x, blk.bid.y, blk.bid.z);
    int threads = (int)(blk.bdim.x * blk.bdim.y * blk.bdim.z);
    for (int i = 0, shown = 0; i < threads && shown < 4; i++) {
        if (fibers[i].done) continue;
        fprintf(stderr, " t%d@%s", i, fibers[i].where ? fibers[i].where : "run");
        shown++;
    }
    fputc('\n', stderr);
    abort();
}

inline void to_main(bool is_dying) {
    Fiber *f = cur;
    (void)is_dying;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(is_dying ? nullptr : &f->fake, main_bottom, main_size);
#endif
    simt_switch(&f->sp, main_sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(f->fake, &main_bottom, &main_size);
#endif
}

// wait: the calling thread sleeps until *gen changes. `where` is for reports.
inline void wait(const uint64_t *gen, const char *where) {
    Fiber *f = cur;
    f->wgen = gen;
    f->wval = *gen;
    f->where = where;
    to_main(false);
    f->wgen = nullptr;
    f->where = nullptr;
}

inline void barrier_release() {
    for (int i = 0; i < 3; i++) blk.res[i] = blk.acc[i];
    blk.acc[0] = 0;
    blk.acc[1] = 1;
    blk.acc[2] = 0;
    blk.arrived = 0;
    blk.gen++;
}
inline void barrier(int predicate, const char *where) {
    blk.acc[0] += predicate != 0;
    blk.acc[1] &= predicate != 0;
    blk.acc[2] |= predicate != 0;
    if (++blk.arrived == blk.live)
        barrier_release();
    else
        wait(&blk.gen, where);
}

// The mutant: SIMT_SKIP=file:line in the environment makes one __syncthreads of the kernels do nothing, so that a
// test can show that the tests miss it.
struct Skip {
    char file[256];
    int line;
};
inline Skip read_skip() {
    Skip s = {"", -1};
    const char *text = getenv("SIMT_SKIP"), *colon = text ? strrchr(text, ':') : nullptr;
    if (!colon) return s;
    snprintf(s.file, sizeof s.file, "%.*s", (int)(colon - text), text);
    s.line = atoi(colon + 1);
    return s;
}
inline Skip skip = read_skip();
inline void barrier_at(const char *file, int line) {
    if (line == skip.line && strstr(file, skip.file)) return;
    barrier(0, "__syncthreads");
}

// entry: where every fiber starts. A thread that returns no longer counts for the barriers.
inline void entry() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &main_bottom, &main_size);
#endif
    body(body_arg);
    Fiber *f = cur;
    f->done = true;
    warps[f->lin >> 5].live &= ~(1u << (f->lin & 31));
    if (--blk.live && blk.arrived == blk.live) barrier_release();
    to_main(true);
    abort();
}

inline uint32_t lanes_of(int warp) {
    int left = (int)(blk.bdim.x * blk.bdim.y * blk.bdim.z) - warp * 32;
    return left >= 32 ? ~0u : (1u << left) - 1;
}

// meet_with: every lane of the mask posts v; the last to come runs all_there(the 32 posted values) while the others
// still wait, then all go on. Returns the values. Lanes that meet wait in the same primitive.
template <class F> const uint64_t *meet_with(uint32_t mask, uint64_t v, const char *where, F &&all_there) {
    Fiber *f = cur;
    Warp &w = warps[f->lin >> 5];
    int lane = f->lin & 31;
    if (!(mask >> lane & 1)) die("lane not in its own mask");
    mask &= lanes_of(f->lin >> 5);
    if ((mask & w.live) != mask) die("mask names an exited lane");
    WarpMeet *m = nullptr;
    for (auto &c : w.meet)
        if (c.mask == mask) {
            m = &c;
            break;
        }
    if (!m)
        for (auto &c : w.meet)
            if (!c.arrived) {
                m = &c;
                c.mask = mask;
                break;
            }
    if (!m) die("too many warp masks at once");
    if (m->arrived && m->where != where && strcmp(m->where, where) != 0) {
        f->where = where;
        die("lanes of a warp in different primitives");
    }
    m->where = where;
    uint64_t *slot = m->val[m->gen & 1];
    slot[lane] = v;
    m->arrived |= 1u << lane;
    if (m->arrived == mask) {
        all_there((const uint64_t *)slot);
        m->arrived = 0;
        m->gen++;
    } else {
        wait(&m->gen, where);
    }
    return slot;
}
// meet: every lane of the mask posts v; returns the 32 posted values when all have.
inline const uint64_t *meet(uint32_t mask, uint64_t v, const char *where) {
    return meet_with(mask, v, where, [](const uint64_t *) {});
}

inline void start_fiber(int i) {
    Fiber &f = fibers[i];
    f.lin = i;
    f.done = false;
    f.wgen = nullptr;
    f.where = nullptr;
    f.fake = nullptr;
    f.tid = uint3{i % blk.bdim.x, i / blk.bdim.x % blk.bdim.y, i / (blk.bdim.x * blk.bdim.y)};
    char *top = stacks + STACK * (size_t)(i + 1);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(top - 2048, 2048); // the frame of the last entry(), which never returned
#endif
    void **sp = (void **)top;
    *--sp = nullptr; // as if called: the stack is 8 bytes off a multiple of 16 at entry
    *--sp = (void *)entry;
    for (int r = 0; r < 6; r++) *--sp = nullptr; // the registers simt_switch pops
    f.sp = sp;
}

inline void resume(Fiber &f) {
    cur = &f;
    switches++;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&main_fake, stacks + STACK * (size_t)f.lin, STACK);
#endif
    simt_switch(&main_sp, f.sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(main_fake, nullptr, nullptr);
#endif
}

inline void swap_int(int *a, int *b) {
    int t = *a;
    *a = *b;
    *b = t;
}
inline void shuffle_threads(int *turn, int threads) {
    for (int i = threads - 1; i > 0; i--) swap_int(&turn[i], &turn[random_below((uint64_t)i + 1)]);
}
// Whole warps change places; the last, if it is not full, stays.
inline void shuffle_warps(int *turn, int threads) {
    for (int i = threads / 32 - 1; i > 0; i--) {
        int j = (int)random_below((uint64_t)i + 1);
        for (int l = 0; l < 32; l++) swap_int(&turn[i * 32 + l], &turn[j * 32 + l]);
    }
}

inline void run_block() {
    static thread_local int turn[MAX_THREADS];
    const int threads = (int)(blk.bdim.x * blk.bdim.y * blk.bdim.z);
    blk.serial++;
    blk.live = threads;
    blk.arrived = 0;
    blk.acc[0] = 0;
    blk.acc[1] = 1;
    blk.acc[2] = 0;
    if (blk.dyn) memset(blk.dyn, 0xFF, blk.dyn_bytes);
    for (int w = 0; w * 32 < threads; w++) {
        warps[w].live = lanes_of(w);
        for (auto &m : warps[w].meet) m.mask = m.arrived = 0;
    }
    for (int i = 0; i < threads; i++) {
        start_fiber(i);
        turn[i] = order == 1 ? threads - 1 - i : i;
    }
    if (order == 3) shuffle_warps(turn, threads);
    while (blk.live) {
        bool has_moved = false;
        if (order == 2) shuffle_threads(turn, threads);
        for (int k = 0; k < threads; k++) {
            Fiber &f = fibers[turn[k]];
            if (f.done || (f.wgen && *f.wgen == f.wval)) continue;
            has_moved = true;
            resume(f);
            if (order == 3) k = -1; // the first in the order that can run goes on
        }
        if (!has_moved && blk.live) die("deadlock (divergent barrier?)");
    }
}

// launch: run a kernel to its end. A bad shape ends the program, as a launch error would.
template <class F> void launch(const char *name, dim3 grid, dim3 block, size_t smem, F &&f) {
    size_t threads = (size_t)block.x * block.y * block.z;
    if (threads == 0 || threads > MAX_THREADS || (size_t)grid.x * grid.y * grid.z == 0 || grid.y > 65535 ||
        grid.z > 65535 || smem > DYN_LIMIT) {
        fprintf(stderr, "simt: %s: grid (%u,%u,%u), block (%u,%u,%u), %zu bytes cannot be launched\n", name, grid.x,
                grid.y, grid.z, block.x, block.y, block.z, smem);
        abort();
    }
    if (!stacks) {
        stacks = (char *)mmap(nullptr, STACK * MAX_THREADS, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) abort();
    }
    if (is_rotating) order = (int)(launches % 4);
    launches++;
    blk.kernel = name;
    blk.gdim = grid;
    blk.bdim = block;
    blk.dyn_bytes = smem;
    blk.dyn = smem ? (unsigned char *)aligned_alloc(1024, (smem + 1023) & ~size_t(1023)) : nullptr;
#if defined(__SANITIZE_ADDRESS__)
    if (blk.dyn) __asan_poison_memory_region(blk.dyn + smem, ((smem + 1023) & ~size_t(1023)) - smem);
#endif
    if (device_memory) device_memory(true);
    body = [](void *p) { (*(std::remove_reference_t<F> *)p)(); };
    body_arg = (void *)&f;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blk.bid = uint3{x, y, z};
                run_block();
            }
#if defined(__SANITIZE_ADDRESS__)
    if (blk.dyn) __asan_unpoison_memory_region(blk.dyn, (smem + 1023) & ~size_t(1023));
#endif
    if (device_memory) device_memory(false);
    free(blk.dyn);
    blk.dyn = nullptr;
}

// What kernels have asked for; the most that this device gives.
inline std::map<const void *, size_t> asked;
inline size_t most_shared = DYN_LIMIT;
// check_shared: a launch with more dynamic shared memory than the kernel has asked for ends the program.
inline void check_shared(const char *name, const void *kernel, size_t smem) {
    auto it = asked.find(kernel);
    if (smem <= DYN_FREE || (it != asked.end() && smem <= it->second)) return;
    fprintf(stderr, "simt: %s: %zu bytes of shared memory, which were not asked for\n", name, smem);
    abort();
}

// issue: run f now, or leave it to what keeps the order of the streams (streams_on_cpu.h), where that is linked.
inline void (*on_stream)(void *stream, const std::function<void()> &f) = nullptr;
template <class F> void issue(void *stream, F &&f) {
    if (on_stream && stream) on_stream(stream, f);
    else f();
}

// shared: the variable of one SMEM declaration. The first thread of a block that comes by fills it with 0xFF.
template <class S> S &shared() {
    alignas(128) static thread_local unsigned char memory[sizeof(S)];
    static thread_local uint64_t serial = 0;
    if (serial != blk.serial) {
        memset(memory, 0xFF, sizeof memory);
        serial = blk.serial;
    }
    return *reinterpret_cast<S *>(memory);
}

template <class T> T shuffle(uint32_t mask, T v, int from, const char *where) {
    static_assert(sizeof(T) <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    const uint64_t *posted = meet(mask, bits, where);
    T r;
    memcpy(&r, &posted[from & 31], sizeof r);
    return r;
}
inline int lane() {
    return cur->lin & 31;
}

} // namespace simt

// Barriers of the block.
#define __syncthreads() simt::barrier_at(__FILE__, __LINE__)
inline int __syncthreads_or(int p) {
    simt::barrier(p, "__syncthreads_or");
    return simt::blk.res[2];
}
inline int __syncthreads_and(int p) {
    simt::barrier(p, "__syncthreads_and");
    return simt::blk.res[1];
}
inline int __syncthreads_count(int p) {
    simt::barrier(p, "__syncthreads_count");
    return simt::blk.res[0];
}
inline void __syncwarp(uint32_t mask = ~0u) {
    simt::meet(mask, 0, "__syncwarp");
}

// Shuffles and votes of the warp.
template <class T> T __shfl_sync(uint32_t mask, T v, int src, int width = 32) {
    int from = (simt::lane() & ~(width - 1)) | (src & (width - 1));
    return simt::shuffle(mask, v, from, "__shfl_sync");
}
template <class T> T __shfl_xor_sync(uint32_t mask, T v, int x, int width = 32) {
    int l = simt::lane(), from = l ^ x;
    if ((from & ~(width - 1)) > (l & ~(width - 1))) from = l;
    return simt::shuffle(mask, v, from, "__shfl_xor_sync");
}
template <class T> T __shfl_down_sync(uint32_t mask, T v, unsigned d, int width = 32) {
    int l = simt::lane(), from = (l & (width - 1)) + (int)d < width ? l + (int)d : l;
    return simt::shuffle(mask, v, from, "__shfl_down_sync");
}
template <class T> T __shfl_up_sync(uint32_t mask, T v, unsigned d, int width = 32) {
    int l = simt::lane(), from = (l & (width - 1)) >= (int)d ? l - (int)d : l;
    return simt::shuffle(mask, v, from, "__shfl_up_sync");
}
inline uint32_t __ballot_sync(uint32_t mask, int p) {
    const uint64_t *posted = simt::meet(mask, p != 0, "__ballot_sync");
    uint32_t r = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) r |= (uint32_t)(posted[i] & 1) << i;
    return r;
}
inline int __any_sync(uint32_t mask, int p) {
    return __ballot_sync(mask, p) != 0;
}
inline int __all_sync(uint32_t mask, int p) {
    return __ballot_sync(mask, !p) == 0;
}
template <class T> uint32_t __match_any_sync(uint32_t mask, T v) {
    uint64_t bits = 0;
    memcpy(&bits, &v, sizeof v);
    const uint64_t *posted = simt::meet(mask, bits, "__match_any_sync");
    uint32_t r = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && posted[i] == bits) r |= 1u << i;
    return r;
}

// Atomics. Threads never run at the same time here; the order they come in is the schedule's.
template <class T> T atomicAdd(T *p, T v) {
    T old = *p;
    *p = old + v;
    return old;
}
template <class T> T atomicMax(T *p, T v) {
    T old = *p;
    *p = old > v ? old : v;
    return old;
}
template <class T> T atomicMin(T *p, T v) {
    T old = *p;
    *p = old < v ? old : v;
    return old;
}
template <class T> T atomicOr(T *p, T v) {
    T old = *p;
    *p = old | v;
    return old;
}
template <class T> T atomicExch(T *p, T v) {
    T old = *p;
    *p = v;
    return old;
}
template <class T> T atomicCAS(T *p, T expected, T v) {
    T old = *p;
    if (old == expected) *p = v;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// Scalar intrinsics.
inline int __popc(uint32_t x) {
    return __builtin_popcount(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz((unsigned)x) : 32;
}
inline float __uint_as_float(unsigned u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
inline unsigned __float_as_uint(float f) {
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline float __expf(float x) {
    return expf(x);
}
inline float __fdividef(float a, float b) {
    return a / b;
}
template <class T> T __ldg(const T *p) {
    return *p;
}
