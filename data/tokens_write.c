// tokens_write.c - writing token shards (layout in tokens.h).
//
// Tokens are hashed, compressed and written chunk by chunk by ourselves (H5Dwrite_chunk), so that
// HDF5 only places bytes; what belongs to documents is kept in memory and written at the end.
#define H5_USE_110_API
#include <errno.h>
#include <hdf5.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "h5_file.h"
#include "h5_zstd.h"
#include "tokens.h"
#include "view.h"

#define ZSTD_LEVEL 3
#define TABLE_CHUNK 8192 // entries, of the tables about documents

typedef struct List {
    uint64_t *v;
    int64_t n, cap;
} List;

struct TokenWriter {
    char path[PATH_MAX], tmp[PATH_MAX + 32];
    int64_t file, set; // hid_t, -1 when closed
    TokenMeta meta;
    int64_t shard_index;
    int item; // bytes of a token on disk
    int64_t n_tokens;
    uint8_t *chunk; // tokens of the chunk being filled
    int64_t fill;   // tokens in it
    void *packed;
    size_t packed_cap;
    ZSTD_CCtx *zstd;
    List offsets, bytes, hashes, chunk_hashes;
    HashStream *content;
};

static Err list_add(List *l, uint64_t v) {
    if (l->n == l->cap) {
        int64_t cap = l->cap ? 2 * l->cap : 1024;
        uint64_t *p = realloc(l->v, (size_t)cap * sizeof *p);
        CHECK(p, E_INTERNAL, "token shard: out of memory");
        l->v = p;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return OK;
}

static Err wrong(const TokenWriter *w, const char *what) {
    return fail_at(E_OUTPUT, __FILE__, __LINE__, "%s: cannot write %s: %s", w->tmp, what,
                   h5_error_text());
}

static void writer_free(TokenWriter *w) {
    h5_lock();
    if (w->set >= 0) H5Dclose(w->set);
    if (w->file >= 0) H5Fclose(w->file);
    h5_unlock();
    free(w->chunk);
    free(w->packed);
    ZSTD_freeCCtx(w->zstd);
    free(w->offsets.v);
    free(w->bytes.v);
    free(w->hashes.v);
    free(w->chunk_hashes.v);
    hash_stream_free(&w->content);
    free(w);
}

void token_writer_drop(TokenWriter **w) {
    if (!*w) return;
    unlink((*w)->tmp);
    writer_free(*w);
    *w = NULL;
}

// A new 1-D dataset of n elements (or growing, if n < 0), zstd-compressed.
static hid_t dataset_new(hid_t file, const char *name, hid_t type, int64_t n, int64_t chunk_n) {
    hsize_t dims = n < 0 ? 0 : (hsize_t)n, max = n < 0 ? H5S_UNLIMITED : dims,
            chunk = (hsize_t)chunk_n;
    unsigned level = ZSTD_LEVEL;
    hid_t create = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, &dims, &max);
    hid_t set = -1;
    if (create >= 0 && space >= 0 &&
        (n == 0 || (H5Pset_chunk(create, 1, &chunk) >= 0 && // an empty table cannot have chunks
                    H5Pset_filter(create, H5_ZSTD_FILTER, H5Z_FLAG_MANDATORY, 1, &level) >= 0))) {
        set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, create, H5P_DEFAULT);
    }
    H5Sclose(space);
    H5Pclose(create);
    return set;
}

static Err writer_start(TokenWriter *w) {
    TRY(h5_file_create(&w->file, w->tmp));
    w->set = dataset_new(w->file, "tokens", w->item == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, -1,
                         TOKEN_CHUNK);
    if (w->set < 0) return wrong(w, "/tokens");
    return OK;
}

Err token_writer_open(TokenWriter **out, const char *path, const TokenMeta *meta,
                      int64_t shard_index) {
    *out = NULL;
    Err err = OK;
    CHECK(strlen(path) < PATH_MAX, E_USAGE, "%s: path too long", path);
    CHECK(meta->vocab_size > 0 && meta->vocab_size <= INT32_MAX, E_INTERNAL, "vocab_size %lld",
          (long long)meta->vocab_size);
    TokenWriter *w = calloc(1, sizeof *w);
    CHECK(w, E_INTERNAL, "%s: out of memory", path);
    w->file = w->set = -1;
    snprintf(w->path, sizeof w->path, "%s", path);
    snprintf(w->tmp, sizeof w->tmp, "%s.partial-%ld", path, (long)getpid());
    w->meta = *meta;
    w->shard_index = shard_index;
    w->item = meta->vocab_size <= 65536 ? 2 : 4;
    w->chunk = calloc(TOKEN_CHUNK, (size_t)w->item);
    w->packed_cap = ZSTD_compressBound((size_t)(TOKEN_CHUNK * w->item));
    w->packed = malloc(w->packed_cap);
    w->zstd = ZSTD_createCCtx();
    CHECK_OR(w->chunk && w->packed && w->zstd, failed, E_INTERNAL, "%s: out of memory", path);
    ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, ZSTD_LEVEL);
    TRY_OR(hash_stream_new(&w->content), failed);
    TRY_OR(list_add(&w->offsets, 0), failed);
    TRY_OR(list_add(&w->bytes, 0), failed);
    h5_lock();
    err = writer_start(w);
    h5_unlock();
    TRY_OR(err, failed);
    *out = w;
    return OK;
failed:
    token_writer_drop(&w);
    return err;
}

int64_t token_writer_tokens(const TokenWriter *w) {
    return w->n_tokens;
}

static Err chunk_store_held(TokenWriter *w, size_t packed) {
    hsize_t at = (hsize_t)(w->chunk_hashes.n - 1) * TOKEN_CHUNK, extent = (hsize_t)w->n_tokens;
    if (H5Dset_extent(w->set, &extent) < 0 ||
        H5Dwrite_chunk(w->set, H5P_DEFAULT, 0, &at, packed, w->packed) < 0) {
        return wrong(w, "/tokens");
    }
    return OK;
}

// Hash, compress and store the current chunk; a partial one is padded with 0 to its full size.
static Err chunk_flush(TokenWriter *w) {
    size_t bytes = (size_t)(TOKEN_CHUNK * w->item), used = (size_t)(w->fill * w->item);
    memset(w->chunk + used, 0, bytes - used);
    hash_stream_add(w->content, w->chunk, used);
    TRY(list_add(&w->chunk_hashes, hash64(w->chunk, bytes)));
    size_t n = ZSTD_compress2(w->zstd, w->packed, w->packed_cap, w->chunk, bytes);
    CHECK(!ZSTD_isError(n), E_INTERNAL, "%s: zstd: %s", w->tmp, ZSTD_getErrorName(n));
    h5_lock();
    Err err = chunk_store_held(w, n);
    h5_unlock();
    TRY(err);
    w->fill = 0;
    return OK;
}

Err token_writer_add(TokenWriter *w, const int32_t *ids, int64_t n, int64_t text_bytes,
                     uint64_t text_hash) {
    for (int64_t i = 0; i < n; i++) {
        CHECK(ids[i] >= 0 && ids[i] < w->meta.vocab_size, E_INPUT,
              "%s: token id %d outside of the vocabulary of %lld", w->path, (int)ids[i],
              (long long)w->meta.vocab_size);
    }
    CHECK(n <= INT64_MAX - w->n_tokens && text_bytes >= 0, E_INTERNAL, "%s: document size",
          w->path);
    for (int64_t i = 0; i < n; i++) {
        if (w->item == 2) {
            uint16_t v = (uint16_t)ids[i];
            memcpy(w->chunk + 2 * w->fill, &v, 2);
        } else {
            memcpy(w->chunk + 4 * w->fill, &ids[i], 4);
        }
        w->n_tokens++;
        if (++w->fill == TOKEN_CHUNK) TRY(chunk_flush(w));
    }
    TRY(list_add(&w->offsets, (uint64_t)w->n_tokens));
    TRY(list_add(&w->bytes, w->bytes.v[w->bytes.n - 1] + (uint64_t)text_bytes));
    TRY(list_add(&w->hashes, text_hash));
    return OK;
}

static Err table_write(TokenWriter *w, const char *name, int item, const void *data, int64_t n) {
    hash_stream_add(w->content, data, (size_t)(n * item));
    hid_t set = dataset_new(w->file, name, item == 1 ? H5T_STD_U8LE : H5T_STD_U64LE, n,
                            max_i64(1, min_i64(n, TABLE_CHUNK)));
    herr_t rc = set < 0 ? -1 : 0;
    if (rc >= 0 && n > 0) {
        rc = H5Dwrite(set, item == 1 ? H5T_NATIVE_UINT8 : H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL,
                      H5P_DEFAULT, data);
    }
    if (set >= 0 && H5Dclose(set) < 0) rc = -1;
    return rc < 0 ? wrong(w, name) : OK;
}

static Err attributes_write(TokenWriter *w, int64_t shard_count) {
    HashText content = hash_text(hash_stream_end(w->content));
    const struct {
        const char *key, *value;
    } texts[] = {
        {"format", "moe-tokens"},
        {"eod_rule", "append"},
        {"tokenizer_hash", w->meta.tokenizer_hash},
        {"source_name", w->meta.source_name},
        {"split", w->meta.split},
        {"created_by", "tessera"},
        {"content_hash", content.s},
    };
    const struct {
        const char *key;
        int64_t value;
    } ints[] = {
        {"version", 1},
        {"n_tokens", w->n_tokens},
        {"n_docs", w->hashes.n},
        {"n_text_bytes", (int64_t)w->bytes.v[w->bytes.n - 1]},
        {"vocab_size", w->meta.vocab_size},
        {"bos_id", w->meta.bos_id},
        {"eos_id", w->meta.eos_id},
        {"pad_id", w->meta.pad_id},
        {"shard_index", w->shard_index},
        {"shard_count", shard_count},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        TRY(h5_set_text(w->file, w->tmp, "/", texts[i].key, texts[i].value));
    }
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        TRY(h5_set_int(w->file, w->tmp, "/", ints[i].key, ints[i].value));
    }
    return OK;
}

static Err finish_held(TokenWriter *w, int64_t shard_count) {
    uint8_t *flags = calloc((size_t)w->hashes.n + 1, 1);
    CHECK(flags, E_INTERNAL, "%s: out of memory", w->tmp);
    Err err = OK;
    TRY_OR(table_write(w, "doc_offsets", 8, w->offsets.v, w->offsets.n), done);
    TRY_OR(table_write(w, "doc_bytes", 8, w->bytes.v, w->bytes.n), done);
    TRY_OR(table_write(w, "doc_flags", 1, flags, w->hashes.n), done);
    TRY_OR(table_write(w, "doc_hash", 8, w->hashes.v, w->hashes.n), done);
    TRY_OR(table_write(w, "chunk_hash", 8, w->chunk_hashes.v, w->chunk_hashes.n), done);
    TRY_OR(attributes_write(w, shard_count), done);
    hid_t set = w->set;
    w->set = -1;
    if (H5Dclose(set) < 0) {
        err = wrong(w, "/tokens");
        goto done;
    }
    TRY_OR(h5_file_close(&w->file, w->tmp, true, true), done);
done:
    free(flags);
    return err;
}

Err token_writer_finish(TokenWriter **out, int64_t shard_count) {
    TokenWriter *w = *out;
    *out = NULL;
    Err err = OK;
    if (w->fill > 0) TRY_OR(chunk_flush(w), failed);
    h5_lock();
    err = finish_held(w, shard_count);
    h5_unlock();
    TRY_OR(err, failed);
    CHECK_OR(rename(w->tmp, w->path) == 0, failed, E_OUTPUT, "%s: cannot rename: %s", w->tmp,
             strerror(errno));
    writer_free(w);
    return OK;
failed:
    token_writer_drop(&w);
    return err;
}

static Err shard_count_held(const char *path, int64_t count) {
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    CHECK(file >= 0, E_OUTPUT, "%s: cannot open for writing: %s", path, h5_error_text());
    Err err = h5_set_int(file, path, "/", "shard_count", count);
    Err closed = h5_file_close(&file, path, true, true);
    return err != OK ? err : closed;
}

Err tokens_set_shard_count(const char *path, int64_t count) {
    h5_lock();
    Err err = shard_count_held(path, count);
    h5_unlock();
    TRY(err);
    return OK;
}
