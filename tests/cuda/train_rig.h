// train_rig.h - a small model that takes steps on a backend: what the tests of the trainer on the CUDA backend share.
// Everything here is Collective over the world of rank_tests.h.
#pragma once
#include "device.h"
#include "evaluate.h"
#include "health.h"
#include "model_memory.h"
#include "rank_tests.h"
#include "step.h"

uint64_t simt_launches(void);
uint64_t runtime_on_cpu_blocks(void);

enum { STEPS = 2, SETS_MAX = 48 };

// A dense block, one with experts, an MTP module; partial tiles.
static const char *const base_sets[] = {
    "model.vocab_size=512",           "model.hidden_size=36",          "model.intermediate_size=40",
    "model.moe_intermediate_size=12", "model.num_hidden_layers=2",     "model.num_attention_heads=2",
    "model.n_routed_experts=4",       "model.num_experts_per_tok=2",   "model.first_k_dense_replace=1",
    "model.q_lora_rank=12",           "model.kv_lora_rank=8",          "model.qk_nope_head_dim=4",
    "model.qk_rope_head_dim=4",       "model.v_head_dim=4",            "model.num_nextn_predict_layers=1",
    "model.initializer_range=0.1",    "model.max_position_embeddings=64", "train.steps=10",
    "train.seq_len=7",                "train.global_batch=4",          "train.micro_batch=1",
    "train.lr=1e-3",                  "balance.seq_alpha=0.05",        "train.document_mask=true",
};

typedef struct Rig {
    Config *config;
    Mesh mesh;
    Shape shape;
    Cx cx;
    Model *model;
    Health *health;
    Loader *train, *heldout;
    int32_t *tokens, *doc_start;
} Rig;

// What the steps showed.
typedef struct Seen {
    int64_t steps;
    StepMetrics m[STEPS];
    HealthTotals fp8[STEPS];
    EvalResult eval;
    uint64_t hash;
    int64_t load[8];
    // in step_train: waits of the host for the device, and calls of the runtime that may block it
    int64_t waits[STEPS], blocking[STEPS];
} Seen;

static inline Loader *open_loader(const Rig *r, const char *path, bool is_eval) {
    LoaderCorpus corpus = {path, 0.0};
    LoaderSpec spec = {.corpora = &corpus, .ncorpora = 1, .seq_len = r->shape.S, .mtp_depth = r->shape.nmtp,
                       .vocab_size = r->shape.V, .seed = 1, .is_eval = is_eval};
    Loader *l = NULL;
    MUST(loader_open(&l, &spec));
    return l;
}

static inline void rig_config(Rig *r, const char *const *sets) {
    const char *all[SETS_MAX];
    int n = (int)(sizeof base_sets / sizeof *base_sets);
    memset(r, 0, sizeof *r);
    memcpy(all, base_sets, sizeof base_sets);
    for (; *sets; sets++) all[n++] = *sets;
    MUST(config_load(&r->config, NULL, all, n));
    MUST(mesh_build(&r->mesh, boot.nranks, boot.rank, boot.ep->nranks));
    MUST(shape_from_config(&r->shape, r->config, &r->mesh));
}

static inline void rig_open(Rig *r, const char *device, const char *const *sets) {
    Backend on;
    MemoryPlan plan;
    rig_config(r, sets);
    const Shape *s = &r->shape;
    MUST(backend_choose(&on, device, 0));
    MUST(memory_measure(&plan, s, &r->mesh, true, true));
    MUST(cx_create_on(&r->cx, &on, &boot, &r->mesh, s, &plan, 1));
    MUST(model_create(&r->model, s, &r->cx, true, true));
    MUST(health_create(&r->health, &r->cx));
    MUST(params_init(model_params(r->model), s, &r->cx));
    MUST(params_publish(model_params(r->model), s, &r->cx));
    r->train = open_loader(r, "data/samples/tiny.tokens.h5", false);
    r->heldout = open_loader(r, "data/samples/tiny.heldout.h5", true);
    r->tokens = zeroed(s->B * (s->S + 1 + s->nmtp) * 4);
    r->doc_start = zeroed(s->B * s->S * 4);
}

static inline void rig_close(Rig *r) {
    loader_close(&r->train);
    loader_close(&r->heldout);
    health_free(&r->health);
    model_free(&r->model);
    cx_destroy(&r->cx);
    config_free(r->config);
    free(r->tokens);
    free(r->doc_start);
}

// waits_of_step: how often the host waits for the device in a step, where its memory goes through no host: for the
// choice of the router in every block with experts and for the losses, in each pass; for the gradients' norms; for the
// loads of the experts.
static inline int64_t waits_of_step(int64_t expert_blocks, int64_t passes) {
    return passes * (expert_blocks + 1) + 2;
}

static inline void run_step(Rig *r, int64_t step, int64_t samples, Seen *seen) {
    StepInput in = {.config = r->config, .loader = r->train, .step = step, .samples = samples, .tokens = r->tokens,
                    .doc_start = r->doc_start};
    StepOutput out;
    int64_t waits = device_cuda_waits(), blocking = (int64_t)runtime_on_cpu_blocks();
    MUST(step_train(r->model, &r->cx, &in, &out));
    seen->waits[step - 1] = device_cuda_waits() - waits;
    seen->blocking[step - 1] = (int64_t)runtime_on_cpu_blocks() - blocking;
    MUST(health_step(r->health, &r->cx, &seen->fp8[step - 1]));
    seen->m[step - 1] = out.m;
}

// train: steps, an evaluation, and one more pass whose rows are not complete: its gradients, and what its tokens chose
// in the second block.
static inline void train(Rig *r, Seen *seen) {
    const Shape *s = &r->shape;
    int64_t blocks = 0;
    for (int64_t step = 1; step <= seen->steps; step++) {
        run_step(r, step, step > 1 ? seen->m[step - 2].samples : 0, seen);
        if (step == 1) blocks = mem_count();
        EXPECT(mem_count() == blocks);
    }
    MUST(evaluate_heldout(r->model, &r->cx, r->heldout, 1, 2, NULL, &seen->eval));
    EXPECT(arena_mark(r->cx.acts) == 0 && arena_mark(r->cx.host_acts) == 0);
    EXPECT(arena_mark(r->cx.scratch) == 0 && arena_mark(r->cx.host_scratch) == 0);
    Batch b = {.nseq = 1, .S = s->S, .ld = s->S + 1 + s->nmtp, .tokens = r->tokens, .doc_start = r->doc_start};
    LossScale scale = {.lm = 0.1, .mtp = 0.03, .balance = 0.01};
    LossSums sums = {0};
    MUST(model_fwd_bwd(r->model, &r->cx, &b, &scale, &sums, NULL));
    MUST(r->cx.dev->to_host(seen->load, model_counts(r->model)[1], (size_t)s->E * sizeof *seen->load));
    MUST(optimizer_hash(model_params(r->model), &r->cx, &seen->hash));
}
