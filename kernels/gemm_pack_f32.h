// gemm_pack_f32.h - panels of floats from operands of any type and orientation, written once for
// every instruction set whose multiply-adds are FP32. Included by gemm_tile.h's users before it.
//
// The including file defines, besides the vector of gemm_tile.h,
//   vlanes_{f32,bf16,e4m3,e5m2}(p): VW consecutive elements as floats, vtranspose(vf r[VW]).
#pragma once
#include "fp8.h"
#include "gemm_source.h"

#define KU 1 // a unit is one element
#define NR (VW * NV)
#define AS TILE
#define STEP (VW < 8 ? VW : 8)

// rows x nk elements of an operand -> dst [row][AS]; what lies past nk inside the last vector is
// zero.
INLINE void pack_a_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, int64_t i0, int64_t rows,
                      int64_t k0, int64_t nk, float *dst) {
    if (is_k_contig) {
        for (int64_t r = 0; r < rows; r++) {
            const char *p = element(o, t, true, i0 + r, k0);
            for (int64_t k = 0; k < nk; k += VW)
                vstore(dst + r * AS + k, load_lanes(t, p + k * src_bytes(t), nk - k));
        }
        return;
    }
    for (int64_t r = 0; r < rows; r += VW) {
        int64_t n = min_i64(VW, rows - r);
        for (int64_t k = 0; k < nk; k += VW) {
            vf x[VW];
#pragma GCC unroll 16
            for (int j = 0; j < VW; j++)
                x[j] = k + j < nk ? load_lanes(t, element(o, t, false, i0 + r, k0 + k + j), n)
                                  : vset1(0.0f);
            vtranspose(x);
#pragma GCC unroll 16
            for (int j = 0; j < VW; j++)
                vstore(dst + (r + j) * AS + k, x[j]); // rows past n are spare
        }
    }
}

// n <= NR columns x nk elements of an operand -> dst [k][NR]; columns past n are zero.
INLINE void pack_b_as(GemmSrc t, bool is_k_contig, const GemmOperand *o, int64_t j0, int64_t n,
                      int64_t k0, int64_t nk, float *dst) {
    if (is_k_contig) {
        for (int v = 0; v < NV; v++) {
            for (int64_t k = 0; k < nk; k += VW) {
                vf x[VW];
#pragma GCC unroll 16
                for (int j = 0; j < VW; j++) {
                    int64_t col = v * VW + j;
                    x[j] = col < n ? load_lanes(t, element(o, t, true, j0 + col, k0 + k), nk - k)
                                   : vset1(0.0f);
                }
                vtranspose(x);
#pragma GCC unroll 16
                for (int j = 0; j < VW; j++) vstore(dst + (k + j) * NR + v * VW, x[j]);
            }
        }
        return;
    }
    for (int64_t k = 0; k < nk; k++) {
        const char *p = element(o, t, false, j0, k0 + k);
        for (int v = 0; v < NV; v++)
            vstore(dst + k * NR + v * VW,
                   n > v * VW ? load_lanes(t, p + v * VW * src_bytes(t), n - v * VW) : vset1(0.0f));
    }
    for (int64_t k = nk; k % STEP; k++)
        for (int v = 0; v < NV; v++) vstore(dst + k * NR + v * VW, vset1(0.0f));
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
        else if ((o)->is_k_contig)                                                                 \
            pack_as(SRC_F32, true, o, __VA_ARGS__);                                                \
        else                                                                                       \
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
