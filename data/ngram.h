// ngram.h - a byte n-gram model: what a loss in bits per byte is worth.
//
// Order n uses the last n bytes as context, Witten-Bell smoothing (Witten & Bell 1991),
// interpolated down to the uniform distribution over 256 bytes:
//     P(c | h) = (count(h c) + T(h) P(c | h')) / (N(h) + T(h)),
// h' = h without its first byte, N(h) = occurrences of h followed by a byte, T(h) = different bytes
// seen after h; a context never seen leaves P(c | h'). Contexts never reach across the start of a
// file, in training or scoring; the first bytes of a file have shorter ones.
#pragma once
#include "fail.h"

#define NGRAM_MAX_ORDER 6

// ngram_bits_per_byte: train on the files, then score every byte of `heldout` once, each with the
// held-out bytes before it as context: *out = -sum log2 P / bytes. Local.
// Errors: E_INPUT for a file that is missing or empty; E_INTERNAL for an order outside [0, 6].
Err ngram_bits_per_byte(const char *const *train, int ntrain, const char *heldout, int order,
                        double *out) MUST_CHECK;
