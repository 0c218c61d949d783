// quant_cuda.h - what all quantising kernels share: 16 elements per thread, 8 threads per tile of 128, counters of a
// block in shared memory. Private to kernels/*_cuda*.cu.
//
// The arithmetic is that of quant_core.h. What hardware may change is kept out of it: the sign of a NaN is taken from
// the input's bits, because the GPU's divider returns one NaN only. An element past the end of a row counts as 0,
// which changes neither scale, codes nor counters.
#pragma once
#include "rows_cuda.h"

#include "quant_core.h"

#define OCTET 8                            // threads of a tile
#define PER_LANE 16                        // elements of a thread
#define QUANT_THREADS 256                  // of most blocks
#define OCTETS (QUANT_THREADS / OCTET)     // tiles that such a block works on at a time
#define QUANT_PER_SM (2048 / QUANT_THREADS) // blocks that keep a multiprocessor full

// The scale of a tile and, where dividing by it is multiplying, its inverse (else 0).
typedef struct QuantScale {
    float s, inv;
    uint8_t e8m0;
} QuantScale;

DEV QuantScale scale_for(ScaleType st, int32_t amax_bits) {
    float amax = f32_from_bits((uint32_t)amax_bits);
    QuantScale k = {0.0f, 0.0f, 0};
    if (st == SCALE_F32) {
        k.s = tile_scale_f32(amax);
        return k;
    }
    k.e8m0 = tile_scale_e8m0(amax);
    k.s = f32_from_e8m0(k.e8m0);
    k.inv = f32_from_e8m0((uint8_t)(254 - k.e8m0));
    return k;
}

DEV void store_scale(MatQ y, int64_t at, QuantScale k) {
    if (y.st == SCALE_F32)
        ((float *)y.s)[at] = k.s;
    else
        ((uint8_t *)y.s)[at] = k.e8m0;
}

DEV float load_scale(MatQ x, int64_t r, int64_t c) {
    int64_t at = r / x.tile_rows * x.srow + c / TILE * x.scol;
    return x.st == SCALE_F32 ? ((const float *)x.s)[at] : f32_from_e8m0(((const uint8_t *)x.s)[at]);
}

DEV bool is_nonfinite(float x) {
    return (f32_bits(x) & 0x7F800000u) == 0x7F800000u;
}

// The value of a code; a NaN code gives a NaN of its sign.
DEV float decode(uint32_t c, float scale) {
    if ((c & 0x7F) == E4M3_NAN) return quant_value((uint8_t)c);
    return quant_value((uint8_t)c) * scale;
}

// What one thread has counted.
typedef struct QuantPart {
    int saturated, underflow;
} QuantPart;

// The code of a rounded value x, counted.
DEV uint32_t encode(float x, QuantScale k, QuantPart *part) {
    float v = k.inv != 0.0f ? x * k.inv : x / k.s;
    int32_t m = (int32_t)(f32_bits(v) & 0x7FFFFFFFu);
    uint32_t code = (quant_code(v, x) & 0x7Fu) | ((f32_bits(x) >> 24) & 0x80u);
    part->saturated += m > 0x43E00000 && m < F32_INF_BITS; // 448
    part->underflow += (code & 0x7Fu) == 0 && (f32_bits(x) & 0x7FFFFFFFu) != 0;
    return code;
}

// --- counters of a block ---

// In shared memory, so that the counters in device memory see one addition per block. tally_clear by all threads
// before the first tile, tally_add by all threads after the last; barriers are inside.
typedef struct QuantTally {
    int scales[SCALE_BINS], saturated, underflow, tiles, values, bad, amax;
} QuantTally;

DEV void tally_clear(QuantTally *t) {
    for (int i = (int)threadIdx.x; i < (int)(sizeof *t / sizeof(int)); i += (int)blockDim.x) ((int *)t)[i] = 0;
    __syncthreads();
}
// tally_tile: one tile of `values` values is done; by one of its threads. amax: quant_magnitude of its largest value.
DEV void tally_tile(QuantTally *t, int values, int32_t amax, int is_bad, float s) {
    if (amax) atomicAdd(&t->scales[quant_scale_bin(s)], 1);
    if (amax) atomicMax(&t->amax, amax);
    if (is_bad) atomicAdd(&t->bad, 1);
    atomicAdd(&t->tiles, 1);
    atomicAdd(&t->values, values);
}
// tally_add: n += the counters of the block and what its threads have counted; n may be NULL. Whole warps.
DEV void tally_add(QuantCount *n, QuantTally *t, QuantPart part) {
    if (!n) return; // the same for all threads
    int saturated = warp_sum(part.saturated), underflow = warp_sum(part.underflow);
    if (threadIdx.x % 32 == 0) {
        if (saturated) atomicAdd(&t->saturated, saturated);
        if (underflow) atomicAdd(&t->underflow, underflow);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < SCALE_BINS; i += (int)blockDim.x) count_add(&n->scales[i], t->scales[i]);
    if (threadIdx.x != 0) return;
    count_add(&n->values, t->values);
    count_add(&n->saturated, t->saturated);
    count_add(&n->underflow, t->underflow);
    count_add(&n->tiles, t->tiles);
    count_add(&n->nonfinite_tiles, t->bad);
    count_most(&n->amax_bits, t->amax);
}

// --- 16 elements of a row ---

// octet_max: over the 8 threads of a tile. All lanes of the warp.
DEV int32_t octet_max(int32_t v) {
    for (int d = OCTET / 2; d > 0; d /= 2) {
        int32_t other = __shfl_xor_sync(WARP_ALL, v, d);
        v = other > v ? other : v;
    }
    return v;
}
// octet_sum: over the 8 threads of a tile, by halves.
DEV float octet_sum(float v) {
    for (int d = OCTET / 2; d > 0; d /= 2) v += __shfl_xor_sync(WARP_ALL, v, d);
    return v;
}

// What the elements of a thread say about their tile: amax and whether one is not finite.
typedef struct TileStat {
    int32_t most, bad;
} TileStat;
DEV TileStat octet_stat(const float *v) {
    TileStat s = {0, 0};
    for (int i = 0; i < PER_LANE; i++) {
        int32_t m = quant_magnitude(v[i]);
        s.most = m > s.most ? m : s.most;
        s.bad |= is_nonfinite(v[i]);
    }
    s.most = octet_max(s.most);
    s.bad = octet_max(s.bad);
    return s;
}

// encode16: the codes of 16 rounded values, the first in the lowest byte.
DEV uint4 encode16(const float *v, QuantScale k, QuantPart *part) {
    uint32_t w[4];
    for (int i = 0; i < 4; i++)
        w[i] = encode(v[4 * i], k, part) | encode(v[4 * i + 1], k, part) << 8 | encode(v[4 * i + 2], k, part) << 16 |
               encode(v[4 * i + 3], k, part) << 24;
    return uint4{w[0], w[1], w[2], w[3]};
}

// store16: the first n codes, in as few stores as the address allows.
DEV void store16(uint8_t *to, uint4 v, int n) {
    uint32_t w[4] = {v.x, v.y, v.z, v.w};
    if (n >= PER_LANE && (uintptr_t)to % 16 == 0) {
        *(uint4 *)to = v;
    } else if (n >= PER_LANE && (uintptr_t)to % 4 == 0) {
        for (int i = 0; i < 4; i++) ((uint32_t *)to)[i] = w[i];
    } else {
        for (int i = 0; i < PER_LANE; i++)
            if (i < n) to[i] = (uint8_t)(w[i / 4] >> (8 * (i % 4)));
    }
}
// load16: n codes; what lies beyond is 0.
DEV uint4 load16(const uint8_t *from, int n) {
    uint32_t w[4] = {0, 0, 0, 0};
    if (n >= PER_LANE && (uintptr_t)from % 16 == 0) return *(const uint4 *)from;
    if (n >= PER_LANE && (uintptr_t)from % 4 == 0) {
        for (int i = 0; i < 4; i++) w[i] = ((const uint32_t *)from)[i];
    } else {
        for (int i = 0; i < PER_LANE; i++)
            if (i < n) w[i / 4] |= (uint32_t)from[i] << (8 * (i % 4));
    }
    return uint4{w[0], w[1], w[2], w[3]};
}
DEV void decode16(float *v, uint4 q, float scale) {
    uint32_t w[4] = {q.x, q.y, q.z, q.w};
    for (int i = 0; i < PER_LANE; i++) v[i] = decode(w[i / 4] >> (8 * (i % 4)) & 0xFFu, scale);
}

// quant16: a thread's part of one tile: its 16 values, already rounded to BF16, become codes at column c of row r. n:
// how many of them exist (<= 0: none). All lanes of the warp; is_there is the same for the 8 of a tile.
DEV void quant16(MatQ y, int64_t r, int64_t c, int n, const float *v, bool is_there, QuantTally *t, QuantPart *part,
                 int width) {
    TileStat stat = octet_stat(v);
    QuantScale s = scale_for(y.st, stat.most);
    uint4 w = encode16(v, s, part);
    if (!is_there) return;
    store16(y.q + r * y.ld + c, w, n);
    if (threadIdx.x % OCTET != 0) return;
    store_scale(y, r * y.srow + c / TILE * y.scol, s);
    tally_tile(t, width, stat.most, stat.bad, s.s);
}

// --- tiles of a matrix, 8 threads each ---

// A thread's part of a tile: row, first column, how many of its 16 values exist (<= 0: none); the tile's width, 0 where
// there is no tile for it.
typedef struct TilePlace {
    int64_t r, c;
    int mine, width;
    bool is_there;
} TilePlace;
DEV TilePlace place_in(int64_t r, int64_t c0, int64_t cols, bool is_there) {
    TilePlace p = {r, c0 + threadIdx.x % OCTET * PER_LANE, 0, 0, is_there};
    p.width = is_there ? (int)(cols - c0 < TILE ? cols - c0 : TILE) : 0;
    p.mine = (int)(c0 + p.width - p.c);
    return p;
}
// first_tile: of this warp's four; blocks are OCTETS tiles apart. place_of: of this thread's tile, `first` being the
// warp's first of `tiles`.
DEV uint32_t first_tile(void) {
    return blockIdx.x * OCTETS + threadIdx.x / 32 * 4;
}
DEV TilePlace place_of(uint32_t first, uint32_t tiles, uint32_t per_row, int64_t cols) {
    uint32_t tile = first + threadIdx.x % 32 / OCTET;
    bool is_there = tile < tiles;
    return place_in(is_there ? tile / per_row : 0, is_there ? tile % per_row * TILE : 0, cols, is_there);
}
// quant_place: the tile of x becomes codes of y. All lanes of the warp.
DEV void quant_place(MatQ y, Mat x, TilePlace p, QuantTally *t, QuantPart *part) {
    float v[PER_LANE];
    rows16(v, x, p.r, p.c, p.mine);
    UNROLL
    for (int i = 0; i < PER_LANE; i++) v[i] = quant_round(v[i]);
    quant16(y, p.r, p.c, p.mine, v, p.is_there, t, part, p.width);
}
// check_tiles: a matrix whose tiles have 32-bit numbers.
static inline Err check_tiles(const char *op, int64_t tiles) {
    CHECK(tiles < INT32_MAX - 65536, E_INTERNAL, "%s: %lld tiles in one matrix", op, (long long)tiles);
    return OK;
}
