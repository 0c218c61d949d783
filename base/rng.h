// rng.h - Philox4x32-10: random numbers as a pure function of (seed, stream, index). Host and device.
//
// No state: whoever knows the seed, the name of the stream and the index gets the same number on any
// rank, in any order. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include <math.h>
#include "fp8.h"

typedef struct Philox {
    uint32_t v[4];
} Philox;

// philox: four 32-bit random words for (seed, stream, index).
static HD inline Philox philox(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    for (int i = 0; i < 10; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    Philox r;
    r.v[0] = c0;
    r.v[1] = c1;
    r.v[2] = c2;
    r.v[3] = c3;
    return r;
}
// rng_uniform: in (0, 1), 32 bits.
static HD inline double rng_uniform(uint32_t v) {
    return ((double)v + 0.5) * (1.0 / 4294967296.0);
}
// rng_normal: N(0,1) number `index` of the stream (Box-Muller in double).
static HD inline double rng_normal(uint64_t seed, uint64_t stream, uint64_t index) {
    Philox r = philox(seed, stream, index);
    double radius = sqrt(-2.0 * log(rng_uniform(r.v[0])));
    return radius * cos(6.283185307179586476925 * rng_uniform(r.v[1]));
}
