// quant_cpu.h - what the files of the CPU quantiser share: the scale of a tile, where values come
// from, and whole tiles. Inside kernels/ only.
#pragma once
#include "ops.h"
#include "quant_core.h"
#include "quant_lanes.h"

#define INLINE static inline __attribute__((always_inline))

enum { CHANNELS = 64 }; // channels of one transposed piece of work; divides TILE

// The scale of an amax, and its inverse if that gives the same bits as dividing (else 0).
typedef struct Scale {
    float s, inv;
    uint8_t e8m0;
} Scale;

INLINE Scale scale_for(ScaleType st, CodeType ct, float amax) {
    Scale k = {0};
    bool is_e5m2 = ct == CODE_E5M2;
    if (st == SCALE_F32) {
        k.s = is_e5m2 ? tile_scale_e5m2_f32(amax) : tile_scale_f32(amax);
        return k;
    }
    k.e8m0 = is_e5m2 ? tile_scale_e5m2_e8m0(amax) : tile_scale_e8m0(amax);
    k.s = f32_from_e8m0(k.e8m0);
    k.inv = f32_from_e8m0((uint8_t)(254 - k.e8m0));
    return k;
}

INLINE Scale scale_for_bits(MatQ y, int32_t amax) {
    return scale_for(y.st, y.ct, f32_from_bits((uint32_t)amax));
}

static inline void *scale_at(MatQ y, int64_t at) {
    return (char *)y.s + at * (y.st == SCALE_F32 ? 4 : 1);
}

static inline void store_scale(MatQ y, int64_t at, Scale k) {
    if (y.st == SCALE_F32)
        *(float *)scale_at(y, at) = k.s;
    else
        *(uint8_t *)scale_at(y, at) = k.e8m0;
}

static inline float load_scale(MatQ x, int64_t r, int64_t c) {
    int64_t at = r / x.tile_rows * x.srow + c / TILE * x.scol;
    return x.st == SCALE_F32 ? ((const float *)x.s)[at] : f32_from_e8m0(((const uint8_t *)x.s)[at]);
}

// Where the values of a quantisation come from: a matrix, or codes.
typedef struct Source {
    Mat x; // x.p NULL: q
    MatQ q;
} Source;

static inline const QuantLanes *lanes(void) {
    return quant_chosen();
}

// quant_threads: threads worth starting for n values.
static inline int quant_threads(const OpCx *cx, int64_t n) {
    return n < 8192 || cx->nthreads < 1 ? 1 : cx->nthreads;
}

// quant_tiles_for: the loops for whole tiles of y, NULL if there are none. For tiles that have
// their own scale each.
static inline const QuantTiles *quant_tiles_for(const QuantLanes *l, MatQ y) {
    return y.ct == CODE_E4M3 ? l->tiles : NULL;
}

// quant_tiles_tokens: tokens [m0, m0+m) x channels [c0, c0+w), w <= CHANNELS, of the source, one
// tile for each channel, to y, a view whose first code is that of the first. is_far: by
// QuantTiles.turn_far. Returns how many channels were done: a multiple of 32, or all.
int64_t quant_tiles_tokens(const QuantTiles *whole, bool is_far, MatQ y, const Source *from,
                           int64_t m0, int64_t m, int64_t c0, int64_t w, QuantCount *count);
// quant_tiles_block: the block of a weight w (one matrix, x the same) at (r0, c0); false, and
// nothing written, if it is not for these loops.
bool quant_tiles_block(const QuantTiles *whole, MatQ w, Mat x, int64_t r0, int64_t c0, int64_t rows,
                       int64_t cols, QuantCount *count);

// Rows of groups in spans of `size` rows, a multiple of TILE; a group's last one is shorter.
typedef struct Span {
    int64_t row, rows, tile; // the first row, and the number of its tile (view.h)
} Span;
// Where span_at has come to; zero at first.
typedef struct SpanWalk {
    int64_t e, span, tile; // group e begins with this span and this tile
} SpanWalk;

static inline int64_t spans_of(Groups g, int64_t size) {
    int64_t n = 0;
    for (int64_t e = 0; e < g.n; e++) n += ceil_div(g.count[e], size);
    return n;
}
// span_at: span i < spans_of; in ascending order.
static inline Span span_at(Groups g, int64_t size, int64_t i, SpanWalk *w) {
    for (; i >= w->span + ceil_div(g.count[w->e], size); w->e++) {
        w->span += ceil_div(g.count[w->e], size);
        w->tile += ceil_div(g.count[w->e], TILE);
    }
    int64_t at = (i - w->span) * size;
    return (Span){g.start[w->e] + at, min_i64(size, g.count[w->e] - at), w->tile + at / TILE};
}

// A transposed matrix that the caches do not keep is written in runs of so many tokens, whole lines
// of memory past the caches; else tile by tile.
enum { FAR_RUN = 4 * TILE };
// quant_is_far: whether codes of so many bytes are written past the caches.
bool quant_is_far(const QuantLanes *l, int64_t bytes);
// quant_settle: what this thread wrote past the caches comes before what others do after this.
// Operations on one thread leave it to their caller.
static inline void quant_settle(bool is_far) {
    if (is_far) __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
