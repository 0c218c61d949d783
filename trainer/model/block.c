// block.c - the two halves of a block in order, and backwards.
//
// The backward of a block is its input gradients, then its weight gradients: a schedule that overlaps
// communication may move the second part.
#include "block.h"

Block block_make(const Params *p, const Shape *s, int64_t layer, int64_t *count) {
    Block b = {0};
    b.layer = layer;
    b.is_moe = shape_is_moe(s, layer);
    b.attn = attention_params(p, layer);
    if (b.is_moe) b.moe = moe_params(p, layer, count);
    else b.dense = dense_params(p, layer);
    return b;
}

Err block_fwd(const Shape *s, Cx *cx, const Block *b, BlockSaved *a, Mat x, const BlockRun *run, double *balance) {
    Mat mid;
    cx->layer = b->layer;
    cx_note_block(cx, b->layer, LEDGER_FORWARD);
    a->mark = cx_mark_acts(cx);
    cx_saved_block(cx, x.rows);
    TRY(arena_mat(cx->acts, &a->y, s->act, x.rows, x.cols, "block.y"));
    TRY(arena_mat(cx->acts, &mid, s->act, x.rows, x.cols, "block.mid"));
    cx_saved(cx, SAVED_RESIDUAL);
    if (run->cache) TRY(attention_cached(s, cx, &b->attn, mid, x, run->cache));
    else TRY(attention_fwd(s, cx, &b->attn, &a->attn, mid, x, run->nseq, run->S, run->rope, run->doc_start));
    if (!b->is_moe) return dense_fwd(s, cx, &b->dense, &a->dense, a->y, mid);
    return moe_fwd(s, cx, &b->moe, &a->moe, a->y, mid, run->nseq, run->S, run->with_balance, balance);
}

Err block_bwd(const Shape *s, Cx *cx, const Block *b, BlockSaved *a, Mat dx, Mat dy, const BlockRun *run) {
    Mat dmid;
    cx->layer = b->layer;
    cx_note_block(cx, b->layer, LEDGER_BACKWARD);
    TRY(arena_mat(cx->acts, &dmid, s->act, dy.rows, dy.cols, "block.dmid"));
    if (b->is_moe) TRY(moe_bwd_input(s, cx, &b->moe, &a->moe, dmid, dy, run->balance_scale));
    else TRY(dense_bwd_input(s, cx, &b->dense, &a->dense, dmid, dy));
    TRY(cx_progress(cx));
    TRY(attention_bwd_input(s, cx, &b->attn, &a->attn, dx, dmid));
    TRY(cx_progress(cx));
    if (b->is_moe) TRY(moe_bwd_weight(s, cx, &b->moe, &a->moe));
    else TRY(dense_bwd_weight(s, cx, &b->dense, &a->dense));
    TRY(cx_progress(cx));
    TRY(attention_bwd_weight(s, cx, &b->attn, &a->attn));
    cx_release_acts(cx, a->mark);
    return OK;
}
