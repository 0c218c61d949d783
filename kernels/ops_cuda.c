// ops_cuda.c - the table of the CUDA backend.
#include "ops.h"

const Ops *ops_cuda(void) {
    static const Ops table = {
        .backend = "cuda",
        .isa = "CUDA",
#define OP(name, tolerance, args) .name = name##_cuda,
#include "ops.def"
#undef OP
    };
    return &table;
}
