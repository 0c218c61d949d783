// cmd_train_sbatch.h - `tessera train ... --print-sbatch`.
#pragma once
#include "run.h"

typedef struct SbatchShape {
    int64_t nodes;              // 1 or more
    int64_t ranks_per_node;     // 0: parallel.ep / nodes
    const char *const *injects; // the values of --inject, as they were given
    int ninjects;
} SbatchShape;

// train_print_sbatch: launch/slurm.sbatch on standard output, filled in for this command line: nodes, ranks, cores
// (--threads, else this machine's by rank), GPUs (with --device cuda), time (--time-limit, else a day), the signal's
// lead (--grace, else 120 s), this folder, config, run directory, where the first start resumes, the flags of the run.
// Errors: E_CONFIG if the config does not fit that many ranks; E_USAGE if the lead is the whole job, or --resume PATH
// comes without --run-dir. Local.
Err train_print_sbatch(const TrainOptions *o, const SbatchShape *shape) MUST_CHECK;
