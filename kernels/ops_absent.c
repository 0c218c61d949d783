// ops_absent.c - the CUDA backend of a program that was built without CUDA.
#include "ops.h"

const Ops *ops_cuda(void) {
    return NULL;
}
