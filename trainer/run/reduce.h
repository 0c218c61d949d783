// reduce.h - gradients to the ranks that own them, beside the last backward of a step.
//
// Each block's gradients may leave as soon as they are final: reduce_start before the last micro-batch, reduce_block as
// its Taps.grads, reduce_end after it; cx_progress keeps them going between the pieces of backward. The sums are those
// of a reduction at the end, to the bit.
#pragma once
#include "params.h"
#include "zero.h"

// Tensors of one group of ranks in the order in which backward finishes them.
typedef struct ReduceGroup {
    ZeroTensor *t;
    int64_t *layer; // what Taps.grads says when the gradient is final
    int64_t n, ready;
    Zero zero;
} ReduceGroup;

// A reduction under way; the caller's.
typedef struct Reduce {
    ReduceGroup dense, experts; // over world, over edp
    Cx *cx;
    size_t mark;
} Reduce;

// reduce_start: everything is prepared on host_scratch, where it stays until reduce_end. Local.
Err reduce_start(Reduce *r, const Params *p, Cx *cx) MUST_CHECK;
// reduce_block: as Taps.grads (model.h); user: the Reduce. Called on all ranks with the
// same blocks in the same order. Never waits. Local.
Err reduce_block(void *user, int64_t layer) MUST_CHECK;
// reduce_end: all gradients are final: own rows of every grad become the sum over ranks, in rank order. Releases
// host_scratch. Collective over world.
Err reduce_end(Reduce *r) MUST_CHECK;
// reduce_drop: the backward failed, and with it the job: nothing is sent any more. Local.
void reduce_drop(Reduce *r);
