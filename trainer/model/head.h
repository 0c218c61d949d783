// head.h - output head and cross-entropy, in chunks of rows: FP32 logits of all tokens never exist at once.
//
// Losses, their gradient of the head's weights and of its input are made in the same pass, because the factor
// of each loss in the total is known beforehand.
#pragma once
#include "linear.h"
#include "model.h"

// head_loss: n [T,D] normalised hidden; target [T] i32 (device), -1 = none.
//   dn [T,D] act type out: scale * d(sum of nats)/dn; adds the head's weight gradient. mat_none(): losses only.
//   host_loss, host_correct [T] host out, after the next sync of the device: nats and hits per row, 0 where there is no
//   target.
//   mtp: which head, for the taps. Local.
Err head_loss(const Shape *s, Cx *cx, Param *head, Mat dn, Mat n, const int32_t *target,
              double scale, int mtp, const Taps *taps, float *host_loss, int32_t *host_correct) MUST_CHECK;

// head_device_bytes: what a chunk of rows takes of a device's scratch: FP32 logits, at most 1 GiB (but 128 rows), and
// their gradients of the act type. Local.
size_t head_device_bytes(const Shape *s);

// head_choose_rows: of a chunk's logits, for tests, on every backend; 0: what suits the backend.
void head_choose_rows(int64_t rows);
