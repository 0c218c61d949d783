// route_core.h - selection and gradients of one token's router. Host and device.
//
// Ties are decided by comparing with > while walking upwards: the lowest index wins. DeepSeek-V3
// report eqs. 13-16; V2 report 2.2.2 for the form without a bias.
#pragma once
#include "exp_core.h"
#include "route.h"

// route_top: the `k` largest of n values (mask[i] == 0 counts as -infinity, mask may be NULL),
// written in ascending order of index. best [k] is workspace. Values that are NaN or -infinity come
// last, lowest index first.
static HD inline void route_top(int32_t *out, float *best, int64_t k, const float *value,
                                const uint8_t *mask, int64_t n) {
    int64_t have = 0;
    for (int64_t i = 0; i < n; i++) {
        float v = value[i];
        if ((mask && !mask[i]) || !(v > -INFINITY)) continue;
        if (have == k && !(v > best[k - 1])) continue;
        int64_t at = have < k ? have++ : k - 1;
        for (; at > 0 && v > best[at - 1]; at--) {
            best[at] = best[at - 1];
            out[at] = out[at - 1];
        }
        best[at] = v;
        out[at] = (int32_t)i;
    }
    // Fewer than k real values: the lowest indices that are not there yet.
    for (int32_t i = 0; have < k && i < n; i++) {
        int found = 0;
        for (int64_t j = 0; j < have; j++) found |= out[j] == i;
        if (!found) out[have++] = i;
    }
    // Insertion sort by index.
    for (int64_t i = 1; i < k; i++) {
        int32_t e = out[i];
        int64_t at = i;
        for (; at > 0 && out[at - 1] > e; at--) out[at] = out[at - 1];
        out[at] = e;
    }
}

// route_group_score: sum of the two largest values of a group, or the largest where there is no
// bias.
static HD inline float route_group_score(const float *value, int64_t n, int has_bias) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        float v = value[i];
        if (v > first) {
            second = first;
            first = v;
        } else if (v > second) {
            second = v;
        }
    }
    return has_bias && n > 1 ? first + second : first;
}

// route_gates: gate values of the selected, in their order.
static HD inline void route_gates(float *gate, const float *score, const int32_t *idx,
                                  RouteShape s) {
    float sum = 0.0f;
    for (int64_t k = 0; k < s.K; k++) sum += score[idx[k]];
    float denom = s.normalise ? sum + 1e-20f : 1.0f;
    for (int64_t k = 0; k < s.K; k++) gate[k] = score[idx[k]] / denom * s.scale;
}

// route_score_grad: dscore [E] += gradient through the gate values.
static HD inline void route_score_grad(float *dscore, const float *dgate, const float *score,
                                       const int32_t *idx, RouteShape s) {
    float sum = 0.0f, dot = 0.0f;
    for (int64_t k = 0; k < s.K; k++) sum += score[idx[k]];
    float denom = s.normalise ? sum + 1e-20f : 1.0f;
    if (s.normalise)
        for (int64_t k = 0; k < s.K; k++) dot += dgate[k] * (score[idx[k]] / denom);
    for (int64_t k = 0; k < s.K; k++) dscore[idx[k]] += (dgate[k] - dot) / denom * s.scale;
}
