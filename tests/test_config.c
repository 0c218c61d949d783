// test_config.c - configuration: every key survives dump and reload, every rule and every kind of
// wrong input is refused with the place and the right words, and garbage never does more than that.
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
// after the system headers
#include <cmocka.h>

#include "config_keys.h"
#include "scratch_dir.h"

static char file[128];

// A complete small config; tests change single keys of it.
static const char base[] = "model:\n"
                           "  vocab_size: 512\n"
                           "  hidden_size: 64\n"
                           "  intermediate_size: 128\n"
                           "  moe_intermediate_size: 32\n"
                           "  num_hidden_layers: 3\n"
                           "  num_attention_heads: 4\n"
                           "  n_routed_experts: 8\n"
                           "  num_experts_per_tok: 2\n"
                           "  kv_lora_rank: 32\n"
                           "  qk_nope_head_dim: 16\n"
                           "  qk_rope_head_dim: 8\n"
                           "  v_head_dim: 16\n"
                           "train:\n"
                           "  steps: 100\n"
                           "  seq_len: 32\n"
                           "  global_batch: 8\n"
                           "data:\n"
                           "  train: [a.h5]\n"
                           "  eval: [b.h5]\n";

static Config *load_ok(const char *text, const char *const *sets, int nsets) {
    scratch_write(file, text, strlen(text));
    Config *c = NULL;
    Err err = config_load(&c, file, sets, nsets);
    if (err != OK) fail_msg("refused: %s", fail_message());
    return c;
}

static Config *load_set(const char *set) {
    return load_ok(base, &set, 1);
}

// The message must hold `words`, and the error is E_CONFIG.
static void refused(Err err, Config *c, const char *words) {
    if (err == OK) fail_msg("accepted, expected: %s", words);
    assert_int_equal(err, E_CONFIG);
    assert_null(c);
    if (!strstr(fail_message(), words)) fail_msg("'%s' lacks '%s'", fail_message(), words);
}

static void refuse_set(const char *set, const char *words) {
    scratch_write(file, base, strlen(base));
    Config *c = NULL;
    refused(config_load(&c, file, &set, 1), c, words);
}

static void refuse_text(const char *text, const char *words) {
    scratch_write(file, text, strlen(text));
    Config *c = NULL;
    refused(config_load(&c, file, NULL, 0), c, words);
}

// base with `from` replaced by `to`.
static void refuse_edit(const char *from, const char *to, const char *words) {
    char text[2048];
    const char *at = strstr(base, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - base), base, to, at + strlen(from));
    refuse_text(text, words);
}

static int setup(void **state) {
    if (scratch_setup(state) != 0) return -1;
    snprintf(file, sizeof file, "%s/run.yaml", scratch_dir);
    return 0;
}

static void test_defaults(void **state) {
    (void)state;
    Config *c = load_ok(base, NULL, 0);
    assert_int_equal(c->model.hidden_size, 64);
    assert_int_equal(c->model.n_shared_experts, 1);
    assert_int_equal(c->model.q_lora_rank, 0);
    assert_int_equal(c->model.topk_method, TOPK_NOAUX_TC);
    assert_true(c->model.norm_topk_prob);
    assert_false(c->model.has_rope_scaling);
    assert_true(c->model.rope_scaling_beta_fast == 32);
    assert_int_equal(c->precision.mode, MODE_FP8);
    assert_int_equal(c->parallel.ep, 1);
    assert_true(c->train.lr == 2.2e-4);
    assert_true(c->balance.gamma == 0.001);
    assert_int_equal(c->eval.every, 0);
    assert_null(c->data.tokenizer);
    assert_int_equal(c->data.train.n, 1);
    char expected[128];
    snprintf(expected, sizeof expected, "%s/a.h5", scratch_dir);
    assert_string_equal(c->data.train.v[0], expected);
    config_free(c);
}

static const char every_key[] =
    "model:\n"
    "  {vocab_size: 1000, hidden_size: 96, intermediate_size: 200, moe_intermediate_size: 44,\n"
    "  num_hidden_layers: 5, num_nextn_predict_layers: 2, num_attention_heads: 6, "
    "n_routed_experts: 12,\n"
    "  n_shared_experts: 2, num_experts_per_tok: 3, n_group: 3, topk_group: 2,\n"
    "  routed_scaling_factor: 2.5, norm_topk_prob: false, scoring_func: softmax,\n"
    "  topk_method: group_limited_greedy, first_k_dense_replace: 2, q_lora_rank: 24, kv_lora_rank: "
    "16,\n"
    "  qk_nope_head_dim: 12, qk_rope_head_dim: 6, v_head_dim: 10, rms_norm_eps: 1e-5,\n"
    "  rope_theta: 5e4, max_position_embeddings: 4096, initializer_range: 0.02,\n"
    "  tie_word_embeddings: true,\n"
    "  rope_scaling: {type: yarn, factor: 40, original_max_position_embeddings: 2048, beta_fast: "
    "30,\n"
    "    beta_slow: 2, mscale: 0.707, mscale_all_dim: 0.1}}\n"
    "precision: {mode: bf16}\n"
    "fp8: {scaling: static, scale_format: fp32, weight_scale_format: pow2, grad_scale_format: pow2,\n"
    "  grad_tile: 128x128, grad_format: e5m2, static_steps: 7, static_margin: 1.5, accumulate: hopper14,\n"
    "  cache_attn_out: codes, cache_swiglu: bf16, shadow_every: 50}\n"
    "recompute: {norm: false, mla_up: false, swiglu: false}\n"
    "parallel: {ep: 2, comm: nccl, nccl_timeout: 30}\n"
    "train:\n"
    "  {steps: 1000, seq_len: 64, global_batch: 48, micro_batch: 4, batch_start: 16,\n"
    "  batch_ramp_samples: 640, batch_quantum: 8, lr: 3.3e-4, warmup_steps: 10, constant_steps: "
    "20,\n"
    "  decay_steps: 30, min_lr: 1.1e-5, tail_steps: [40, 50], tail_lr: [1e-5, 0.1],\n"
    "  on_nonfinite: rollback, nonfinite_limit: 9,\n"
    "  beta1: 0.8, beta2: 0.99, eps: 1e-9, weight_decay: 0.05, clip: 0.5, document_mask: true, "
    "seed: 7}\n"
    "balance: {method: none, gamma: 0.01, freeze_step: 900, seq_alpha: 1e-3}\n"
    "mtp: {loss_weight: 0.5, loss_weight_late: 0.25, late_step: 500}\n"
    "data: {train: [a.h5, 'b \"c\\d.h5'], weights: [0.3, 0.7], eval: /e/f.h5, tokenizer: "
    "../t.json}\n"
    "eval: {every: 100, max_sequences: 5}\n"
    "checkpoint: {every: 200, keep_last: 3, keep_every: 400, async: false, on_error: continue}\n"
    "straggler: {factor: 1.5, steps: 7}\n"
    "watchdog: {start: 11, data: 12, step: 13, save: 14, eval: 0}\n"
    "log: {every: 5}\n"
    "debug: {state_hash: true, unfused: true}\n";

static char *key_text(const Config *c, const Key *k) {
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    keys_write(out, c, k);
    fclose(out);
    return text;
}

// Every key differs from its default, and is the same to the bit after dump and reload.
static void test_all_keys_round_trip(void **state) {
    (void)state;
    Config *a = load_ok(every_key, NULL, 0);
    Config defaults = {0};
    keys_defaults(&defaults);
    char *dump = NULL;
    assert_int_equal(config_dump(a, &dump), OK);
    Config *b = load_ok(dump, NULL, 0);
    for (int i = 0; i < keys_count(); i++) {
        const Key *k = keys_at(i);
        const char *name = keys_name(k).s;
        char *x = key_text(a, k);
        char *y = key_text(b, k);
        char *d = key_text(&defaults, k);
        if (strcmp(x, y) != 0) fail_msg("%s: %s became %s", name, x, y);
        if (!strcmp(x, d))
            fail_msg("%s: this test does not change the default %s", name, d);
        if (k->kind == KEY_REAL) {
            assert_memory_equal(keys_value(a, k), keys_value(b, k), sizeof(double));
        }
        free(x);
        free(y);
        free(d);
    }
    assert_string_equal(strrchr(b->data.train.v[1], '/'), "/b \"c\\d.h5");
    assert_string_equal(b->data.eval.v[0], "/e/f.h5");
    assert_string_equal(b->data.tokenizer, "/tmp/t.json");
    assert_true(b->train.tail_lr.v[1] == 0.1);
    assert_int_equal(b->train.tail_steps.v[1], 50);
    char *again = NULL;
    assert_int_equal(config_dump(b, &again), OK);
    assert_string_equal(dump, again);
    free(dump);
    free(again);
    config_free(a);
    config_free(b);
}

static void test_sets(void **state) {
    (void)state;
    Config *c = load_set("train.lr=1e-3");
    assert_true(c->train.lr == 1e-3);
    config_free(c);
    c = load_set("fp8.accumulate=promote128_hopper14");
    assert_int_equal(c->fp8.accumulate, ACCUMULATE_PROMOTE128_HOPPER14);
    assert_string_equal(config_choice(c, "fp8", "accumulate").s, "promote128_hopper14");
    assert_string_equal(config_choice(c, "fp8", "scale_format").s, "pow2");
    assert_string_equal(config_choice(c, "fp8", "accumulates").s, "");
    assert_string_equal(config_choice(c, "train", "lr").s, "");
    config_free(c);
    c = load_set("model.rope_scaling.factor=40");
    assert_true(c->model.has_rope_scaling && c->model.rope_scaling_factor == 40);
    config_free(c);
    c = load_set("model.rope_scaling={rope_type: yarn, factor: 4, mscale: 1}");
    assert_true(c->model.has_rope_scaling && c->model.rope_scaling_mscale == 1);
    config_free(c);
    const char *both[] = {"model.rope_scaling.factor=40", "model.rope_scaling=null"};
    c = load_ok(base, both, 2);
    assert_true(!c->model.has_rope_scaling && c->model.rope_scaling_factor == 0);
    config_free(c);
    c = load_set("data.train=[x, /y]");
    char cwd[512], expected[600];
    assert_non_null(getcwd(cwd, sizeof cwd));
    snprintf(expected, sizeof expected, "%s/x", cwd);
    assert_int_equal(c->data.train.n, 2);
    assert_string_equal(c->data.train.v[0], expected);
    assert_string_equal(c->data.train.v[1], "/y");
    config_free(c);
    c = load_set("data.eval=");
    assert_int_equal(c->data.eval.n, 0);
    config_free(c);
    const char *twice[] = {"train.steps=5", "train.steps=6"}; // the last one counts
    c = load_ok(base, twice, 2);
    assert_int_equal(c->train.steps, 6);
    config_free(c);
    // Without a file everything can come from --set.
    Config *none = NULL;
    refused(config_load(&none, NULL, both, 2), none,
            "--set: missing and without a default: model.vocab_size");
    refuse_set("train.lr", "found no '='");
    refuse_set("steps=3", "expected section.key=value; did you mean train.steps?");
    refuse_set("train.stepz=3",
               "--set train.stepz=3: unknown key train.stepz; did you mean train.steps?");
    refuse_set("trian.steps=3", "unknown section trian; did you mean train?");
    refuse_set("train.ep=3", "did you mean parallel.ep?");
    refuse_set("model.rope_scaling.facto=3", "did you mean model.rope_scaling.factor?");
    refuse_set("train.steps.more=3", "unknown key train.steps.more");
    refuse_set("train.steps=[1, 2]", "found a list");
    refuse_set("train.steps=1 \n--- \n2", "a second YAML document");
    refuse_set("train.steps=[1", "not YAML");
}

static void test_numbers(void **state) {
    (void)state;
    const char *whole = "train.steps: expected a whole number from 1 to 1000000000 steps, found";
    refuse_set("train.steps=abc", whole);
    refuse_set("train.steps=1e3", whole);
    refuse_set("train.steps=1.5", whole);
    refuse_set("train.steps=010", whole);
    refuse_set("train.steps=0x10", whole);
    refuse_set("train.steps=0", whole);
    refuse_set("train.steps=-1", whole);
    refuse_set("train.steps=null", whole);
    refuse_set("train.steps=99999999999999999999999", whole);
    refuse_set("train.steps='100'", "found the text \"100\"");
    refuse_set("train.steps=true", whole);
    refuse_set("train.lr=.inf", "train.lr: expected a number from 0 to 10, found '.inf'");
    refuse_set("train.lr=.nan", "found '.nan'");
    refuse_set("train.lr=inf", "found 'inf'");
    refuse_set("train.lr=1e999", "found '1e999'");
    refuse_set("train.lr=0x1p3", "found '0x1p3'");
    refuse_set("train.lr=1e-3x", "found '1e-3x'");
    refuse_set("train.lr=-1e-3", "from 0 to 10");
    refuse_set("train.lr=", "found nothing");
    refuse_set("train.document_mask=yes", "expected true or false, found 'yes'");
    refuse_set("precision.mode=fp16", "expected one of fp32|bf16|fp8, found 'fp16'");
    refuse_set("precision.mode=fp", "expected one of");
    refuse_set("train.tail_steps=[1, x]", "expected a list of whole numbers, found 'x'");
    refuse_set("train.tail_lr={a: 1}", "found a map");
    refuse_set("data.train=[a, '']", "expected a list of paths");
    refuse_set("data.tokenizer=[a]", "expected a path, or null, found a list");
    refuse_set("model.rope_scaling=yarn", "expected a map of keys, or null");
    refuse_set("model.rope_scaling={type: linear, factor: 2}",
               "type: expected yarn, found 'linear'");
    const char *fine[] = {"train.lr=2.2e-4", "train.lr=1", "train.lr=.5", "train.lr=1E-3",
                          "train.lr=+0.25"};
    const double value[] = {2.2e-4, 1, .5, 1e-3, .25};
    for (int i = 0; i < 5; i++) {
        Config *c = load_set(fine[i]);
        assert_true(c->train.lr == value[i]);
        config_free(c);
    }
}

static void test_files(void **state) {
    (void)state;
    Config *c = NULL;
    refused(config_load(&c, "/nonexistent/run.yaml", NULL, 0), c,
            "/nonexistent/run.yaml: No such file");
    refused(config_load(&c, "/tmp", NULL, 0), c, "/tmp: Is a directory");
    refuse_text("", "run.yaml: missing and without a default: model.vocab_size, model.hidden_size");
    assert_non_null(strstr(fail_message(), "(and data.train, to train)"));
    assert_non_null(strstr(fail_message(), "train.global_batch"));
    refuse_text("# nothing\n", "missing and without a default");
    refuse_text("model:\n", "missing and without a default");
    refuse_text("hello", "run.yaml:1: expected sections such as 'model:', found 'hello'");
    refuse_text("- a\n", "found a list");
    refuse_text("model: 3\n", "run.yaml:1: section model: expected keys, found '3'");
    refuse_text("model: {[a]: 3}\n", "expected the name of a key");
    refuse_edit("  steps: 100\n", "", "missing and without a default: train.steps");
    assert_null(strstr(fail_message(), "data.train"));
    refuse_edit("  hidden_size: 64\n", "  hiden_size: 64\n",
                "run.yaml:3: unknown key model.hiden_size; did you mean model.hidden_size?");
    refuse_edit("  steps: 100\n", "  steps: 100\n  steps: 100\n",
                "run.yaml:16: train.steps is given twice, first on line 15");
    refuse_edit("data:\n", "model:\n",
                "run.yaml:18: section model is given twice, first on line 1");
    refuse_edit("data:\n", "steps:\n", "unknown section steps; did you mean train.steps?");
    refuse_edit("data:\n", "data: *x\n", "run.yaml:18: not YAML");
    refuse_edit("steps: 100", "steps: \"10\\0\"", "expected a whole number");
    refuse_edit("steps: 100", "\"steps\\0x\": 100", "NUL in the name");
    refuse_text("model: {hidden_size: 64\n", "not YAML");
    refuse_text("model:\n\tx: 1\n", "run.yaml:2: not YAML");
    refuse_text("\xff\xfe\xff", "not YAML");
    refuse_text("a: {}\n---\nb: {}\n", "unknown section a");
    refuse_text("train: {steps: 3}\n--- \ntrain: {}\n", "run.yaml:3: a second YAML document");
    char *large = malloc(2 << 20);
    memset(large, '#', 2 << 20);
    scratch_write(file, large, 2 << 20);
    refused(config_load(&c, file, NULL, 0), c, "not a config");
    free(large);
}

static void test_rules(void **state) {
    (void)state;
    static const char *const table[][2] = {
        {"model.n_group=3", "model.n_group (3) does not divide model.n_routed_experts (8)"},
        {"model.topk_group=2", "model.topk_group (2) is above model.n_group (1)"},
        {"model.num_experts_per_tok=9",
         "model.num_experts_per_tok (9) is above model.n_routed_experts"},
        {"model.n_group=8",
         "num_experts_per_tok (2) is above model.n_routed_experts / model.n_group * "
         "model.topk_group (8 / 8 * 1 = 1)"},
        {"model.topk_method=greedy", "balance.method bias needs model.topk_method noaux_tc"},
        {"model.qk_rope_head_dim=7", "model.qk_rope_head_dim (7) is odd"},
        {"model.first_k_dense_replace=4",
         "first_k_dense_replace (4) is above model.num_hidden_layers (3)"},
        {"model.hidden_size=66", "model.hidden_size (66) is not a multiple of 4"},
        {"model.rms_norm_eps=0", "model.rms_norm_eps (0) must be above 0"},
        {"model.rope_scaling={}", "model.rope_scaling.factor (0) must be at least 1"},
        {"model.rope_scaling={factor: 2, beta_slow: 40}", "beta_fast (32) is below"},
        {"train.tail_steps=[1]", "train.tail_steps has 1 entries, train.tail_lr has 0"},
        {"train.warmup_steps=101", "(101 + 0 + 0 + 0 = 101) is above train.steps (100)"},
        {"train.min_lr=1e-3", "train.min_lr (0.001) is above train.lr (0.00022)"},
        {"train.beta2=1", "train.beta2 (1) must be below 1"},
        {"train.micro_batch=3", "train.micro_batch (3) does not divide train.global_batch (8)"},
        {"train.batch_quantum=3", "train.batch_quantum (3) does not divide train.global_batch (8)"},
        {"train.batch_start=9", "train.batch_start (9) is above train.global_batch (8)"},
        {"train.batch_start=4", "needs train.batch_ramp_samples"},
        {"train.batch_ramp_samples=4", "needs train.batch_start"},
        {"data.weights=[1, 2]", "data.weights has 2 entries, data.train has 1"},
        {"data.weights=[0]", "data.weights: 0 must be above 0"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        refuse_set(table[i][0], table[i][1]);
    scratch_write(file, base, strlen(base));
    Config *c = NULL;
    const char *no_eval[] = {"data.eval=[]", "eval.every=5"};
    refused(config_load(&c, file, no_eval, 2), c, "eval.every (5) needs data.eval");
    const char *fp32_scales[] = {"fp8.scale_format=fp32", "model.kv_lora_rank=30"};
    refused(config_load(&c, file, fp32_scales, 2), c,
            "model.kv_lora_rank (30) is not a multiple of 4, which fp8.scale_format fp32 needs");
    const char *fp32_gradients[] = {"fp8.grad_scale_format=fp32", "model.kv_lora_rank=30"};
    refused(config_load(&c, file, fp32_gradients, 2), c, "which fp8.grad_scale_format fp32 needs");
    const char *groups[] = {"model.n_group=8", "model.topk_group=8"};
    refused(config_load(&c, file, groups, 2), c, "8 / 8 = 1");
    const char *greedy[] = {"model.n_group=2", "model.topk_method=greedy", "balance.method=none"};
    refused(config_load(&c, file, greedy, 3), c, "greedy has no groups");
    const char *ramp[] = {"train.batch_start=2", "train.batch_ramp_samples=9",
                          "train.batch_quantum=4"};
    refused(config_load(&c, file, ramp, 3), c,
            "train.batch_quantum (4) does not divide train.batch_start (2)");
    const char *tail[] = {"train.tail_steps=[0]", "train.tail_lr=[1e-5]"};
    refused(config_load(&c, file, tail, 2), c, "train.tail_steps: 0 is not");
    const char *tail_lr[] = {"train.tail_steps=[3]", "train.tail_lr=[11]"};
    refused(config_load(&c, file, tail_lr, 2), c, "train.tail_lr: 11 is not");
}

static void test_world(void **state) {
    (void)state;
    const char *sets[] = {"parallel.ep=2", "train.micro_batch=2", "train.batch_start=4",
                          "train.batch_ramp_samples=8", "train.batch_quantum=4"};
    Config *c = load_ok(base, sets, 5);
    assert_int_equal(config_check_world(c, 2), OK);
    assert_int_equal(config_check_world(c, 4), E_CONFIG);
    assert_non_null(strstr(
        fail_message(), "world * train.micro_batch (4 * 2 = 8) does not divide train.batch_start"));
    assert_int_equal(config_check_world(c, 3), E_CONFIG);
    assert_non_null(strstr(fail_message(), "parallel.ep (2) does not divide the world (3): run on a multiple of 2"));
    assert_int_equal(config_check_world(c, 1), E_CONFIG);
    assert_int_equal(config_check_world(c, 6), E_CONFIG);
    assert_non_null(strstr(fail_message(), "(6 * 2 = 12) does not divide train.global_batch (8)"));
    assert_int_equal(config_check_train(c), OK);
    config_free(c);
    // The world comes first: it is what a user changes from run to run.
    c = load_set("parallel.ep=3");
    assert_int_equal(config_check_world(c, 4), E_CONFIG);
    assert_non_null(strstr(fail_message(), "parallel.ep (3) does not divide the world (4): run on a multiple of 3"));
    assert_int_equal(config_check_world(c, 6), E_CONFIG);
    assert_string_equal(fail_message(),
                        "parallel.ep (3) does not divide model.n_routed_experts (8)");
    config_free(c);
    c = load_set("data.train=[]");
    assert_int_equal(config_check_train(c), E_CONFIG);
    config_free(c);
}

// The committed configurations are accepted, on the worlds they are meant for. Runs in the
// project's root.
static void test_committed_configs(void **state) {
    (void)state;
    static const struct {
        const char *path;
        int world;
    } table[] = {
        {"configs/tiny.yaml", 1},           {"configs/tiny.yaml", 2},
        {"configs/tiny.yaml", 4},           {"configs/tiny.yaml", 8},
        {"configs/quickstart.yaml", 2},     {"configs/small.yaml", 4},
        {"configs/small.yaml", 16},         {"configs/deepseek_v3.yaml", 64},
        {"configs/deepseek_v3.yaml", 1024}, {"configs/deepseek_v2_lite.yaml", 8},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        Config *c = NULL;
        if (config_load(&c, table[i].path, NULL, 0) != OK) fail_msg("%s", fail_message());
        if (config_check_world(c, table[i].world) != OK)
            fail_msg("%s: %s", table[i].path, fail_message());
        assert_int_equal(config_check_train(c), OK);
        config_free(c);
    }
}

static char changes[256];
static void note_change(const char *key, const char *was, const char *is) {
    size_t n = strlen(changes);
    snprintf(changes + n, sizeof changes - n, "%s %s->%s;", key, was, is);
}

static void test_resume(void **state) {
    (void)state;
    Config *a = load_ok(base, NULL, 0);
    const char *may[] = {"train.steps=200", "data.train=[elsewhere.h5]", "parallel.ep=4"};
    Config *b = load_ok(base, may, 3);
    changes[0] = '\0';
    assert_int_equal(config_compare_resume(a, b, note_change), OK);
    assert_string_equal(changes, "parallel.ep 1->4;train.steps 100->200;");
    config_free(b);
    const char *same[] = {"train.steps=200", "train.seq_len=64"};
    b = load_ok(base, same, 2);
    changes[0] = '\0';
    assert_int_equal(config_compare_resume(a, b, note_change), E_CONFIG);
    assert_non_null(strstr(fail_message(), "train.seq_len is 32 in the checkpoint and 64 now"));
    assert_string_equal(changes, "");
    config_free(b);
    b = load_set("model.rope_scaling.factor=4");
    assert_int_equal(config_compare_resume(a, b, NULL), E_CONFIG);
    config_free(b);
    config_free(a);
}

static void test_help_and_name(void **state) {
    (void)state;
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    config_help(out);
    fclose(out);
    for (int i = 0; i < keys_count(); i++) {
        assert_non_null(strstr(text, keys_at(i)->name));
        assert_non_null(strstr(text, keys_at(i)->help));
    }
    free(text);
    char name[32];
    config_name(name, sizeof name, "configs/tiny.yaml");
    assert_string_equal(name, "tiny");
    config_name(name, sizeof name, "a.b.yml");
    assert_string_equal(name, "a.b");
    config_name(name, sizeof name, ".hidden");
    assert_string_equal(name, ".hidden");
}

// Mutations of a good file: accepted or E_CONFIG, never anything else (run under the sanitizers
// too).
static void test_garbage(void **state) {
    (void)state;
    char text[sizeof every_key + 64];
    int naccepted = 0;
    for (uint32_t round = 0; round < 3000; round++) {
        size_t n = sizeof every_key - 1;
        memcpy(text, every_key, n);
        uint32_t x = round * 2654435761u + 12345u;
        int nedits = 1 + (int)(round % 4);
        for (int e = 0; e < nedits && n > 0; e++) {
            x = x * 1664525u + 1013904223u;
            size_t at = (x >> 8) % n;
            x = x * 1664525u + 1013904223u;
            static const char spice[] = "\0\n\t {}[]:,-'\"&*!|>%@`#?~019.eE\xff\x80";
            switch ((x >> 28) & 3) {
            case 0: text[at] = spice[(x >> 8) % (sizeof spice - 1)]; break;
            case 1: text[at] = (char)(x >> 16); break;
            case 2: // delete a stretch
                memmove(text + at, text + at + 1, n - at - 1);
                n--;
                break;
            default: // cut the file
                if ((x & 0xff) < 40) n = at + 1;
                break;
            }
        }
        scratch_write(file, text, n);
        Config *c = NULL;
        Err err = config_load(&c, file, NULL, 0);
        assert_true(err == OK || err == E_CONFIG);
        assert_true((err == OK) == (c != NULL));
        naccepted += err == OK;
        config_free(c);
        fail_clear();
    }
    assert_in_range(naccepted, 1, 2999);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),      cmocka_unit_test(test_all_keys_round_trip),
        cmocka_unit_test(test_sets),          cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_files),         cmocka_unit_test(test_rules),
        cmocka_unit_test(test_world),         cmocka_unit_test(test_resume),
        cmocka_unit_test(test_help_and_name), cmocka_unit_test(test_committed_configs),
        cmocka_unit_test(test_garbage),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
