// config_keys.c - the table that config.def expands to, and how a value of each kind is written.
#include "config_keys.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Defaults that are no values; both are outside of every range in config.def.
#define REQUIRED (-9e18)
#define NULLABLE (-8e18)
enum { may, same };

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

// The keys of section number `section`, NULL after the last. Each section opens a scope in which
// Section and START say where its keys stand in Config.
static const Key *section_keys(int section, int *n) {
    int at = 0;
// clang-format off
#define SECTION(s)                                                                                 \
    {                                                                                              \
        typedef __typeof__(((Config *)0)->s) Section;                                              \
        enum { START = offsetof(Config, s) };                                                      \
        static const char where[] = #s;                                                            \
        static const Key list[] = {
#define END(s)                                                                                     \
        };                                                                                         \
        if (section == at++) {                                                                     \
            *n = COUNT_OF(list);                                                                   \
            return list;                                                                           \
        }                                                                                          \
    }
#define KEY(k, what, ...)                                                                          \
    {.section = where, .name = #k, .kind = what, .offset = START + offsetof(Section, k), __VA_ARGS__},
#define NUMBER(k, what, d, lo, hi, res, u, h)                                                      \
    KEY(k, what, .is_required = (d) == REQUIRED, .is_nullable = (d) == NULLABLE, .is_same = res,   \
        .fallback = (d), .low = (lo), .high = (hi), .unit = u, .help = h)
#define INT(k, d, lo, hi, res, u, h) NUMBER(k, KEY_INT, d, lo, hi, res, u, h)
#define REAL(k, d, lo, hi, res, u, h) NUMBER(k, KEY_REAL, d, lo, hi, res, u, h)
#define BOOL(k, d, res, h) KEY(k, KEY_BOOL, .fallback = (d), .is_same = res, .unit = "", .help = h)
#define ENUM(k, d, res, v, h)                                                                      \
    KEY(k, KEY_ENUM, .fallback = (d), .is_same = res, .values = v, .unit = "", .help = h)
#define PATHS(k, res, h) KEY(k, KEY_PATHS, .is_same = res, .unit = "", .help = h)
#define PATH(k, res, h) KEY(k, KEY_PATH, .is_nullable = true, .is_same = res, .unit = "", .help = h)
#define REALS(k, res, u, h) KEY(k, KEY_REALS, .is_same = res, .unit = u, .help = h)
#define INTS(k, res, u, h) KEY(k, KEY_INTS, .is_same = res, .unit = u, .help = h)
#define NEST(k)                                                                                    \
    {.section = where, .name = #k, .kind = KEY_NEST, .offset = START + offsetof(Section, has_##k), \
     .is_nullable = true, .is_same = true, .unit = "", .help = "null, or a map with the keys below"},
#define NREAL(g, k, d, lo, hi, res, u, h)                                                          \
    {.section = where, .nest = #g, .name = #k, .kind = KEY_REAL,                                   \
     .offset = START + offsetof(Section, g##_##k), .is_same = res, .fallback = (d), .low = (lo),   \
     .high = (hi), .unit = u, .help = h},
#include "config.def"
    // clang-format on
    return NULL;
}

const Key *keys_at(int i) {
    int n = 0;
    const Key *list;
    for (int s = 0; (list = section_keys(s, &n)); s++) {
        if (i < n) return &list[i];
        i -= n;
    }
    return NULL;
}

int keys_count(void) {
    int n = 0;
    int total = 0;
    for (int s = 0; section_keys(s, &n); s++) total += n;
    return total;
}

int keys_find(const char *section, const char *nest, const char *name) {
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        bool is_nest = nest ? k->nest && !strcmp(k->nest, nest) : !k->nest;
        if (is_nest && !strcmp(k->section, section) && !strcmp(k->name, name)) return i;
    }
    return -1;
}

KeyName keys_name(const Key *k) {
    KeyName n;
    snprintf(n.s, sizeof n.s, "%s.%s%s%s", k->section, k->nest ? k->nest : "", k->nest ? "." : "",
             k->name);
    return n;
}

void *keys_value(const Config *c, const Key *k) {
    return (char *)c + k->offset;
}

void keys_defaults(Config *c) {
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        bool is_value = !k->is_required && !k->is_nullable;
        double d = is_value ? k->fallback : 0;
        if (k->kind == KEY_INT) *(int64_t *)keys_value(c, k) = (int64_t)d;
        if (k->kind == KEY_REAL) *(double *)keys_value(c, k) = d;
        if (k->kind == KEY_BOOL) *(bool *)keys_value(c, k) = d != 0;
        if (k->kind == KEY_ENUM) *(int *)keys_value(c, k) = (int)d;
    }
}

void keys_nest_reset(Config *c, const Key *nest) {
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        bool is_inside =
            k->nest && !strcmp(k->nest, nest->name) && !strcmp(k->section, nest->section);
        if (is_inside) *(double *)keys_value(c, k) = k->fallback;
    }
}

int keys_enum_value(const char *values, int i, const char **at) {
    for (; i > 0 && values; i--) {
        values = strchr(values, '|');
        if (values) values++;
    }
    if (!values) return 0;
    *at = values;
    return (int)strcspn(values, "|");
}

void keys_expected(char *out, size_t n, const Key *k) {
    const char *or_null = k->is_nullable ? ", or null" : "";
    switch (k->kind) {
    case KEY_INT:
        snprintf(out, n, "a whole number from %.0f to %.0f%s%s%s", k->low, k->high,
                 k->unit[0] ? " " : "", k->unit, or_null);
        break;
    case KEY_REAL:
        snprintf(out, n, "a number from %g to %g%s%s%s", k->low, k->high, k->unit[0] ? " " : "",
                 k->unit, or_null);
        break;
    case KEY_BOOL: snprintf(out, n, "true or false"); break;
    case KEY_ENUM: snprintf(out, n, strchr(k->values, '|') ? "one of %s" : "%s", k->values); break;
    case KEY_PATHS: snprintf(out, n, "a list of paths"); break;
    case KEY_PATH: snprintf(out, n, "a path, or null"); break;
    case KEY_REALS: snprintf(out, n, "a list of numbers"); break;
    case KEY_INTS: snprintf(out, n, "a list of whole numbers"); break;
    case KEY_NEST: snprintf(out, n, "a map of keys, or null"); break;
    }
}

// The shortest decimal text that reads back to the same double; whole numbers of everyday size as such: 600, not 6e+02.
static void write_real(FILE *out, double x) {
    char text[40];
    if (fabs(x) < 1e6 && x == rint(x)) {
        fprintf(out, "%.0f", x);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    fputs(text, out);
}

// A double-quoted YAML scalar. Bytes above 0x7f are UTF-8 and stay; control characters are escaped.
static void write_quoted(FILE *out, const char *s) {
    fputc('"', out);
    for (; *s; s++) {
        unsigned char b = (unsigned char)*s;
        if (b == '"' || b == '\\') {
            fprintf(out, "\\%c", b);
        } else if (b < 0x20 || b == 0x7f) {
            fprintf(out, "\\x%02x", b);
        } else {
            fputc(b, out);
        }
    }
    fputc('"', out);
}

static void write_enum(FILE *out, const Key *k, int value) {
    const char *at = "";
    int n = keys_enum_value(k->values, value, &at);
    fprintf(out, "%.*s", n, at);
}

void keys_write(FILE *out, const Config *c, const Key *k) {
    const void *p = keys_value(c, k);
    const PathList *paths = p;
    const RealList *reals = p;
    const IntList *ints = p;
    switch (k->kind) {
    case KEY_INT:
        if (k->is_nullable && *(const int64_t *)p == 0) {
            fputs("null", out);
        } else {
            fprintf(out, "%lld", (long long)*(const int64_t *)p);
        }
        break;
    case KEY_REAL: write_real(out, *(const double *)p); break;
    case KEY_BOOL:
    case KEY_NEST: fputs(*(const bool *)p ? "true" : "false", out); break;
    case KEY_ENUM: write_enum(out, k, *(const int *)p); break;
    case KEY_PATH:
        if (*(char *const *)p) {
            write_quoted(out, *(char *const *)p);
        } else {
            fputs("null", out);
        }
        break;
    case KEY_PATHS:
        fputc('[', out);
        for (int i = 0; i < paths->n; i++) {
            if (i) fputs(", ", out);
            write_quoted(out, paths->v[i]);
        }
        fputc(']', out);
        break;
    case KEY_REALS:
        fputc('[', out);
        for (int i = 0; i < reals->n; i++) {
            if (i) fputs(", ", out);
            write_real(out, reals->v[i]);
        }
        fputc(']', out);
        break;
    case KEY_INTS:
        fputc('[', out);
        for (int i = 0; i < ints->n; i++)
            fprintf(out, "%s%lld", i ? ", " : "", (long long)ints->v[i]);
        fputc(']', out);
        break;
    }
}
