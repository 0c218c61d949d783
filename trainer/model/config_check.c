// config_check.c - the rules that tie settings together. Each prints the equation that fails.
//
// Ranges of single keys are checked while reading (config.c); here are only rules between keys, and
// the few open ends of a range (a value that must be above 0, not at it).
#include "recipe.h"

// RULE: the condition, and what the user reads if it fails.
#define RULE(cond, ...) CHECK(cond, E_CONFIG, __VA_ARGS__)
#define LL(x) ((long long)(x))

static Err check_router(const Config *c) {
    int64_t E = c->model.n_routed_experts;
    int64_t K = c->model.num_experts_per_tok;
    int64_t groups = c->model.n_group;
    int64_t kept = c->model.topk_group;
    RULE(E % groups == 0, "model.n_group (%lld) does not divide model.n_routed_experts (%lld)",
         LL(groups), LL(E));
    RULE(kept <= groups, "model.topk_group (%lld) is above model.n_group (%lld)", LL(kept),
         LL(groups));
    RULE(K <= E / groups * kept,
         "model.num_experts_per_tok (%lld) is above model.n_routed_experts / model.n_group * "
         "model.topk_group (%lld / %lld * %lld = %lld)",
         LL(K), LL(E), LL(groups), LL(kept), LL(E / groups * kept));
    RULE(groups == 1 || c->model.topk_method != TOPK_NOAUX_TC || E / groups >= 2,
         "model.topk_method noaux_tc scores a group by its two best experts, but "
         "model.n_routed_experts / "
         "model.n_group is %lld / %lld = %lld",
         LL(E), LL(groups), LL(E / groups));
    RULE(groups == 1 || c->model.topk_method != TOPK_GREEDY,
         "model.topk_method greedy has no groups, but model.n_group is %lld; set it to 1 or use "
         "group_limited_greedy",
         LL(groups));
    RULE(
        c->balance.method != BALANCE_BIAS || c->model.topk_method == TOPK_NOAUX_TC,
        "balance.method bias needs model.topk_method noaux_tc, which selects by biased scores; set "
        "balance.method to none");
    return OK;
}

// Rows with FP32 scales behind their codes keep those aligned only if the codes fill whole words.
static Err check_widths(const Config *c) {
    int64_t H = c->model.num_attention_heads;
    const struct {
        const char *name;
        int64_t width;
        bool is_wire;
    } widths[] = {
        {"model.hidden_size", c->model.hidden_size, true},
        {"model.intermediate_size", c->model.intermediate_size, false},
        {"model.moe_intermediate_size", c->model.moe_intermediate_size, false},
        {"model.q_lora_rank", c->model.q_lora_rank, false},
        {"model.kv_lora_rank", c->model.kv_lora_rank, false},
        {"model.kv_lora_rank + model.qk_rope_head_dim",
         c->model.kv_lora_rank + c->model.qk_rope_head_dim, false},
        {"model.num_attention_heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)",
         H * (c->model.qk_nope_head_dim + c->model.qk_rope_head_dim), false},
        {"model.num_attention_heads * (model.qk_nope_head_dim + model.v_head_dim)",
         H * (c->model.qk_nope_head_dim + c->model.v_head_dim), false},
        {"model.num_attention_heads * model.v_head_dim", H * c->model.v_head_dim, false},
    };
    Recipe r = recipe_from_config(c);
    bool is_fp32_scaled = c->precision.mode == MODE_FP8 && (r.row[CLASS_ACTIVATION].scale == SCALE_F32 ||
                                                            r.row[CLASS_GRADIENT].scale == SCALE_F32);
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; i++) {
        bool is_needed = widths[i].is_wire || is_fp32_scaled;
        RULE(!is_needed || widths[i].width % 4 == 0, "%s (%lld) is not a multiple of 4%s",
             widths[i].name, LL(widths[i].width),
             widths[i].is_wire ? ""
             : c->fp8.scale_format == SCALE_FORMAT_FP32 ? ", which fp8.scale_format fp32 needs"
                                                        : ", which fp8.grad_scale_format fp32 needs");
    }
    return OK;
}

static Err check_model(const Config *c) {
    RULE(c->model.qk_rope_head_dim % 2 == 0,
         "model.qk_rope_head_dim (%lld) is odd; rotation needs pairs",
         LL(c->model.qk_rope_head_dim));
    RULE(c->model.first_k_dense_replace <= c->model.num_hidden_layers,
         "model.first_k_dense_replace (%lld) is above model.num_hidden_layers (%lld)",
         LL(c->model.first_k_dense_replace), LL(c->model.num_hidden_layers));
    RULE(c->model.rms_norm_eps > 0, "model.rms_norm_eps (%g) must be above 0",
         c->model.rms_norm_eps);
    RULE(c->model.rope_theta > 1, "model.rope_theta (%g) must be above 1", c->model.rope_theta);
    if (c->model.has_rope_scaling) {
        RULE(c->model.rope_scaling_factor >= 1, "model.rope_scaling.factor (%g) must be at least 1",
             c->model.rope_scaling_factor);
        RULE(c->model.rope_scaling_beta_fast >= c->model.rope_scaling_beta_slow,
             "model.rope_scaling.beta_fast (%g) is below model.rope_scaling.beta_slow (%g)",
             c->model.rope_scaling_beta_fast, c->model.rope_scaling_beta_slow);
        RULE(c->model.rope_scaling_beta_slow > 0,
             "model.rope_scaling.beta_slow (%g) must be above 0", c->model.rope_scaling_beta_slow);
    }
    TRY(check_widths(c));
    return check_router(c);
}

static Err check_schedule(const Config *c) {
    const IntList *tail = &c->train.tail_steps;
    RULE(tail->n == c->train.tail_lr.n, "train.tail_steps has %d entries, train.tail_lr has %d",
         tail->n, c->train.tail_lr.n);
    int64_t tails = 0;
    for (int i = 0; i < tail->n; i++) {
        double lr = c->train.tail_lr.v[i];
        RULE(tail->v[i] >= 1 && tail->v[i] <= 1000000000,
             "train.tail_steps: %lld is not from 1 to 1000000000 steps", LL(tail->v[i]));
        RULE(lr >= 0 && lr <= 10, "train.tail_lr: %g is not from 0 to 10", lr);
        tails += tail->v[i];
    }
    int64_t sum = c->train.warmup_steps + c->train.constant_steps + c->train.decay_steps + tails;
    RULE(sum <= c->train.steps,
         "train.warmup_steps + constant_steps + decay_steps + tail_steps (%lld + %lld + %lld + "
         "%lld = %lld) is above train.steps (%lld), the length of the schedule; --steps ends a run earlier without "
         "changing it",
         LL(c->train.warmup_steps), LL(c->train.constant_steps), LL(c->train.decay_steps),
         LL(tails), LL(sum), LL(c->train.steps));
    RULE(c->train.min_lr <= c->train.lr, "train.min_lr (%g) is above train.lr (%g)",
         c->train.min_lr, c->train.lr);
    RULE(c->train.beta1 < 1, "train.beta1 (%g) must be below 1", c->train.beta1);
    RULE(c->train.beta2 < 1, "train.beta2 (%g) must be below 1", c->train.beta2);
    RULE(c->train.eps > 0, "train.eps (%g) must be above 0", c->train.eps);
    return OK;
}

static Err check_batch(const Config *c) {
    int64_t batch = c->train.global_batch;
    int64_t start = c->train.batch_start;
    int64_t quantum = c->train.batch_quantum;
    RULE(batch % c->train.micro_batch == 0,
         "train.micro_batch (%lld) does not divide train.global_batch (%lld)",
         LL(c->train.micro_batch), LL(batch));
    RULE(batch % quantum == 0,
         "train.batch_quantum (%lld) does not divide train.global_batch (%lld)", LL(quantum),
         LL(batch));
    if (start == 0) {
        RULE(c->train.batch_ramp_samples == 0,
             "train.batch_ramp_samples (%lld) needs train.batch_start, where the ramp begins",
             LL(c->train.batch_ramp_samples));
        return OK;
    }
    RULE(start <= batch, "train.batch_start (%lld) is above train.global_batch (%lld)", LL(start),
         LL(batch));
    RULE(start % quantum == 0,
         "train.batch_quantum (%lld) does not divide train.batch_start (%lld)", LL(quantum),
         LL(start));
    RULE(c->train.batch_ramp_samples > 0,
         "train.batch_start (%lld) needs train.batch_ramp_samples, the length of the ramp",
         LL(start));
    return OK;
}

static Err check_data(const Config *c) {
    const RealList *w = &c->data.weights;
    RULE(w->n == 0 || w->n == c->data.train.n, "data.weights has %d entries, data.train has %d",
         w->n, c->data.train.n);
    for (int i = 0; i < w->n; i++) RULE(w->v[i] > 0, "data.weights: %g must be above 0", w->v[i]);
    RULE(c->eval.every == 0 || c->data.eval.n > 0,
         "eval.every (%lld) needs data.eval, the held-out shards", LL(c->eval.every));
    return OK;
}

Err config_check(const Config *c) {
    TRY(check_model(c));
    TRY(recipe_check(c));
    int64_t ep = c->parallel.ep;
    RULE(c->parallel.comm != COMM_SELF || ep == 1,
         "parallel.comm self is one rank, but parallel.ep is %lld", LL(ep));
    TRY(check_schedule(c));
    TRY(check_batch(c));
    return check_data(c);
}

Err config_check_train(const Config *c) {
    RULE(c->data.train.n > 0, "data.train is missing: name the token shards to train on, in the "
                              "config or as --set data.train=FILE");
    return OK;
}

Err config_check_world(const Config *c, int world) {
    int64_t ep = c->parallel.ep;
    int64_t together = world * c->train.micro_batch;
    RULE(world % ep == 0,
         "parallel.ep (%lld) does not divide the world (%d): run on a multiple of %lld ranks (mpirun -q -n %lld ...), "
         "or set parallel.ep to a number that divides %d",
         LL(ep), world, LL(ep), LL(ep), world);
    RULE(c->model.n_routed_experts % ep == 0,
         "parallel.ep (%lld) does not divide model.n_routed_experts (%lld)", LL(ep),
         LL(c->model.n_routed_experts));
    RULE(c->parallel.comm != COMM_SELF || world == 1,
         "parallel.comm self is one rank, but the world is %d", world);
    RULE(c->train.global_batch % together == 0,
         "world * train.micro_batch (%d * %lld = %lld) does not divide train.global_batch (%lld)",
         world, LL(c->train.micro_batch), LL(together), LL(c->train.global_batch));
    if (c->train.batch_start == 0) return OK;
    RULE(c->train.batch_start % together == 0,
         "world * train.micro_batch (%d * %lld = %lld) does not divide train.batch_start (%lld)",
         world, LL(c->train.micro_batch), LL(together), LL(c->train.batch_start));
    RULE(c->train.batch_quantum % together == 0,
         "world * train.micro_batch (%d * %lld = %lld) does not divide train.batch_quantum (%lld)",
         world, LL(c->train.micro_batch), LL(together), LL(c->train.batch_quantum));
    return OK;
}
