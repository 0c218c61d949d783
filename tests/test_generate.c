// test_generate.c - generation: on cached latents the model says what it says in training's pass and what Hugging
// Face's says, token by token or in pieces; the sampler against brute force; text across the borders of tokens.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "generate.h"
#include "hf_masters.h"
#include "log.h"
#include "model_rig.h"

#define TOKENS 40
#define TOKENIZER "data/samples/tiny.tokenizer.json"

static const char *const base_sets[] = {
    "model.vocab_size=520",         "model.hidden_size=48",          "model.intermediate_size=56",
    "model.moe_intermediate_size=24", "model.num_hidden_layers=3",   "model.num_attention_heads=3",
    "model.n_routed_experts=8",     "model.num_experts_per_tok=2",   "model.first_k_dense_replace=1",
    "model.kv_lora_rank=20",        "model.qk_nope_head_dim=12",     "model.qk_rope_head_dim=6",
    "model.v_head_dim=10",          "model.initializer_range=0.15",  "model.max_position_embeddings=64",
    "train.steps=10",               "train.seq_len=40",              "train.global_batch=1",
    "train.micro_batch=1",          "precision.mode=fp32",
};

typedef struct Rig {
    Config *config;
    Solo solo;
    int32_t token[TOKENS];
} Rig;

static void rig_open(Rig *r, const char *const *sets, int nthreads) {
    memset(r, 0, sizeof *r);
    rig_config(&r->config, base_sets, (int)(sizeof base_sets / sizeof base_sets[0]), sets);
    MUST_OK(solo_open(&r->solo, r->config, false, nthreads));
    Params *p = model_params(r->solo.model);
    rig_init(p, &r->solo.shape, &r->solo.cx);
    MUST_OK(solo_publish(&r->solo));
    for (int i = 0; i < TOKENS; i++) r->token[i] = (int32_t)(philox(11, 0, (uint64_t)i).v[0] % 500);
}

static void rig_close(Rig *r) {
    solo_close(&r->solo);
    config_free(r->config);
}

// ---- the model ----------------------------------------------------------------------------------

typedef struct Tap {
    float *out;
    int64_t V;
} Tap;

static Err take_logits(void *user, int mtp, int64_t row0, Mat logits) {
    Tap *t = user;
    for (int64_t r = 0; mtp == 0 && r < logits.rows; r++)
        memcpy(t->out + (row0 + r) * t->V, mat_at(logits, r, 0), (size_t)t->V * sizeof(float));
    return OK;
}

// by_pass: logits [n,V] after each of the tokens, by the pass of training and evaluation.
static float *by_pass(Solo *s, const int32_t *token, int64_t n) {
    Tap tap = {calloc((size_t)(n * s->shape.V), sizeof(float)), s->shape.V};
    Taps taps = {.user = &tap, .logits = take_logits};
    Batch batch = {.nseq = 1, .S = n, .ld = n, .tokens = token, .is_main_only = true};
    LossSums sums = {0};
    MUST_OK(model_fwd(s->model, &s->cx, &batch, &sums, &taps));
    return tap.out;
}

// by_cache: the same by model_extend, `piece` tokens at a time.
static float *by_cache(Solo *s, const int32_t *token, int64_t n, int64_t piece) {
    LatentCache *c = NULL;
    int64_t V = s->shape.V;
    float *out = calloc((size_t)(n * V), sizeof(float));
    MUST_OK(latent_cache_create(&c, &s->shape, n));
    for (int64_t i = 0; i < n; i += piece) {
        int64_t k = min_i64(piece, n - i);
        MUST_OK(model_extend(s->model, &s->cx, c, token + i, k, mat(out + i * V, DT_F32, k, V)));
        assert_int_equal(c->n, i + k);
    }
    assert_int_equal(arena_mark(s->cx.acts), 0); // all of it was given back
    latent_cache_free(&c);
    return out;
}

// off_by: the largest difference, and of all the root of the mean square, over the root of the mean square of b.
static double off_by(const float *a, const float *b, int64_t n, double *rms) {
    double worst = 0, sum = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; // also NaN
        sum += d * d;
        size += (double)b[i] * (double)b[i];
    }
    assert_true(size > 0);
    *rms = sqrt(sum / size);
    return worst / sqrt(size / (double)n);
}

// FP32: the two ways differ in the order of sums only: 2^-24 of each of some hundred terms, through three blocks.
static void check_same(const char *const *sets) {
    static const int64_t pieces[] = {1, 3, 16, TOKENS};
    Rig r;
    rig_open(&r, sets, 1);
    double rms = 0;
    float *want = by_pass(&r.solo, r.token, TOKENS);
    for (size_t i = 0; i < sizeof pieces / sizeof pieces[0]; i++) {
        float *got = by_cache(&r.solo, r.token, TOKENS, pieces[i]);
        double worst = off_by(got, want, TOKENS * r.solo.shape.V, &rms);
        if (!(worst <= 1e-4)) fail_msg("in pieces of %lld: off by %g of the rms", (long long)pieces[i], worst);
        free(got);
    }
    free(want);
    rig_close(&r);
}

static void same_logits_as_the_pass(void **state) {
    (void)state;
    static const char *const all[][8] = {
        {NULL},
        {"model.q_lora_rank=14", "model.first_k_dense_replace=0", "model.num_nextn_predict_layers=1", NULL},
        {"model.first_k_dense_replace=3", "model.tie_word_embeddings=true", NULL},
        {"model.q_lora_rank=14", "model.rope_scaling.factor=4",
         "model.rope_scaling.original_max_position_embeddings=12", "model.rope_scaling.mscale=0.7",
         "model.rope_scaling.mscale_all_dim=1.0", NULL},
        {"model.n_group=4", "model.topk_group=2", "model.routed_scaling_factor=2.5", "model.n_shared_experts=2", NULL},
        {"model.scoring_func=softmax", "model.topk_method=greedy", "balance.method=none", "model.n_shared_experts=0",
         "model.norm_topk_prob=false", NULL},
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) check_same(all[i]);
}

// BF16 and FP8: the pass rounds keys and values, and in fp8 mode kv_b's operands to four bits, which the cache does
// not: it is no further from FP32 than the pass is. All experts are taken, so that no choice flips.
static void near_the_pass_in_few_bits(void **state) {
    (void)state;
    const char *exact_sets[] = {"model.q_lora_rank=14", "model.num_experts_per_tok=8", NULL};
    Rig exact;
    rig_open(&exact, exact_sets, 1);
    float *best = by_pass(&exact.solo, exact.token, TOKENS);
    static const struct {
        const char *mode;
        double limit;
    } all[] = {{"precision.mode=bf16", 0.03}, {"precision.mode=fp8", 0.15}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const char *sets[] = {all[i].mode, "model.q_lora_rank=14", "model.num_experts_per_tok=8", NULL};
        Rig r;
        rig_open(&r, sets, 1);
        assert_int_equal(latent_cache_position_bytes(&r.solo.shape), 3 * (20 + 6) * 2);
        assert_int_equal(kv_position_bytes(&r.solo.shape), 3 * 3 * (12 + 6 + 10) * 2);
        double rms = 0, of_pass = 0, of_cache = 0;
        float *want = by_pass(&r.solo, r.token, TOKENS), *got = by_cache(&r.solo, r.token, TOKENS, 7);
        off_by(got, want, TOKENS * r.solo.shape.V, &rms);
        off_by(want, best, TOKENS * r.solo.shape.V, &of_pass);
        off_by(got, best, TOKENS * r.solo.shape.V, &of_cache);
        print_message("%s: %.4f from the pass; from FP32 %.4f, the pass %.4f\n", all[i].mode, rms, of_cache, of_pass);
        assert_true(rms <= all[i].limit && of_cache <= 1.1 * of_pass);
        free(want);
        free(got);
        rig_close(&r);
    }
    free(best);
    rig_close(&exact);
}

static void threads_and_forgetting_change_no_bit(void **state) {
    (void)state;
    static const char *const sets[] = {"precision.mode=fp8", "model.q_lora_rank=14", NULL};
    Rig r, many;
    LatentCache *c = NULL;
    rig_open(&r, sets, 1);
    rig_open(&many, sets, 3);
    int64_t V = r.solo.shape.V;
    float *one = by_cache(&r.solo, r.token, TOKENS, 5), *three = by_cache(&many.solo, r.token, TOKENS, 5);
    assert_memory_equal(one, three, (size_t)(TOKENS * V) * sizeof *one);
    // Back to the tenth token after others: what lay behind leaves no trace.
    float *row = calloc((size_t)V, sizeof *row);
    MUST_OK(latent_cache_create(&c, &r.solo.shape, TOKENS));
    for (int i = 0; i < 10; i += 5) MUST_OK(model_extend(r.solo.model, &r.solo.cx, c, r.token + i, 5, mat_none()));
    for (int i = 20; i < 30; i += 5) MUST_OK(model_extend(r.solo.model, &r.solo.cx, c, r.token + i, 5, mat_none()));
    c->n = 10;
    MUST_OK(model_extend(r.solo.model, &r.solo.cx, c, r.token + 10, 5, mat(row, DT_F32, 1, V)));
    assert_memory_equal(row, one + 14 * V, (size_t)V * sizeof *row);
    MUST_OK(model_extend(r.solo.model, &r.solo.cx, c, r.token, 25, mat_none()));
    MUST_FAIL(model_extend(r.solo.model, &r.solo.cx, c, r.token, 1, mat_none()), E_INTERNAL, "room for 40");
    MUST_FAIL(model_extend(r.solo.model, &r.solo.cx, c, r.token, 41, mat_none()), E_INTERNAL, "made for 40");
    latent_cache_free(&c);
    free(row);
    free(one);
    free(three);
    rig_close(&r);
    rig_close(&many);
}

// ---- Hugging Face -------------------------------------------------------------------------------

// What transformers says after every token of the committed cases, from the cache, and so the same most probable token.
static void golden_case(const char *name) {
    char dir[128], path[192];
    Safetensors *weights = NULL, *expect = NULL;
    Config *c = NULL;
    Solo s;
    snprintf(dir, sizeof dir, "tests/golden/%s", name);
    snprintf(path, sizeof path, "%s/expect.safetensors", dir);
    MUST_OK(safetensors_open(&weights, dir));
    MUST_OK(safetensors_open(&expect, path));
    const StTensor *tokens = safetensors_find(expect, "tokens"), *logits = safetensors_find(expect, "logits");
    assert_non_null(tokens);
    assert_non_null(logits);
    int64_t B = tokens->shape[0], S = tokens->shape[1], V = logits->shape[2];
    const int32_t *token = (const int32_t *)tokens->data;
    MUST_OK(hf_import_config(&c, dir, weights));
    c->precision.mode = MODE_FP32;
    c->train.micro_batch = 1;
    c->train.seq_len = S;
    MUST_OK(solo_open(&s, c, false, 1));
    MUST_OK(import_weights(weights, dir, model_params(s.model), &s.shape));
    MUST_OK(solo_publish(&s));
    float *want = calloc((size_t)(B * S * V), sizeof *want);
    MUST_OK(safetensors_read_f32(expect, "logits", 0, logits->rows, want));
    for (int64_t b = 0; b < B; b++) {
        float *got = by_cache(&s, token + b * S, S, b % 2 ? 3 : 1);
        for (int64_t i = 0; i < S; i++) {
            int64_t best = 0, best_got = 0;
            const float *w = want + (b * S + i) * V, *g = got + i * V;
            for (int64_t v = 0; v < V; v++) {
                if (!(fabs((double)g[v] - (double)w[v]) <= 1e-4))
                    fail_msg("%s: row %lld, position %lld, token %lld: %g, expected %g", name, (long long)b,
                             (long long)i, (long long)v, (double)g[v], (double)w[v]);
                best = w[v] > w[best] ? v : best;
                best_got = g[v] > g[best_got] ? v : best_got;
            }
            assert_int_equal(best_got, best);
        }
        free(got);
    }
    free(want);
    solo_close(&s);
    config_free(c);
    safetensors_close(&weights);
    safetensors_close(&expect);
}

static void same_logits_as_hugging_face(void **state) {
    (void)state;
    static const char *const names[] = {"plain", "groups", "shared2",   "dense2",  "yarn", "yarn_mscale", "wide",
                                        "tied",  "fp8",    "v2_groups", "v2_lite", "mtp1", "mtp2"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) golden_case(names[i]);
}

// ---- a sample -----------------------------------------------------------------------------------

typedef struct Text {
    char s[4096];
    size_t n;
} Text;

static Err keep(void *user, const char *text, size_t n) {
    Text *t = user;
    assert_true(t->n + n < sizeof t->s);
    memcpy(t->s + t->n, text, n);
    t->n += n;
    t->s[t->n] = '\0';
    return OK;
}

static GenerateSpec greedy_spec(int64_t max_tokens) {
    GenerateSpec s = {.rule = {0.0, 0, 1.0}, .seed = 1, .max_tokens = max_tokens, .context = 64};
    return s;
}

// Greedy: the tokens that one finds by running the whole text through the ordinary pass after each of them.
static void greedy_is_the_argmax(void **state) {
    (void)state;
    Rig r;
    Generator *g = NULL;
    Sample s;
    Text text = {0}, whole = {0};
    Tokenizer *t = NULL;
    int32_t ids[TOKENS], eos;
    rig_open(&r, NULL, 1);
    MUST_OK(tokenizer_load(&t, TOKENIZER));
    eos = tokenizer_eos(t);
    int64_t V = r.solo.shape.V, nprompt = 7, beaten = 0;
    assert_true(eos >= 0 && tokenizer_vocab_size(t) < V);
    // Rows that are no token would win nearly everywhere.
    Param *head = params_find(model_params(r.solo.model), P_HEAD, -1);
    for (int64_t i = 0; i < head->cols; i++) {
        float *row = (float *)head->w.p + (V - 1) * head->cols + i;
        *row *= 100;
        row[-head->cols] = -*row;
    }
    memcpy(ids, r.token, sizeof ids);
    GenerateSpec spec = greedy_spec(20);
    MUST_OK(generate_open(&g, &r.solo, t, &spec, ids, nprompt));
    MUST_OK(generate_sample(g, 0, keep, &text, &s));
    for (int64_t i = 0; i < s.n; i++) {
        float *logits = by_pass(&r.solo, ids, nprompt + i), *last = logits + (nprompt + i - 1) * V;
        int32_t best = 0;
        for (int32_t v = 0; v < tokenizer_vocab_size(t); v++) best = last[v] > last[best] ? v : best;
        assert_int_equal(s.ids[i], best);
        beaten += last[best] < fmaxf(last[V - 1], last[V - 2]);
        ids[nprompt + i] = best;
        free(logits);
    }
    assert_true(beaten > s.n / 2);
    assert_true(s.end == GENERATE_LENGTH ? s.n == 20 : s.end == GENERATE_DOCUMENT && s.ids[s.n - 1] == eos);
    // The text is that of the tokens; a second sample from the same prompt is the same.
    Text again = {0};
    TextStream stream = {.sink = keep, .user = &whole};
    for (int64_t i = 0; i < s.n; i++) {
        size_t n = 0;
        const char *bytes = tokenizer_bytes(t, s.ids[i], &n);
        if (!tokenizer_is_added(t, s.ids[i])) MUST_OK(text_stream_add(&stream, bytes, n));
    }
    MUST_OK(text_stream_end(&stream));
    text_stream_free(&stream);
    assert_string_equal(text.s, whole.s);
    MUST_OK(generate_sample(g, 5, keep, &again, &s));
    assert_string_equal(text.s, again.s);
    generate_close(&g);
    tokenizer_free(&t);
    rig_close(&r);
}

static void prompts_and_ends(void **state) {
    (void)state;
    Rig r;
    Generator *g = NULL;
    Sample s;
    Text a = {0}, b = {0}, c = {0}, d = {0};
    Tokenizer *t = NULL;
    rig_open(&r, NULL, 2);
    MUST_OK(tokenizer_load(&t, TOKENIZER));
    int32_t eos = tokenizer_eos(t), long_prompt[64] = {0};
    GenerateSpec spec = greedy_spec(1000);
    spec.rule.temperature = 1.0;
    // Nothing is the beginning of a document.
    spec.max_tokens = 30;
    MUST_OK(generate_open(&g, &r.solo, t, &spec, NULL, 0));
    MUST_OK(generate_sample(g, 0, keep, &a, &s));
    generate_close(&g);
    MUST_OK(generate_open(&g, &r.solo, t, &spec, &eos, 1));
    MUST_OK(generate_sample(g, 0, keep, &b, &s));
    assert_string_equal(a.s, b.s);
    MUST_OK(generate_sample(g, 1, keep, &c, &s)); // another sample
    assert_string_not_equal(a.s, c.s);
    MUST_OK(generate_sample(g, 0, keep, &d, &s)); // and the first again
    assert_string_equal(a.s, d.s);
    generate_close(&g);
    // A prompt of 50 in pieces of 40, to the end of the context: 64 positions, and the token after the last of them.
    spec.max_tokens = 1000;
    for (int i = 0; i < 50; i++) long_prompt[i] = r.token[i % TOKENS];
    for (int64_t k = 0; k < 20; k++) {
        Text any = {0};
        int64_t n = 0;
        double seconds;
        MUST_OK(generate_open(&g, &r.solo, t, &spec, long_prompt, 50));
        generate_prompt(g, &n, &seconds);
        assert_int_equal(n, 50);
        MUST_OK(generate_sample(g, k, keep, &any, &s));
        generate_close(&g);
        if (s.end == GENERATE_DOCUMENT) continue; // by chance
        assert_int_equal(s.end, GENERATE_CONTEXT);
        assert_int_equal(s.n, 64 - 50 + 1);
        break;
    }
    MUST_FAIL(generate_open(&g, &r.solo, t, &spec, long_prompt, 64), E_USAGE, "has 64 tokens");
    assert_null(g);
    long_prompt[3] = 520;
    MUST_FAIL(generate_open(&g, &r.solo, t, &spec, long_prompt, 10), E_INPUT, "token 520 is outside");
    rig_close(&r);
    static const char *const small[] = {"model.vocab_size=500", NULL};
    rig_open(&r, small, 1);
    MUST_FAIL(generate_open(&g, &r.solo, t, &spec, &eos, 1), E_INPUT, "the model's vocabulary has 500");
    // Numbers that are not finite are refused.
    rig_close(&r);
    rig_open(&r, NULL, 1);
    ((float *)params_find(model_params(r.solo.model), P_FINAL_NORM, -1)->w.p)[0] = NAN;
    MUST_OK(generate_open(&g, &r.solo, t, &spec, &eos, 1));
    MUST_FAIL(generate_sample(g, 0, keep, &(Text){0}, &s), E_NUMERIC, "the logit of token");
    generate_close(&g);
    tokenizer_free(&t);
    rig_close(&r);
}

// ---- the sampler --------------------------------------------------------------------------------

#define V_SAMPLER 50

// may_come: top-k and top-p once more, from their description: token i may come if fewer than k tokens stand before it,
// and those before it (among the k) hold less than p.
static bool may_come(const float *l, int64_t V, SamplingRule rule, int i) {
    double before = 0, total = 0, top = -INFINITY;
    int64_t rank[V_SAMPLER];
    for (int64_t a = 0; a < V; a++) {
        rank[a] = 0;
        top = fmax(top, (double)l[a]);
        for (int64_t b = 0; b < V; b++) rank[a] += l[b] > l[a] || (l[b] == l[a] && b < a);
    }
    int64_t k = rule.top_k ? rule.top_k : V;
    for (int64_t a = 0; a < V; a++) {
        double p = exp(((double)l[a] - top) / rule.temperature);
        total += rank[a] < k ? p : 0;
        before += rank[a] < rank[i] ? p : 0;
    }
    return rank[i] < k && l[i] > -INFINITY && (rank[i] == 0 || rule.top_p >= 1.0 || before / total < rule.top_p);
}

static void the_right_tokens_may_come(void **state) {
    (void)state;
    Candidate c[V_SAMPLER];
    float l[V_SAMPLER];
    static const int64_t ks[] = {0, 1, 3, 10, 49, 50, 100};
    static const double ps[] = {1.0, 0.9, 0.5, 0.05}, ts[] = {1.0, 0.3, 4.0};
    for (int round = 0; round < 60; round++) {
        for (int i = 0; i < V_SAMPLER; i++) {
            l[i] = 3.0f * (float)rng_normal(1, (uint64_t)round, (uint64_t)i);
            if (round % 3 == 1) l[i] = roundf(l[i]);      // many ties
            if (round % 5 == 2 && i % 7 == 3) l[i] = -INFINITY; // tokens that never come
        }
        SamplingRule rule = {ts[round % 3], ks[round % 7], ps[round % 4]};
        int64_t n = 0, found = 0;
        double sum = 0;
        MUST_OK(sampling_candidates(c, &n, l, V_SAMPLER, &rule));
        for (int64_t i = 0; i < n; i++) {
            assert_true(may_come(l, V_SAMPLER, rule, c[i].id));
            assert_true(c[i].logit == l[c[i].id]);
            if (i) { // in order, and as probable as the temperature says
                assert_true(c[i - 1].logit > c[i].logit || (c[i - 1].logit == c[i].logit && c[i - 1].id < c[i].id));
                double ratio = exp(((double)c[i].logit - (double)c[0].logit) / rule.temperature);
                assert_true(fabs(c[i].p / c[0].p - ratio) <= 1e-12);
            }
            sum += c[i].p;
        }
        for (int i = 0; i < V_SAMPLER; i++) found += may_come(l, V_SAMPLER, rule, i);
        assert_int_equal(n, found);
        assert_true(fabs(sum - 1) < 1e-12);
        rule.temperature = 0;
        MUST_OK(sampling_candidates(c, &n, l, V_SAMPLER, &rule));
        int best = 0;
        for (int i = 0; i < V_SAMPLER; i++) best = l[i] > l[best] ? i : best; // the first of equal ones
        assert_true(n == 1 && c[0].id == best && sampling_pick(c, n, 0.999) == best);
    }
}

static void tokens_come_as_often_as_they_should(void **state) {
    (void)state;
    enum { DRAWS = 200000 };
    static const float l[6] = {0.5f, -1.0f, 2.0f, 0.5f, -INFINITY, 1.0f};
    SamplingRule rule = {0.7, 0, 1.0};
    Candidate c[6];
    int64_t n = 0, count[6] = {0};
    MUST_OK(sampling_candidates(c, &n, l, 6, &rule));
    assert_int_equal(n, 5);
    for (uint64_t i = 0; i < DRAWS; i++) count[sampling_pick(c, n, rng_uniform(philox(9, 0, i).v[0]))]++;
    double total = 0;
    for (int i = 0; i < 6; i++) total += exp((double)l[i] / 0.7);
    for (int i = 0; i < 6; i++) {
        double p = exp((double)l[i] / 0.7) / total, sd = sqrt(DRAWS * p * (1 - p));
        assert_true(fabs((double)count[i] - DRAWS * p) <= 4.5 * sd);
    }
    // The borders: what is in the list comes, whatever u is.
    assert_int_equal(sampling_pick(c, n, 1e-12), 2);
    assert_int_equal(sampling_pick(c, n, 1 - 1e-17), 1);
    Candidate none[3] = {{7, 0, 0.5}, {8, 0, 0.4999}, {9, 0, 0.0}};
    assert_int_equal(sampling_pick(none, 3, 0.99995), 8);
}

static void logits_that_are_no_numbers(void **state) {
    (void)state;
    SamplingRule rule = {1.0, 0, 1.0};
    Candidate c[3];
    int64_t n = 0;
    MUST_FAIL(sampling_candidates(c, &n, (float[]){0, NAN, 1}, 3, &rule), E_NUMERIC, "the logit of token 1 is");
    MUST_FAIL(sampling_candidates(c, &n, (float[]){0, 1, INFINITY}, 3, &rule), E_NUMERIC, "of token 2 is inf");
    MUST_FAIL(sampling_candidates(c, &n, (float[]){-INFINITY, -INFINITY}, 2, &rule), E_NUMERIC, "no token may come");
    rule.temperature = 0;
    MUST_FAIL(sampling_candidates(c, &n, (float[]){0, 1, NAN}, 3, &rule), E_NUMERIC, "the logit of token 2 is");
    rule.temperature = 1e-30; // overflows nowhere
    MUST_OK(sampling_candidates(c, &n, (float[]){0, 2, 1}, 3, &rule));
    assert_int_equal(sampling_pick(c, n, 0.9999), 1);
}

// ---- text ---------------------------------------------------------------------------------------

// stream: the parts, then the end; what was handed on after each is joined by '|'.
static void expect_stream(const char *const *parts, const char *const *stop, int nstop, const char *want) {
    Text text = {0};
    TextStream s = {.stop = stop, .nstop = nstop, .sink = keep, .user = &text};
    for (; *parts; parts++) {
        MUST_OK(text_stream_add(&s, *parts, strlen(*parts)));
        MUST_OK(keep(&text, "|", 1));
    }
    MUST_OK(text_stream_end(&s));
    text_stream_free(&s);
    assert_string_equal(text.s, want);
}

#define PARTS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void whole_characters_only(void **state) {
    (void)state;
    expect_stream(PARTS("a", "bc"), NULL, 0, "a|bc|");
    expect_stream(PARTS("a\xE2", "\x82", "\xAC" "b"), NULL, 0, "a||\xE2\x82\xAC" "b|");
    expect_stream(PARTS("\xF0\x9F\x99", "\x82\xC3"), NULL, 0, "|\xF0\x9F\x99\x82|\xEF\xBF\xBD");
    expect_stream(PARTS("\xE2\x82", "x"), NULL, 0, "|\xEF\xBF\xBDx|"); // never completed
    expect_stream(PARTS("\xFF", "\x80" "a"), NULL, 0, "|\xEF\xBF\xBD\xEF\xBF\xBD" "a|");
    expect_stream(PARTS("", "a", ""), NULL, 0, "|a||");
}

static void stops_across_tokens(void **state) {
    (void)state;
    const char *end[] = {"END", "\n\n"}, *accent[] = {"\xC3\xA9"};
    expect_stream(PARTS("an EN", "D of"), end, 2, "an ||");
    expect_stream(PARTS("an E", "N", "d of E"), end, 2, "an ||ENd of |E");
    expect_stream(PARTS("EEN", "DE"), end, 2, "E||"); // the longest that may still come begins later
    expect_stream(PARTS("a\n", "b\n", "\nc", "d"), end, 2, "a|\nb|||");
    expect_stream(PARTS("one END two\n\n"), end, 2, "one |");
    expect_stream(PARTS("x\n\nEND"), end, 2, "x|");
    expect_stream(PARTS("caf\xC3", "\xA9 au"), accent, 1, "caf||");
    expect_stream(PARTS("caf\xC3", "\xA8 au"), accent, 1, "caf|\xC3\xA8 au|");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_logits_as_the_pass),
        cmocka_unit_test(near_the_pass_in_few_bits),
        cmocka_unit_test(threads_and_forgetting_change_no_bit),
        cmocka_unit_test(same_logits_as_hugging_face),
        cmocka_unit_test(greedy_is_the_argmax),
        cmocka_unit_test(prompts_and_ends),
        cmocka_unit_test(the_right_tokens_may_come),
        cmocka_unit_test(tokens_come_as_often_as_they_should),
        cmocka_unit_test(logits_that_are_no_numbers),
        cmocka_unit_test(whole_characters_only),
        cmocka_unit_test(stops_across_tokens),
    };
    log_init(1, 2); // no lines
    return cmocka_run_group_tests(tests, NULL, NULL);
}
