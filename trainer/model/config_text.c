// config_text.c - what a configuration looks like: the stored dump, --help, and old against new on
// resume.
#include <stdlib.h>
#include <string.h>

#include "config_keys.h"

Err config_dump(const Config *c, char **text) {
    size_t n = 0;
    *text = NULL;
    FILE *out = open_memstream(text, &n);
    CHECK(out, E_INTERNAL, "config_dump: out of memory");
    const char *section = "";
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        if (strcmp(section, k->section) != 0) fprintf(out, "%s:\n", k->section);
        section = k->section;
        if (k->kind == KEY_NEST) {
            fprintf(out, "  %s:%s\n", k->name, *(const bool *)keys_value(c, k) ? "" : " null");
            continue;
        }
        if (k->nest) {
            const Key *parent = keys_at(keys_find(k->section, NULL, k->nest));
            if (!*(const bool *)keys_value(c, parent)) continue;
        }
        fprintf(out, "%s%s: ", k->nest ? "    " : "  ", k->name);
        keys_write(out, c, k);
        fputc('\n', out);
    }
    bool is_written = !ferror(out);
    is_written = fclose(out) == 0 && is_written && *text;
    if (!is_written) {
        free(*text);
        *text = NULL;
    }
    CHECK(is_written, E_INTERNAL, "config_dump: out of memory");
    return OK;
}

// Is this key compared on resume? Data are recognised by their content, wherever they lie.
static bool is_compared(const Key *k) {
    bool is_path = k->kind == KEY_PATHS || k->kind == KEY_PATH;
    return !(is_path && !strcmp(k->section, "data"));
}

static Err value_text(char **text, const Config *c, const Key *k) {
    size_t n = 0;
    *text = NULL;
    FILE *out = open_memstream(text, &n);
    CHECK(out, E_INTERNAL, "config: out of memory");
    keys_write(out, c, k);
    CHECK(fclose(out) == 0 && *text, E_INTERNAL, "config: out of memory");
    return OK;
}

Err config_compare_resume(const Config *stored, const Config *now,
                          void (*changed)(const char *key, const char *was, const char *is)) {
    // Refusals first, so that nothing is reported as changed by a run that does not start.
    for (int pass = 0; pass < 2; pass++) {
        const Key *k;
        for (int i = 0; (k = keys_at(i)); i++) {
            if (!is_compared(k) || k->is_same != (pass == 0)) continue;
            char *was = NULL;
            char *is = NULL;
            Err err = value_text(&was, stored, k);
            if (err == OK) err = value_text(&is, now, k);
            if (err == OK && strcmp(was, is) != 0) {
                if (pass == 0) {
                    err = fail_at(
                        E_CONFIG, __FILE__, __LINE__,
                        "%s is %s in the checkpoint and %s now; it must not change when a run is "
                        "resumed",
                        keys_name(k).s, was, is);
                } else if (changed) {
                    changed(keys_name(k).s, was, is);
                }
            }
            free(was);
            free(is);
            if (err != OK) return err;
        }
    }
    return OK;
}

static void help_default(FILE *out, const Key *k) {
    static const Config none; // lists and paths: empty
    if (k->is_required) {
        fputs("required", out);
        return;
    }
    fputs("default ", out);
    if (k->is_nullable) {
        fputs("null", out);
    } else {
        Config c = none;
        keys_defaults(&c);
        keys_write(out, &c, k);
    }
}

ConfigChoice config_choice(const Config *c, const char *section, const char *name) {
    ConfigChoice r = {""};
    int i = keys_find(section, NULL, name);
    const Key *k = i < 0 ? NULL : keys_at(i);
    if (!k || k->kind != KEY_ENUM) return r;
    const char *at = "";
    int n = keys_enum_value(k->values, *(const int *)keys_value(c, k), &at);
    snprintf(r.s, sizeof r.s, "%.*s", n, at);
    return r;
}

void config_help(FILE *out) {
    const char *section = "";
    const Key *k;
    for (int i = 0; (k = keys_at(i)); i++) {
        if (strcmp(section, k->section) != 0) fprintf(out, "%s:\n", k->section);
        section = k->section;
        char expected[160];
        keys_expected(expected, sizeof expected, k);
        fprintf(out, "  %s%s%s: %s\n      %s(", k->nest ? "  " : "", k->name,
                k->is_same ? "*" : "", expected, k->nest ? "  " : "");
        help_default(out, k);
        fprintf(out, ") %s\n", k->help);
    }
}

void config_name(char *out, size_t n, const char *path) {
    const char *base = strrchr(path, '/');
    base = base ? base + 1 : path;
    snprintf(out, n, "%s", base);
    char *dot = strrchr(out, '.');
    if (dot && dot != out) *dot = '\0';
}
