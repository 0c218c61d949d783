// gemm_cuda_mma.cu - products by mma.sync m16n8k16 of BF16. Contract: gemm_cuda_mma.h.
//
// A block of 8 warps computes 128 x 128 outputs, a warp 64 x 32. Slices of 32 of the contraction lie in shared memory
// as BF16, twice: while the warps multiply one, the threads have the next on its way in registers, where codes become
// BF16. An operand keeps its orientation in shared memory, ldmatrix turns it if need be; rows are 80 or 272 bytes
// apart, so that the eight rows of a matrix lie in different banks.
#include "gemm_cuda_part.h"
#include "ptx.h"

#include "quant_core.h"
extern "C" {
#include "gemm_cuda_mma.h"
}

#define EDGE 128              // rows and columns of an output tile
#define SLICE 32              // of the contraction in shared memory
#define PITCH_K (SLICE + 8)   // of a row of an operand whose contraction is contiguous
#define PITCH_O (EDGE + 8)    // of a row of the other kind: a row is one k
#define MMA_THREADS 256
#define HIGH 4 // fragments of 16 rows of a warp
#define WIDE 4 // of 8 columns

static int is_on = 1;
static int64_t nproducts;
extern "C" void gemm_mma_choose(int on) {
    is_on = on;
}
extern "C" int64_t gemm_mma_products(void) {
    return nproducts;
}

// A slice of an operand, in either orientation.
typedef struct alignas(16) MmaSlice {
    uint16_t v[EDGE * PITCH_K];
} MmaSlice;
typedef struct MmaRoom {
    MmaSlice a[2], b[2];
} MmaRoom;
static_assert(sizeof(MmaRoom) <= 48 << 10, "no kernel attribute is needed for so much");
static_assert(SLICE * PITCH_O <= EDGE * PITCH_K, "both orientations fit");

// 16 elements of one thread on their way: what they are is only decided when they arrive.
typedef struct Flight {
    uint32_t w[8];
} Flight;

// Where a thread's 16 elements of a slice begin: 2 threads per row of 32 k, or 8 per k of 128 rows.
template <bool IS_K> DEV int slice_outer() {
    return IS_K ? (int)threadIdx.x / 2 : (int)threadIdx.x % 8 * 16;
}
template <bool IS_K> DEV int slice_k() {
    return IS_K ? (int)threadIdx.x % 2 * 16 : (int)threadIdx.x / 8;
}

// The elements of the slice that begins at k0: `outer0` the first row of the tile, of those before `outer_end`; k from
// k_base on, before k_end. What lies outside is 0, and not read.
template <bool IS_FP8, bool IS_K>
DEV void fly(Flight *f, const GemmOperand &o, int64_t base, int64_t outer0, int64_t outer_end, int64_t k_base,
             int64_t k0, int64_t k_end) {
    int64_t outer = outer0 + slice_outer<IS_K>(), k = k0 + slice_k<IS_K>();
    int64_t left = IS_K ? k_end - k : outer_end - outer;
    if (IS_K ? outer >= outer_end : k >= k_end) left = 0;
    int64_t at = IS_K ? (base + outer) * o.ld + k_base + k : (k_base + k) * o.ld + base + outer;
    enum { BYTES = IS_FP8 ? 1 : 2, WORDS = 4 * BYTES };
    const uint8_t *from = (const uint8_t *)o.p + at * BYTES;
    UNROLL
    for (int i = 0; i < 8; i++) f->w[i] = 0;
    if (left >= 16 && (uintptr_t)from % 16 == 0) {
        UNROLL
        for (int i = 0; i < BYTES; i++) {
            uint4 q = ((const uint4 *)from)[i];
            f->w[4 * i] = q.x, f->w[4 * i + 1] = q.y, f->w[4 * i + 2] = q.z, f->w[4 * i + 3] = q.w;
        }
        return;
    }
    UNROLL
    for (int i = 0; i < 16; i++) {
        if (i >= left) continue;
        uint32_t one = IS_FP8 ? from[i] : ((const uint16_t *)from)[i];
        f->w[i * BYTES / 4] |= one << (8 * BYTES * i % 32);
    }
    static_assert(WORDS <= 8, "registers of a flight");
}

// A code as BF16 bits, exactly.
DEV uint32_t bf16_code(uint32_t c) {
    return f32_bits(quant_value((uint8_t)c)) >> 16;
}
template <bool IS_FP8, bool IS_K> DEV void land(MmaSlice *s, const Flight *f) {
    int outer = slice_outer<IS_K>(), k = slice_k<IS_K>();
    uint4 *to = (uint4 *)&s->v[IS_K ? outer * PITCH_K + k : k * PITCH_O + outer];
    uint32_t w[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        uint32_t codes = f->w[i / 2] >> (i % 2 * 16);
        w[i] = IS_FP8 ? bf16_code(codes & 0xFFu) | bf16_code(codes >> 8 & 0xFFu) << 16 : f->w[i];
    }
    to[0] = uint4{w[0], w[1], w[2], w[3]};
    to[1] = uint4{w[4], w[5], w[6], w[7]};
}

// The fragment of rows outer .. +15 and k .. +15: four matrices of 8 x 8. Of A they are (rows, k) = (0, 0), (8, 0),
// (0, 8), (8, 8); of B, where a fragment is two neighbouring ones of 8 columns, (0, 0), (0, 8), (8, 0), (8, 8).
template <bool IS_K, bool IS_B> DEV void fragment(uint32_t (&r)[4], const MmaSlice *s, int outer, int k) {
    int lane = (int)threadIdx.x % 32, m = lane / 8, row = lane % 8;
    int by_outer = 8 * (IS_B ? m / 2 : m % 2), by_k = 8 * (IS_B ? m % 2 : m / 2);
    if (IS_K)
        ldmatrix4(r, &s->v[(outer + by_outer + row) * PITCH_K + k + by_k]);
    else
        ldmatrix4_turned(r, &s->v[(k + by_k + row) * PITCH_O + outer + by_outer]);
}

template <bool A_K, bool B_K>
DEV void multiply(float (&sum)[HIGH][WIDE][4], const MmaSlice *a, const MmaSlice *b, int row0, int col0) {
    UNROLL
    for (int k = 0; k < SLICE; k += 16) {
        uint32_t fa[HIGH][4], fb[WIDE / 2][4];
        UNROLL
        for (int i = 0; i < HIGH; i++) fragment<A_K, false>(fa[i], a, row0 + 16 * i, k);
        UNROLL
        for (int j = 0; j < WIDE / 2; j++) fragment<B_K, true>(fb[j], b, col0 + 16 * j, k);
        UNROLL
        for (int i = 0; i < HIGH; i++) {
            UNROLL
            for (int j = 0; j < WIDE; j++) mma_bf16(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
        }
    }
}

// The sums of up to 128 products leave as FP32, multiplied by both scales. k: any element of the 128, with the tiles of
// earlier groups.
DEV void promote(float (&total)[HIGH][WIDE][4], float (&sum)[HIGH][WIDE][4], const GemmOperand &a, const GemmOperand &b,
                 const GemmPart &q, int64_t row, int64_t col, int64_t n, int64_t k) {
    float sb[WIDE][2];
    UNROLL
    for (int j = 0; j < WIDE; j++)
        for (int i = 0; i < 2; i++) sb[j][i] = col + 8 * j + i < n ? operand_scale(b, col + 8 * j + i, k) : 0.0f;
    UNROLL
    for (int i = 0; i < HIGH; i++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            int64_t r = row + 16 * i + 8 * h;
            float sa = r < q.m ? operand_scale(a, q.a_row + r, k) : 0.0f;
            UNROLL
            for (int j = 0; j < WIDE; j++) {
                UNROLL
                for (int x = 0; x < 2; x++) {
                    total[i][j][2 * h + x] += sum[i][j][2 * h + x] * (sa * sb[j][x]);
                    sum[i][j][2 * h + x] = 0.0f;
                }
            }
        }
    }
}

template <bool IS_FP8, bool A_K, bool B_K>
static __global__ void __launch_bounds__(MMA_THREADS, 1) gemm_mma_kernel(GemmCall c) {
    DYN_SMEM(MmaRoom, room);
    GemmPart q;
    if (!find_part<EDGE>(c, &q)) return;
    const GemmOperand a = c.p.a, b = stacked_b<IS_FP8>(c, q);
    const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    const int row0 = warp / 4 * 64, col0 = warp % 4 * 32; // of the warp in the tile
    const int64_t row = q.m0 + row0 + lane / 4, col = q.n0 + col0 + lane % 4 * 2;
    float sum[HIGH][WIDE][4] = {}, total[HIGH][WIDE][4] = {};
    Flight fa, fb;
    fly<IS_FP8, A_K>(&fa, a, q.a_row, q.m0, q.m, q.a_k, 0, q.k);
    fly<IS_FP8, B_K>(&fb, b, 0, q.n0, c.p.n, q.b_k, 0, q.k);
    int stage = 0;
    for (int64_t k0 = 0; k0 < q.k; k0 += SLICE, stage ^= 1) {
        land<IS_FP8, A_K>(&room->a[stage], &fa);
        land<IS_FP8, B_K>(&room->b[stage], &fb);
        __syncthreads(); // the slice is there, and nobody reads the one before the last
        if (k0 + SLICE < q.k) {
            fly<IS_FP8, A_K>(&fa, a, q.a_row, q.m0, q.m, q.a_k, k0 + SLICE, q.k);
            fly<IS_FP8, B_K>(&fb, b, 0, q.n0, c.p.n, q.b_k, k0 + SLICE, q.k);
        }
        multiply<A_K, B_K>(sum, &room->a[stage], &room->b[stage], row0, col0);
        if constexpr (IS_FP8)
            if ((k0 + SLICE) % TILE == 0 || k0 + SLICE >= q.k)
                promote(total, sum, a, b, q, row, col, c.p.n, k0 + q.tile * TILE);
    }
    UNROLL
    for (int i = 0; i < HIGH; i++) {
        UNROLL
        for (int j = 0; j < WIDE; j++) {
            UNROLL
            for (int x = 0; x < 4; x++) {
                int64_t r = row + 16 * i + x / 2 * 8, n = col + 8 * j + x % 2;
                if (r >= q.m || n >= c.p.n) continue;
                float v = IS_FP8 ? total[i][j][x] : sum[i][j][x];
                row_store(c.p.y, q.y_row + r, n, c.p.acc ? row_value(c.p.y, q.y_row + r, n) + v : v);
            }
        }
    }
}

extern "C" bool gemm_mma_takes(const GemmCall *c, bool is_promoted) {
    if (!is_on) return false;
    return (c->p.a.t == SRC_BF16 && c->p.b.t == SRC_BF16) || (c->p.a.t == SRC_E4M3 && is_promoted);
}

extern "C" Err gemm_mma_run(const char *op, GemmCall c) {
    int64_t rows = c.kind == GEMM_ROW_GROUPS ? group_tiles_most(c.g, c.p.m, EDGE) : ceil_div(c.p.m, EDGE);
    CHECK(rows <= 65535 && c.g.n <= 65535, E_INTERNAL, "%s: %lld rows in %lld groups", op, (long long)c.p.m,
          (long long)c.g.n);
    dim3 grid((unsigned)ceil_div(c.p.n, EDGE), (unsigned)rows, c.kind == GEMM_DEPTH_GROUPS ? (unsigned)c.g.n : 1u);
    bool is_fp8 = c.p.a.t == SRC_E4M3, a_k = c.p.a.is_k_contig, b_k = c.p.b.is_k_contig;
    void (*kernel)(GemmCall) = is_fp8  ? b_k ? gemm_mma_kernel<true, true, true> : gemm_mma_kernel<true, true, false>
                               : !a_k  ? gemm_mma_kernel<false, false, false>
                               : b_k   ? gemm_mma_kernel<false, true, true>
                                       : gemm_mma_kernel<false, true, false>;
    CHECK(a_k || (!is_fp8 && !b_k), E_INTERNAL, "%s: no kernel for these orientations", op);
    LAUNCH(kernel, grid, dim3(MMA_THREADS), sizeof(MmaRoom), STREAM, c);
    CHECK_LAUNCH(op);
    nproducts++;
    return OK;
}
