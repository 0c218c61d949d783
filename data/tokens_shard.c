// tokens_shard.c - opening a token shard with HDF5: attributes, tables, chunk addresses.
#define H5_USE_110_API
#include "tokens_shard.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "h5_file.h"
#include "h5_zstd.h"
#include "view.h"

#define CHUNK_MAX (1 << 24) // tokens

static Err attributes_read(Shard *s, hid_t file) {
    char text[64];
    int64_t version = 0;
    TRY(h5_get_text(file, s->path, "/", "format", text, sizeof text));
    CHECK(strcmp(text, "moe-tokens") == 0, E_INPUT, "%s: format '%s', expected 'moe-tokens'",
          s->path, text);
    TRY(h5_get_int(file, s->path, "/", "version", &version));
    CHECK(version == 1, E_INPUT, "%s: version %lld of the token format, expected 1", s->path,
          (long long)version);
    TRY(h5_get_int(file, s->path, "/", "n_tokens", &s->n_tokens));
    TRY(h5_get_int(file, s->path, "/", "n_docs", &s->n_docs));
    TRY(h5_get_int(file, s->path, "/", "n_text_bytes", &s->n_text_bytes));
    TRY(h5_get_int(file, s->path, "/", "vocab_size", &s->meta.vocab_size));
    TRY(h5_get_int(file, s->path, "/", "bos_id", &s->meta.bos_id));
    TRY(h5_get_int(file, s->path, "/", "eos_id", &s->meta.eos_id));
    TRY(h5_get_int(file, s->path, "/", "pad_id", &s->meta.pad_id));
    TRY(h5_get_text(file, s->path, "/", "tokenizer_hash", s->meta.tokenizer_hash,
                    sizeof s->meta.tokenizer_hash));
    TRY(h5_get_text(file, s->path, "/", "source_name", s->meta.source_name,
                    sizeof s->meta.source_name));
    TRY(h5_get_text(file, s->path, "/", "split", s->meta.split, sizeof s->meta.split));
    TRY(h5_get_text(file, s->path, "/", "content_hash", text, sizeof text));
    CHECK(hash_parse(text, &s->content), E_INPUT, "%s: content_hash '%s' is no hash", s->path,
          text);
    CHECK(s->n_tokens >= 0 && s->n_docs >= 0 && s->n_text_bytes >= 0 && s->meta.vocab_size > 0,
          E_INPUT, "%s: negative counts in the header", s->path);
    return OK;
}

// A whole 1-D dataset that must have n elements.
static Err table_read(const Shard *s, hid_t file, const char *name, hid_t type, int item, int64_t n,
                      void **out) {
    *out = NULL;
    Err err = OK;
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT), space = set >= 0 ? H5Dget_space(set) : -1;
    CHECK_OR(space >= 0, done, E_INPUT, "%s: no dataset /%s", s->path, name);
    CHECK_OR(H5Sget_simple_extent_ndims(space) == 1 && H5Sget_simple_extent_npoints(space) == n,
             done, E_INPUT, "%s: /%s has %lld elements, expected %lld", s->path, name,
             (long long)H5Sget_simple_extent_npoints(space), (long long)n);
    *out = calloc((size_t)n + 1, (size_t)item);
    CHECK_OR(*out, done, E_INTERNAL, "%s: out of memory", s->path);
    CHECK_OR(n == 0 || H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *out) >= 0, done, E_INPUT,
             "%s: /%s is damaged: %s", s->path, name, h5_error_text());
done:
    if (space >= 0) H5Sclose(space);
    if (set >= 0) H5Dclose(set);
    if (err != OK) {
        free(*out);
        *out = NULL;
    }
    return err;
}

// Type, chunk size and filters of /tokens.
static Err layout_read(Shard *s, hid_t set, bool *is_zstd) {
    hid_t type = H5Dget_type(set), list = H5Dget_create_plist(set), space = H5Dget_space(set);
    s->item = H5Tequal(type, H5T_STD_U16LE) > 0 ? 2 : H5Tequal(type, H5T_STD_U32LE) > 0 ? 4 : 0;
    hsize_t chunk = 0;
    bool is_chunked = H5Pget_layout(list) == H5D_CHUNKED &&
                      H5Sget_simple_extent_ndims(space) == 1 && H5Pget_chunk(list, 1, &chunk) == 1;
    int64_t n = H5Sget_simple_extent_npoints(space);
    int filters = H5Pget_nfilters(list);
    unsigned flags, config;
    size_t values = 0;
    H5Z_filter_t id =
        filters == 1 ? H5Pget_filter2(list, 0, &flags, &values, NULL, 0, NULL, &config) : 0;
    H5Tclose(type);
    H5Pclose(list);
    H5Sclose(space);
    CHECK(s->item != 0, E_INPUT, "%s: /tokens: expected 16- or 32-bit unsigned integers", s->path);
    CHECK(is_chunked && chunk > 0 && chunk <= CHUNK_MAX, E_INPUT,
          "%s: /tokens: expected one dimension in chunks of at most %d", s->path, CHUNK_MAX);
    CHECK(filters == 0 || id == H5_ZSTD_FILTER, E_INPUT,
          "%s: /tokens: expected no filter or only zstd (%d)", s->path, H5_ZSTD_FILTER);
    CHECK(n == s->n_tokens, E_INPUT, "%s: /tokens has %lld elements, n_tokens says %lld", s->path,
          (long long)n, (long long)s->n_tokens);
    *is_zstd = filters == 1;
    s->chunk_tokens = (int64_t)chunk;
    s->n_chunks = ceil_div(s->n_tokens, s->chunk_tokens);
    return OK;
}

static Err chunks_locate(Shard *s, hid_t set, uint64_t file_size) {
    bool is_zstd = false;
    TRY(layout_read(s, set, &is_zstd));
    s->chunk_at = calloc((size_t)s->n_chunks + 1, sizeof *s->chunk_at);
    s->chunk_size = calloc((size_t)s->n_chunks + 1, sizeof *s->chunk_size);
    s->is_raw = calloc((size_t)s->n_chunks + 1, sizeof *s->is_raw);
    CHECK(s->chunk_at && s->chunk_size && s->is_raw, E_INTERNAL, "%s: out of memory", s->path);
    for (int64_t c = 0; c < s->n_chunks; c++) {
        hsize_t first = (hsize_t)(c * s->chunk_tokens), size = 0;
        haddr_t at = HADDR_UNDEF;
        unsigned mask = 0;
        CHECK(H5Dget_chunk_info_by_coord(set, &first, &mask, &at, &size) >= 0, E_INPUT,
              "%s: chunk %lld of /tokens: %s", s->path, (long long)c, h5_error_text());
        CHECK(at != HADDR_UNDEF && at <= file_size && size <= file_size - at, E_INPUT,
              "%s: chunk %lld of /tokens lies outside of the file (cut short?)", s->path,
              (long long)c);
        s->chunk_at[c] = at;
        s->chunk_size[c] = size;
        s->is_raw[c] = !is_zstd || (mask & 1);
        CHECK(!s->is_raw[c] || size == (hsize_t)(s->chunk_tokens * s->item), E_INPUT,
              "%s: chunk %lld of /tokens has %lld bytes", s->path, (long long)c, (long long)size);
    }
    return OK;
}

static Err shard_read(Shard *s, hid_t file) {
    struct stat st;
    CHECK(fstat(s->fd, &st) == 0, E_INPUT, "%s: %s", s->path, strerror(errno));
    TRY(attributes_read(s, file));
    CHECK(s->n_docs < st.st_size * 1024 && s->n_tokens < INT64_MAX / 8, E_INPUT,
          "%s: %lld documents cannot be in this file", s->path, (long long)s->n_docs);
    hid_t set = H5Dopen2(file, "tokens", H5P_DEFAULT);
    CHECK(set >= 0, E_INPUT, "%s: no dataset /tokens", s->path);
    Err err = chunks_locate(s, set, (uint64_t)st.st_size);
    H5Dclose(set);
    TRY(err);
    TRY(table_read(s, file, "chunk_hash", H5T_NATIVE_UINT64, 8, s->n_chunks,
                   (void **)&s->chunk_hash));
    TRY(table_read(s, file, "doc_offsets", H5T_NATIVE_UINT64, 8, s->n_docs + 1,
                   (void **)&s->doc_offset));
    for (int64_t i = 0; i <= s->n_docs; i++) {
        uint64_t low = i > 0 ? s->doc_offset[i - 1] : 0;
        CHECK(s->doc_offset[i] >= low && (i > 0 || s->doc_offset[0] == 0), E_INPUT,
              "%s: /doc_offsets decreases at %lld", s->path, (long long)i);
    }
    CHECK(s->doc_offset[s->n_docs] == (uint64_t)s->n_tokens, E_INPUT,
          "%s: /doc_offsets ends at %llu, expected n_tokens = %lld", s->path,
          (unsigned long long)s->doc_offset[s->n_docs], (long long)s->n_tokens);
    return OK;
}

Err shard_open(Shard *s, const char *path) {
    memset(s, 0, sizeof *s);
    Err err = OK;
    int64_t file = -1;
    s->path = strdup(path);
    s->fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK_OR(s->path, failed, E_INTERNAL, "%s: out of memory", path);
    CHECK_OR(s->fd >= 0, failed, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    h5_lock();
    err = h5_file_open(&file, path);
    if (err == OK) err = shard_read(s, file);
    if (file >= 0) H5Fclose(file);
    h5_unlock();
    TRY_OR(err, failed);
    return OK;
failed:
    shard_close(s);
    return err;
}

void shard_close(Shard *s) {
    if (s->fd >= 0) close(s->fd);
    free(s->path);
    free(s->chunk_at);
    free(s->chunk_size);
    free(s->is_raw);
    free(s->chunk_hash);
    free(s->doc_offset);
    memset(s, 0, sizeof *s);
    s->fd = -1;
}

static Err tables_add(const Shard *s, hid_t file, HashStream *h) {
    const struct {
        const char *name;
        int item;
        int64_t n;
    } tables[] = {{"doc_offsets", 8, s->n_docs + 1},
                  {"doc_bytes", 8, s->n_docs + 1},
                  {"doc_flags", 1, s->n_docs},
                  {"doc_hash", 8, s->n_docs},
                  {"chunk_hash", 8, s->n_chunks}};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        void *data;
        TRY(table_read(s, file, tables[i].name,
                       tables[i].item == 1 ? H5T_NATIVE_UINT8 : H5T_NATIVE_UINT64, tables[i].item,
                       tables[i].n, &data));
        hash_stream_add(h, data, (size_t)(tables[i].n * tables[i].item));
        free(data);
    }
    return OK;
}

Err shard_hash_tables(const Shard *s, HashStream *h) {
    int64_t file = -1;
    h5_lock();
    Err err = h5_file_open(&file, s->path);
    if (err == OK) err = tables_add(s, file, h);
    if (file >= 0) H5Fclose(file);
    h5_unlock();
    TRY(err);
    return OK;
}
