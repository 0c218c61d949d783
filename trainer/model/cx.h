// cx.h - what every layer gets: the backend, the ranks, the memory. Passed, never global.
#pragma once
#include "calibration.h"
#include "comm.h"
#include "device.h"
#include "exchange.h"
#include "ledger.h"
#include "mesh.h"
#include "ops.h"
#include "prof.h"
#include "zero.h"

// What forward saves for its backward, by purpose; counted in measure mode only.
typedef enum SavedKind {
    SAVED_RESIDUAL, // the residual stream after each half
    SAVED_NORM,     // reciprocal norms; the router's normalised input if it is kept
    SAVED_ATTN_IN,  // input of the query and latent projections; queries, keys and values if they are kept
    SAVED_LATENT,   // latents before and after their norms, the shared key
    SAVED_ATTN_OUT, // input of the output projection, the softmax denominators
    SAVED_FFN_IN,   // inputs of gate and up, dispatched rows included
    SAVED_SWIGLU,   // outputs of gate and up, input of down
    SAVED_ROUTING,  // scores, selections, the exchange plan
    SAVED_KINDS
} SavedKind;

typedef struct SavedBytes {
    size_t at;                  // of acts: what was pushed since belongs to the next cx_saved
    int64_t tokens;             // summed over blocks
    int64_t bytes[SAVED_KINDS]; // summed over blocks
} SavedBytes;

// Row arenas: `params` and `state` live as long as the model; `acts` holds what one micro-batch saves for its
// backward and is released per block; `scratch` is released by the function that marked it. host_acts and host_scratch
// are for what the host itself writes and reads and live as their namesakes; on the CPU they are the same arenas. What
// lies in the others is touched by operations and through staging.h only.
typedef struct Cx {
    const Ops *ops;
    const Device *dev;
    OpCx op;                // op.scratch == scratch
    Comm *world, *ep, *edp; // all ranks; the expert group; the ranks with the same experts
    Mesh mesh;
    Arena *params, *state, *acts, *scratch;
    Arena *host_acts, *host_scratch;
    int64_t layer;            // the block that runs (MTP modules follow the main ones)
    int64_t nblocks;          // blocks that `health` covers
    QuantCount *health;       // [nblocks][SITE_COUNT] FP8 health of this rank, memory of the device; added to. NULL:
                              // nothing is counted
    Calibration *calibration; // fp8.scaling static, else NULL
    struct Shadow *shadow;    // products are compared with BF16 ones (shadow_gemm.h); else NULL
    ExBytes bytes;            // payload of the exchange since the last step; added to
    Zero *reduce[2];          // gradients that leave while backward runs (dense, experts); else NULL
    bool is_measure;          // sizes only: nothing may be read or written through views
    SavedBytes saved;         // of the measuring pass
} Cx;

// What is pushed after a mark on an arena and on its host_ namesake is given back together.
typedef struct CxMark {
    size_t own, host;
} CxMark;
static inline CxMark cx_mark_scratch(const Cx *cx) {
    CxMark m = {arena_mark(cx->scratch), arena_mark(cx->host_scratch)};
    return m;
}
static inline void cx_release_scratch(Cx *cx, CxMark m) {
    arena_release(cx->scratch, m.own);
    arena_release(cx->host_scratch, m.host);
}
static inline CxMark cx_mark_acts(const Cx *cx) {
    CxMark m = {arena_mark(cx->acts), arena_mark(cx->host_acts)};
    return m;
}
static inline void cx_release_acts(Cx *cx, CxMark m) {
    arena_release(cx->acts, m.own);
    arena_release(cx->host_acts, m.host);
}
// cx_count: the counters of a site of the block that runs, NULL where nothing is counted.
static inline QuantCount *cx_count(const Cx *cx, Site site) {
    return cx->health ? &cx->health[cx->layer * SITE_COUNT + site] : NULL;
}

// cx_zero_rows: what zero.h needs of the device where its groups exchange its memory. The context must stay.
static inline Err cx_parts_sum(void *user, float *y, const float *own, int64_t own_at, const float *parts,
                               int64_t stride, int64_t nparts, int64_t n) {
    Cx *cx = user;
    return cx->ops->parts_sum(&cx->op, y, own, own_at, parts, stride, nparts, n);
}
static inline ZeroRows cx_zero_rows(Cx *cx) {
    ZeroRows r = {cx->scratch, cx_parts_sum, cx};
    return r;
}
// cx_bucket_bytes: of a bucket of zero.h between the ranks of a group.
static inline size_t cx_bucket_bytes(const Comm *group) {
    return group->on_device ? ZERO_DEVICE_BUCKET_BYTES(group->nranks) : ZERO_BUCKET_BYTES(group->nranks);
}

// cx_progress: what is under way between ranks goes on; called between pieces of work. Never waits. Local.
static inline Err cx_progress(Cx *cx) {
    TRY(comm_progress(cx->ep));
    for (int i = 0; i < 2; i++) {
        if (!cx->reduce[i]) continue;
        prof_enter(PROF_REDUCE);
        TRY(zero_advance(cx->reduce[i]));
        prof_leave();
    }
    return OK;
}

// cx_note_block: a sign of life in the ledger, if there is one: this block begins its pass; -1: none does.
static inline void cx_note_block(const Cx *cx, int64_t layer, LedgerPass pass) {
    if (cx->world) ledger_block(cx->world->ledger, layer, pass);
}

// cx_saved_block: a block of T tokens begins.
static inline void cx_saved_block(Cx *cx, int64_t T) {
    if (!cx->is_measure) return;
    cx->saved.at = arena_mark(cx->acts);
    cx->saved.tokens += T;
}
// cx_saved: what was pushed on acts since the last call is of this kind.
static inline void cx_saved(Cx *cx, SavedKind kind) {
    if (!cx->is_measure) return;
    size_t now = arena_mark(cx->acts);
    cx->saved.bytes[kind] += (int64_t)(now - cx->saved.at);
    cx->saved.at = now;
}
