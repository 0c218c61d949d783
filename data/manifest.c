// manifest.c - manifest.json in and out.
//
// The JSON is written indented for people; its own hash is taken over the compact form without the
// last member, so that white space does not matter.
#include "manifest.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena.h"
#include "versions.h"

#define FORMAT "tessera-checkpoint"
#define VERSION 1
#define OWN_HASH "manifest_hash"
#define ROWS_MAX                                                                                   \
    ((int64_t)1 << 48) // dimensions above this are damage; products of them are checked

Err manifest_new(Manifest **m, int64_t nfiles, int64_t ntensors, int64_t npieces) {
    *m = NULL;
    Manifest *n = NULL;
    MEM_NEW(n, 1);
    *m = n;
    MEM_NEW(n->files, nfiles);
    MEM_NEW(n->tensors, ntensors);
    MEM_NEW(n->pieces, npieces);
    n->nfiles = nfiles;
    n->ntensors = ntensors;
    n->npieces = npieces;
    return OK;
}

void manifest_free(Manifest **m) {
    if (!*m) return;
    mem_free((*m)->files);
    mem_free((*m)->tensors);
    mem_free((*m)->pieces);
    mem_free(*m);
    *m = NULL;
}

int64_t manifest_tensor(const Manifest *m, const char *name) {
    for (int64_t i = 0; i < m->ntensors; i++) {
        if (strcmp(m->tensors[i].name, name) == 0) return i;
    }
    return -1;
}

int64_t manifest_cols(const Manifest *m, int64_t i) {
    const ManifestTensor *t = &m->tensors[i];
    return t->ndim > 1 ? t->shape[t->ndim - 1] : 1;
}

int64_t manifest_rows(const Manifest *m, int64_t i) {
    const ManifestTensor *t = &m->tensors[i];
    int64_t rows = 1;
    for (int d = 0; d < (t->ndim > 1 ? t->ndim - 1 : t->ndim); d++) rows *= t->shape[d];
    return rows;
}

// ---- writing -----------------------------------------------------------------------------------

// jansson takes over `value` in every *_new call, also when it is NULL or the call fails.
static bool set(json_t *object, const char *key, json_t *value) {
    return json_object_set_new(object, key, value) == 0;
}

static json_t *hash_json(Hash128 h) {
    return json_string(hash_text(h).s);
}

static json_t *files_json(const Manifest *m) {
    json_t *list = json_array();
    for (int64_t i = 0; list && i < m->nfiles; i++) {
        const ManifestFile *f = &m->files[i];
        json_t *o = json_pack("{s:s, s:I, s:o}", "name", f->name, "bytes", (json_int_t)f->bytes,
                              "hash", hash_json(f->hash));
        if (json_array_append_new(list, o) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *pieces_json(const Manifest *m, int64_t tensor, int64_t *at) {
    json_t *list = json_array();
    for (; list && *at < m->npieces && m->pieces[*at].tensor == tensor; (*at)++) {
        const ManifestPiece *p = &m->pieces[*at];
        json_t *o = json_pack("{s:s, s:I, s:I, s:o}", "file", m->files[p->file].name, "first",
                              (json_int_t)p->first, "rows", (json_int_t)p->rows, "hash",
                              hash_json(p->hash));
        bool ok = p->block_rows == 0 || (set(o, "block_rows", json_integer(p->block_rows)) &&
                                         set(o, "blocks", hash_json(p->blocks)));
        if (json_array_append_new(list, o) != 0 || !ok) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *tensors_json(const Manifest *m) {
    json_t *list = json_array();
    int64_t at = 0;
    for (int64_t i = 0; list && i < m->ntensors; i++) {
        const ManifestTensor *t = &m->tensors[i];
        json_t *shape = json_array();
        for (int d = 0; d < t->ndim; d++) json_array_append_new(shape, json_integer(t->shape[d]));
        json_t *o =
            json_pack("{s:s, s:s, s:o, s:o}", "name", t->name, "dtype", dtype_name(t->dtype),
                      "shape", shape, "pieces", pieces_json(m, i, &at));
        if (json_array_append_new(list, o) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *manifest_json(const Manifest *m) {
    json_t *root = json_object();
    char libraries[256], read_hash[32];
    snprintf(read_hash, sizeof read_hash, "%016llx", (unsigned long long)m->read_hash);
    data_versions(libraries, sizeof libraries);
    bool ok = root && set(root, "format", json_string(FORMAT)) &&
              set(root, "version", json_integer(VERSION)) &&
              set(root, "created", json_string(m->created)) &&
              set(root, "libraries", json_string(libraries)) &&
              set(root, "serial", json_integer(m->serial)) &&
              set(root, "step", json_integer(m->step)) &&
              set(root, "samples", json_integer(m->samples)) &&
              set(root, "tokens", json_integer(m->tokens)) &&
              (m->skipped == 0 || (set(root, "skipped", json_integer(m->skipped)) &&
                                   set(root, "skipped_ranges", json_string(m->skipped_ranges)))) &&
              (m->read_samples < 0 || (set(root, "seed", json_integer(m->seed)) &&
                                       set(root, "read_samples", json_integer(m->read_samples)) &&
                                       set(root, "read_hash", json_string(read_hash)))) &&
              set(root, "world", json_integer(m->world)) && set(root, "ep", json_integer(m->ep)) &&
              set(root, "data_fingerprint", json_string(m->data_fingerprint)) &&
              set(root, "tokenizer_hash", json_string(m->tokenizer_hash)) &&
              set(root, "files", files_json(m)) && set(root, "tensors", tensors_json(m));
    if (ok) return root;
    json_decref(root);
    return NULL;
}

// The hash of a manifest without its hash.
static bool own_hash(const json_t *root, Hash128 *out) {
    char *text = json_dumps(root, JSON_COMPACT);
    if (!text) return false;
    *out = hash128(text, strlen(text));
    free(text);
    return true;
}

static Err text_write(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    CHECK(fd >= 0, E_OUTPUT, "cannot create %s: %s", path, strerror(errno));
    size_t size = strlen(text);
    Err err = OK;
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, text + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        CHECK_OR(n > 0, fail, E_OUTPUT, "cannot write %s: %s", path,
                 n < 0 ? strerror(errno) : "no room");
        done += (size_t)n;
    }
    CHECK_OR(fsync(fd) == 0, fail, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    CHECK(close(fd) == 0, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    return OK;
fail:
    close(fd);
    return err;
}

Err manifest_write(const char *path, const Manifest *m) {
    json_t *root = manifest_json(m);
    Hash128 h;
    bool ok = root && own_hash(root, &h) && set(root, OWN_HASH, hash_json(h));
    char *text = ok ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    CHECK(text, E_INTERNAL, "cannot build %s (out of memory, or a name that is not UTF-8)", path);
    Err err = text_write(path, text);
    free(text);
    TRY(err);
    return OK;
}

// ---- reading -----------------------------------------------------------------------------------

typedef struct Reader {
    const char *path;
    json_t *root;
    json_t *file_index; // name -> index
} Reader;

static Err get_int(const Reader *r, const json_t *o, const char *key, int64_t max, int64_t *out) {
    const json_t *v = json_object_get(o, key);
    CHECK(json_is_integer(v), E_INPUT, "%s is damaged: no integer '%s'", r->path, key);
    *out = json_integer_value(v);
    CHECK(*out >= 0 && *out <= max, E_INPUT, "%s is damaged: '%s' is %lld", r->path, key,
          (long long)*out);
    return OK;
}

static Err get_text(const Reader *r, const json_t *o, const char *key, char *out, size_t cap) {
    const json_t *v = json_object_get(o, key);
    CHECK(json_is_string(v), E_INPUT, "%s is damaged: no text '%s'", r->path, key);
    CHECK(json_string_length(v) < cap, E_INPUT, "%s is damaged: '%s' is too long", r->path, key);
    snprintf(out, cap, "%s", json_string_value(v));
    return OK;
}

static Err get_hash(const Reader *r, const json_t *o, const char *key, Hash128 *out) {
    char text[40];
    TRY(get_text(r, o, key, text, sizeof text));
    CHECK(hash_parse(text, out), E_INPUT, "%s is damaged: '%s' is not a hash", r->path, text);
    return OK;
}

static Err get_list(const Reader *r, const json_t *o, const char *key, json_t **out) {
    *out = json_object_get(o, key);
    CHECK(json_is_array(*out), E_INPUT, "%s is damaged: no list '%s'", r->path, key);
    return OK;
}

static Err read_files(Reader *r, Manifest *m, const json_t *list) {
    for (int64_t i = 0; i < m->nfiles; i++) {
        const json_t *o = json_array_get(list, (size_t)i);
        ManifestFile *f = &m->files[i];
        TRY(get_text(r, o, "name", f->name, sizeof f->name));
        bool is_plain = f->name[0] && f->name[0] != '.' && !strchr(f->name, '/');
        CHECK(is_plain, E_INPUT, "%s is damaged: file name '%s'", r->path, f->name);
        TRY(get_int(r, o, "bytes", INT64_MAX, &f->bytes));
        TRY(get_hash(r, o, "hash", &f->hash));
        CHECK(json_object_set_new(r->file_index, f->name, json_integer(i)) == 0, E_INTERNAL,
              "out of memory");
    }
    return OK;
}

static Err read_shape(const Reader *r, const json_t *o, ManifestTensor *t) {
    json_t *shape;
    char dtype[16];
    TRY(get_text(r, o, "name", t->name, sizeof t->name));
    TRY(get_text(r, o, "dtype", dtype, sizeof dtype));
    bool is_bf16 = strcmp(dtype, "bf16") == 0;
    CHECK(is_bf16 || strcmp(dtype, "f32") == 0, E_INPUT,
          "%s: tensor %s has type %s, expected f32 or bf16", r->path, t->name, dtype);
    t->dtype = is_bf16 ? DT_BF16 : DT_F32;
    TRY(get_list(r, o, "shape", &shape));
    t->ndim = (int)json_array_size(shape);
    CHECK(t->ndim >= 1 && t->ndim <= 3, E_INPUT, "%s is damaged: tensor %s has %d dimensions",
          r->path, t->name, t->ndim);
    int64_t left = ROWS_MAX;
    for (int d = 0; d < t->ndim; d++) {
        const json_t *v = json_array_get(shape, (size_t)d);
        t->shape[d] = json_is_integer(v) ? json_integer_value(v) : 0;
        CHECK(t->shape[d] > 0 && t->shape[d] <= left, E_INPUT, "%s is damaged: shape of tensor %s",
              r->path, t->name);
        left /= t->shape[d];
    }
    return OK;
}

// The pieces of tensor `i`, appended at *at: in order of rows, covering them once.
static Err read_pieces(const Reader *r, Manifest *m, int64_t i, const json_t *list, int64_t *at) {
    int64_t next = 0, rows = manifest_rows(m, i);
    const char *name = m->tensors[i].name;
    for (size_t k = 0; k < json_array_size(list); k++) {
        const json_t *o = json_array_get(list, k);
        ManifestPiece *p = &m->pieces[(*at)++];
        char file[64];
        TRY(get_text(r, o, "file", file, sizeof file));
        const json_t *index = json_object_get(r->file_index, file);
        CHECK(index, E_INPUT, "%s is damaged: tensor %s is in the unknown file '%s'", r->path, name,
              file);
        p->tensor = i;
        p->file = json_integer_value(index);
        TRY(get_int(r, o, "first", rows, &p->first));
        TRY(get_int(r, o, "rows", rows, &p->rows));
        TRY(get_hash(r, o, "hash", &p->hash));
        if (json_object_get(o, "block_rows")) { // checkpoints of earlier versions have none
            TRY(get_int(r, o, "block_rows", rows, &p->block_rows));
            TRY(get_hash(r, o, "blocks", &p->blocks));
        }
        CHECK(p->first == next && p->rows > 0, E_INPUT,
              "%s is damaged: tensor %s has rows %lld twice or not at all", r->path, name,
              (long long)next);
        next += p->rows;
    }
    CHECK(next == rows, E_INPUT, "%s is damaged: tensor %s has %lld of %lld rows", r->path, name,
          (long long)next, (long long)rows);
    return OK;
}

static Err read_lists(Reader *r, Manifest **out) {
    json_t *files, *tensors, *pieces;
    TRY(get_list(r, r->root, "files", &files));
    TRY(get_list(r, r->root, "tensors", &tensors));
    int64_t npieces = 0, at = 0;
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        TRY(get_list(r, json_array_get(tensors, i), "pieces", &pieces));
        npieces += (int64_t)json_array_size(pieces);
    }
    TRY(manifest_new(out, (int64_t)json_array_size(files), (int64_t)json_array_size(tensors),
                     npieces));
    Manifest *m = *out;
    TRY(read_files(r, m, files));
    for (int64_t i = 0; i < m->ntensors; i++) {
        const json_t *o = json_array_get(tensors, (size_t)i);
        TRY(read_shape(r, o, &m->tensors[i]));
        TRY(read_pieces(r, m, i, json_object_get(o, "pieces"), &at));
    }
    return OK;
}

static Err read_head(const Reader *r) {
    char format[32], want[40];
    int64_t version = 0;
    TRY(get_text(r, r->root, "format", format, sizeof format));
    CHECK(strcmp(format, FORMAT) == 0, E_INPUT, "%s: format '%s', expected '%s'", r->path, format,
          FORMAT);
    TRY(get_int(r, r->root, "version", INT32_MAX, &version));
    CHECK(version == VERSION, E_INPUT,
          "%s: version %lld of the checkpoint format, this program reads version %d", r->path,
          (long long)version, VERSION);
    TRY(get_text(r, r->root, OWN_HASH, want, sizeof want));
    json_object_del(r->root, OWN_HASH);
    Hash128 found;
    CHECK(own_hash(r->root, &found), E_INTERNAL, "out of memory");
    CHECK(strcmp(hash_text(found).s, want) == 0, E_INPUT,
          "%s is damaged: expected hash %s, found %s", r->path, want, hash_text(found).s);
    return OK;
}

// What was skipped, if anything was.
static Err read_skipped(const Reader *r, Manifest *m) {
    if (!json_object_get(r->root, "skipped")) return OK;
    TRY(get_int(r, r->root, "skipped", INT64_MAX, &m->skipped));
    return get_text(r, r->root, "skipped_ranges", m->skipped_ranges, sizeof m->skipped_ranges);
}

// What was read of the data; checkpoints of earlier versions do not say.
static Err read_proof(const Reader *r, Manifest *m) {
    char text[32], *end;
    m->seed = m->read_samples = -1;
    if (!json_object_get(r->root, "read_samples")) return OK;
    TRY(get_int(r, r->root, "seed", INT64_MAX, &m->seed));
    TRY(get_int(r, r->root, "read_samples", INT64_MAX, &m->read_samples));
    TRY(get_text(r, r->root, "read_hash", text, sizeof text));
    m->read_hash = strtoull(text, &end, 16);
    CHECK(strlen(text) == 16 && *end == '\0', E_INPUT, "%s is damaged: 'read_hash' is '%s'", r->path, text);
    return OK;
}

static Err read_all(Reader *r, Manifest **out) {
    int64_t world = 0, ep = 0;
    TRY(read_head(r));
    TRY(read_lists(r, out));
    Manifest *m = *out;
    TRY(get_int(r, r->root, "serial", INT64_MAX, &m->serial));
    TRY(get_int(r, r->root, "step", INT64_MAX, &m->step));
    TRY(get_int(r, r->root, "samples", INT64_MAX, &m->samples));
    TRY(get_int(r, r->root, "tokens", INT64_MAX, &m->tokens));
    TRY(read_skipped(r, m));
    TRY(read_proof(r, m));
    TRY(get_int(r, r->root, "world", INT32_MAX, &world));
    TRY(get_int(r, r->root, "ep", INT32_MAX, &ep));
    m->world = (int)world;
    m->ep = (int)ep;
    TRY(get_text(r, r->root, "created", m->created, sizeof m->created));
    TRY(get_text(r, r->root, "data_fingerprint", m->data_fingerprint, sizeof m->data_fingerprint));
    TRY(get_text(r, r->root, "tokenizer_hash", m->tokenizer_hash, sizeof m->tokenizer_hash));
    return OK;
}

Err manifest_read(Manifest **out, const char *dir) {
    *out = NULL;
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, MANIFEST_NAME);
    CHECK(access(path, R_OK) == 0, E_INPUT, "cannot read %s: %s", path, strerror(errno));
    json_error_t why;
    Reader r = {path, json_load_file(path, JSON_REJECT_DUPLICATES, &why), json_object()};
    Err err = OK;
    CHECK_OR(r.root && r.file_index, done, E_INPUT, "%s is damaged: line %d: %s", path, why.line,
             why.text);
    TRY_OR(read_all(&r, out), done);
done:
    json_decref(r.root);
    json_decref(r.file_index);
    if (err != OK) manifest_free(out);
    return err;
}

// A whole number after `key` in the head of a manifest, -1 if there is none.
static int64_t peek_int(const char *head, const char *key) {
    const char *at = strstr(head, key);
    if (!at) return -1;
    char *end;
    long long v = strtoll(at + strlen(key), &end, 10);
    return *end == ',' && v >= 0 ? v : -1;
}

int64_t manifest_peek_serial(const char *dir, int64_t step) {
    char path[4096], head[1024];
    snprintf(path, sizeof path, "%s/%s", dir, MANIFEST_NAME);
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    size_t n = fread(head, 1, sizeof head - 1, f);
    fclose(f);
    head[n] = '\0';
    return strstr(head, FORMAT) && peek_int(head, "\"step\":") == step ? peek_int(head, "\"serial\":") : -1;
}
