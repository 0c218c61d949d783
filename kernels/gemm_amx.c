// gemm_amx.c - output tiles with the tile registers of AMX (TDPBF16PS): blocks of 32 x 32.
//
// FP8 codes are exact as BF16, and so are products of two BF16 values as FP32; sums are FP32,
// rounded to nearest even. The instruction reads BF16 subnormals as zero and flushes FP32
// subnormals: every E4M3 value is a normal BF16 number, and below 2^-126 nothing is left that
// counts in a sum. One instruction adds, for each element, the products of the even and of the odd
// elements of 16 pairs, each in order, then both to the element: which of two matrices stands on
// the left changes no bit.
//
// The panels of gemm_amx.h hold GEMM_AMX_KB of the contraction; then each block of the output runs
// through them. A contraction of up to GEMM_AMX_KEPT has all its panels of columns at once, and the
// next tile of the same columns finds them: weights are packed once, not once for every 256 tokens.
// BF16: the block's four registers start from the sums and return there. FP8: they start from zero
// every 128 elements and go to `parts`, and while the next 128 are multiplied, the vector units
// promote: sums += part * (scale of the row * scale of the column). Compiled with its own flags and
// called only where gemm_amx_permit() says so; without the flags only names are left.
#include "gemm_amx.h"

#if defined(__AMX_BF16__) && defined(__AVX512VBMI__) && defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "gemm_ends.h"

#define INLINE static inline __attribute__((always_inline))

enum { TILE_SUMS = AMX_STRIP * AMX_STRIP, BLOCK_SUMS = 4 * TILE_SUMS };

// Of panels and sums as gemm_amx.h and block_at lay them.
INLINE void step(const int h, const uint16_t *r, const uint16_t *c) {
    const int64_t strip = AMX_STRIP_ELEMS * (int64_t)sizeof *r;
    amx_step(h, r, 64, strip, c, 64, strip);
}
INLINE void tiles_load(const int h, const float *sums) {
    amx_load(h, sums, 64, TILE_SUMS * 4, 2 * TILE_SUMS * 4);
}
INLINE void tiles_store(const int h, float *sums) {
    amx_store(h, sums, 64, TILE_SUMS * 4, 2 * TILE_SUMS * 4);
}

// A block whose sums of one slice wait to be promoted.
typedef struct Waiting {
    const float *part, *row_scales, *column_scales; // [BLOCK_SUMS], [32], [32]
    float *sums;                                    // [BLOCK_SUMS]
    __mmask16 has_sums;                             // none: the first slice of the contraction
    int h;                                          // strips of rows, 0: there is none
    int64_t i, j;                                   // which
} Waiting;

// The t-th register of a block: sums += part * (row's scale * column's scale).
INLINE void promote(const Waiting *w, int t) {
    const float *part = w->part + t * TILE_SUMS, *rs = w->row_scales + t / 2 * AMX_STRIP;
    float *sums = w->sums + t * TILE_SUMS;
    __m512 cs = _mm512_loadu_ps(w->column_scales + t % 2 * AMX_STRIP);
#pragma GCC unroll 16
    for (int r = 0; r < AMX_STRIP; r++) {
        __m512 s = _mm512_mul_ps(_mm512_set1_ps(rs[r]), cs);
        __m512 x = _mm512_mul_ps(_mm512_load_ps(part + r * AMX_STRIP), s);
        __m512 old = _mm512_maskz_load_ps(w->has_sums, sums + r * AMX_STRIP);
        _mm512_store_ps(sums + r * AMX_STRIP, _mm512_add_ps(old, x));
    }
}

static void promote_all(const Waiting *w) {
    for (int t = 0; t < 2 * w->h; t++) promote(w, t);
}

// One slice of one block, of `steps` steps; the block that waits is promoted meanwhile.
INLINE void slice_block(const int h, int64_t steps, const uint16_t *r, const uint16_t *c,
                        const Waiting *waiting, float *part) {
    amx_zero(h);
    if (steps == TILE / AMX_STEP && waiting->h == h) {
#pragma GCC unroll 4
        for (int k = 0; k < TILE / AMX_STEP; k++) {
            step(h, r + k * AMX_TILE, c + k * AMX_TILE);
            if (k < 2 * h) promote(waiting, k);
        }
    } else {
        for (int64_t k = 0; k < steps; k++) step(h, r + k * AMX_TILE, c + k * AMX_TILE);
        promote_all(waiting);
    }
    tiles_store(h, part);
}

// One call, and what the panels hold.
typedef struct Range {
    const GemmProblem *p;
    int64_t m0, mn, n0, nn, kn;
    bool is_first, is_last; // nothing of the contraction came before, nothing comes after
    const uint16_t *columns;
    const float (*column_scales)[GEMM_AMX_NB];
} Range;

static int64_t blocks(int64_t n) {
    return ceil_div(n, 2 * AMX_STRIP);
}

// Where the sums of a block lie: row blocks of all column blocks of four registers each. If no other panel waits for
// them, two places in turn do, which stay in L1.
static float *block_at(const Range *g, GemmWork *w, int64_t i, int64_t j) {
    int64_t at = i * blocks(g->nn) + j;
    return w->amx.sums + (g->is_first && g->is_last ? at % 2 : at) * BLOCK_SUMS;
}

// 16 floats as BF16 in the low halves of 32 bits, rounded as bf16_from_f32 does.
INLINE __m512i round_bf16(__m512 x) {
    __m512i bits = _mm512_castps_si512(x), odd = _mm512_srli_epi32(bits, 16);
    __m512i up =
        _mm512_add_epi32(_mm512_and_si512(odd, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7FFF));
    __m512i y = _mm512_srli_epi32(_mm512_add_epi32(bits, up), 16);
    __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(y, is_nan, odd, _mm512_set1_epi32(0x40));
}

// n <= 16 sums of a row into y(row, col ...).
INLINE void put(const GemmProblem *p, int64_t row, int64_t col, int64_t n, __m512 x) {
    __mmask16 mask = (__mmask16)(n >= AMX_STRIP ? 0xFFFF : (1 << n) - 1);
    if (p->y.t == DT_BF16) {
        uint16_t *y = (uint16_t *)p->y.p + row * p->y.ld + col;
        _mm512_mask_cvtepi32_storeu_epi16(y, mask, round_bf16(x));
        return;
    }
    float *y = (float *)p->y.p + row * p->y.ld + col;
    if (p->acc) x = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), x);
    _mm512_mask_storeu_ps(y, mask, x);
}

// The finished sums of block (i, j) into the output.
static void put_block(const Range *g, GemmWork *w, int64_t i, int64_t j) {
    const float *sums = block_at(g, w, i, j);
    int64_t row = i * 2 * AMX_STRIP, col = j * 2 * AMX_STRIP;
    int64_t rows = min_i64(2 * AMX_STRIP, g->mn - row), columns = g->nn - col;
    for (int64_t r = 0; r < rows; r++) {
        const float *at = sums + r / AMX_STRIP * 2 * TILE_SUMS + r % AMX_STRIP * AMX_STRIP;
        put(g->p, g->m0 + row + r, g->n0 + col, columns, _mm512_load_ps(at));
        if (columns > AMX_STRIP)
            put(g->p, g->m0 + row + r, g->n0 + col + AMX_STRIP, columns - AMX_STRIP,
                _mm512_load_ps(at + TILE_SUMS));
    }
}

static void run_e4m3(GemmWork *w, const Range *g) {
    Waiting waiting = {.h = 0};
    int at = 0;
    for (int64_t i = 0; i < blocks(g->mn); i++) {
        const uint16_t *r = w->amx.rows + i * 2 * AMX_STRIP_ELEMS;
        int h = g->mn - i * 2 * AMX_STRIP > AMX_STRIP ? 2 : 1;
        for (int64_t j = 0; j < blocks(g->nn); j++) {
            const uint16_t *c = g->columns + j * 2 * AMX_STRIP_ELEMS;
            for (int64_t s = 0; s * TILE < g->kn; s++) {
                int64_t skip = s * (TILE / AMX_STEP) * AMX_TILE;
                int64_t steps = ceil_div(min_i64(TILE, g->kn - s * TILE), 64) * 2;
                float *part = w->amx.parts + at * BLOCK_SUMS;
                if (h == 2)
                    slice_block(2, steps, r + skip, c + skip, &waiting, part);
                else
                    slice_block(1, steps, r + skip, c + skip, &waiting, part);
                if (g->is_last && waiting.h && s == 0) put_block(g, w, waiting.i, waiting.j);
                waiting = (Waiting){.part = part,
                                    .row_scales = w->amx.row_scales[s] + i * 2 * AMX_STRIP,
                                    .column_scales = g->column_scales[s] + j * 2 * AMX_STRIP,
                                    .sums = block_at(g, w, i, j),
                                    .has_sums = g->is_first && s == 0 ? 0 : 0xFFFF,
                                    .h = h,
                                    .i = i,
                                    .j = j};
                at = !at;
            }
        }
    }
    promote_all(&waiting);
    if (g->is_last) put_block(g, w, waiting.i, waiting.j);
}

INLINE void run_block(const int h, const Range *g, const uint16_t *r, const uint16_t *c,
                      float *sums) {
    if (g->is_first)
        amx_zero(h);
    else
        tiles_load(h, sums);
    for (int64_t k = 0; k < g->kn; k += AMX_STEP) step(h, r + k * AMX_STRIP, c + k * AMX_STRIP);
    tiles_store(h, sums);
}

static void run_bf16(GemmWork *w, const Range *g) {
    for (int64_t i = 0; i < blocks(g->mn); i++) {
        const uint16_t *r = w->amx.rows + i * 2 * AMX_STRIP_ELEMS;
        for (int64_t j = 0; j < blocks(g->nn); j++) {
            const uint16_t *c = g->columns + j * 2 * AMX_STRIP_ELEMS;
            float *sums = block_at(g, w, i, j);
            if (g->mn - i * 2 * AMX_STRIP > AMX_STRIP)
                run_block(2, g, r, c, sums);
            else
                run_block(1, g, r, c, sums);
            if (g->is_last) put_block(g, w, i, j);
        }
    }
}

void gemm_tile_amx(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                   GemmWork *w) {
    bool is_fp8 = p->a.t == SRC_E4M3;
    if (p->k == 0) {
        static const float zeros[GEMM_AMX_NB];
        for (int64_t r = 0; r < mn; r++) store_row(p, m0 + r, n0, nn, zeros);
        return;
    }
    // Of strips that no element fills, too.
    if (is_fp8) memset(w->amx.row_scales, 0, sizeof w->amx.row_scales);
    bool is_kept = p->k <= GEMM_AMX_KEPT;
    bool is_there = is_kept && w->packed == p && w->packed_m0 == n0 && w->packed_mn == nn;
    amx_open();
    for (int64_t k0 = 0; k0 < p->k; k0 += GEMM_AMX_KB) {
        int64_t kn = min_i64(GEMM_AMX_KB, p->k - k0), at = is_kept ? k0 : 0;
        uint16_t *columns = w->amx.columns + at * GEMM_AMX_NB;
        float(*column_scales)[GEMM_AMX_NB] = w->amx.column_scales + at / TILE;
        Range g = {p, m0, mn, n0, nn, kn, k0 == 0, k0 + kn == p->k, columns, column_scales};
        amx_pack_rows(&p->a, m0, mn, k0, kn, w->amx.rows);
        if (!is_there) amx_pack_columns(&p->b, n0, nn, k0, kn, columns);
        for (int64_t s = 0; s * TILE < kn && is_fp8; s++) {
            pack_scales(&p->a, m0, mn, k0 + s * TILE, w->amx.row_scales[s]);
            if (is_there) continue;
            memset(column_scales[s], 0, sizeof column_scales[s]);
            pack_scales(&p->b, n0, nn, k0 + s * TILE, column_scales[s]);
        }
        __asm__ volatile("" : : : "memory"); // tile loads do not say what they read
        if (is_fp8)
            run_e4m3(w, &g);
        else
            run_bf16(w, &g);
    }
    w->packed = is_kept ? p : NULL;
    w->packed_m0 = n0;
    w->packed_mn = nn;
    _tile_release();
}

bool gemm_amx_is_built(void) {
    return true;
}

// Peak: the block's four registers, operands that stay in registers.
double gemm_peak_amx(int64_t n, float *sink) {
    float x[TILE_SUMS] __attribute__((aligned(64)));
    for (int i = 0; i < TILE_SUMS; i++) x[i] = sink[0];
    amx_open();
    __asm__ volatile("" : : "r"(x) : "memory");
    _tile_loadd(4, x, 64);
    _tile_loadd(5, x, 64);
    _tile_loadd(6, x, 64);
    _tile_loadd(7, x, 64);
    amx_zero(2);
    int64_t rounds = n / 4 + 1; // takes about as long as n rounds of the other kernels
    for (int64_t i = 0; i < rounds; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, x, 64);
    _tile_release();
    sink[7] = x[0];
    return 4.0 * 2.0 * AMX_STRIP * AMX_TILE * (double)rounds;
}
#else
void gemm_tile_amx(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                   GemmWork *w) {
    (void)p, (void)m0, (void)mn, (void)n0, (void)nn, (void)w;
}
bool gemm_amx_is_built(void) {
    return false;
}
double gemm_peak_amx(int64_t n, float *sink) {
    (void)n, (void)sink;
    return 0;
}
#endif
