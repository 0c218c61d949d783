// adam_core.h - AdamW on one weight, every operation rounded on its own. Host and device.
#pragma once
#include <math.h>

#include "adam.h"
#include "fp8.h"

// adam_weight: returns the new weight; *m and *v go in and come out as FP32 (the caller rounds
// them). Adam: Kingma and Ba 2015; decoupled decay: Loshchilov and Hutter 2019.
static HD inline float adam_weight(float w, float *m, float *v, float grad, AdamStep s) {
    float g = grad * s.grad_scale;
    float m1 = s.beta1 * *m + (1.0f - s.beta1) * g;
    float v1 = s.beta2 * *v + (1.0f - s.beta2) * (g * g);
    *m = m1;
    *v = v1;
    float step = (m1 / s.bias1) / (sqrtf(v1 / s.bias2) + s.eps);
    return w - s.lr * (step + s.weight_decay * w);
}
