// attn_core.h - softmax and its gradient for one score. Host and device.
#pragma once
#include "exp_core.h"

// attn_prob: the probability of a score, from the saved log of the denominator.
static HD inline float attn_prob(float score, float scale, float lse) {
    return exp_f32(score * scale - lse);
}
// attn_dscore: gradient of the unscaled score; delta = sum_j p_j dp_j = dout . o.
static HD inline float attn_dscore(float p, float dp, float delta, float scale) {
    return p * (dp - delta) * scale;
}
