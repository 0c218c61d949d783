// numerics.h - the FP8 laboratory: what `tessera numerics` measures, and the measures themselves.
//
// A subject (quantisation, accumulation) is one function that prints its tables, writes its plots
// into the folder and its records, one JSON object per case, through numerics_json.
#pragma once
#include "gemm.h"
#include "ops.h"

typedef struct Numerics {
    const char *dir;        // where the plots go
    const char *checkpoint; // a checkpoint directory, or NULL
    FILE *records;          // JSON Lines
    Arena *arena;           // matrices; released between cases
    const Ops *ops;
    OpCx cx;
} Numerics;

// numerics_json: one record (a newline is added). Local.
void numerics_json(Numerics *n, const char *fmt, ...) PRINTF_LIKE(2, 3);
// numerics_path: `name` in the folder.
typedef struct NumericsPath {
    char s[4096];
} NumericsPath;
NumericsPath numerics_path(const Numerics *n, const char *name);

// What shares one scale.
typedef enum QuantForm {
    QUANT_TENSOR, // the whole matrix
    QUANT_ROW,    // a row
    QUANT_TILE,   // 1x128
    QUANT_BLOCK,  // 128x128, as in weights
    QUANT_STATIC, // the whole matrix, calibrated on its first eighth of the rows
    QUANT_FORMS,
} QuantForm;
const char *quant_form_name(QuantForm form);

// quant_apply: y = x as its E4M3 codes and scales say it.
//   x [M,N] f32 holding BF16 values; y [M,N] f32 out; count is added to.
// By the operations of training. Errors: E_INTERNAL (arena). Local.
Err quant_apply(Numerics *n, Mat y, QuantCount *count, Mat x, QuantForm form,
                ScaleType st) MUST_CHECK;

// Errors over the values of x that are finite.
typedef struct QuantError {
    double mae;       // mean |y - x|
    double rel_rms;   // rms(y - x) / rms(x)
    double value_rms; // rms of (y - x) / x, over x != 0: every value counts the same
} QuantError;
QuantError quant_error(Mat y, Mat x);

// Errors of n results against double precision, both over rms(exact).
typedef struct GemmError {
    double max_rel; // max |c - exact|
    double rms_rel; // rms(c - exact)
} GemmError;
GemmError gemm_error(const float *c, const double *exact, int64_t n);

// numerics_quant: error of quantisation by form, scale and data; by the size of outliers.
Err numerics_quant(Numerics *n) MUST_CHECK;
// numerics_gemm: error of products by K and accumulation, and by promotion interval.
Err numerics_gemm(Numerics *n) MUST_CHECK;
