// attn_avx512.c - attention with AVX-512 (F, BW, DQ, VL): FP32 multiply-adds, 12 x 32.
// Compiled with its own flags and called only where the processor has them; without the flags
// (another architecture) only a table that is never used is left.
#include "attn_engine.h"

#ifdef __AVX512BW__
#include <immintrin.h>

#include "attn_lanes512.h"

#define KU 1
#define ATTN_ISA attn_avx512
#define ATTN_NAME "avx512"

static inline vf vdot(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}

#include "attn_tile.h"
#else
const AttnIsa attn_avx512 = {"avx512", NULL, NULL, NULL};
#endif
