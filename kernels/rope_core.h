// rope_core.h - rotation of one value, and the frequencies with and without YaRN. Host and device.
#pragma once
#include <math.h>

#include "fp8.h"
#include "rope.h"

// rope_value: one value of a rotated pair: v and its partner, by the angle with cosine c; the sine
// is negated for the first of the pair: (a, b) -> (a c + b (-s), b c + a s).
static HD inline float rope_value(float v, float partner, float c, float signed_s) {
    return v * c + partner * signed_s;
}

// rope_mscale: 0.1 m ln(factor) + 1, or 1 where the context is not stretched.
static inline double rope_mscale(double factor, double m) {
    return factor > 1.0 ? 0.1 * m * log(factor) + 1.0 : 1.0;
}
// rope_ramp_limit: the pair whose wavelength turns `beta` times in the original context.
static inline double rope_ramp_limit(double beta, double dim, double theta, double original) {
    return dim * log(original / (beta * 2.0 * 3.14159265358979323846)) / (2.0 * log(theta));
}
// rope_frequency: angle per position of pair i.
static inline double rope_frequency(int64_t i, int64_t Dr, double theta, YarnShape y) {
    double f = pow(theta, -2.0 * (double)i / (double)Dr);
    if (y.factor == 0.0) return f;
    double low = floor(rope_ramp_limit(y.beta_fast, (double)Dr, theta, y.original_max_position));
    double high = ceil(rope_ramp_limit(y.beta_slow, (double)Dr, theta, y.original_max_position));
    if (low < 0.0) low = 0.0;
    if (high > (double)(Dr - 1)) high = (double)(Dr - 1);
    if (high == low) high += 0.001; // no division by zero, as in the reference implementations
    double ramp = ((double)i - low) / (high - low);
    ramp = ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
    return f / y.factor * ramp + f * (1.0 - ramp);
}
