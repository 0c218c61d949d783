// sampler.c - Feistel permutation, blending, and sample numbers (formulas in sampler.h).
#include "sampler.h"

#include <math.h>
#include <string.h>

#include "rng.h"

#define ROUNDS 6

uint64_t permute_key(uint64_t seed, uint64_t corpus, uint64_t epoch) {
    Philox r = philox(seed, epoch, corpus);
    return (0x5A4D504Cull << 32) ^ ((uint64_t)r.v[0] << 32 | r.v[1]);
}

uint64_t permute_index(uint64_t n, uint64_t seed, uint64_t key, uint64_t i) {
    int bits = 1;
    while (bits < 31 && (1ull << 2 * bits) < n) bits++;
    uint32_t mask = (1u << bits) - 1;
    do {
        uint32_t left = (uint32_t)(i >> bits), right = (uint32_t)i & mask;
        for (uint64_t r = 0; r < ROUNDS; r++) {
            uint32_t next = left ^ (philox(seed, key + r, right).v[0] & mask);
            left = right;
            right = next;
        }
        i = (uint64_t)left << bits | right;
    } while (i >= n);
    return i;
}

int64_t sampler_windows(int64_t tokens, int64_t seq_len, int64_t mtp_depth) {
    int64_t usable = tokens - 1 - mtp_depth;
    return usable < seq_len || seq_len < 1 ? 0 : usable / seq_len;
}

Err sampler_init(Sampler *s, uint64_t seed, int ncorpora, const double *weights,
                 const int64_t *windows) {
    memset(s, 0, sizeof *s);
    CHECK(ncorpora >= 1 && ncorpora <= SAMPLER_CORPORA, E_CONFIG,
          "%d training corpora, expected 1 to %d", ncorpora, SAMPLER_CORPORA);
    double sum = 0;
    for (int k = 0; k < ncorpora; k++) {
        double w = weights ? weights[k] : (double)windows[k];
        CHECK(isfinite(w) && w >= 0, E_CONFIG, "weight %g of corpus %d: expected a number >= 0", w,
              k);
        CHECK(w == 0 || windows[k] > 0, E_INPUT, "corpus %d is too short for one window", k);
        s->weight[k] = w;
        s->windows[k] = windows[k];
        sum += w;
    }
    CHECK(sum > 0 && isfinite(sum), weights ? E_CONFIG : E_INPUT,
          "the corpora have no weight at all");
    for (int k = 0; k < ncorpora; k++) s->weight[k] /= sum;
    s->seed = seed;
    s->ncorpora = ncorpora;
    return OK;
}

// The corpus of sample s->at.
static int blend_pick(const Sampler *s) {
    double scale = (double)(s->at > 1 ? s->at : 1), best = -INFINITY;
    int pick = 0;
    for (int k = 0; k < s->ncorpora; k++) {
        if (s->weight[k] == 0) continue;
        double need = s->weight[k] * scale - (double)s->drawn[k];
        if (need > best) {
            best = need;
            pick = k;
        }
    }
    return pick;
}

static void blend_seek(Sampler *s, int64_t g) {
    if (s->ncorpora == 1) {
        s->drawn[0] = s->at = g;
        return;
    }
    if (g < s->at) {
        s->at = 0;
        memset(s->drawn, 0, sizeof s->drawn);
    }
    for (; s->at < g; s->at++) s->drawn[blend_pick(s)]++;
}

Sample sampler_at(Sampler *s, int64_t g) {
    blend_seek(s, g);
    int k = blend_pick(s);
    Sample r = {.corpus = k, .index = s->drawn[k]};
    r.epoch = r.index / s->windows[k];
    uint64_t key = permute_key(s->seed, (uint64_t)k, (uint64_t)r.epoch);
    r.window = (int64_t)permute_index((uint64_t)s->windows[k], s->seed, key,
                                      (uint64_t)(r.index % s->windows[k]));
    return r;
}

void sampler_counts(Sampler *s, int64_t g, int64_t *counts) {
    blend_seek(s, g);
    memcpy(counts, s->drawn, (size_t)s->ncorpora * sizeof *counts);
}
