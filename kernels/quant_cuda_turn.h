// quant_cuda_turn.h - the transposed form of a tile of 128 tokens x 128 channels, by one block of 256 threads.
//
// The tile lies in shared memory as BF16. Warp w takes tokens 16w .. 16w+15, a lane four neighbouring channels: of each
// it has 16 consecutive tokens, which are 16 neighbouring codes of the result. These are laid out in shared memory, by
// channel, in the place of the tile, and leave from there row by row. No access to shared memory has a bank conflict:
// rows of the tile are read side by side, and the 16-byte chunks of a row of codes change places with the row's number.
#pragma once
#include "quant_cuda.h"

#define TURN_PITCH (TILE + 8) // of a row of the tile, so that its 16-byte chunks stay aligned
#define TURN_WARPS (QUANT_THREADS / 32)

// A tile, then its codes. Aligned, because it is accessed 16 bytes at a time.
typedef struct alignas(16) TurnTile {
    uint32_t v[TILE][TURN_PITCH / 2]; // pairs of values
} TurnTile;
// The largest magnitude of a warp's 16 tokens in each channel; magnitudes of BF16 end in zeros, so that bit 0 can say
// whether one of them is not finite.
typedef struct alignas(16) TurnMost {
    int32_t of[TURN_WARPS][TILE];
} TurnMost;

// turn_put: a thread's 16 values (rounded to BF16) of token i, channels c .. c+15 of the tile.
DEV void turn_put(TurnTile *tile, int i, int c, const float *v) {
    uint32_t w[8];
    UNROLL
    for (int k = 0; k < 8; k++) w[k] = f32_bits(v[2 * k]) >> 16 | (f32_bits(v[2 * k + 1]) & 0xFFFF0000u);
    uint4 low = {w[0], w[1], w[2], w[3]}, high = {w[4], w[5], w[6], w[7]};
    uint4 *to = (uint4 *)&tile->v[i][c / 2];
    bool is_swapped = c & (TILE / 2); // half of the threads of a row store their upper half first: no bank twice
    to[is_swapped] = is_swapped ? high : low;
    to[!is_swapped] = is_swapped ? low : high;
}

// turn_get: the same values back, by the thread that put them.
DEV void turn_get(float *v, const TurnTile *tile, int i, int c) {
    UNROLL
    for (int k = 0; k < 2; k++) {
        uint4 q = ((const uint4 *)&tile->v[i][c / 2])[k];
        uint32_t w[4] = {q.x, q.y, q.z, q.w};
        UNROLL
        for (int j = 0; j < 8; j++) v[8 * k + j] = f32_from_bits(j % 2 ? w[j / 2] & 0xFFFF0000u : w[j / 2] << 16);
    }
}

// Word i of channel f's codes in shared memory.
DEV uint32_t *turn_word(TurnTile *tile, int f, int i) {
    return &tile->v[0][0] + f * (TILE / 4) + (((i / 4) ^ ((f / 4) & 7)) * 4 + i % 4);
}

// One channel's `rows` codes to memory of any alignment, by a warp: whole words, single bytes at the ends.
DEV void turn_write(uint8_t *to, TurnTile *tile, int f, int rows) {
    int lane = (int)(threadIdx.x % 32), shift = (int)((uintptr_t)to % 4);
    uint32_t *words = (uint32_t *)(to - shift);
    for (int i = lane; i * 4 < rows + shift; i += 32) {
        uint32_t w = i < TILE / 4 ? *turn_word(tile, f, i) << (8 * shift) : 0;
        if (shift && i > 0) w |= *turn_word(tile, f, i - 1) >> (32 - 8 * shift);
        if (i * 4 >= shift && i * 4 + 4 <= rows + shift) {
            words[i] = w;
        } else {
            for (int k = i * 4; k < i * 4 + 4; k++)
                if (k >= shift && k < rows + shift) ((uint8_t *)words)[k] = (uint8_t)(w >> (k % 4 * 8));
        }
    }
}

// turn_tile: y, channels c0 .. c0+width-1, gets the codes of the tokens `at`, whose tile has the number n_tile in y.
// All threads of the block, after a barrier since the last turn_put. tile and most may be used again after the next.
DEV void turn_tile(MatQ y, int64_t c0, int width, GroupTile at, int64_t n_tile, TurnTile *tile, TurnMost *most,
                   QuantTally *tally, QuantPart *part) {
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    uint2 q[PER_LANE];
    int32_t all[4] = {0, 0, 0, 0}, bad[4] = {0, 0, 0, 0};
    UNROLL
    for (int i = 0; i < PER_LANE; i++) q[i] = *(const uint2 *)&tile->v[PER_LANE * warp + i][2 * lane];
#define TURN_BITS(i, j) ((j) % 2 ? ((j) < 2 ? q[i].x : q[i].y) & 0xFFFF0000u : ((j) < 2 ? q[i].x : q[i].y) << 16)
    UNROLL
    for (int j = 0; j < 4; j++) {
        UNROLL
        for (int i = 0; i < PER_LANE; i++) {
            float x = f32_from_bits(TURN_BITS(i, j));
            int32_t m = quant_magnitude(x);
            all[j] = m > all[j] ? m : all[j];
            bad[j] |= is_nonfinite(x);
        }
        all[j] |= bad[j];
    }
    *(int4 *)&most->of[warp][4 * lane] = int4{all[0], all[1], all[2], all[3]};
    __syncthreads();
    UNROLL
    for (int j = 0; j < 4; j++) all[j] = bad[j] = 0;
    for (int w = 0; w < TURN_WARPS; w++) {
        int4 m = *(const int4 *)&most->of[w][4 * lane];
        int32_t one[4] = {m.x, m.y, m.z, m.w};
        UNROLL
        for (int j = 0; j < 4; j++) {
            all[j] = (one[j] & ~1) > all[j] ? one[j] & ~1 : all[j];
            bad[j] |= one[j] & 1;
        }
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        int f = 4 * lane + j;
        QuantScale s = scale_for(y.st, all[j]);
        float v[PER_LANE];
        UNROLL
        for (int i = 0; i < PER_LANE; i++) v[i] = f32_from_bits(TURN_BITS(i, j));
        *(uint4 *)turn_word(tile, f, 4 * warp) = encode16(v, s, part);
        if (warp != j || f >= width) continue; // one warp for each j says what the scales are
        store_scale(y, (c0 + f) * y.srow + n_tile * y.scol, s);
        tally_tile(tally, (int)at.rows, all[j], bad[j], s.s);
    }
#undef TURN_BITS
    __syncthreads();
    for (int f = warp; f < width; f += TURN_WARPS) turn_write(y.q + (c0 + f) * y.ld + at.row, tile, f, (int)at.rows);
}
