// model_memory.h - how much memory a model needs, found by running the same code in measure mode; contexts with it.
#pragma once
#include "backend.h"
#include "boot.h"
#include "model.h"

typedef struct MemoryPlan {
    size_t params;  // compute copies, prepared weights, gradients, tables
    size_t state;   // this rank's shard of masters and moments, biases, counts
    size_t acts, scratch;                   // worst case: every token to this rank's experts
    size_t acts_balanced, scratch_balanced; // perfect balance
    double saved[SAVED_KINDS]; // bytes that forward saves per token and block, by kind, in balance; mean over blocks
    size_t op_thread, op_shared;            // bounds of the operations' own temporaries, per thread and in all
    size_t op_device;                       // the same for operations that run on a device
} MemoryPlan;

// memory_measure: bytes of each arena of one rank of the mesh, for training (with_grad) or evaluation only. Local.
Err memory_measure(MemoryPlan *out, const Shape *s, const Mesh *mesh, bool with_grad, bool with_state) MUST_CHECK;
// memory_saved_bf16: what the same model would save per token and block in bf16 mode with nothing recomputed. Local.
Err memory_saved_bf16(double *out, const Shape *s, const Mesh *mesh) MUST_CHECK;
// cx_create: a context of the CPU backend on these ranks, for products as `s` asks for them, its arenas reserved for
// the worst case of `plan`. Local.
Err cx_create(Cx *cx, const Boot *boot, const Mesh *mesh, const Shape *s, const MemoryPlan *plan, int nthreads)
    MUST_CHECK;
// cx_check_backend: E_CONFIG, naming the setting, if the backend cannot compute what `s` asks for. Local.
Err cx_check_backend(const Backend *on, const Shape *s) MUST_CHECK;
// cx_create_on: the same on any backend (backend.h). On a device the worst case is memory, not address space. Errors:
// E_INTERNAL where what the ranks of this machine need in balance is more than it has.
Err cx_create_on(Cx *cx, const Backend *on, const Boot *boot, const Mesh *mesh, const Shape *s, const MemoryPlan *plan,
                 int nthreads) MUST_CHECK;
void cx_destroy(Cx *cx);

// model_flops_per_token: training FLOPs per token: 6 * (active parameters without the input embedding, MTP modules and
// their heads included) + causal attention, 3 * layers * heads * S * (Dn+Dr+Dv). Deepseek facts 7.1.
double model_flops_per_token(const Shape *s);
