// swiglu_core.h - the gated unit on scalars. Host and device.
#pragma once
#include "exp_core.h"

// swiglu_value: silu(g) * u, ungated.
static HD inline float swiglu_value(float g, float u) {
    return g * sigmoid_f32(g) * u;
}
// swiglu_grad: from d = dh * gate: dg = d * u * silu'(g), du = d * silu(g); returns silu(g).
// silu'(g) = s + g s (1-s), where 1-s = sigmoid(-g) is computed without cancellation.
static HD inline float swiglu_grad(float *dg, float *du, float d, float g, float u) {
    float e = exp_f32(-fabsf(g));
    float near = 1.0f / (1.0f + e), far = e * near;
    float s = g < 0.0f ? far : near, not_s = g < 0.0f ? near : far;
    float silu = g * s;
    *dg = d * u * (s + silu * not_s);
    *du = d * silu;
    return silu;
}
