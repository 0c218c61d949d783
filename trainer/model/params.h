// params.h - the table of parameters: what exists, how big, where it lives, who owns its rows.
//
// Optimizer, ZeRO, checkpoint, import, export and reports all walk this one table, which params.def
// generates. Experts are stacked: one entry [E, rows, cols], of which this rank holds L = E/ep.
#pragma once
#include "cx.h"
#include "plan.h"
#include "shape.h"

typedef enum Family {
#define FAMILY(id, ...) P_##id,
#include "params.def"
#undef FAMILY
    P_COUNT
} Family;

typedef enum ParamKind { KIND_FP8, KIND_PLAIN, KIND_EXACT } ParamKind;

typedef struct Param {
    char name[96]; // logical, unique: Hugging Face's name; experts:
                   // "model.layers.3.mlp.experts.gate_proj.weight"
    Family family;
    int64_t layer;      // block (MTP module k = nlayers + k - 1), -1 for the model's own
    int64_t nmat_all;   // stacked matrices in the model (E for experts, else 1)
    int64_t nmat;       // of them here
    int64_t mat0;       // first of them here
    int64_t rows, cols; // of one matrix
    bool is_expert;     // reduced over edp instead of world
    bool is_init_one;
    bool has_decay; // weight decay: matrices only
    ParamKind kind;
    Mat w;                    // [nmat*rows, cols] compute copy, act type (f32 for KIND_EXACT)
    MatQ q;                   // KIND_FP8 in fp8 mode: prepared weights
    Mat grad;                 // [nmat*rows, cols] f32
    bool is_clear;            // the gradient is 0, whatever `grad` holds: the first product overwrites it
    const ShardRange *ranges; // [nranks of its group] rows of the flat [nmat*rows, cols]
    ShardRange own;           // this rank's
    Mat master;               // [own.nrows, cols] f32
    Mat m, v;                 // [own.nrows, cols] bf16 (f32 in fp32 mode)
} Param;

typedef struct Params {
    Param *p;
    int n;
    float **bias;    // [nlayers+nmtp]: e_score_correction_bias [E] f32 of each MoE block, NULL
                     // elsewhere; same on all ranks
    int64_t nblocks; // nlayers + nmtp
    int64_t E;
} Params;

// params_create: the table for this shape and mesh (host memory), and the memory of every entry:
// compute copies and prepared weights in cx->params, gradients (if `with_grad`) in cx->params,
// shards of master and moments (if `with_state`) in cx->state. Biases start at 0. Local.
Err params_create(Params **out, const Shape *s, Cx *cx, bool with_grad, bool with_state) MUST_CHECK;
void params_free(Params **p);
// params_find: the entry of a family in a block (layer -1 for the model's own), NULL if there is
// none.
Param *params_find(const Params *p, Family family, int64_t layer);
// params_init: own rows of every master: N(0, init_std) as a function of (seed, name, global
// element), or 1; moments 0. Local.
Err params_init(Params *p, const Shape *s, const Cx *cx) MUST_CHECK;
// params_publish: compute copies from masters: cast own rows, gather them from all owners, prepare
// FP8 weights. Collective over world and edp.
Err params_publish(Params *p, const Shape *s, Cx *cx) MUST_CHECK;
// params_piece: how many of this rank's rows of an entry, from r0 on (0, or where a piece ended), are updated and then
// prepared at once: what a cache keeps in between. Local, pure.
int64_t params_piece(const Param *p, const Shape *s, const Cx *cx, int64_t r0);
// params_prepare_piece: FP8 weights of such rows [r0, r0+n), or of all, from their compute copy, if the entry has any
// and no other rank owns rows of it. Local.
Err params_prepare_piece(Param *p, const Shape *s, Cx *cx, int64_t r0, int64_t n) MUST_CHECK;
// params_share: what params_publish does once own rows are cast and prepared (params_prepare_piece):
// own rows to all ranks, then the FP8 weights of the other entries. Collective over world and edp.
Err params_share(Params *p, const Shape *s, Cx *cx) MUST_CHECK;
// params_prepare: FP8 weights of all entries from the compute copies. Local.
Err params_prepare(Params *p, const Shape *s, Cx *cx) MUST_CHECK;
// params_zero_grad: all gradients to 0; those that products add to are only said to be (is_clear). Local.
Err params_zero_grad(Params *p, Cx *cx) MUST_CHECK;
// params_settle_grad: zeros are written where nothing was added to gradients of blocks >= layer. Local.
Err params_settle_grad(Params *p, Cx *cx, int64_t layer) MUST_CHECK;
// params_hf_name: Hugging Face's name of matrix `mat` (its number in the model) of an entry. Local,
// pure.
void params_hf_name(char *out, size_t n, const Param *p, int64_t mat);
// params_count: exact numbers of parameters.
typedef struct ParamCount {
    int64_t total;           // main model (embedding and head counted once each, once if tied)
    int64_t active;          // used per token, embedding and head included
    int64_t active_no_embed; // the same without the input embedding
    int64_t mtp;             // unique parameters of the MTP modules
} ParamCount;
ParamCount params_count(const Shape *s);
