// gemm_cuda_part.h - operands of any type and orientation, and which part of a grouped product a block computes: what
// the kernels of gemm_cuda.cu and gemm_cuda_mma.cu share. Private to them.
#pragma once
#include "rows_cuda.h"
extern "C" {
#include "gemm_cuda.h"
}

// Element (outer, k) of an operand as float, its scale left out.
DEV float operand_value(const GemmOperand &o, int64_t outer, int64_t k) {
    int64_t at = o.is_k_contig ? outer * o.ld + k : k * o.ld + outer;
    switch (o.t) {
    case SRC_F32: return ((const float *)o.p)[at];
    case SRC_BF16: return f32_from_bf16(((const uint16_t *)o.p)[at]);
    default: return f32_from_e4m3(((const uint8_t *)o.p)[at]);
    }
}
// The scale of (outer, k): FP8 only. k is relative to the start of the group.
DEV float operand_scale(const GemmOperand &o, int64_t outer, int64_t k) {
    int64_t at = outer / o.s_tile * o.s_outer + k / TILE * o.s_k;
    return o.st == SCALE_F32 ? ((const float *)o.s)[at] : f32_from_e8m0(((const uint8_t *)o.s)[at]);
}

// What one block works on, after the groups: origins inside the operands, and extents.
typedef struct GemmPart {
    int64_t a_row, a_k, b_k, y_row; // where a, b and y begin
    int64_t m0, m, n0, k;           // rows [m0, m) and columns from n0 of this part; k elements
    int64_t e, tile;                // group, its first scale along the contraction
} GemmPart;

// find_part: the tile of EDGE x EDGE outputs of this block; false: there is nothing to do. Whole warps.
template <int EDGE> DEV bool find_part(const GemmCall &c, GemmPart *q) {
    *q = GemmPart{0, 0, 0, 0, (int64_t)blockIdx.y * EDGE, c.p.m, (int64_t)blockIdx.x * EDGE, c.p.k, 0, 0};
    if (c.kind == GEMM_ROW_GROUPS) {
        GroupTile t = group_tile(c.g, c.p.m, EDGE, blockIdx.y, c.fault);
        if (t.rows == 0) return false;
        q->e = t.e;
        q->m0 = 0;
        q->m = t.rows;
        q->a_row = q->y_row = t.row;
    } else if (c.kind == GEMM_DEPTH_GROUPS) {
        q->e = blockIdx.z;
        if (group_is_bad(c.g, q->e, c.p.k, c.fault)) return false;
        q->k = c.g.count[q->e];
        q->a_k = q->b_k = c.g.start[q->e];
        q->y_row = q->e * c.p.m;
        for (int64_t i = 0; i < q->e; i++) q->tile += (c.g.count[i] + TILE - 1) / TILE;
        if (q->k == 0 && c.p.acc) return false; // adds exactly nothing
    }
    return true;
}

// stacked_b: b of the group of a part.
template <bool IS_FP8> DEV GemmOperand stacked_b(const GemmCall &c, const GemmPart &q) {
    GemmOperand b = c.p.b;
    if (c.kind != GEMM_ROW_GROUPS) return b;
    b.p = (const char *)b.p + q.e * c.b_step * (IS_FP8 ? 1 : b.t == SRC_F32 ? 4 : 2);
    if (IS_FP8) b.s = (const char *)b.s + q.e * c.bs_step * (b.st == SCALE_F32 ? 4 : 1);
    return b;
}
