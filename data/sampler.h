// sampler.h - which window of which corpus is sample g: pure arithmetic, no state to save.
//
// Let g = 0, 1, 2, ... number the samples of a run (step * global_batch + i). Sample g is a
// function of (seed, weights, corpus sizes, g) alone, so any rank, at any time, after any restart,
// with any number of ranks, computes the same one.
//
// Windows. A corpus of T tokens has S = floor((T - 1 - D) / seq_len) of them, D = MTP depth. Window
// w is the tokens [w*seq_len, w*seq_len + seq_len + D], both ends included.
//
// Blending (Megatron-LM's rule). The corpus of sample g is the k with the largest
// w_k * max(g, 1) - n_k, the lowest k on ties, where n_k = earlier samples from k and the weights
// add up to 1. No corpus is ever more than one sample from its share.
//
// Inside corpus k. j = n_k is its own sample number, epoch e = j div S, position p = j mod S, and
// the window is permute(p): each epoch visits every window once, in an order of its own.
//
// permute is a Feistel network on 2b bits, b >= 1 the smallest with 4^b >= S, six rounds, made a
// permutation of [0, S) by cycle walking (values >= S are permuted again; fewer than 4 times on
// average). With x = (L, R), b bits each, L the upper ones, round r = 0..5 is
// (L, R) -> (R, L xor (philox(seed, key + r, R).v[0] mod 2^b)), where, with v = philox(seed, e, k),
// key = (0x5A4D504C * 2^32) xor (v[0] * 2^32 + v[1]).
#pragma once
#include "fail.h"

// permute_key: the stream of one (seed, corpus, epoch).
uint64_t permute_key(uint64_t seed, uint64_t corpus, uint64_t epoch);
// permute_index: the i-th of the n windows of an epoch. A bijection of [0, n) for every key.
// Requires 0 <= i < n, n < 2^62.
uint64_t permute_index(uint64_t n, uint64_t seed, uint64_t key, uint64_t i);

// sampler_windows: S, 0 if the corpus is too short for one window.
int64_t sampler_windows(int64_t tokens, int64_t seq_len, int64_t mtp_depth);

#define SAMPLER_CORPORA 64

typedef struct Sample {
    int corpus;
    int64_t index;  // j: number of this sample inside its corpus
    int64_t epoch;  // of this corpus
    int64_t window; // 0 <= window < windows of the corpus
} Sample;

// Everything sample numbers depend on, and a cached point of the blending from which to go on.
typedef struct Sampler {
    uint64_t seed;
    int ncorpora;
    double weight[SAMPLER_CORPORA];   // add up to 1
    int64_t windows[SAMPLER_CORPORA]; // S of each
    int64_t at;                       // cache: samples [0, at) are counted in `drawn`
    int64_t drawn[SAMPLER_CORPORA];
} Sampler;

// sampler_init: weights are normalised; NULL = proportional to windows. Errors: E_CONFIG for a
// weight that is negative, not finite, or all zero; E_INPUT for a corpus with a weight but no
// window.
Err sampler_init(Sampler *s, uint64_t seed, int ncorpora, const double *weights,
                 const int64_t *windows) MUST_CHECK;
// sampler_at: sample g. One corpus: constant time. Several: a few ns per sample between the last g
// asked for and this one (from 0 if this one is earlier). Writes only the cache: one thread per
// Sampler.
Sample sampler_at(Sampler *s, int64_t g);
// sampler_counts: n_k of every corpus before sample g.
void sampler_counts(Sampler *s, int64_t g, int64_t *counts);
