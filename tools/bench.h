// bench.h - what the benchmarks share: how a case is timed, what it is compared with, and where its
// line goes.
//
// A subject (gemm, quant, ...) is one function that runs its cases and reports each: a row of the
// table for people, with --json one object per line, with --plot a point of the roofline. Speed is
// measured here and never asserted in a test. A case and its yardstick (arithmetic in registers, or
// a copy of as many bytes) take turns, so that what slows the machine down slows both.
#pragma once
#include "arena.h"
#include "backend.h"
#include "gemm.h"

enum { BENCH_POINTS = 256, BENCH_CONFIGS = 8, BENCH_SHAPES = 32 };

// A point of the roofline.
typedef enum BenchSeries {
    SERIES_FP8,
    SERIES_BF16,
    SERIES_F32,
    SERIES_QUANT,
    SERIES_ADAM,
    SERIES_ATTENTION,
    SERIES_STEP,
    SERIES_COUNT
} BenchSeries;
typedef struct BenchPoint {
    BenchSeries series;
    char label[40];               // "" = none
    double flops, bytes, seconds; // operations and the least bytes of one call, and its time
} BenchPoint;

typedef struct Bench {
    int rank; // of this process, where a subject started ranks; only the first one reports
    int threads;
    int asked;                          // --threads, 0 if it was not given
    bool is_all;                        // --all: every shape, else those of doc/performance.md
    bool is_profile;                    // --profile: whole steps by region
    bool is_busy;                       // --busy: processor time of one thread
    FILE *json;                         // NULL without --json, and on other ranks than the first
    const char *configs[BENCH_CONFIGS]; // --config, for whole steps
    int nconfigs;
    const char *sets[64]; // --set
    int nsets;
    int64_t shapes[BENCH_SHAPES][4];    // --shape, instead of the subject's own; numbers left out are 0
    int nshapes;
    bool wants_device; // --device cuda
    Backend on;       // what computes
    bool is_device;   // memory is a device's, whose events time
    char device[128]; // its name; the processor: "cpu"
    Arena *arena;     // operands; released between cases
    Arena *scratch;   // what operations use
    void *flush;      // of a device: what is written between samples, so that its cache holds no operand
    size_t flush_bytes;
    GemmPeak peak;  // of the chosen instruction set, or of the device; zero until bench_peak
    double fp8;     // of a device: cuBLASLt's FP8 products; zero where it has none
    double memory;  // bytes per second, read and written, of a plain copy; zero until bench_memory
    double cache;   // of memcpy in a cache of one core, all threads together
    BenchPoint points[BENCH_POINTS];
    int npoints;
} Bench;

// bench_median: sorts the n > 0 values and returns the middle one. Local.
double bench_median(double *values, int n);

// One call of what is measured, or of its yardstick.
typedef Err (*BenchFn)(void *user);
typedef struct BenchTime {
    double median;    // seconds of one call
    double best;      // of the fastest one
    double spread;    // distance of the quartiles, as a fraction of the median
    double yard;      // median seconds of one call of the yardstick
    double best_yard; // its fastest: what a peak is
    int samples;      // of each
} BenchTime;
// bench_summary: of n > 0 samples and as many of the yardstick, which it sorts. Local.
void bench_summary(BenchTime *out, double *t, double *yard, int n);
// bench_time: time fn and the yardstick in turn, after one call of each that does not count: at
// least 5 samples of each and about a third of a second (with --busy a whole one of processor time).
// Short calls are repeated within a sample. On a device a sample is one call between two events, after
// its cache was flushed; there yard may be NULL (then yard and best_yard are 0). Local.
Err bench_time(const Bench *b, BenchTime *out, BenchFn fn, void *user, BenchFn yard, void *yard_user) MUST_CHECK;
// bench_device_open: the device of this rank computes from now on; b->arena and b->scratch are memory of it, all that
// operands of the shapes need or (is_small) what the peaks need. Errors: E_PEER where there is none.
// bench_device_close: gives it back. Local.
Err bench_device_open(Bench *b, int local_rank, bool is_small) MUST_CHECK;
void bench_device_close(Bench *b);
// bench_device_time, bench_device_peak, bench_device_memory: bench_time, bench_peak and bench_memory on a device.
Err bench_device_time(const Bench *b, BenchTime *out, BenchFn fn, void *user, BenchFn yard, void *yard_user) MUST_CHECK;
Err bench_device_peak(Bench *b) MUST_CHECK;
Err bench_device_memory(Bench *b) MUST_CHECK;
// bench_json: the beginning of an object, up to and without the comma after "threads". NULL json: nothing.
void bench_json(const Bench *b, const char *op);

// Multiply-adds in registers, as a yardstick: `flops` operations a call.
typedef struct PeakYard {
    double (*fn)(int64_t n, float *sink);
    int64_t rounds;
    int threads;
    double flops;
} PeakYard;
// bench_peak: the peak of the chosen instruction set, measured and printed once (and that of the
// best one here). bench_peak_yard: its yardstick, for products of 8 and 16 bits or of FP32; the
// function to call is bench_run_peak. Local.
Err bench_peak(Bench *b) MUST_CHECK;
PeakYard bench_peak_yard(const Bench *b, bool is_half);
Err bench_run_peak(void *user) MUST_CHECK;

// A copy as a yardstick: every thread copies its part `times` times. `is_plain`: 64 bytes at a
// time with ordinary stores, as the operations write, else memcpy, which goes around the caches
// where it finds that faster.
typedef struct CopyYard {
    void *to;
    const void *from;
    int64_t bytes; // of one side
    int threads;
    int times;
    bool is_plain, is_device;
} CopyYard;
Err bench_run_copy(void *user) MUST_CHECK;
// bench_copy_yard: one that reads and writes `bytes` together, on b->arena. Local.
Err bench_copy_yard(Bench *b, CopyYard *y, int64_t bytes) MUST_CHECK;
// bench_memory: bandwidth of copies in memory and in cache, measured and printed once.
Err bench_memory(Bench *b) MUST_CHECK;

// bench_rank: this process is one of several ranks; only the first one writes records and figures.
// Local.
void bench_rank(Bench *b, int rank);
// bench_fill: values spread over (-1, 1), FP32 or BF16, in the memory of the backend; all of them
// positive with is_positive. Local.
Err bench_fill(const Bench *b, Mat x, bool is_positive) MUST_CHECK;
// bench_point: remember a case for the roofline. Local.
void bench_point(Bench *b, BenchSeries s, const char *label, double flops, double bytes,
                 double seconds);
// bench_roofline: everything remembered, as a figure. Errors: E_OUTPUT. Local.
Err bench_roofline(Bench *b, const char *path) MUST_CHECK;

// bench_gemm: matrix products, dense and grouped, in GFLOP/s and as a fraction of the peak.
Err bench_gemm(Bench *b) MUST_CHECK;
// bench_quant: the quantisers, in values and bytes per second and as a fraction of memcpy.
Err bench_quant(Bench *b) MUST_CHECK;
// bench_attention: forward and backward, in GFLOP/s (causal: half of the square) and as a fraction
// of the peak of 16-bit products.
Err bench_attention(Bench *b) MUST_CHECK;
// bench_adam: the optimizer's passes over memory, in GB/s and as a fraction of a plain copy.
Err bench_adam(Bench *b) MUST_CHECK;
// bench_exchange: routing decisions to expert rows and back, in GB/s of each rank and as a fraction
// of memcpy; under a launcher over all its ranks, else the local path. Collective over the world.
Err bench_exchange(Bench *b) MUST_CHECK;
// bench_step: a whole training step of each of b->configs, random tokens: tokens per second,
// fraction of peak, allocations and page faults, with b->is_profile the time by region (the
// regions add up to the steps; of the first rank). Under a launcher on all ranks, which share the
// global batch as in training; without one on one.
Err bench_step(Bench *b) MUST_CHECK;
