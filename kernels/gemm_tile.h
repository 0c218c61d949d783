// gemm_tile.h - one output tile of a matrix product, written once for every instruction set.
//
// The including file defines the vector: vf (VW floats), VW, and
//   vload vstore vset1 vmul vadd, vdot(a, b, c) = c + the products of one unit of a and b per lane,
//   vlanes_{f32,bf16,e4m3,e5m2}(p): VW consecutive elements as floats,
//   vunits_{f32,bf16,e4m3,e5m2}(p): VW consecutive units along the contraction, vjoin(even, odd):
//   lanes to units, vtranspose(vf r[VW]);
// a unit being KU consecutive elements of the contraction in 32 bits (1 float, or 2 BF16). And it
// defines the micro-kernel's tile, MR rows x NV vectors, and GEMM_TILE, the name of the function
// made here.
//
// Panels: a is [row][TILE / KU] units and is broadcast, b is [unit][VW * NV] and is loaded. Rows
// are split into strips of at most MR (a kernel for each height), columns are padded with zeros, so
// an element's sum is the same operations in the same order wherever it lies.
#include <string.h>

#include "fp8.h"
#include "gemm_engine.h"
#include "gemm_ends.h"

#define INLINE static inline __attribute__((always_inline))
#define NR (VW * NV)
#define AS (TILE / KU)

INLINE int64_t src_bytes(GemmSrc t) {
    return t == SRC_F32 ? 4 : t == SRC_BF16 ? 2 : 1;
}

INLINE vf decode_lanes(GemmSrc t, const void *p) {
    return t == SRC_F32    ? vlanes_f32(p)
           : t == SRC_BF16 ? vlanes_bf16(p)
           : t == SRC_E4M3 ? vlanes_e4m3(p)
                           : vlanes_e5m2(p);
}

INLINE vf decode_units(GemmSrc t, const void *p) {
    return t == SRC_F32    ? vunits_f32(p)
           : t == SRC_BF16 ? vunits_bf16(p)
           : t == SRC_E4M3 ? vunits_e4m3(p)
                           : vunits_e5m2(p);
}

// VW lanes of which only n exist in memory; the others are zero.
INLINE vf load_lanes(GemmSrc t, const char *p, int64_t n) {
    if (__builtin_expect(n >= VW, 1)) return decode_lanes(t, p);
    char pad[VW * 4] = {0};
    if (n > 0) memcpy(pad, p, (size_t)(n * src_bytes(t)));
    return decode_lanes(t, pad);
}

// VW units along the contraction, of which only n elements exist.
INLINE vf load_units(GemmSrc t, const char *p, int64_t n) {
    if (__builtin_expect(n >= VW * KU, 1)) return decode_units(t, p);
    char pad[VW * KU * 4] = {0};
    if (n > 0) memcpy(pad, p, (size_t)(n * src_bytes(t)));
    return decode_units(t, pad);
}

// One unit of each of VW outer indices (n exist); p is the first row of the unit, nk rows exist.
INLINE vf load_across(GemmSrc t, const char *p, int64_t row_bytes, int64_t n, int64_t nk) {
    if (nk <= 0 || n <= 0) return vset1(0.0f);
    vf even = load_lanes(t, p, n);
    if (KU == 1) return even;
    return vjoin(even, nk > 1 ? load_lanes(t, p + row_bytes, n) : vset1(0.0f));
}

INLINE const char *element(const GemmOperand *o, GemmSrc t, bool is_k_contig, int64_t outer,
                           int64_t k) {
    return (const char *)o->p +
           (is_k_contig ? outer * o->ld + k : k * o->ld + outer) * src_bytes(t);
}

// rows x nk elements of an operand -> dst [row][AS]; units past nk inside the last vector are zero.
INLINE void pack_a_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, int64_t i0, int64_t rows,
                      int64_t k0, int64_t nk, float *dst) {
    int64_t nu = ceil_div(nk, KU);
    if (is_k_contig) {
        for (int64_t r = 0; r < rows; r++) {
            const char *p = element(o, t, true, i0 + r, k0);
            for (int64_t u = 0; u < nu; u += VW)
                vstore(dst + r * AS + u, load_units(t, p + u * KU * src_bytes(t), nk - u * KU));
        }
        return;
    }
    int64_t row_bytes = o->ld * src_bytes(t);
    for (int64_t r = 0; r < rows; r += VW) {
        int64_t n = min_i64(VW, rows - r);
        for (int64_t u = 0; u < nu; u += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int j = 0; j < VW; j++) {
                int64_t k = (u + j) * KU;
                x[j] = load_across(t, element(o, t, false, i0 + r, k0 + k), row_bytes, n, nk - k);
            }
            vtranspose(x);
#pragma GCC unroll 16
            for (int j = 0; j < VW; j++)
                vstore(dst + (r + j) * AS + u, x[j]); // rows past n are spare
        }
    }
}

// n <= NR columns x nk elements of an operand -> dst [unit][NR]; columns past n are zero.
INLINE void pack_b_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, int64_t j0, int64_t n,
                      int64_t k0, int64_t nk, float *dst) {
    int64_t nu = ceil_div(nk, KU);
    if (is_k_contig) {
        for (int v = 0; v < NV; v++) {
            for (int64_t u = 0; u < nu; u += VW) {
                vf x[VW];
#pragma GCC unroll 16
                for (int j = 0; j < VW; j++) {
                    int64_t col = v * VW + j;
                    x[j] = col < n ? load_units(t, element(o, t, true, j0 + col, k0 + u * KU),
                                                nk - u * KU)
                                   : vset1(0.0f);
                }
                vtranspose(x);
#pragma GCC unroll 16
                for (int j = 0; j < VW; j++) vstore(dst + (u + j) * NR + v * VW, x[j]);
            }
        }
        return;
    }
    int64_t row_bytes = o->ld * src_bytes(t);
    for (int64_t u = 0; u < nu; u++) {
        const char *p = element(o, t, false, j0, k0 + u * KU);
        for (int v = 0; v < NV; v++)
            vstore(dst + u * NR + v * VW,
                   load_across(t, p + v * VW * src_bytes(t), row_bytes, n - v * VW, nk - u * KU));
    }
}

// The type and the orientation become constants, so that no decision is left in the loops.
#define PACK(pack_as, o, ...)                                                                      \
    do {                                                                                           \
        if ((o)->t == SRC_E4M3 && (o)->is_k_contig)                                                \
            pack_as(SRC_E4M3, true, o, __VA_ARGS__);                                               \
        else if ((o)->t == SRC_E4M3)                                                               \
            pack_as(SRC_E4M3, false, o, __VA_ARGS__);                                              \
        else if ((o)->t == SRC_E5M2 && (o)->is_k_contig)                                           \
            pack_as(SRC_E5M2, true, o, __VA_ARGS__);                                               \
        else if ((o)->t == SRC_E5M2)                                                               \
            pack_as(SRC_E5M2, false, o, __VA_ARGS__);                                              \
        else if ((o)->t == SRC_BF16 && (o)->is_k_contig)                                           \
            pack_as(SRC_BF16, true, o, __VA_ARGS__);                                               \
        else if ((o)->t == SRC_BF16)                                                               \
            pack_as(SRC_BF16, false, o, __VA_ARGS__);                                              \
        else if (KU == 1 && (o)->is_k_contig)                                                      \
            pack_as(SRC_F32, true, o, __VA_ARGS__);                                                \
        else if (KU == 1)                                                                          \
            pack_as(SRC_F32, false, o, __VA_ARGS__);                                               \
    } while (0)

static __attribute__((noinline)) void pack_a(const GemmOperand *o, int64_t i0, int64_t rows,
                                             int64_t k0, int64_t nk, float *dst) {
    PACK(pack_a_as, o, i0, rows, k0, nk, dst);
}

static __attribute__((noinline)) void pack_b(const GemmOperand *o, int64_t j0, int64_t n,
                                             int64_t k0, int64_t nk, float *dst) {
    PACK(pack_b_as, o, j0, n, k0, nk, dst);
}

// h rows x NR columns. Plain: c carries the running sum. With promotion: c += sum * (sa * sb).
INLINE void kernel(const int h, const bool is_promoted, int64_t nu, const float *a, const float *b,
                   float *c, const float *sa, const float *sb) {
    vf acc[MR][NV];
#pragma GCC unroll 16
    for (int r = 0; r < h; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++)
            acc[r][v] = is_promoted ? vset1(0.0f) : vload(c + r * GEMM_LDC + v * VW);
    for (int64_t u = 0; u < nu; u++) {
        vf bv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) bv[v] = vload(b + u * NR + v * VW);
#pragma GCC unroll 16
        for (int r = 0; r < h; r++) {
            vf av = vset1(a[r * AS + u]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) acc[r][v] = vdot(av, bv[v], acc[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < h; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            float *at = c + r * GEMM_LDC + v * VW;
            if (is_promoted) {
                vf s = vmul(vset1(sa[r]), vload(sb + v * VW));
                vstore(at, vadd(vload(at), vmul(acc[r][v], s)));
            } else {
                vstore(at, acc[r][v]);
            }
        }
}

typedef void (*KernelFn)(int64_t nu, const float *a, const float *b, float *c, const float *sa,
                         const float *sb);
#define KERNEL(h)                                                                                  \
    static void kernel_plain_##h(int64_t nu, const float *a, const float *b, float *c,             \
                                 const float *sa, const float *sb) {                               \
        kernel(h, false, nu, a, b, c, sa, sb);                                                     \
    }                                                                                              \
    static void kernel_fp8_##h(int64_t nu, const float *a, const float *b, float *c,               \
                               const float *sa, const float *sb) {                                 \
        kernel(h, true, nu, a, b, c, sa, sb);                                                      \
    }
KERNEL(1)
KERNEL(2)
KERNEL(3)
KERNEL(4)
#if MR > 4
KERNEL(5)
KERNEL(6)
#endif
#if MR > 6
KERNEL(7)
KERNEL(8)
KERNEL(9)
KERNEL(10)
KERNEL(11)
KERNEL(12)
#endif
#define ROWS_4(f) NULL, f##1, f##2, f##3, f##4
#if MR == 12
#define ROWS(f) ROWS_4(f), f##5, f##6, f##7, f##8, f##9, f##10, f##11, f##12
#elif MR == 6
#define ROWS(f) ROWS_4(f), f##5, f##6
#else
#define ROWS(f) ROWS_4(f)
#endif
static const KernelFn kernels[2][MR + 1] = {{ROWS(kernel_plain_)}, {ROWS(kernel_fp8_)}};

void GEMM_TILE(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn, GemmWork *w) {
    bool is_fp8 = gemm_is_fp8(p->a.t);
    int64_t strips = ceil_div(mn, MR);
    for (int64_t r = 0; r < mn; r++)
        memset(w->c + r * GEMM_LDC, 0, (size_t)(ceil_div(nn, NR) * NR) * sizeof *w->c);
    memset(w->sb, 0, sizeof w->sb);
    for (int64_t k0 = 0; k0 < p->k; k0 += TILE) {
        int64_t nk = min_i64(TILE, p->k - k0);
        pack_a(&p->a, m0, mn, k0, nk, w->a);
        if (is_fp8) pack_scales(&p->a, m0, mn, k0, w->sa);
        for (int64_t j = 0; j < nn; j += NR) {
            int64_t nj = min_i64(NR, nn - j);
            pack_b(&p->b, n0 + j, nj, k0, nk, w->b);
            if (is_fp8) pack_scales(&p->b, n0 + j, nj, k0, w->sb);
            for (int64_t s = 0; s < strips; s++) {
                int64_t r = mn * s / strips, h = mn * (s + 1) / strips - r;
                kernels[is_fp8][h](ceil_div(nk, KU), w->a + r * AS, w->b, w->c + r * GEMM_LDC + j,
                                   w->sa + r, w->sb);
            }
        }
    }
    for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, w->c + r * GEMM_LDC);
}

// Peak: as many independent accumulators as the micro-kernel has, nothing from memory.
double GEMM_PEAK(int64_t n, float *sink) {
    vf acc[MR][NV];
    vf x = vset1(sink[0]), y = vset1(sink[1]);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++)
            acc[r][v] = vset1(sink[2] + (float)(r * NV + v)); // all different
    for (int64_t i = 0; i < n; i++) {
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++) acc[r][v] = vdot(x, y, acc[r][v]);
    }
    vf sum = vset1(0.0f);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sum = vadd(sum, acc[r][v]);
    float out[VW];
    vstore(out, sum);
    sink[7] = out[0];
    return 2.0 * KU * VW * NV * MR * (double)n;
}
