// bench_device.c - the benchmarks where memory is a device's: its arenas, time by its events, and its own peaks.
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "blas_cuda_fp8.h"
#include "device_peak.h"
#include "log.h"
#include "measure_cuda.h"

// Four marks a sample: the case and its yardstick, each between two.
enum { LEAST = 5, MOST = MEASURE_MARKS / 4, WARM = 3 };
#define BUDGET 0.5                       // seconds of a case, its yardstick included
#define MOST_OPERANDS ((size_t)24 << 30)  // bytes of the two arenas, or a share of what is free
#define MOST_SCRATCH ((size_t)4 << 30)
#define PEAK_OPERANDS ((size_t)512 << 20)

Err bench_device_open(Bench *b, int local_rank, bool is_small) {
    DeviceInfo info;
    size_t room = 0, l2 = 0;
    TRY(backend_choose(&b->on, "cuda", local_rank));
    b->is_device = true;
    device_cuda_info(&info);
    snprintf(b->device, sizeof b->device, "%s", info.name);
    TRY(measure_free(&room));
    TRY(measure_l2(&l2));
    b->flush_bytes = 4 * l2;
    size_t operands = is_small ? PEAK_OPERANDS : MOST_OPERANDS, scratch = is_small ? 0 : MOST_SCRATCH;
    if (operands > room / 2) operands = room / 2;
    if (scratch > room / 8) scratch = room / 8;
    TRY(arena_create_on(&b->arena, b->on.dev, "bench operands", operands, false));
    TRY(arena_create_on(&b->scratch, b->on.dev, "bench scratch", scratch, false));
    TRY(b->on.dev->alloc(&b->flush, b->flush_bytes, "bench flush"));
    return OK;
}

void bench_device_close(Bench *b) {
    if (b->flush) b->on.dev->release(b->flush);
    b->flush = NULL;
    arena_destroy(&b->scratch);
    arena_destroy(&b->arena);
    device_cuda_close();
}

// one: a call between marks at and at + 1, behind a flush. The flush also gives the host time to issue what follows, so
// that starting a kernel is no part of its time.
static Err one(const Bench *b, int at, BenchFn fn, void *user) {
    TRY(b->on.dev->zero(b->flush, b->flush_bytes));
    TRY(measure_mark(at));
    TRY(fn(user));
    TRY(measure_mark(at + 1));
    return OK;
}

Err bench_device_time(const Bench *b, BenchTime *out, BenchFn fn, void *user, BenchFn yard, void *yard_user) {
    double t[MOST], y[MOST], start = now_seconds();
    for (int i = 0; i < WARM; i++) {
        TRY(one(b, 0, fn, user));
        if (yard) TRY(one(b, 2, yard, yard_user));
    }
    TRY(b->on.dev->sync());
    double each = (now_seconds() - start) / WARM;
    int n = each * MOST < BUDGET ? MOST : each * LEAST > BUDGET ? LEAST : (int)(BUDGET / each);
    for (int i = 0; i < n; i++) {
        TRY(one(b, 4 * i, fn, user));
        if (yard) TRY(one(b, 4 * i + 2, yard, yard_user));
    }
    TRY(b->on.dev->sync());
    for (int i = 0; i < n; i++) {
        TRY(measure_between(&t[i], 4 * i, 4 * i + 1));
        y[i] = 0.0;
        if (yard) TRY(measure_between(&y[i], 4 * i + 2, 4 * i + 3));
    }
    bench_summary(out, t, y, n);
    return OK;
}

// --- peaks ---

static Err run_blas(void *user) {
    return blas_fp8_run(user);
}

// cuBLASLt's FP8 product of the square that BF16's peak had; 0 where it has none.
static Err fp8_peak(Bench *b, int64_t n) {
    size_t mark = arena_mark(b->arena);
    BlasFp8 p = {.form = BLAS_FP8_BLOCKS, .m = n, .n = n, .k = n};
    Mat codes, scales;
    void *y = NULL;
    bool is_there = false;
    BenchTime t;
    int64_t na = blas_fp8_scales(n, n, false), nb = blas_fp8_scales(n, n, true);
    TRY(arena_mat(b->arena, &codes, DT_F32, 2 * n, n / 4, "bench codes"));
    TRY(arena_push(b->arena, &y, (size_t)(2 * n * n), "bench output"));
    TRY(arena_mat(b->arena, &scales, DT_F32, 1, na + nb, "bench scales"));
    TRY(arena_push(b->arena, &p.workspace, blas_fp8_workspace_bytes(), "cuBLASLt"));
    TRY(bench_fill(b, codes, true)); // bytes of positive numbers: few of them are NaN codes, which cost the same
    TRY(bench_fill(b, scales, true));
    p.y = y, p.a = codes.p, p.b = (uint8_t *)codes.p + n * n;
    p.sa = scales.p, p.sb = p.sa + na;
    Err err = blas_fp8_open(&p, &is_there);
    if (err == OK && is_there) err = bench_device_time(b, &t, run_blas, &p, NULL, NULL);
    if (err == OK && is_there) b->fp8 = 2.0 * (double)n * (double)n * (double)n / t.median;
    blas_fp8_close(&p);
    arena_release(b->arena, mark);
    return err;
}

Err bench_device_peak(Bench *b) {
    DevicePeak half, f32;
    TRY(device_peak(&half, &b->on, DT_BF16));
    TRY(device_peak(&f32, &b->on, DT_F32));
    b->peak = (GemmPeak){f32.flops, half.flops};
    TRY(fp8_peak(b, half.n));
    log_line("peak of %s, products of its own library, %lld cubed: BF16 %.1f, FP8 %.1f; FP32, %lld cubed: %.1f GFLOP/s",
             b->device, (long long)half.n, half.flops * 1e-9, b->fp8 * 1e-9, (long long)f32.n, f32.flops * 1e-9);
    if (b->fp8 == 0) log_line("           (FP8 0: cuBLASLt has no FP8 product with scales of blocks here)");
    if (b->json) {
        bench_json(b, "peak");
        fprintf(b->json, ",\"n\":%lld,\"f32_gflops\":%.2f,\"bf16_gflops\":%.2f,\"fp8_gflops\":%.2f}\n",
                (long long)half.n, f32.flops * 1e-9, half.flops * 1e-9, b->fp8 * 1e-9);
    }
    return OK;
}

Err bench_device_memory(Bench *b) {
    size_t mark = arena_mark(b->arena);
    int64_t bytes = min_i64((int64_t)2 << 30, (int64_t)arena_size(b->arena) / 16);
    CopyYard copy;
    BenchTime t;
    TRY(bench_copy_yard(b, &copy, bytes));
    TRY(bench_device_time(b, &t, bench_run_copy, &copy, NULL, NULL));
    arena_release(b->arena, mark);
    b->memory = 2.0 * (double)copy.bytes / t.median;
    log_line("copy in the memory of %s, %s: %.1f GB/s read and written", b->device,
             text_bytes(2.0 * (double)copy.bytes).s, b->memory * 1e-9);
    if (b->json) {
        bench_json(b, "copy_memory");
        fprintf(b->json, ",\"copy_bytes\":%lld,\"spread\":%.4f,\"gb_per_s\":%.2f}\n", 2 * (long long)copy.bytes,
                t.spread, b->memory * 1e-9);
    }
    return OK;
}
