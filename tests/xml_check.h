// xml_check.h - is a text well-formed XML? For pages and figures that we write: elements closed in their order,
// attributes quoted and named once, no bare markup in texts, entities that XML knows, characters that XML allows.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static inline size_t xml_name(const char *p) {
    return strspn(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_:");
}

// xml_text: what stands between tags, or between quotes, up to `end`.
static inline void xml_text(const char *p, const char *end) {
    static const char *const entities[] = {"&lt;", "&gt;", "&amp;", "&quot;", "&apos;"};
    for (; p < end; p++) {
        unsigned char c = (unsigned char)*p;
        if (c == '<' || c == '>' || (c < 0x20 && c != '\n' && c != '\t'))
            fail_msg("a bare character %d at: %.60s", c, p);
        bool is_known = c != '&';
        for (size_t i = 0; i < sizeof entities / sizeof *entities; i++)
            is_known = is_known || strncmp(p, entities[i], strlen(entities[i])) == 0;
        if (!is_known) fail_msg("a bare & at: %.60s", p);
    }
}

// xml_tag: a tag from its '<' on; returns the place behind its '>'. *is_empty: it closes itself.
static inline const char *xml_tag(const char *p, bool *is_empty) {
    const char *names[32];
    size_t lengths[32];
    int n = 0;
    p += 1 + xml_name(p + 1);
    for (;;) {
        size_t blanks = strspn(p, " \n");
        p += blanks;
        *is_empty = *p == '/';
        if (*p == '/' || *p == '>') break;
        if (blanks == 0) fail_msg("no blank before an attribute: %.60s", p);
        size_t name = xml_name(p);
        if (name == 0 || p[name] != '=' || p[name + 1] != '"') fail_msg("not an attribute: %.60s", p);
        assert_true(n < 32);
        for (int i = 0; i < n; i++)
            if (lengths[i] == name && strncmp(names[i], p, name) == 0) fail_msg("an attribute twice: %.60s", p);
        names[n] = p;
        lengths[n++] = name;
        const char *end = strchr(p + name + 2, '"');
        if (!end) fail_msg("no end of: %.60s", p);
        xml_text(p + name + 2, end);
        p = end + 1;
    }
    p += *is_empty;
    if (*p != '>') fail_msg("no end of a tag: %.60s", p);
    return p + 1;
}

static inline void assert_xml(const char *text) {
    const char *open[64], *p = text;
    size_t lengths[64];
    int depth = 0;
    if (strncmp(p, "<!DOCTYPE html>", 15) == 0) p += 15;
    for (;;) {
        const char *tag = strchr(p, '<');
        xml_text(p, tag ? tag : p + strlen(p));
        if (!tag) break;
        size_t n = xml_name(tag + 1);
        if (tag[1] == '/') {
            n = xml_name(tag + 2);
            if (depth == 0 || lengths[depth - 1] != n || strncmp(open[depth - 1], tag + 2, n) != 0 ||
                tag[2 + n] != '>')
                fail_msg("does not close what is open: %.60s", tag);
            depth--;
            p = tag + 3 + n;
            continue;
        }
        bool is_empty;
        if (n == 0) fail_msg("not a tag: %.60s", tag);
        p = xml_tag(tag, &is_empty);
        if (is_empty) continue;
        assert_true(depth < 64);
        open[depth] = tag + 1;
        lengths[depth++] = n;
    }
    assert_int_equal(depth, 0);
}

// times: how often `what` stands in the text.
static inline int times(const char *text, const char *what) {
    int n = 0;
    for (; (text = strstr(text, what)); text++) n++;
    return n;
}

static inline void assert_has(const char *page, const char *what) {
    if (!strstr(page, what)) fail_msg("\"%s\" is not in the page", what);
}
