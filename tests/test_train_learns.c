// test_train_learns.c - training works: the loss falls, the program writes text with what it learned, a small model
// learns to copy in context, and FP8 halves the bytes that travel.
//
// The copy task: random strings of symbols, repeated. Nothing can be learned about the symbols themselves, so every
// right guess on the repeat is attention, positions, masks, experts and the optimizer working together; a first
// occurrence guessed better than by chance would be a mask that leaks.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "drive.h"
#include "evaluate.h"
#include "tensorfile.h"
#include "tokens.h"

#define COPY_LEN 64
#define COPY_VOCAB 64
#define COPY_SEQUENCES 16384

static void write_copy_shard(const char *path) {
    TokenMeta meta = {.vocab_size = COPY_VOCAB, .bos_id = -1, .eos_id = -1, .pad_id = -1};
    TokenWriter *w = NULL;
    int32_t tokens[COPY_LEN];
    snprintf(meta.source_name, sizeof meta.source_name, "copy task");
    snprintf(meta.split, sizeof meta.split, "train");
    assert_int_equal(token_writer_open(&w, path, &meta, 0), OK);
    for (uint64_t i = 0; i < COPY_SEQUENCES; i++) { // windows are COPY_LEN apart: each is one string and its repeats
        copy_sequence(tokens, COPY_LEN, 3, COPY_VOCAB, 77, i);
        assert_int_equal(token_writer_add(w, tokens, COPY_LEN, COPY_LEN, i), OK);
    }
    assert_int_equal(token_writer_finish(&w, 1), OK);
}

static const char copy_config[] = "model:\n"
                                  "  vocab_size: 64\n"
                                  "  hidden_size: 64\n"
                                  "  intermediate_size: 128\n"
                                  "  moe_intermediate_size: 64\n"
                                  "  num_hidden_layers: 2\n"
                                  "  num_attention_heads: 4\n"
                                  "  n_routed_experts: 8\n"
                                  "  n_shared_experts: 1\n"
                                  "  num_experts_per_tok: 2\n"
                                  "  first_k_dense_replace: 0\n"
                                  "  kv_lora_rank: 32\n"
                                  "  qk_nope_head_dim: 16\n"
                                  "  qk_rope_head_dim: 16\n"
                                  "  v_head_dim: 16\n"
                                  "  initializer_range: 0.05\n"
                                  "train:\n"
                                  "  steps: 700\n"
                                  "  seq_len: 64\n"
                                  "  global_batch: 32\n"
                                  "  micro_batch: 16\n"
                                  "  lr: 2e-3\n"
                                  "  warmup_steps: 20\n"
                                  "  min_lr: 1e-3\n"
                                  "  seed: 1\n"
                                  "data:\n"
                                  "  train: [copy.h5]\n"
                                  "log:\n"
                                  "  every: 50\n";

static void test_copy(void **state) {
    (void)state;
    const char *dir = path_of("copy"), *json = path_of("copy.json");
    size_t n = 0;
    write_copy_shard(path_of("copy.h5"));
    write_file(path_of("copy.yaml"), copy_config, strlen(copy_config));
    run_ok(2, "train --config %s --run-dir %s --set precision.mode=fp8 --set parallel.ep=2 --threads 1",
           path_of("copy.yaml"), dir);
    run_ok(1, "eval --checkpoint %s --copy 256 --json %s", dir, json);
    char *text = read_file(json, &n);
    double repeat = json_number(text, "repeat_accuracy"), control = json_number(text, "control_accuracy");
    print_message("copy: %.3f on the repeat, %.4f on the first occurrence\n", repeat, control);
    assert_true(fabs(json_number(text, "chance") - 1.0 / 61.0) < 1e-6);
    if (!(repeat >= 0.8)) fail_msg("accuracy on the repeat is %.3f", repeat);
    if (!(control <= 3.0 / 61.0)) fail_msg("accuracy on the first occurrence is %.4f", control);
    free(text);
}

// An untrained model guesses by chance on both: the score is not the test's own doing.
static void test_copy_untrained(void **state) {
    (void)state;
    const char *dir = path_of("untrained"), *json = path_of("untrained.json");
    size_t n = 0;
    if (!has_file(path_of("copy.h5"))) write_copy_shard(path_of("copy.h5"));
    write_file(path_of("copy.yaml"), copy_config, strlen(copy_config));
    run_ok(1, "train --config %s --run-dir %s --set precision.mode=fp32 --steps 1 --threads 1", path_of("copy.yaml"),
           dir);
    run_ok(1, "eval --checkpoint %s --copy 64 --json %s", dir, json);
    char *text = read_file(json, &n);
    assert_true(json_number(text, "repeat_accuracy") < 0.1);
    assert_true(json_number(text, "control_accuracy") < 0.1);
    free(text);
}

static void test_loss_falls(void **state) {
    (void)state;
    const char *dir = path_of("falls"), *json = path_of("heldout.json");
    size_t n = 0;
    run_ok(2, "train --config %s/configs/tiny.yaml --run-dir %s --steps 60 --set parallel.ep=2 --set log.every=20 "
              "--threads 1",
           drive_source(), dir);
    Steps s = steps_read(dir);
    double first = atof(step_text(&s, 1, "lm_loss")), last = steps_mean(&s, "lm_loss", 51, 60);
    double mtp_first = atof(step_text(&s, 1, "mtp_loss")), mtp_last = steps_mean(&s, "mtp_loss", 51, 60);
    print_message("lm_loss %.3f to %.3f, mtp_loss %.3f to %.3f\n", first, last, mtp_first, mtp_last);
    assert_true(fabs(first - log(512.0)) < 0.3); // nothing known yet
    assert_true(last < first - 1.5);
    assert_true(mtp_last < mtp_first - 1.0);
    for (int i = 1; i <= 60; i++) { // what the line promises to be made of
        double want = atof(step_text(&s, i, "lm_loss")) + 0.3 * atof(step_text(&s, i, "mtp_loss")) +
                      atof(step_text(&s, i, "balance_loss"));
        assert_true(fabs(atof(step_text(&s, i, "loss")) - want) <= 1e-5 * want);
    }
    steps_free(&s);
    // Text that it never saw got easier, too.
    run_ok(1, "eval --checkpoint %s --data %s/data/samples/tiny.heldout.h5 --json %s", dir, drive_source(), json);
    char *text = read_file(json, &n);
    double heldout = json_number(text, "loss");
    print_message("held-out loss %.3f, %.3f bits per byte\n", heldout, json_number(text, "bits_per_byte"));
    assert_true(heldout < first - 1.3 && heldout > 1.0);
    free(text);
}

// generated: standard output of a `generate` of the run of test_loss_falls with these words; copied.
static char *generated(const char *words) {
    Job j;
    assert_int_equal(run(&j, 1, "generate --checkpoint %s --tokenizer %s/data/samples/tiny.tokenizer.json %s",
                         path_of("falls"), drive_source(), words),
                     0);
    return strdup(j.out);
}

// expect_refused: generate ends with that code and says so.
static void expect_refused(int code, const char *says, const char *words) {
    Job j;
    run(&j, 1, "generate --checkpoint %s %s", path_of("falls"), words);
    assert_ends(&j, code);
    assert_says(&j, says);
}

static void test_generate(void **state) {
    (void)state;
    size_t n = 0;
    char words[512], json[256], prompt[256];
    snprintf(json, sizeof json, "%s", path_of("sample.json"));
    snprintf(prompt, sizeof prompt, "%s", path_of("prompt.txt"));
    write_file(prompt, "He had", 6);
    // The seed decides, not the threads; greedy, it does not.
    char *a = generated("--prompt He --max-tokens 90 --seed 3 --threads 1");
    char *b = generated("--prompt He --max-tokens 90 --seed 3 --threads 2");
    char *c = generated("--prompt He --max-tokens 90 --seed 4 --threads 2");
    char *d = generated("--prompt He --max-tokens 90 --seed 4 --temperature 0 --threads 1");
    char *e = generated("--prompt He --max-tokens 90 --temperature 0 --set precision.mode=fp8 --threads 2");
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    assert_string_equal(d, e);
    assert_true(strlen(a) > 90); // more than a byte a token, but for its end
    // A text in the middle of it, as a file's prompt; --stop ends before it comes, wherever tokens end.
    snprintf(words, sizeof words, "--prompt-file %s --max-tokens 60 --top-k 20 --top-p 0.9 --json %s", prompt, json);
    char *whole = generated(words), *record = read_file(json, &n);
    assert_non_null(strstr(record, "\"end\":\"length\",\"prompt_tokens\":"));
    assert_true(json_number(record, "tokens") == 60 && json_number(record, "prompt_tokens") >= 1);
    char stop[4] = {0};
    const char *at = whole + strlen(whole) / 2;
    while (strpbrk(memcpy(stop, at, 3), " \n\"'%\\")) at++;
    snprintf(words, sizeof words, "--prompt-file %s --max-tokens 60 --top-k 20 --top-p 0.9 --stop %s --json %s", prompt,
             stop, json);
    char *part = generated(words), *short_record = read_file(json, &n);
    assert_non_null(strstr(short_record, "\"end\":\"stop\""));
    size_t kept = (size_t)(strstr(whole, stop) - whole);
    assert_int_equal(strlen(part), kept + 1); // and a newline
    assert_memory_equal(part, whole, kept);
    // Several samples are those of that many seeds' streams: the first is the same as alone.
    char *many = generated("--prompt He --max-tokens 20 --seed 3 --num-samples 2 --threads 1");
    assert_true(!strncmp(many, "== sample 1\n", 12) && strstr(many, "\n== sample 2\n"));
    assert_memory_equal(many + 12, a, 10);
    // To the end of the context: 128 positions.
    Job j;
    run(&j, 1, "generate --checkpoint %s@60 --tokenizer %s/data/samples/tiny.tokenizer.json --prompt= --temperature 0 "
               "--max-tokens 5000 --set model.max_position_embeddings=40",
        path_of("falls"), drive_source());
    assert_ends(&j, 0);
    assert_says(&j, "stopped: all 40 positions of the model are filled");
    assert_says(&j, "cache 480 bytes per token, keys and values would take 1920");
    expect_refused(64, "give --prompt TEXT or --prompt-file FILE", "");
    expect_refused(64, "give --prompt TEXT or --prompt-file FILE", "--prompt a --prompt-file b");
    expect_refused(65, "has no tokenizer.json: give --tokenizer FILE", "--prompt a");
    expect_refused(64, "--temperature", "--prompt a --temperature -1");
    expect_refused(64, "--stop", "--prompt a --stop=");
    run_ok(1, "tokenizer train --vocab-size 300 --out %s %s/configs/tiny.yaml", path_of("other.json"), drive_source());
    snprintf(words, sizeof words, "--prompt a --tokenizer %s", path_of("other.json"));
    expect_refused(65, "the checkpoint was trained with a tokenizer of hash", words);
    snprintf(words, sizeof words, "--tokenizer %s/data/samples/tiny.tokenizer.json --prompt-file ", drive_source());
    size_t end = strlen(words);
    snprintf(words + end, sizeof words - end, "%s", path_of("not-there"));
    expect_refused(65, "cannot open", words);
    snprintf(words + end, sizeof words - end, "%s/configs/tiny.yaml", drive_source());
    expect_refused(64, "leaves no room in the 128 positions", words);
    snprintf(words + end, sizeof words - end, "%s --set model.no_such_key=1", prompt);
    expect_refused(78, "no_such_key", words);
    char *all[] = {a, b, c, d, e, whole, record, part, short_record, many};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) free(all[i]);
}

// Held-out loss of the run of test_loss_falls after it went through a Hugging Face folder of this type.
static double loss_through(const char *dtype, const char *mode) {
    const char *hf = path_of("hf-%s", dtype), *again = path_of("again-%s", dtype), *json = path_of("through.json");
    if (!has_file(hf)) {
        run_ok(1, "export --checkpoint %s --to %s --dtype %s", path_of("falls"), hf, dtype);
        run_ok(1, "import --from %s --out %s", hf, again);
    }
    run_ok(1, "eval --checkpoint %s --data %s/data/samples/tiny.heldout.h5 --json %s --set train.seq_len=128 "
              "--set precision.mode=%s",
           again, drive_source(), json, mode);
    size_t n = 0;
    char *text = read_file(json, &n);
    double loss = json_number(text, "loss");
    free(text);
    return loss;
}

// An export in FP8 is the model that FP8 training computes with, and near to what BF16 makes of it.
static void test_exports(void **state) {
    (void)state;
    double fp8 = loss_through("fp8", "fp8"), bf16 = loss_through("bf16", "fp8"), plain = loss_through("bf16", "bf16");
    double coded = loss_through("fp8", "bf16");
    print_message("held-out loss of exports: with FP8 linears %.6f (BF16) and %.6f (FP8), with BF16 linears %.6f and "
                  "%.6f\n",
                  bf16, fp8, plain, coded);
    assert_true(fp8 == bf16);
    assert_true(fabs(coded - plain) < 5e-3 && coded != plain);
}

// bytes_of: dispatched by two ranks in two steps of a model 1024 wide.
static double bytes_of(const char *mode, const char *key) {
    const char *dir = path_of("bytes-%s", mode);
    if (!has_file(dir)) {
        run_ok(2, "train --config %s/configs/tiny.yaml --run-dir %s --steps 2 --set precision.mode=%s --threads 1 "
                  "--set parallel.ep=2 --set model.hidden_size=1024 --set train.seq_len=64 "
                  "--set model.num_hidden_layers=2",
               drive_source(), dir, mode);
    }
    Steps s = steps_read(dir);
    double bytes = steps_mean(&s, key, 1, 2);
    assert_true(bytes > 0.0);
    steps_free(&s);
    return bytes;
}

static void test_bytes(void **state) {
    (void)state;
    double fp8 = bytes_of("fp8", "a2a_dispatch_bytes"), bf16 = bytes_of("bf16", "a2a_dispatch_bytes");
    double fp32 = bytes_of("fp32", "a2a_dispatch_bytes");
    print_message("dispatch: fp8 / bf16 = %.4f, bf16 / fp32 = %.4f\n", fp8 / bf16, bf16 / fp32);
    assert_true(fp8 / bf16 <= 0.52);
    assert_true(fp8 / bf16 > 0.48);
    assert_true(bf16 / fp32 < 0.56);
    // Combine is BF16 in both.
    double a = bytes_of("fp8", "a2a_combine_bytes"), b = bytes_of("bf16", "a2a_combine_bytes");
    assert_true(fabs(a - b) < 0.1 * b);
}

// Every way of summing and scaling FP8 products trains; the recipe is printed, stored, and may change on resume.
static void test_recipes(void **state) {
    (void)state;
    static const struct {
        const char *dir, *key, *value, *says; // says: in the printed recipe
    } all[] = {
        {"sum-promote128", "accumulate", "promote128", "gradients 1x128 pow2 e4m3; accumulate promote128\n"},
        {"sum-fp32", "accumulate", "fp32", "accumulate fp32\n"},
        {"sum-hopper14", "accumulate", "hopper14", "accumulate hopper14\n"},
        {"sum-promoted14", "accumulate", "promote128_hopper14", "accumulate promote128_hopper14\n"},
        {"row", "scaling", "row", "activations row pow2 e4m3, weights tensor fp32 e4m3, gradients row pow2 e4m3;"},
        {"tensor", "scaling", "tensor", "activations tensor pow2 e4m3, weights tensor fp32 e4m3, gradients tensor"},
        {"block", "grad_tile", "128x128", "gradients 128x128 pow2 e4m3;"},
        {"e5m2", "grad_format", "e5m2", "gradients 1x128 pow2 e5m2;"},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const char *dir = path_of("%s", all[i].dir);
        char line[128];
        Job j;
        size_t n = 0;
        assert_int_equal(run(&j, 1, "train --config %s/configs/tiny.yaml --run-dir %s --steps 2 --threads 1 "
                                    "--set train.seq_len=64 --set fp8.%s=%s",
                             drive_source(), dir, all[i].key, all[i].value),
                         0);
        assert_says(&j, all[i].says);
        char *stored = read_file(path_of("%s/config.yaml", all[i].dir), &n);
        snprintf(line, sizeof line, "  %s: %s\n", all[i].key, all[i].value);
        assert_non_null(strstr(stored, line));
        free(stored);
        Steps s = steps_read(dir);
        for (int step = 1; step <= 2; step++)
            assert_true(fabs(atof(step_text(&s, step, "lm_loss")) - log(512.0)) < 0.3);
        steps_free(&s);
    }
    Job dry;
    assert_int_equal(
        run(&dry, 1, "train --config %s/configs/tiny.yaml --dry-run --set fp8.scaling=row", drive_source()), 0);
    assert_says(&dry, all[4].says);
    Job j;
    assert_int_equal(run(&j, 1, "train --config %s/configs/tiny.yaml --run-dir %s --resume auto --steps 3 --threads 1 "
                                "--set train.seq_len=64 --set fp8.accumulate=promote128",
                         drive_source(), path_of("sum-hopper14")),
                     0);
    assert_says(&j, "fp8.accumulate changed: hopper14 -> promote128");
}

// amax_of: the table of static scales in a run's checkpoint of step 5; returns the number of its values.
static int64_t amax_of(const char *name, float **out) {
    TensorFile *f = NULL;
    TensorInfo info;
    assert_int_equal(tensorfile_open(&f, path_of("%s/checkpoints/step_00000005/index.h5", name)), OK);
    assert_int_equal(tensorfile_info(f, "fp8.static_amax", &info), OK);
    int64_t n = info.shape[0] * info.shape[1];
    *out = malloc((size_t)n * sizeof **out);
    assert_int_equal(tensorfile_read(f, "fp8.static_amax", DT_F32, n, *out), OK);
    assert_int_equal(tensorfile_close(&f, false), OK);
    return n;
}

// Static scales: fixed after two steps of calibration; a run that is resumed, on other ranks too, goes on with them.
static void test_static(void **state) {
    (void)state;
    static const char *const words = "--threads 1 --set train.seq_len=64 --set fp8.scaling=static "
                                     "--set fp8.static_steps=2 --set checkpoint.every=2 --set checkpoint.keep_last=9 "
                                     "--set debug.state_hash=true";
    Job j;
    char base[512];
    snprintf(base, sizeof base, "train --config %s/configs/tiny.yaml %s", drive_source(), words);
    assert_int_equal(run(&j, 1, "%s --run-dir %s --steps 5", base, path_of("static")), 0);
    assert_says(&j, "gradients static pow2 e4m3; calibrated in 2 steps per tensor, margin 2; accumulate promote128\n");
    assert_says(&j, "calibration of 2 steps is done: the scales of ");
    run_ok(1, "%s --run-dir %s --resume %s@2 --steps 5", base, path_of("static-1"), path_of("static"));
    run_ok(2, "%s --run-dir %s --resume %s@4 --steps 5 --set parallel.ep=2", base, path_of("static-2"),
           path_of("static"));
    Steps a = steps_read(path_of("static")), b = steps_read(path_of("static-1")), c = steps_read(path_of("static-2"));
    assert_same_steps(&a, &b, 3, 5, "loss grad_norm state_hash");
    assert_true(fabs(atof(step_text(&a, 5, "lm_loss")) - atof(step_text(&c, 5, "lm_loss"))) < 5e-3);
    steps_free(&a);
    steps_free(&b);
    steps_free(&c);
    float *x = NULL, *y = NULL;
    int64_t n = amax_of("static", &x), seen = 0;
    assert_int_equal(amax_of("static-2", &y), n);
    assert_memory_equal(x, y, (size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) seen += x[i] > 0;
    assert_true(seen > 100 && seen < n);
    free(x);
    free(y);
    run_ok(1, "eval --checkpoint %s --data %s/data/samples/tiny.heldout.h5 --threads 1", path_of("static"),
           drive_source());
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls),
        cmocka_unit_test(test_generate), // of its run
        cmocka_unit_test(test_exports), // of its run
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_copy_untrained),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_recipes),
        cmocka_unit_test(test_static),
    };
    drive_init(argc, argv);
    return drive_done(cmocka_run_group_tests_name("train_learns", tests, NULL, NULL));
}
