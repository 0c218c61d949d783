// block.h - one transformer block: attention half, then dense or expert half, both pre-norm
// residual.
#pragma once
#include "attention.h"
#include "moe.h"

typedef struct Block {
    int64_t layer;
    bool is_moe;
    AttentionParams attn;
    DenseParams dense;
    MoeParams moe;
} Block;

typedef struct BlockSaved {
    CxMark mark; // of acts, before this block saved anything
    AttentionSaved attn;
    DenseSaved dense;
    MoeSaved moe;
    Mat y; // [T,D] the block's output
} BlockSaved;

// What the passes need besides the parameters.
typedef struct BlockRun {
    int64_t nseq, S;
    const float *rope;        // [S, Dr/2, 2]
    const int32_t *doc_start; // [T] or NULL
    bool with_balance;        // compute the balance loss
    double balance_scale;     // its factor in the gradient
    const LatentCache *cache; // generation: the positions follow those in the cache; forward only. Else NULL
} BlockRun;

Block block_make(const Params *p, const Shape *s, int64_t layer, int64_t *count);
// block_fwd: saved->y = block(x); everything on acts. *balance added to. Collective over ep.
Err block_fwd(const Shape *s, Cx *cx, const Block *b, BlockSaved *a, Mat x, const BlockRun *run,
              double *balance) MUST_CHECK;
// block_bwd: dx [T,D] from dy [T,D], gradients of parameters added; releases everything the block
// pushed on acts. dx and dy are the caller's, different memory, pushed before block_fwd. Collective
// over ep.
Err block_bwd(const Shape *s, Cx *cx, const Block *b, BlockSaved *a, Mat dx, Mat dy,
              const BlockRun *run) MUST_CHECK;
