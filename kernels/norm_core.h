// norm_core.h - arithmetic of RMSNorm on scalars. Host and device.
#pragma once
#include <math.h>

#include "fp8.h"

// norm_rstd: 1 / sqrt(sumsq / n + eps).
static HD inline float norm_rstd(float sumsq, float n, float eps) {
    return 1.0f / sqrtf(sumsq / n + eps);
}
static HD inline float norm_value(float x, float rstd, float w) {
    return x * rstd * w;
}
// norm_grad: dres + rstd * (dy*w - xhat*c), c = mean over the row of dy*w*xhat.
static HD inline float norm_grad(float dres, float dy, float x, float w, float rstd, float c) {
    return dres + rstd * (dy * w - x * rstd * c);
}
