// test_model.c - the whole model: its gradient against central differences of its own loss, accumulation over
// micro-batches, the measuring pass against real use, and that neither memory's old contents nor the number
// of threads changes a bit.
//
// Differences are taken in FP32 mode along directions, not single weights, so that the signal is above rounding:
// the gradient's own direction, random signs (which see every element), and single elements.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "evaluate.h"
#include "log.h"
#include "model_rig.h"
#include "solo.h"
#include "step.h"

#define TRAIN_SHARD "data/samples/tiny.tokens.h5"
#define HELDOUT_SHARD "data/samples/tiny.heldout.h5"

// One small model; later settings win over earlier ones.
static const char *const base_sets[] = {
    "model.vocab_size=24",          "model.hidden_size=20",         "model.intermediate_size=28",
    "model.moe_intermediate_size=12", "model.num_hidden_layers=2",  "model.num_attention_heads=2",
    "model.n_routed_experts=8",     "model.num_experts_per_tok=2",  "model.first_k_dense_replace=1",
    "model.kv_lora_rank=8",         "model.qk_nope_head_dim=4",     "model.qk_rope_head_dim=4",
    "model.v_head_dim=4",           "model.initializer_range=0.25", "model.max_position_embeddings=64",
    "train.steps=10",               "train.seq_len=7",              "train.global_batch=2",
    "train.micro_batch=2",          "precision.mode=fp32",          "balance.seq_alpha=0.05",
};

// A model on one rank with memory for gradients and, unlike Solo, for the optimizer.
typedef struct Rig {
    Config *config;
    Boot boot;
    Mesh mesh;
    Shape shape;
    MemoryPlan plan;
    Cx cx;
    Model *model;
    int32_t *tokens, *doc_start; // [B, S+1+nmtp], [B, S]
} Rig;

static void rig_open(Rig *r, const char *const *sets, int nthreads) {
    memset(r, 0, sizeof *r);
    rig_config(&r->config, base_sets, (int)(sizeof base_sets / sizeof base_sets[0]), sets);
    r->boot.nranks = r->boot.local_nranks = 1;
    MUST_OK(comm_self(&r->boot.world, "world"));
    MUST_OK(comm_self(&r->boot.ep, "ep"));
    MUST_OK(comm_self(&r->boot.edp, "edp"));
    MUST_OK(mesh_build(&r->mesh, 1, 0, 1));
    MUST_OK(shape_from_config(&r->shape, r->config, &r->mesh));
    MUST_OK(memory_measure(&r->plan, &r->shape, &r->mesh, true, true));
    MUST_OK(cx_create(&r->cx, &r->boot, &r->mesh, &r->shape, &r->plan, nthreads));
    MUST_OK(model_create(&r->model, &r->shape, &r->cx, true, true));
    Params *p = model_params(r->model);
    rig_init(p, &r->shape, &r->cx);
    MUST_OK(params_publish(p, &r->shape, &r->cx));
    const Shape *s = &r->shape;
    int64_t ld = s->S + 1 + s->nmtp;
    MUST_OK(mem_alloc((void **)&r->tokens, (size_t)(s->B * ld) * sizeof(int32_t), "tokens"));
    MUST_OK(mem_alloc((void **)&r->doc_start, (size_t)(s->B * s->S) * sizeof(int32_t), "doc_start"));
    for (int64_t i = 0; i < s->B * ld; i++) {
        r->tokens[i] = (int32_t)(philox(11, 0, (uint64_t)i).v[0] % (uint64_t)s->V);
    }
    for (int64_t i = 0; i < s->B * s->S; i++) { // documents of 3 tokens, the second row's shifted
        int64_t row = i / s->S, at = i % s->S, border = (at + row) / 3 * 3 - row;
        r->doc_start[i] = (int32_t)max_i64(border, 0);
    }
}

static void rig_close(Rig *r) {
    model_free(&r->model);
    cx_destroy(&r->cx);
    comm_destroy(&r->boot.world);
    comm_destroy(&r->boot.ep);
    comm_destroy(&r->boot.edp);
    mem_free(r->tokens);
    mem_free(r->doc_start);
    config_free(r->config);
}

static Batch rig_batch(const Rig *r, bool is_complete) {
    Batch b = {.nseq = r->shape.B, .S = r->shape.S, .ld = r->shape.S + 1 + r->shape.nmtp, .tokens = r->tokens,
               .is_complete = is_complete};
    if (r->shape.document_mask) b.doc_start = r->doc_start;
    return b;
}

// ---- gradients --------------------------------------------------------------------------------

// total: the loss whose gradient model_fwd_bwd takes, written down once more from its description.
static double total(const Rig *r, const LossSums *sums, const LossScale *scale, bool is_complete) {
    double t = sums->lm * scale->lm + sums->balance * scale->balance;
    for (int64_t k = 1; k <= r->shape.nmtp; k++) {
        double fewer = is_complete ? 1.0 : (double)(r->shape.S - 1) / (double)(r->shape.S - 1 - k);
        t += sums->mtp[k - 1] * scale->mtp * fewer;
    }
    return t;
}

static double loss_at(Rig *r, const Batch *b, const LossScale *scale) {
    LossSums sums = {0};
    MUST_OK(model_fwd(r->model, &r->cx, b, &sums, NULL));
    return total(r, &sums, scale, b->is_complete);
}

// slope: derivative of the loss along `dir` (length 1) at w, from four central differences in two steps.
static double slope(Rig *r, const Batch *b, const LossScale *scale, float *w, const float *dir, int64_t n, double h,
                    float *keep) {
    double d[2];
    memcpy(keep, w, (size_t)n * sizeof *w);
    for (int i = 0; i < 2; i++) {
        double step = i == 0 ? h : 0.5 * h, side[2];
        for (int k = 0; k < 2; k++) {
            double sign = k == 0 ? step : -step;
            for (int64_t j = 0; j < n; j++) w[j] = (float)((double)keep[j] + sign * (double)dir[j]);
            side[k] = loss_at(r, b, scale);
        }
        d[i] = (side[0] - side[1]) / (2.0 * step);
    }
    memcpy(w, keep, (size_t)n * sizeof *w);
    return (4.0 * d[1] - d[0]) / 3.0; // the error of order h^2 cancels
}

static double dot(const float *a, const float *b, int64_t n) {
    double s = 0.0;
    for (int64_t i = 0; i < n; i++) s += (double)a[i] * (double)b[i];
    return s;
}

// direction number d: 0 the gradient's own, 1 and 2 random signs, 3 and 4 single elements.
static void direction(float *dir, const float *g, int64_t n, double norm, int d, uint64_t stream) {
    if (d == 0) {
        for (int64_t i = 0; i < n; i++) dir[i] = (float)((double)g[i] / norm);
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        bool up = philox((uint64_t)d, stream, (uint64_t)i).v[0] & 1;
        dir[i] = d > 2 ? 0.0f : (float)((up ? 1.0 : -1.0) / sqrt((double)n));
    }
    if (d > 2) dir[philox((uint64_t)d, stream, 0).v[1] % (uint64_t)n] = 1.0f;
}

static void check_param(Rig *r, const Batch *b, const LossScale *scale, const Param *p, uint64_t stream) {
    int64_t n = p->w.rows * p->w.cols;
    float *g = p->grad.p, *dir = malloc((size_t)n * sizeof *dir), *keep = malloc((size_t)n * sizeof *keep);
    double norm = sqrt(dot(g, g, n));
    if (!(norm > 1e-7)) fail_msg("%s: the gradient's norm is %g", p->name, norm);
    for (int d = 0; d < 5; d++) {
        direction(dir, g, n, norm, d, stream);
        double h = 0.01, want = dot(g, dir, n), got = slope(r, b, scale, p->w.p, dir, n, h, keep);
        // Rounding of two losses of a few nats, 24-bit, over the step; and what the extrapolation leaves.
        double bound = 4e-7 / h + 5e-3 * norm;
        if (!(fabs(got - want) <= bound)) {
            // A selection of the router may flip inside the step: then a much smaller one must agree.
            got = slope(r, b, scale, p->w.p, dir, n, h / 16, keep);
            bound = 16 * 4e-7 / h + 5e-3 * norm;
        }
        if (!(fabs(got - want) <= bound))
            fail_msg("%s, direction %d: difference quotient %g, gradient %g (norm %g, bound %g)", p->name, d, got,
                     want, norm, bound);
    }
    free(dir);
    free(keep);
}

static void check_gradients(const char *const *sets, bool is_complete) {
    Rig r;
    rig_open(&r, sets, 1);
    Batch b = rig_batch(&r, is_complete);
    double targets = (double)(r.shape.B * (is_complete ? r.shape.S : r.shape.S - 1));
    LossScale scale = {.lm = 1.0 / targets, .balance = r.config->balance.seq_alpha / (double)r.shape.B};
    if (r.shape.nmtp) scale.mtp = r.config->mtp.loss_weight / (double)r.shape.nmtp / targets;
    Params *p = model_params(r.model);
    LossSums with = {0};
    MUST_OK(params_zero_grad(p, &r.cx));
    MUST_OK(model_fwd_bwd(r.model, &r.cx, &b, &scale, &with, NULL));
    assert_true(loss_at(&r, &b, &scale) == total(&r, &with, &scale, is_complete)); // both passes are one computation
    assert_int_equal(with.lm_targets, (int64_t)targets);
    for (int i = 0; i < p->n; i++) check_param(&r, &b, &scale, &p->p[i], (uint64_t)i);
    rig_close(&r);
}

static void gradient_v3(void **state) {
    (void)state;
    static const char *const sets[] = {"model.q_lora_rank=12", "model.num_nextn_predict_layers=2",
                                       "model.n_group=4", "model.topk_group=2", "model.routed_scaling_factor=2.5",
                                       "model.initializer_range=0.15", NULL};
    check_gradients(sets, true);
}

static void gradient_incomplete_windows(void **state) {
    (void)state;
    static const char *const sets[] = {"model.num_nextn_predict_layers=2", "model.q_lora_rank=12", NULL};
    check_gradients(sets, false);
}

static void gradient_softmax_without_normalisation(void **state) {
    (void)state;
    static const char *const sets[] = {"model.scoring_func=softmax", "model.topk_method=greedy",
                                       "balance.method=none", "model.norm_topk_prob=false",
                                       "model.n_shared_experts=0", "model.num_experts_per_tok=3", NULL};
    check_gradients(sets, true);
}

static void gradient_tied_head_documents_two_shared(void **state) {
    (void)state;
    static const char *const sets[] = {"model.tie_word_embeddings=true", "model.num_nextn_predict_layers=1",
                                       "train.document_mask=true", "model.n_shared_experts=2",
                                       "model.num_experts_per_tok=8", "model.n_group=2", "model.topk_group=2", NULL};
    check_gradients(sets, true);
}

static void gradient_dense_only(void **state) {
    (void)state;
    static const char *const sets[] = {"model.first_k_dense_replace=2", "model.tie_word_embeddings=true", NULL};
    check_gradients(sets, true);
}

// ---- accumulation -----------------------------------------------------------------------------

// Two micro-batches of one sequence add up to one of two, in FP32 up to the order of sums.
static void accumulation_equals_one_batch(void **state) {
    (void)state;
    static const char *const sets[] = {"model.q_lora_rank=12", "model.num_nextn_predict_layers=1",
                                       "train.document_mask=true", NULL};
    Rig r;
    rig_open(&r, sets, 1);
    Params *p = model_params(r.model);
    const Shape *s = &r.shape;
    LossScale scale = {.lm = 1.0 / 14, .mtp = 0.3 / 14, .balance = 0.05 / 2};
    Batch both = rig_batch(&r, true);
    LossSums once = {0}, twice = {0};
    MUST_OK(params_zero_grad(p, &r.cx));
    MUST_OK(model_zero_counts(r.model, &r.cx));
    MUST_OK(model_fwd_bwd(r.model, &r.cx, &both, &scale, &once, NULL));
    int64_t load[8];
    memcpy(load, model_counts(r.model)[1], sizeof load);
    float **sum = calloc((size_t)p->n, sizeof *sum);
    for (int i = 0; i < p->n; i++) {
        size_t bytes = (size_t)(p->p[i].grad.rows * p->p[i].grad.cols) * sizeof(float);
        sum[i] = malloc(bytes);
        memcpy(sum[i], p->p[i].grad.p, bytes);
    }
    MUST_OK(params_zero_grad(p, &r.cx));
    MUST_OK(model_zero_counts(r.model, &r.cx));
    for (int64_t row = 0; row < 2; row++) {
        Batch one = both;
        one.nseq = 1;
        one.tokens = both.tokens + row * both.ld;
        one.doc_start = both.doc_start + row * s->S;
        MUST_OK(model_fwd_bwd(r.model, &r.cx, &one, &scale, &twice, NULL));
    }
    assert_memory_equal(load, model_counts(r.model)[1], sizeof load);
    assert_true(fabs(once.lm - twice.lm) <= 1e-6 * once.lm);
    assert_true(fabs(once.mtp[0] - twice.mtp[0]) <= 1e-6 * once.mtp[0]);
    assert_true(fabs(once.balance - twice.balance) <= 1e-6 * once.balance);
    assert_int_equal(once.lm_targets, twice.lm_targets);
    for (int i = 0; i < p->n; i++) {
        int64_t n = p->p[i].grad.rows * p->p[i].grad.cols;
        float *g = p->p[i].grad.p;
        double norm = sqrt(dot(g, g, n)), diff = 0.0;
        for (int64_t j = 0; j < n; j++) diff += ((double)g[j] - sum[i][j]) * ((double)g[j] - sum[i][j]);
        if (!(sqrt(diff) <= 2e-6 * norm)) fail_msg("%s: differs by %g of %g", p->p[i].name, sqrt(diff), norm);
        free(sum[i]);
    }
    free(sum);
    rig_close(&r);
}

// ---- memory -----------------------------------------------------------------------------------

// On one rank the worst case is what happens: every token's experts are here.
static void measured_is_used(void **state) {
    (void)state;
    static const char *const modes[] = {"precision.mode=fp32", "precision.mode=bf16", "precision.mode=fp8"};
    for (int i = 0; i < 6; i++) {
        const char *const sets[] = {modes[i % 3],
                                    "model.num_nextn_predict_layers=2",
                                    i < 3 ? "model.q_lora_rank=12" : "model.q_lora_rank=null",
                                    i < 3 ? "train.document_mask=false" : "train.document_mask=true",
                                    i < 3 ? "model.n_shared_experts=1" : "model.n_shared_experts=0",
                                    NULL};
        Rig r;
        rig_open(&r, sets, 1);
        assert_int_equal(arena_high(r.cx.params), r.plan.params);
        assert_int_equal(arena_high(r.cx.state), r.plan.state);
        arena_reset_high(r.cx.acts);
        arena_reset_high(r.cx.scratch);
        Batch b = rig_batch(&r, true);
        LossScale scale = {.lm = 1, .mtp = 1, .balance = 1};
        LossSums sums = {0};
        MUST_OK(params_zero_grad(model_params(r.model), &r.cx));
        MUST_OK(model_fwd_bwd(r.model, &r.cx, &b, &scale, &sums, NULL));
        assert_int_equal(arena_high(r.cx.acts), r.plan.acts);
        assert_true(arena_high(r.cx.scratch) <= arena_size(r.cx.scratch));
        assert_int_equal(arena_mark(r.cx.acts), 0); // everything was given back
        assert_int_equal(arena_mark(r.cx.scratch), 0);
        assert_int_equal(r.plan.acts, r.plan.acts_balanced);
        rig_close(&r);
    }
}

// More ranks never need less in the worst case than in balance; both are found without them.
static void measures_other_layouts(void **state) {
    (void)state;
    Rig r;
    rig_open(&r, NULL, 1);
    for (int ep = 1; ep <= 8; ep *= 2) {
        Mesh mesh;
        Shape s;
        MemoryPlan plan;
        MUST_OK(mesh_build(&mesh, 8, 5, ep));
        MUST_OK(shape_from_config(&s, r.config, &mesh));
        int64_t before = mem_count();
        MUST_OK(memory_measure(&plan, &s, &mesh, true, true));
        assert_true(mem_count() > before);
        assert_true(plan.acts >= plan.acts_balanced && plan.scratch >= plan.scratch_balanced);
        assert_true(plan.acts >= r.plan.acts);
        assert_true(plan.state < r.plan.state);
        assert_true(ep == 1 || plan.params < r.plan.params);
    }
    rig_close(&r);
}

// ---- steps ------------------------------------------------------------------------------------

static Loader *open_loader(const Rig *r, const char *path, bool is_eval) {
    LoaderCorpus corpus = {path, 0.0};
    LoaderSpec spec = {.corpora = &corpus, .ncorpora = 1, .seq_len = r->shape.S, .mtp_depth = r->shape.nmtp,
                       .vocab_size = r->shape.V, .seed = 1, .is_eval = is_eval};
    Loader *l = NULL;
    MUST_OK(loader_open(&l, &spec));
    return l;
}

static const char *const step_sets[] = {"model.vocab_size=512",
                                        "model.hidden_size=132",
                                        "model.q_lora_rank=12",
                                        "model.num_nextn_predict_layers=1",
                                        "model.initializer_range=0.02",
                                        "train.seq_len=24",
                                        "train.global_batch=4",
                                        "train.document_mask=true",
                                        "train.lr=1e-3",
                                        "precision.mode=fp8",
                                        NULL,
                                        NULL};

// Three steps, the last two followed by an evaluation; returns the hash of the state, and in `seen` the last loss,
// the held-out loss and the sum of MaxVio.
static uint64_t three_steps(const char *mode, int nthreads, bool is_poisoned, double seen[3]) {
    const char *sets[sizeof step_sets / sizeof step_sets[0]];
    memcpy(sets, step_sets, sizeof sets);
    sets[sizeof sets / sizeof sets[0] - 2] = mode;
    arena_poison(is_poisoned);
    Rig r;
    rig_open(&r, sets, nthreads);
    Loader *train = open_loader(&r, TRAIN_SHARD, false), *heldout = open_loader(&r, HELDOUT_SHARD, true);
    int64_t samples = 0, allocations = 0;
    EvalResult eval = {0};
    for (int64_t step = 1; step <= 3; step++) {
        StepInput in = {.config = r.config, .loader = train, .step = step, .samples = samples, .tokens = r.tokens,
                        .doc_start = r.doc_start};
        StepOutput out;
        MUST_OK(step_train(r.model, &r.cx, &in, &out));
        if (step > 1) MUST_OK(evaluate_heldout(r.model, &r.cx, heldout, 1, 5, NULL, &eval));
        assert_false(out.is_stopped);
        assert_true(isfinite(out.m.loss) && out.m.grad_norm > 0);
        assert_int_equal(out.m.samples, 4 * step);
        samples = out.m.samples;
        seen[0] = out.m.loss;
        seen[1] = step > 1 ? eval.loss : 0.0;
        seen[2] = (step > 1 ? seen[2] : 0.0) + out.m.maxvio;
        if (step == 1) allocations = mem_count();
    }
    assert_int_equal(mem_count(), allocations);
    uint64_t hash = 0;
    MUST_OK(optimizer_hash(model_params(r.model), &r.cx, &hash));
    loader_close(&train);
    loader_close(&heldout);
    rig_close(&r);
    arena_poison(false);
    return hash;
}

static void steps_do_not_depend_on_memory_or_threads(void **state) {
    (void)state;
    static const char *const modes[] = {"precision.mode=fp32", "precision.mode=bf16", "precision.mode=fp8"};
    for (int i = 0; i < 3; i++) {
        double clean[3], other[3];
        uint64_t hash = three_steps(modes[i], 1, false, clean);
        assert_true(three_steps(modes[i], 1, true, other) == hash);
        assert_memory_equal(clean, other, sizeof clean);
        assert_true(three_steps(modes[i], 3, true, other) == hash);
        assert_memory_equal(clean, other, sizeof clean);
    }
}

// fp8.accumulate reaches the products: each way of summing trains, to its own bits whatever the number of threads, and
// to nearly the same loss.
static void accumulations_train(void **state) {
    (void)state;
    static const char *const sets[] = {"fp8.accumulate=promote128", "fp8.accumulate=fp32", "fp8.accumulate=hopper14",
                                       "fp8.accumulate=promote128_hopper14"};
    uint64_t hash[4];
    double seen[4][3], again[3];
    for (int i = 0; i < 4; i++) {
        hash[i] = three_steps(sets[i], 1, false, seen[i]);
        assert_true(three_steps(sets[i], 2, false, again) == hash[i]);
        assert_true(fabs(seen[i][0] - seen[0][0]) < 0.02 * seen[0][0]);
        for (int j = 0; j < i; j++) assert_true(hash[i] != hash[j]);
    }
    assert_true(three_steps("precision.mode=fp8", 1, false, again) == hash[0]); // the default
}

// Every expert's bias moves by exactly gamma, against its load in the whole global batch, and counting starts anew.
static void bias_follows_load(void **state) {
    (void)state;
    Rig r;
    rig_open(&r, step_sets, 1);
    Loader *train = open_loader(&r, TRAIN_SHARD, false);
    const Shape *s = &r.shape;
    Params *p = model_params(r.model);
    float before[8];
    memcpy(before, p->bias[2], sizeof before);
    // The loads of step 1, counted by hand: forward passes over its two micro-batches.
    int64_t load[8] = {0};
    for (int64_t i = 0; i < 4; i += 2) {
        Batch b = rig_batch(&r, true);
        LossSums sums = {0};
        MUST_OK(loader_batch(train, i, 2, r.tokens, r.doc_start, NULL));
        MUST_OK(model_fwd(r.model, &r.cx, &b, &sums, NULL));
    }
    memcpy(load, model_counts(r.model)[2], sizeof load);
    MUST_OK(model_zero_counts(r.model, &r.cx));
    StepInput in = {.config = r.config, .loader = train, .step = 1, .tokens = r.tokens, .doc_start = r.doc_start};
    StepOutput out;
    MUST_OK(step_train(r.model, &r.cx, &in, &out));
    int64_t all = 0;
    for (int e = 0; e < 8; e++) all += load[e];
    assert_int_equal(all, 4 * s->S * s->K);
    for (int e = 0; e < 8; e++) {
        float gamma = 0.001f, want = before[e] + (8 * load[e] < all ? gamma : 8 * load[e] > all ? -gamma : 0.0f);
        assert_true(p->bias[2][e] == want);
        assert_int_equal(model_counts(r.model)[2][e], 0);
    }
    assert_null(p->bias[0]); // the dense block
    loader_close(&train);
    rig_close(&r);
}

static int stop_now(void) {
    return 15;
}

// A stop request drops the step: nothing of it reaches parameters, biases or counts.
static void stopped_step_changes_nothing(void **state) {
    (void)state;
    Rig r;
    rig_open(&r, step_sets, 1);
    Loader *train = open_loader(&r, TRAIN_SHARD, false);
    uint64_t before = 0, after = 0;
    Stop stop = {.signalled = stop_now};
    MUST_OK(optimizer_hash(model_params(r.model), &r.cx, &before));
    StepInput in = {.config = r.config, .loader = train, .step = 1, .tokens = r.tokens, .doc_start = r.doc_start,
                    .stop = &stop};
    StepOutput out;
    MUST_OK(step_train(r.model, &r.cx, &in, &out));
    assert_true(out.is_stopped);
    assert_int_equal(stop.reason, 15);
    MUST_OK(optimizer_hash(model_params(r.model), &r.cx, &after));
    assert_true(before == after);
    loader_close(&train);
    rig_close(&r);
}

// A value that is not finite is found, named, and stops the run before anything is updated.
static void nonfinite_is_refused(void **state) {
    (void)state;
    Rig r;
    rig_open(&r, step_sets, 1);
    Loader *train = open_loader(&r, TRAIN_SHARD, false);
    Param *down = params_find(model_params(r.model), P_EXPERT_DOWN, 1);
    uint64_t before = 0, after = 0;
    MUST_OK(optimizer_hash(model_params(r.model), &r.cx, &before));
    uint16_t *w = down->w.p;
    for (int64_t i = 0; i < down->w.rows * down->w.cols; i++) w[i] = 0x7FC0;
    MUST_OK(r.cx.ops->weight_prepare(&r.cx.op, down->q, down->w, (QuantRule){0}, NULL));
    StepInput in = {.config = r.config, .loader = train, .step = 7, .tokens = r.tokens, .doc_start = r.doc_start};
    StepOutput out;
    assert_int_equal(step_train(r.model, &r.cx, &in, &out), E_NUMERIC);
    assert_non_null(strstr(fail_message(), "step 7"));
    assert_non_null(strstr(fail_message(), "layer 1"));
    MUST_OK(optimizer_hash(model_params(r.model), &r.cx, &after));
    assert_true(before == after);
    fail_clear();
    loader_close(&train);
    rig_close(&r);
}

// Solo's memory is enough for evaluations, also of models without MTP modules.
static void evaluates_alone(void **state) {
    (void)state;
    Rig r;
    rig_open(&r, step_sets, 1);
    r.config->model.num_nextn_predict_layers = 0;
    Solo solo;
    MUST_OK(solo_open(&solo, r.config, false, 1));
    MUST_OK(params_init(model_params(solo.model), &solo.shape, &solo.cx));
    MUST_OK(solo_publish(&solo));
    Loader *heldout = open_loader(&r, HELDOUT_SHARD, true);
    loader_close(&heldout);
    LoaderCorpus corpus = {HELDOUT_SHARD, 0.0};
    LoaderSpec spec = {.corpora = &corpus, .ncorpora = 1, .seq_len = solo.shape.S, .vocab_size = solo.shape.V,
                       .seed = 1, .is_eval = true};
    MUST_OK(loader_open(&heldout, &spec));
    EvalResult e;
    CopyResult c;
    MUST_OK(evaluate_heldout(solo.model, &solo.cx, heldout, 1, 5, NULL, &e));
    assert_int_equal(e.tokens, 5 * solo.shape.S);
    assert_true(fabs(e.loss - log(512.0)) < 0.3); // nothing was learned
    assert_true(isnan(e.bits_per_byte));          // not all of the text
    MUST_OK(evaluate_copy(solo.model, &solo.cx, 3, 1, &c));
    assert_int_equal(c.repeat_tokens + c.control_tokens, 3 * (solo.shape.S - 1));
    loader_close(&heldout);
    solo_close(&solo);
    rig_close(&r);
}

int main(void) {
    log_init(1, 2); // no lines
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_v3),
        cmocka_unit_test(gradient_incomplete_windows),
        cmocka_unit_test(gradient_softmax_without_normalisation),
        cmocka_unit_test(gradient_tied_head_documents_two_shared),
        cmocka_unit_test(gradient_dense_only),
        cmocka_unit_test(accumulation_equals_one_batch),
        cmocka_unit_test(measured_is_used),
        cmocka_unit_test(measures_other_layouts),
        cmocka_unit_test(steps_do_not_depend_on_memory_or_threads),
        cmocka_unit_test(accumulations_train),
        cmocka_unit_test(bias_follows_load),
        cmocka_unit_test(stopped_step_changes_nothing),
        cmocka_unit_test(nonfinite_is_refused),
        cmocka_unit_test(evaluates_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
