// config.c - reading a configuration: a YAML file, then `--set section.key=value`, both through one
// path.
//
// libyaml's document API gives every node its line, so each message names file, line, key, the
// value found and what was expected. A --set value is itself a small YAML document (a number, null,
// [a, b], {k: v}). The only file that includes yaml.h.
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "arena.h"
#include "config_keys.h"
#include "nearest.h"

#define MAX_KEYS 256        // of the table; only bounds the lists of candidates below
#define MAX_BYTES (1 << 18) // of a configuration file
#define MAX_ITEMS 65536     // of a list

typedef struct Text {
    char s[320];
} Text;

typedef struct Reader {
    Config *c;
    const char *path;   // the file as the user typed it; NULL in a --set
    const char *set;    // the --set as typed; NULL in a file
    const char *folder; // relative paths start here; absolute
    yaml_document_t *doc;
    int line_of[MAX_KEYS]; // where each key was given in the file, 0 = not yet
    bool is_given[MAX_KEYS];
} Reader;

// Where a node stands, for the start of a message.
static Text where(const Reader *r, const yaml_node_t *node) {
    Text t;
    if (r->set) {
        snprintf(t.s, sizeof t.s, "--set %.200s", r->set);
    } else {
        snprintf(t.s, sizeof t.s, "%.240s:%d", r->path, (int)node->start_mark.line + 1);
    }
    return t;
}

// What a node holds, short and printable.
static Text shown(const yaml_node_t *node) {
    Text t = {"a list"};
    if (node->type == YAML_MAPPING_NODE) snprintf(t.s, sizeof t.s, "a map of keys");
    if (node->type != YAML_SCALAR_NODE) return t;
    bool is_quoted = node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    const char *s = (const char *)node->data.scalar.value;
    int length = (int)node->data.scalar.length;
    if (length == 0 && !is_quoted) {
        snprintf(t.s, sizeof t.s, "nothing");
        return t;
    }
    snprintf(t.s, sizeof t.s, is_quoted ? "the text \"%.60s\"%s" : "'%.60s'%s", s,
             length > 60 ? "..." : "");
    for (char *p = t.s; *p; p++) {
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    }
    return t;
}

static Err wrong_value(const Reader *r, const yaml_node_t *node, const Key *k) {
    char expected[160];
    keys_expected(expected, sizeof expected, k);
    FAIL(E_CONFIG, "%s: %s: expected %s, found %s", where(r, node).s, keys_name(k).s, expected,
         shown(node).s);
}

static bool is_plain(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE && node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

static bool is_null(const yaml_node_t *node) {
    if (!is_plain(node)) return false;
    const char *s = (const char *)node->data.scalar.value;
    return !*s || !strcmp(s, "null") || !strcmp(s, "Null") || !strcmp(s, "NULL") || !strcmp(s, "~");
}

// Decimal whole numbers only: no octal, no hexadecimal, no exponent.
static bool scalar_int(const yaml_node_t *node, int64_t *out) {
    if (!is_plain(node)) return false;
    const char *s = (const char *)node->data.scalar.value;
    const char *digits = s + (*s == '-' || *s == '+');
    if (!isdigit((unsigned char)*digits) || (digits[0] == '0' && digits[1])) return false;
    char *end = NULL;
    errno = 0;
    long long x = strtoll(s, &end, 10);
    if (*end || errno) return false;
    *out = x;
    return true;
}

// Decimal numbers: 1, 0.5, 1e-3, 2.2e-4. Infinity and NaN are refused.
static bool scalar_real(const yaml_node_t *node, double *out) {
    if (!is_plain(node)) return false;
    const char *s = (const char *)node->data.scalar.value;
    if (!*s || strspn(s, "0123456789+-.eE") != strlen(s)) return false;
    char *end = NULL;
    double x = strtod(s, &end);
    if (*end || !isfinite(x)) return false;
    *out = x;
    return true;
}

static bool scalar_bool(const yaml_node_t *node, bool *out) {
    if (!is_plain(node)) return false;
    const char *s = (const char *)node->data.scalar.value;
    *out = !strcmp(s, "true");
    return *out || !strcmp(s, "false");
}

// The absolute form of a path. "./" and "../" at the front are taken off against the folder, which
// holds no symbolic links; the rest stays as the user wrote it.
static Err absolute_path(const Reader *r, const char *path, char **out) {
    if (path[0] == '/') {
        MEM_NEW(*out, strlen(path) + 1);
        strcpy(*out, path);
        return OK;
    }
    size_t n = strlen(r->folder);
    for (;;) {
        if (!strncmp(path, "./", 2)) {
            path += 2;
        } else if (!strncmp(path, "../", 3)) {
            path += 3;
            while (n > 0 && r->folder[n - 1] != '/') n--;
            if (n > 0) n--;
        } else {
            break;
        }
    }
    MEM_NEW(*out, n + strlen(path) + 2);
    sprintf(*out, "%.*s/%s", (int)n, r->folder, path);
    return OK;
}

// One path; node must be a scalar that is not empty and holds no NUL.
static Err read_path(const Reader *r, const yaml_node_t *node, const Key *k, char **out) {
    bool is_path = node->type == YAML_SCALAR_NODE && !is_null(node) &&
                   node->data.scalar.length > 0 &&
                   strlen((const char *)node->data.scalar.value) == node->data.scalar.length;
    if (!is_path) return wrong_value(r, node, k);
    return absolute_path(r, (const char *)node->data.scalar.value, out);
}

static void list_free(const Config *c, const Key *k) {
    if (k->kind == KEY_PATHS) {
        PathList *l = keys_value(c, k);
        for (int i = 0; i < l->n; i++) mem_free(l->v[i]);
        mem_free(l->v);
        *l = (PathList){0};
    } else if (k->kind == KEY_PATH) {
        char **p = keys_value(c, k);
        mem_free(*p);
        *p = NULL;
    } else if (k->kind == KEY_REALS) {
        RealList *l = keys_value(c, k);
        mem_free(l->v);
        *l = (RealList){0};
    } else if (k->kind == KEY_INTS) {
        IntList *l = keys_value(c, k);
        mem_free(l->v);
        *l = (IntList){0};
    }
}

// The i-th item of a list; a scalar is a list of one.
static const yaml_node_t *list_item(const Reader *r, const yaml_node_t *node, int i) {
    if (node->type == YAML_SCALAR_NODE) return node;
    return yaml_document_get_node(r->doc, node->data.sequence.items.start[i]);
}

static Err read_list(Reader *r, const yaml_node_t *node, const Key *k) {
    list_free(r->c, k);
    if (is_null(node)) return OK;
    if (node->type == YAML_MAPPING_NODE) return wrong_value(r, node, k);
    int64_t n = 1;
    if (node->type == YAML_SEQUENCE_NODE) {
        n = node->data.sequence.items.top - node->data.sequence.items.start;
    }
    if (n == 0) return OK;
    CHECK(n <= MAX_ITEMS, E_CONFIG, "%s: %s: %lld items, at most %d are allowed", where(r, node).s,
          keys_name(k).s, (long long)n, MAX_ITEMS);
    PathList *paths = keys_value(r->c, k);
    RealList *reals = keys_value(r->c, k);
    IntList *ints = keys_value(r->c, k);
    if (k->kind == KEY_PATHS) MEM_NEW(paths->v, n);
    if (k->kind == KEY_REALS) MEM_NEW(reals->v, n);
    if (k->kind == KEY_INTS) MEM_NEW(ints->v, n);
    for (int i = 0; i < n; i++) {
        const yaml_node_t *item = list_item(r, node, i);
        if (k->kind == KEY_PATHS) {
            TRY(read_path(r, item, k, &paths->v[i]));
            paths->n = i + 1;
        } else if (k->kind == KEY_REALS) {
            if (!scalar_real(item, &reals->v[i])) return wrong_value(r, item, k);
            reals->n = i + 1;
        } else {
            if (!scalar_int(item, &ints->v[i])) return wrong_value(r, item, k);
            ints->n = i + 1;
        }
    }
    return OK;
}

static Err read_enum(Reader *r, const yaml_node_t *node, const Key *k) {
    if (node->type != YAML_SCALAR_NODE) return wrong_value(r, node, k);
    const char *at;
    int n;
    for (int i = 0; (n = keys_enum_value(k->values, i, &at)); i++) {
        if (node->data.scalar.length == (size_t)n &&
            !memcmp(node->data.scalar.value, at, (size_t)n)) {
            *(int *)keys_value(r->c, k) = i;
            return OK;
        }
    }
    return wrong_value(r, node, k);
}

static Err read_nest(Reader *r, const yaml_node_t *node, const Key *nest);

// The one function that knows how each kind of value is read.
static Err read_value(Reader *r, const yaml_node_t *node, const Key *k) {
    void *p = keys_value(r->c, k);
    bool is_nulled = k->is_nullable && is_null(node);
    bool is_right = true;
    switch (k->kind) {
    case KEY_INT: {
        int64_t x = 0;
        is_right =
            is_nulled || (scalar_int(node, &x) && (double)x >= k->low && (double)x <= k->high);
        if (is_right) *(int64_t *)p = x;
        break;
    }
    case KEY_REAL: {
        double x = 0;
        is_right = is_nulled || (scalar_real(node, &x) && x >= k->low && x <= k->high);
        if (is_right) *(double *)p = x;
        break;
    }
    case KEY_BOOL: is_right = scalar_bool(node, p); break;
    case KEY_ENUM: return read_enum(r, node, k);
    case KEY_PATH: list_free(r->c, k); return is_nulled ? OK : read_path(r, node, k, p);
    case KEY_PATHS:
    case KEY_REALS:
    case KEY_INTS: return read_list(r, node, k);
    case KEY_NEST: return read_nest(r, node, k);
    }
    return is_right ? OK : wrong_value(r, node, k);
}

// The known name that was probably meant: the very same name elsewhere, else one like it in the
// section.
static Text suggestion(const char *section, const char *nest, const char *name) {
    const char *list[MAX_KEYS];
    const Key *found[MAX_KEYS];
    const Key *best = NULL;
    const Key *k;
    int n = 0;
    for (int i = 0; (k = keys_at(i)) && n < MAX_KEYS; i++) {
        if (!best && !strcmp(k->name, name)) best = k;
        if (!section || strcmp(k->section, section) != 0 || (nest && !k->nest)) continue;
        found[n] = k;
        list[n++] = k->name;
    }
    const char *near = best ? NULL : word_nearest(name, list, n);
    for (int i = 0; i < n && near; i++) {
        if (!best && list[i] == near) best = found[i];
    }
    Text t = {"; 'tessera train --help' lists all"};
    if (best) snprintf(t.s, sizeof t.s, "; did you mean %s?", keys_name(best).s);
    return t;
}

static Err unknown_key(const Reader *r, const yaml_node_t *node, const char *section,
                       const char *nest, const char *name) {
    FAIL(E_CONFIG, "%s: unknown key %.40s%s%.40s.%.60s%s", where(r, node).s, section,
         nest ? "." : "", nest ? nest : "", name, suggestion(section, nest, name).s);
}

static Err unknown_section(const Reader *r, const yaml_node_t *node, const char *name) {
    const char *list[MAX_KEYS];
    int n = 0;
    const Key *k;
    for (int i = 0; (k = keys_at(i)) && n < MAX_KEYS; i++) {
        if (n == 0 || list[n - 1] != k->section) list[n++] = k->section;
    }
    const char *near = word_nearest(name, list, n);
    if (near) {
        FAIL(E_CONFIG, "%s: unknown section %.60s; did you mean %s?", where(r, node).s, name, near);
    }
    Text elsewhere = suggestion(NULL, NULL, name);
    FAIL(E_CONFIG, "%s: unknown section %.60s%s", where(r, node).s, name, elsewhere.s);
}

// The text of a map's key; E_CONFIG if it is not a scalar.
static Err key_text(const Reader *r, const yaml_node_t *key, const char **out) {
    CHECK(key->type == YAML_SCALAR_NODE, E_CONFIG, "%s: expected the name of a key, found %s",
          where(r, key).s, shown(key).s);
    *out = (const char *)key->data.scalar.value;
    CHECK(strlen(*out) == key->data.scalar.length, E_CONFIG, "%s: a NUL in the name of a key",
          where(r, key).s);
    return OK;
}

// Give key number i its value, once per file.
static Err read_key(Reader *r, const yaml_node_t *key, const yaml_node_t *value, int i) {
    const Key *k = keys_at(i);
    if (!r->set) {
        CHECK(!r->line_of[i], E_CONFIG, "%s: %s is given twice, first on line %d", where(r, key).s,
              keys_name(k).s, r->line_of[i]);
        r->line_of[i] = (int)key->start_mark.line + 1;
    }
    TRY(read_value(r, value, k));
    r->is_given[i] = true;
    return OK;
}

// model.rope_scaling: null, or a map. Hugging Face's `type: yarn` or `rope_type: yarn` is accepted
// inside.
static Err read_nest(Reader *r, const yaml_node_t *node, const Key *nest) {
    bool *has = keys_value(r->c, nest);
    *has = false;
    keys_nest_reset(r->c, nest);
    if (is_null(node)) return OK;
    if (node->type != YAML_MAPPING_NODE) return wrong_value(r, node, nest);
    for (yaml_node_pair_t *p = node->data.mapping.pairs.start; p < node->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *key = yaml_document_get_node(r->doc, p->key);
        const yaml_node_t *value = yaml_document_get_node(r->doc, p->value);
        const char *name;
        TRY(key_text(r, key, &name));
        if (!strcmp(name, "type") || !strcmp(name, "rope_type")) {
            bool is_yarn = value->type == YAML_SCALAR_NODE &&
                           !strcmp((char *)value->data.scalar.value, "yarn");
            CHECK(is_yarn, E_CONFIG, "%s: %s.%s: expected yarn, found %s", where(r, value).s,
                  keys_name(nest).s, name, shown(value).s);
            continue;
        }
        int i = keys_find(nest->section, nest->name, name);
        if (i < 0) return unknown_key(r, key, nest->section, nest->name, name);
        TRY(read_key(r, key, value, i));
    }
    *has = true;
    return OK;
}

static Err read_section(Reader *r, const char *section, const yaml_node_t *node) {
    if (is_null(node)) return OK;
    CHECK(node->type == YAML_MAPPING_NODE, E_CONFIG, "%s: section %s: expected keys, found %s",
          where(r, node).s, section, shown(node).s);
    for (yaml_node_pair_t *p = node->data.mapping.pairs.start; p < node->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *key = yaml_document_get_node(r->doc, p->key);
        const yaml_node_t *value = yaml_document_get_node(r->doc, p->value);
        const char *name;
        TRY(key_text(r, key, &name));
        int i = keys_find(section, NULL, name);
        if (i < 0) return unknown_key(r, key, section, NULL, name);
        TRY(read_key(r, key, value, i));
    }
    return OK;
}

// The canonical pointer of a section's name, NULL if there is none.
static const char *section_find(const char *name) {
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        if (!strcmp(k->section, name)) return k->section;
    }
    return NULL;
}

static Err read_root(Reader *r, const yaml_node_t *root) {
    if (!root || is_null(root)) return OK; // an empty file: what is missing is told by the caller
    CHECK(root->type == YAML_MAPPING_NODE, E_CONFIG,
          "%s: expected sections such as 'model:', found %s", where(r, root).s, shown(root).s);
    const char *seen[32];
    int line[32];
    int nseen = 0;
    for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top;
         p++) {
        const yaml_node_t *key = yaml_document_get_node(r->doc, p->key);
        const char *name;
        TRY(key_text(r, key, &name));
        const char *section = section_find(name);
        if (!section) return unknown_section(r, key, name);
        for (int i = 0; i < nseen; i++) {
            CHECK(seen[i] != section, E_CONFIG, "%s: section %s is given twice, first on line %d",
                  where(r, key).s, section, line[i]);
        }
        seen[nseen] = section; // each known section at most once: never more than there are
        line[nseen++] = (int)key->start_mark.line + 1;
        TRY(read_section(r, section, yaml_document_get_node(r->doc, p->value)));
    }
    return OK;
}

static Err parser_error(const Reader *r, const yaml_parser_t *parser) {
    const char *problem = parser->problem ? parser->problem : "not readable as YAML";
    int line = (int)parser->problem_mark.line + 1;
    if (parser->error == YAML_MEMORY_ERROR) FAIL(E_INTERNAL, "config: out of memory");
    if (r->set) FAIL(E_CONFIG, "--set %.200s: not YAML: %s", r->set, problem);
    if (parser->error == YAML_READER_ERROR) {
        FAIL(E_CONFIG, "%.240s: byte %zu: not YAML: %s", r->path, parser->problem_offset, problem);
    }
    FAIL(E_CONFIG, "%.240s:%d: not YAML: %s", r->path, line, problem);
}

// Parse `text` and hand its only document's root to `use` (key -1: a whole file, else that key's
// value).
static Err read_document(Reader *r, const char *text, size_t n, int key) {
    yaml_parser_t parser;
    yaml_document_t doc, next;
    CHECK(yaml_parser_initialize(&parser), E_INTERNAL, "config: out of memory");
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, n);
    if (!yaml_parser_load(&parser, &doc)) {
        Err err = parser_error(r, &parser);
        yaml_parser_delete(&parser);
        return err;
    }
    Err err = OK;
    yaml_node_t *root = yaml_document_get_root_node(&doc);
    yaml_node_t nothing = {.type = YAML_SCALAR_NODE};
    nothing.data.scalar.value = (unsigned char *)"";
    nothing.data.scalar.style = YAML_PLAIN_SCALAR_STYLE;
    r->doc = &doc;
    if (key < 0) {
        err = read_root(r, root);
    } else {
        err = read_key(r, root ? root : &nothing, root ? root : &nothing, key);
    }
    if (err == OK && root) {
        if (!yaml_parser_load(&parser, &next)) {
            err = parser_error(r, &parser);
        } else {
            yaml_node_t *more = yaml_document_get_root_node(&next);
            if (more) {
                err = fail_at(E_CONFIG, __FILE__, __LINE__,
                              "%s: a second YAML document; only one is read", where(r, more).s);
            }
            yaml_document_delete(&next);
        }
    }
    yaml_document_delete(&doc);
    yaml_parser_delete(&parser);
    r->doc = NULL;
    return err;
}

static Err file_bytes(const char *path, char **text, size_t *n) {
    FILE *f = fopen(path, "re");
    CHECK(f, E_CONFIG, "cannot read the config %s: %s", path, strerror(errno));
    Err err = mem_alloc((void **)text, MAX_BYTES + 1, "config file");
    if (err == OK) {
        *n = fread(*text, 1, MAX_BYTES + 1, f);
        if (ferror(f)) {
            err = fail_at(E_CONFIG, __FILE__, __LINE__, "cannot read the config %s: %s", path,
                          strerror(errno));
        } else if (*n > MAX_BYTES) {
            err = fail_at(E_CONFIG, __FILE__, __LINE__, "%s is larger than %d bytes: not a config",
                          path, MAX_BYTES);
        }
    }
    fclose(f);
    return err;
}

static Err read_file(Reader *r, const char *path) {
    char *text = NULL;
    char *slash = NULL;
    char *folder = NULL;
    size_t n = 0;
    Err err = OK;
    TRY_OR(file_bytes(path, &text, &n), done);
    folder = strdup(path);
    CHECK_OR(folder, done, E_INTERNAL, "config: out of memory");
    slash = strrchr(folder, '/');
    if (slash) {
        slash[slash == folder] = '\0';
    } else {
        strcpy(folder, "."); // path is not empty: it was opened
    }
    char *real = realpath(folder, NULL);
    free(folder);
    folder = real;
    CHECK_OR(folder, done, E_CONFIG, "%s: cannot resolve its folder: %s", path, strerror(errno));
    r->path = path;
    r->folder = folder[1] ? folder : ""; // "/" itself: paths are joined with a slash
    TRY_OR(read_document(r, text, n, -1), done);
done:
    mem_free(text);
    free(folder);
    r->folder = NULL;
    return err;
}

// The key that "section.key" or "section.nest.key" names.
static Err set_find(const Reader *r, char *name, int *out) {
    yaml_node_t nowhere = {0};
    char *rest = strchr(name, '.');
    CHECK(rest, E_CONFIG, "--set %.200s: expected section.key=value%s", r->set,
          suggestion(NULL, NULL, name).s);
    *rest++ = '\0';
    const char *section = section_find(name);
    if (!section) return unknown_section(r, &nowhere, name);
    char *leaf = strchr(rest, '.');
    if (leaf) *leaf++ = '\0';
    *out = leaf ? keys_find(section, rest, leaf) : keys_find(section, NULL, rest);
    if (*out >= 0) return OK;
    bool is_nest = leaf && keys_find(section, NULL, rest) >= 0;
    if (leaf && !is_nest) leaf[-1] = '.';
    return unknown_key(r, &nowhere, section, is_nest ? rest : NULL, is_nest ? leaf : rest);
}

static Err read_set(Reader *r, const char *set) {
    r->path = NULL;
    r->set = set;
    const char *equals = strchr(set, '=');
    CHECK(equals, E_CONFIG, "--set %.200s: expected section.key=value, found no '='", set);
    char *name = strndup(set, (size_t)(equals - set));
    char *folder = realpath(".", NULL);
    Err err = OK;
    int i = -1;
    CHECK_OR(name && folder, done, E_INTERNAL, "config: no current directory, or out of memory");
    TRY_OR(set_find(r, name, &i), done);
    r->folder = folder[1] ? folder : "";
    TRY_OR(read_document(r, equals + 1, strlen(equals + 1), i), done);
    const Key *k = keys_at(i);
    if (k->nest) {
        int parent = keys_find(k->section, NULL, k->nest);
        *(bool *)keys_value(r->c, keys_at(parent)) = true;
    }
done:
    free(name);
    free(folder);
    r->folder = NULL;
    return err;
}

// Every key without a default must have been given; all that are missing are told at once.
static Err check_given(const Reader *r, const char *path) {
    char missing[700] = "";
    size_t at = 0;
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        if (!k->is_required || r->is_given[i] || at >= sizeof missing) continue;
        at += (size_t)snprintf(missing + at, sizeof missing - at, "%s%s", at ? ", " : "",
                               keys_name(k).s);
    }
    CHECK(!at, E_CONFIG, "%.200s: missing and without a default: %s%s", path ? path : "--set",
          missing, r->c->data.train.n ? "" : " (and data.train, to train)");
    return OK;
}

Err config_load(Config **out, const char *path, const char *const *sets, int nsets) {
    *out = NULL;
    Config *c = NULL;
    Reader *r = NULL;
    Err err = OK;
    CHECK(keys_count() <= MAX_KEYS, E_INTERNAL, "config: %d keys, the reader has room for %d",
          keys_count(), MAX_KEYS);
    TRY_OR(mem_alloc((void **)&c, sizeof *c, "config"), failed);
    TRY_OR(mem_alloc((void **)&r, sizeof *r, "config reader"), failed);
    keys_defaults(c);
    r->c = c;
    if (path) TRY_OR(read_file(r, path), failed);
    for (int i = 0; i < nsets; i++) TRY_OR(read_set(r, sets[i]), failed);
    TRY_OR(check_given(r, path), failed);
    err = config_check(c);
    if (err != OK && path)
        err = fail_at(err, __FILE__, __LINE__, "%.200s: %s", path, fail_message());
    if (err != OK) goto failed;
    mem_free(r);
    *out = c;
    return OK;
failed:
    mem_free(r);
    config_free(c);
    return err;
}

void config_free(Config *c) {
    if (!c) return;
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) list_free(c, k);
    mem_free(c);
}

const char *config_yaml_version(void) {
    return yaml_get_version_string();
}
