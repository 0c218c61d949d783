// test_bench_cuda.c - the benchmarks of a device on small shapes over the runtime on the CPU: every case runs, host
// code touches none of the device's memory, and each object says what was measured and where. No speed is looked at.
#include <stdlib.h>

#include "on_cpu.h"
#include "bench.h"
#include "boot.h"

// objects: reads what a subject wrote: how many objects there are, all of this device, their times above 0; `named`
// counts those whose op is one of `ops`, which end with NULL.
static int objects(FILE *json, const char *const *ops, int *named) {
    char line[4096], quoted[64];
    int n = 0;
    *named = 0;
    rewind(json);
    for (; fgets(line, sizeof line, json); n++) {
        assert_non_null(strstr(line, "\"backend\":\"cuda\",\"device\":\"fibers on the CPU\",\"isa\":\"CUDA\""));
        assert_true(line[0] == '{' && strcmp(line + strlen(line) - 2, "}\n") == 0);
        const char *ms = strstr(line, "\"ms\":"), *fraction = strstr(line, "\"fraction_of_peak\":");
        if (ms) assert_true(strtod(ms + 5, NULL) > 0.0 && fraction && strtod(fraction + 19, NULL) >= 0.0);
        for (int i = 0; ops[i]; i++) {
            snprintf(quoted, sizeof quoted, "{\"op\":\"%s\"", ops[i]);
            if (strstr(line, quoted)) ++*named;
        }
    }
    return n;
}

static void run(Err (*subject)(Bench *), const int64_t shape[4], const char *const *ops, int want, int want_all) {
    Bench b = {.threads = 1, .json = tmpfile(), .nshapes = 1, .wants_device = true};
    int named = 0;
    assert_non_null(b.json);
    memcpy(b.shapes[0], shape, sizeof b.shapes[0]);
    MUST_OK(bench_device_open(&b, 0, false));
    uint64_t launches = simt_launches();
    MUST_OK(subject(&b));
    assert_true(simt_launches() > launches);
    assert_int_equal(arena_mark(b.arena), 0);
    int n = objects(b.json, ops, &named);
    bench_device_close(&b);
    fclose(b.json);
    assert_int_equal(named, want);
    assert_int_equal(n, want_all);
}

static const char *const peaks[] = {"peak", "copy_memory", NULL};

static void test_gemm(void **state) {
    (void)state;
    static const char *const ops[] = {"gemm_fp8", "gemm_fp8_dgrad", "gemm_fp8_wgrad", "gemm_bf16", "gemm_bf16_dgrad",
                                      "gemm_bf16_wgrad", "gemm_f32", NULL};
    static const char *const grouped[] = {"ggemm_fp8", "ggemm_fp8_dgrad", "ggemm_fp8_wgrad", "ggemm_bf16",
                                          "ggemm_bf16_dgrad", "ggemm_bf16_wgrad", "ggemm_f32", NULL};
    run(bench_gemm, (const int64_t[4]){32, 48, 144, 0}, ops, 7, 8);
    run(bench_gemm, (const int64_t[4]){16, 16, 33, 3}, grouped, 7, 8);
}

static void test_others(void **state) {
    (void)state;
    static const char *const quants[] = {"quant_tile", "quant_tile_t", "requant_tile_t", "weight_prepare", "dequant",
                                         "quant_tile_pair", "quant_e5m6", "dequant_e5m6", NULL};
    static const char *const attention[] = {"attn_fwd", "attn_bwd", NULL};
    static const char *const adam[] = {"adam_bf16_moments", "adam_f32_moments", "sumsq_blocks", NULL};
    run(bench_quant, (const int64_t[4]){20, 140, 0, 0}, quants, 8, 9);
    run(bench_attention, (const int64_t[4]){1, 20, 2, 0}, attention, 2, 3);
    run(bench_adam, (const int64_t[4]){3, 0, 0, 0}, adam, 3, 4);
}

// A whole step; the peak was taken before its model took memory.
static void test_step(void **state) {
    (void)state;
    static const char *const ops[] = {"step", NULL};
    Bench b = {.threads = 1,
               .json = tmpfile(),
               .configs = {"configs/tiny.yaml"},
               .nconfigs = 1,
               .wants_device = true,
               .sets = {"model.hidden_size=36", "model.intermediate_size=40", "model.moe_intermediate_size=12",
                        "model.num_hidden_layers=2", "model.num_attention_heads=2", "model.n_routed_experts=4",
                        "model.q_lora_rank=12", "model.kv_lora_rank=8", "model.qk_nope_head_dim=4",
                        "model.qk_rope_head_dim=4", "model.v_head_dim=4", "train.seq_len=7", "train.global_batch=1"},
               .nsets = 13};
    int named = 0;
    assert_non_null(b.json);
    MUST_OK(bench_step(&b));
    assert_int_equal(objects(b.json, ops, &named), 2);
    assert_int_equal(named, 1);
    objects(b.json, peaks, &named);
    assert_int_equal(named, 1);
    bench_device_close(&b);
    fclose(b.json);
}

// Without a device nothing is measured.
static void test_without_device(void **state) {
    (void)state;
    Bench b = {.threads = 1, .wants_device = true, .configs = {"configs/tiny.yaml"}, .nconfigs = 1};
    runtime_on_cpu_devices(-1);
    MUST_FAIL(bench_device_open(&b, 0, false), E_PEER, "driver");
    bench_device_close(&b);
    runtime_on_cpu_devices(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm),
        cmocka_unit_test(test_others),
        cmocka_unit_test(test_step),
        cmocka_unit_test(test_without_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
