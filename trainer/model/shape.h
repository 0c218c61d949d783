// shape.h - the numbers of a model, taken once from the config. Layers see these, never the config.
#pragma once
#include "config.h"
#include "mesh.h"
#include "recipe.h"
#include "rope.h"
#include "view.h"

typedef struct Shape {
    int64_t V, D;                // vocabulary, model width
    int64_t H, Dn, Dr, Dv;       // heads; unrotated, rotated and value head widths
    int64_t Rq, Rkv;             // latent ranks; Rq == 0: no query compression
    int64_t Fd, F, Fs;           // inner widths: dense FFN, one expert, shared expert (all of them joined; 0 = none)
    int64_t E, L, K;             // experts in all, on this rank, per token
    int64_t expert0;             // first expert on this rank
    int64_t ngroup, topk_group;
    int64_t nlayers, ndense, nmtp; // main blocks, dense ones among them, MTP modules
    int64_t S, B;                // tokens per sequence, sequences per micro-batch
    float eps;                   // RMSNorm; the latent norms use 1e-6
    float softmax_scale;
    double rope_theta;
    YarnShape yarn;
    bool is_sigmoid, has_bias, normalise, is_tied, document_mask;
    float route_scale;
    int mode;                    // MODE_FP32, MODE_BF16, MODE_FP8
    DType act;                   // activations, wire and compute copies: F32 in fp32 mode, else BF16
    Recipe recipe;               // fp8 mode: scales, codes and sums
    bool cache_o_e5m6, cache_swiglu_fp8; // fp8 mode: what the backward keeps in fewer bits
    int64_t shadow_every;        // fp8 mode: steps between comparisons with BF16 (shadow_gemm.h), 0 = never
    bool is_unfused;             // debug.unfused
    bool recompute_norm, recompute_up, recompute_swiglu;
    double init_std;
    uint64_t seed;
} Shape;

// shape_from_config: E_CONFIG if the experts do not divide. Local, pure.
Err shape_from_config(Shape *s, const Config *c, const Mesh *mesh) MUST_CHECK;
// shape_is_moe: does block `layer` (MTP modules follow the main blocks) have experts?
static inline bool shape_is_moe(const Shape *s, int64_t layer) {
    return layer >= s->ndense;
}
