// mirror_ops.c - a mirror (mirror.h) of each operation of ops.def: what its arguments span.
//
// To add an operation: its arguments as in ops.def, then each pointer among them with its size. ops.def's own list at
// the end makes a forgotten one an error of the linker.
#include "mirror.h"

#define OP(name, tolerance, args) Err name##_mirror args;
#include "ops.def"
#undef OP

// An operation, its parameters, its arguments after cx, and what they span.
#define MIRROR(name, parameters, arguments, ...)                                                                     \
    Err name##_mirror parameters {                                                                                   \
        Mirror m;                                                                                                    \
        mirror_begin(&m, cx);                                                                                        \
        __VA_ARGS__;                                                                                                 \
        TRY(mirror_up(&m));                                                                                          \
        cx = &m.cx;                                                                                                  \
        TRY(mirror_down(&m, name##_cuda arguments));                                                                 \
        return OK;                                                                                                   \
    }
#define MAT(x) mirror_mat(&m, &x)
#define MATQ(x) mirror_matq(&m, &x, 0)
#define BYTES(p, n) mirror_bytes(&m, &p, (int64_t)(n))
#define COUNT(n) mirror_bytes(&m, &n, (int64_t)sizeof(QuantCount))
#define GROUPS(g) mirror_groups(&m, &g)
// Codes whose tiles restart at each group.
#define TURNED(x, g) mirror_matq(&m, &x, tiles_of(g, x.cols))

static int64_t tiles_of(Groups g, int64_t tokens) {
    return max_i64(ceil_div(tokens, TILE), groups_tiles(g, tokens));
}
// The largest of n row numbers, plus 1.
static int64_t rows_named(const int32_t *idx, int64_t n) {
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++) most = max_i64(most, (int64_t)idx[i] + 1);
    return most;
}

// --- quant.h ---
MIRROR(quant_tile, (OpCx * cx, MatQ y, Mat x, QuantRule rule, QuantCount *n), (cx, y, x, rule, n), MATQ(y), MAT(x),
       COUNT(n))
MIRROR(quant_tile_t, (OpCx * cx, MatQ y, Mat x, Groups g, QuantRule rule, QuantCount *n), (cx, y, x, g, rule, n),
       TURNED(y, g), MAT(x), GROUPS(g), COUNT(n))
MIRROR(quant_tile_pair,
       (OpCx * cx, MatQ y, MatQ yt, Mat x, Groups g, QuantRule rule, QuantRule rule_t, QuantCount *n, QuantCount *n_t),
       (cx, y, yt, x, g, rule, rule_t, n, n_t), MATQ(y), TURNED(yt, g), MAT(x), GROUPS(g), COUNT(n), COUNT(n_t))
MIRROR(requant_tile_t, (OpCx * cx, MatQ y, MatQ x, Groups g, QuantRule rule, QuantCount *n), (cx, y, x, g, rule, n),
       TURNED(y, g), MATQ(x), GROUPS(g), COUNT(n))
MIRROR(dequant, (OpCx * cx, Mat y, MatQ x), (cx, y, x), MAT(y), MATQ(x))
MIRROR(quant_e5m6, (OpCx * cx, Mat y, Mat x, QuantCount *n), (cx, y, x, n), MAT(y), MAT(x), COUNT(n))
MIRROR(dequant_e5m6, (OpCx * cx, Mat y, Mat x), (cx, y, x), MAT(y), MAT(x))
MIRROR(weight_prepare, (OpCx * cx, MatQ w, Mat x, QuantRule rule, QuantCount *n), (cx, w, x, rule, n), MATQ(w), MAT(x),
       COUNT(n))

// --- gemm.h, ggemm.h ---
#define PLAIN(name)                                                                                                  \
    MIRROR(name, (OpCx * cx, Mat y, Mat a, Mat b, bool acc), (cx, y, a, b, acc), MAT(y), MAT(a), MAT(b))             \
    MIRROR(g##name, (OpCx * cx, Mat y, Mat a, Mat b, Groups g, bool acc), (cx, y, a, b, g, acc), MAT(y), MAT(a),     \
           MAT(b), GROUPS(g))
PLAIN(gemm_nt)
PLAIN(gemm_nn)
PLAIN(gemm_tn)
#define CODES(name)                                                                                                  \
    MIRROR(name, (OpCx * cx, Mat y, MatQ a, MatQ w, bool acc), (cx, y, a, w, acc), MAT(y), MATQ(a), MATQ(w))         \
    MIRROR(g##name, (OpCx * cx, Mat y, MatQ a, MatQ w, Groups g, bool acc), (cx, y, a, w, g, acc), MAT(y), MATQ(a),  \
           MATQ(w), GROUPS(g))
CODES(gemm_fp8_fprop)
CODES(gemm_fp8_dgrad)
MIRROR(gemm_fp8_wgrad, (OpCx * cx, Mat y, MatQ at, MatQ bt, bool acc), (cx, y, at, bt, acc), MAT(y), MATQ(at), MATQ(bt))
MIRROR(ggemm_fp8_wgrad, (OpCx * cx, Mat y, MatQ at, MatQ bt, Groups g, bool acc), (cx, y, at, bt, g, acc), MAT(y),
       TURNED(at, g), TURNED(bt, g), GROUPS(g))
MIRROR(gemm_nn_pair, (OpCx * cx, Mat y, Mat a, Mat b, Mat a2, Mat b2, Mat room), (cx, y, a, b, a2, b2, room), MAT(y),
       MAT(a), MAT(b), MAT(a2), MAT(b2), MAT(room))
MIRROR(gemm_fp8_dgrad_pair, (OpCx * cx, Mat y, MatQ a, MatQ w, MatQ a2, MatQ w2, Mat room),
       (cx, y, a, w, a2, w2, room), MAT(y), MATQ(a), MATQ(w), MATQ(a2), MATQ(w2), MAT(room))
MIRROR(ggemm_nn_pair, (OpCx * cx, Mat y, Mat a, Mat b, Mat a2, Mat b2, Groups g, Mat room),
       (cx, y, a, b, a2, b2, g, room), MAT(y), MAT(a), MAT(b), MAT(a2), MAT(b2), GROUPS(g), MAT(room))
MIRROR(ggemm_fp8_dgrad_pair, (OpCx * cx, Mat y, MatQ a, MatQ w, MatQ a2, MatQ w2, Groups g, Mat room),
       (cx, y, a, w, a2, w2, g, room), MAT(y), MATQ(a), MATQ(w), MATQ(a2), MATQ(w2), GROUPS(g), MAT(room))

// --- norm.h, rope.h ---
MIRROR(norm_rms_fwd, (OpCx * cx, Mat y, float *rstd, Mat x, const float *w, float eps), (cx, y, rstd, x, w, eps),
       MAT(y), BYTES(rstd, 4 * x.rows), MAT(x), BYTES(w, 4 * x.cols))
MIRROR(norm_rms_bwd, (OpCx * cx, Mat dx, float *dw, Mat dy, Mat x, const float *w, const float *rstd, Mat dres),
       (cx, dx, dw, dy, x, w, rstd, dres), MAT(dx), BYTES(dw, 4 * x.cols), MAT(dy), MAT(x), BYTES(w, 4 * x.cols),
       BYTES(rstd, 4 * x.rows), MAT(dres))
MIRROR(add, (OpCx * cx, Mat y, Mat a, Mat b), (cx, y, a, b), MAT(y), MAT(a), MAT(b))
MIRROR(cast, (OpCx * cx, Mat y, Mat x), (cx, y, x), MAT(y), MAT(x))
MIRROR(rope, (OpCx * cx, Mat x, RopeShape shape, const float *table, bool inverse), (cx, x, shape, table, inverse),
       MAT(x), BYTES(table, 4 * shape.seq_len *shape.rope_dim))

// --- attn.h ---
MIRROR(attn_fwd, (OpCx * cx, Mat o, float *lse, Mat q, Mat kv, Mat kr, AttnShape shape, const int32_t *doc_start),
       (cx, o, lse, q, kv, kr, shape, doc_start), MAT(o), BYTES(lse, 4 * shape.H *shape.nseq *shape.S), MAT(q), MAT(kv),
       MAT(kr), BYTES(doc_start, 4 * shape.nseq *shape.S))
MIRROR(attn_bwd,
       (OpCx * cx, Mat dq, Mat dkv, Mat dkr, Mat dout, Mat o, const float *lse, Mat q, Mat kv, Mat kr, AttnShape shape,
        const int32_t *doc_start),
       (cx, dq, dkv, dkr, dout, o, lse, q, kv, kr, shape, doc_start), MAT(dq), MAT(dkv), MAT(dkr), MAT(dout), MAT(o),
       BYTES(lse, 4 * shape.H *shape.nseq *shape.S), MAT(q), MAT(kv), MAT(kr),
       BYTES(doc_start, 4 * shape.nseq *shape.S))

// --- swiglu.h, fused.h ---
MIRROR(swiglu_fwd, (OpCx * cx, Mat h, Mat g, Mat u, const float *gate), (cx, h, g, u, gate), MAT(h), MAT(g), MAT(u),
       BYTES(gate, 4 * h.rows))
MIRROR(swiglu_bwd, (OpCx * cx, Mat dg, Mat du, float *dgate, Mat dh, Mat g, Mat u, const float *gate),
       (cx, dg, du, dgate, dh, g, u, gate), MAT(dg), MAT(du), BYTES(dgate, 4 * dh.rows), MAT(dh), MAT(g), MAT(u),
       BYTES(gate, 4 * dh.rows))
MIRROR(norm_quant_fwd, (OpCx * cx, QuantOut q, Mat y, float *rstd, Mat x, const float *w, float eps),
       (cx, q, y, rstd, x, w, eps), MATQ(q.q), COUNT(q.n), MAT(y), BYTES(rstd, 4 * x.rows), MAT(x),
       BYTES(w, 4 * x.cols))
MIRROR(swiglu_quant_fwd, (OpCx * cx, QuantOut h, QuantOut g_kept, QuantOut u_kept, Mat g, Mat u, const float *gate),
       (cx, h, g_kept, u_kept, g, u, gate), MATQ(h.q), COUNT(h.n), MATQ(g_kept.q), COUNT(g_kept.n), MATQ(u_kept.q),
       COUNT(u_kept.n), MAT(g), MAT(u), BYTES(gate, 4 * g.rows))
MIRROR(swiglu_quant_bwd,
       (OpCx * cx, SwigluQuantBwd out, float *dgate, Mat dh, MatQ g, MatQ u, const float *gate, Groups groups),
       (cx, out, dgate, dh, g, u, gate, groups), MATQ(out.dg.q), COUNT(out.dg.n), MATQ(out.du.q), COUNT(out.du.n),
       TURNED(out.dg_t.q, groups), COUNT(out.dg_t.n), TURNED(out.du_t.q, groups), COUNT(out.du_t.n),
       TURNED(out.h_t.q, groups), COUNT(out.h_t.n), BYTES(dgate, 4 * dh.rows), MAT(dh), MATQ(g), MATQ(u),
       BYTES(gate, 4 * dh.rows), GROUPS(groups))

// --- route.h ---
MIRROR(route_fwd,
       (OpCx * cx, int32_t *idx, float *gate, float *score, int64_t *count, Mat logits, const float *bias,
        RouteShape shape),
       (cx, idx, gate, score, count, logits, bias, shape), BYTES(idx, 4 * shape.T *shape.K),
       BYTES(gate, 4 * shape.T *shape.K), BYTES(score, 4 * shape.T *shape.E), BYTES(count, 8 * shape.E), MAT(logits),
       BYTES(bias, 4 * shape.E))
MIRROR(route_seqbal, (OpCx * cx, double *loss, float *coef, const float *score, RouteShape shape, int64_t nseq),
       (cx, loss, coef, score, shape, nseq), BYTES(loss, 8), BYTES(coef, 4 * nseq *shape.E),
       BYTES(score, 4 * shape.T *shape.E))
MIRROR(route_bwd,
       (OpCx * cx, Mat dlogits, const float *dgate, const float *gate, const float *score, const int32_t *idx,
        const float *coef, RouteShape shape, int64_t nseq),
       (cx, dlogits, dgate, gate, score, idx, coef, shape, nseq), MAT(dlogits), BYTES(dgate, 4 * shape.T *shape.K),
       BYTES(gate, 4 * shape.T *shape.K), BYTES(score, 4 * shape.T *shape.E), BYTES(idx, 4 * shape.T *shape.K),
       BYTES(coef, 4 * nseq *shape.E))

// --- permute.h, embed.h, xent.h, adam.h ---
MIRROR(rows_gather, (OpCx * cx, void *dst, const void *src, const int32_t *idx, int64_t n, int64_t row_bytes),
       (cx, dst, src, idx, n, row_bytes), BYTES(dst, n *row_bytes), BYTES(src, rows_named(idx, n) * row_bytes),
       BYTES(idx, 4 * n))
MIRROR(rows_sum, (OpCx * cx, Mat y, Mat x, const int32_t *first, const int32_t *idx, Mat add1, Mat add2),
       (cx, y, x, first, idx, add1, add2), MAT(y), MAT(x), BYTES(idx, 4 * first[y.rows]),
       BYTES(first, 4 * (y.rows + 1)), MAT(add1), MAT(add2))
MIRROR(slots_spread,
       (OpCx * cx, uint32_t *rows, const float *x, const int32_t *row, const int32_t *slot, int64_t nrows, int64_t K,
        int64_t n),
       (cx, rows, x, row, slot, nrows, K, n), BYTES(rows, 4 * nrows * K), BYTES(x, 4 * n), BYTES(row, 4 * n),
       BYTES(slot, 4 * n))
MIRROR(slots_join,
       (OpCx * cx, float *y, const uint32_t *rows, const int32_t *first, const int32_t *idx, int64_t T, int64_t K),
       (cx, y, rows, first, idx, T, K), BYTES(y, 4 * T * K), BYTES(rows, 4 * K * rows_named(idx, first[T])),
       BYTES(idx, 4 * first[T]), BYTES(first, 4 * (T + 1)))
MIRROR(parts_sum,
       (OpCx * cx, float *y, const float *own, int64_t own_at, const float *parts, int64_t stride, int64_t nparts,
        int64_t n),
       (cx, y, own, own_at, parts, stride, nparts, n), BYTES(y, 4 * n), BYTES(own, 4 * n),
       BYTES(parts, nparts > 1 ? 4 * (stride * (nparts - 2) + n) : 0))
MIRROR(embed_fwd, (OpCx * cx, Mat x, Mat table, const int32_t *token), (cx, x, table, token), MAT(x), MAT(table),
       BYTES(token, 4 * x.rows))
MIRROR(embed_bwd, (OpCx * cx, Mat dtable, Mat dx, const int32_t *token), (cx, dtable, dx, token), MAT(dtable), MAT(dx),
       BYTES(token, 4 * dx.rows))
MIRROR(xent_fwd_bwd,
       (OpCx * cx, float *loss, int32_t *correct, Mat dlogits, Mat logits, const int32_t *target, float scale),
       (cx, loss, correct, dlogits, logits, target, scale), BYTES(loss, 4 * logits.rows),
       BYTES(correct, 4 * logits.rows), MAT(dlogits), MAT(logits), BYTES(target, 4 * logits.rows))
MIRROR(adam_step, (OpCx * cx, Mat master, Mat m_, Mat v, Mat grad, Mat copy, AdamStep s),
       (cx, master, m_, v, grad, copy, s), MAT(master), MAT(m_), MAT(v), MAT(grad), MAT(copy))
MIRROR(sumsq_blocks, (OpCx * cx, double *out, int64_t *nonfinite, Mat x), (cx, out, nonfinite, x),
       BYTES(out, 8 * ceil_div(x.rows, 128)), BYTES(nonfinite, 8), MAT(x))

// Every operation has its mirror.
typedef void (*AnyOp)(void);
extern const AnyOp mirrors[];
const AnyOp mirrors[] = {
#define OP(name, tolerance, args) (AnyOp)name##_mirror,
#include "ops.def"
#undef OP
};
