// rope.h - rotary embedding of adjacent pairs (x[2i], x[2i+1]), as DeepSeek stores them.
//
// rope: for every token t and head h, rotates the Dr values at column `col + h*head_stride` by the angles of
// position t % S: (a, b) -> (a*cos - b*sin, a*sin + b*cos); inverse: by the negative angle (the backward).
//   x     [T, ...] f32 or bf16, in place; FP32 inside, rounded once
//   table [S, Dr/2, 2] f32 (cos, sin), from rope_table
// DeepSeek-V3 report 2.1.1 (eqs. 3, 4, 8).
#pragma once
#include "view.h"

typedef struct RopeShape {
    int64_t seq_len;     // S: position = row % S
    int64_t heads;       // heads to rotate (1 for the shared key)
    int64_t head_stride; // columns from one head to the next
    int64_t col;         // column of the first rotated value of head 0
    int64_t rope_dim;    // Dr, even
} RopeShape;

// YaRN parameters; factor == 0 means: no rope_scaling.
typedef struct YarnShape {
    double factor, original_max_position, beta_fast, beta_slow, mscale, mscale_all_dim;
} YarnShape;

// rope_table: fill table [S, Dr/2, 2] with cos and sin of position * frequency, computed in double and
// rounded. With YaRN the frequencies are blended (deepseek_v3 facts 1.2) and cos/sin are multiplied by
// mscale(factor, mscale)/mscale(factor, mscale_all_dim) (by mscale(factor, 1) if either is 0), as
// transformers does. Host memory.
void rope_table(float *table, int64_t S, int64_t Dr, double theta, YarnShape yarn);
// rope_softmax_scale: (Dn+Dr)^-0.5, times mscale(factor, mscale_all_dim)^2 with YaRN and mscale_all_dim != 0.
double rope_softmax_scale(int64_t qk_dim, YarnShape yarn);
