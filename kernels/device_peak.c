// device_peak.c - the best rate of matrix products on a device: MFU is a fraction of it.
#include "device_peak.h"

#include <string.h>

#include "fp8.h"
#include "measure_cuda.h"
#include "rng.h"

enum { FIRST = 128, LAST = 8192, WARM = 2, RUNS = 15, PIECE = 1 << 16 };
#define LONG_ENOUGH 1e-3            // seconds of a product
#define SCRATCH ((size_t)128 << 20) // what the operation may use beside an operand in FP32

typedef struct Square {
    Mat y, a, b;
    OpCx cx;
} Square;

// A piece of random numbers again and again: what matters is that no line is zero.
static Err fill(const Device *dev, Mat x, uint32_t seed) {
    static uint16_t half[PIECE];
    static float full[PIECE];
    for (int i = 0; i < PIECE; i++) {
        uint32_t w = philox(seed, 1, (uint64_t)i).v[0];
        full[i] = (float)(int32_t)w / 2147483648.0f;
        half[i] = bf16_from_f32(full[i]);
    }
    size_t es = dtype_bytes(x.t), all = (size_t)(x.rows * x.cols) * es;
    const void *piece = x.t == DT_BF16 ? (const void *)half : (const void *)full;
    for (size_t at = 0; at < all; at += PIECE * es)
        TRY(dev->to_device((char *)x.p + at, piece, all - at < PIECE * es ? all - at : PIECE * es));
    return OK;
}

// The fastest of a few products, by marks.
static Err measure(double *best, const Backend *on, Square *s, int runs) {
    for (int i = 0; i < WARM; i++) TRY(on->ops->gemm_nt(&s->cx, s->y, s->a, s->b, false));
    for (int i = 0; i < runs; i++) {
        TRY(measure_mark(2 * i));
        TRY(on->ops->gemm_nt(&s->cx, s->y, s->a, s->b, false));
        TRY(measure_mark(2 * i + 1));
    }
    TRY(on->dev->sync());
    *best = 1e30;
    for (int i = 0; i < runs; i++) {
        double t = 0.0;
        TRY(measure_between(&t, 2 * i, 2 * i + 1));
        if (t < *best) *best = t;
    }
    return OK;
}

static Err try_size(DevicePeak *out, const Backend *on, DType t, int64_t n, bool *is_last) {
    Arena *arena = NULL, *scratch = NULL;
    Square s = {0};
    double seconds = 0.0;
    size_t matrix = (size_t)(n * n) * dtype_bytes(t);
    Err err = OK;
    TRY_OR(arena_create_on(&arena, on->dev, "peak", 3 * matrix + 3 * ARENA_ALIGN, false), done);
    TRY_OR(arena_create_on(&scratch, on->dev, "peak scratch", SCRATCH, false), done);
    s.cx = (OpCx){.scratch = scratch, .nthreads = 1};
    TRY_OR(arena_mat(arena, &s.a, t, n, n, "peak"), done);
    TRY_OR(arena_mat(arena, &s.b, t, n, n, "peak"), done);
    TRY_OR(arena_mat(arena, &s.y, t, n, n, "peak"), done);
    TRY_OR(fill(on->dev, s.a, 1), done);
    TRY_OR(fill(on->dev, s.b, 2), done);
    TRY_OR(measure(&seconds, on, &s, 1), done);
    *is_last = seconds >= LONG_ENOUGH || n == LAST;
    // What ends the search is measured well; a size that took long already needs no more runs.
    if (*is_last && seconds < 100 * LONG_ENOUGH) TRY_OR(measure(&seconds, on, &s, RUNS), done);
    double rate = 2.0 * (double)n * (double)n * (double)n / seconds;
    if (rate > out->flops) *out = (DevicePeak){rate, n};
done:
    arena_destroy(&scratch);
    arena_destroy(&arena);
    return err;
}

Err device_peak(DevicePeak *out, const Backend *on, DType t) {
    bool is_last = false;
    size_t room = 0;
    *out = (DevicePeak){0};
    TRY(measure_free(&room));
    for (int64_t n = FIRST; !is_last; n *= 2) {
        size_t need = SCRATCH + 3 * (size_t)(n * n) * dtype_bytes(t);
        if (n > FIRST && need > room / 2) break;
        TRY(try_size(out, on, t, n, &is_last));
    }
    return OK;
}
