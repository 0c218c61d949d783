// calibrate.h - fp8.scaling static: recording what calibration sees, step by step.
#pragma once
#include "params.h"

// calibrate_step: the end of a finished step, before its FP8 counters are reset. While calibration lasts: the largest
// magnitude of every site, over all ranks, joins the table; after its last step the weights are prepared again, with
// the scales that hold from now on (not counted), so that a run that is resumed here does the same. Later: warns once
// of tensors whose site calibration never saw. Does nothing with another scaling. Collective over world.
Err calibrate_step(Params *p, const Shape *s, Cx *cx) MUST_CHECK;
