// parity_on_cpu.c - `tessera train` with the CUDA backend's kernels as fibers, or on the CPU, for parity_cases:
//     parity_on_cpu cpu|cuda MODE RUN_DIR STEPS
// configs/tiny.yaml with one sequence a step. The kernels are those of Hopper: wgmma, mma.sync, attention on tensor
// cores.
#include <stdio.h>
#include <stdlib.h>

#include "gemm_cuda_mma.h"
#include "gemm_cuda_sm90.h"
#include "run.h"

void attn_mma_choose(int which);

int main(int argc, char **argv) {
    if (argc != 5) return E_USAGE;
    char mode[64];
    snprintf(mode, sizeof mode, "precision.mode=%s", argv[2]);
    const char *sets[] = {mode, "train.global_batch=1"};
    TrainOptions o = {.config_path = "configs/tiny.yaml", .run_dir = argv[3], .sets = sets, .nsets = 2,
                      .steps = strtol(argv[4], NULL, 10), .device = argv[1], .threads = 1};
    gemm_sm90_choose(1);
    gemm_mma_choose(1);
    attn_mma_choose(1);
    Err err = run_train(&o);
    if (err != OK) fprintf(stderr, "%s\n", fail_message());
    return (int)err;
}
