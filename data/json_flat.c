// json_flat.c - reads a JSON object with jansson and takes it apart.
#include "json_flat.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "arena.h"

#define MAX_BYTES ((int64_t)16 << 20)
#define MAX_DEPTH 8

static Err text_copy(char **out, const char *text) {
    size_t n = strlen(text) + 1;
    TRY(mem_alloc((void **)out, n, "JSON text"));
    memcpy(*out, text, n);
    return OK;
}

// The text of a value that is not an object.
static Err value_text(JsonItem *item, const json_t *v, const char *path) {
    char number[64];
    switch (json_typeof(v)) {
    case JSON_NULL: item->kind = JSON_NONE; return text_copy(&item->text, "null");
    case JSON_TRUE: item->kind = JSON_FLAG; return text_copy(&item->text, "true");
    case JSON_FALSE: item->kind = JSON_FLAG; return text_copy(&item->text, "false");
    case JSON_STRING: item->kind = JSON_TEXT; return text_copy(&item->text, json_string_value(v));
    case JSON_INTEGER:
        item->kind = JSON_WHOLE;
        snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v));
        return text_copy(&item->text, number);
    case JSON_REAL:
        item->kind = JSON_FRACTION;
        snprintf(number, sizeof number, "%.17g", json_real_value(v));
        return text_copy(&item->text, number);
    default: break;
    }
    char *list = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    CHECK(list, E_INPUT, "%s: key '%s' cannot be written as text", path, item->key);
    item->kind = JSON_LIST;
    Err err = text_copy(&item->text, list);
    free(list);
    return err;
}

static int64_t count_leaves(json_t *object, int depth) {
    int64_t n = 0;
    const char *key;
    json_t *v;
    json_object_foreach(object, key, v) {
        n += json_is_object(v) && depth < MAX_DEPTH ? count_leaves(v, depth + 1) : 1;
    }
    return n;
}

static Err flatten(JsonFlat *out, json_t *object, const char *prefix, int depth, const char *path) {
    CHECK(depth < MAX_DEPTH, E_INPUT, "%s: objects nested more than %d deep at '%s'", path, MAX_DEPTH, prefix);
    const char *key;
    json_t *v;
    json_object_foreach(object, key, v) {
        char full[512];
        int n = snprintf(full, sizeof full, "%s%s%s", prefix, prefix[0] ? "." : "", key);
        CHECK(n < (int)sizeof full, E_INPUT, "%s: a key is longer than %zu characters: '%.60s...'", path,
              sizeof full - 1, full);
        if (json_is_object(v)) {
            TRY(flatten(out, v, full, depth + 1, path));
            continue;
        }
        JsonItem *item = &out->items[out->n++];
        TRY(text_copy(&item->key, full));
        TRY(value_text(item, v, path));
    }
    return OK;
}

Err json_flat_read(JsonFlat *out, const char *path) {
    memset(out, 0, sizeof *out);
    struct stat st;
    CHECK(stat(path, &st) == 0, E_INPUT, "%s: %s", path, strerror(errno));
    CHECK(S_ISREG(st.st_mode), E_INPUT, "%s: not a regular file", path);
    CHECK(st.st_size <= MAX_BYTES, E_INPUT, "%s: %lld bytes, expected a JSON object of at most %lld", path,
          (long long)st.st_size, (long long)MAX_BYTES);
    json_error_t e;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
    CHECK(root, E_INPUT, "%s:%d:%d: not valid JSON: %s", path, e.line, e.column, e.text);
    Err err = OK;
    CHECK_OR(json_is_object(root), done, E_INPUT, "%s: expected a JSON object {...}", path);
    TRY_OR(mem_alloc((void **)&out->items, (size_t)(count_leaves(root, 0) + 1) * sizeof *out->items, "JSON items"),
           done);
    TRY_OR(flatten(out, root, "", 0, path), done);
done:
    json_decref(root);
    if (err != OK) json_flat_free(out);
    return err;
}

void json_flat_free(JsonFlat *j) {
    for (int i = 0; i < j->n; i++) {
        mem_free(j->items[i].key);
        mem_free(j->items[i].text);
    }
    mem_free(j->items);
    memset(j, 0, sizeof *j);
}

const JsonItem *json_flat_find(const JsonFlat *j, const char *key) {
    for (int i = 0; i < j->n; i++) {
        if (!strcmp(j->items[i].key, key)) return &j->items[i];
    }
    return NULL;
}
