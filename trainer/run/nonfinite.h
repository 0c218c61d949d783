// nonfinite.h - a step whose loss or gradient is not finite: which rank, which layer, which tensor, which samples.
//
// All ranks know that it is so from the step's own sums. Then the passes of the step are run again, one by one, with a
// look at every block (a loss) or at every gradient before ranks are added up (a gradient); what that counts and sums
// is dropped with the step.
#pragma once
#include "inject.h"
#include "loader.h"

// The samples of one step on this rank.
typedef struct StepShare {
    int64_t first, n; // of the global batch
    int64_t micro;    // samples per pass
} StepShare;

// What found a step to be bad; the same on all ranks.
typedef struct BadStep {
    bool is_bad;
    int rank;            // of the first cause, -1: no rank alone (a sum over ranks left the range)
    int nranks;          // how many had one
    int64_t layer;       // block, -1: not of a block
    char tensor[112];    // "output", "loss" or the parameter whose gradient it is
    int64_t first, last; // samples of the pass; of the whole batch with rank -1
    char text[480];      // "the output of layer 12 is not finite on rank 2: samples 20 to 20"
} BadStep;

// What running a pass again needs.
typedef struct Replay {
    Model *model;
    Cx *cx;
    StepShare share;
    const LossScale *scale;
    Inject *inject; // faults of the running step happen again; NULL = none
    // load: n samples from `first` on, of this rank.
    Err (*load)(void *user, int64_t first, int64_t n, Batch *b);
    void *user;
} Replay;

// nonfinite_loss: the loss is `loss`. `mine`: the sum of this rank alone is not finite. Collective over world.
Err nonfinite_loss(const Replay *r, double loss, bool mine, BadStep *out) MUST_CHECK;
// nonfinite_gradient: `reduced`: what the summed gradients say ("gradient of NAME (3 values)"), "" if only their norm
// is not finite. The gradients are gone afterwards. Collective over world.
Err nonfinite_gradient(const Replay *r, const char *reduced, BadStep *out) MUST_CHECK;
