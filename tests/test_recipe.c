// test_recipe.c - the FP8 recipe: settings become the table that quantisation reads, every baseline trains and is
// another computation than the default, every site is counted exactly once, static scales are calibrated, fixed, saved
// and restored to the bit. What the codes of each recipe are: test_fp8_layers.c.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "calibrate.h"
#include "checkpoint.h"
#include "fp8.h"
#include "log.h"
#include "must.h"
#include "optimizer.h"
#include "rng.h"
#include "scratch_dir.h"
#include "solo.h"
#include "tensorfile.h"

// A dense block, one with experts and a shared one, an MTP block; several tiles, and partial ones.
static const char *const base_sets[] = {
    "model.vocab_size=64",          "model.hidden_size=136",        "model.intermediate_size=140",
    "model.moe_intermediate_size=132", "model.num_hidden_layers=2", "model.num_attention_heads=3",
    "model.n_routed_experts=4",     "model.num_experts_per_tok=2",  "model.first_k_dense_replace=1",
    "model.q_lora_rank=132",        "model.kv_lora_rank=64",        "model.qk_nope_head_dim=20",
    "model.qk_rope_head_dim=8",     "model.v_head_dim=48",          "model.initializer_range=0.05",
    "model.num_nextn_predict_layers=1", "train.steps=20",           "train.seq_len=50",
    "train.global_batch=2",         "train.micro_batch=2",          "precision.mode=fp8",
};
enum { BASE = sizeof base_sets / sizeof base_sets[0], MORE = 6, BLOCKS = 3, T = 100, K = 2 };

// A model on one rank with an optimizer, on one batch.
typedef struct Rig {
    Config *config;
    Boot boot;
    Mesh mesh;
    Shape shape;
    Cx cx;
    Model *model;
    int32_t tokens[2 * 52];
    int64_t step;
    double loss; // mean nats of the last step
} Rig;

static Config *config_of(const char *const *more) {
    const char *sets[BASE + MORE];
    int n = BASE;
    Config *c = NULL;
    memcpy(sets, base_sets, sizeof base_sets);
    for (; more && *more; more++) sets[n++] = *more;
    MUST_OK(config_load(&c, NULL, sets, n));
    return c;
}

static void rig_open(Rig *r, const char *const *more) {
    memset(r, 0, sizeof *r);
    r->config = config_of(more);
    r->boot.nranks = r->boot.local_nranks = 1;
    MUST_OK(comm_self(&r->boot.world, "world"));
    MUST_OK(comm_self(&r->boot.ep, "ep"));
    MUST_OK(comm_self(&r->boot.edp, "edp"));
    MUST_OK(mesh_build(&r->mesh, 1, 0, 1));
    MUST_OK(shape_from_config(&r->shape, r->config, &r->mesh));
    MemoryPlan plan;
    MUST_OK(memory_measure(&plan, &r->shape, &r->mesh, true, true));
    MUST_OK(cx_create(&r->cx, &r->boot, &r->mesh, &r->shape, &plan, 1));
    MUST_OK(model_create(&r->model, &r->shape, &r->cx, true, true));
    MUST_OK(params_init(model_params(r->model), &r->shape, &r->cx));
    MUST_OK(params_publish(model_params(r->model), &r->shape, &r->cx));
    for (int i = 0; i < 2 * 52; i++) r->tokens[i] = (int32_t)(philox(11, 0, (uint64_t)i).v[0] % 64);
}

static void rig_close(Rig *r) {
    model_free(&r->model);
    cx_destroy(&r->cx);
    comm_destroy(&r->boot.world);
    comm_destroy(&r->boot.ep);
    comm_destroy(&r->boot.edp);
    config_free(r->config);
}

static void counters_clear(Rig *r) {
    memset(r->cx.health, 0, (size_t)(r->cx.nblocks * SITE_COUNT) * sizeof *r->cx.health);
}

static Batch rig_batch(Rig *r) {
    Batch b = {.nseq = 2, .S = 50, .ld = 52, .tokens = r->tokens, .is_complete = true};
    return b;
}

// rig_steps: n steps as step_train takes them; the counters are those of the last one.
static void rig_steps(Rig *r, int n) {
    Params *p = model_params(r->model);
    LossScale scale = {.lm = 0.01, .mtp = 0.003, .balance = 0.005};
    for (int i = 0; i < n; i++) {
        Batch b = rig_batch(r);
        LossSums sums = {0};
        OptStep opt = {.step = ++r->step, .lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .clip = 1.0};
        OptResult result;
        counters_clear(r);
        MUST_OK(params_zero_grad(p, &r->cx));
        MUST_OK(model_fwd_bwd(r->model, &r->cx, &b, &scale, &sums, NULL));
        MUST_OK(optimizer_step(p, &r->shape, &r->cx, &opt, &result));
        assert_int_equal(result.nonfinite, 0);
        MUST_OK(calibrate_step(p, &r->shape, &r->cx));
        r->loss = sums.lm / (double)sums.lm_targets;
    }
}

// same_weights: masters and prepared codes of two rigs, to the bit.
static bool same_weights(const Rig *a, const Rig *b) {
    Params *x = model_params(a->model), *y = model_params(b->model);
    for (int i = 0; i < x->n; i++) {
        const Param *p = &x->p[i], *q = &y->p[i];
        if (memcmp(p->master.p, q->master.p, (size_t)(p->master.rows * p->master.cols) * 4) != 0) return false;
        if (p->q.q && memcmp(p->q.q, q->q.q, (size_t)(p->nmat * p->rows * p->cols)) != 0) return false;
    }
    return true;
}

// ---- the table --------------------------------------------------------------------------------

static void row_is(const char *set, TensorClass c, QuantScope scope, ScaleType scale, CodeType code) {
    const char *more[] = {set, NULL};
    Config *config = config_of(more);
    RecipeRow row = recipe_from_config(config).row[c];
    if (row.scope != scope || row.scale != scale || row.code != code)
        fail_msg("%s: %s have scope %d, scale %d, code %d", set, class_name(c), (int)row.scope, (int)row.scale,
                 (int)row.code);
    config_free(config);
}

static void settings_make_the_table(void **state) {
    (void)state;
    const TensorClass X = CLASS_ACTIVATION, W = CLASS_WEIGHT, G = CLASS_GRADIENT;
    row_is("fp8.scaling=tile", X, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.scaling=tile", W, SCOPE_TILE, SCALE_F32, CODE_E4M3);
    row_is("fp8.scaling=tile", G, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.scaling=row", X, SCOPE_ROW, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.scaling=row", W, SCOPE_TENSOR, SCALE_F32, CODE_E4M3);
    row_is("fp8.scaling=row", G, SCOPE_ROW, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.scaling=tensor", W, SCOPE_TENSOR, SCALE_F32, CODE_E4M3);
    row_is("fp8.scaling=tensor", G, SCOPE_TENSOR, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.scaling=static", W, SCOPE_STATIC, SCALE_F32, CODE_E4M3);
    row_is("fp8.scaling=static", X, SCOPE_STATIC, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.scale_format=fp32", X, SCOPE_TILE, SCALE_F32, CODE_E4M3);
    row_is("fp8.scale_format=fp32", G, SCOPE_TILE, SCALE_F32, CODE_E4M3);
    row_is("fp8.weight_scale_format=pow2", W, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.grad_scale_format=fp32", X, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.grad_scale_format=fp32", G, SCOPE_TILE, SCALE_F32, CODE_E4M3);
    row_is("fp8.grad_tile=128x128", X, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.grad_tile=128x128", G, SCOPE_BLOCK, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.grad_format=e5m2", X, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
    row_is("fp8.grad_format=e5m2", G, SCOPE_TILE, SCALE_E8M0, CODE_E5M2);
    row_is("fp8.scaling=tensor", CLASS_CACHE, SCOPE_TILE, SCALE_E8M0, CODE_E4M3); // whatever the others are
    row_is("fp8.scale_format=fp32", CLASS_CACHE, SCOPE_TILE, SCALE_E8M0, CODE_E4M3);
}

static void text_is(const char *const *more, const char *classes, const char *kept) {
    Config *c = config_of(more);
    RecipeText t = recipe_text(c);
    assert_string_equal(t.classes, classes);
    assert_string_equal(t.kept, kept);
    config_free(c);
}

static void recipe_is_said(void **state) {
    (void)state;
    text_is(NULL,
            "activations 1x128 pow2 e4m3, weights 128x128 fp32 e4m3, gradients 1x128 pow2 e4m3; accumulate promote128",
            "attention output e5m6, SwiGLU inputs fp8 1x128 pow2 e4m3");
    static const char *const fixed[] = {"fp8.scaling=static", "fp8.static_steps=7", "fp8.static_margin=1.5",
                                        "fp8.grad_format=e5m2", "fp8.cache_swiglu=bf16", NULL};
    text_is(fixed,
            "activations static pow2 e4m3, weights static fp32 e4m3, gradients static pow2 e5m2; calibrated in 7 steps "
            "per tensor, margin 1.5; accumulate promote128",
            "attention output e5m6, SwiGLU inputs bf16");
    static const char *const row[] = {"fp8.scaling=row", "fp8.accumulate=hopper14", NULL};
    text_is(row, "activations row pow2 e4m3, weights tensor fp32 e4m3, gradients row pow2 e4m3; accumulate hopper14",
            "attention output e5m6, SwiGLU inputs fp8 1x128 pow2 e4m3");
    static const char *const longest[] = {
        "fp8.scaling=static", "fp8.static_steps=1000000000", "fp8.static_margin=1.0000000000000002",
        "fp8.accumulate=promote128_hopper14", NULL};
    Config *c = config_of(longest);
    assert_non_null(strstr(recipe_text(c).classes, "; accumulate promote128_hopper14"));
    config_free(c);
    static const char *const bf16[] = {"precision.mode=bf16", "fp8.scaling=row", NULL};
    text_is(bf16, "bf16", "");
}

static void refused(const char *const *more, const char *backend, const char *words, const char *and_words) {
    Config *c = config_of(more);
    Recipe r = recipe_from_config(c);
    MUST_OK(recipe_check_backend(&r, "cpu"));
    MUST_FAIL(recipe_check_backend(&r, backend), E_CONFIG, words);
    MUST_FAIL(recipe_check_backend(&r, backend), E_CONFIG, and_words);
    config_free(c);
}

static void combinations_are_refused(void **state) {
    (void)state;
    static const char *const values[] = {"row", "tensor", "static"};
    for (int i = 0; i < 3; i++) {
        char scaling[64], words[128];
        const char *sets[BASE + 2];
        Config *c = NULL;
        memcpy(sets, base_sets, sizeof base_sets);
        snprintf(scaling, sizeof scaling, "fp8.scaling=%s", values[i]);
        snprintf(words, sizeof words, "fp8.grad_tile 128x128 needs fp8.scaling tile: with fp8.scaling %s", values[i]);
        sets[BASE] = scaling;
        sets[BASE + 1] = "fp8.grad_tile=128x128";
        MUST_FAIL(config_load(&c, NULL, sets, BASE + 2), E_CONFIG, words);
        assert_null(c);
        const char *more[] = {scaling, NULL};
        snprintf(words, sizeof words, "fp8.scaling %s is not supported by the cuda backend", values[i]);
        refused(more, "cuda", words, "it supports fp8.scaling tile, fp8.grad_tile 1x128");
    }
    static const char *const block[] = {"fp8.grad_tile=128x128", NULL}, *const e5m2[] = {"fp8.grad_format=e5m2", NULL};
    static const char *const sums[] = {"fp8.accumulate=hopper14", NULL};
    static const char *const hopper[] = {"fp8.accumulate=promote128_hopper14", NULL};
    static const char *const computed[][2] = {{NULL}, {"fp8.accumulate=fp32", NULL}};
    refused(block, "cuda", "fp8.grad_tile 128x128 is not supported by the cuda backend", "fp8.grad_tile 1x128");
    refused(e5m2, "cuda", "fp8.grad_format e5m2 is not supported by the cuda backend", "fp8.grad_format e4m3");
    refused(sums, "cuda", "fp8.accumulate hopper14 is not supported by the cuda backend", "fp8.accumulate promote128");
    refused(hopper, "cuda", "fp8.accumulate promote128_hopper14 is not supported", "promote128 (on Hopper");
    for (int i = 0; i < 2; i++) {
        Config *c = config_of(computed[i]);
        Recipe r = recipe_from_config(c);
        MUST_OK(recipe_check_backend(&r, "cuda"));
        config_free(c);
    }
}

static void sites_have_names(void **state) {
    (void)state;
    for (int i = 0; i < SITE_COUNT; i++) {
        const char *name = site_name((Site)i), *what = strrchr(name, '.');
        TensorClass c = site_class((Site)i);
        assert_non_null(what);
        TensorClass want = !strcmp(what, ".w")                           ? CLASS_WEIGHT
                           : !strcmp(what, ".kept")                      ? CLASS_CACHE
                           : !strcmp(what, ".x") || !strcmp(what, ".x_t") ? CLASS_ACTIVATION
                                                                          : CLASS_GRADIENT;
        assert_int_equal(c, want);
        for (int j = 0; j < i; j++) assert_string_not_equal(name, site_name((Site)j));
    }
    assert_string_equal(site_label(12, SITE_O_X).s, "L12.o.x");
}

// ---- training ---------------------------------------------------------------------------------

// Every baseline learns the batch, and is another computation than the default. The default's losses are near.
static void baselines_train(void **state) {
    (void)state;
    static const char *const all[][MORE] = {
        {NULL},
        {"fp8.scaling=row"},
        {"fp8.scaling=tensor"},
        {"fp8.scaling=static", "fp8.static_steps=2"},
        {"fp8.grad_tile=128x128"},
        {"fp8.grad_format=e5m2"},
        {"fp8.grad_scale_format=fp32"},
        {"fp8.weight_scale_format=pow2"},
    };
    enum { N = sizeof all / sizeof all[0] };
    Rig tile, r;
    rig_open(&tile, all[0]);
    rig_steps(&tile, 1);
    double first = tile.loss;
    for (int i = 1; i < N; i++) {
        rig_open(&r, all[i]);
        rig_steps(&r, 1);
        if (same_weights(&tile, &r)) fail_msg("%s is the same as the default", all[i][0]);
        assert_true(fabs(r.loss - first) < 0.05);
        rig_steps(&r, 7);
        if (!(r.loss < first - 0.5)) fail_msg("%s: the loss went from %g to %g", all[i][0], first, r.loss);
        rig_close(&r);
    }
    rig_close(&tile);
}

// values_at: how many values a step quantises at a site of the model above, from its shapes: T tokens, K experts each.
static int64_t values_at(const Shape *s, int64_t layer, Site site) {
    bool moe = shape_is_moe(s, layer);
    int64_t D = s->D, F = moe ? s->Fs : s->Fd, R = moe ? T * K : 0;
    int64_t q = s->H * (s->Dn + s->Dr), kv = s->H * (s->Dn + s->Dv), o = s->H * s->Dv, kva = s->Rkv + s->Dr;
    int64_t experts = moe ? s->E * s->F * D : 0;
    switch (site) {
    case SITE_ATTN_IN_X:
    case SITE_ATTN_IN_X_T: return T * D;
    case SITE_Q_W:
    case SITE_Q_DY:
    case SITE_Q_DY_T: return 0; // there is a latent
    case SITE_Q_A_W: return s->Rq * D;
    case SITE_Q_A_DY:
    case SITE_Q_A_DY_T:
    case SITE_Q_B_X:
    case SITE_Q_B_X_T: return T * s->Rq;
    case SITE_Q_B_W: return q * s->Rq;
    case SITE_Q_B_DY:
    case SITE_Q_B_DY_T: return T * q;
    case SITE_KV_A_W: return kva * D;
    case SITE_KV_A_DY:
    case SITE_KV_A_DY_T: return T * kva;
    case SITE_KV_B_X:
    case SITE_KV_B_X_T: return T * s->Rkv;
    case SITE_KV_B_W: return kv * s->Rkv;
    case SITE_KV_B_DY:
    case SITE_KV_B_DY_T: return T * kv;
    case SITE_O_X:
    case SITE_O_X_T: return T * o;
    case SITE_O_W: return D * o;
    case SITE_O_DY:
    case SITE_O_DY_T:
    case SITE_FFN_IN_X:
    case SITE_FFN_IN_X_T:
    case SITE_FFN_OUT_DY:
    case SITE_FFN_DOWN_DY_T: return T * D;
    case SITE_FFN_GATE_W:
    case SITE_FFN_UP_W:
    case SITE_FFN_DOWN_W: return F * D;
    case SITE_FFN_GATE_KEPT:
    case SITE_FFN_GATE_DY:
    case SITE_FFN_GATE_DY_T:
    case SITE_FFN_UP_KEPT:
    case SITE_FFN_UP_DY:
    case SITE_FFN_UP_DY_T:
    case SITE_FFN_DOWN_X:
    case SITE_FFN_DOWN_X_T: return T * F;
    case SITE_EXPERT_IN_X_T:
    case SITE_EXPERT_DOWN_DY_T: return R * D;
    case SITE_EXPERT_GATE_W:
    case SITE_EXPERT_UP_W:
    case SITE_EXPERT_DOWN_W: return experts;
    case SITE_EXPERT_GATE_KEPT:
    case SITE_EXPERT_GATE_DY:
    case SITE_EXPERT_GATE_DY_T:
    case SITE_EXPERT_UP_KEPT:
    case SITE_EXPERT_UP_DY:
    case SITE_EXPERT_UP_DY_T:
    case SITE_EXPERT_DOWN_X:
    case SITE_EXPERT_DOWN_X_T: return R * s->F;
    case SITE_COUNT: break;
    }
    return -1;
}

// A step counts every value of every site once, though the backward makes codes again.
static void every_site_is_counted_once(void **state) {
    (void)state;
    static const char *const all[][MORE] = {{NULL}, {"fp8.scaling=static", "fp8.static_steps=1"}};
    for (int i = 0; i < 2; i++) {
        Rig r;
        rig_open(&r, all[i]);
        assert_true(r.shape.recompute_norm && r.shape.recompute_up && r.shape.recompute_swiglu);
        assert_int_equal(r.cx.nblocks, BLOCKS);
        rig_steps(&r, 1);
        for (int64_t j = 0; j < BLOCKS * SITE_COUNT; j++) {
            int64_t want = values_at(&r.shape, j / SITE_COUNT, (Site)(j % SITE_COUNT));
            const QuantCount *n = &r.cx.health[j];
            if (n->values != want)
                fail_msg("%s: %lld values counted, expected %lld", site_label(j / SITE_COUNT, (Site)(j % SITE_COUNT)).s,
                         (long long)n->values, (long long)want);
            assert_true((n->tiles > 0) == (want > 0) && n->nonfinite_tiles == 0);
            assert_true((n->amax_bits > 0) == (want > 0));
        }
        rig_close(&r);
    }
}

// ---- static scales ----------------------------------------------------------------------------

static const char *const static_sets[] = {"fp8.scaling=static", "fp8.static_steps=3", "fp8.static_margin=1.25", NULL};

// The table is the running maximum of the steps' counts; then the scales stay, and what lies beyond saturates.
static void calibration_fixes_scales(void **state) {
    (void)state;
    Rig r;
    rig_open(&r, static_sets);
    Calibration *c = r.cx.calibration;
    float most[BLOCKS * SITE_COUNT] = {0};
    QuantRule before = calibration_rule(c, &r.shape.recipe, 1, SITE_O_X);
    assert_int_equal(before.scope, SCOPE_TENSOR);
    for (int step = 1; step <= 3; step++) {
        rig_steps(&r, 1);
        for (int i = 0; i < BLOCKS * SITE_COUNT; i++)
            most[i] = fmaxf(most[i], f32_from_bits((uint32_t)r.cx.health[i].amax_bits));
        assert_memory_equal(c->amax, most, sizeof most);
        assert_true(c->steps == (float)step);
        assert_int_equal(calibration_is_fixed(c, &r.shape.recipe), step == 3);
    }
    QuantRule rule = calibration_rule(c, &r.shape.recipe, 1, SITE_O_X);
    assert_int_equal(rule.scope, SCOPE_STATIC);
    assert_true(rule.amax == most[SITE_COUNT + SITE_O_X] * 1.25f && rule.amax > 0);
    // The weights of the next step already have the fixed scale, for all of their blocks and experts.
    const Param *w = params_find(model_params(r.model), P_EXPERT_UP, 2);
    float want = tile_scale_f32(most[2 * SITE_COUNT + SITE_EXPERT_UP_W] * 1.25f);
    for (int64_t i = 0; i < w->nmat * w->q.sstep; i++) assert_true(((const float *)w->q.s)[i] == want);
    rig_steps(&r, 2);
    assert_memory_equal(c->amax, most, sizeof most); // no longer recorded
    for (int64_t i = 0; i < w->nmat * w->q.sstep; i++) assert_true(((const float *)w->q.s)[i] == want);
    assert_int_equal(c->unseen, 0);
    assert_false(c->is_warned);
    // Scales far too small: values saturate and are counted.
    c->amax[SITE_COUNT + SITE_O_X] *= 0x1p-6f;
    rig_steps(&r, 1);
    const QuantCount *n = &r.cx.health[SITE_COUNT + SITE_O_X];
    assert_true(n->saturated > n->values / 10);
    // A site that calibration never saw has a scale per tensor, and is counted: once per step in this block.
    c->amax[SITE_COUNT + SITE_O_X] = 0;
    assert_int_equal(calibration_rule(c, &r.shape.recipe, 1, SITE_O_X).scope, SCOPE_TENSOR);
    c->unseen = 0;
    rig_steps(&r, 2);
    assert_int_equal(n->saturated, 0);
    assert_int_equal(c->unseen, 2);
    assert_true(c->is_warned);
    rig_close(&r);
}

static void save(Rig *r, const char *dir) {
    CheckpointInfo info = {.step = r->step, .samples = 2 * r->step};
    MUST_OK(checkpoint_save(dir, model_params(r->model), &r->cx, &info, r->config, 9, 0));
}

static void load(Rig *r, const char *dir, int64_t step) {
    char path[256];
    snprintf(path, sizeof path, "%s/step_%08lld", dir, (long long)step);
    MUST_OK(checkpoint_load(path, model_params(r->model), &r->cx, true));
    MUST_OK(params_publish(model_params(r->model), &r->shape, &r->cx));
    r->step = step;
}

// heldout: forward loss of the rig's batch by an evaluation of the checkpoint.
static double heldout(Rig *like, const char *dir, int64_t step) {
    Solo solo;
    LossSums sums = {0};
    char path[256];
    Config *stored = NULL;
    snprintf(path, sizeof path, "%s/step_%08lld", dir, (long long)step);
    MUST_OK(checkpoint_read_config(path, &stored));
    MUST_OK(solo_open(&solo, stored, false, 1));
    MUST_OK(checkpoint_load(path, model_params(solo.model), &solo.cx, false));
    MUST_OK(solo_publish(&solo));
    Batch b = rig_batch(like);
    MUST_OK(model_fwd(solo.model, &solo.cx, &b, &sums, NULL));
    solo_close(&solo);
    config_free(stored);
    return sums.lm;
}

// Saved in the middle of calibration, at its end and after it: resumed, a run goes on to the bit.
static void static_scales_resume(void **state) {
    (void)state;
    char dir[200];
    snprintf(dir, sizeof dir, "%s/static", scratch_dir);
    Rig whole, part;
    rig_open(&whole, static_sets);
    double sums[5] = {0};
    for (int step = 1; step <= 4; step++) {
        rig_steps(&whole, 1);
        save(&whole, dir);
        Batch b = rig_batch(&whole);
        LossSums s = {0};
        MUST_OK(model_fwd(whole.model, &whole.cx, &b, &s, NULL));
        sums[step] = s.lm;
    }
    rig_steps(&whole, 2);
    for (int step = 2; step <= 4; step++) {
        rig_open(&part, static_sets);
        load(&part, dir, step);
        assert_true(part.cx.calibration->steps == (float)(step < 3 ? step : 3));
        rig_steps(&part, 6 - step);
        if (!same_weights(&whole, &part) || part.loss != whole.loss) fail_msg("resumed at step %d: differs", step);
        assert_memory_equal(part.cx.calibration->amax, whole.cx.calibration->amax,
                            BLOCKS * SITE_COUNT * sizeof(float));
        rig_close(&part);
        assert_true(heldout(&whole, dir, step) == sums[step]); // an evaluation scales as the run did
    }
    rig_close(&whole);
    // Another scaling leaves the table out; without a table calibration starts at its beginning.
    rig_open(&part, NULL);
    load(&part, dir, 4);
    rig_steps(&part, 1);
    save(&part, dir);
    rig_close(&part);
    rig_open(&part, static_sets);
    load(&part, dir, 5);
    assert_true(part.cx.calibration->steps == 0);
    rig_steps(&part, 1);
    assert_true(part.cx.calibration->steps == 1);
    rig_close(&part);
}

static void checkpoints_hold_the_recipe(void **state) {
    (void)state;
    char dir[200], path[300], text[400];
    snprintf(dir, sizeof dir, "%s/stored", scratch_dir);
    static const char *const more[] = {"fp8.scaling=row", "fp8.grad_format=e5m2", NULL};
    Rig r;
    rig_open(&r, more);
    save(&r, dir);
    snprintf(path, sizeof path, "%s/step_00000000/index.h5", dir);
    TensorFile *f = NULL;
    MUST_OK(tensorfile_open(&f, path));
    MUST_OK(tensorfile_get_text(f, NULL, "precision", text, sizeof text));
    assert_string_equal(text, recipe_text(r.config).classes);
    assert_non_null(strstr(text, "gradients row pow2 e5m2"));
    MUST_OK(tensorfile_close(&f, false));
    Config *stored = NULL;
    snprintf(path, sizeof path, "%s/step_00000000", dir);
    MUST_OK(checkpoint_read_config(path, &stored));
    Recipe a = recipe_from_config(stored);
    assert_memory_equal(a.row, r.shape.recipe.row, sizeof a.row);
    config_free(stored);
    rig_close(&r);
}

int main(void) {
    log_init(1, 2); // no lines
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(settings_make_the_table),    cmocka_unit_test(recipe_is_said),
        cmocka_unit_test(combinations_are_refused),   cmocka_unit_test(sites_have_names),
        cmocka_unit_test(baselines_train),            cmocka_unit_test(every_site_is_counted_once),
        cmocka_unit_test(calibration_fixes_scales),   cmocka_unit_test(static_scales_resume),
        cmocka_unit_test(checkpoints_hold_the_recipe),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
