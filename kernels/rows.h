// rows.h - inner loops over rows of F32 or BF16 matrices, private to the CPU backend.
//
// A row is taken through FP32 buffers of ROW_CHUNK values: row_get hands out a pointer to floats
// (the matrix itself if it is F32), row_put rounds once and stores. Sums run in 16 fixed lanes
// (element i goes to lane i % 16), so that they vectorise and still have one order on every
// instruction set. Functions that carry ROW_CLONES are compiled for several instruction sets and
// chosen at load time; without contraction of a*b+c the bits do not depend on the choice.
#pragma once
#include <string.h>

#include "fp8.h"
#include "ops.h"

#define ROW_CHUNK 1024 // floats of one buffer on the stack, a multiple of ROW_LANES
#define ROW_LANES 16
#define ROW_BLOCK 128 // rows that share one partial sum in every reduction over rows

#define ROW_INLINE static inline __attribute__((always_inline))
// Sanitizers start after the resolvers of clones run, so instrumented builds have one version; so
// have compilers that do not know these names.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12 &&      \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(ROW_NO_CLONES)
#define ROW_CLONES                                                                                 \
    __attribute__((noinline, target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define ROW_CLONES __attribute__((noinline))
#endif

// Sixteen floats. Passed by pointer only: by value its calling convention depends on the target.
typedef float V16 __attribute__((vector_size(64)));
typedef int32_t V16i __attribute__((vector_size(64)));

// ROW_MAT: the contract of a matrix argument: R rows, C columns, F32 or BF16.
#define ROW_MAT(m, R, C)                                                                           \
    CHECK(((m).t == DT_F32 || (m).t == DT_BF16) && (m).rows == (R) && (m).cols == (C) &&           \
              ((m).ld >= (m).cols || (m).rows <= 1),                                               \
          E_INTERNAL, "%s: " #m " is %s [%lld, %lld], ld %lld; expected f32 or bf16 [%lld, %lld]", \
          __func__, dtype_name((m).t), (long long)(m).rows, (long long)(m).cols,                   \
          (long long)(m).ld, (long long)(R), (long long)(C))

// row_threads: threads for `work` elementary operations; a team is not worth it for a few.
ROW_INLINE int row_threads(const OpCx *cx, int64_t work) {
    return work < 16384 || cx->nthreads < 1 ? 1 : cx->nthreads;
}

// row_get: n <= ROW_CHUNK values from (r, c) as floats; buf is used where they must be converted.
ROW_INLINE const float *row_get(Mat m, int64_t r, int64_t c, int64_t n, float *buf) {
    if (m.t == DT_F32) return (const float *)m.p + r * m.ld + c;
    const uint16_t *src = (const uint16_t *)m.p + r * m.ld + c;
    for (int64_t i = 0; i < n; i++) buf[i] = f32_from_bf16(src[i]);
    return buf;
}
// row_copy: the same, always into dst.
ROW_INLINE void row_copy(float *dst, Mat m, int64_t r, int64_t c, int64_t n) {
    if (m.t == DT_F32) {
        memcpy(dst, (const float *)m.p + r * m.ld + c, (size_t)n * 4);
        return;
    }
    const uint16_t *src = (const uint16_t *)m.p + r * m.ld + c;
    for (int64_t i = 0; i < n; i++) dst[i] = f32_from_bf16(src[i]);
}
// row_put: round n values to the matrix's type and store them at (r, c).
ROW_INLINE void row_put(Mat m, int64_t r, int64_t c, int64_t n, const float *src) {
    if (m.t == DT_F32) {
        memcpy((float *)m.p + r * m.ld + c, src, (size_t)n * 4);
        return;
    }
    uint16_t *dst = (uint16_t *)m.p + r * m.ld + c;
    for (int64_t i = 0; i < n; i++) dst[i] = bf16_from_f32(src[i]);
}

ROW_INLINE void v16_load(V16 *v, const float *p) {
    memcpy(v, p, sizeof *v);
}
ROW_INLINE void v16_store(float *p, const V16 *v) {
    memcpy(p, v, sizeof *v);
}
// v16_sum: the 16 lanes by halves: (i, i+8), (i, i+4), (i, i+2), (0, 1).
ROW_INLINE float v16_sum(const V16 *v) {
    float s[ROW_LANES];
    memcpy(s, v, sizeof s);
    for (int w = ROW_LANES / 2; w > 0; w /= 2)
        for (int i = 0; i < w; i++) s[i] += s[i + w];
    return s[0];
}
// v16_add: acc += the n values of x, lane by lane.
ROW_INLINE void v16_add(V16 *acc, const float *x, int64_t n) {
    V16 s = *acc, a;
    int64_t i = 0;
    for (; i + ROW_LANES <= n; i += ROW_LANES) {
        v16_load(&a, x + i);
        s += a;
    }
    if (i < n) {
        a = (V16){0};
        memcpy(&a, x + i, (size_t)(n - i) * 4);
        s += a;
    }
    *acc = s;
}
// v16_dot: acc += x * y, lane by lane.
ROW_INLINE void v16_dot(V16 *acc, const float *x, const float *y, int64_t n) {
    V16 s = *acc, a, b;
    int64_t i = 0;
    for (; i + ROW_LANES <= n; i += ROW_LANES) {
        v16_load(&a, x + i);
        v16_load(&b, y + i);
        s += a * b;
    }
    if (i < n) {
        a = (V16){0};
        b = (V16){0};
        memcpy(&a, x + i, (size_t)(n - i) * 4);
        memcpy(&b, y + i, (size_t)(n - i) * 4);
        s += a * b;
    }
    *acc = s;
}
// row_max: the largest of start and n >= 1 values; NaN is passed over.
ROW_INLINE float row_max(const float *x, int64_t n, float start) {
    V16 m, a;
    for (int k = 0; k < ROW_LANES; k++) m[k] = start;
    int64_t i = 0;
    for (; i + ROW_LANES <= n; i += ROW_LANES) {
        v16_load(&a, x + i);
        V16i larger = a > m; // all bits of a lane, or none
        m = (V16)((larger & (V16i)a) | (~larger & (V16i)m));
    }
    float lanes[ROW_LANES];
    memcpy(lanes, &m, sizeof lanes);
    float best = start;
    for (int k = 0; k < ROW_LANES; k++) best = lanes[k] > best ? lanes[k] : best;
    for (; i < n; i++) best = x[i] > best ? x[i] : best;
    return best;
}
