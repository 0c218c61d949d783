// bench_measure.c - timing in turn with a yardstick; the yardsticks: arithmetic in registers,
// copies.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench.h"
#include "fp8.h"
#include "gemm_engine.h"
#include "log.h"
#include "measure_cuda.h"

enum { LEAST_SAMPLES = 5, MOST_SAMPLES = 120, PEAK_TRIES = 30 };
#define BUDGET 0.35       // seconds of a case, its yardstick included
#define BUSY_BUDGET 1.0   // processor seconds of a case with --busy
#define LEAST_SAMPLE 2e-4 // seconds of a sample: long against the clock and the start of threads
#define PEAK_SAMPLE 5e-4

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, by_value);
    return values[n / 2];
}

void bench_summary(BenchTime *out, double *t, double *yard, int n) {
    out->median = bench_median(t, n);
    out->best = t[0];
    out->spread = (t[n * 3 / 4] - t[n / 4]) / out->median;
    out->yard = bench_median(yard, n);
    out->best_yard = yard[0];
    out->samples = n;
}

// Processor time of this thread: what others do with the processor in between does not count.
static double thread_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static Err sample(double *seconds, bool is_busy, BenchFn fn, void *user, int times) {
    double start = is_busy ? thread_seconds() : now_seconds();
    for (int i = 0; i < times; i++) TRY(fn(user));
    *seconds = ((is_busy ? thread_seconds() : now_seconds()) - start) / times;
    return OK;
}

static int times_of(double seconds) {
    return seconds >= LEAST_SAMPLE ? 1 : (int)(LEAST_SAMPLE / (seconds + 1e-7)) + 1;
}

Err bench_time(const Bench *b, BenchTime *out, BenchFn fn, void *user, BenchFn yard, void *yard_user) {
    if (b->is_device) return bench_device_time(b, out, fn, user, yard, yard_user);
    double t[MOST_SAMPLES], y[MOST_SAMPLES], spent = 0, start;
    bool is_busy = b->is_busy;
    int n = 0;
    // Twice: the first call takes pages from the system.
    for (int i = 0; i < 2; i++) {
        TRY(sample(&t[0], is_busy, fn, user, 1));
        TRY(sample(&y[0], is_busy, yard, yard_user, 1));
    }
    int times = times_of(t[0]), yard_times = times_of(y[0]);
    start = now_seconds();
    while (n < MOST_SAMPLES &&
           (n < LEAST_SAMPLES || (is_busy ? spent < BUSY_BUDGET : now_seconds() - start < BUDGET))) {
        TRY(sample(&t[n], is_busy, fn, user, times));
        TRY(sample(&y[n], is_busy, yard, yard_user, yard_times));
        spent += t[n] * times + y[n] * yard_times;
        n++;
    }
    bench_summary(out, t, y, n);
    return OK;
}

// --- arithmetic ---

Err bench_run_peak(void *user) {
    PeakYard *y = user;
    double flops = 0;
#pragma omp parallel num_threads(y->threads) reduction(+ : flops)
    {
        float sink[8] = {1.0f, 1e-9f, 0.0f};
        flops += y->fn(y->rounds, sink);
    }
    y->flops = flops;
    return OK;
}

static Err peak_rate(PeakYard *y, double *best) {
    double seconds;
    *best = 0;
    for (int i = 0; i < PEAK_TRIES; i++) {
        TRY(sample(&seconds, false, bench_run_peak, y, 1));
        if (y->flops / seconds > *best) *best = y->flops / seconds;
    }
    return OK;
}

PeakYard bench_peak_yard(const Bench *b, bool is_half) {
    const GemmIsa *isa = gemm_current();
    bool is_dot = is_half && b->peak.half > b->peak.f32;
    PeakYard y = {is_dot ? isa->peak_half : isa->peak, 1000, b->threads, 0};
    float sink[8] = {1.0f, 1e-9f, 0.0f};
    double start = now_seconds();
    y.fn(y.rounds, sink);
    double rounds = PEAK_SAMPLE / (now_seconds() - start + 1e-7) * (double)y.rounds;
    y.rounds = rounds < 100 ? 100 : rounds > 1e6 ? 1000000 : (int64_t)rounds;
    return y;
}

static void print_peak(Bench *b, const char *op, const char *isa, GemmPeak p) {
    log_line("peak of %s, %d thread%s: FP32 %.1f, BF16 %.1f GFLOP/s", isa, b->threads,
             b->threads == 1 ? "" : "s", p.f32 * 1e-9, p.half * 1e-9);
    if (b->json)
        fprintf(b->json,
                "{\"op\":\"%s\",\"backend\":\"cpu\",\"isa\":\"%s\",\"threads\":%d,\"f32_gflops\":%.2f,"
                "\"bf16_gflops\":%.2f}\n",
                op, isa, b->threads, p.f32 * 1e-9, p.half * 1e-9);
}

Err bench_peak(Bench *b) {
    if (b->peak.f32 > 0) return OK;
    if (b->is_device) return bench_device_peak(b);
    const GemmIsa *isa = gemm_current();
    PeakYard f32 = bench_peak_yard(b, false);
    TRY(peak_rate(&f32, &b->peak.f32));
    b->peak.half = b->peak.f32;
    if (isa->peak_half != isa->peak) {
        b->peak.half = 2 * b->peak.f32; // so that the yardstick below is the dot product
        PeakYard half = bench_peak_yard(b, true);
        TRY(peak_rate(&half, &b->peak.half));
        if (b->peak.half < b->peak.f32) b->peak.half = b->peak.f32;
    }
    print_peak(b, "peak", isa->name, b->peak);
    print_peak(b, "peak_processor", "the processor's best instruction set", gemm_peak(b->threads));
    return OK;
}

// --- memory ---

typedef float Line __attribute__((vector_size(64)));

// copy_plain: memory in whole lines with ordinary stores; the barrier keeps the compiler from
// making it a memcpy.
static void copy_plain(void *to, const void *from, int64_t bytes) {
    int64_t n = bytes / (int64_t)sizeof(Line);
    for (int64_t i = 0; i < n; i++) {
        ((Line *)to)[i] = ((const Line *)from)[i];
        __asm__ volatile("" ::: "memory");
    }
}

Err bench_run_copy(void *user) {
    CopyYard *y = user;
    if (y->is_device) return measure_copy(y->to, y->from, (size_t)y->bytes);
    int64_t part = ceil_div(ceil_div(y->bytes, y->threads), 64) * 64;
#pragma omp parallel for num_threads(y->threads) schedule(static, 1)
    for (int i = 0; i < y->threads; i++) {
        int64_t at = i * part, n = min_i64(part, y->bytes - at);
        for (int k = 0; n > 0 && k < y->times; k++) {
            if (y->is_plain)
                copy_plain((char *)y->to + at, (const char *)y->from + at, n);
            else
                memcpy((char *)y->to + at, (const char *)y->from + at, (size_t)n);
            __asm__ volatile("" ::: "memory");
        }
    }
    return OK;
}

Err bench_copy_yard(Bench *b, CopyYard *y, int64_t bytes) {
    void *from = NULL, *to = NULL;
    *y = (CopyYard){.bytes = ceil_div(bytes / 2, 64) * 64, .threads = b->threads, .times = 1,
                    .is_device = b->is_device};
    TRY(arena_push(b->arena, &from, (size_t)y->bytes, "bench copy"));
    TRY(arena_push(b->arena, &to, (size_t)y->bytes, "bench copy"));
    y->from = from;
    y->to = to;
    if (b->is_device) return bench_fill(b, mat(from, DT_F32, y->bytes / 64, 16), false);
    memset(from, 1, (size_t)y->bytes);
    memset(to, 0, (size_t)y->bytes);
    return OK;
}

static void print_memory(Bench *b, const char *what, const char *op, int64_t bytes, double rate) {
    log_line("%s, %d thread%s, %s: %.1f GB/s read and written", what, b->threads,
             b->threads == 1 ? "" : "s", text_bytes((double)bytes).s, rate * 1e-9);
    if (b->json)
        fprintf(b->json, "{\"op\":\"%s\",\"threads\":%d,\"copy_bytes\":%lld,\"gb_per_s\":%.2f}\n",
                op, b->threads, (long long)bytes, rate * 1e-9);
}

Err bench_memory(Bench *b) {
    if (b->memory > 0) return OK;
    if (b->is_device) return bench_device_memory(b);
    int64_t sizes[] = {(int64_t)1 << 29, b->threads * (int64_t)(1 << 18)};
    for (int i = 0; i < 2; i++) {
        size_t mark = arena_mark(b->arena);
        CopyYard plain, copy;
        BenchTime t;
        TRY(bench_copy_yard(b, &copy, sizes[i]));
        if (i == 1) copy.times = 50; // 128 KiB of each side per thread: a start of threads is long
        plain = copy;
        plain.is_plain = true;
        TRY(bench_time(b, &t, bench_run_copy, &plain, bench_run_copy, &copy));
        arena_release(b->arena, mark);
        double bytes = 2.0 * (double)copy.bytes * copy.times;
        if (i == 0) {
            b->memory = bytes / t.median;
            print_memory(b, "plain copy in memory", "copy_memory", 2 * copy.bytes, b->memory);
            print_memory(b, "memcpy in memory", "memcpy_memory", 2 * copy.bytes, bytes / t.yard);
        } else {
            b->cache = bytes / t.yard;
            print_memory(b, "memcpy in cache", "memcpy_cache", 2 * copy.bytes, b->cache);
        }
    }
    return OK;
}

// --- ranks, operands, points ---

void bench_json(const Bench *b, const char *op) {
    if (!b->json) return;
    fprintf(b->json, "{\"op\":\"%s\",\"backend\":\"%s\",", op, b->on.ops->backend);
    if (b->is_device) fprintf(b->json, "\"device\":\"%s\",", b->device);
    fprintf(b->json, "\"isa\":\"%s\",\"threads\":%d", b->on.ops->isa, b->threads);
    if (b->is_busy) fprintf(b->json, ",\"clock\":\"processor\"");
}

void bench_rank(Bench *b, int rank) {
    b->rank = rank;
    if (rank != 0) b->json = NULL; // cmd_bench.c closes it
}

// fill_host: a generator for each row.
static void fill_host(Mat x, bool is_positive) {
#pragma omp parallel for
    for (int64_t r = 0; r < x.rows; r++) {
        uint32_t u = (uint32_t)r * 2654435761u + 1;
        for (int64_t c = 0; c < x.cols; c++) {
            u = u * 1664525u + 1013904223u;
            float v = (float)(int32_t)u / 2147483648.0f;
            if (is_positive) v = fabsf(v);
            if (x.t == DT_F32)
                *(float *)mat_at(x, r, c) = v;
            else
                *(uint16_t *)mat_at(x, r, c) = bf16_from_f32(v);
        }
    }
}

// On a device a piece is made on the host and sent again and again: numbers cost no more if they return.
Err bench_fill(const Bench *b, Mat x, bool is_positive) {
    if (!b->is_device) {
        fill_host(x, is_positive);
        return OK;
    }
    int64_t rows = min_i64(x.rows, max_i64(1, ((int64_t)8 << 20) / max_i64(1, x.cols)));
    Mat piece = mat(NULL, x.t, rows, x.cols);
    TRY(mem_alloc(&piece.p, (size_t)(rows * x.cols) * dtype_bytes(x.t), "bench values"));
    fill_host(piece, is_positive);
    Err err = OK;
    for (int64_t r = 0; r < x.rows && err == OK; r += rows)
        err = b->on.dev->to_device(mat_at(x, r, 0), piece.p,
                                   (size_t)(min_i64(rows, x.rows - r) * x.cols) * dtype_bytes(x.t));
    mem_free(piece.p);
    return err;
}

void bench_point(Bench *b, BenchSeries s, const char *label, double flops, double bytes,
                 double seconds) {
    if (b->npoints == BENCH_POINTS) return; // the figure has room for no more
    BenchPoint *p = &b->points[b->npoints++];
    p->series = s;
    snprintf(p->label, sizeof p->label, "%s", label);
    p->flops = flops;
    p->bytes = bytes;
    p->seconds = seconds;
}
