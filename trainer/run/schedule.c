// schedule.c - learning rate, batch size, bias speed and MTP weight as pure functions of the step.
//
// Learning rate: linear warm-up to the peak, constant, cosine to min_lr, then constant tails. The
// batch grows linearly in samples, in multiples of a quantum. No state: a resumed run asks the same
// functions with the same arguments. DeepSeek-V3 report, section 4.2.
#include "schedule.h"

#include <math.h>

#include "view.h"

#define PI 3.14159265358979323846

// Steps of the cosine: as configured, or what warm-up, constant phase and tails leave of the
// schedule.
static int64_t cosine_steps(const Config *c) {
    if (c->train.decay_steps > 0) return c->train.decay_steps;
    int64_t left = c->train.steps - c->train.warmup_steps - c->train.constant_steps;
    for (int i = 0; i < c->train.tail_steps.n; i++) left -= c->train.tail_steps.v[i];
    return max_i64(left, 0);
}

double schedule_lr(const Config *c, int64_t step) {
    double peak = c->train.lr, low = c->train.min_lr;
    if (step < 1) return 0.0;
    if (step <= c->train.warmup_steps) return peak * (double)step / (double)c->train.warmup_steps;
    int64_t i = step - c->train.warmup_steps - c->train.constant_steps;
    if (i <= 0) return peak;
    int64_t n = cosine_steps(c);
    if (i < n) return low + 0.5 * (peak - low) * (1.0 + cos(PI * (double)i / (double)n));
    double last = n > 0 ? low : peak;
    if (i == n) return last;
    i -= n;
    for (int t = 0; t < c->train.tail_lr.n && t < c->train.tail_steps.n; t++) {
        last = c->train.tail_lr.v[t];
        if (i <= c->train.tail_steps.v[t]) return last;
        i -= c->train.tail_steps.v[t];
    }
    return last;
}

static bool is_ramping(const Config *c, int64_t samples) {
    return c->train.batch_start > 0 && samples < c->train.batch_ramp_samples;
}

int64_t schedule_batch(const Config *c, int64_t samples) {
    int64_t full = c->train.global_batch, start = c->train.batch_start;
    if (!is_ramping(c, samples)) return full;
    int64_t q = max_i64(c->train.batch_quantum, 1);
    // 128 bits: (2^24 sequences) * (10^12 samples) is above 2^63
    __int128 grown = (__int128)(full - start) * samples / c->train.batch_ramp_samples;
    int64_t b = start + (int64_t)grown;
    return max_i64(b / q * q, start);
}

// The number of samples at which the batch, now `batch` inside the ramp, next changes.
static int64_t next_change(const Config *c, int64_t batch) {
    int64_t full = c->train.global_batch, start = c->train.batch_start;
    int64_t ramp = c->train.batch_ramp_samples, q = max_i64(c->train.batch_quantum, 1);
    int64_t next = (batch / q + 1) * q;
    if (full <= start || next > full) return ramp;
    __int128 need =
        (__int128)(next - start) * ramp; // smallest s with (full-start)*s/ramp >= next-start
    int64_t s = (int64_t)((need + (full - start) - 1) / (full - start));
    return min_i64(s, ramp);
}

// Whole plateaus of the ramp at a time, so that the cost depends on the number of batch sizes and
// not on the number of steps.
int64_t schedule_samples(const Config *c, int64_t steps) {
    int64_t samples = 0;
    while (steps > 0 && is_ramping(c, samples)) {
        int64_t batch = schedule_batch(c, samples);
        int64_t n = ceil_div(next_change(c, batch) - samples, batch);
        n = min_i64(n, steps);
        samples += n * batch;
        steps -= n;
    }
    return samples + max_i64(steps, 0) * c->train.global_batch;
}

double schedule_gamma(const Config *c, int64_t step) {
    if (c->balance.method == BALANCE_NONE) return 0.0;
    bool is_frozen = c->balance.freeze_step > 0 && step >= c->balance.freeze_step;
    return is_frozen ? 0.0 : c->balance.gamma;
}

double schedule_mtp_weight(const Config *c, int64_t step) {
    bool is_late = c->mtp.late_step > 0 && step >= c->mtp.late_step;
    return is_late ? c->mtp.loss_weight_late : c->mtp.loss_weight;
}
