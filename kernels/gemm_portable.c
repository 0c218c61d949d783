// gemm_portable.c - output tiles for any processor: 4-float vectors of the compiler, 4 x 8.
#include <string.h>

#include "fp8.h"
#include "gemm_engine.h"

typedef float vf __attribute__((vector_size(16)));
#define VW 4
#define MR 4
#define NV 2
#define MR_SCALED 4
#define IS_HELD 0
#define GEMM_TILE gemm_tile_portable
#define GEMM_PEAK gemm_peak_portable

static inline vf vload(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void vstore(float *p, vf x) {
    memcpy(p, &x, sizeof x);
}
static inline vf vset1(float x) {
    return (vf){x, x, x, x};
}
static inline vf vmul(vf a, vf b) {
    return a * b;
}
static inline vf vadd(vf a, vf b) {
    return a + b;
}
static inline vf vfma(vf a, vf b, vf c) {
    return a * b + c;
}
static inline vf vdot(vf a, vf b, vf c) {
    return c + a * b;
}
static inline vf vlanes_f32(const void *p) {
    return vload(p);
}
static inline vf vlanes_bf16(const void *p) {
    uint16_t h[VW];
    memcpy(h, p, sizeof h);
    return (vf){f32_from_bf16(h[0]), f32_from_bf16(h[1]), f32_from_bf16(h[2]), f32_from_bf16(h[3])};
}
static inline vf vlanes_e4m3(const void *p) {
    uint8_t c[VW];
    memcpy(c, p, sizeof c);
    return (vf){f32_from_e4m3(c[0]), f32_from_e4m3(c[1]), f32_from_e4m3(c[2]), f32_from_e4m3(c[3])};
}
static inline vf vlanes_e5m2(const void *p) {
    uint8_t c[VW];
    memcpy(c, p, sizeof c);
    return (vf){f32_from_e5m2(c[0]), f32_from_e5m2(c[1]), f32_from_e5m2(c[2]), f32_from_e5m2(c[3])};
}
static inline __attribute__((always_inline)) void vtranspose(vf r[VW]) {
    vf a = r[0], b = r[1], c = r[2], d = r[3];
    r[0] = (vf){a[0], b[0], c[0], d[0]};
    r[1] = (vf){a[1], b[1], c[1], d[1]};
    r[2] = (vf){a[2], b[2], c[2], d[2]};
    r[3] = (vf){a[3], b[3], c[3], d[3]};
}

#include "gemm_pack_f32.h"
#include "gemm_tile.h"
