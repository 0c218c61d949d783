// permute_core.h - one value of the sum over the rows of a token. Host and device.
#pragma once
#include "fp8.h"
#include "view.h"

// permute_value: element (r, c) of an F32 or BF16 matrix as float.
static HD inline float permute_value(Mat m, int64_t r, int64_t c) {
    if (m.t == DT_F32) return ((const float *)m.p)[r * m.ld + c];
    return f32_from_bf16(((const uint16_t *)m.p)[r * m.ld + c]);
}
// permute_sum: (add1 + add2 + x rows in list order) of element (m, c), FP32, unrounded.
static HD inline float permute_sum(Mat x, const int32_t *first, const int32_t *idx, Mat add1,
                                   Mat add2, int64_t m, int64_t c) {
    float s = 0.0f;
    if (add1.p) s += permute_value(add1, m, c);
    if (add2.p) s += permute_value(add2, m, c);
    for (int32_t i = first[m]; i < first[m + 1]; i++) s += permute_value(x, idx[i], c);
    return s;
}
// slots_bits: the bits that the rows of token t have in slot k.
static HD inline uint32_t slots_bits(const uint32_t *rows, const int32_t *first, const int32_t *idx, int64_t K,
                                     int64_t t, int64_t k) {
    uint32_t bits = 0;
    for (int32_t i = first[t]; i < first[t + 1]; i++) bits |= rows[idx[i] * K + k];
    return bits;
}
// parts_value: number i of the sum.
static HD inline float parts_value(const float *own, int64_t own_at, const float *parts, int64_t stride,
                                   int64_t nparts, int64_t i) {
    float sum = own_at == 0 ? own[i] : parts[i];
    for (int64_t r = 1; r < nparts; r++) sum += r == own_at ? own[i] : parts[(r - (r > own_at)) * stride + i];
    return sum;
}
