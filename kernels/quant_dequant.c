// quant_dequant.c - codes back to values on the CPU. Contract: quant.h.
#include "quant_cpu.h"
#include "team.h"

typedef struct DecodeJob {
    Mat y;
    MatQ x;
} DecodeJob;

static void decode_row(const QuantLanes *l, Mat y, MatQ x, int64_t r) {
    int64_t done = 0;
    if (l->tiles && l->tiles->decode && y.t == DT_BF16 && x.ct == CODE_E4M3 &&
        x.st == SCALE_E8M0) {
        done = x.cols / TILE * TILE;
        l->tiles->decode(mat_at(y, r, 0), x.q + r * x.ld, scale_at(x, r / x.tile_rows * x.srow),
                         x.scol, x.cols / TILE);
    }
    for (int64_t c = done; c < x.cols; c += TILE) {
        int64_t w = min_i64(TILE, x.cols - c);
        float v[TILE];
        if (y.t == DT_BF16 && w == TILE && x.ct == CODE_E4M3 && l->tiles) {
            float s = load_scale(x, r, c);
            uint16_t most[TILE / 2] = {0}; // take_codes' maxima, not asked for
            for (int64_t i = 0; i < TILE; i += TILE / 2)
                l->tiles->take_codes(mat_at(y, r, c + i), y.ld, x.q + r * x.ld + c + i, x.ld, &s,
                                     x.st == SCALE_E8M0, 1, TILE / 2, most);
            continue;
        }
        l->decode[x.ct](y.t == DT_F32 ? mat_at(y, r, c) : v, x.q + r * x.ld + c,
                        load_scale(x, r, c), w);
        if (y.t != DT_F32) l->store_bf16(mat_at(y, r, c), v, w);
    }
}

static void decode_part(const void *job, TeamPart part) {
    const DecodeJob *j = job;
    const QuantLanes *l = lanes();
    for (int64_t r = team_first(part, j->x.rows); r < team_end(part, j->x.rows); r++)
        decode_row(l, j->y, j->x, r);
}

Err dequant_cpu(OpCx *cx, Mat y, MatQ x) {
    CHECK(y.rows == x.rows && y.cols == x.cols, E_INTERNAL, "dequant: shapes disagree");
    DecodeJob j = {y, x};
    team_run(quant_threads(cx, x.rows * x.cols), decode_part, &j);
    return OK;
}
