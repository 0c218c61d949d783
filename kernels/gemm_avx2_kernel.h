// gemm_avx2_kernel.h - the micro-kernel of AVX2 products: h x 16 sums, h = 1 ... 6, in the twelve
// registers that two vectors of the columns and two broadcast rows leave.
//
// It is written in assembler because of the instructions that it must not have: 8 loads for 12
// multiply-adds leave 12 slots of the 36 in which 6 instructions a cycle can start; compilers add
// copies and, now and then, a sum in memory (23 instructions for 12 multiply-adds instead of 20).
// Where another thread runs on the same core, every second slot is its own, and instructions are
// what limits the rate. Rows are stored beside each other, [unit][h], so that an address fits one
// byte. Included only where <immintrin.h> offers AVX2 and FMA.
#pragma once
#include "gemm_lanes256.h"

enum { STRIP = 6, COLUMNS = 16, STEP = 8 }; // rows, columns, units of the contraction per round

// Row r of unit i: one broadcast, two multiply-adds.
#define ROW_OF(i, h, r, t)                                                                         \
    "vbroadcastss 4*(" #i "*" #h "+" #r ")-16*" #h "(%[a]), %%ymm" t "\n\t"                        \
    "vfmadd231ps %%ymm12, %%ymm" t ", %[p" #r "]\n\t"                                              \
    "vfmadd231ps %%ymm13, %%ymm" t ", %[q" #r "]\n\t"
#define UNIT_ROWS_1(i, h) ROW_OF(i, h, 0, "14")
#define UNIT_ROWS_2(i, h) UNIT_ROWS_1(i, h) ROW_OF(i, h, 1, "15")
#define UNIT_ROWS_3(i, h) UNIT_ROWS_2(i, h) ROW_OF(i, h, 2, "14")
#define UNIT_ROWS_4(i, h) UNIT_ROWS_3(i, h) ROW_OF(i, h, 3, "15")
#define UNIT_ROWS_5(i, h) UNIT_ROWS_4(i, h) ROW_OF(i, h, 4, "14")
#define UNIT_ROWS_6(i, h) UNIT_ROWS_5(i, h) ROW_OF(i, h, 5, "15")
#define UNIT(i, h)                                                                                 \
    "vmovups 64*" #i "-256(%[b]), %%ymm12\n\t"                                                     \
    "vmovups 64*" #i "-224(%[b]), %%ymm13\n\t" UNIT_ROWS_##h(i, h)

#define SUMS_1(s) [p0] "+x"(s[0][0]), [q0] "+x"(s[0][1])
#define SUMS_2(s) SUMS_1(s), [p1] "+x"(s[1][0]), [q1] "+x"(s[1][1])
#define SUMS_3(s) SUMS_2(s), [p2] "+x"(s[2][0]), [q2] "+x"(s[2][1])
#define SUMS_4(s) SUMS_3(s), [p3] "+x"(s[3][0]), [q3] "+x"(s[3][1])
#define SUMS_5(s) SUMS_4(s), [p4] "+x"(s[4][0]), [q4] "+x"(s[4][1])
#define SUMS_6(s) SUMS_5(s), [p5] "+x"(s[5][0]), [q5] "+x"(s[5][1])

// sums += the products of nu units (a multiple of STEP, > 0) of rows a [nu][h] and columns b
// [nu][COLUMNS].
#define MULTIPLY(h)                                                                                \
    static inline __attribute__((always_inline)) void multiply_##h(                                \
        vf s[STRIP][2], int64_t nu, const float *a, const float *b) {                              \
        a += 4 * h;                                                                                \
        b += 4 * COLUMNS;                                                                          \
        __asm__(".p2align 5\n1:\n\t" UNIT(0, h) UNIT(1, h) UNIT(2, h) UNIT(3, h) UNIT(4, h)        \
                    UNIT(5, h) UNIT(6, h) UNIT(7, h) "add $32*" #h ", %[a]\n\t"                    \
                                                     "add $512, %[b]\n\t"                          \
                                                     "sub $8, %[n]\n\t"                            \
                                                     "jg 1b"                                       \
                : SUMS_##h(s), [a] "+r"(a), [b] "+r"(b), [n] "+r"(nu)                              \
                :                                                                                  \
                : "cc", "memory", "xmm12", "xmm13", "xmm14", "xmm15");                             \
    }
MULTIPLY(1)
MULTIPLY(2)
MULTIPLY(3)
MULTIPLY(4)
MULTIPLY(5)
MULTIPLY(6)
#undef MULTIPLY

// h is a constant at each call.
static inline __attribute__((always_inline)) void multiply(const int h, vf s[STRIP][2], int64_t nu,
                                                           const float *a, const float *b) {
    switch (h) {
    case 1: multiply_1(s, nu, a, b); break;
    case 2: multiply_2(s, nu, a, b); break;
    case 3: multiply_3(s, nu, a, b); break;
    case 4: multiply_4(s, nu, a, b); break;
    case 5: multiply_5(s, nu, a, b); break;
    default: multiply_6(s, nu, a, b); break;
    }
}

// The same for rows that lie `ld` floats apart, and any number of units >= 0: sums += the products
// of nu units of rows a [h][ld] and columns b [nu][COLUMNS].
#define FAR_ROW(at, i, r, t)                                                                       \
    "vbroadcastss 4*" #i at ", %%ymm" t "\n\t"                                                     \
    "vfmadd231ps %%ymm12, %%ymm" t ", %[p" #r "]\n\t"                                              \
    "vfmadd231ps %%ymm13, %%ymm" t ", %[q" #r "]\n\t"
#define FAR_ROWS_1(i) FAR_ROW("(%%r8)", i, 0, "14")
#define FAR_ROWS_2(i) FAR_ROWS_1(i) FAR_ROW("(%%r8,%[ld])", i, 1, "15")
#define FAR_ROWS_3(i) FAR_ROWS_2(i) FAR_ROW("(%%r8,%[ld],2)", i, 2, "14")
#define FAR_ROWS_4(i) FAR_ROWS_3(i) FAR_ROW("(%%r9)", i, 3, "15")
#define FAR_ROWS_5(i) FAR_ROWS_4(i) FAR_ROW("(%%r9,%[ld])", i, 4, "14")
#define FAR_ROWS_6(i) FAR_ROWS_5(i) FAR_ROW("(%%r9,%[ld],2)", i, 5, "15")
#define FAR_UNIT(i, h)                                                                             \
    "vmovups 64*" #i "(%%r10), %%ymm12\n\t"                                                        \
    "vmovups 64*" #i "+32(%%r10), %%ymm13\n\t" FAR_ROWS_##h(i)
#define FAR_STEP(units)                                                                            \
    "add $4*" #units ", %%r8\n\t"                                                                  \
    "add $4*" #units ", %%r9\n\t"                                                                  \
    "add $64*" #units ", %%r10\n\t"                                                                \
    "sub $" #units ", %%r11\n\t"
#define MULTIPLY_FAR(h)                                                                            \
    static inline __attribute__((always_inline)) void multiply_far_##h(                            \
        vf s[STRIP][2], int64_t nu, const float *a, int64_t ld, const float *b) {                  \
        __asm__("mov %[a], %%r8\n\t"                                                               \
                "lea (%[a],%[ld],2), %%r9\n\t"                                                     \
                "add %[ld], %%r9\n\t"                                                              \
                "mov %[b], %%r10\n\t"                                                              \
                "mov %[n], %%r11\n\t"                                                              \
                "sub $4, %%r11\n\t"                                                                \
                "jl 2f\n\t"                                                                        \
                ".p2align 5\n"                                                                     \
                "1:\n\t" FAR_UNIT(0, h) FAR_UNIT(1, h) FAR_UNIT(2, h) FAR_UNIT(3, h)               \
                    FAR_STEP(4) "jge 1b\n"                                                         \
                                "2:\n\t"                                                           \
                                "add $4, %%r11\n\t"                                                \
                                "jz 4f\n"                                                          \
                                "3:\n\t" FAR_UNIT(0, h) FAR_STEP(1) "jnz 3b\n"                     \
                                                                    "4:"                           \
                : SUMS_##h(s)                                                                      \
                : [a] "r"(a), [b] "r"(b), [n] "r"(nu), [ld] "r"(4 * ld)                            \
                : "cc", "memory", "r8", "r9", "r10", "r11", "xmm12", "xmm13", "xmm14", "xmm15");   \
    }
MULTIPLY_FAR(1)
MULTIPLY_FAR(2)
MULTIPLY_FAR(3)
MULTIPLY_FAR(4)
MULTIPLY_FAR(5)
MULTIPLY_FAR(6)
#undef MULTIPLY_FAR

// h is a constant at each call.
static inline __attribute__((always_inline)) void
multiply_far(const int h, vf s[STRIP][2], int64_t nu, const float *a, int64_t ld, const float *b) {
    switch (h) {
    case 1: multiply_far_1(s, nu, a, ld, b); break;
    case 2: multiply_far_2(s, nu, a, ld, b); break;
    case 3: multiply_far_3(s, nu, a, ld, b); break;
    case 4: multiply_far_4(s, nu, a, ld, b); break;
    case 5: multiply_far_5(s, nu, a, ld, b); break;
    default: multiply_far_6(s, nu, a, ld, b); break;
    }
}
