// gemm_engine.h - the one engine behind every matrix product of the CPU backend.
//
// A product is c(i, j) = sum over k of a(i, k) b(j, k). Operands keep whatever type and orientation
// they have in memory; the tile function of the instruction set decodes them into panels (FP8 and
// BF16 become FP32, or pairs of BF16), some hundred elements of the contraction at a time, and its
// micro-kernel works on panels only. Threads share out the output tiles of all products of a call
// and never a contraction; an element's sum runs over k in ascending order wherever it lies in a
// tile. So neither the number of threads nor the tile size changes a bit of a result. Inside
// kernels/ and its tests and benchmarks only.
#pragma once
#include "ops.h"

typedef enum GemmSrc { SRC_F32, SRC_BF16, SRC_E4M3, SRC_E5M2 } GemmSrc;

// src_bytes: of one element.
static inline __attribute__((always_inline)) int64_t src_bytes(GemmSrc t) {
    return t == SRC_F32 ? 4 : t == SRC_BF16 ? 2 : 1;
}
static inline bool gemm_is_fp8(GemmSrc t) {
    return t == SRC_E4M3 || t == SRC_E5M2;
}

// One operand: element (outer, k), outer = row i of a or column j of b.
typedef struct GemmOperand {
    const void *p;    // element (0, 0)
    GemmSrc t;        // type in memory
    bool is_k_contig; // k is the contiguous index; else outer is
    int64_t ld;       // elements between two values of the other index
    const void *s;    // FP8: scale of (outer, k) = s[(outer / s_tile) * s_outer + (k / 128) * s_k]
    ScaleType st;     // type of s
    int s_tile;       // 1 or 128
    int64_t s_outer, s_k;
} GemmOperand;

// One product. Both operands FP8, of either format (with promotion every 128), or none. A pair is
// the sum of two products: the second contraction goes on with the sums of the first.
typedef struct GemmProblem {
    GemmOperand a, b;
    int64_t m, n, k;
    Mat y;              // [m, n] f32 or bf16
    bool acc;           // add to y (f32) instead of overwriting it
    GemmOperand a2, b2; // of the second contraction; the types are those of a and b
    int64_t k2;         // 0: there is none
} GemmProblem;

// gemm_length: elements of the contraction in the panels of tile registers: of both of a pair, the
// second beginning at a slice (FP8) or a step of 32.
static inline int64_t gemm_length(const GemmProblem *p) {
    int64_t unit = gemm_is_fp8(p->a.t) ? TILE : 32;
    return p->k2 ? (p->k + unit - 1) / unit * unit + p->k2 : p->k;
}

enum {
    GEMM_MB = 240,       // rows of an output tile whose contraction does not fit the panel of a
    GEMM_NB = 256,       // its columns
    GEMM_MB_MAX = 240,   // rows of the largest output tile otherwise; both multiples of 32
    GEMM_NB_WIDE = 1024, // its columns
    GEMM_PANEL = GEMM_MB * 512, // units of 32 bits in the panel of a: half of a second-level cache
    GEMM_LDC = GEMM_NB + 16,    // row stride of the tile's sums: no power of two
    GEMM_DEPTH = 512,           // units of the contraction in the panels, at most
    GEMM_NR_MAX = 32,           // columns of the panel of b
    GEMM_CUT_EVERY = 32,        // products of one cut sum; promotion intervals are multiples
    GEMM_WIDE_ROWS = 480,       // the same for AVX2: rows,
    GEMM_WIDE_COLUMNS = 512,    // columns,
    GEMM_WIDE_BYTES = 1750 << 10, // and what a thread works in
    GEMM_AMX_KB = 512,            // the same for tile registers: elements of the contraction of a panel,
    GEMM_AMX_KEPT = 1024,         // the longest contraction whose columns stay packed for the next rows,
    GEMM_AMX_MB = 256,            // rows of a tile whose contraction is no longer than that,
    GEMM_AMX_MB_LONG = 512,       // of others,
    GEMM_AMX_NB = 512,            // columns of a tile whose contraction is longer than a panel,
    GEMM_AMX_NB_WIDE = 1024,      // of others
};

// What one thread works in; contents undefined but for `packed`. Aligned to lines of the cache, and of a size that
// keeps the next thread's so: panels are loaded and stored by whole lines.
typedef struct GemmWork {
    union {
        struct {
            float a[GEMM_PANEL];
            float b[GEMM_NR_MAX * GEMM_DEPTH];
            float c[GEMM_MB * GEMM_LDC];
            float sa[GEMM_PANEL /
                     (TILE / 2)]; // for each slice of 128 of the contraction, of each row
            float sb[GEMM_DEPTH / (TILE / 2) * GEMM_NR_MAX];
            float s[GEMM_PANEL / (TILE / 2)]; // scales of the rows times that of the columns
            float between[12 * GEMM_NR_MAX];
        };
        struct {
            uint16_t rows[32 * GEMM_AMX_KB], columns[GEMM_AMX_NB * GEMM_AMX_KEPT];
            float sums[GEMM_AMX_MB_LONG * GEMM_AMX_NB]; // that wait for the next panel
            float block[4 * 256], part[4 * 256]; // FP8 sums of one block, what just left its registers
            float row_scales[2][GEMM_AMX_KB / TILE * 32];
            float column_scales[GEMM_AMX_NB * GEMM_AMX_KEPT / TILE];
        } amx;
        unsigned char wide[GEMM_WIDE_BYTES]; // gemm_avx2.c
    };
    const struct GemmProblem
        *packed; // whose rows (gemm_amx.c: columns) are packed, all of the contraction; NULL = nobody's
    int64_t packed_m0, packed_mn; // which ones
} __attribute__((aligned(64))) GemmWork;

// One output tile: rows [m0, m0+mn), columns [n0, n0+nn), at most as large as the instruction set
// takes. One thread gets the tiles of a call in ascending order, `packed` NULL before the first.
typedef void (*GemmTileFn)(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                           GemmWork *w);
void gemm_tile_amx(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                   GemmWork *w);
void gemm_tile_avx512bf16(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                          GemmWork *w);
void gemm_tile_avx512(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                      GemmWork *w);
void gemm_tile_avx2(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                    GemmWork *w);
void gemm_tile_portable(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                        GemmWork *w);
// The same for sums that the tile functions above do not know: FP8 products only, `every` =
// promotion interval, at most half of GEMM_MB rows. The bits are the same on every instruction set.
// gemm_accumulate.c.
typedef void (*GemmSumFn)(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                          GemmWork *w, GemmAccumulate how, int64_t every);
void gemm_accumulate_avx512(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                            GemmWork *w, GemmAccumulate how, int64_t every);
void gemm_accumulate_avx2(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                          GemmWork *w, GemmAccumulate how, int64_t every);
void gemm_accumulate_portable(const GemmProblem *p, int64_t m0, int64_t mn, int64_t n0, int64_t nn,
                              GemmWork *w, GemmAccumulate how, int64_t every);
// Arithmetic peak of one thread, for benchmarks: runs n rounds of independent multiply-adds in
// registers and returns the floating-point operations done; *sink keeps the compiler from dropping
// them.
typedef double (*GemmPeakFn)(int64_t n, float *sink);
double gemm_peak_amx(int64_t n, float *sink);
double gemm_peak_avx512bf16(int64_t n, float *sink);
double gemm_peak_avx512(int64_t n, float *sink);
double gemm_peak_avx2(int64_t n, float *sink);
double gemm_peak_portable(int64_t n, float *sink);

// gemm_amx_permit: the compiler, the processor and the kernel allow tile registers to this process;
// asks the kernel for the permission, once. gemm_permit.c.
bool gemm_amx_permit(void);
// gemm_amx_is_built: gemm_amx.c was compiled for tile registers.
bool gemm_amx_is_built(void);

// Output tiles of a tile function.
typedef struct GemmTiles {
    int64_t rows, columns;             // the largest
    int64_t rows_least, columns_least; // no smaller tile is made to keep a thread busy
    int64_t per_thread;                // as many are wanted, so that threads end together
    bool is_down;                      // those of the same columns come one after the other, not those of the same rows
} GemmTiles;

typedef struct GemmIsa {
    const char *name;
    GemmTileFn tile;      // any types
    GemmTileFn tile_half; // products of FP8 x FP8 and BF16 x BF16
    GemmSumFn sum;        // products of FP8 x FP8, any accumulation
    GemmPeakFn peak;      // of `tile`
    GemmPeakFn peak_half; // of `tile_half`
    int unit_half;     // elements of a unit of 32 bits in the panels of `tile_half`; 0: tile registers
    bool is_half_e5m2; // `tile_half` takes E5M2 codes; else `tile` does
    const GemmTiles *tiles; // of all products; NULL: by the panel of a, or of tile registers
} GemmIsa;

// gemm_run: compute np products; the sizes may differ. Uses cx->scratch for gemm_scratch_bytes().
// Local. Errors: E_INTERNAL if the scratch arena is too small.
Err gemm_run(OpCx *cx, const GemmProblem *problems, int64_t np) MUST_CHECK;
// gemm_takes_pairs: are pairs of such products computed, summed as cx says? Else gemm_run refuses
// them.
bool gemm_takes_pairs(const OpCx *cx, const GemmProblem *p);
// gemm_scratch_bytes: upper bound of what one gemm_* or ggemm_* operation pushes on the scratch
// arena.
size_t gemm_scratch_bytes(int nthreads, int64_t ngroups);
// gemm_select: use this instruction set from now on; NULL = the best of this processor. Returns
// false, and changes nothing, if it is unknown or this processor lacks it. For tests and
// benchmarks; not thread-safe.
bool gemm_select(const char *name);
// gemm_current: the chosen instruction set. gemm_isa_name: the i-th known name, NULL past the end.
const GemmIsa *gemm_current(void);
const char *gemm_isa_name(int i);

// gemm_operand_mat / gemm_operand_q: describe memory. Rows of m are the outer index if is_k_contig,
// else the contraction. A weight (tile_rows 128) may be read both ways, an activation only along
// its tiles.
GemmOperand gemm_operand_mat(Mat m, bool is_k_contig);
GemmOperand gemm_operand_q(MatQ m, bool is_k_contig);
