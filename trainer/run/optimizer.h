// optimizer.h - the end of a step: norm of the reduced gradients, clip, AdamW on ZeRO-1 shards, publish.
#pragma once
#include "params.h"

typedef struct OptStep {
    int64_t step; // 1, 2, ...: for bias correction
    double lr, beta1, beta2, eps, weight_decay, clip;
} OptStep;

typedef struct OptResult {
    double grad_norm; // before clipping
    int64_t
        nonfinite; // non-finite gradient values of the whole model; if not 0, nothing was updated
    char culprit[160]; // first such parameter and rank, "" if none
} OptResult;

// optimizer_step: own rows of gradients are sums over ranks already (reduce.h; nothing to do on one rank). Global norm,
// clip, AdamW, publish. If any gradient is not finite, parameters, moments and compute copies stay as they were;
// the result says where. Collective over world.
Err optimizer_step(Params *p, const Shape *s, Cx *cx, const OptStep *o, OptResult *r) MUST_CHECK;
// optimizer_hash: layout-independent 64-bit sum of hashes of rows of masters, moments and biases.
// Collective over world.
Err optimizer_hash(const Params *p, Cx *cx, uint64_t *hash) MUST_CHECK;
