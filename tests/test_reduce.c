// test_reduce.c - gradients that leave for their owners while the backward still runs, on real ranks: a gradient is
// announced as final only once nothing more is added to it, and the sums are those of everybody's whole gradients
// in rank order, to the bit.
#include "model_memory.h"
#include "rank_tests.h"
#include "reduce.h"

// Blocks of several buckets, an MTP module, experts.
static const char *const sets[] = {
    "model.vocab_size=3000",        "model.hidden_size=256",    "model.intermediate_size=2000",
    "model.moe_intermediate_size=200", "model.num_hidden_layers=3", "model.num_nextn_predict_layers=1",
    "model.num_attention_heads=2",  "model.n_routed_experts=8", "model.num_experts_per_tok=2",
    "model.first_k_dense_replace=2", "model.kv_lora_rank=32",   "model.q_lora_rank=24",
    "model.qk_nope_head_dim=16",    "model.qk_rope_head_dim=8", "model.v_head_dim=16",
    "train.steps=10",               "train.seq_len=16",         "train.global_batch=8",
    "train.micro_batch=1",          "precision.mode=bf16"};

typedef struct Rig {
    Config *config;
    Mesh mesh;
    Shape shape;
    Cx cx;
    Model *model;
    int32_t *tokens;
    float **copy; // [params] gradients as they were when they were announced
    Reduce reduce;
} Rig;

static void rig_open(Rig *r, int ep, const char *tied) {
    const char *all[32];
    int n = (int)(sizeof sets / sizeof *sets);
    memcpy(all, sets, sizeof sets);
    all[n++] = tied;
    memset(r, 0, sizeof *r);
    MUST(config_load(&r->config, NULL, all, n));
    groups(ep);
    MUST(mesh_build(&r->mesh, boot.nranks, boot.rank, ep));
    MUST(shape_from_config(&r->shape, r->config, &r->mesh));
    MemoryPlan plan;
    MUST(memory_measure(&plan, &r->shape, &r->mesh, true, true));
    MUST(cx_create(&r->cx, &boot, &r->mesh, &r->shape, &plan, 1));
    MUST(model_create(&r->model, &r->shape, &r->cx, true, true));
    MUST(params_init(model_params(r->model), &r->shape, &r->cx));
    MUST(params_publish(model_params(r->model), &r->shape, &r->cx));
    int64_t ntokens = r->shape.S + 1 + r->shape.nmtp;
    r->tokens = zeroed(ntokens * 4);
    for (int64_t i = 0; i < ntokens; i++)
        r->tokens[i] = (int32_t)(draw(50 + (uint64_t)boot.rank, (uint64_t)i) % (uint64_t)r->shape.V);
    r->copy = zeroed(model_params(r->model)->n * (int64_t)sizeof *r->copy);
}

static void rig_close(Rig *r) {
    for (int i = 0; i < model_params(r->model)->n; i++) free(r->copy[i]);
    free(r->copy);
    free(r->tokens);
    model_free(&r->model);
    cx_destroy(&r->cx);
    config_free(r->config);
}

static size_t grad_bytes(const Param *p) {
    return (size_t)(p->grad.rows * p->cols) * sizeof(float);
}

// backward: one pass from empty gradients.
static void backward(Rig *r, const Taps *taps) {
    const Shape *s = &r->shape;
    Batch b = {.nseq = 1, .S = s->S, .ld = s->S + 1 + s->nmtp, .tokens = r->tokens, .is_complete = true};
    LossScale scale = {.lm = 0.1, .mtp = 0.03, .balance = 0.01};
    LossSums sums = {0};
    MUST(params_zero_grad(model_params(r->model), &r->cx));
    MUST(model_fwd_bwd(r->model, &r->cx, &b, &scale, &sums, taps));
}

// announced: keep what is final now.
static Err announced(void *user, int64_t layer) {
    Rig *r = user;
    Params *p = model_params(r->model);
    for (int i = 0; i < p->n; i++) {
        int64_t mine = p->p[i].family == P_HEAD ? p->nblocks : p->p[i].layer;
        if (mine != layer) continue;
        EXPECT(!r->copy[i]);
        r->copy[i] = zeroed((int64_t)grad_bytes(&p->p[i]));
        memcpy(r->copy[i], p->p[i].grad.p, grad_bytes(&p->p[i]));
    }
    return OK;
}

static void check_final(Rig *r) {
    Params *p = model_params(r->model);
    Taps taps = {.user = r, .grads = announced};
    backward(r, &taps);
    for (int i = 0; i < p->n; i++) {
        EXPECT(r->copy[i] && memcmp(r->copy[i], p->p[i].grad.p, grad_bytes(&p->p[i])) == 0);
    }
}

// check_sums: own rows against the sum of all ranks' copies.
static void check_sums(Rig *r) {
    Params *p = model_params(r->model);
    Taps taps = {.user = &r->reduce, .grads = reduce_block};
    size_t mark = arena_mark(r->cx.scratch);
    MUST(reduce_start(&r->reduce, p, &r->cx));
    backward(r, &taps);
    MUST(reduce_end(&r->reduce));
    EXPECT(arena_mark(r->cx.scratch) == mark);
    EXPECT(!r->cx.reduce[0] && !r->cx.reduce[1]);
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        Comm *g = e->is_expert ? boot.edp : boot.world;
        float *all = zeroed((int64_t)grad_bytes(e) * g->nranks);
        MUST(g->all_gather(g, all, r->copy[i], grad_bytes(e)));
        bool is_same = true;
        for (int64_t j = e->own.row0 * e->cols; j < (e->own.row0 + e->own.nrows) * e->cols; j++) {
            float sum = all[j];
            for (int k = 1; k < g->nranks; k++) sum += all[k * e->grad.rows * e->cols + j];
            is_same = is_same && memcmp(&sum, (float *)e->grad.p + j, sizeof sum) == 0;
        }
        EXPECT(is_same);
        free(all);
    }
}

static void test_reduce(void) {
    static Rig r;
    for (int ep = 1; ep <= boot.nranks; ep++) {
        if (boot.nranks % ep != 0 || 8 % ep != 0) continue;
        for (int tied = 0; tied < 2; tied++) {
            rig_open(&r, ep, tied ? "model.tie_word_embeddings=true" : "model.tie_word_embeddings=false");
            check_final(&r);
            check_sums(&r);
            rig_close(&r);
        }
    }
}

static const RankTest tests[] = {{"test_reduce", test_reduce}};

int main(void) {
    MUST(boot_init(&boot));
    int failed = rank_tests_run(tests, sizeof tests / sizeof *tests);
    boot_finish(&boot);
    return failed ? 1 : 0;
}
