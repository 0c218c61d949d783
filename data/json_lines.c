// json_lines.c - see json_lines.h.
#include "json_lines.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "bytelevel.h"

struct JsonLines {
    FILE *f;
    char *path;
    char *text; // [cap] the line
    size_t cap;
    json_t *object; // of the line, NULL: before the first and behind the last
    int64_t line;
    JsonDamage damage;
};

Err json_lines_open(JsonLines **out, const char *path) {
    *out = NULL;
    JsonLines *j;
    MEM_NEW(j, 1);
    Err err = OK;
    j->f = fopen(path, "re");
    CHECK_OR(j->f, fail, E_INPUT, "%s: %s", path, strerror(errno));
    j->path = strdup(path);
    CHECK_OR(j->path, fail, E_INTERNAL, "%s: out of memory", path);
    *out = j;
    return OK;
fail:
    json_lines_close(&j);
    return err;
}

void json_lines_close(JsonLines **j) {
    if (!*j) return;
    if ((*j)->f) fclose((*j)->f);
    json_decref((*j)->object);
    free((*j)->path);
    free((*j)->text);
    mem_free(*j);
    *j = NULL;
}

Err json_lines_next(JsonLines *j, bool *is_there) {
    json_decref(j->object);
    j->object = NULL;
    *is_there = false;
    ssize_t n;
    while ((n = getline(&j->text, &j->cap, j->f)) > 0) {
        if (j->text[n - 1] != '\n') {
            j->damage.is_torn = true;
            continue;
        }
        j->line++;
        j->object = json_loadb(j->text, (size_t)n, JSON_ALLOW_NUL, NULL);
        *is_there = json_is_object(j->object);
        if (*is_there) return OK;
        json_decref(j->object);
        j->object = NULL;
        if (j->damage.lines++ == 0) j->damage.first = j->line;
    }
    CHECK(feof(j->f), E_INPUT, "%s: cannot read line %lld: %s", j->path, (long long)j->line + 1, strerror(errno));
    return OK;
}

int64_t json_lines_line(const JsonLines *j) {
    return j->line;
}

JsonDamage json_lines_damage(const JsonLines *j) {
    return j->damage;
}

// ---- fields ------------------------------------------------------------------------------------

JsonField json_lines_field(const JsonLines *j, const char *key) {
    const char *dot = strchr(key, '.');
    if (!dot) return (JsonField){key, json_object_get(j->object, key)};
    char outer[64];
    snprintf(outer, sizeof outer, "%.*s", (int)(dot - key), key);
    return (JsonField){dot + 1, json_object_get(json_object_get(j->object, outer), dot + 1)};
}

JsonField json_lines_each(const JsonLines *j, JsonField f) {
    void *at = f.key ? json_object_iter_next(j->object, json_object_key_to_iter(f.key)) : json_object_iter(j->object);
    return at ? (JsonField){json_object_iter_key(at), json_object_iter_value(at)} : (JsonField){NULL, NULL};
}

double json_field_number(JsonField f) {
    const json_t *v = f.value;
    return json_is_number(v) ? json_number_value(v) : NAN;
}

void json_field_text(JsonField f, char *out, size_t n) {
    const json_t *v = f.value;
    char *dumped = NULL;
    if (n == 0) return;
    const char *text = json_string_value(v);
    if (v && !text) text = dumped = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(10));
    size_t k = text ? strlen(text) : 0;
    if (k >= n) k = utf8_valid_bytes(text, n - 1); // not in the middle of a character
    if (k > 0) memcpy(out, text, k);
    out[k] = '\0';
    free(dumped);
}

JsonField json_field_element(JsonField list, size_t i) {
    return (JsonField){NULL, json_array_get(list.value, i)};
}
