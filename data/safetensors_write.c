// safetensors_write.c - writing safetensors: the header first, then the data as it comes.
//
// The header says where every tensor lies, so tensors may also be written side by side.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "outfile.h"
#include "safetensors.h"

struct SafetensorsWriter {
    OutFile out;
    char *path;            // as the caller named it, for messages
    char **name;           // [n]
    int64_t *bytes, *done; // [n] of each tensor: in all, written so far
    int64_t *start;        // [n] where it begins in the file
    int64_t n, last;       // tensors; the one that was written to last
    int64_t at;            // where the file stands
};

static void writer_free(SafetensorsWriter *w) {
    for (int64_t i = 0; i < w->n && w->name; i++) free(w->name[i]);
    free(w->name);
    free(w->bytes);
    free(w->done);
    free(w->start);
    free(w->path);
    free(w);
}

void safetensors_drop(SafetensorsWriter **w) {
    if (!*w) return;
    outfile_drop(&(*w)->out);
    writer_free(*w);
    *w = NULL;
}

static Err decl_bytes(const char *path, const StDecl *d, int64_t *bytes) {
    CHECK(d->ndim >= 0 && d->ndim <= ST_DIMS && d->dtype < ST_TYPES, E_INTERNAL,
          "%s: tensor '%s': %d dimensions, type %d", path, d->name, d->ndim, (int)d->dtype);
    *bytes = (int64_t)st_type_bytes(d->dtype);
    for (int i = 0; i < d->ndim; i++) {
        CHECK(d->shape[i] >= 0 && !__builtin_mul_overflow(*bytes, d->shape[i], bytes), E_INTERNAL,
              "%s: tensor '%s': shape", path, d->name);
    }
    return OK;
}

static Err header_write(SafetensorsWriter *w, const StDecl *decl) {
    json_t *header = json_object();
    int64_t at = 0;
    int rc = json_object_set_new(header, "__metadata__", json_pack("{s:s}", "format", "pt"));
    for (int64_t i = 0; i < w->n && rc == 0; i++) {
        json_t *shape = json_array();
        for (int k = 0; k < decl[i].ndim; k++) {
            rc |= json_array_append_new(shape, json_integer(decl[i].shape[k]));
        }
        if (json_object_get(header, decl[i].name)) rc = -1;
        rc |= json_object_set_new(
            header, decl[i].name,
            json_pack("{s:s, s:o, s:[I,I]}", "dtype", st_type_name(decl[i].dtype), "shape", shape,
                      "data_offsets", (json_int_t)at, (json_int_t)(at + w->bytes[i])));
        at += w->bytes[i];
    }
    char *text = rc == 0 ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    CHECK(text, E_INTERNAL, "%s: cannot make the header (a name given twice, or not UTF-8?)",
          w->path);
    size_t n = strlen(text), padded = (n + 7) & ~(size_t)7;
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)padded >> 8 * i);
    bool ok = fwrite(length, 1, 8, w->out.f) == 8 && fwrite(text, 1, n, w->out.f) == n &&
              fwrite("        ", 1, padded - n, w->out.f) == padded - n;
    free(text);
    CHECK(ok, E_OUTPUT, "%s: cannot write: %s", w->path, strerror(errno));
    w->at = 8 + (int64_t)padded;
    for (int64_t i = 0, start = w->at; i < w->n; start += w->bytes[i++]) w->start[i] = start;
    return OK;
}

Err safetensors_create(SafetensorsWriter **out, const char *path, const StDecl *decl, int64_t n) {
    *out = NULL;
    Err err = OK;
    SafetensorsWriter *w = calloc(1, sizeof *w);
    CHECK(w, E_INTERNAL, "%s: out of memory", path);
    w->n = n;
    w->path = strdup(path);
    w->name = calloc((size_t)n + 1, sizeof *w->name);
    w->bytes = calloc((size_t)n + 1, sizeof *w->bytes);
    w->done = calloc((size_t)n + 1, sizeof *w->done);
    w->start = calloc((size_t)n + 1, sizeof *w->start);
    CHECK_OR(w->path && w->name && w->bytes && w->done && w->start, failed, E_INTERNAL, "%s: out of memory", path);
    for (int64_t i = 0; i < n; i++) {
        TRY_OR(decl_bytes(path, &decl[i], &w->bytes[i]), failed);
        w->name[i] = strdup(decl[i].name);
        CHECK_OR(w->name[i], failed, E_INTERNAL, "%s: out of memory", path);
    }
    TRY_OR(outfile_open(&w->out, path), failed);
    TRY_OR(header_write(w, decl), failed);
    *out = w;
    return OK;
failed:
    safetensors_drop(&w);
    return err;
}

// The tensor of this name, looked for from the last one on; -1 if there is none.
static int64_t find(const SafetensorsWriter *w, const char *name) {
    for (int64_t i = 0; i < w->n; i++) {
        int64_t k = (w->last + i) % w->n;
        if (strcmp(w->name[k], name) == 0) return k;
    }
    return -1;
}

Err safetensors_put(SafetensorsWriter *w, const char *name, const void *data, size_t bytes) {
    if (bytes == 0) return OK;
    int64_t i = find(w, name);
    CHECK(i >= 0, E_INTERNAL, "%s: tensor '%s' was not declared", w->path, name);
    CHECK(bytes <= (size_t)(w->bytes[i] - w->done[i]), E_INTERNAL, "%s: tensor '%s': more than its %lld bytes",
          w->path, name, (long long)w->bytes[i]);
    int64_t to = w->start[i] + w->done[i];
    bool ok = w->at == to || fseeko(w->out.f, (off_t)to, SEEK_SET) == 0; // a pipe only takes them in turn
    ok = ok && fwrite(data, 1, bytes, w->out.f) == bytes;
    CHECK(ok, E_OUTPUT, "%s: cannot write: %s", w->path, strerror(errno));
    w->last = i;
    w->done[i] += (int64_t)bytes;
    w->at = to + (int64_t)bytes;
    return OK;
}

Err safetensors_finish(SafetensorsWriter **out, bool is_sync) {
    SafetensorsWriter *w = *out;
    *out = NULL;
    Err err = OK;
    for (int64_t i = 0; i < w->n; i++) {
        CHECK_OR(w->done[i] == w->bytes[i], failed, E_INTERNAL, "%s: tensor '%s' has %lld of %lld bytes", w->path,
                 w->name[i], (long long)w->done[i], (long long)w->bytes[i]);
    }
    TRY_OR(outfile_finish(&w->out, is_sync), failed);
    writer_free(w);
    return OK;
failed:
    safetensors_drop(&w);
    return err;
}

Err safetensors_write_index(const char *path, const char *const *names, const char *const *files,
                            int64_t n, int64_t total_size) {
    json_t *map = json_object();
    int rc = 0;
    for (int64_t i = 0; i < n; i++) rc |= json_object_set_new(map, names[i], json_string(files[i]));
    json_t *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total_size,
                              "weight_map", map);
    CHECK(rc == 0 && index, E_INTERNAL, "%s: cannot make the index", path);
    char *text = json_dumps(index, JSON_INDENT(2) | JSON_SORT_KEYS);
    json_decref(index);
    CHECK(text, E_INTERNAL, "%s: cannot make the index", path);
    OutFile out;
    Err err = outfile_open(&out, path);
    if (err == OK) {
        fprintf(out.f, "%s\n", text); // an error shows at the end
        err = outfile_finish(&out, false);
    }
    free(text);
    return err;
}
