// cmd_eval.c - `tessera eval`: held-out loss, bits per byte, in-context copy of a checkpoint.
#include <errno.h>
#include <math.h>
#include <string.h>

#include "args.h"
#include "checkpoint.h"
#include "commands.h"
#include "evaluate.h"
#include "log.h"
#include "ngram.h"
#include "solo.h"

static const Flag flags[] = {
    {"checkpoint", "PATH", NULL, FLAG_REQUIRED,
     "a run or checkpoint directory, PATH@STEP for one step"},
    {"data", "PATH", NULL, FLAG_REPEAT, "token shards held out"},
    {"copy", "N", NULL, 0, "score N sequences of the in-context copy task"},
    {"ngram-train", "FILE", NULL, FLAG_REPEAT,
     "training text of the byte n-gram baselines"},
    {"ngram-heldout", "FILE", NULL, 0,
     "held-out text of the baselines: the text the shards were made from"},
    {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT, "override one setting of the checkpoint"},
    {"threads", "N", NULL, 0, "threads (default: OMP_NUM_THREADS, or all cores)"},
    {"json", "FILE", NULL, 0, "also write one JSON object per result"},
};

static const Command command = {
    "tessera eval",
    "",
    "Scores a checkpoint: every held-out token once, in windows of the training length.",
    flags,
    COUNT_OF(flags),
    0,
    0};

// A number of a JSON object; JSON has no NaN (bits per byte of shards that do not say their bytes).
static Text32 json_number(double x) {
    Text32 t;
    snprintf(t.s, sizeof t.s, isfinite(x) ? "%.9g" : "null", x);
    return t;
}

// check_tokenizer: the shards speak the checkpoint's language, where both say what that is.
static Err check_tokenizer(const Loader *l, const char *path, const CheckpointInfo *at) {
    const char *have = loader_tokenizer_hash(l);
    CHECK(!have[0] || !at->tokenizer_hash[0] || strcmp(have, at->tokenizer_hash) == 0, E_INPUT,
          "--data %s was made with a tokenizer of hash %s, the checkpoint was trained with one of hash %s: prepare the "
          "text with that one",
          path, have, at->tokenizer_hash);
    return OK;
}

static Err eval_data(Solo *s, const Config *c, const CheckpointInfo *at, const Args *a, FILE *json, double *bpb) {
    LoaderCorpus corpora[64] = {0};
    const char *paths[COUNT_OF(corpora)];
    int n = 0;
    TRY(args_all(a, "data", paths, COUNT_OF(paths), &n));
    for (int i = 0; i < n; i++) corpora[i].path = paths[i];
    LoaderSpec spec = {.corpora = corpora,
                       .ncorpora = n,
                       .seq_len = c->train.seq_len,
                       .mtp_depth = c->model.num_nextn_predict_layers,
                       .vocab_size = c->model.vocab_size,
                       .seed = (uint64_t)c->train.seed,
                       .is_eval = true};
    Loader *l = NULL;
    EvalResult r;
    Err err = OK;
    TRY(loader_open(&l, &spec));
    TRY_OR(check_tokenizer(l, paths[0], at), done);
    TRY_OR(evaluate_heldout(s->model, &s->cx, l, n, 0, NULL, &r), done);
    *bpb = r.bits_per_byte;
    log_line("held-out loss %.6f nats per token, %.4f bits per byte, next token right %.1f %%, "
             "%lld tokens, %lld bytes",
             r.loss, r.bits_per_byte, 100.0 * (double)r.correct / (double)max_i64(1, r.tokens),
             (long long)r.tokens, (long long)r.text_bytes);
    if (json) {
        fprintf(json,
                "{\"eval\":\"heldout\",\"loss\":%s,\"bits_per_byte\":%s,\"tokens\":%lld,"
                "\"bytes\":%lld}\n",
                json_number(r.loss).s, json_number(r.bits_per_byte).s, (long long)r.tokens,
                (long long)r.text_bytes);
    }
done:
    loader_close(&l);
    return err;
}

static Err eval_copy(Solo *s, const Config *c, int64_t nseq, FILE *json) {
    CopyResult r;
    TRY(evaluate_copy(s->model, &s->cx, nseq, (uint64_t)c->train.seed + 0x5EED, &r));
    log_line(
        "in-context copy accuracy %.4f on the repeat, control %.4f (chance %.4f), %lld sequences",
        r.repeat_accuracy, r.control_accuracy, r.chance, (long long)nseq);
    if (json) {
        fprintf(json,
                "{\"eval\":\"copy\",\"repeat_accuracy\":%.9g,\"control_accuracy\":%.9g,\"chance\":%"
                ".9g}\n",
                r.repeat_accuracy, r.control_accuracy, r.chance);
    }
    return OK;
}

static Err eval_ngram(const Args *a, double bpb, FILE *json) {
    const char *train[64];
    int n = 0;
    double order2 = 0.0, order4 = 0.0;
    TRY(args_all(a, "ngram-train", train, COUNT_OF(train), &n));
    const char *heldout = args_get(a, "ngram-heldout");
    TRY(ngram_bits_per_byte(train, n, heldout, 2, &order2));
    TRY(ngram_bits_per_byte(train, n, heldout, 4, &order4));
    log_line("held-out bits per byte %.4f (order-2 n-gram %.4f, order-4 n-gram %.4f)", bpb, order2,
             order4);
    if (json) {
        fprintf(json,
                "{\"eval\":\"ngram\",\"bits_per_byte\":%s,\"order2\":%.9g,\"order4\":%.9g}\n",
                json_number(bpb).s, order2, order4);
    }
    return OK;
}

// open_checkpoint: PATH or PATH@STEP: its config and weights on one rank.
static Err open_checkpoint(Solo *s, Config **c, CheckpointInfo *at, const Args *a) {
    const char *sets[256], *path = args_get(a, "checkpoint");
    int nsets = 0;
    TRY(args_all(a, "set", sets, COUNT_OF(sets), &nsets));
    int64_t threads = 0;
    TRY(args_int(a, "threads", 1, 4096, &threads));
    char dir[4096], yaml[4200];
    TRY(solo_find(dir, sizeof dir, path));
    TRY(checkpoint_read_info(dir, at));
    log_line("checkpoint %s: step %lld, %lld samples", dir, (long long)at->step, (long long)at->samples);
    snprintf(yaml, sizeof yaml, "%s/config.yaml", dir);
    TRY(config_load(c, yaml, sets, nsets));
    TRY(solo_open(s, *c, false, solo_threads(threads)));
    TRY(checkpoint_load(dir, model_params(s->model), &s->cx, false));
    return solo_publish(s);
}

// check_wishes: what belongs together is there, before anything is read or written.
static Err check_wishes(const Args *a) {
    bool has_data = args_has(a, "data");
    int64_t copy = 0;
    TRY(args_int(a, "copy", 1, 1000000, &copy));
    CHECK(has_data || copy > 0, E_USAGE, "give --data PATH, or --copy N");
    bool has_ngram = args_has(a, "ngram-train") || args_has(a, "ngram-heldout");
    bool is_whole = has_data && args_has(a, "ngram-train") && args_has(a, "ngram-heldout");
    CHECK(!has_ngram || is_whole, E_USAGE,
          "the n-gram baselines need --data PATH, --ngram-train FILE and --ngram-heldout FILE");
    return OK;
}

static Err evaluate_all(Solo *s, const Config *c, const CheckpointInfo *at, const Args *a, FILE *json) {
    double bpb = NAN;
    int64_t copy = 0;
    TRY(args_int(a, "copy", 1, 1000000, &copy));
    if (args_count(a, "data") > 0) TRY(eval_data(s, c, at, a, json, &bpb));
    if (copy > 0) TRY(eval_copy(s, c, copy, json));
    if (args_get(a, "ngram-heldout")) TRY(eval_ngram(a, bpb, json));
    return OK;
}

Err cmd_eval(int argc, char **argv) {
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Solo s;
    Config *c = NULL;
    CheckpointInfo at;
    FILE *json = NULL;
    memset(&s, 0, sizeof s);
    TRY(check_wishes(&a));
    if (args_get(&a, "json")) {
        json = fopen(args_get(&a, "json"), "we");
        CHECK(json, E_OUTPUT, "--json: cannot write %s: %s", args_get(&a, "json"), strerror(errno));
    }
    Err err = open_checkpoint(&s, &c, &at, &a);
    if (err == OK) err = evaluate_all(&s, c, &at, &a, json);
    if (json && fclose(json) != 0 && err == OK) {
        err = fail_at(E_OUTPUT, __FILE__, __LINE__, "--json: cannot write %s: %s",
                      args_get(&a, "json"), strerror(errno));
    }
    solo_close(&s);
    config_free(c);
    args_free(&a);
    return err;
}
