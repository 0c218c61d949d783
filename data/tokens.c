// tokens.c - reading token shards as one stream: chunk look-up, pread, decompression, hash checks.
//
// HDF5 is only used while a shard is opened (tokens_shard.c). After that every read is pread +
// zstd, so threads do not wait for each other but for a short lock around a small cache of
// decompressed chunks.
#include "tokens.h"

#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include "tokens_shard.h"
#include "view.h"

#define CACHE_SLOTS 128 // 4 to 8 MiB

typedef struct Slot {
    int shard; // -1 = empty
    int64_t chunk;
    uint64_t stamp; // of the last use
    uint8_t *data;
} Slot;

struct Tokens {
    Shard *shard;
    int nshard;
    int64_t n_tokens, n_docs, n_text_bytes;
    Hash128 fingerprint;
    pthread_mutex_t mutex; // guards slot and stamp
    Slot slot[CACHE_SLOTS];
    uint64_t stamp;
};

// ---- opening -----------------------------------------------------------------------------------

static Err shard_add(Tokens *t, const char *path) {
    Shard *p = realloc(t->shard, (size_t)(t->nshard + 1) * sizeof *p);
    CHECK(p, E_INTERNAL, "%s: out of memory", path);
    t->shard = p;
    Shard *s = &t->shard[t->nshard];
    TRY(shard_open(s, path));
    t->nshard++;
    s->first_token = t->n_tokens;
    s->first_doc = t->n_docs;
    t->n_tokens += s->n_tokens;
    t->n_docs += s->n_docs;
    t->n_text_bytes += s->n_text_bytes;
    const TokenMeta *a = &t->shard[0].meta, *b = &s->meta;
    CHECK(a->vocab_size == b->vocab_size && a->eos_id == b->eos_id &&
              strcmp(a->tokenizer_hash, b->tokenizer_hash) == 0,
          E_INPUT,
          "%s: made with tokenizer %s (%lld ids, end %lld), but %s with %s (%lld ids, end %lld): "
          "prepare "
          "all shards with one tokenizer",
          s->path, b->tokenizer_hash, (long long)b->vocab_size, (long long)b->eos_id,
          t->shard[0].path, a->tokenizer_hash, (long long)a->vocab_size, (long long)a->eos_id);
    return OK;
}

static Err path_add(Tokens *t, const char *path) {
    char pattern[PATH_MAX + 8];
    struct stat st;
    bool is_dir = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    if (!is_dir && !strpbrk(path, "*?")) {
        TRY(shard_add(t, path));
        return OK;
    }
    snprintf(pattern, sizeof pattern, "%s%s", path, is_dir ? "/*.h5" : "");
    glob_t g;
    int rc = glob(pattern, 0, NULL, &g); // sorted by name
    CHECK(rc == 0, E_INPUT, "%s: no token shards there (%s)", path, pattern);
    Err err = OK;
    for (size_t i = 0; i < g.gl_pathc && err == OK; i++) err = shard_add(t, g.gl_pathv[i]);
    globfree(&g);
    TRY(err);
    return OK;
}

Err tokens_open(Tokens **out, const char *const *paths, int npaths) {
    *out = NULL;
    CHECK(npaths > 0, E_INPUT, "no token shards given");
    Tokens *t = calloc(1, sizeof *t);
    CHECK(t, E_INTERNAL, "tokens: out of memory");
    pthread_mutex_init(&t->mutex, NULL);
    for (int i = 0; i < CACHE_SLOTS; i++) t->slot[i].shard = -1;
    Err err = OK;
    HashStream *h = NULL;
    for (int i = 0; i < npaths; i++) TRY_OR(path_add(t, paths[i]), failed);
    TRY_OR(hash_stream_new(&h), failed);
    for (int i = 0; i < t->nshard; i++) {
        HashText text = hash_text(t->shard[i].content);
        hash_stream_add(h, text.s, 32);
    }
    t->fingerprint = hash_stream_end(h);
    hash_stream_free(&h);
    *out = t;
    return OK;
failed:
    hash_stream_free(&h);
    tokens_close(&t);
    return err;
}

void tokens_close(Tokens **t) {
    if (!*t) return;
    for (int i = 0; i < (*t)->nshard; i++) shard_close(&(*t)->shard[i]);
    for (int i = 0; i < CACHE_SLOTS; i++) free((*t)->slot[i].data);
    pthread_mutex_destroy(&(*t)->mutex);
    free((*t)->shard);
    free(*t);
    *t = NULL;
}

// ---- what is known -----------------------------------------------------------------------------

int64_t tokens_count(const Tokens *t) {
    return t->n_tokens;
}

int64_t tokens_docs(const Tokens *t) {
    return t->n_docs;
}

int64_t tokens_text_bytes(const Tokens *t) {
    return t->n_text_bytes;
}

int tokens_shards(const Tokens *t) {
    return t->nshard;
}

const char *tokens_path(const Tokens *t, int shard) {
    return t->shard[shard].path;
}

const TokenMeta *tokens_meta(const Tokens *t) {
    return &t->shard[0].meta;
}

HashText tokens_fingerprint(const Tokens *t) {
    return hash_text(t->fingerprint);
}

// The shard that holds token `at`: the last one that begins at or before it and is not empty.
static int shard_of(const Tokens *t, int64_t at) {
    int lo = 0, hi = t->nshard; // first_token[lo] <= at < first_token[hi]
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (t->shard[mid].first_token <= at)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

int64_t tokens_doc_start(const Tokens *t, int64_t i) {
    int lo = 0, hi = t->nshard;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (t->shard[mid].first_doc <= i)
            lo = mid;
        else
            hi = mid;
    }
    const Shard *s = &t->shard[lo];
    return s->first_token + (int64_t)s->doc_offset[i - s->first_doc];
}

int64_t tokens_doc_of(const Tokens *t, int64_t at) {
    const Shard *s = &t->shard[shard_of(t, at)];
    uint64_t key = (uint64_t)(at - s->first_token);
    int64_t lo = 0, hi = s->n_docs; // doc_offset[lo] <= key < doc_offset[hi]
    while (hi - lo > 1) {
        int64_t mid = lo + (hi - lo) / 2;
        if (s->doc_offset[mid] <= key)
            lo = mid;
        else
            hi = mid;
    }
    return s->first_doc + lo;
}

// ---- reading -----------------------------------------------------------------------------------

static void widen(const Shard *s, const uint8_t *chunk, int64_t from, int64_t n, int32_t *out) {
    if (s->item == 4) {
        memcpy(out, chunk + 4 * from, (size_t)n * 4);
        return;
    }
    const uint16_t *p = (const uint16_t *)chunk + from;
    for (int64_t i = 0; i < n; i++) out[i] = p[i];
}

// Read, decompress and check one chunk into new memory.
static Err chunk_load(const Shard *s, int64_t c, uint8_t **out) {
    Err err = OK;
    size_t bytes = (size_t)(s->chunk_tokens * s->item), stored = s->chunk_size[c];
    bool is_raw = s->is_raw[c];
    uint8_t *data = malloc(bytes), *packed = is_raw ? data : malloc(stored);
    CHECK_OR(data && packed, failed, E_INTERNAL, "%s: out of memory", s->path);
    for (size_t done = 0; done < stored;) {
        ssize_t n = pread(s->fd, packed + done, stored - done, (off_t)(s->chunk_at[c] + done));
        if (n < 0 && errno == EINTR) continue;
        CHECK_OR(n > 0, failed, E_INPUT, "%s: chunk %lld of /tokens: cannot read: %s", s->path,
                 (long long)c, n < 0 ? strerror(errno) : "the file ends there");
        done += (size_t)n;
    }
    if (!is_raw) {
        // The frame's own size is not trusted with memory, it must be the chunk's.
        unsigned long long content = ZSTD_getFrameContentSize(packed, stored);
        CHECK_OR(content == bytes, failed, E_INPUT,
                 "%s: chunk %lld of /tokens is damaged: its zstd frame is not one of %zu bytes",
                 s->path, (long long)c, bytes);
        size_t n = ZSTD_decompress(data, bytes, packed, stored);
        CHECK_OR(n == bytes, failed, E_INPUT, "%s: chunk %lld of /tokens is damaged: zstd: %s",
                 s->path, (long long)c, ZSTD_isError(n) ? ZSTD_getErrorName(n) : "short frame");
    }
    uint64_t found = hash64(data, bytes);
    CHECK_OR(found == s->chunk_hash[c], failed, E_INPUT,
             "%s: chunk %lld of /tokens is damaged: hash %016llx, expected %016llx", s->path,
             (long long)c, (unsigned long long)found, (unsigned long long)s->chunk_hash[c]);
    if (packed != data) free(packed);
    *out = data;
    return OK;
failed:
    if (packed != data) free(packed);
    free(data);
    return err;
}

// Tokens [from, from+n) of chunk c, through the cache.
static Err chunk_read(Tokens *t, int shard, int64_t c, int64_t from, int64_t n, int32_t *out) {
    const Shard *s = &t->shard[shard];
    uint8_t *data = NULL;
    pthread_mutex_lock(&t->mutex);
    for (int i = 0; i < CACHE_SLOTS; i++) {
        Slot *slot = &t->slot[i];
        if (slot->shard != shard || slot->chunk != c) continue;
        slot->stamp = ++t->stamp;
        widen(s, slot->data, from, n, out);
        pthread_mutex_unlock(&t->mutex);
        return OK;
    }
    pthread_mutex_unlock(&t->mutex);
    TRY(chunk_load(s, c, &data));
    widen(s, data, from, n, out);
    pthread_mutex_lock(&t->mutex);
    Slot *oldest = &t->slot[0];
    for (int i = 1; i < CACHE_SLOTS; i++) {
        if (t->slot[i].stamp < oldest->stamp) oldest = &t->slot[i];
    }
    uint8_t *old = oldest->data;
    *oldest = (Slot){shard, c, ++t->stamp, data};
    pthread_mutex_unlock(&t->mutex);
    free(old);
    return OK;
}

Err tokens_read(const Tokens *ct, int64_t first, int64_t n, int32_t *out) {
    Tokens *t = (Tokens *)ct; // only the cache changes
    CHECK(first >= 0 && n >= 0 && first <= t->n_tokens - n, E_INPUT,
          "%s: tokens %lld to %lld wanted, the stream has %lld", t->shard[0].path, (long long)first,
          (long long)(first + n), (long long)t->n_tokens);
    int k = n > 0 ? shard_of(t, first) : 0;
    while (n > 0) {
        const Shard *s = &t->shard[k];
        int64_t at = first - s->first_token;
        if (at >= s->n_tokens) {
            k++;
            continue;
        }
        int64_t c = at / s->chunk_tokens, from = at % s->chunk_tokens;
        int64_t take = min_i64(min_i64(n, s->chunk_tokens - from), s->n_tokens - at);
        TRY(chunk_read(t, k, c, from, take, out));
        first += take;
        out += take;
        n -= take;
    }
    return OK;
}

static Err shard_verify(const Shard *s) {
    HashStream *h = NULL;
    uint8_t *data = NULL;
    Err err = OK;
    TRY(hash_stream_new(&h));
    for (int64_t c = 0; c < s->n_chunks; c++) {
        TRY_OR(chunk_load(s, c, &data), done);
        int64_t n = min_i64(s->chunk_tokens, s->n_tokens - c * s->chunk_tokens);
        hash_stream_add(h, data, (size_t)(n * s->item));
        free(data);
        data = NULL;
    }
    TRY_OR(shard_hash_tables(s, h), done);
    Hash128 found = hash_stream_end(h);
    CHECK_OR(hash_equal(found, s->content), done, E_INPUT, "%s: content hash %s, expected %s",
             s->path, hash_text(found).s, hash_text(s->content).s);
done:
    hash_stream_free(&h);
    return err;
}

Err tokens_verify(const Tokens *t) {
    for (int i = 0; i < t->nshard; i++) TRY(shard_verify(&t->shard[i]));
    return OK;
}
