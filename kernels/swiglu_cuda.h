// swiglu_cuda.h - 16 elements of the gated unit by one thread, the same whether they are quantised or not. Private to
// kernels/*_cuda*.cu.
#pragma once
#include "quant_cuda.h"

#include "swiglu_core.h"

// gated16: v = silu(g) * u * gate, unrounded.
DEV void gated16(float *v, const float *g, const float *u, float gate) {
    UNROLL
    for (int i = 0; i < PER_LANE; i++) v[i] = swiglu_value(g[i], u[i]) * gate;
}
// gated16_grad: g and u become their gradients, unrounded, from dh = d and the gate; returns the thread's part of the
// gate's own gradient, its elements in ascending order. octet_sum gives that of a tile of 128; tiles are added in
// order.
DEV float gated16_grad(float *g, float *u, const float *d, float gate) {
    float sum = 0.0f;
    UNROLL
    for (int i = 0; i < PER_LANE; i++) {
        float dg, du, silu = swiglu_grad(&dg, &du, d[i] * gate, g[i], u[i]);
        sum += d[i] * (silu * u[i]);
        g[i] = dg;
        u[i] = du;
    }
    return sum;
}
