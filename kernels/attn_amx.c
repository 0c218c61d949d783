// attn_amx.c - attention with the tile registers of AMX: BF16 inputs, FP32 sums; softmax and its gradient with AVX-512.
// Compiled with its own flags and called only where gemm_amx_permit() says so; without the flags only a table that is
// never used is left.
#include "attn_engine.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__x86_64__)
#include <immintrin.h>

#include "attn_lanes512bf16.h"

#define KU 2
#define TILE_REGISTERS
#define ATTN_ISA attn_amx
#define ATTN_NAME "amx"

#include "attn_tile.h"
#else
const AttnIsa attn_amx = {"amx", NULL, NULL, NULL};
#endif
