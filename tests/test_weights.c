// test_weights.c - weights that are carried from files to files: never more than a strip at a time, every number where
// it belongs, and nothing left of what cannot be finished.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint.h"
#include "checkpoint_fixture.h"
#include "hf.h"
#include "log.h"
#include "must.h"
#include "scratch_dir.h"
#include "solo.h"

static int setup(void **state) {
    log_init(1, 2); // no lines
    return scratch_setup(state);
}

// A source that is no memory: every number is a function of name and place.
typedef struct Made {
    const Params *p;
    const char *broken; // entry that cannot be read
    int64_t most;       // bytes asked for at once
} Made;

static Err made_rows(void *of, const Param *p, int64_t first, int64_t n, float *out) {
    Made *m = of;
    int64_t count = n * p->cols, rows = p->nmat_all * p->rows;
    CHECK(!m->broken || strcmp(m->broken, p->name) != 0, E_INPUT, "%s: cannot be read", p->name);
    assert_true(first >= 0 && n > 0 && first + n <= rows);
    assert_true(count <= STRIP_NUMBERS);
    m->most = max_i64(m->most, count * (int64_t)sizeof *out);
    for (int64_t i = 0; i < count; i++) out[i] = fixture_value(p->name, 0, first * p->cols + i);
    return OK;
}

static Err made_bias(void *of, int64_t block, float *out) {
    Made *m = of;
    for (int64_t e = 0; e < m->p->E; e++) out[e] = fixture_value("bias", (int)block, e);
    return OK;
}

typedef struct Table {
    Config *c;
    Solo solo;
    Made made;
    Weights from;
} Table;

// A model whose tables of tokens are larger than a strip.
static void table_open(Table *t) {
    static const char *const sets[] = {
        "model.vocab_size=5000",          "model.hidden_size=900",         "model.intermediate_size=130",
        "model.num_hidden_layers=2",      "model.first_k_dense_replace=1", "model.num_attention_heads=1",
        "model.kv_lora_rank=16",          "model.qk_nope_head_dim=16",     "model.qk_rope_head_dim=8",
        "model.v_head_dim=16",            "train.steps=1",                 "train.seq_len=8",
        "train.global_batch=1",           "model.n_routed_experts=4",      "model.num_experts_per_tok=2",
        "model.moe_intermediate_size=20", "model.num_nextn_predict_layers=1"};
    memset(t, 0, sizeof *t);
    MUST_OK(config_load(&t->c, NULL, sets, sizeof sets / sizeof *sets));
    MUST_OK(solo_table(&t->solo, t->c, 1));
    t->made = (Made){.p = t->solo.table};
    t->from = (Weights){&t->made, made_rows, made_bias};
}

static void table_close(Table *t) {
    solo_close(&t->solo);
    config_free(t->c);
}

static Err save(Table *t) {
    CheckpointInfo info = {.world = 1, .ep = 1};
    return checkpoint_save_from(at("run/checkpoints"), t->solo.table, &t->from, &t->solo.cx, &info, t->c);
}

// What a source holds, in strips that end nowhere in particular.
static void check_source(const Table *t, const Weights *from) {
    float *x = malloc(2000 * 1800 * sizeof *x);
    for (int i = 0; i < t->solo.table->n; i++) {
        const Param *p = &t->solo.table->p[i];
        int64_t rows = p->nmat_all * p->rows;
        for (int64_t row = 0, n; row < rows; row += n) {
            n = min_i64(rows - row, 1 + (row * 7 + i) % 1999);
            MUST_OK(from->rows(from->of, p, row, n, x));
            for (int64_t k = 0; k < n * p->cols; k++) {
                if (x[k] != fixture_value(p->name, 0, row * p->cols + k))
                    fail_msg("%s: row %lld, number %lld", p->name, (long long)row, (long long)k);
            }
        }
    }
    MUST_OK(from->bias(from->of, 1, x));
    for (int64_t e = 0; e < t->solo.table->E; e++) assert_true(x[e] == fixture_value("bias", 1, e));
    free(x);
}

static void strips_there_and_back(void **state) {
    (void)state;
    Table t;
    CkReader *r = NULL;
    HfReader *hf = NULL;
    Safetensors *st = NULL;
    table_open(&t);
    MUST_OK(save(&t));
    assert_true(t.made.most > (8 << 20)); // there was something to divide
    MUST_OK(checkpoint_verify(at("run/checkpoints/step_00000000")));
    MUST_OK(checkpoint_open(&r, at("run/checkpoints/step_00000000"), t.solo.table, &t.solo.cx));
    Weights from = checkpoint_weights(r);
    check_source(&t, &from);
    HfExport how = {.dtype = HF_F32, .shard_bytes = 1 << 20};
    MUST_OK(hf_export(at("out"), t.solo.table, &from, &t.solo.shape, t.c, &t.solo.cx, &how));
    checkpoint_close(&r);
    MUST_OK(safetensors_open(&st, at("out")));
    MUST_OK(hf_open(&hf, st, at("out"), t.solo.table, &t.solo.shape));
    from = hf_weights(hf);
    check_source(&t, &from);
    hf_close(&hf);
    safetensors_close(&st);
    t.made.most = 0;
    how = (HfExport){.dtype = HF_FP8}; // straight from the source, which counts
    MUST_OK(hf_export(at("fp8"), t.solo.table, &t.from, &t.solo.shape, t.c, &t.solo.cx, &how));
    assert_true(t.made.most > (8 << 20));
    table_close(&t);
}

// A source that fails is the user's input, not a disk that reads back otherwise; nothing half-written stays.
static void what_cannot_be_read(void **state) {
    (void)state;
    Table t;
    table_open(&t);
    t.made.broken = "model.layers.1.mlp.experts.up_proj.weight";
    MUST_FAIL(save(&t), E_INPUT, "model.layers.1.mlp.experts.up_proj.weight: cannot be read");
    assert_int_not_equal(access(at("run/checkpoints/step_00000000.partial"), F_OK), 0);
    HfExport how = {0};
    MUST_FAIL(hf_export(at("broken"), t.solo.table, &t.from, &t.solo.shape, t.c, &t.solo.cx, &how), E_INPUT,
              "cannot be read");
    assert_int_not_equal(access(at("broken"), F_OK), 0);
    table_close(&t);
}

// Bytes of a checkpoint that changed after it was found: the export says which tensor, and leaves nothing.
static void damage_is_seen(void **state) {
    (void)state;
    Table t;
    CkReader *r = NULL;
    table_open(&t);
    MUST_OK(save(&t));
    FILE *f = fopen(at("run/checkpoints/step_00000000/shard_00000.h5"), "r+");
    assert_non_null(f);
    assert_int_equal(fseek(f, 5 << 20, SEEK_SET), 0);
    assert_true(fputs("damage", f) >= 0);
    fclose(f);
    MUST_OK(checkpoint_open(&r, at("run/checkpoints/step_00000000"), t.solo.table, &t.solo.cx));
    Weights from = checkpoint_weights(r);
    HfExport how = {0};
    MUST_FAIL(hf_export(at("damaged"), t.solo.table, &from, &t.solo.shape, t.c, &t.solo.cx, &how), E_INPUT,
              "shard_00000.h5: cannot read tensor model.");
    assert_int_not_equal(access(at("damaged"), F_OK), 0);
    checkpoint_close(&r);
    table_close(&t);
}

static void says_how_far(void **state) {
    (void)state;
    char text[200] = "";
    log_init(0, 1);
    MUST_OK(log_open(at("log")));
    Carried c = carried_begin("exported", 4000);
    carried_add(&c, 500); // too early to say anything
    c.start -= 20;
    c.said -= 20;
    carried_add(&c, 500);
    carried_add(&c, 500);
    log_close();
    log_init(1, 2);
    FILE *f = fopen(at("log"), "r");
    assert_non_null(f);
    assert_true(fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    assert_string_equal(text, "exported 1000 B of 3.91 KiB, 50 B/s, eta 1m00s\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(strips_there_and_back, setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(what_cannot_be_read, setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(damage_is_seen, setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(says_how_far, setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
