// step.h - one optimizer step over the global batch: micro-batches, agreement of all ranks, update.
#pragma once
#include "balance.h"
#include "inject.h"
#include "loader.h"
#include "metrics.h"
#include "nonfinite.h"
#include "optimizer.h"
#include "stop.h"

// What a step needs besides the model; borrowed.
typedef struct StepInput {
    const Config *config;
    Loader *loader;
    int64_t step;      // the step to run, 1, 2, ...
    int64_t samples;   // consumed before it
    int32_t *tokens;   // [micro_batch, seq_len+1+nmtp] host, room for one micro-batch
    int32_t *doc_start; // [micro_batch, seq_len] host, or NULL without a document mask
    Stop *stop;        // looked at before every micro-batch and before the update; NULL = never
    Inject *inject;    // faults on demand, NULL = none
    double *own_s;     // [world] filled: seconds of each rank up to the loss, without waits for others; NULL: not
    Shadow *shadow;    // on every fp8.shadow_every-th step its samples are taken; NULL = never
} StepInput;

typedef struct StepOutput {
    bool is_stopped;   // a rank was asked to stop: nothing was updated, the step is dropped on all ranks
    int64_t batch;     // sequences of the global batch
    BadStep bad;       // bad.is_bad: loss or gradient were not finite: nothing was updated, nothing counted
    ReadProof read;    // of this rank's share of it
    StepMetrics m;     // losses, norms, loads, bytes, health: everything but times, memory and the hash
} StepOutput;

// step_train: forward and backward of this rank's share of the batch, sums over ranks, optimizer, bias update. With a
// loss or a gradient that is not finite nothing is updated: with train.on_nonfinite abort that is E_NUMERIC on all
// ranks, naming step, rank, layer or parameter and samples, else out->bad has them. Collective over world.
Err step_train(Model *m, Cx *cx, const StepInput *in, StepOutput *out) MUST_CHECK;
