// generate.c - prompt, then one token after the other.
#include "generate.h"

#include <math.h>
#include <string.h>

#include "log.h"
#include "rng.h"

struct Generator {
    Solo *s;
    const Tokenizer *t;
    GenerateSpec spec;
    LatentCache *cache;
    int64_t nprompt;
    double seconds;        // that the prompt took
    float *first, *logits; // [V] after the prompt; after the newest token
    Candidate *candidate;  // [V]
    int32_t *ids;          // [max_tokens]
};

static Mat logits_row(const Generator *g, float *p) {
    return mat(p, DT_F32, 1, g->s->shape.V);
}

// run_prompt: all of it into the cache, in pieces as large as the model was made for.
static Err run_prompt(Generator *g, const int32_t *prompt) {
    double start = now_seconds();
    int64_t piece = g->s->shape.B * g->s->shape.S;
    for (int64_t i = 0; i < g->nprompt; i += piece) {
        int64_t n = min_i64(piece, g->nprompt - i);
        bool is_last = i + n == g->nprompt;
        Mat logits = is_last ? logits_row(g, g->first) : mat_none();
        TRY(model_extend(g->s->model, &g->s->cx, g->cache, prompt + i, n, logits));
    }
    g->seconds = now_seconds() - start;
    return OK;
}

static Err check_prompt(const Generator *g, const int32_t *prompt) {
    int64_t V = g->s->shape.V;
    CHECK(tokenizer_vocab_size(g->t) <= V, E_INPUT, "%s has %d tokens, the model's vocabulary has %lld: it is not the "
          "tokenizer of this model", tokenizer_path(g->t), tokenizer_vocab_size(g->t), (long long)V);
    CHECK(g->nprompt < g->spec.context, E_USAGE,
          "the prompt has %lld tokens, which leaves no room in the %lld positions of the model "
          "(model.max_position_embeddings)",
          (long long)g->nprompt, (long long)g->spec.context);
    for (int64_t i = 0; i < g->nprompt; i++) {
        CHECK(prompt[i] >= 0 && prompt[i] < V, E_INPUT, "token %d is outside of the vocabulary of %lld", prompt[i],
              (long long)V);
    }
    return OK;
}

static Err open_generator(Generator *g, const int32_t *prompt, int64_t n) {
    int32_t start = tokenizer_eos(g->t) >= 0 ? tokenizer_eos(g->t) : tokenizer_bos(g->t);
    CHECK(n > 0 || start >= 0, E_INPUT, "%s marks no end of documents: a prompt is needed", tokenizer_path(g->t));
    if (n == 0) prompt = &start;
    g->nprompt = max_i64(n, 1);
    TRY(check_prompt(g, prompt));
    MEM_NEW(g->first, g->s->shape.V);
    MEM_NEW(g->logits, g->s->shape.V);
    MEM_NEW(g->candidate, g->s->shape.V);
    MEM_NEW(g->ids, g->spec.max_tokens);
    // The last token is not run: nothing comes after it.
    int64_t positions = min_i64(g->spec.context, g->nprompt + g->spec.max_tokens - 1);
    TRY(latent_cache_create(&g->cache, &g->s->shape, positions));
    return run_prompt(g, prompt);
}

Err generate_open(Generator **out, Solo *s, const Tokenizer *t, const GenerateSpec *spec, const int32_t *prompt,
                  int64_t n) {
    Generator *g = NULL;
    *out = NULL;
    CHECK(spec->max_tokens >= 1, E_INTERNAL, "generate: %lld tokens", (long long)spec->max_tokens);
    MEM_NEW(g, 1);
    g->s = s;
    g->t = t;
    g->spec = *spec;
    Err err = open_generator(g, prompt, n);
    if (err != OK) generate_close(&g);
    *out = g;
    return err;
}

// choose: the next token, from the newest logits. Rows of the vocabulary that are no token never come.
static Err choose(Generator *g, int64_t k, int64_t i, int32_t *id) {
    int64_t n = 0, V = g->s->shape.V;
    for (int64_t v = 0; v < V; v++) {
        if (v < tokenizer_vocab_size(g->t) && tokenizer_bytes(g->t, (int32_t)v, &(size_t){0})) continue;
        if (isfinite(g->logits[v])) g->logits[v] = -INFINITY;
    }
    TRY(sampling_candidates(g->candidate, &n, g->logits, V, &g->spec.rule));
    double u = rng_uniform(philox(g->spec.seed, (uint64_t)k, (uint64_t)i).v[0]);
    *id = sampling_pick(g->candidate, n, u);
    return OK;
}

// say: the token's text, if it is one.
static Err say(const Generator *g, TextStream *text, int32_t id) {
    size_t n = 0;
    const char *bytes = tokenizer_bytes(g->t, id, &n);
    if (tokenizer_is_added(g->t, id)) return OK;
    return text_stream_add(text, bytes, n);
}

static Err sample(Generator *g, int64_t k, TextStream *text, Sample *out) {
    g->cache->n = g->nprompt;
    memcpy(g->logits, g->first, (size_t)g->s->shape.V * sizeof *g->logits);
    for (;;) {
        int32_t id = 0;
        TRY(choose(g, k, out->n, &id));
        g->ids[out->n++] = id;
        out->end = GENERATE_DOCUMENT;
        if (id == tokenizer_eos(g->t)) break;
        TRY(say(g, text, id));
        out->end = GENERATE_STOP;
        if (text->is_stopped) break;
        out->end = GENERATE_LENGTH;
        if (out->n == g->spec.max_tokens) break;
        out->end = GENERATE_CONTEXT;
        if (g->cache->n == g->spec.context) break;
        TRY(model_extend(g->s->model, &g->s->cx, g->cache, &id, 1, logits_row(g, g->logits)));
    }
    return text_stream_end(text);
}

Err generate_sample(Generator *g, int64_t k, TextSink sink, void *user, Sample *out) {
    TextStream text = {.stop = g->spec.stop, .nstop = g->spec.nstop, .sink = sink, .user = user};
    double start = now_seconds();
    *out = (Sample){.ids = g->ids};
    Err err = sample(g, k, &text, out);
    out->seconds = now_seconds() - start;
    text_stream_free(&text);
    return err;
}

void generate_prompt(const Generator *g, int64_t *n, double *seconds) {
    *n = g->nprompt;
    *seconds = g->seconds;
}

void generate_close(Generator **gp) {
    Generator *g = *gp;
    if (!g) return;
    latent_cache_free(&g->cache);
    mem_free(g->first);
    mem_free(g->logits);
    mem_free(g->candidate);
    mem_free(g->ids);
    mem_free(g);
    *gp = NULL;
}
