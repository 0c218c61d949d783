// gemm_source.h - elements of an operand as vectors of floats, whatever its type and orientation.
// Included by a template that defines before, besides vf and VW,
//   vlanes_{f32,bf16,e4m3,e5m2}(p): VW consecutive elements as floats.
#pragma once
#include <string.h>

#include "gemm_engine.h"

#define INLINE static inline __attribute__((always_inline))

INLINE vf decode_lanes(GemmSrc t, const void *p) {
    return t == SRC_F32    ? vlanes_f32(p)
           : t == SRC_BF16 ? vlanes_bf16(p)
           : t == SRC_E4M3 ? vlanes_e4m3(p)
                           : vlanes_e5m2(p);
}

// VW elements of which only n exist in memory; the others are zero.
INLINE vf load_lanes(GemmSrc t, const char *p, int64_t n) {
    if (__builtin_expect(n >= VW, 1)) return decode_lanes(t, p);
    char pad[VW * 4] = {0};
    if (n > 0) memcpy(pad, p, (size_t)(n * src_bytes(t)));
    return decode_lanes(t, pad);
}

INLINE const char *element(const GemmOperand *o, GemmSrc t, bool is_k_contig, int64_t outer,
                           int64_t k) {
    return (const char *)o->p +
           (is_k_contig ? outer * o->ld + k : k * o->ld + outer) * src_bytes(t);
}
