// hf_loaded.h - golden cases (tests/golden) and exports of the test's own, imported, exported and compared.
#pragma once
#include "hf_masters.h"
#include "must.h"
#include "scratch_dir.h"
#include "solo.h"

#define GOLDEN "tests/golden/"

// clean: nothing is left in the folder of the test.
static inline void clean(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s/*", scratch_dir);
    assert_int_equal(system(command), 0);
}

// An imported directory.
typedef struct Loaded {
    Safetensors *st;
    Config *c;
    Solo solo;
} Loaded;

static inline Err load_as(Loaded *l, const char *dir, int mode, int64_t B, int64_t S) {
    memset(l, 0, sizeof *l);
    TRY(safetensors_open(&l->st, dir));
    TRY(hf_import_config(&l->c, dir, l->st));
    l->c->precision.mode = mode;
    l->c->train.micro_batch = B;
    l->c->train.seq_len = S;
    TRY(solo_open(&l->solo, l->c, false, 1));
    return import_weights(l->st, dir, model_params(l->solo.model), &l->solo.shape);
}

// load: in the mode that is the default, for passes of one short sequence.
static inline Err load(Loaded *l, const char *dir) {
    return load_as(l, dir, MODE_FP8, 1, 16);
}

static inline void unload(Loaded *l) {
    solo_close(&l->solo);
    config_free(l->c);
    safetensors_close(&l->st);
}

static inline Err export(Loaded *l, const char *dir, HfExport how) {
    Params *p = model_params(l->solo.model);
    Weights from = masters(p);
    return hf_export(dir, p, &from, &l->solo.shape, l->c, &l->solo.cx, &how);
}

// Same names, types, shapes and bytes.
static inline void same_tensors(const char *a, const char *b) {
    Safetensors *x = NULL, *y = NULL;
    MUST_OK(safetensors_open(&x, a));
    MUST_OK(safetensors_open(&y, b));
    assert_int_equal(safetensors_count(x), safetensors_count(y));
    for (int64_t i = 0; i < safetensors_count(x); i++) {
        const StTensor *p = safetensors_at(x, i), *q = safetensors_at(y, i);
        assert_string_equal(p->name, q->name);
        assert_int_equal(p->dtype, q->dtype);
        assert_int_equal(p->ndim, q->ndim);
        assert_memory_equal(p->shape, q->shape, sizeof p->shape[0] * (size_t)p->ndim);
        assert_memory_equal(p->data, q->data, p->bytes);
    }
    safetensors_close(&x);
    safetensors_close(&y);
}
