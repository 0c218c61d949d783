// quant_cpu.c - the quantiser on the CPU: which tile, which thread; the loops are in quant_lanes.c.
//
// Work is dealt out in whole tiles (or blocks), so threads change no bit; counters are integers.
#include <string.h>

#include "cpu_has.h"
#include "ops.h"
#include "quant_cpu.h"
#include "team.h"

static const QuantLanes *chosen;

// The loops of AVX-512, some of them compiled with later instructions.
static const QuantLanes *lanes_avx512bf16(void) {
    static QuantTiles tiles;
    static QuantLanes lanes;
    lanes = quant_lanes_avx512;
    if (!lanes.tiles) return &lanes;
    tiles = *lanes.tiles;
    tiles.batch = quant_batch_avx512bf16;
    tiles.turn = quant_turn_avx512bf16;
    tiles.turn_far = quant_turn_far_avx512bf16;
    lanes.tiles = &tiles;
    lanes.name = "avx512-bf16";
    return &lanes;
}

bool quant_select(const char *name) {
    const QuantLanes *const all[] = {lanes_avx512bf16(), &quant_lanes_avx512, &quant_lanes_avx2,
                                     &quant_lanes_portable};
    const bool is_usable[] = {cpu_has_avx512bf16() && cpu_has_avx512vbmi(), cpu_has_avx512(),
                              cpu_has_avx2(), true};
    for (int i = 0; i < 4; i++) {
        if (!is_usable[i] || (name && strcmp(name, all[i]->name) != 0)) continue;
        chosen = all[i];
        return true;
    }
    return false;
}

const QuantLanes *quant_chosen(void) {
    if (!chosen) quant_select(NULL);
    return chosen;
}

// Codes of more bytes than this are written past the caches. Processors with tile registers have
// their third-level cache on a mesh, whose lines come hardly faster than those of memory; others
// keep there what is written until it is read, as far as it goes (32 MiB on Zen).
static int64_t far_bytes = -1;

void quant_far_select(int64_t bytes) {
    far_bytes = bytes;
}

bool quant_is_far(const QuantLanes *l, int64_t bytes) {
    if (!l->tiles || !l->tiles->stream) return false;
    int64_t most = far_bytes >= 0 ? far_bytes : cpu_has_amx() ? (int64_t)1 << 20 : (int64_t)1 << 25;
    return bytes > most;
}

// What one thread found; merged under a lock.
typedef struct Tally {
    QuantCount count;
    QuantFound found;
} Tally;

static void add_tally(QuantCount *to, Tally *t) {
    if (!to) return;
    t->count.saturated += t->found.saturated;
    t->count.underflow += t->found.underflow;
#pragma omp critical(quant_count)
    quant_count_add(to, &t->count);
}

static Err check_rule(const char *op, QuantRule rule) {
    CHECK(rule.scope >= SCOPE_TILE && rule.scope <= SCOPE_STATIC, E_INTERNAL,
          "%s: no scope has the number %d", op, (int)rule.scope);
    CHECK(rule.scope != SCOPE_STATIC || (rule.amax >= 0 && rule.amax <= 0x1.fffffep127f),
          E_INTERNAL, "%s: a fixed scale for an amax of %g", op, (double)rule.amax);
    return OK;
}

// Columns [c, c+n) of a row, rounded to BF16, none beyond c's tile.
INLINE void load_rounded(const QuantLanes *l, float *dst, const Source *from, int64_t r, int64_t c,
                         int64_t n) {
    if (!from->x.p) {
        MatQ q = from->q;
        float s = load_scale(q, r, c);
        // A power of two keeps the 3 or 4 significant bits, except deep in the subnormals.
        bool is_exact = q.st == SCALE_E8M0 && s >= 0x1p-112f;
        (is_exact ? l->decode : l->decode_round)[q.ct](dst, q.q + r * q.ld + c, s, n);
    } else if (from->x.t == DT_F32) {
        l->round_f32(dst, mat_at(from->x, r, c), n);
    } else {
        l->round_bf16(dst, mat_at(from->x, r, c), n);
    }
}

// --- what shares a scale ---

// The largest finite magnitude of columns [c0, c0+nc), c0 at the start of a tile, of some rows:
// bits.
static int32_t amax_of(const QuantLanes *l, const Source *from, int64_t r0, int64_t nr, int64_t c0,
                       int64_t nc) {
    int32_t most = 0;
    bool is_bad = false;
    float v[TILE];
    for (int64_t r = r0; r < r0 + nr; r++)
        for (int64_t c = c0; c < c0 + nc; c += TILE) {
            int64_t n = min_i64(TILE, c0 + nc - c);
            load_rounded(l, v, from, r, c, n);
            int32_t m = l->amax(v, n, &is_bad);
            most = m > most ? m : most;
        }
    return most;
}

// The scale of all rows inside groups, or of rule.amax; false if the rule shares less than that.
static bool scale_of_all(Scale *k, OpCx *cx, MatQ y, const Source *from, int64_t cols, Groups g,
                         QuantRule rule) {
    if (rule.scope == SCOPE_STATIC) *k = scale_for(y.st, y.ct, rule.amax);
    if (rule.scope != SCOPE_TENSOR) return rule.scope == SCOPE_STATIC;
    const QuantLanes *l = lanes();
    int32_t most = 0;
    for (int64_t e = 0; e < g.n; e++) {
        int nthreads = quant_threads(cx, g.count[e] * cols);
#pragma omp parallel for reduction(max : most) num_threads(nthreads) if (nthreads > 1)
        for (int64_t r = g.start[e]; r < g.start[e] + g.count[e]; r++) {
            int32_t m = amax_of(l, from, r, 1, 0, cols);
            most = m > most ? m : most;
        }
    }
    *k = scale_for_bits(y, most);
    return true;
}

// --- rows ---

// Row r, columns [c0, c0+nc); shared = the scale of all tiles, NULL = each its own.
static void code_row(const QuantLanes *l, MatQ y, const Source *from, int64_t r, int64_t c0,
                     int64_t nc, const Scale *shared, Tally *t) {
    const QuantTiles *whole = shared ? NULL : quant_tiles_for(l, y);
    for (int64_t c = c0; c < c0 + nc; c += TILE) {
        if (whole)
            c += whole->row(y.q + r * y.ld + c, scale_at(y, r * y.srow + c / TILE * y.scol), y.scol,
                            y.st, mat_at(from->x, r, c), from->x.t == DT_F32, c0 + nc - c,
                            &t->count);
        if (c >= c0 + nc) break;
        float v[TILE];
        int64_t w = min_i64(TILE, c0 + nc - c);
        bool is_bad = false;
        load_rounded(l, v, from, r, c, w);
        int32_t most = l->amax(v, w, &is_bad);
        Scale k = shared ? *shared : scale_for_bits(y, most);
        l->encode[y.ct](y.q + r * y.ld + c, v, k.s, k.inv, w, &t->found);
        store_scale(y, r * y.srow + c / TILE * y.scol, k);
        t->count.values += w;
        quant_tile_counted(&t->count, most, is_bad, k.s);
    }
}

// Rows that have a batch of tiles of nc columns.
static int64_t batch_rows(int64_t nc) {
    return nc < TILE ? 1 : max_i64(1, QUANT_BATCH / (nc / TILE));
}

// The tiles of rows [r0, r0+nr) and columns [c0, c0+nc), as code_row; is_far: past the caches if
// that can be.
static void code_tiles(const QuantLanes *l, MatQ y, bool is_far, const Source *from, int64_t r0,
                       int64_t nr, int64_t c0, int64_t nc, const Scale *shared, Tally *t) {
    const QuantTiles *whole = shared || y.st != SCALE_E8M0 ? NULL : quant_tiles_for(l, y);
    int64_t full = whole && whole->batch ? nc / TILE * TILE : 0, step = batch_rows(nc), n, w;
    Mat x = from->x;
    is_far = is_far && ((uintptr_t)y.q | (uint64_t)(y.ld | c0)) % 64 == 0;
    for (int64_t r = r0; r < r0 + nr; r += n) {
        n = min_i64(step, r0 + nr - r);
        for (int64_t c = c0; c < c0 + full; c += w) {
            w = min_i64(QUANT_BATCH * TILE, c0 + full - c);
            if (whole->batch(y.q + r * y.ld + c, y.ld, is_far,
                             scale_at(y, r * y.srow + c / TILE * y.scol), y.srow, y.scol,
                             mat_at(x, r, c), x.t == DT_F32, x.ld, n, w / TILE, &t->count))
                continue;
            for (int64_t i = r; i < r + n; i++) code_row(l, y, from, i, c, w, NULL, t);
        }
        for (int64_t i = r; i < r + n; i++)
            code_row(l, y, from, i, c0 + full, nc - full, shared, t);
    }
}

static Err check_rows(const char *op, MatQ y, Mat x) {
    CHECK(y.rows == x.rows && y.cols == x.cols && y.tile_rows == 1, E_INTERNAL,
          "%s: shapes disagree", op);
    return OK;
}

// A quantisation of rows. A piece shares a scale, or every tile in it has its own.
typedef struct RowsJob {
    const QuantLanes *l;
    MatQ y;
    Source from;
    QuantScope scope;
    Scale whole;
    int64_t pr, pc; // of a piece
    bool is_far;
    QuantCount *n;
} RowsJob;

static void rows_part(const void *job, TeamPart part) {
    const RowsJob *j = job;
    Mat x = j->from.x;
    int64_t across = ceil_div(x.cols, j->pc), pieces = ceil_div(x.rows, j->pr) * across;
    Tally t = {0};
    for (int64_t i = team_first(part, pieces); i < team_end(part, pieces); i++) {
        int64_t r0 = i / across * j->pr, c0 = i % across * j->pc;
        int64_t nr = min_i64(j->pr, x.rows - r0), nc = min_i64(j->pc, x.cols - c0);
        Scale k = j->whole;
        if (j->scope == SCOPE_BLOCK || j->scope == SCOPE_ROW)
            k = scale_for_bits(j->y, amax_of(j->l, &j->from, r0, nr, c0, nc));
        code_tiles(j->l, j->y, j->is_far, &j->from, r0, nr, c0, nc,
                   j->scope == SCOPE_TILE ? NULL : &k, &t);
    }
    quant_settle(j->is_far && part.n > 1);
    add_tally(j->n, &t);
}

Err quant_tile_cpu(OpCx *cx, MatQ y, Mat x, QuantRule rule, QuantCount *n) {
    TRY(check_rows("quant_tile", y, x));
    TRY(check_rule("quant_tile", rule));
    RowsJob j = {.l = lanes(), .y = y, .from = {.x = x}, .scope = rule.scope, .n = n};
    int64_t start = 0;
    j.is_far = rule.scope == SCOPE_TILE && quant_is_far(j.l, x.rows * y.ld);
    scale_of_all(&j.whole, cx, y, &j.from, x.cols, (Groups){&start, &x.rows, 1}, rule);
    j.pr = rule.scope == SCOPE_BLOCK  ? TILE
           : rule.scope == SCOPE_TILE ? batch_rows(x.cols)
                                      : 1;
    j.pc = rule.scope == SCOPE_BLOCK ? TILE : max_i64(x.cols, 1);
    team_run(quant_threads(cx, x.rows * x.cols), rows_part, &j);
    return OK;
}

// --- the transposed form ---

// A quantisation along the tokens.
typedef struct Turn {
    const QuantLanes *l;
    MatQ y;
    Source from;
    QuantScope scope;
    const Scale *whole; // the scale of everything; NULL: the scope shares less
} Turn;

// Tokens [m0, m0+m) x channels [c0, c0+w) of the source, w <= CHANNELS, as one 128x1 tile per
// channel to the view y. Channel c has the scale shared[c * step], or with shared NULL its own.
// is_far: as quant_tiles_tokens.
static void token_tile(const Turn *u, bool is_far, MatQ y, int64_t m0, int64_t m, int64_t c0, int64_t w,
                       const Scale *shared, int64_t step, Tally *t) {
    const QuantTiles *whole = shared ? NULL : quant_tiles_for(u->l, y);
    int64_t done = whole ? quant_tiles_tokens(whole, is_far, y, &u->from, m0, m, c0, w, &t->count)
                         : 0;
    c0 += done;
    w -= done;
    if (w == 0) return;
    y = matq_rows(y, done, w);
    float v[TILE][CHANNELS], s[CHANNELS], inv[CHANNELS];
    uint8_t codes[TILE][CHANNELS];
    int32_t most[CHANNELS] = {0}, bad[CHANNELS] = {0};
    for (int64_t i = 0; i < m; i++) {
        load_rounded(u->l, v[i], &u->from, m0 + i, c0, w);
        u->l->amax_each(most, bad, v[i], w);
    }
    for (int64_t c = 0; c < w; c++) {
        Scale k = shared ? shared[c * step] : scale_for_bits(y, most[c]);
        s[c] = k.s;
        inv[c] = k.inv;
        store_scale(y, c * y.srow, k);
        quant_tile_counted(&t->count, most[c], bad[c] != 0, k.s);
    }
    for (int64_t i = 0; i < m; i++)
        u->l->encode_each[y.ct](codes[i], v[i], s, y.st == SCALE_E8M0 ? inv : NULL, w, &t->found);
    u->l->transpose(y.q, y.ld, codes[0], CHANNELS, m, w);
    t->count.values += m * w;
}

// Tiles of their own scales for a span of tokens x channels [c0, c0+w), w <= CHANNELS, to the view
// y; with is_far past the caches, through a buffer if they are no whole lines of memory.
static void token_run(const Turn *u, MatQ y, Span p, int64_t c0, int64_t w, bool is_far, Tally *t) {
    _Alignas(64) uint8_t codes[CHANNELS][FAR_RUN];
    MatQ to = y;
    bool is_direct = is_far && ((uintptr_t)y.q | (uint64_t)y.ld) % 64 == 0;
    if (is_far && !is_direct) {
        to.q = codes[0];
        to.ld = FAR_RUN;
    }
    for (int64_t i = 0; i < p.rows; i += TILE) {
        int64_t m = min_i64(TILE, p.rows - i);
        token_tile(u, is_direct, matq_cols(to, i, m, i / TILE), p.row + i, m, c0, w, NULL, 0, t);
    }
    if (is_far && !is_direct) u->l->tiles->stream(y.q, y.ld, codes[0], FAR_RUN, w, p.rows);
}

// Raises most[c] to the largest finite magnitude of channel c0 + c over tokens [m0, m0+m).
static void channel_amax(const Turn *u, int64_t m0, int64_t m, int64_t c0, int64_t w,
                         int32_t *most) {
    float v[CHANNELS];
    int32_t bad[CHANNELS] = {0};
    for (int64_t i = 0; i < m; i++) {
        load_rounded(u->l, v, &u->from, m0 + i, c0, w);
        u->l->amax_each(most, bad, v, w);
    }
}

// A span of tokens x channels [c0, c0+w) with the scales that the scope makes of them: BLOCK one
// (rows, w <= 128), ROW one per channel (w <= CHANNELS, rows a whole group), TILE one per tile of a
// channel (w <= CHANNELS).
static void token_piece(const Turn *u, Span p, int64_t c0, int64_t w, bool is_far, Tally *t) {
    MatQ y = matq_cols(matq_rows(u->y, c0, w), p.row, p.rows, p.tile);
    if (u->scope == SCOPE_TILE) {
        token_run(u, y, p, c0, w, is_far, t);
        return;
    }
    Scale own[CHANNELS];
    const Scale *shared = u->whole;
    if (u->scope == SCOPE_BLOCK || u->scope == SCOPE_ROW) {
        int32_t most[CHANNELS] = {0};
        for (int64_t c = 0; c < w; c += CHANNELS)
            channel_amax(u, p.row, p.rows, c0 + c, min_i64(CHANNELS, w - c), most);
        if (u->scope == SCOPE_BLOCK)
            for (int64_t c = 1; c < CHANNELS; c++) most[0] = most[c] > most[0] ? most[c] : most[0];
        for (int64_t c = 0; c < CHANNELS; c++) own[c] = scale_for_bits(u->y, most[c]);
        shared = own;
    }
    for (int64_t i = 0; i < p.rows; i += TILE)
        for (int64_t c = 0; c < w; c += CHANNELS) {
            int64_t m = min_i64(TILE, p.rows - i), n = min_i64(CHANNELS, w - c);
            token_tile(u, false, matq_cols(matq_rows(y, c, n), i, m, i / TILE), p.row + i, m, c0 + c, n,
                       shared, u->scope == SCOPE_ROW, t);
        }
}

static Err check_tokens(const char *op, MatQ y, int64_t rows, int64_t cols, Groups g) {
    CHECK(y.rows == cols && y.cols == rows && y.tile_rows == 1, E_INTERNAL, "%s: shapes disagree",
          op);
    for (int64_t e = 0; e < g.n; e++)
        CHECK(g.start[e] >= 0 && g.count[e] >= 0 && g.start[e] + g.count[e] <= rows, E_INTERNAL,
              "%s: group %lld has rows %lld..%lld of %lld", op, (long long)e, (long long)g.start[e],
              (long long)(g.start[e] + g.count[e]), (long long)rows);
    return OK;
}

// Every tile of every group. Threads share out pieces: tokens of a tile or a run of tiles, or with
// scales of whole channels of a group, by some channels.
typedef struct TokensJob {
    Turn u;
    Groups g;
    int64_t cols, width, size; // a piece: columns, rows
    bool is_far;
    QuantCount *n;
} TokensJob;

static void tokens_part(const void *job, TeamPart part) {
    const TokensJob *j = job;
    int64_t strips = ceil_div(j->cols, j->width), pieces = spans_of(j->g, j->size) * strips;
    Tally t = {0};
    SpanWalk at = {0};
    for (int64_t i = team_first(part, pieces); i < team_end(part, pieces); i++) {
        int64_t c0 = i % strips * j->width;
        token_piece(&j->u, span_at(j->g, j->size, i / strips, &at), c0,
                    min_i64(j->width, j->cols - c0), j->is_far, &t);
    }
    quant_settle(j->is_far && part.n > 1);
    add_tally(j->n, &t);
}

static Err quant_tokens(OpCx *cx, const char *op, MatQ y, const Source *from, int64_t rows,
                        int64_t cols, Groups g, QuantRule rule, QuantCount *n) {
    TRY(check_tokens(op, y, rows, cols, g));
    TRY(check_rule(op, rule));
    int64_t whole_start = 0;
    if (g.n == 0) g = (Groups){&whole_start, &rows, 1};
    Scale whole = {0};
    bool is_whole = scale_of_all(&whole, cx, y, from, cols, g, rule);
    TokensJob j = {{lanes(), y, *from, rule.scope, is_whole ? &whole : NULL}, g, cols, 0, 0, 0, n};
    j.is_far = rule.scope == SCOPE_TILE && quant_is_far(j.u.l, y.rows * y.ld);
    j.width = rule.scope == SCOPE_BLOCK ? TILE : CHANNELS;
    j.size = rule.scope == SCOPE_ROW ? max_i64(rows, 1) : j.is_far ? FAR_RUN : TILE;
    team_run(quant_threads(cx, rows * cols), tokens_part, &j);
    return OK;
}

Err quant_tile_t_cpu(OpCx *cx, MatQ y, Mat x, Groups g, QuantRule rule, QuantCount *n) {
    Source from = {.x = x};
    TRY(quant_tokens(cx, "quant_tile_t", y, &from, x.rows, x.cols, g, rule, n));
    return OK;
}

// Columns of which 128 rows and their codes fit the cache, and of which a run does.
enum { PAIR_COLUMNS = 1024, PAIR_FAR_COLUMNS = 256 };

// Both forms of a span of tokens and columns [c0, c0+w): the second one reads what the first has
// brought to the cache.
static void pair_piece(const Turn *u, MatQ y, Span p, int64_t c0, int64_t w, bool is_far,
                       bool is_far_row, Tally *t, Tally *t_t) {
    code_tiles(u->l, y, is_far_row, &u->from, p.row, p.rows, c0, w, NULL, t);
    for (int64_t c = 0; c < w; c += CHANNELS)
        token_piece(u, p, c0 + c, min_i64(CHANNELS, w - c), is_far, t_t);
}

// The pair in pieces that fit the cache, then the rows that no group has. The groups ascend.
typedef struct PairJob {
    Turn u;
    MatQ y;
    Groups g;
    QuantCount *n, *n_t;
} PairJob;

static void pair_part(const void *job, TeamPart part) {
    const PairJob *j = job;
    const Turn *u = &j->u;
    Mat x = u->from.x;
    // A part of a matrix has all of its columns' distance, but not of its rows.
    bool is_far = quant_is_far(u->l, u->y.rows * u->y.ld);
    bool is_far_row = quant_is_far(u->l, j->y.rows * j->y.ld);
    int64_t width = is_far ? PAIR_FAR_COLUMNS : PAIR_COLUMNS, size = is_far ? FAR_RUN : TILE;
    int64_t strips = ceil_div(x.cols, width), pieces = spans_of(j->g, size) * strips, at = 0;
    Tally t = {0}, t_t = {0};
    SpanWalk walk = {0};
    for (int64_t i = team_first(part, pieces); i < team_end(part, pieces); i++) {
        int64_t c0 = i % strips * width;
        pair_piece(u, j->y, span_at(j->g, size, i / strips, &walk), c0,
                   min_i64(width, x.cols - c0), is_far, is_far_row, &t, &t_t);
    }
    quant_settle(is_far && part.n > 1);
    for (int64_t e = 0; e <= j->g.n; e++) {
        int64_t end = e < j->g.n ? j->g.start[e] : x.rows;
        for (int64_t r = at + team_first(part, end - at); r < at + team_end(part, end - at); r++)
            code_row(u->l, j->y, &u->from, r, 0, x.cols, NULL, &t);
        if (e < j->g.n) at = end + j->g.count[e];
    }
    add_tally(j->n, &t);
    add_tally(j->n_t, &t_t);
}

Err quant_tile_pair_cpu(OpCx *cx, MatQ y, MatQ yt, Mat x, Groups g, QuantRule rule,
                        QuantRule rule_t, QuantCount *n, QuantCount *n_t) {
    int64_t at = 0;
    bool is_one_pass = rule.scope == SCOPE_TILE && rule_t.scope == SCOPE_TILE;
    for (int64_t e = 0; e < g.n; at = g.start[e] + g.count[e], e++)
        is_one_pass = is_one_pass && g.start[e] >= at;
    if (!is_one_pass) {
        TRY(quant_tile_cpu(cx, y, x, rule, n));
        TRY(quant_tile_t_cpu(cx, yt, x, g, rule_t, n_t));
        return OK;
    }
    TRY(check_rows("quant_tile_pair", y, x));
    TRY(check_tokens("quant_tile_pair", yt, x.rows, x.cols, g));
    int64_t start = 0;
    if (g.n == 0) g = (Groups){&start, &x.rows, 1};
    PairJob j = {{lanes(), yt, {.x = x}, SCOPE_TILE, NULL}, y, g, n, n_t};
    team_run(quant_threads(cx, x.rows * x.cols), pair_part, &j);
    return OK;
}

Err requant_tile_t_cpu(OpCx *cx, MatQ y, MatQ x, Groups g, QuantRule rule, QuantCount *n) {
    Source from = {.q = x};
    TRY(quant_tokens(cx, "requant_tile_t", y, &from, x.rows, x.cols, g, rule, n));
    return OK;
}

// --- weights ---

// Rows start at multiples of 16 bytes, as tensor memory copies of a GPU need it.
static int64_t weight_ld(int64_t K) {
    return ceil_div(K, 16) * 16;
}
static int64_t weight_code_bytes(int64_t nmat, int64_t N, int64_t K) {
    return ceil_div(nmat * N * weight_ld(K), ARENA_ALIGN) * ARENA_ALIGN;
}

size_t weight_bytes(int64_t nmat, int64_t N, int64_t K, ScaleType st) {
    return (size_t)(weight_code_bytes(nmat, N, K) +
                    nmat * ceil_div(N, TILE) * ceil_div(K, TILE) * (st == SCALE_F32 ? 4 : 1));
}

MatQ weight_view(void *p, int64_t nmat, int64_t N, int64_t K, ScaleType st) {
    MatQ w = {.q = p, .s = (char *)p + weight_code_bytes(nmat, N, K), .st = st};
    w.rows = N;
    w.cols = K;
    w.ld = weight_ld(K);
    w.srow = ceil_div(K, TILE);
    w.scol = 1;
    w.tile_rows = TILE;
    w.nmat = nmat;
    w.qstep = N * w.ld;
    w.sstep = ceil_div(N, TILE) * ceil_div(K, TILE);
    return w;
}

// The block of w (one matrix) at (r0, c0); x is the same matrix. shared: its scale, NULL = its own.
static void weight_block(const QuantLanes *l, MatQ w, Mat x, int64_t r0, int64_t c0,
                         const Scale *shared, Tally *t) {
    int64_t rows = min_i64(TILE, w.rows - r0), cols = min_i64(TILE, w.cols - c0);
    Source from = {.x = x};
    const QuantTiles *whole = shared ? NULL : quant_tiles_for(l, w);
    if (whole && quant_tiles_block(whole, w, x, r0, c0, rows, cols, &t->count)) return;
    int32_t most = 0;
    bool is_bad = false;
    float v[TILE];
    for (int64_t r = 0; r < rows; r++) {
        load_rounded(l, v, &from, r0 + r, c0, cols);
        int32_t m = l->amax(v, cols, &is_bad);
        if (m > most) most = m;
    }
    Scale k = shared ? *shared : scale_for_bits(w, most);
    store_scale(w, r0 / TILE * w.srow + c0 / TILE * w.scol, k);
    for (int64_t r = 0; r < rows; r++) {
        load_rounded(l, v, &from, r0 + r, c0, cols);
        l->encode[w.ct](w.q + (r0 + r) * w.ld + c0, v, k.s, k.inv, cols, &t->found);
    }
    t->count.values += rows * cols;
    quant_tile_counted(&t->count, most, is_bad, k.s);
}

static void code_weights(OpCx *cx, MatQ w, Mat x, const Scale *shared, QuantCount *n) {
    const QuantLanes *l = lanes();
    int nthreads = quant_threads(cx, x.rows * x.cols);
    int64_t brows = ceil_div(w.rows, TILE), bcols = ceil_div(w.cols, TILE);
#pragma omp parallel num_threads(nthreads) if (nthreads > 1)
    {
        Tally t = {0};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < w.nmat * brows * bcols; i++) {
            int64_t e = i / (brows * bcols), r = i / bcols % brows, c = i % bcols;
            weight_block(l, matq_mat(w, e), mat_rows(x, e * w.rows, w.rows), r * TILE, c * TILE,
                         shared, &t);
        }
        add_tally(n, &t);
    }
}

Err weight_prepare_cpu(OpCx *cx, MatQ w, Mat x, QuantRule rule, QuantCount *n) {
    CHECK(x.rows == w.nmat * w.rows && x.cols == w.cols && w.tile_rows == TILE, E_INTERNAL,
          "weight_prepare: shapes disagree");
    TRY(check_rule("weight_prepare", rule));
    if (rule.scope == SCOPE_TILE || rule.scope == SCOPE_BLOCK) {
        code_weights(cx, w, x, NULL, n);
        return OK;
    }
    if (rule.scope == SCOPE_ROW) rule.scope = SCOPE_TENSOR;
    Source from = {.x = x};
    for (int64_t e = 0; e < w.nmat; e++) {
        int64_t start = e * w.rows;
        Scale k = {0};
        scale_of_all(&k, cx, w, &from, w.cols, (Groups){&start, &w.rows, 1}, rule);
        code_weights(cx, matq_mat(w, e), mat_rows(x, start, w.rows), &k, n);
    }
    return OK;
}
