// hf_import.c - Hugging Face weights into the masters of this rank.
#include "hf.h"

#include <math.h>
#include <string.h>

#define CHUNK ((int64_t)1 << 20) // numbers read at a time
#define BLOCK 128                // rows and columns that share one weight_scale_inv

// One import: where from, where to, which tensors were used.
typedef struct Importer {
    const Safetensors *st;
    const char *dir;
    Params *p;
    const Shape *s;
    const Cx *cx;
    float *buffer; // [CHUNK]
    bool *is_used; // [safetensors_count]
} Importer;

static void mark_used(Importer *im, const StTensor *t) {
    // Tensors stand in name order.
    int64_t lo = 0, hi = safetensors_count(im->st) - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (strcmp(safetensors_at(im->st, mid)->name, t->name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    im->is_used[lo] = true;
}

// The tensor `name`, which must be [rows, cols], or [cols] where rows is 1.
static Err get_shaped(Importer *im, const char *name, int64_t rows, int64_t cols, bool is_vector,
                      const StTensor **out) {
    const StTensor *t = safetensors_find(im->st, name);
    CHECK(t, E_INPUT, "%s: tensor %s is missing", im->dir, name);
    char found[128];
    size_t at = 0;
    for (int i = 0; i < t->ndim && at < sizeof found; i++) {
        at += (size_t)snprintf(found + at, sizeof found - at, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
    }
    if (t->ndim == 0) found[0] = '\0';
    bool is_right = is_vector ? t->ndim == 1 && t->shape[0] == cols
                              : t->ndim == 2 && t->shape[0] == rows && t->shape[1] == cols;
    if (!is_right && is_vector)
        FAIL(E_INPUT, "%s: %s: expected shape [%lld], found [%s]", t->file, name, (long long)cols, found);
    CHECK(is_right, E_INPUT, "%s: %s: expected shape [%lld, %lld], found [%s]", t->file, name, (long long)rows,
          (long long)cols, found);
    mark_used(im, t);
    *out = t;
    return OK;
}

// Multiply rows [row0, row0+n) of a block-scaled FP8 matrix by their scales, which stand in `scale` [.., sc].
static void apply_scale(float *x, int64_t row0, int64_t n, int64_t cols, const float *scale, int64_t sc) {
    for (int64_t r = 0; r < n; r++) {
        const float *s = scale + (row0 + r) / BLOCK * sc;
        for (int64_t c = 0; c < cols; c++) x[r * cols + c] *= s[c / BLOCK];
    }
}

// The scales of an FP8 matrix in memory of their own; NULL for the other types.
static Err read_scale(Importer *im, const StTensor *t, float **out) {
    char name[160];
    *out = NULL;
    snprintf(name, sizeof name, "%s_scale_inv", t->name);
    const StTensor *found = safetensors_find(im->st, name);
    if (t->dtype != ST_F8_E4M3) {
        CHECK(!found, E_INPUT, "%s: %s is %s but has a scale %s", t->file, t->name, st_type_name(t->dtype), name);
        return OK;
    }
    CHECK(t->ndim == 2, E_INPUT, "%s: %s: F8_E4M3 is only read for matrices", t->file, t->name);
    const StTensor *scale;
    TRY(get_shaped(im, name, ceil_div(t->rows, BLOCK), ceil_div(t->cols, BLOCK), false, &scale));
    TRY(mem_alloc((void **)out, (size_t)(scale->rows * scale->cols) * sizeof(float), "scales"));
    return safetensors_read_f32(im->st, name, 0, scale->rows, *out);
}

// Rows [row0, row0+n) of tensor t into the buffer, checked to be finite.
static Err read_rows(Importer *im, const StTensor *t, const float *scale, int64_t row0, int64_t n, int64_t cols) {
    int64_t per_row = t->ndim == 1 ? cols : 1; // a vector is stored as rows of one number
    TRY(safetensors_read_f32(im->st, t->name, row0 * per_row, n * per_row, im->buffer));
    if (scale) apply_scale(im->buffer, row0, n, cols, scale, ceil_div(cols, BLOCK));
    for (int64_t i = 0; i < n * cols; i++) {
        CHECK(isfinite(im->buffer[i]), E_INPUT, "%s: %s: element %lld is not finite", t->file, t->name,
              (long long)(row0 * cols + i));
    }
    return OK;
}

// This rank's rows of matrix `mat` (its number on this rank) of p.
static Err import_matrix(Importer *im, const Param *p, int64_t mat) {
    int64_t from = max_i64(p->own.row0, mat * p->rows),
            to = min_i64(p->own.row0 + p->own.nrows, (mat + 1) * p->rows);
    char name[128];
    params_hf_name(name, sizeof name, p, p->mat0 + mat);
    const StTensor *t;
    TRY(get_shaped(im, name, p->rows, p->cols, p->is_init_one, &t));
    if (from >= to) return OK;
    float *scale = NULL;
    Err err = OK;
    TRY_OR(read_scale(im, t, &scale), done);
    int64_t step = max_i64(1, CHUNK / p->cols);
    for (int64_t row = from; row < to; row += step) {
        int64_t n = min_i64(step, to - row);
        TRY_OR(read_rows(im, t, scale, row - mat * p->rows, n, p->cols), done);
        TRY_OR(im->cx->dev->to_device(mat_at(p->master, row - p->own.row0, 0), im->buffer,
                                      (size_t)(n * p->cols) * sizeof(float)),
               done);
    }
done:
    mem_free(scale);
    return err;
}

// A second copy of a shared table must hold the same numbers, or training would have to choose.
static Err check_copy(Importer *im, const char *name, const Param *p) {
    const StTensor *copy = safetensors_find(im->st, name);
    if (!copy) return OK; // files without the copies are complete
    const StTensor *t;
    TRY(get_shaped(im, p->name, p->rows, p->cols, false, &t));
    TRY(get_shaped(im, name, p->rows, p->cols, false, &copy));
    float *other = NULL;
    int64_t step = max_i64(1, CHUNK / p->cols);
    TRY(mem_alloc((void **)&other, (size_t)(step * p->cols) * sizeof(float), "copy of a table"));
    Err err = OK;
    for (int64_t row = 0; row < p->rows; row += step) {
        int64_t n = min_i64(step, p->rows - row);
        TRY_OR(read_rows(im, t, NULL, row, n, p->cols), done);
        TRY_OR(safetensors_read_f32(im->st, name, row, n, other), done);
        for (int64_t i = 0; i < n * p->cols; i++) {
            CHECK_OR(other[i] == im->buffer[i], done, E_INPUT,
                     "%s: %s must be a copy of %s, but row %lld, column %lld is %.9g there and %.9g here",
                     copy->file, name, p->name, (long long)(row + i / p->cols), (long long)(i % p->cols),
                     im->buffer[i], other[i]);
        }
    }
done:
    mem_free(other);
    return err;
}

static Err check_copies(Importer *im) {
    const Param *embed = params_find(im->p, P_EMBED, -1), *head = params_find(im->p, P_HEAD, -1);
    char name[128];
    for (int64_t k = 0; k < im->s->nmtp; k++) {
        snprintf(name, sizeof name, "model.layers.%lld.embed_tokens.weight", (long long)(im->s->nlayers + k));
        TRY(check_copy(im, name, embed));
        snprintf(name, sizeof name, "model.layers.%lld.shared_head.head.weight", (long long)(im->s->nlayers + k));
        TRY(check_copy(im, name, head ? head : embed));
    }
    return head ? OK : check_copy(im, "lm_head.weight", embed);
}

static Err import_bias(Importer *im, int64_t layer) {
    if (!im->p->bias[layer]) return OK;
    char name[128];
    snprintf(name, sizeof name, "model.layers.%lld.mlp.gate.e_score_correction_bias", (long long)layer);
    const StTensor *t;
    TRY(get_shaped(im, name, 1, im->p->E, true, &t));
    TRY(read_rows(im, t, NULL, 0, 1, im->p->E));
    return im->cx->dev->to_device(im->p->bias[layer], im->buffer, (size_t)im->p->E * sizeof(float));
}

// A tensor that nothing used would change the model if it were used: say so instead of ignoring it.
static Err check_unused(Importer *im) {
    for (int64_t i = 0; i < safetensors_count(im->st); i++) {
        const StTensor *t = safetensors_at(im->st, i);
        bool is_table = strstr(t->name, "rotary_emb.inv_freq") != NULL; // computed from the config
        CHECK(im->is_used[i] || is_table, E_INPUT,
              "%s: tensor %s is not part of the model that config.json describes (%lld layers, %lld of them dense, "
              "%lld "
              "experts, %lld MTP modules)",
              t->file, t->name, (long long)im->s->nlayers, (long long)im->s->ndense, (long long)im->s->E,
              (long long)im->s->nmtp);
    }
    return OK;
}

Err hf_import_weights(const Safetensors *st, const char *dir, Params *p, const Shape *s, const Cx *cx) {
    Importer im = {.st = st, .dir = dir, .p = p, .s = s, .cx = cx};
    int64_t widest = p->E;
    for (int i = 0; i < p->n; i++) widest = max_i64(widest, p->p[i].cols);
    Err err = OK;
    TRY_OR(mem_alloc((void **)&im.buffer, (size_t)max_i64(CHUNK, widest) * sizeof(float), "import buffer"), done);
    TRY_OR(mem_alloc((void **)&im.is_used, (size_t)safetensors_count(st) + 1, "import marks"), done);
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        for (int64_t mat = 0; mat < e->nmat; mat++) TRY_OR(import_matrix(&im, e, mat), done);
        // Experts of other ranks are only looked for, so that every rank finds the same mistakes.
        for (int64_t mat = 0; mat < e->nmat_all; mat++) {
            char name[128];
            const StTensor *t;
            params_hf_name(name, sizeof name, e, mat);
            TRY_OR(get_shaped(&im, name, e->rows, e->cols, e->is_init_one, &t), done);
            char scale[160];
            snprintf(scale, sizeof scale, "%s_scale_inv", name);
            const StTensor *found = safetensors_find(st, scale);
            if (found) mark_used(&im, found);
        }
    }
    for (int64_t b = 0; b < p->nblocks; b++) TRY_OR(import_bias(&im, b), done);
    TRY_OR(check_copies(&im), done);
    TRY_OR(check_unused(&im), done);
done:
    mem_free(im.buffer);
    mem_free(im.is_used);
    return err;
}
