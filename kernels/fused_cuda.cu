// fused_cuda.cu - the fused producers on the GPU: the single operations one after the other, with what lies between
// them on the scratch arena as a whole. Contract: fused.h.
#include "cuda_launch.h"

static Err temporary(OpCx *cx, Mat *m, int64_t rows, int64_t cols) {
    return arena_mat(cx->scratch, m, DT_BF16, rows, cols, "fused");
}

static const QuantRule tiles = {SCOPE_TILE, 0.0f};

extern "C" Err norm_quant_fwd_cuda(OpCx *cx, QuantOut q, Mat y, float *rstd, Mat x, const float *w, float eps) {
    size_t mark = arena_mark(cx->scratch);
    if (!y.p) TRY(temporary(cx, &y, x.rows, x.cols));
    TRY(norm_rms_fwd_cuda(cx, y, rstd, x, w, eps));
    TRY(quant_tile_cuda(cx, q.q, y, tiles, q.n));
    arena_release(cx->scratch, mark);
    return OK;
}

extern "C" Err swiglu_quant_fwd_cuda(OpCx *cx, QuantOut h, QuantOut g_kept, QuantOut u_kept, Mat g, Mat u,
                                     const float *gate) {
    size_t mark = arena_mark(cx->scratch);
    Mat m;
    TRY(temporary(cx, &m, g.rows, g.cols));
    TRY(swiglu_fwd_cuda(cx, m, g, u, gate));
    TRY(quant_tile_cuda(cx, h.q, m, tiles, h.n));
    TRY(quant_tile_cuda(cx, g_kept.q, g, tiles, g_kept.n));
    TRY(quant_tile_cuda(cx, u_kept.q, u, tiles, u_kept.n));
    arena_release(cx->scratch, mark);
    return OK;
}

extern "C" Err swiglu_quant_bwd_cuda(OpCx *cx, SwigluQuantBwd out, float *dgate, Mat dh, MatQ g, MatQ u,
                                     const float *gate, Groups groups) {
    size_t mark = arena_mark(cx->scratch);
    Mat mg, mu, h;
    MatQ hq;
    TRY(temporary(cx, &mg, dh.rows, dh.cols));
    TRY(temporary(cx, &mu, dh.rows, dh.cols));
    TRY(dequant_cuda(cx, mg, g));
    TRY(dequant_cuda(cx, mu, u));
    size_t inner = arena_mark(cx->scratch);
    TRY(temporary(cx, &h, dh.rows, dh.cols));
    TRY(arena_matq_rows(cx->scratch, &hq, out.h_t.q.st, out.h_t.q.ct, dh.rows, dh.cols, "fused"));
    TRY(swiglu_fwd_cuda(cx, h, mg, mu, gate));
    TRY(quant_tile_cuda(cx, hq, h, tiles, NULL));
    TRY(requant_tile_t_cuda(cx, out.h_t.q, hq, groups, tiles, out.h_t.n));
    arena_release(cx->scratch, inner);
    TRY(swiglu_bwd_cuda(cx, mg, mu, dgate, dh, mg, mu, gate));
    TRY(quant_tile_pair_cuda(cx, out.dg.q, out.dg_t.q, mg, groups, tiles, tiles, out.dg.n, out.dg_t.n));
    TRY(quant_tile_pair_cuda(cx, out.du.q, out.du_t.q, mu, groups, tiles, tiles, out.du.n, out.du_t.n));
    arena_release(cx->scratch, mark);
    return OK;
}
