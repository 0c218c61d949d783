// model.h - the whole network: embedding, blocks, MTP modules, heads; forward and backward of one
// micro-batch.
//
// Explicit forward and backward per layer, no autograd. DeepSeek-V3 report 2.1, 2.2.
#pragma once
#include "latent_cache.h"
#include "params.h"

#define MTP_MAX 16

typedef struct Model Model;

// Tokens of one micro-batch. Training windows are complete: row b holds S+1+nmtp tokens, so that no
// target is missing. Otherwise (dump, evaluation of short texts) a row holds S tokens: MTP module k
// runs S-k positions.
typedef struct Batch {
    int64_t nseq, S;
    int64_t ld;               // tokens from one row to the next
    const int32_t *tokens;    // [nseq, ld] host
    const int32_t *targets;   // [nseq, S] host: target of the main head, -1 = none; NULL: the next
                              // token of the row
    const int32_t *doc_start; // [nseq, S] host, NULL = no document mask
    bool is_complete;         // rows hold S+1+nmtp tokens
    bool is_main_only;        // leave the MTP modules out (evaluation)
} Batch;

// Factors of the loss sums in the total whose gradient is taken.
typedef struct LossScale {
    double lm;  // of the sum of nats of the main head: 1 / targets of the global batch
    double mtp; // of the sum of nats of every MTP head: lambda / depth / targets of the main head;
                // where rows are not complete the k-th head has k targets fewer per row, and its
                // factor is larger by that ratio
    double balance; // of sum_layers sum_seq sum_e f P: alpha / sequences of the global batch
} LossScale;

// Sums over micro-batches of this rank; all added to.
typedef struct LossSums {
    double lm, mtp[MTP_MAX], balance; // nats; nats; sum_layers sum_seq f.P
    int64_t lm_targets, mtp_targets[MTP_MAX];
    int64_t lm_correct; // targets that were the largest logit
} LossSums;

// What the caller may watch. Any may be NULL. Views are valid during the call only.
typedef struct Taps {
    void *user;
    Err (*hidden)(void *user, int64_t layer, Mat x); // [nseq*S_k, D] residual stream after a block
    Err (*logits)(void *user, int mtp, int64_t row0,
                  Mat logits); // chunk of rows of head `mtp` (0 = main), f32
    Err (*loss)(void *user, int mtp, int64_t row0, int64_t n, const float *loss,
                const int32_t *correct); // per target
    // Backward: nothing more will be added to the gradients of this block; nlayers + nmtp: of a head
    // of its own; -1: of all the others. In descending order.
    Err (*grads)(void *user, int64_t layer);
} Taps;

// model_create: parameters (see params_create) and fixed tables. Works in measure mode. Local.
Err model_create(Model **out, const Shape *s, Cx *cx, bool with_grad, bool with_state) MUST_CHECK;
void model_free(Model **m);
Params *model_params(Model *m);
const Shape *model_shape(const Model *m);
// model_fwd: losses only. Collective over ep: every rank of the group calls it the same number of
// times with the same nseq*S.
Err model_fwd(Model *m, Cx *cx, const Batch *b, LossSums *sums, const Taps *taps) MUST_CHECK;
// model_fwd_bwd: losses, and gradients added to every parameter's grad. Collective over ep.
Err model_fwd_bwd(Model *m, Cx *cx, const Batch *b, const LossScale *scale, LossSums *sums,
                  const Taps *taps) MUST_CHECK;
// model_extend: n more tokens of the text in the cache, at most as many as a micro-batch has; the
// cache grows by n. logits [k,V] f32, k <= n, out: of the main head after each of the last k of them;
// mat_none(): none. MTP modules have no part. On the host, with a group of one rank. Errors: E_INPUT:
// an unknown token; E_INTERNAL: no room in the cache. Local.
Err model_extend(Model *m, Cx *cx, LatentCache *c, const int32_t *token, int64_t n, Mat logits) MUST_CHECK;
// model_counts: [nblocks][E] i64 tokens routed to each expert on this rank since model_zero_counts
// (training passes and model_fwd alike), memory of the device. NULL rows for blocks without experts.
int64_t **model_counts(Model *m);
Err model_zero_counts(Model *m, Cx *cx) MUST_CHECK;
