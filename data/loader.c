// loader.c - batches by sample number: sampler for the place, tokens for the bytes.
#include "loader.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "sampler.h"
#include "tokens.h"
#include "view.h"

#define FORMAT_VERSION 1 // of the rules by which tokens become samples

struct Loader {
    Tokens *corpus[SAMPLER_CORPORA];
    char *path[SAMPLER_CORPORA];
    int ncorpora;
    int64_t seq_len, mtp_depth, vocab_size;
    bool is_eval;
    Sampler sampler;
    pthread_mutex_t mutex; // guards sampler's cache
    Hash128 fingerprint;
};

// ---- opening -----------------------------------------------------------------------------------

static Err corpora_open(Loader *l, const LoaderSpec *spec) {
    int64_t windows[SAMPLER_CORPORA];
    double weights[SAMPLER_CORPORA], sum = 0;
    for (int k = 0; k < spec->ncorpora; k++) {
        l->path[k] = strdup(spec->corpora[k].path);
        CHECK(l->path[k], E_INTERNAL, "loader: out of memory");
        TRY(tokens_open(&l->corpus[k], &spec->corpora[k].path, 1));
        l->ncorpora = k + 1;
        int64_t n = tokens_count(l->corpus[k]),
                need = spec->is_eval ? 2 : spec->seq_len + 1 + spec->mtp_depth;
        windows[k] = sampler_windows(n, spec->seq_len, spec->mtp_depth);
        CHECK(n >= need, E_INPUT,
              "%s: %lld tokens, at least %lld needed (seq_len %lld, mtp depth %lld)", l->path[k],
              (long long)n, (long long)need, (long long)spec->seq_len, (long long)spec->mtp_depth);
        int64_t ids = tokens_meta(l->corpus[k])->vocab_size;
        CHECK(ids <= spec->vocab_size, E_INPUT,
              "%s: its tokenizer has %lld tokens, but model.vocab_size is %lld: the model needs one at least as large, "
              "or the text another tokenizer",
              l->path[k], (long long)ids, (long long)spec->vocab_size);
        const char *a = tokens_meta(l->corpus[0])->tokenizer_hash;
        const char *b = tokens_meta(l->corpus[k])->tokenizer_hash;
        CHECK(strcmp(a, b) == 0, E_INPUT, "%s: made with tokenizer %s, but %s with %s", l->path[k],
              b, l->path[0], a);
        weights[k] = spec->corpora[k].weight;
        sum += fabs(weights[k]);
    }
    if (!spec->is_eval) {
        TRY(sampler_init(&l->sampler, spec->seed, l->ncorpora, sum == 0 ? NULL : weights, windows));
    }
    return OK;
}

static Err fingerprint_make(Loader *l) {
    HashStream *h;
    TRY(hash_stream_new(&h));
    char text[256];
    int n = snprintf(text, sizeof text, "tessera loader %d seq_len %lld mtp %lld\n", FORMAT_VERSION,
                     (long long)l->seq_len, (long long)l->mtp_depth);
    hash_stream_add(h, text, (size_t)n);
    for (int k = 0; k < l->ncorpora; k++) {
        n = snprintf(text, sizeof text, "%s %.17g\n", tokens_fingerprint(l->corpus[k]).s,
                     l->sampler.weight[k]);
        hash_stream_add(h, text, (size_t)n);
    }
    l->fingerprint = hash_stream_end(h);
    hash_stream_free(&h);
    return OK;
}

Err loader_open(Loader **out, const LoaderSpec *spec) {
    *out = NULL;
    CHECK(spec->ncorpora >= 1 && spec->ncorpora <= SAMPLER_CORPORA, E_CONFIG,
          "%d corpora given, expected 1 to %d", spec->ncorpora, SAMPLER_CORPORA);
    CHECK(spec->seq_len >= 1 && spec->mtp_depth >= 0 && spec->vocab_size >= 1, E_INTERNAL,
          "loader: seq_len %lld, mtp depth %lld, vocab_size %lld", (long long)spec->seq_len,
          (long long)spec->mtp_depth, (long long)spec->vocab_size);
    Loader *l = calloc(1, sizeof *l);
    CHECK(l, E_INTERNAL, "loader: out of memory");
    pthread_mutex_init(&l->mutex, NULL);
    l->seq_len = spec->seq_len;
    l->mtp_depth = spec->mtp_depth;
    l->vocab_size = spec->vocab_size;
    l->is_eval = spec->is_eval;
    Err err = OK;
    TRY_OR(corpora_open(l, spec), failed);
    TRY_OR(fingerprint_make(l), failed);
    *out = l;
    return OK;
failed:
    loader_close(&l);
    return err;
}

void loader_close(Loader **l) {
    if (!*l) return;
    for (int k = 0; k < SAMPLER_CORPORA; k++) {
        tokens_close(&(*l)->corpus[k]);
        free((*l)->path[k]);
    }
    pthread_mutex_destroy(&(*l)->mutex);
    free(*l);
    *l = NULL;
}

// ---- one window --------------------------------------------------------------------------------

// Ids [at, at+n) of corpus k, each one the model has.
static Err ids_read(const Loader *l, int k, int64_t at, int64_t n, int32_t *out) {
    TRY(tokens_read(l->corpus[k], at, n, out));
    for (int64_t i = 0; i < n; i++) {
        CHECK(
            out[i] >= 0 && out[i] < l->vocab_size, E_INPUT,
            "%s: token %lld is id %lld, but the model's vocab_size is %lld: the data was made with "
            "another tokenizer",
            l->path[k], (long long)(at + i), (long long)(uint32_t)out[i], (long long)l->vocab_size);
    }
    return OK;
}

// First position inside the window [at, at+seq_len) of the document of each position; positions at
// or after `real` (padding) count to the last document.
static void doc_starts(const Loader *l, int k, int64_t at, int64_t real, int32_t *out) {
    const Tokens *t = l->corpus[k];
    int64_t doc = tokens_doc_of(t, at), start = 0;
    int64_t next = tokens_doc_start(t, doc + 1);
    for (int64_t p = 0; p < l->seq_len; p++) {
        while (p < real && at + p >= next) { // documents may be empty
            doc++;
            start = p;
            next = tokens_doc_start(t, doc + 1);
        }
        out[p] = (int32_t)start;
    }
}

static void proof_add(ReadProof *r, int64_t g, const Sample *s) {
    int64_t what[3] = {g, s->corpus, s->window};
    r->samples++;
    r->hash += hash64_seeded(what, sizeof what, 0);
}

static Sample sample_at(Loader *l, int64_t g) {
    pthread_mutex_lock(&l->mutex);
    Sample s = sampler_at(&l->sampler, g);
    pthread_mutex_unlock(&l->mutex);
    return s;
}

ReadProof loader_proof(Loader *l, int64_t first, int64_t n) {
    ReadProof r = {0, 0};
    for (int64_t g = first; g < first + n; g++) {
        Sample s = sample_at(l, g);
        proof_add(&r, g, &s);
    }
    return r;
}

Err loader_batch(Loader *l, int64_t first, int64_t n, int32_t *tokens, int32_t *doc_start, ReadProof *read) {
    CHECK(!l->is_eval && first >= 0 && n >= 0, E_INTERNAL, "loader: batch %lld + %lld of %s data",
          (long long)first, (long long)n, l->is_eval ? "evaluation" : "training");
    int64_t width = l->seq_len + 1 + l->mtp_depth;
    for (int64_t i = 0; i < n; i++) {
        Sample s = sample_at(l, first + i);
        int64_t at = s.window * l->seq_len;
        TRY(ids_read(l, s.corpus, at, width, tokens + i * width));
        if (doc_start) doc_starts(l, s.corpus, at, l->seq_len, doc_start + i * l->seq_len);
        if (read) proof_add(read, first + i, &s);
    }
    return OK;
}

int64_t loader_windows(const Loader *l) {
    int64_t sum = 0;
    for (int k = 0; k < l->ncorpora; k++) sum += l->sampler.windows[k];
    return sum;
}

double loader_epoch(Loader *l, int k, int64_t samples) {
    int64_t counts[SAMPLER_CORPORA];
    if (l->is_eval || l->sampler.windows[k] == 0) return 0;
    pthread_mutex_lock(&l->mutex);
    sampler_counts(&l->sampler, samples, counts);
    pthread_mutex_unlock(&l->mutex);
    return (double)counts[k] / (double)l->sampler.windows[k];
}

// ---- evaluation --------------------------------------------------------------------------------

static int64_t eval_windows_of(const Loader *l, int k) {
    return ceil_div(max_i64(tokens_count(l->corpus[k]) - 1, 0), l->seq_len);
}

int64_t loader_eval_windows(const Loader *l) {
    int64_t sum = 0;
    for (int k = 0; k < l->ncorpora; k++) sum += eval_windows_of(l, k);
    return sum;
}

Err loader_eval_batch(Loader *l, int64_t first, int64_t n, int32_t *tokens, int32_t *valid,
                      int32_t *avail, int32_t *doc_start) {
    CHECK(first >= 0 && n >= 0 && first <= loader_eval_windows(l) - n, E_INTERNAL,
          "loader: evaluation windows %lld + %lld of %lld", (long long)first, (long long)n,
          (long long)loader_eval_windows(l));
    int64_t width = l->seq_len + 1 + l->mtp_depth;
    for (int64_t i = 0; i < n; i++) {
        int k = 0;
        int64_t w = first + i;
        while (w >= eval_windows_of(l, k)) w -= eval_windows_of(l, k++);
        int64_t at = w * l->seq_len, real = min_i64(tokens_count(l->corpus[k]) - at, width);
        int64_t pad = tokens_meta(l->corpus[k])->pad_id;
        if (pad < 0 || pad >= l->vocab_size) pad = 0;
        int32_t *row = tokens + i * width;
        TRY(ids_read(l, k, at, real, row));
        for (int64_t p = real; p < width; p++) row[p] = (int32_t)pad;
        if (valid) valid[i] = (int32_t)min_i64(real - 1, l->seq_len);
        if (avail) avail[i] = (int32_t)real;
        if (doc_start) doc_starts(l, k, at, real, doc_start + i * l->seq_len);
    }
    return OK;
}

int64_t loader_tokens(const Loader *l) {
    int64_t sum = 0;
    for (int k = 0; k < l->ncorpora; k++) sum += tokens_count(l->corpus[k]);
    return sum;
}

int64_t loader_text_bytes(const Loader *l) {
    int64_t sum = 0;
    for (int k = 0; k < l->ncorpora; k++) sum += tokens_text_bytes(l->corpus[k]);
    return sum;
}

HashText loader_fingerprint(const Loader *l) {
    return hash_text(l->fingerprint);
}

const char *loader_tokenizer_hash(const Loader *l) {
    return tokens_meta(l->corpus[0])->tokenizer_hash;
}
