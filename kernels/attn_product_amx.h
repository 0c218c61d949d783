// attn_product_amx.h - the products of attn_tile.h with tile registers (TDPBF16PS): blocks of 32 rows. Included by
// attn_tile.h alone.
//
// Whole registers are read and written. So a left side and c have rows to a multiple of 16 (what is in the rows past
// the last is nobody's, and comes to nobody else), and units to a multiple of 16 are zero on one side, finite on the
// other. The instruction reads BF16 subnormals as zero, as vdpbf16ps does.
#pragma once
#include "gemm_amx.h"

enum { TILE_UNITS = AMX_STEP / KU }; // of a register
_Static_assert(NR == 2 * AMX_STRIP, "a panel is two registers wide");

INLINE void task_begin(void) {
    amx_open();
}
INLINE void task_end(void) {
    _tile_release();
}
// What a product reads past the units of a panel.
INLINE void pad_panel(float *panel, int64_t nu) {
    for (int64_t u = nu; u < attn_round_up(nu, TILE_UNITS); u++)
        for (int v = 0; v < NV; v++) vstore(panel + u * NR + v * VW, vset1(0.0f));
}

// h strips of 16 rows x NR columns, nu units.
INLINE void block(const int h, float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t nu,
                  bool is_added) {
    const int64_t cs = ldc * 4, as = lda * 4, bs = NR * 4, right = AMX_STRIP * 4; // in bytes
    if (is_added)
        amx_load(h, c, cs, right, AMX_STRIP * cs);
    else
        amx_zero(h);
    for (int64_t u = 0; u < nu; u += TILE_UNITS)
        amx_step(FAR_NONE, h, a + u, as, AMX_STRIP * as, b + u * NR, bs, right);
    amx_store(h, c, cs, right, AMX_STRIP * cs);
}

static __attribute__((noinline)) void product(float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
                                              int64_t nu, int64_t rows, int64_t lead, Fin fin, const float *by) {
    bool is_added = fin == FIN_ADD || fin == FIN_DECAY;
    for (int64_t r = 0; r < rows && fin == FIN_DECAY; r++)
        for (int v = 0; v < NV; v++) {
            float *at = c + r * ldc + v * VW;
            vstore(at, vmul(vload(at), vload(by + v * VW)));
        }
    __asm__ volatile("" ::: "memory"); // a load of a register does not say what it reads
    int64_t end = attn_round_up(rows, AMX_STRIP), units = attn_round_up(nu, TILE_UNITS);
    for (int64_t r = 0; r < end; r += 2 * AMX_STRIP) {
        int64_t u = min_i64(units, max_i64(0, r + lead) / KU / TILE_UNITS * TILE_UNITS);
        if (end - r > AMX_STRIP)
            block(2, c + r * ldc, ldc, a + r * lda + u, lda, b + u * NR, units - u, is_added);
        else
            block(1, c + r * ldc, ldc, a + r * lda + u, lda, b + u * NR, units - u, is_added);
    }
    for (int64_t r = 0; r < rows && (fin == FIN_TIMES || fin == FIN_LESS); r++)
        for (int v = 0; v < NV; v++) {
            float *at = c + r * ldc + v * VW;
            vf x = vload(at), y = vload(by + v * VW);
            vstore(at, fin == FIN_TIMES ? vmul(x, y) : vsub(x, y));
        }
}
