// test_train_learns.c - training works: the loss falls, a small model learns to copy in context, and FP8 halves the
// bytes that travel.
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

// Every way of summing FP8 products trains; the recipe is printed, stored, and may change on resume.
static void test_accumulations(void **state) {
    (void)state;
    static const char *const names[] = {"promote128", "fp32", "hopper14", "promote128_hopper14"};
    for (int i = 0; i < 4; i++) {
        const char *dir = path_of("sum-%s", names[i]);
        Job j;
        size_t n = 0;
        assert_int_equal(run(&j, 1, "train --config %s/configs/tiny.yaml --run-dir %s --steps 2 --threads 1 "
                                    "--set train.seq_len=64 --set fp8.accumulate=%s",
                             drive_source(), dir, names[i]),
                         0);
        char line[128];
        snprintf(line, sizeof line, "scaling tile, scales pow2, accumulate %s\n", names[i]);
        assert_says(&j, line);
        char *stored = read_file(path_of("sum-%s/config.yaml", names[i]), &n);
        snprintf(line, sizeof line, "  accumulate: %s\n", names[i]);
        assert_non_null(strstr(stored, line));
        free(stored);
        Steps s = steps_read(dir);
        for (int step = 1; step <= 2; step++)
            assert_true(fabs(atof(step_text(&s, step, "lm_loss")) - log(512.0)) < 0.3);
        steps_free(&s);
    }
    Job j;
    assert_int_equal(run(&j, 1, "train --config %s/configs/tiny.yaml --run-dir %s --resume auto --steps 3 --threads 1 "
                                "--set train.seq_len=64 --set fp8.accumulate=promote128",
                         drive_source(), path_of("sum-hopper14")),
                     0);
    assert_says(&j, "fp8.accumulate changed: hopper14 -> promote128");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loss_falls),
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_copy_untrained),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_accumulations),
    };
    drive_init(argc, argv);
    return drive_done(cmocka_run_group_tests_name("train_learns", tests, NULL, NULL));
}
