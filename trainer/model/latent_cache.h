// latent_cache.h - what generation remembers of a text: per block and position the normed latent and the rotated
// shared key, kv_lora_rank + qk_rope_head_dim numbers in place of keys and values of all heads. DeepSeek-V2 report
// 2.1.2. Memory of the host.
#pragma once
#include "shape.h"

typedef struct LatentCache {
    int64_t capacity; // positions there is room for
    int64_t n;        // positions that are filled; fewer: what lies behind is forgotten
    int64_t nlayers;
    Mat *row;    // [nlayers] [capacity, Rkv+Dr] act type (F32 in fp32 mode, else BF16)
    float *rope; // [capacity, Dr/2, 2]
} LatentCache;

// latent_cache_create: room for `capacity` positions of one text, none filled. E_INTERNAL: memory. Local.
Err latent_cache_create(LatentCache **out, const Shape *s, int64_t capacity) MUST_CHECK;
void latent_cache_free(LatentCache **c);
// latent_cache_position_bytes: of one position in all blocks. kv_position_bytes: what keys and values of all heads, of
// the same type, would take. Pure.
int64_t latent_cache_position_bytes(const Shape *s);
int64_t kv_position_bytes(const Shape *s);
