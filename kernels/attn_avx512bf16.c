// attn_avx512bf16.c - attention with AVX-512 BF16 (vdpbf16ps): pairs of products, 12 x 32.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only a table that is never used is left.
#include "attn_engine.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#include "attn_lanes512bf16.h"

#define KU 2
#define ATTN_ISA attn_avx512bf16
#define ATTN_NAME "avx512-bf16"

static inline vf vdot(vf a, vf b, vf c) {
    return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}

#include "attn_tile.h"
#else
const AttnIsa attn_avx512bf16 = {"avx512-bf16", NULL, NULL, NULL};
#endif
