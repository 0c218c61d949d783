// quant_tiles.c - pieces of the CPU quantiser that are whole tiles: from the views to the loops of
// QuantTiles (quant_lanes.h) and back.
#include "quant_cpu.h"

enum { AT_ONCE = 32 }; // channels that QuantTiles.turn takes

// Up to AT_ONCE channels of m tokens, one tile each, from what QuantTiles.take made of them.
static bool turn_some(const QuantTiles *whole, bool is_far, MatQ y, const uint16_t *v, int64_t v_ld,
                      const uint16_t *most, int64_t m, int64_t w, QuantCount *count) {
    float room[AT_ONCE]; // scales of either form
    void *s = y.srow == 1 ? y.s : room;
    if (!(is_far ? whole->turn_far : whole->turn)(y.q, y.ld, s, y.st, v, v_ld, most, m, w, count))
        return false;
    for (int64_t i = 0; i < w && s == room; i++)
        if (y.st == SCALE_F32)
            *(float *)scale_at(y, i * y.srow) = room[i];
        else
            *(uint8_t *)scale_at(y, i * y.srow) = ((uint8_t *)room)[i];
    return true;
}

// All of them; returns how many were done: a multiple of 32, or all.
static int64_t turn_all(const QuantTiles *whole, bool is_far, MatQ y, const uint16_t *v, int64_t v_ld,
                         const uint16_t *most, int64_t m, int64_t w, QuantCount *count) {
    int64_t c = 0;
    while (c < w && turn_some(whole, is_far, matq_rows(y, c, w - c), v + c, v_ld, most + c, m,
                              min_i64(AT_ONCE, w - c), count))
        c = min_i64(c + AT_ONCE, w);
    return c;
}

// 64 channels from codes, where both have power-of-two scales.
static bool retile(const QuantTiles *whole, bool is_far, MatQ y, MatQ q, int64_t m0, int64_t m, int64_t c0,
                   QuantCount *count) {
    uint8_t e[TILE], room[CHANNELS], *s = y.srow == 1 ? y.s : room;
    const uint8_t *from = scale_at(q, m0 * q.srow + c0 / TILE * q.scol);
    for (int64_t i = 0; i < m; i++) e[i] = from[i * q.srow];
    if (!whole->retile(y.q, y.ld, is_far, s, q.q + m0 * q.ld + c0, q.ld, e, m, count)) return false;
    for (int64_t i = 0; i < CHANNELS && s == room; i++) *(uint8_t *)scale_at(y, i * y.srow) = room[i];
    return true;
}

int64_t quant_tiles_tokens(const QuantTiles *whole, bool is_far, MatQ y, const Source *from, int64_t m0,
                           int64_t m, int64_t c0, int64_t w, QuantCount *count) {
    _Alignas(64) uint16_t v[TILE][CHANNELS];
    uint16_t most[CHANNELS] = {0};
    Mat x = from->x;
    MatQ q = from->q;
    if (x.p) {
        if (!whole->take(v[0], CHANNELS, mat_at(x, m0, c0), x.t == DT_F32, x.ld, m, w, most))
            return 0;
    } else {
        if (q.ct != CODE_E4M3) return 0;
        if (w == CHANNELS && whole->retile && q.st == SCALE_E8M0 && y.st == SCALE_E8M0 &&
            retile(whole, is_far, y, q, m0, m, c0, count))
            return w;
        float s[TILE];
        for (int64_t i = 0; i < m; i++) s[i] = load_scale(q, m0 + i, c0);
        whole->take_codes(v[0], CHANNELS, q.q + m0 * q.ld + c0, q.ld, s, q.st == SCALE_E8M0, m, w,
                          most);
    }
    return turn_all(whole, is_far, y, v[0], CHANNELS, most, m, w, count);
}

bool quant_tiles_block(const QuantTiles *whole, MatQ w, Mat x, int64_t r0, int64_t c0, int64_t rows,
                       int64_t cols, QuantCount *count) {
    _Alignas(64) uint16_t v[TILE * TILE];
    uint16_t most[TILE] = {0}, amax = 0;
    bool is_f32 = x.t == DT_F32; // else the values are in x as they are needed
    const uint16_t *from = is_f32 ? v : mat_at(x, r0, c0);
    int64_t ld = is_f32 ? TILE : x.ld;
    if (!whole->take(is_f32 ? v : NULL, TILE, mat_at(x, r0, c0), is_f32, x.ld, rows, cols, most))
        return false;
    for (int64_t c = 0; c < cols; c++) amax = most[c] > amax ? most[c] : amax;
    float largest = f32_from_bf16(amax);
    if ((int32_t)f32_bits(largest) >= F32_INF_BITS) return false;
    Scale k = scale_for(w.st, w.ct, largest);
    uint8_t *q = w.q + r0 * w.ld + c0;
    if (!whole->block(q, w.ld, w.st, k.s, from, ld, rows, cols, amax, count)) return false;
    store_scale(w, r0 / TILE * w.srow + c0 / TILE * w.scol, k);
    count->values += rows * cols;
    quant_tile_counted(count, (int32_t)f32_bits(largest), false, k.s);
    return true;
}
