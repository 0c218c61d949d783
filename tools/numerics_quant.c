// numerics_quant.c - how much E4M3 loses, by what shares a scale, by the format of the scale and by
// the kind of data. See numerics.h.
//
// Data holds BF16 values, as what the quantiser gets in training, so that all error is E4M3's, and
// runs through the operations of training.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "log.h"
#include "numerics.h"
#include "plot_svg.h"
#include "rng.h"
#include "tensorfile.h"

// A tensor is cut to this many rows and columns, which is also the size of the synthetic ones.
enum { ROWS = 512, COLS = 1024, SEED = 20241226, CALIBRATION = 8, SWEEP = 13 };
static const double table_factor = 1e4; // of the outliers in the tables

static const char *const form_names[] = {"tensor", "row", "tile_1x128", "block_128x128", "static"};
static const char *const scale_names[] = {"f32", "ue8m0"};

const char *quant_form_name(QuantForm form) {
    return form_names[form];
}

static const float *row_of(Mat x, int64_t r) {
    return (const float *)x.p + r * x.ld;
}

static float amax_of(Mat x) {
    float most = 0;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            float a = fabsf(row_of(x, r)[c]);
            if (isfinite(a) && a > most) most = a;
        }
    return most;
}

Err quant_apply(Numerics *n, Mat y, QuantCount *count, Mat x, QuantForm form, ScaleType st) {
    static const QuantScope scopes[] = {SCOPE_TENSOR, SCOPE_ROW, SCOPE_TILE, SCOPE_BLOCK,
                                        SCOPE_STATIC};
    QuantRule rule = {.scope = scopes[form]};
    if (form == QUANT_STATIC) rule.amax = amax_of(mat_rows(x, 0, ceil_div(x.rows, CALIBRATION)));
    size_t mark = arena_mark(n->arena);
    MatQ q;
    TRY(arena_matq_rows(n->arena, &q, st, CODE_E4M3, x.rows, x.cols, "codes"));
    TRY(n->ops->quant_tile(&n->cx, q, x, rule, count));
    TRY(n->ops->dequant(&n->cx, y, q));
    arena_release(n->arena, mark);
    return OK;
}

QuantError quant_error(Mat y, Mat x) {
    double abs_sum = 0, err2 = 0, x2 = 0, value2 = 0;
    int64_t values = 0, nonzero = 0;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            double v = row_of(x, r)[c], e = row_of(y, r)[c] - v;
            if (!isfinite(v)) continue;
            values++;
            abs_sum += fabs(e);
            err2 += e * e;
            x2 += v * v;
            if (v == 0) continue;
            nonzero++;
            value2 += e / v * (e / v);
        }
    QuantError q = {0};
    if (values) q.mae = abs_sum / (double)values;
    if (x2 > 0) q.rel_rms = sqrt(err2 / x2);
    if (nonzero) q.value_rms = sqrt(value2 / (double)nonzero);
    return q;
}

// --- tables ---

// What one table row needs: a matrix, how it is called here and in the records.
typedef struct QuantCase {
    Mat x, y;
    const char *title; // for people
    const char *data;  // in the records
} QuantCase;

static double percent(int64_t part_of, int64_t all) {
    return all ? 100.0 * (double)part_of / (double)all : 0;
}

static Err quant_row(Numerics *n, const QuantCase *q, QuantForm form) {
    char line[256];
    int at = snprintf(line, sizeof line, "  %-14s", form_names[form]);
    for (int st = SCALE_F32; st <= SCALE_E8M0; st++) {
        QuantCount count = {0};
        TRY(quant_apply(n, q->y, &count, q->x, form, (ScaleType)st));
        QuantError e = quant_error(q->y, q->x);
        double clamped = percent(count.saturated, count.values);
        double underflow = percent(count.underflow, count.values);
        at += snprintf(line + at, sizeof line - (size_t)at, " | %9.3e %7.3f%% %7.3f%% %7.3f %7.3f",
                       e.mae, 100 * e.rel_rms, 100 * e.value_rms, clamped, underflow);
        numerics_json(n,
                      "{\"test\":\"quant\",\"data\":\"%s\",\"granularity\":\"%s\",\"scale\":\"%s\","
                      "\"rows\":%lld,\"cols\":%lld,\"mae\":%.9g,\"rel_rms\":%.9g,"
                      "\"value_rel_rms\":%.9g,\"clamped_pct\":%.9g,\"underflow_pct\":%.9g}",
                      q->data, form_names[form], scale_names[st], (long long)q->x.rows,
                      (long long)q->x.cols, e.mae, e.rel_rms, e.value_rms, clamped, underflow);
    }
    log_line("%s", line);
    return OK;
}

static Err quant_table(Numerics *n, const QuantCase *q) {
    log_line("%s [%lld, %lld]", q->title, (long long)q->x.rows, (long long)q->x.cols);
    for (int form = 0; form < QUANT_FORMS; form++) TRY(quant_row(n, q, (QuantForm)form));
    return OK;
}

static void table_head(void) {
    log_line("Quantisation error of E4M3 by what shares a scale, FP32 scales | powers of two");
    log_line("  relative RMS: of the matrix; per value: rms of each value's own relative error, so "
             "that small values count");
    log_line(
        "  clamp: quotient above 448 (FP32 scales: by a rounding); under: not zero, became zero; "
        "static: scale of the first 1/8 of the rows");
    log_line("  %-14s | %9s %8s %8s %7s %7s | %9s %8s %8s %7s %7s", "", "MAE", "rel.RMS", "p.value",
             "clamp%", "under%", "MAE", "rel.RMS", "p.value", "clamp%", "under%");
}

// --- data ---

typedef enum Outliers { NO_OUTLIERS, CHANNELS, TOKENS } Outliers;

// The matrices of one experiment: x is made from N(0,1), y is what quantisation leaves of it.
typedef struct Synthetic {
    Mat normal, x, y;
} Synthetic;

// Two of 1024 channels, or one token of each 128, are `factor` times as large as the others.
static void synthesise(const Synthetic *s, Outliers kind, double factor) {
    Mat x = s->x;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            bool is_out = (kind == CHANNELS && c % (x.cols / 2) == 77) ||
                          (kind == TOKENS && r % TILE == TILE / 2);
            float v = row_of(s->normal, r)[c];
            *(float *)mat_at(x, r, c) = bf16_round(is_out ? (float)factor * v : v);
        }
}

static Err synthetic_tables(Numerics *n, const Synthetic *s) {
    static const QuantCase cases[] = {
        {.title = "Gaussian", .data = "gaussian"},
        {.title = "Gaussian, 2 of 1024 channels 10^4 times as large", .data = "channel_outliers"},
        {.title = "Gaussian, 1 of 128 tokens 10^4 times as large", .data = "token_outliers"},
    };
    for (int kind = NO_OUTLIERS; kind <= TOKENS; kind++) {
        QuantCase q = cases[kind];
        q.x = s->x;
        q.y = s->y;
        synthesise(s, (Outliers)kind, table_factor);
        TRY(quant_table(n, &q));
    }
    return OK;
}

static Err sweep_plot(Numerics *n, const Synthetic *m) {
    static const char *const titles[] = {"", "2 of 1024 channels large",
                                         "1 of 128 tokens large (row and tile: one line)"};
    static const char *const names[] = {"per tensor", "per row (token)", "1x128 tile",
                                        "128x128 block", "static scale"};
    double factor[SWEEP], error[2][QUANT_FORMS][SWEEP];
    PlotSeries series[2][QUANT_FORMS];
    PlotPanel panels[2];
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < SWEEP; i++) {
            factor[i] = pow(10, i * 0.5);
            synthesise(m, (Outliers)(CHANNELS + k), factor[i]);
            for (int form = 0; form < QUANT_FORMS; form++) {
                QuantCount count = {0};
                TRY(quant_apply(n, m->y, &count, m->x, (QuantForm)form, SCALE_F32));
                error[k][form][i] = quant_error(m->y, m->x).value_rms;
                numerics_json(n,
                              "{\"test\":\"outlier_size\",\"data\":\"%s\",\"factor\":%.6g,"
                              "\"granularity\":\"%s\",\"value_rel_rms\":%.9g,"
                              "\"underflow_pct\":%.9g}",
                              k ? "token_outliers" : "channel_outliers", factor[i],
                              form_names[form], error[k][form][i],
                              percent(count.underflow, count.values));
            }
        }
        for (int form = 0; form < QUANT_FORMS; form++) {
            PlotSeries s = {names[form], factor, error[k][form], SWEEP, PLOT_LINE, NULL};
            series[k][form] = s;
        }
        PlotPanel p = {titles[CHANNELS + k],
                       {"size of the outliers, times the others", PLOT_LOG10},
                       {"relative RMS error per value", PLOT_LOG10},
                       series[k],
                       QUANT_FORMS};
        panels[k] = p;
    }
    TRY(plot_svg(numerics_path(n, "quantisation.svg").s,
                 "Error of E4M3 by what shares a scale (FP32 scales)", panels, 2));
    return OK;
}

// --- tensors of a checkpoint ---

// The first tensor whose name has these parts is taken.
static const struct {
    const char *part, *end, *what;
} wanted[] = {
    {"self_attn.o_proj", "/master", "weight"},
    {"mlp.experts", "down_proj.weight/master", "weight"},
    {"mlp.down_proj", "/master", "weight"},
    {"self_attn.o_proj", "/m", "mean gradient (Adam's m)"},
    {"mlp.experts", "down_proj.weight/m", "mean gradient (Adam's m)"},
    {"embed_tokens", "/m", "mean gradient (Adam's m)"},
};

static bool is_wanted(const TensorInfo *t, int i) {
    size_t n = strlen(t->name), end = strlen(wanted[i].end);
    return strstr(t->name, wanted[i].part) && n >= end &&
           strcmp(t->name + n - end, wanted[i].end) == 0 && t->cols <= 16384 &&
           (t->dtype == DT_F32 || t->dtype == DT_BF16);
}

static Err tensor_table(Numerics *n, TensorFile *f, const TensorInfo *t, const char *what) {
    size_t mark = arena_mark(n->arena);
    int64_t rows = min_i64(t->rows, ROWS);
    Mat x, y, raw;
    TRY(arena_mat(n->arena, &raw, t->dtype, rows, t->cols, "tensor of the checkpoint"));
    TRY(arena_mat(n->arena, &x, DT_F32, rows, t->cols, "values"));
    TRY(arena_mat(n->arena, &y, DT_F32, rows, t->cols, "quantised values"));
    TRY(tensorfile_read_rows(f, t->name, t->dtype, 0, rows, raw.p));
    for (int64_t i = 0; i < rows * t->cols; i++)
        ((float *)x.p)[i] = t->dtype == DT_BF16 ? f32_from_bf16(((uint16_t *)raw.p)[i])
                                                : bf16_round(((float *)raw.p)[i]);
    char title[TENSOR_NAME + 64];
    snprintf(title, sizeof title, "%s %s", what, t->name);
    QuantCase q = {x, y, title, t->name};
    TRY(quant_table(n, &q));
    arena_release(n->arena, mark);
    return OK;
}

static Err checkpoint_tables(Numerics *n) {
    char path[4200];
    TensorFile *f = NULL;
    TensorInfo *list = NULL;
    int64_t count = 0, done = 0;
    Err err = OK;
    snprintf(path, sizeof path, "%s/index.h5", n->checkpoint);
    TRY(tensorfile_open(&f, path));
    TRY_OR(tensorfile_list(f, &list, &count), out);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        for (int64_t j = 0; j < count; j++) {
            if (!is_wanted(&list[j], (int)i)) continue;
            TRY_OR(tensor_table(n, f, &list[j], wanted[i].what), out);
            done++;
            break;
        }
    CHECK_OR(done > 0, out, E_INPUT, "%s has no weights of attention or FFN", n->checkpoint);
out:
    free(list);
    tensorfile_drop(&f);
    return err;
}

Err numerics_quant(Numerics *n) {
    size_t mark = arena_mark(n->arena);
    Synthetic s;
    TRY(arena_mat(n->arena, &s.normal, DT_F32, ROWS, COLS, "normal numbers"));
    TRY(arena_mat(n->arena, &s.x, DT_F32, ROWS, COLS, "values"));
    TRY(arena_mat(n->arena, &s.y, DT_F32, ROWS, COLS, "quantised values"));
    for (int64_t i = 0; i < ROWS * COLS; i++)
        ((float *)s.normal.p)[i] = (float)rng_normal(SEED, 0, (uint64_t)i);
    table_head();
    TRY(synthetic_tables(n, &s));
    if (n->checkpoint) TRY(checkpoint_tables(n));
    TRY(sweep_plot(n, &s));
    arena_release(n->arena, mark);
    return OK;
}
