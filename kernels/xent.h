// xent.h - cross-entropy of a chunk of logits and its gradient.
//
// xent_fwd_bwd: loss_t = logsumexp(logits_t) - logits_t[target_t], in nats;
//   dlogits = scale * (softmax(logits_t) - onehot(target_t)).
//   loss    [T] f32 out (0 where target < 0)
//   correct [T] i32 out: 1 where the target is the (lowest-index) largest logit; may be NULL
//   dlogits [T,V] f32 or bf16 out (0 where target < 0); may be the same memory as logits if f32; mat_none() = loss only
//   logits  [T,V] f32;  target [T] i32, < 0 = no target
// Class REDUCE.
#pragma once
#include "view.h"
