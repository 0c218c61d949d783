// calibration.h - the table behind fp8.scaling static: the largest magnitude that each site of each block showed
// during the first steps (trainer/run/calibrate.h records it), from which its scale is fixed afterwards.
//
// A site that calibration never saw, or saw only zeros in, keeps one scale per tensor; every such tensor is counted.
// The table is the same on all ranks and part of checkpoints.
#pragma once
#include "recipe.h"

typedef struct Calibration {
    float *amax;     // [nblocks][SITE_COUNT] largest finite magnitude, 0 = not seen
    int64_t nblocks;
    float steps;     // of calibration done; a float because checkpoints hold it as one
    int64_t unseen;  // tensors coded after calibration whose site has no amax; added to
    bool is_warned;  // a warning said so
} Calibration;

// calibration_create: an empty table. Local.
Err calibration_create(Calibration **out, int64_t nblocks) MUST_CHECK;
void calibration_free(Calibration **c);
// calibration_reset: as if just created. Local.
void calibration_reset(Calibration *c);
// calibration_is_fixed: do scales come from the table by now? Local, pure.
bool calibration_is_fixed(const Calibration *c, const Recipe *r);
// calibration_rule: how the operation at `site` of block `layer` scales. c: NULL unless the recipe is static, and
// in measure mode. Local.
QuantRule calibration_rule(Calibration *c, const Recipe *r, int64_t layer, Site site);
