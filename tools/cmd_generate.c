// cmd_generate.c - `tessera generate`: how a checkpoint continues a text.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "checkpoint.h"
#include "commands.h"
#include "generate.h"
#include "json_text.h"
#include "log.h"
#include "read_text.h"

#define STOPS 16
#define PIECE 256 // tokens of the prompt that run at once

static const Flag flags[] = {
    {"checkpoint", "PATH", NULL, FLAG_REQUIRED, "a run or checkpoint directory, PATH@STEP for one step"},
    {"prompt", "TEXT", NULL, 0, "the text to continue; \"\": the beginning of a document"},
    {"prompt-file", "FILE", NULL, 0, "the same from a file, every byte of it; -: from standard input"},
    {"max-tokens", "N", "200", 0, "tokens of a sample at most"},
    {"temperature", "T", "0.8", 0, "what logits are divided by; 0: always the most probable token"},
    {"top-k", "K", NULL, 0, "only the K most probable tokens"},
    {"top-p", "P", NULL, 0, "only the fewest tokens that are together as probable as P"},
    {"seed", "N", "1", 0, "the same seed, the same text, whatever the threads"},
    {"num-samples", "N", "1", 0, "continue the prompt N times"},
    {"stop", "TEXT", NULL, FLAG_REPEAT, "end a sample before this text"},
    {"tokenizer", "FILE", NULL, 0, "tokenizer.json (default: the checkpoint's)"},
    {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT, "override one setting of the checkpoint"},
    {"threads", "N", NULL, 0, "threads (default: OMP_NUM_THREADS, or all cores)"},
    {"json", "FILE", NULL, 0, "also write one JSON object per sample"},
};

static const Command command = {
    "tessera generate",
    "",
    "Continues a text with a checkpoint, in its precision.mode. The continuation alone goes to standard output, as it\n"
    "comes; everything else to standard error.",
    flags,
    COUNT_OF(flags),
    0,
    0,
};

// What the command line asks for.
typedef struct Request {
    GenerateSpec spec;
    const char *stop[STOPS];
    int64_t nsamples, threads;
    int64_t step; // of the checkpoint that was found
} Request;

static Err read_request(Request *r, const Args *a) {
    GenerateSpec *s = &r->spec;
    int64_t seed = 0;
    s->rule.top_p = 1.0;
    TRY(args_int(a, "max-tokens", 1, 1 << 30, &s->max_tokens));
    TRY(args_float(a, "temperature", 0.0, 1e6, &s->rule.temperature));
    TRY(args_int(a, "top-k", 1, INT32_MAX, &s->rule.top_k));
    TRY(args_float(a, "top-p", 1e-9, 1.0, &s->rule.top_p));
    TRY(args_int(a, "seed", 0, INT64_MAX, &seed));
    TRY(args_int(a, "num-samples", 1, 1000000, &r->nsamples));
    TRY(args_int(a, "threads", 1, 4096, &r->threads));
    TRY(args_all(a, "stop", r->stop, STOPS, &s->nstop));
    for (int i = 0; i < s->nstop; i++) CHECK(r->stop[i][0], E_USAGE, "--stop: an empty text is everywhere");
    s->stop = r->stop;
    s->seed = (uint64_t)seed;
    CHECK(args_has(a, "prompt") != args_has(a, "prompt-file"), E_USAGE,
          "give --prompt TEXT or --prompt-file FILE (--prompt \"\": the beginning of a document)");
    return OK;
}

// open_checkpoint: its config and weights on one rank, for pieces of one text.
static Err open_checkpoint(Solo *s, Config **c, const Args *a, const Request *r, const char *dir) {
    const char *sets[256];
    char yaml[4200];
    int nsets = 0;
    TRY(args_all(a, "set", sets, COUNT_OF(sets), &nsets));
    snprintf(yaml, sizeof yaml, "%s/config.yaml", dir);
    TRY(config_load(c, yaml, sets, nsets));
    Config pieces = **c;
    pieces.train.micro_batch = 1;
    pieces.train.seq_len = PIECE;
    TRY(solo_open(s, &pieces, false, solo_threads(r->threads)));
    TRY(checkpoint_load(dir, model_params(s->model), &s->cx, false));
    return solo_publish(s);
}

// open_tokenizer: the one that the checkpoint's data were made with; *step: the checkpoint's.
static Err open_tokenizer(Tokenizer **t, int64_t *step, const Args *a, const char *dir) {
    char path[4200];
    CheckpointInfo at;
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    const char *asked = args_get(a, "tokenizer");
    CHECK(asked || access(path, R_OK) == 0, E_INPUT, "%s has no tokenizer.json: give --tokenizer FILE", dir);
    TRY(tokenizer_load(t, asked ? asked : path));
    TRY(checkpoint_read_info(dir, &at));
    CHECK(!at.tokenizer_hash[0] || strcmp(at.tokenizer_hash, tokenizer_hash(*t)) == 0, E_INPUT,
          "%s has the hash %s, the checkpoint was trained with a tokenizer of hash %s", tokenizer_path(*t),
          tokenizer_hash(*t), at.tokenizer_hash);
    *step = at.step;
    return OK;
}

static Err read_prompt(TokenIds *ids, const Tokenizer *t, const Args *a) {
    const char *given = args_get(a, "prompt");
    if (given) return tokenizer_append(t, given, strlen(given), ids);
    char *text = NULL;
    size_t n = 0;
    TRY(read_text(args_get(a, "prompt-file"), &text, &n));
    Err err = tokenizer_append(t, text, n, ids);
    free(text);
    return err;
}

// put: a sample's text to standard output, and to a copy if there is one.
static Err put(void *copy, const char *text, size_t n) {
    CHECK(fwrite(text, 1, n, stdout) == n && fflush(stdout) == 0, E_OUTPUT, "standard output: %s", strerror(errno));
    CHECK(!copy || fwrite(text, 1, n, copy) == n, E_INTERNAL, "out of memory: the text of a sample");
    return OK;
}

static const char *end_word(GenerateEnd end) {
    static const char *const words[] = {"length", "document", "stop", "context"};
    return words[end];
}

// put_json: what --json promises of a sample.
static void put_json(FILE *f, int64_t k, const Sample *s, const char *text, size_t n, int64_t nprompt,
                     double prompt_rate, double rate) {
    fprintf(f, "{\"sample\":%lld,\"end\":\"%s\",\"prompt_tokens\":%lld,\"tokens\":%lld,\"prompt_tokens_per_s\":%.6g,"
               "\"tokens_per_s\":%.6g,\"ids\":[",
            (long long)k, end_word(s->end), (long long)nprompt, (long long)s->n, prompt_rate, rate);
    for (int64_t i = 0; i < s->n; i++) fprintf(f, "%s%d", i ? "," : "", s->ids[i]);
    fprintf(f, "],\"text\":\"");
    json_put(f, text, n);
    fprintf(f, "\"}\n");
}

// say_end: why a sample ended, where that is no matter of course.
static void say_end(const Sample *s, const GenerateSpec *spec) {
    if (s->end == GENERATE_DOCUMENT) log_line("the document ends here");
    if (s->end == GENERATE_CONTEXT)
        log_line("stopped: all %lld positions of the model are filled (model.max_position_embeddings)",
                 (long long)spec->context);
}

static Err put_samples(Generator *g, const Solo *solo, const Request *r, int64_t trained, FILE *json) {
    double prompt_seconds = 0.0, seconds = 0.0;
    int64_t nprompt = 0, ntokens = 0, longest = 0;
    generate_prompt(g, &nprompt, &prompt_seconds);
    double prompt_rate = (double)nprompt / (prompt_seconds > 1e-9 ? prompt_seconds : 1e-9);
    for (int64_t k = 0; k < r->nsamples; k++) {
        char *text = NULL;
        size_t n = 0;
        FILE *copy = json ? open_memstream(&text, &n) : NULL;
        CHECK(copy || !json, E_INTERNAL, "out of memory: the text of a sample");
        Sample s;
        if (r->nsamples > 1) printf("%s== sample %lld\n", k ? "\n" : "", (long long)(k + 1));
        Err err = generate_sample(g, k, put, copy, &s);
        printf("\n");
        fflush(stdout);
        double rate = (double)s.n / (s.seconds > 1e-9 ? s.seconds : 1e-9);
        if (copy) fclose(copy); // text and n are whole now
        if (err == OK && json) put_json(json, k, &s, text, n, nprompt, prompt_rate, rate);
        free(text);
        TRY(err);
        say_end(&s, &r->spec);
        ntokens += s.n;
        seconds += s.seconds;
        longest = max_i64(longest, nprompt + s.n - 1); // the last token was not run
    }
    if (longest > trained)
        log_warn("position %lld was reached, the model was trained with %lld", (long long)longest, (long long)trained);
    log_line("step %lld, prompt %lld tokens (%.1f tok/s), generated %lld (%.1f tok/s); cache %lld bytes per token, "
             "keys and values would take %lld",
             (long long)r->step, (long long)nprompt, prompt_rate, (long long)ntokens,
             (double)ntokens / (seconds > 1e-9 ? seconds : 1e-9),
             (long long)latent_cache_position_bytes(&solo->shape), (long long)kv_position_bytes(&solo->shape));
    return OK;
}

static Err generate(const Args *a, Request *r, FILE *json) {
    Solo solo = {0};
    Config *c = NULL;
    Tokenizer *t = NULL;
    TokenIds ids = {0};
    Generator *g = NULL;
    char dir[4096];
    Err err = OK;
    TRY_OR(solo_find(dir, sizeof dir, args_get(a, "checkpoint")), done);
    TRY_OR(open_tokenizer(&t, &r->step, a, dir), done);
    TRY_OR(read_prompt(&ids, t, a), done);
    TRY_OR(open_checkpoint(&solo, &c, a, r, dir), done);
    r->spec.context = c->model.max_position_embeddings;
    TRY_OR(generate_open(&g, &solo, t, &r->spec, ids.p, ids.n), done);
    TRY_OR(put_samples(g, &solo, r, c->train.seq_len, json), done);
done:
    generate_close(&g);
    free(ids.p);
    tokenizer_free(&t);
    solo_close(&solo);
    config_free(c);
    return err;
}

Err cmd_generate(int argc, char **argv) {
    Args a;
    Request r = {0};
    FILE *json = NULL;
    log_to(stderr); // standard output is the text
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = read_request(&r, &a);
    const char *path = args_get(&a, "json");
    if (err == OK && path) {
        json = fopen(path, "we");
        CHECK_OR(json, done, E_OUTPUT, "--json: cannot write %s: %s", path, strerror(errno));
    }
    if (err == OK) err = generate(&a, &r, json);
    if (json && fclose(json) != 0 && err == OK)
        err = fail_at(E_OUTPUT, __FILE__, __LINE__, "--json: cannot write %s: %s", path, strerror(errno));
done:
    args_free(&a);
    return err;
}
