// bench.h - what the benchmarks share: how to time a case, and where its line goes.
//
// A subject (gemm, quant, ...) is one function that runs its cases and reports each: a row of the
// table for people, and with --json one object per line. Speed is measured here and never asserted
// in a test.
#pragma once
#include "arena.h"

typedef struct Bench {
    int threads;
    int asked;            // --threads, 0 if it was not given
    bool is_all;          // --all: every shape, else a few
    FILE *json;           // NULL without --json
    const char *config;   // --config, for whole steps
    const char *sets[64]; // --set
    int nsets;
    Arena *arena;   // operands; released between cases
    Arena *scratch; // what operations use
} Bench;

// bench_median: sorts the n > 0 values and returns the middle one. Local.
double bench_median(double *values, int n);

// One call of what is measured.
typedef Err (*BenchFn)(void *user);
// bench_time: median seconds of one call, after one warm-up: at least 5 calls and about a fifth of
// a second. Local.
Err bench_time(double *seconds, BenchFn fn, void *user) MUST_CHECK;

// bench_gemm: matrix products, dense and grouped, in GFLOP/s and as a fraction of the processor's
// measured peak.
Err bench_gemm(Bench *b) MUST_CHECK;
// bench_quant: the quantisers, in elements and bytes per second and as a fraction of memcpy.
Err bench_quant(Bench *b) MUST_CHECK;
// bench_step: a whole training step of b->config, random tokens: tokens per second, fraction of
// peak, time by region (the regions add up to the step; of the first rank). Under mpirun on all
// ranks, which share the global batch as in training; without a launcher on one.
Err bench_step(Bench *b) MUST_CHECK;
