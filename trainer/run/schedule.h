// schedule.h - pure functions of the step: learning rate, batch size, bias speed, MTP weight.
//
// DeepSeek-V3 report 4.2: linear warm-up, constant, cosine, constant tails; batch ramp; gamma freeze; lambda change.
#pragma once
#include "config.h"

// schedule_lr: learning rate of optimizer step `step` (1, 2, ...). Past the end: the last value.
double schedule_lr(const Config *c, int64_t step);
// schedule_batch: sequences of the global batch when `samples` have been consumed: batch_start + (global_batch -
// batch_start) * samples / batch_ramp_samples, rounded down to batch_quantum, at least batch_start.
int64_t schedule_batch(const Config *c, int64_t samples);
// schedule_samples: samples consumed by the first `steps` steps.
int64_t schedule_samples(const Config *c, int64_t steps);
double schedule_gamma(const Config *c, int64_t step);
double schedule_mtp_weight(const Config *c, int64_t step);
