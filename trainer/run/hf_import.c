// hf_import.c - Hugging Face weights as a source of masters and biases.
//
// What is there, and in which shape, is checked before the first number is read; numbers are checked as they are read.
#include "hf.h"

#include <math.h>
#include <string.h>

#define CHUNK ((int64_t)1 << 20) // numbers of a copy compared at a time
#define BLOCK 128                // rows and columns that share one weight_scale_inv

struct HfReader {
    const Safetensors *st;
    const char *dir;
    const Params *p;
    const Shape *s;
    bool *is_used; // [safetensors_count]
};

static void mark_used(HfReader *r, const StTensor *t) {
    // Tensors stand in name order.
    int64_t lo = 0, hi = safetensors_count(r->st) - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (strcmp(safetensors_at(r->st, mid)->name, t->name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    r->is_used[lo] = true;
}

// The tensor `name`, which must be [rows, cols], or [cols] where rows is 1.
static Err get_shaped(HfReader *r, const char *name, int64_t rows, int64_t cols, bool is_vector,
                      const StTensor **out) {
    const StTensor *t = safetensors_find(r->st, name);
    CHECK(t, E_INPUT, "%s: tensor %s is missing", r->dir, name);
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
    mark_used(r, t);
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

// The tensor of scales of an FP8 matrix; NULL for the other types.
static Err find_scale(HfReader *r, const StTensor *t, const StTensor **out) {
    char name[160];
    *out = NULL;
    snprintf(name, sizeof name, "%s_scale_inv", t->name);
    const StTensor *found = safetensors_find(r->st, name);
    if (t->dtype != ST_F8_E4M3) {
        CHECK(!found, E_INPUT, "%s: %s is %s but has a scale %s", t->file, t->name, st_type_name(t->dtype), name);
        return OK;
    }
    CHECK(t->ndim == 2, E_INPUT, "%s: %s: F8_E4M3 is only read for matrices", t->file, t->name);
    return get_shaped(r, name, ceil_div(t->rows, BLOCK), ceil_div(t->cols, BLOCK), false, out);
}

static Err scale_rows(HfReader *r, const StTensor *t, int64_t row0, int64_t n, int64_t cols, float *x) {
    const StTensor *scale;
    float *numbers = NULL;
    TRY(find_scale(r, t, &scale));
    if (!scale) return OK;
    TRY(mem_alloc((void **)&numbers, (size_t)(scale->rows * scale->cols) * sizeof(float), "scales"));
    Err err = safetensors_read_f32(r->st, scale->name, 0, scale->rows, numbers);
    if (err == OK) apply_scale(x, row0, n, cols, numbers, scale->cols);
    mem_free(numbers);
    return err;
}

// Rows [row0, row0+n) of tensor t, checked to be finite.
static Err read_rows(HfReader *r, const StTensor *t, int64_t row0, int64_t n, int64_t cols, float *out) {
    int64_t per_row = t->ndim == 1 ? cols : 1; // a vector is stored as rows of one number
    TRY(safetensors_read_f32(r->st, t->name, row0 * per_row, n * per_row, out));
    TRY(scale_rows(r, t, row0, n, cols, out));
    for (int64_t i = 0; i < n * cols; i++) {
        CHECK(isfinite(out[i]), E_INPUT, "%s: %s: element %lld is not finite", t->file, t->name,
              (long long)(row0 * cols + i));
    }
    return OK;
}

static Err master_rows(void *of, const Param *p, int64_t first, int64_t n, float *out) {
    HfReader *r = of;
    for (int64_t row = first; row < first + n;) {
        char name[128];
        const StTensor *t;
        int64_t mat = row / p->rows, here = min_i64((mat + 1) * p->rows, first + n) - row;
        params_hf_name(name, sizeof name, p, mat);
        TRY(get_shaped(r, name, p->rows, p->cols, p->is_init_one, &t));
        TRY(read_rows(r, t, row - mat * p->rows, here, p->cols, out + (row - first) * p->cols));
        row += here;
    }
    return OK;
}

static Err find_bias(HfReader *r, int64_t block, const StTensor **t) {
    char name[128];
    snprintf(name, sizeof name, "model.layers.%lld.mlp.gate.e_score_correction_bias", (long long)block);
    return get_shaped(r, name, 1, r->p->E, true, t);
}

static Err bias_of(void *of, int64_t block, float *out) {
    HfReader *r = of;
    const StTensor *t;
    TRY(find_bias(r, block, &t));
    return read_rows(r, t, 0, 1, r->p->E, out);
}

// A second copy of a shared table must hold the same numbers, or training would have to choose.
static Err check_copy(HfReader *r, const char *name, const Param *p) {
    const StTensor *copy = safetensors_find(r->st, name);
    if (!copy) return OK; // files without the copies are complete
    const StTensor *t;
    TRY(get_shaped(r, p->name, p->rows, p->cols, false, &t));
    TRY(get_shaped(r, name, p->rows, p->cols, false, &copy));
    float *here = NULL, *other = NULL;
    int64_t step = max_i64(1, CHUNK / p->cols);
    Err err = OK;
    TRY_OR(mem_alloc((void **)&here, (size_t)(step * p->cols) * sizeof(float), "a table"), done);
    TRY_OR(mem_alloc((void **)&other, (size_t)(step * p->cols) * sizeof(float), "copy of a table"), done);
    for (int64_t row = 0; row < p->rows; row += step) {
        int64_t n = min_i64(step, p->rows - row);
        TRY_OR(read_rows(r, t, row, n, p->cols, here), done);
        TRY_OR(safetensors_read_f32(r->st, name, row, n, other), done);
        for (int64_t i = 0; i < n * p->cols; i++) {
            CHECK_OR(other[i] == here[i], done, E_INPUT,
                     "%s: %s must be a copy of %s, but row %lld, column %lld is %.9g there and %.9g here",
                     copy->file, name, p->name, (long long)(row + i / p->cols), (long long)(i % p->cols), here[i],
                     other[i]);
        }
    }
done:
    mem_free(here);
    mem_free(other);
    return err;
}

static Err check_copies(HfReader *r) {
    const Param *embed = params_find(r->p, P_EMBED, -1), *head = params_find(r->p, P_HEAD, -1);
    char name[128];
    for (int64_t k = 0; k < r->s->nmtp; k++) {
        snprintf(name, sizeof name, "model.layers.%lld.embed_tokens.weight", (long long)(r->s->nlayers + k));
        TRY(check_copy(r, name, embed));
        snprintf(name, sizeof name, "model.layers.%lld.shared_head.head.weight", (long long)(r->s->nlayers + k));
        TRY(check_copy(r, name, head ? head : embed));
    }
    return head ? OK : check_copy(r, "lm_head.weight", embed);
}

// A tensor that nothing used would change the model if it were used: say so instead of ignoring it.
static Err check_unused(HfReader *r) {
    for (int64_t i = 0; i < safetensors_count(r->st); i++) {
        const StTensor *t = safetensors_at(r->st, i);
        bool is_table = strstr(t->name, "rotary_emb.inv_freq") != NULL; // computed from the config
        CHECK(r->is_used[i] || is_table, E_INPUT,
              "%s: tensor %s is not part of the model that config.json describes (%lld layers, %lld of them dense, "
              "%lld "
              "experts, %lld MTP modules)",
              t->file, t->name, (long long)r->s->nlayers, (long long)r->s->ndense, (long long)r->s->E,
              (long long)r->s->nmtp);
    }
    return OK;
}

// Every tensor of the model is there, in its shape, and marked as used, its scales too.
static Err check_tensors(HfReader *r) {
    const StTensor *t, *scale;
    char name[128];
    for (int i = 0; i < r->p->n; i++) {
        const Param *e = &r->p->p[i];
        for (int64_t mat = 0; mat < e->nmat_all; mat++) {
            params_hf_name(name, sizeof name, e, mat);
            TRY(get_shaped(r, name, e->rows, e->cols, e->is_init_one, &t));
            TRY(find_scale(r, t, &scale));
            TRY(safetensors_read_f32(r->st, name, 0, 0, NULL)); // a type that can be read
        }
    }
    for (int64_t b = 0; b < r->p->nblocks; b++) {
        if (r->p->bias[b]) TRY(find_bias(r, b, &t));
    }
    return OK;
}

Err hf_open(HfReader **out, const Safetensors *st, const char *dir, const Params *p, const Shape *s) {
    MEM_NEW(*out, 1);
    HfReader *r = *out;
    *r = (HfReader){.st = st, .dir = dir, .p = p, .s = s};
    MEM_NEW(r->is_used, safetensors_count(st) + 1);
    TRY(check_tensors(r));
    TRY(check_copies(r));
    return check_unused(r);
}

Weights hf_weights(HfReader *r) {
    return (Weights){r, master_rows, bias_of};
}

void hf_close(HfReader **r) {
    if (!*r) return;
    mem_free((*r)->is_used);
    mem_free(*r);
    *r = NULL;
}
