// bench_quant.c - how fast the quantisers are here, from memory and in cache, against memcpy.
//
// In cache every thread quantises a matrix of its own again and again: what a producer that has
// just written it would see. From memory all threads share one matrix of 256 MiB. "memcpy" reads
// and writes as many bytes together as the quantiser does, the scales not counted.
#include "bench.h"
#include "e5m6.h"
#include "gemm.h"
#include "log.h"
#include "ops.h"

typedef enum QuantKind {
    QUANT_ROWS,
    QUANT_TOKENS,
    REQUANT,
    WEIGHT,
    DEQUANT,
    QUANT_PAIR,
    PACK,
    UNPACK,
    QUANT_KINDS
} QuantKind;
static const char *const quant_names[] = {"quant_tile",     "quant_tile_t", "requant_tile_t",
                                          "weight_prepare", "dequant",      "quant_tile_pair",
                                          "quant_e5m6",     "dequant_e5m6"};
// Bytes of codes that are read or written for two values.
static const int64_t quant_codes[] = {2, 2, 4, 2, 2, 4, 3, 3};

enum { MAX_TEAM = 1024 };

// What one thread works on.
typedef struct QuantOperands {
    OpCx cx;
    Mat x;      // values, bf16 or f32
    Mat packed; // E5M6
    MatQ rows, tokens, weight;
    QuantCount *count; // in the memory of the backend
} QuantOperands;

typedef struct QuantCase {
    const Ops *ops;
    QuantKind kind;
    int64_t rows, cols;
    DType t;
    ScaleType st;
    bool in_cache;    // a matrix for each thread; else one for all
    int copies;       // matrices
    int times;        // calls of each thread with its own matrix
    QuantOperands *o; // [copies]
} QuantCase;

static Err run_one(const Ops *ops, QuantKind kind, QuantOperands *o) {
    Groups all = {0};
    QuantRule tiles = {0};
    switch (kind) {
    case QUANT_ROWS: return ops->quant_tile(&o->cx, o->rows, o->x, tiles, o->count);
    case QUANT_TOKENS: return ops->quant_tile_t(&o->cx, o->tokens, o->x, all, tiles, o->count);
    case REQUANT: return ops->requant_tile_t(&o->cx, o->tokens, o->rows, all, tiles, o->count);
    case WEIGHT: return ops->weight_prepare(&o->cx, o->weight, o->x, tiles, o->count);
    case QUANT_PAIR:
        return ops->quant_tile_pair(&o->cx, o->rows, o->tokens, o->x, all, tiles, tiles, o->count,
                                    o->count);
    case PACK: return ops->quant_e5m6(&o->cx, o->packed, o->x, o->count);
    case UNPACK: return ops->dequant_e5m6(&o->cx, o->x, o->packed);
    default: return ops->dequant(&o->cx, o->x, o->rows);
    }
}

static Err run_quant(void *user) {
    QuantCase *c = user;
    if (!c->in_cache) return run_one(c->ops, c->kind, c->o);
    Err worst = OK;
#pragma omp parallel for num_threads(c->copies) schedule(static, 1)
    for (int i = 0; i < c->copies; i++)
        for (int k = 0; k < c->times; k++) {
            Err err = run_one(c->ops, c->kind, &c->o[i]);
            if (err != OK) {
#pragma omp critical(quant_worst)
                worst = err;
                break;
            }
        }
    return worst;
}

static Err make_one(Bench *b, const QuantCase *c, QuantOperands *o) {
    void *p = NULL;
    TRY(arena_mat(b->arena, &o->x, c->t, c->rows, c->cols, "bench values"));
    TRY(bench_fill(b, o->x, false));
    ARENA_NEW(b->arena, o->count, 1);
    TRY(b->on.dev->zero(o->count, sizeof *o->count));
    if (c->kind == WEIGHT) {
        TRY(arena_push(b->arena, &p, weight_bytes(1, c->rows, c->cols, SCALE_F32), "bench weight"));
        o->weight = weight_view(p, 1, c->rows, c->cols, SCALE_F32);
        return OK;
    }
    if (c->kind >= PACK) {
        TRY(arena_mat(b->arena, &o->packed, DT_U8, c->rows, e5m6_row_bytes(c->cols), "bench codes"));
        return b->on.ops->quant_e5m6(&o->cx, o->packed, o->x, NULL);
    }
    if (c->kind != QUANT_TOKENS) {
        TRY(arena_matq_rows(b->arena, &o->rows, c->st, CODE_E4M3, c->rows, c->cols, "bench codes"));
        TRY(b->on.ops->quant_tile(&o->cx, o->rows, o->x, (QuantRule){0}, NULL));
    }
    if (c->kind == QUANT_TOKENS || c->kind == REQUANT || c->kind == QUANT_PAIR)
        TRY(arena_matq_cols(b->arena, &o->tokens, c->st, CODE_E4M3, c->cols, c->rows, 1,
                            "bench codes"));
    return OK;
}

// make_case: each thread's operations get temporaries of their own.
static Err make_case(Bench *b, QuantCase *c) {
    enum { ROOM = 1 << 22 };
    MEM_NEW(c->o, c->copies);
    for (int i = 0; i < c->copies; i++) {
        c->o[i] = (QuantOperands){.cx = {b->scratch, b->threads}};
        if (c->in_cache) {
            c->o[i].cx.nthreads = 1;
            TRY(arena_create(&c->o[i].cx.scratch, "bench scratch", ROOM, false));
        }
        TRY(make_one(b, c, &c->o[i]));
    }
    return OK;
}

static void free_case(Bench *b, QuantCase *c) {
    for (int i = 0; c->o && i < c->copies; i++)
        if (c->o[i].cx.scratch != b->scratch) arena_destroy(&c->o[i].cx.scratch);
    mem_free(c->o);
}

static void report_quant(Bench *b, const QuantCase *c, int64_t bytes, const BenchTime *t) {
    double calls = (double)c->copies * c->times;
    const char *scale = c->kind == WEIGHT || c->st == SCALE_F32 ? "f32" : "e8m0";
    const char *type = c->kind == REQUANT ? "e4m3" : dtype_name(c->t);
    double values = (double)(c->rows * c->cols) * calls, seconds = t->median;
    const char *where = c->in_cache ? "cache" : "memory";
    log_line("%-15s %6lld %6lld %5s %6s %6s %9.3f %8.2f %8.1f %9.3f %6.1f%%", quant_names[c->kind],
             (long long)c->rows, (long long)c->cols, type, scale, where, seconds * 1e3 / c->times,
             values / seconds * 1e-9, (double)bytes * calls / seconds * 1e-9, t->yard / seconds,
             t->spread * 100);
    bench_json(b, quant_names[c->kind]);
    if (b->json)
        fprintf(b->json,
                ",\"m\":%lld,\"n\":%lld,\"type\":\"%s\",\"scale\":\"%s\","
                "\"where\":\"%s\",\"copies\":%d,\"ms\":%.5f,"
                "\"spread\":%.4f,\"gelem_per_s\":%.3f,\"gb_per_s\":%.2f,"
                "\"fraction_of_peak\":%.4f}\n",
                (long long)c->rows, (long long)c->cols, type, scale, where,
                c->copies, seconds * 1e3 / c->times, t->spread,
                values / seconds * 1e-9, (double)bytes * calls / seconds * 1e-9, t->yard / seconds);
    // Magnitude, multiplication, rounding: three operations a value.
    bench_point(b, SERIES_QUANT, "", 3 * values, (double)bytes * calls, seconds);
}

static Err measure_with(Bench *b, QuantCase *c) {
    CopyYard copy;
    BenchTime t;
    // Read and written: values and codes, without the scales.
    int64_t value = c->kind == REQUANT ? 0 : 2 * (int64_t)dtype_bytes(c->t);
    int64_t bytes = c->rows * c->cols * (quant_codes[c->kind] + value) / 2;
    TRY(make_case(b, c));
    TRY(bench_copy_yard(b, &copy, bytes * c->copies));
    copy.times = c->times;
    TRY(bench_time(b, &t, run_quant, c, bench_run_copy, &copy));
    report_quant(b, c, bytes, &t);
    return OK;
}

// measure: rows x cols values. `in_cache`: a matrix for each thread, some 0.2 ms of calls at once.
static Err measure(Bench *b, QuantKind kind, DType t, ScaleType st, int64_t rows, int64_t cols,
                   bool in_cache) {
    QuantCase c = {
        .ops = b->on.ops, .kind = kind, .rows = rows, .cols = cols, .t = t, .st = st, .in_cache = in_cache};
    c.copies = in_cache ? (int)min_i64(b->threads, MAX_TEAM) : 1;
    c.times = in_cache ? (int)max_i64(1, ((int64_t)1 << 20) / (rows * cols)) : 1;
    size_t mark = arena_mark(b->arena);
    Err err = measure_with(b, &c);
    free_case(b, &c);
    arena_release(b->arena, mark);
    return err;
}

// on_shapes: every quantiser as training on a device calls it: BF16 in, E8M0 scales, blocks of weights in FP32.
static Err on_shapes(Bench *b) {
    // DeepSeek-V3, 4096 tokens: the residual stream, attention's output, 32768 rows of experts of width 2048.
    static const int64_t device_shapes[][2] = {{4096, 7168}, {4096, 16384}, {32768, 2048}, {32768, 7168}};
    enum { ALL = sizeof device_shapes / sizeof device_shapes[0], FEW = 2 };
    int n = b->nshapes ? b->nshapes : b->is_all ? ALL : FEW;
    for (int i = 0; i < n; i++) {
        const int64_t *s = b->nshapes ? b->shapes[i] : device_shapes[i];
        for (int kind = 0; kind < QUANT_KINDS; kind++)
            TRY(measure(b, (QuantKind)kind, DT_BF16, kind == WEIGHT ? SCALE_F32 : SCALE_E8M0, s[0], s[1], false));
    }
    return OK;
}

Err bench_quant(Bench *b) {
    static const int64_t all[][2] = {{2048, 1024}, {128, 512}, {8192, 2048}};
    static const DType types[] = {DT_F32, DT_BF16};
    enum { ALL = sizeof all / sizeof all[0], CACHE = 3 };
    log_line("quantisers, %s, %d thread%s", b->on.ops->isa, b->threads, b->threads == 1 ? "" : "s");
    TRY(bench_memory(b));
    log_line("%-15s %6s %6s %5s %6s %6s %9s %8s %8s %9s %7s", "op", "rows", "cols", "type",
             "scales", "in", "ms", "Gelem/s", "GB/s", b->is_device ? "of copy" : "of memcpy", "spread");
    if (b->is_device || b->nshapes) return on_shapes(b);
    for (int kind = QUANT_ROWS; kind <= QUANT_TOKENS; kind++)
        for (int t = 0; t < 2; t++) {
            // Values of 32 KiB, 128 KiB and 512 KiB per thread, then 256 MiB.
            for (int64_t i = 0; i < CACHE; i++) {
                int64_t n = ((int64_t)1 << (15 + 2 * i)) / (int64_t)dtype_bytes(types[t]);
                int64_t rows = kind == QUANT_TOKENS ? 128 : max_i64(16, n / 1024);
                TRY(measure(b, (QuantKind)kind, types[t], SCALE_E8M0, rows, n / rows, true));
            }
            TRY(measure(b, (QuantKind)kind, types[t], SCALE_E8M0,
                        ((int64_t)1 << 28) / 1024 / (int64_t)dtype_bytes(types[t]), 1024, false));
        }
    for (int i = 0; i < (b->is_all ? ALL : 1); i++)
        for (int kind = b->is_all ? 0 : REQUANT; kind < QUANT_KINDS; kind++)
            for (int t = 0; t < 2; t++)
                for (int st = 0; st < 2; st++) {
                    bool is_repeat = (kind == REQUANT && t) || (kind >= PACK && st == SCALE_F32) ||
                                     (kind == WEIGHT && st == SCALE_E8M0);
                    if (is_repeat || (st == SCALE_F32 && kind != WEIGHT && !b->is_all)) continue;
                    TRY(measure(b, (QuantKind)kind, types[t], (ScaleType)st, all[i][0], all[i][1],
                                false));
                }
    return OK;
}
