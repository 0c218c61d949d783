// ops.h - the table of operations of a backend, and the context every operation gets.
//
// An operation knows shapes and numbers, never a model, a rank or a configuration. Matrices of activations
// may be F32 or BF16 (Mat.t decides; arithmetic is FP32 either way and results are rounded once on store).
// Outputs are overwritten unless the contract says "adds to".
#pragma once
#include "adam.h"
#include "arena.h"
#include "attn.h"
#include "fused.h"
#include "gemm.h"
#include "permute.h"
#include "quant.h"
#include "rope.h"
#include "route.h"
#include "view.h"

// What an operation may use besides its arguments.
typedef struct OpCx {
    Arena *scratch;            // temporaries; marked and released inside one operation
    int nthreads;              // OpenMP threads to use; never changes a bit of any result
    GemmAccumulate accumulate; // how FP8 products are summed (gemm.h); zero = GEMM_PROMOTE128
    int promote_every;         // promotion interval of the modes with promotion, a multiple of 32; zero = 128
} OpCx;

typedef struct Ops {
    const char *backend; // "cpu", "cuda", "null"
    const char *isa;     // instruction set the CPU backend chose, for people
#define OP(name, tolerance, args) Err(*name) args;
#include "ops.def"
#undef OP
} Ops;

#define OP(name, tolerance, args) Err name##_cpu args;
#include "ops.def"
#undef OP

#define OP(name, tolerance, args) Err name##_cuda args;
#include "ops.def"
#undef OP

// ops_cuda: the CUDA backend, on the device that device_cuda_open chose; NULL if it is not built in. Operations return
// when their kernels are issued; every pointer they get, Groups' and counters' included, is memory of the device.
// What only the device can see to be wrong (tokens, targets, groups) is returned by its next to_host, to_device or
// sync (device.h).
const Ops *ops_cuda(void);
// ops_cpu: the CPU backend, its GEMM chosen once for this processor, or by ops_isa_select.
// ops_isa_select: products, attention and quantiser use this instruction set from now on. Errors: E_USAGE, and nothing
// changed, if it is unknown or cannot run here; the message lists all. Not thread-safe.
// ops_isa_list: their names, best first, and which of them cannot run here.
const Ops *ops_cpu(void);
Err ops_isa_select(const char *name) MUST_CHECK;
void ops_isa_list(char *out, size_t n);
// ops_null: every operation returns OK and touches nothing; the backend of measure mode.
const Ops *ops_null(void);
// ops_count / ops_name / ops_class: the list itself, for tests and reports.
int ops_count(void);
const char *ops_name(int i);
const char *ops_class(int i);
