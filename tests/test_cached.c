// test_cached.c - what forward keeps for the backward: making things again changes no bit and no counter, the cached
// formats change gradients by less than FP8 products do, and the saved bytes are those of the formats.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "e5m6.h"
#include "log.h"
#include "must.h"
#include "rng.h"
#include "solo.h"

static const char *const base_sets[] = {
    "model.vocab_size=64",          "model.hidden_size=136",        "model.intermediate_size=140",
    "model.moe_intermediate_size=132", "model.num_hidden_layers=2", "model.num_attention_heads=3",
    "model.n_routed_experts=4",     "model.num_experts_per_tok=2",  "model.first_k_dense_replace=1",
    "model.kv_lora_rank=64",        "model.qk_nope_head_dim=20",    "model.qk_rope_head_dim=8",
    "model.v_head_dim=48",          "model.initializer_range=0.08", "model.num_nextn_predict_layers=1",
    "train.steps=1",                "train.seq_len=50",             "train.global_batch=2",
    "train.micro_batch=2",          "balance.seq_alpha=0.01",
};
enum { BASE = sizeof base_sets / sizeof base_sets[0], MORE = 8, BLOCKS = 3 };

typedef struct Outcome { // of one micro-batch, forward and backward
    float *grad;         // of all parameters, one after the other
    int64_t n;
    LossSums sums;
    QuantCount health[BLOCKS * SITE_COUNT]; // all zero without FP8
    int64_t routed[8];
    size_t acts; // high water
} Outcome;

static void outcome_free(Outcome *o) {
    free(o->grad);
}

// run: gradients of the model with these settings, one list after the other (each ends in NULL).
static Outcome run(const char *const *more, const char *const *and_more) {
    const char *sets[BASE + 2 * MORE];
    int n = BASE;
    memcpy(sets, base_sets, sizeof base_sets);
    for (; *more; more++) sets[n++] = *more;
    for (; *and_more; and_more++) sets[n++] = *and_more;
    Config *config = NULL;
    Solo solo;
    Outcome out = {0};
    MUST_OK(config_load(&config, NULL, sets, n));
    MUST_OK(solo_open(&solo, config, true, 1));
    Params *p = model_params(solo.model);
    MUST_OK(params_init(p, &solo.shape, &solo.cx));
    MUST_OK(solo_publish(&solo));
    MUST_OK(params_zero_grad(p, &solo.cx));
    assert_int_equal(solo.cx.nblocks, BLOCKS);
    if (solo.cx.health) memset(solo.cx.health, 0, sizeof out.health);
    int32_t tokens[2 * 52];
    for (int i = 0; i < 2 * 52; i++) tokens[i] = (int32_t)(philox(11, 0, (uint64_t)i).v[0] % 64);
    Batch b = {.nseq = 2, .S = 50, .ld = 52, .tokens = tokens, .is_complete = true};
    LossScale scale = {.lm = 0.01, .mtp = 0.003, .balance = 0.005};
    arena_reset_high(solo.cx.acts);
    MUST_OK(model_fwd_bwd(solo.model, &solo.cx, &b, &scale, &out.sums, NULL));
    assert_int_equal(arena_mark(solo.cx.acts), 0);
    assert_int_equal(arena_mark(solo.cx.scratch), 0);
    out.acts = arena_high(solo.cx.acts);
    if (solo.cx.health) memcpy(out.health, solo.cx.health, sizeof out.health);
    memcpy(out.routed, model_counts(solo.model)[1], 4 * sizeof *out.routed);
    memcpy(out.routed + 4, model_counts(solo.model)[2], 4 * sizeof *out.routed);
    for (int i = 0; i < p->n; i++) out.n += p->p[i].grad.rows * p->p[i].grad.cols;
    out.grad = malloc((size_t)out.n * sizeof *out.grad);
    int64_t at = 0;
    for (int i = 0; i < p->n; i++) {
        int64_t k = p->p[i].grad.rows * p->p[i].grad.cols;
        memcpy(out.grad + at, p->p[i].grad.p, (size_t)k * sizeof *out.grad);
        at += k;
    }
    solo_close(&solo);
    config_free(config);
    return out;
}

// same_outcome: the same bits and counters.
static void same_outcome(const Outcome *a, const Outcome *b, int format, int i) {
    if (memcmp(a->grad, b->grad, (size_t)a->n * sizeof *a->grad) != 0)
        fail_msg("format %d, %d: gradients differ", format, i);
    assert_memory_equal(&a->sums, &b->sums, sizeof a->sums);
    for (int j = 0; j < BLOCKS * SITE_COUNT; j++) {
        if (memcmp(&a->health[j], &b->health[j], sizeof a->health[j]) != 0)
            fail_msg("format %d, %d: %s is counted otherwise", format, i,
                     site_label(j / SITE_COUNT, (Site)(j % SITE_COUNT)).s);
    }
    assert_memory_equal(a->routed, b->routed, sizeof a->routed);
}

static const char *const nothing_again[] = {"recompute.norm=false", "recompute.mla_up=false",
                                            "recompute.swiglu=false", NULL};

// Every storage format: kept or made again, one at a time and all together, on memory that holds NaN.
static void making_again_changes_nothing(void **state) {
    (void)state;
    static const char *const formats[][MORE] = {
        {"precision.mode=fp32", "model.q_lora_rank=132"},
        {"precision.mode=bf16", "model.q_lora_rank=132"},
        {"precision.mode=bf16", "model.n_shared_experts=0"},
        {"precision.mode=fp8", "model.q_lora_rank=132"},
        {"precision.mode=fp8", "fp8.scale_format=fp32"},
        {"precision.mode=fp8", "model.q_lora_rank=132", "fp8.cache_attn_out=codes"},
        {"precision.mode=fp8", "model.q_lora_rank=132", "fp8.cache_swiglu=bf16", "model.n_shared_experts=0"},
        {"precision.mode=fp8", "model.q_lora_rank=132", "fp8.cache_attn_out=codes", "fp8.cache_swiglu=bf16"},
        {"precision.mode=fp8", "fp8.scaling=row", "fp8.grad_format=e5m2"},
        {"precision.mode=fp8", "fp8.scaling=static", "fp8.weight_scale_format=pow2"},
    };
    static const char *const again[][MORE] = {
        {NULL}, // the default: all of them
        {"recompute.mla_up=false", "recompute.swiglu=false"},
        {"recompute.norm=false", "recompute.swiglu=false"},
        {"recompute.norm=false", "recompute.mla_up=false"},
    };
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        Outcome kept = run(formats[f], nothing_again);
        arena_poison(true);
        for (int i = 0; i < 4; i++) {
            Outcome o = run(formats[f], again[i]);
            same_outcome(&o, &kept, (int)f, i);
            assert_int_equal(o.routed[0] + o.routed[1] + o.routed[2] + o.routed[3], 2 * 100);
            if (!(o.acts < kept.acts)) fail_msg("format %d, %d: no memory was saved", (int)f, i);
            outcome_free(&o);
        }
        arena_poison(false);
        outcome_free(&kept);
    }
}

// Fused operations give what the single ones give, for every format of codes and scales, with and without queries'
// latents and a shared expert; debug.unfused is what turns them off.
static void fusing_changes_nothing(void **state) {
    (void)state;
    static const char *const formats[][MORE] = {
        {"model.q_lora_rank=132"},
        {"fp8.scale_format=fp32", "model.n_shared_experts=0"},
        {"model.q_lora_rank=132", "recompute.norm=false", "fp8.cache_attn_out=codes"},
        {"recompute.swiglu=false", "fp8.weight_scale_format=pow2"},
        {"fp8.grad_format=e5m2", "fp8.cache_swiglu=bf16"},
        {"fp8.grad_format=e5m2", "fp8.grad_scale_format=fp32"},
    };
    static const char *const single[] = {"precision.mode=fp8", "debug.unfused=true", NULL};
    static const char *const fused[] = {"precision.mode=fp8", NULL};
    arena_poison(true);
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        Outcome a = run(formats[f], fused), b = run(formats[f], single);
        same_outcome(&a, &b, (int)f, 0);
        outcome_free(&a);
        outcome_free(&b);
    }
    arena_poison(false);
}

// values: quantised in all.
static int64_t values(const Outcome *o) {
    int64_t n = 0;
    for (int j = 0; j < BLOCKS * SITE_COUNT; j++) n += o->health[j].values;
    return n;
}

// distance: between two gradients, relative to the second.
static double distance(const Outcome *a, const Outcome *b) {
    double diff = 0.0, norm = 0.0;
    for (int64_t j = 0; j < a->n; j++) {
        diff += ((double)a->grad[j] - b->grad[j]) * ((double)a->grad[j] - b->grad[j]);
        norm += (double)b->grad[j] * b->grad[j];
    }
    return sqrt(diff / norm);
}

// The cached formats: the same losses (forward does not see them), gradients that differ by
// less than FP8 products make them differ anyway.
static void cached_formats_are_near(void **state) {
    (void)state;
    static const char *const mode[] = {"precision.mode=fp8", "model.q_lora_rank=132", NULL};
    static const char *const formats[][MORE] = {
        {"fp8.cache_attn_out=codes", "fp8.cache_swiglu=bf16"},
        {"fp8.cache_attn_out=e5m6", "fp8.cache_swiglu=bf16"},
        {"fp8.cache_attn_out=codes", "fp8.cache_swiglu=fp8"},
        {NULL},
    };
    static const char *const bf16[] = {"precision.mode=bf16", "model.q_lora_rank=132", NULL};
    Outcome o[4], exact = run(bf16, formats[3]);
    for (int i = 0; i < 4; i++) o[i] = run(mode, formats[i]);
    double noise = distance(&o[0], &exact); // of FP8 products: by far the larger part
    for (int i = 1; i < 4; i++) {
        double d = distance(&o[i], &o[0]), all = distance(&o[i], &exact);
        if (!(d > 1e-4 && d < 0.5 * noise && all < 1.05 * noise))
            fail_msg("format %d: gradients are %g from BF16 storage, %g from BF16 products (without: %g)", i, d, all,
                     noise);
        assert_memory_equal(&o[i].sums, &o[0].sums, sizeof o[0].sums);
        assert_true(o[i].acts < o[0].acts && o[3].acts <= o[i].acts);
    }
    // g and u are quantised once more each; o's 12 bits are not counted.
    int64_t T = 100, extra = 2 * (T * 140 + 2 * (T * 132 + T * 2 * 132)); // dense; shared and routed, twice
    assert_int_equal(values(&o[1]), values(&o[0]));
    assert_int_equal(values(&o[2]), values(&o[0]) + extra);
    for (int i = 0; i < 4; i++) outcome_free(&o[i]);
    outcome_free(&exact);
}

static MemoryPlan measure(Shape *s, Mesh *mesh, const char *const *sets, int n) {
    Config *c = NULL;
    MemoryPlan plan;
    MUST_OK(config_load(&c, "configs/deepseek_v3.yaml", sets, n));
    MUST_OK(mesh_build(mesh, 64, 0, 64));
    MUST_OK(shape_from_config(s, c, mesh));
    MUST_OK(memory_measure(&plan, s, mesh, true, true));
    config_free(c);
    return plan;
}

// DeepSeek-V3: every kind by hand, and at most 0.55 of BF16 with nothing made again.
static void saved_bytes(void **state) {
    (void)state;
    Shape s;
    Mesh mesh;
    double bf16 = 0.0, all = 0.0, T = 4096;
    MemoryPlan p = measure(&s, &mesh, NULL, 0);
    MUST_OK(memory_saved_bf16(&bf16, &s, &mesh));
    for (int k = 0; k < SAVED_KINDS; k++) all += p.saved[k];
    assert_true(all <= 0.55 * bf16);
    // Per block: codes and a scale byte per 128, rows of a multiple of 16 bytes; 58 blocks and the MTP module have
    // experts, 3 are dense.
    double moe = 59.0 / 62.0, dense = 3.0 / 62.0;
    assert_true(p.saved[SAVED_RESIDUAL] == 4 * 7168);
    assert_true(p.saved[SAVED_NORM] == 8);
    assert_true(p.saved[SAVED_ATTN_IN] == 7168 + 56 + 8);
    assert_true(p.saved[SAVED_LATENT] == 2 * 1536 + 1536 + 16 + 2 * 576 + 512 + 16 + 8);
    assert_true(p.saved[SAVED_ATTN_OUT] == (double)e5m6_row_bytes(128 * 128) + 4 * 128);
    assert_int_equal(e5m6_row_bytes(128 * 128), 128 * 192 + 128);
    assert_true(fabs(p.saved[SAVED_FFN_IN] - 7232 * (1 + 8 * moe)) < 1e-6);
    assert_true(fabs(p.saved[SAVED_SWIGLU] - 2 * (18432 + 144) * dense - 9 * 2 * (2048 + 16) * moe) < 1e-6);
    assert_true(p.saved[SAVED_ROUTING] > 0.9 * 1024 && p.saved[SAVED_ROUTING] < 2048);
    // BF16: x and mid, n twice, latents twice, q, k, v and o, rows of eight experts, g, u and h.
    double want = 2 * (2 * 7168 + 7168 + 2 * 1536 + 576 + 512 + 128 * 192 + 128 * 256 + 128 * 128);
    want += 2 * (7168 + (8 * 7168 + 9 * 3 * 2048) * moe + 3 * 18432 * dense);
    want += p.saved[SAVED_NORM] + 8 + 4 * 128 + p.saved[SAVED_ROUTING];
    assert_true(fabs(bf16 - want) < 1.0);
    // All blocks' shares are what lies on the arena when forward ends, gradient buffers and stages aside.
    assert_true(62 * T * all < (double)p.acts_balanced && 62 * T * all > 0.9 * (double)p.acts_balanced);
    static const char *const kept[] = {"recompute.norm=false", "recompute.mla_up=false", "recompute.swiglu=false",
                                       "fp8.cache_attn_out=codes", "fp8.cache_swiglu=bf16"};
    MemoryPlan old = measure(&s, &mesh, kept, 5);
    assert_true(old.saved[SAVED_ATTN_IN] == 7232 + 2 * (128 * 192 + 128 * 256));
    assert_true(old.saved[SAVED_ATTN_OUT] == 2 * 16384 + 16384 + 128 + 4 * 128);
    assert_true(fabs(old.saved[SAVED_NORM] - 8 - 2 * 7168 * moe) < 1e-6);
}

int main(void) {
    log_init(1, 2); // no lines
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(making_again_changes_nothing),
        cmocka_unit_test(fusing_changes_nothing),
        cmocka_unit_test(cached_formats_are_near),
        cmocka_unit_test(saved_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
