// attn_cuda_tile.h - tiles of the attention kernels on the tensor cores: how they lie in shared memory, get there, and
// become fragments of mma_bf16. Private to kernels/attn_cuda*.
//
// A tile is [rows][LD] BF16, LD a multiple of 64. Chunks of 16 bytes change places within each 128 bytes: chunk k of
// row r lies at k ^ (r & 7), so that eight rows at one column, which is what ldmatrix reads at a time, share no bank.
#pragma once
#include "attn_cuda.h"
#include "ptx.h"

namespace attn {

constexpr int THREADS = 128; // of a block: four warps of 16 rows each
constexpr int ROWS = 64;     // that a block owns: queries, or keys
constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.693147180559945309f;
constexpr float LOWEST = -3e38f; // below every score, and finite: a row that has seen nothing yet is no NaN

// Where the columns of a tile come from: [0, na) from a, [na, n) from b, zeros after; both point to the first row.
struct Source {
    const uint16_t *a, *b;
    int64_t lda, ldb;
    int na, n;
};
DEV const uint16_t *at(Mat m, int64_t row, int64_t column) {
    return (const uint16_t *)m.p + row * m.ld + column;
}
// Rows from t on of head h.
DEV Source query_rows(const AttnCall &c, int64_t t, int64_t h) {
    int D = (int)(c.a.Dn + c.a.Dr);
    return Source{at(c.q, t, h * D), nullptr, c.q.ld, 0, D, D};
}
DEV Source key_rows(const AttnCall &c, int64_t t, int64_t h) {
    return Source{at(c.kv, t, h * (c.a.Dn + c.a.Dv)), at(c.kr, t, 0), c.kv.ld, c.kr.ld, (int)c.a.Dn,
                  (int)(c.a.Dn + c.a.Dr)};
}
DEV Source value_rows(const AttnCall &c, int64_t t, int64_t h) {
    int Dv = (int)c.a.Dv;
    return Source{at(c.kv, t, h * (c.a.Dn + Dv) + c.a.Dn), nullptr, c.kv.ld, 0, Dv, Dv};
}
DEV Source dout_rows(const AttnCall &c, int64_t t, int64_t h) {
    int Dv = (int)c.a.Dv;
    return Source{at(c.dout, t, h * Dv), nullptr, c.dout.ld, 0, Dv, Dv};
}

// load_tile: issue the copies of COUNT rows; those from `rows` on are zeros. All threads; one group with what else the
// caller issues before it commits.
template <int LD, int COUNT> DEV void load_tile(uint16_t *tile, Source s, int rows) {
    const int row = (int)threadIdx.x / 8, chunk = (int)threadIdx.x % 8;
    uint16_t *to = tile + row * LD + (chunk ^ (row & 7)) * 8;
    UNROLL
    for (int panel = 0; panel < LD; panel += 64) {
        const int column = panel + chunk * 8;
        const bool is_a = column < s.na, is_column = column < s.n;
        const int64_t ld = is_a ? s.lda : s.ldb;
        const uint16_t *from = is_a || !is_column ? s.a : s.b - s.na;
        if (is_column) from += row * ld + column;
        UNROLL
        for (int r = 0; r < COUNT; r += THREADS / 8) {
            const bool is_there = is_column && r + row < rows;
            copy_async16(to + r * LD + panel, is_there ? from + r * ld : s.a, is_there);
        }
    }
}

// load_keys: COUNT keys from j0 of the sequence at row t0, then their values behind them.
template <int DK, int DV, int COUNT> DEV void load_keys(uint16_t *to, const AttnCall &c, int t0, int h, int j0) {
    load_tile<DK, COUNT>(to, key_rows(c, t0 + j0, h), (int)c.a.S - j0);
    load_tile<DV, COUNT>(to + COUNT * DK, value_rows(c, t0 + j0, h), (int)c.a.S - j0);
}

// Fragments of 16 rows from `row` and 16 columns from 16 k. As A: rows are rows of D. As B: rows are columns of D,
// b[0..1] and b[2..3] are two products side by side. As B turned: columns are columns of D, rows the contraction.
template <int LD> DEV void fragment_a(uint32_t (&a)[4], const uint16_t *tile, int row, int k) {
    const int lane = (int)threadIdx.x % 32;
    ldmatrix4(a, tile + (row + lane % 16) * LD + ((2 * k + lane / 16) ^ (lane & 7)) * 8);
}
template <int LD> DEV void fragment_b(uint32_t (&b)[4], const uint16_t *tile, int row, int k) {
    const int lane = (int)threadIdx.x % 32;
    ldmatrix4(b, tile + (row + lane % 8 + lane / 16 * 8) * LD + ((2 * k + lane / 8 % 2) ^ (lane & 7)) * 8);
}
template <int LD> DEV void fragment_b_turned(uint32_t (&b)[4], const uint16_t *tile, int row, int k) {
    const int lane = (int)threadIdx.x % 32;
    ldmatrix4_turned(b, tile + (row + lane % 16) * LD + ((2 * k + lane / 16) ^ (lane & 7)) * 8);
}

// d [16, 8 N] of a warp, d[n][e] as ptx.h says. clear; add_rows: d += A B^T, A 16 rows of `a` from a_row, B 8 N rows of
// `b`, over all LD columns; add_turned: d += P B, P [16, 16 K] as fragments, B 16 K rows and 8 N columns of `b`.
template <int N> DEV void clear(float (&d)[N][4]) {
    UNROLL
    for (int n = 0; n < N; n++)
        for (int e = 0; e < 4; e++) d[n][e] = 0.0f;
}
template <int LD, int N> DEV void add_rows(float (&d)[N][4], const uint16_t *a, int a_row, const uint16_t *b) {
    UNROLL_4
    for (int k = 0; k < LD / 16; k++) {
        uint32_t fa[4], fb[4];
        fragment_a<LD>(fa, a, a_row, k);
        UNROLL
        for (int n = 0; n < N; n += 2) {
            fragment_b<LD>(fb, b, n * 8, k);
            mma_bf16(d[n], fa, fb[0], fb[1]);
            mma_bf16(d[n + 1], fa, fb[2], fb[3]);
        }
    }
}
template <int LD, int N, int K>
DEV void add_turned(float (&d)[N][4], const uint32_t (&p)[K][4], const uint16_t *b) {
    UNROLL
    for (int k = 0; k < K; k++)
        UNROLL
        for (int n = 0; n < N; n += 2) {
            uint32_t fb[4];
            fragment_b_turned<LD>(fb, b, k * 16, n / 2);
            mma_bf16(d[n], p[k], fb[0], fb[1]);
            mma_bf16(d[n + 1], p[k], fb[2], fb[3]);
        }
}
// to_fragments: sums become the left operand of the next product, rounded to BF16.
template <int K> DEV void to_fragments(uint32_t (&p)[K][4], const float (&s)[2 * K][4]) {
    UNROLL
    for (int k = 0; k < K; k++)
        for (int i = 0; i < 4; i++)
            p[k][i] = pack_bf16(s[2 * k + i / 2][i % 2 * 2], s[2 * k + i / 2][i % 2 * 2 + 1]);
}

// Sum, largest and smallest over the four lanes that share a row of d, or over the warp.
template <class T, class F> DEV T over_lanes(T v, int lanes, F both) {
    for (int x = 1; x < lanes; x *= 2) v = both(v, __shfl_xor_sync(WARP_ALL, v, x));
    return v;
}

// What queries [i0, i0 + COUNT) of the sequence at row t0 may see: the least and the largest first position.
struct Span {
    int least, most;
};
template <int COUNT> DEV Span span_of(const AttnCall &c, int64_t t0, int i0) {
    Span s = {0, 0};
    if (!c.doc_start) return s;
    s.least = (int)c.a.S;
    for (int i = i0 + (int)threadIdx.x % 32; i < i0 + COUNT && i < c.a.S; i += 32) {
        int first = (int)first_key(c, t0 + i, i);
        s.least = first < s.least ? first : s.least;
        s.most = first > s.most ? first : s.most;
    }
    s.least = over_lanes(s.least, 32, [](int x, int y) { return x < y ? x : y; });
    s.most = over_lanes(s.most, 32, [](int x, int y) { return x > y ? x : y; });
    return s;
}

// Row of d[n][e] within the warp's 16, and its column.
DEV int row_of(int e) {
    return (int)threadIdx.x % 32 / 4 + e / 2 * 8;
}
DEV int column_of(int n, int e) {
    return n * 8 + (int)threadIdx.x % 4 * 2 + e % 2;
}
// Two neighbouring elements, rounded.
DEV void store_pair(Mat m, int64_t row, int64_t column, float x, float y) {
    *(uint32_t *)((uint16_t *)m.p + row * m.ld + column) = pack_bf16(x, y);
}

} // namespace attn
