// gemm_amx.h - how an output tile is laid out for the tile registers of AMX: private to the amx
// kernels.
//
// A tile register is 16 rows of 64 bytes: 16 x 16 floats of the output, or 16 rows of 16 pairs of
// BF16 along the contraction. Panels are in the order in which registers are loaded: strips of 16
// rows or columns, in each strip one register (1 KiB) per step of 32 along the contraction.
//   rows panel:    register = [16 rows][16 pairs]      the left side of TDPBF16PS
//   columns panel: register = [16 pairs][16 columns]   the right side
// Which elements make a pair, and in which order the pairs come, is the same in both panels: for
// BF16 (k, k + 1) ascending; for E4M3, of every 64 elements first all (4i, 4i + 2), then all
// (4i + 1, 4i + 3): what falls out of decoding 64 codes at a time.
#pragma once
#include "gemm_engine.h"

enum {
    AMX_STRIP = 16,                  // rows or columns of a register
    AMX_STEP = 32,                   // elements of the contraction of a register
    AMX_TILE = AMX_STRIP * AMX_STEP, // BF16 values of a register
};

// amx_filled: elements of the contraction that kn of a type take in a panel.
static inline int64_t amx_filled(GemmSrc t, int64_t kn) {
    int64_t unit = t == SRC_E4M3 ? 2 * AMX_STEP : AMX_STEP;
    return (kn + unit - 1) / unit * unit;
}

// amx_pack_rows / amx_pack_columns: n rows (columns) from outer, elements [k0, k0 + kn) of the
// contraction as BF16 into a panel whose strips lie `strip` values apart. Strips are made until
// their number is even (columns of codes across memory: a multiple of 4); what has no element is
// zero, along the contraction to amx_filled(). Both types, both orientations.
void amx_pack_rows(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t kn,
                   int64_t strip, uint16_t *dst);
void amx_pack_columns(const GemmOperand *o, int64_t outer, int64_t n, int64_t k0, int64_t kn,
                      int64_t strip, uint16_t *dst);

#ifdef __AMX_BF16__
#include <immintrin.h>

// amx_open: tile registers of 16 rows of 64 bytes each; by use, 0 to 3 a block's sums, 4 and 5 its rows, 6 and 7 its
// columns. _tile_release() when done.
static inline void amx_open(void) {
    struct {
        uint8_t palette, start, unused[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64))) = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = AMX_STRIP;
    __asm__ volatile(""
                     :
                     : "r"(&config)
                     : "memory"); // ldtilecfg's intrinsic does not say that it reads
    _tile_loadconfig(&config);
}

// A block is h <= 2 strips of 16 rows and two of 16 columns. Distances in bytes: between rows of a register, from one
// strip to the next, of sums to the right and down. The loads do not say what they read: __asm__ volatile("" : : :
// "memory") after it was written.
#define AMX_INLINE static inline __attribute__((always_inline))

// Columns may be loaded as what is not needed again soon (T1): they come from the second-level cache and leave the
// rows, which every block of a loop needs, in the first.
typedef enum AmxFar { FAR_NONE, FAR_COLUMNS } AmxFar;

#define AMX_LOAD(is_far, t, at, ld)                                                                                    \
    do {                                                                                                               \
        if (is_far)                                                                                                    \
            _tile_stream_loadd(t, at, ld);                                                                             \
        else                                                                                                           \
            _tile_loadd(t, at, ld);                                                                                    \
    } while (0)

// amx_step: 32 elements of the contraction.
AMX_INLINE void amx_step(const AmxFar far, const int h, const void *rows, int64_t row, int64_t row_strip,
                         const void *columns, int64_t column, int64_t column_strip) {
    const char *r = (const char *)rows, *c = (const char *)columns;
    AMX_LOAD(far == FAR_COLUMNS, 6, c, column);
    _tile_loadd(4, r, row);
    _tile_dpbf16ps(0, 4, 6);
    AMX_LOAD(far == FAR_COLUMNS, 7, c + column_strip, column);
    _tile_dpbf16ps(1, 4, 7);
    if (h < 2) return;
    _tile_loadd(5, r + row_strip, row);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}
AMX_INLINE void amx_zero(const int h) {
    _tile_zero(0);
    _tile_zero(1);
    if (h < 2) return;
    _tile_zero(2);
    _tile_zero(3);
}
AMX_INLINE void amx_load(const int h, const float *sums, int64_t row, int64_t right, int64_t down) {
    const char *s = (const char *)sums;
    _tile_loadd(0, s, row);
    _tile_loadd(1, s + right, row);
    if (h < 2) return;
    _tile_loadd(2, s + down, row);
    _tile_loadd(3, s + down + right, row);
}
AMX_INLINE void amx_store(const int h, float *sums, int64_t row, int64_t right, int64_t down) {
    char *s = (char *)sums;
    _tile_stored(0, s, row);
    _tile_stored(1, s + right, row);
    if (h < 2) return;
    _tile_stored(2, s + down, row);
    _tile_stored(3, s + down + right, row);
}
#define AMX_BEGIN(t, is, at)                                                                                           \
    do {                                                                                                               \
        if (is)                                                                                                        \
            _tile_loadd(t, at, sum);                                                                                   \
        else                                                                                                           \
            _tile_zero(t);                                                                                             \
    } while (0)
// amx_turn: amx_store, amx_zero (or, where from is not NULL, amx_load) and the first step in one: each register
// leaves just before it is needed, while the others' products go on.
AMX_INLINE void amx_turn(const int h, const void *rows, int64_t row, int64_t row_strip, const void *columns,
                         int64_t column, int64_t column_strip, float *to, const float *from, int64_t sum,
                         int64_t right, int64_t down) {
    const char *r = (const char *)rows, *c = (const char *)columns, *f = (const char *)from;
    char *t = (char *)to;
    _tile_stream_loadd(6, c, column);
    _tile_loadd(4, r, row);
    _tile_stored(0, t, sum);
    AMX_BEGIN(0, f, f);
    _tile_dpbf16ps(0, 4, 6);
    _tile_stream_loadd(7, c + column_strip, column);
    _tile_stored(1, t + right, sum);
    AMX_BEGIN(1, f, f + right);
    _tile_dpbf16ps(1, 4, 7);
    if (h < 2) return;
    _tile_loadd(5, r + row_strip, row);
    _tile_stored(2, t + down, sum);
    AMX_BEGIN(2, f, f + down);
    _tile_dpbf16ps(2, 5, 6);
    _tile_stored(3, t + down + right, sum);
    AMX_BEGIN(3, f, f + down + right);
    _tile_dpbf16ps(3, 5, 7);
}
#undef AMX_BEGIN
#undef AMX_LOAD
#endif
