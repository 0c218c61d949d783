// quant_e5m6_cuda.cu - the 12-bit cache on the GPU, one warp per tile. Contract: quant.h; format: e5m6.h.
#include "rows_cuda.h"

#include "e5m6.h"
#include "quant_core.h"

#define TILES_PER_BLOCK 8

// The code of a rounded value; counts as quant_e5m6.c does.
DEV uint32_t encode(float v, float inverse, int *saturated, int *underflow, int *bad) {
    float q = v * inverse; // a power of two: the same as dividing
    int32_t m = (int32_t)(f32_bits(v) & 0x7FFFFFFFu);
    int is_bad = m >= F32_INF_BITS;
    uint32_t c = e5m6_from_f32(q) & 0x7FFu;
    *saturated += !is_bad && (int32_t)(f32_bits(q) & 0x7FFFFFFFu) > 0x47FC0000;
    *underflow += c == 0 && m != 0;
    *bad |= is_bad;
    return (is_bad ? E5M6_NAN : c) | ((f32_bits(v) >> 20) & 0x800u); // the sign from the input: see quant_cuda.cu
}

static __global__ void quant_e5m6_kernel(Mat y, Mat x, QuantCount *n) {
    int64_t per_row = (x.cols + E5M6_TILE - 1) / E5M6_TILE, scales = (x.cols + 1) / 2 * 3;
    int64_t tile = (int64_t)blockIdx.x * TILES_PER_BLOCK + threadIdx.x / 32;
    if (tile >= x.rows * per_row) return;
    int64_t r = tile / per_row, t = tile % per_row, c0 = t * E5M6_TILE;
    int lane = (int)(threadIdx.x % 32), w = (int)(x.cols - c0 < E5M6_TILE ? x.cols - c0 : E5M6_TILE);
    uint8_t *row = (uint8_t *)y.p + r * y.ld;
    float v[4];
    int32_t most = 0;
    for (int k = 0; k < 4; k++) { // a lane has two neighbouring pairs: 6 bytes of codes
        int i = 4 * lane + k;
        v[k] = i < w ? quant_round(row_value(x, r, c0 + i)) : 0.0f;
        int32_t m = quant_magnitude(v[k]);
        most = m > most ? m : most;
    }
    most = warp_max(most);
    uint8_t b = tile_scale_e5m6(f32_from_bits((uint32_t)most));
    float inverse = f32_from_e8m0((uint8_t)(254 - b));
    int saturated = 0, underflow = 0, bad = 0;
    uint32_t code[4];
    for (int k = 0; k < 4; k++) code[k] = 4 * lane + k < w ? encode(v[k], inverse, &saturated, &underflow, &bad) : 0;
    for (int k = 0; k < 4; k += 2) {
        if (4 * lane + k >= w) break;
        uint8_t *dst = row + c0 / 2 * 3 + (2 * lane + k / 2) * 3;
        dst[0] = (uint8_t)code[k];
        dst[1] = (uint8_t)(code[k] >> 8 | code[k + 1] << 4);
        dst[2] = (uint8_t)(code[k + 1] >> 4);
    }
    if (lane == 0) row[scales + t] = b;
    if (t == per_row - 1 && lane < y.cols - scales - per_row) row[scales + per_row + lane] = 0; // at most 3 bytes
    saturated = warp_sum(saturated);
    underflow = warp_sum(underflow);
    bad = warp_max(bad);
    if (!n || lane != 0) return;
    count_add(&n->values, w);
    count_add(&n->saturated, saturated);
    count_add(&n->underflow, underflow);
    count_add(&n->tiles, 1);
    count_add(&n->nonfinite_tiles, bad);
    count_add(&n->scales[quant_scale_bin(f32_from_e8m0(b))], most != 0);
    count_most(&n->amax_bits, most);
}

static __global__ void dequant_e5m6_kernel(Mat y, Mat x) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= y.rows * y.cols) return;
    int64_t r = i / y.cols, c = i % y.cols, scales = (y.cols + 1) / 2 * 3;
    const uint8_t *row = (const uint8_t *)x.p + r * x.ld, *triple = row + c / 2 * 3;
    uint32_t code = c % 2 == 0 ? triple[0] | (triple[1] & 0xFu) << 8 : triple[1] >> 4 | (uint32_t)triple[2] << 4;
    float v = f32_from_e5m6((uint16_t)code);
    if ((code & 0x7FFu) != E5M6_NAN) v *= f32_from_e8m0(row[scales + c / E5M6_TILE]);
    row_store(y, r, c, v);
}

static Err check_packed(const char *op, Mat packed, Mat m) {
    CHECK(packed.t == DT_U8 && packed.rows == m.rows && packed.cols == e5m6_row_bytes(m.cols) &&
              (m.t == DT_F32 || m.t == DT_BF16),
          E_INTERNAL, "%s: %s [%lld, %lld] does not pack %s [%lld, %lld]", op, dtype_name(packed.t),
          (long long)packed.rows, (long long)packed.cols, dtype_name(m.t), (long long)m.rows, (long long)m.cols);
    return OK;
}

extern "C" Err quant_e5m6_cuda(OpCx *cx, Mat y, Mat x, QuantCount *n) {
    (void)cx;
    TRY(check_packed("quant_e5m6", y, x));
    int64_t tiles = x.rows * ceil_div(x.cols, E5M6_TILE);
    if (tiles == 0) return OK;
    LAUNCH(quant_e5m6_kernel, blocks_for(tiles, TILES_PER_BLOCK), dim3(32 * TILES_PER_BLOCK), 0, STREAM, y, x, n);
    CHECK_LAUNCH("quant_e5m6");
    return OK;
}

extern "C" Err dequant_e5m6_cuda(OpCx *cx, Mat y, Mat x) {
    (void)cx;
    TRY(check_packed("dequant_e5m6", x, y));
    if (y.rows * y.cols == 0) return OK;
    LAUNCH(dequant_e5m6_kernel, blocks_for(y.rows * y.cols, ROW_THREADS), dim3(ROW_THREADS), 0, STREAM, y, x);
    CHECK_LAUNCH("dequant_e5m6");
    return OK;
}
