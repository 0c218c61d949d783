// gated.h - the gated unit h = silu(g) * u [* gate] between two linears, and what it keeps for its backward.
//
// Used by dense FFNs, the shared expert and the routed experts. Forward always computes h from g and u as the
// linears gave them. What is kept of g and u: BF16 (or FP32), or with fp8.cache_swiglu fp8 their codes in 1x128
// tiles with power-of-two scales (CLASS_CACHE, whatever fp8.scaling); backward and Wgrad then take g, u and h from
// these codes. With recompute.swiglu h is not kept but made again from what is kept. DeepSeek-V3 report 3.3.3.
#pragma once
#include "linear.h"

// Where the unit is: the sites of what it keeps and of down's input.
typedef struct GatedSites {
    Site gate_kept, up_kept, h, h_t, dg, dg_t, du, du_t;
} GatedSites;

typedef struct Gated {
    GatedSites site;
    int64_t rows, cols;
    Mat g, u;          // [R,F] as computed; not with fp8.cache_swiglu fp8
    MatQ gq, uq;       // [R,F] codes; only with fp8.cache_swiglu fp8
    const float *gate; // [R] or NULL; the caller's memory
    Operand h;         // [R,F] down's input for Wgrad; empty with recompute.swiglu
    Mat sample;        // first rows of forward's h; only where products are compared (shadow_gemm.h)
    // kept by gated_bwd for the weight half
    Mat dg, du;          // [R,F]; not where only codes are made
    Turned dg_t, du_t;   // Wgrad's form of the output gradients of gate and up
    Turned h_t;          // Wgrad's form of h; only from the fused operation, else gated_turned makes it
} Gated;

// gated_memory: where the linears write g and u [rows, cols]: on acts if they are kept as they are, else on scratch.
Err gated_memory(const Shape *s, Cx *cx, Gated *a, GatedSites site, Mat *g, Mat *u, int64_t rows, int64_t cols)
    MUST_CHECK;
// gated_fwd: h, down's input, from g and u; on scratch or acts: valid until the caller releases scratch. Keeps in `a`
// what the backward needs. Local.
Err gated_fwd(const Shape *s, Cx *cx, Gated *a, Operand *h, Mat g, Mat u, const float *gate) MUST_CHECK;
// gated_bwd: from dh [R,F] the output gradients of gate and up: dg, du for Dgrad, on scratch until the caller releases
// it, and in `a` for Wgrad; with a gate, dgate [R]. Local.
Err gated_bwd(const Shape *s, Cx *cx, Gated *a, Operand *dg, Operand *du, float *dgate, Mat dh, Groups groups)
    MUST_CHECK;
// gated_turned: h as Wgrad's operand: of gated_bwd, or pushed on scratch with its temporaries. Local.
Err gated_turned(const Shape *s, Cx *cx, const Gated *a, Turned *t, Groups groups) MUST_CHECK;
