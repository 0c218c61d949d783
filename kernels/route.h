// route.h - the router: scores, biased and group-limited selection, gate values, balance loss.
//
// route_fwd:
//   score = sigmoid(logits) or softmax_E(logits), FP32
//   select: top-K of score + bias, experts outside the kept groups masked with -infinity; group score = sum of the two
//     largest biased scores (max where bias is NULL); ties take the lowest group, the lowest expert. The K
//     experts of a token are written in ascending order of expert index.
//   gate = score of the selected, divided by (their sum + 1e-20) if normalise, times scale.
//   idx   [T,K] i32 out;  gate [T,K] f32 out;  score [T,E] f32 out, saved for bwd
//   count [E] i64  added to: tokens routed to each expert
//   logits [T,E] f32;  bias [E] f32 or NULL
// Class EXACT for idx and count given equal scores.
//
// route_seqbal: the sequence-wise balance loss (DeepSeek-V3 report eqs. 17-20), without alpha:
//   loss += sum over sequences of sum_e f_e P_e;  f_e = E/(K S) * #{t: e in top-K of the unbiased scores};
//   P_e = mean_t score_te / sum_j score_tj. coef [nseq,E] f32 out = f_e (for bwd). T = nseq * S.
//   loss: one double in the backend's memory, added to.
//
// route_bwd: gradient of the logits.
//   dlogits [T,E] f32 out
//   dgate [T,K] f32: gradient of the gate values; gate, score, idx as saved
//   coef [nseq,E] f32 or NULL: f_e times alpha and every normalisation (seqbal_scale below); adds the gradient
//     of  shape.seqbal_scale * sum_seq sum_e f_e P_e  through P only.
#pragma once
#include "view.h"

typedef struct RouteShape {
    int64_t T, E, K;
    int64_t ngroup, topk_group; // 1, 1 = no groups
    bool is_sigmoid;            // else softmax
    bool normalise;             // norm_topk_prob
    float scale;                // routed_scaling_factor
    float seqbal_scale;         // factor of the balance loss in the total loss, for route_bwd
} RouteShape;
