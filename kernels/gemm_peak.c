// gemm_peak.c - what this processor's arithmetic can do at best, measured.
#include "gemm.h"
#include "gemm_engine.h"
#include "log.h"

enum { TRIES = 50, ROUNDS = 100000 };

// Floating-point operations per second of all threads, the best of many short tries.
static double measure(GemmPeakFn fn, int nthreads) {
    double best = 0;
    for (int i = 0; i < TRIES; i++) {
        double flops = 0, start = now_seconds();
#pragma omp parallel num_threads(nthreads) reduction(+ : flops)
        {
            float sink[8] = {1.0f, 1e-9f, 0.0f};
            flops += fn(ROUNDS, sink);
        }
        double rate = flops / (now_seconds() - start);
        if (rate > best) best = rate;
    }
    return best;
}

GemmPeak gemm_peak(int nthreads) {
    GemmPeak p = {0};
    const GemmIsa *usual = gemm_current();
    for (int i = 0; gemm_isa_name(i); i++) {
        if (!gemm_select(gemm_isa_name(i))) continue;
        const GemmIsa *isa = gemm_current();
        double f32 = measure(isa->peak, nthreads);
        double half = isa->peak_half == isa->peak ? f32 : measure(isa->peak_half, nthreads);
        if (f32 > p.f32) p.f32 = f32;
        if (half > p.half) p.half = half;
    }
    if (p.f32 > p.half) p.half = p.f32;
    gemm_select(usual->name);
    return p;
}
