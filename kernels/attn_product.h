// attn_product.h - the products of attn_tile.h with vectors: MR rows of the left side are broadcast against NR columns.
// Included by attn_tile.h alone.
#pragma once

INLINE void task_begin(void) {
}
INLINE void task_end(void) {
}
INLINE void pad_panel(float *panel, int64_t nu) {
    (void)panel, (void)nu; // units past the last are not read
}

// m rows x NR columns; m is a constant at each call. The rows hang on four pointers, so that their
// addresses need few registers.
INLINE void dot_tile(const int m, float *c, int64_t ldc, const float *a, int64_t lda,
                     const float *b, int64_t nu, Fin fin, const float *by) {
    vf s[MR][NV];
#pragma GCC unroll 12
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            s[i][v] = vset1(0.0f);
            if (fin == FIN_ADD) s[i][v] = vload(c + i * ldc + v * VW);
            if (fin == FIN_DECAY) s[i][v] = vmul(vload(c + i * ldc + v * VW), vload(by + v * VW));
        }
#ifdef DOT_UNITS
    DOT_UNITS(m, s, nu, a, lda, b);
#else
    const float *row[4] = {a, a + 3 * lda, a + 6 * lda, a + 9 * lda};
    for (int64_t u = 0; u < nu; u++) {
        vf y[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) y[v] = vload(b + u * NR + v * VW);
#pragma GCC unroll 12
        for (int i = 0; i < m; i++) {
            vf x = vset1(row[i / 3][i % 3 * lda + u]);
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++) s[i][v] = vdot(x, y[v], s[i][v]);
        }
    }
#endif
#pragma GCC unroll 12
    for (int i = 0; i < m; i++)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            if (fin == FIN_TIMES) s[i][v] = vmul(s[i][v], vload(by + v * VW));
            if (fin == FIN_LESS) s[i][v] = vsub(s[i][v], vload(by + v * VW));
            vstore(c + i * ldc + v * VW, s[i][v]);
        }
}

// The heights; a function per height keeps each one's registers its own affair.
#define DOT_ROWS(m)                                                                                \
    static __attribute__((noinline)) void dot_rows_##m(float *c, int64_t ldc, const float *a,      \
                                                       int64_t lda, const float *b, int64_t nu,    \
                                                       Fin fin, const float *by) {                 \
        dot_tile(m, c, ldc, a, lda, b, nu, fin, by);                                               \
    }
typedef void (*DotRows)(float *c, int64_t ldc, const float *a, int64_t lda, const float *b,
                        int64_t nu, Fin fin, const float *by);
DOT_ROWS(1)
DOT_ROWS(2)
DOT_ROWS(3)
DOT_ROWS(4)
DOT_ROWS(5)
DOT_ROWS(6)
#if MR == 12
DOT_ROWS(7)
DOT_ROWS(8)
DOT_ROWS(9)
DOT_ROWS(10)
DOT_ROWS(11)
DOT_ROWS(12)
#endif
static const DotRows dot_rows[MR + 1] = {
    NULL,       dot_rows_1, dot_rows_2, dot_rows_3,  dot_rows_4,  dot_rows_5,  dot_rows_6,
#if MR == 12
    dot_rows_7, dot_rows_8, dot_rows_9, dot_rows_10, dot_rows_11, dot_rows_12,
#endif
};

// c [rows, NR] = a [rows, nu units] x panel b. Row r has only zeros before unit (r + lead) / KU;
// they are left out. Rows are shared out evenly: no strip is a sliver.
INLINE void product(float *c, int64_t ldc, const float *a, int64_t lda, const float *b, int64_t nu,
                    int64_t rows, int64_t lead, Fin fin, const float *by) {
    int64_t strips = ceil_div(rows, MR);
    for (int64_t i = 0; i < strips; i++) {
        int64_t r0 = rows * i / strips, r1 = rows * (i + 1) / strips;
        int64_t u0 = max_i64(0, min_i64(nu, (r0 + lead) / KU));
        dot_rows[r1 - r0](c + r0 * ldc, ldc, a + r0 * lda + u0, lda, b + u0 * NR, nu - u0, fin, by);
    }
}
