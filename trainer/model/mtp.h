// mtp.h - one multi-token prediction module: joins the hidden state of position i with the embedding of token i+k.
//
// x = W_eh [RMSNorm_e(Emb(t_{i+k})) ; RMSNorm_h(h_i)], then a block, a final norm, the shared head. h is the main
// model's hidden state after its final norm, for later modules the previous module's. DeepSeek-V3 report 2.2.
#pragma once
#include "block.h"

typedef struct MtpParams {
    Param *embed, *enorm, *hnorm, *eh_proj, *norm;
    Block block;
} MtpParams;

typedef struct MtpSaved {
    const int32_t *token; // [T] input tokens of this depth (device)
    Mat e, h;             // [T,D] embeddings, hidden states of the stage before
    Mat cat;              // [T,2D] both normed; with recompute.norm made again in the backward
    float *rstd_e, *rstd_h;
    BlockSaved block;
} MtpSaved;

MtpParams mtp_params(const Params *p, const Shape *s, int64_t k, int64_t *count);
// mtp_fwd: a->block.y = module's residual stream [T,D]. Collective over ep.
Err mtp_fwd(const Shape *s, Cx *cx, const MtpParams *p, MtpSaved *a, Mat h, const int32_t *token, const BlockRun *run,
            double *balance) MUST_CHECK;
// mtp_bwd: dh [T,D] = dres + gradient of h, from dy [T,D], the gradient of the residual stream; tmp [T,D] is
// overwritten. Adds to all gradients, the embedding's included. dres may be mat_none(). Collective over ep.
Err mtp_bwd(const Shape *s, Cx *cx, const MtpParams *p, MtpSaved *a, Mat dh, Mat tmp, Mat dy, Mat dres,
            const BlockRun *run) MUST_CHECK;
