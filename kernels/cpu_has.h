// cpu_has.h - which instructions this processor has, for whoever chooses code by instruction set.
// Inside kernels/ only.
#pragma once
#include <stdbool.h>

// cpu_has_avx512: F, BW, VL, DQ and FMA, what the files for AVX-512 are compiled with.
static inline bool cpu_has_avx512(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("fma");
#else
    return false;
#endif
}

// cpu_has_avx512bf16: also BF16 dot products. cpu_has_avx512vbmi: also byte permutations.
static inline bool cpu_has_avx512bf16(void) {
#if defined(__x86_64__)
    return cpu_has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
    return false;
#endif
}
static inline bool cpu_has_avx512vbmi(void) {
#if defined(__x86_64__)
    return cpu_has_avx512() && __builtin_cpu_supports("avx512vbmi");
#else
    return false;
#endif
}
// cpu_has_amx: tile registers, whether the kernel lets this process use them or not.
static inline bool cpu_has_amx(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("amx-tile");
#else
    return false;
#endif
}

// cpu_has_avx2: and FMA.
static inline bool cpu_has_avx2(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return false;
#endif
}
