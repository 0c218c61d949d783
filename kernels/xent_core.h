// xent_core.h - cross-entropy of one row from its largest logit and its sum. Host and device.
#pragma once
#include "exp_core.h"

// xent_loss: log(sum exp(l - max)) + max - l_target, in double, rounded once.
static HD inline float xent_loss(float max, double sum, float target) {
    return (float)(log(sum) + ((double)max - (double)target));
}
// xent_grad: scale * softmax, from inv = scale / sum.
static HD inline float xent_grad(float logit, float max, float inv) {
    return exp_f32(logit - max) * inv;
}
