// pretokenize.c - nested regular-expression splits on PCRE2.
#include "pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SPLITS 16
#define JIT_STACK_BYTES                                                                            \
    ((size_t)64 << 20) // only made when the 32 KiB on the machine stack is too small

struct Pretokenizer {
    int nsplits;
    pcre2_code *code[MAX_SPLITS];
    SplitKind kind[MAX_SPLITS];
};

const char *const pretokenize_deepseek[DEEPSEEK_SPLITS] = {
    "\\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
};

const char *const pretokenize_gpt2 =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// Unicode White_Space as ranges of a character class, and everything else.
#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"
#define NON_SPACES                                                                                 \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{" \
    "2027}"                                                                                        \
    "\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}"

// What replaces "\s" or "\S", NULL for any other escape.
static const char *space_class(char letter, bool is_in_class) {
    if (letter == 's') return is_in_class ? SPACES : "[" SPACES "]";
    if (letter == 'S') return is_in_class ? NON_SPACES : "[^" SPACES "]";
    return NULL;
}

// Rewrite \s and \S; *out is malloc'ed.
static Err translate(char **out, size_t *nout, const char *pattern, size_t n) {
    char *text = malloc(n * sizeof NON_SPACES + 1);
    CHECK(text, E_INTERNAL, "out of memory: pattern of %zu bytes", n);
    size_t used = 0;
    size_t class_start = 0; // index after the '[' of the open class, 0 = none
    Err err = OK;
    for (size_t i = 0; i < n; i++) {
        char c = pattern[i];
        if (c == '\\' && i + 1 < n) {
            const char *class = space_class(pattern[i + 1], class_start > 0);
            size_t length = class ? strlen(class) : 2;
            memcpy(text + used, class ? class : pattern + i, length);
            used += length;
            i++;
            continue;
        }
        if (class_start == 0 && c == '[') {
            class_start = i + 1;
            if (i + 1 < n && pattern[i + 1] == '^') text[used++] = pattern[i++];
            if (i + 1 < n && pattern[i + 1] == ']') text[used++] = pattern[i++]; // a literal ']'
            text[used++] = pattern[i];
            continue;
        }
        if (class_start > 0) {
            bool is_posix = c == '[' && i + 1 < n && pattern[i + 1] == ':';
            const char *end = is_posix ? memmem(pattern + i, n - i, ":]", 2) : NULL;
            if (end) {
                size_t length = (size_t)(end + 2 - (pattern + i));
                memcpy(text + used, pattern + i, length);
                used += length;
                i += length - 1;
                continue;
            }
            bool is_foreign = c == '[' || (c == '&' && i + 1 < n && pattern[i + 1] == '&');
            CHECK_OR(!is_foreign, failed, E_INPUT,
                     "pattern '%.*s': nested classes and && inside [...] are not supported "
                     "(character %zu)",
                     (int)(n > 200 ? 200 : n), pattern, i);
            if (c == ']') class_start = 0;
        }
        text[used++] = c;
    }
    *out = text;
    *nout = used;
    return OK;
failed:
    free(text);
    return err;
}

Err pretokenize_create(Pretokenizer **out) {
    *out = calloc(1, sizeof **out);
    CHECK(*out, E_INTERNAL, "out of memory: pretokenizer");
    return OK;
}

void pretokenize_destroy(Pretokenizer **p) {
    if (!*p) return;
    for (int i = 0; i < (*p)->nsplits; i++) pcre2_code_free((*p)->code[i]);
    free(*p);
    *p = NULL;
}

Err pretokenize_add(Pretokenizer *p, const char *pattern, size_t n, bool is_literal,
                    SplitKind kind) {
    CHECK(p->nsplits < MAX_SPLITS, E_INPUT, "more than %d split patterns", MAX_SPLITS);
    char *text = NULL;
    size_t length = n;
    if (!is_literal) TRY(translate(&text, &length, pattern, n));
    int code_error = 0;
    PCRE2_SIZE where = 0;
    // Ruby's ^ and $ always match at lines.
    uint32_t options = PCRE2_UTF | (is_literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)(text ? text : pattern), length, options,
                                     &code_error, &where, NULL);
    free(text);
    if (!code) {
        PCRE2_UCHAR why[160] = "";
        pcre2_get_error_message(code_error, why, sizeof why);
        FAIL(E_INPUT, "pattern '%.*s' does not compile: %s", (int)(n > 200 ? 200 : n), pattern,
             why);
    }
    // Without JIT (another machine type) matching is slower but the same, so its failure is no
    // error.
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    p->code[p->nsplits] = code;
    p->kind[p->nsplits++] = kind;
    return OK;
}

// One run: the match block of each nesting level, and a big JIT stack once it was needed.
typedef struct Run {
    const Pretokenizer *p;
    PieceFn fn;
    void *cx;
    pcre2_match_data *match[MAX_SPLITS];
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack;
} Run;

static Err find(Run *r, int level, const char *text, size_t n, size_t from, bool *has_match) {
    const pcre2_code *code = r->p->code[level];
    int rc = pcre2_match(code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, r->match[level],
                         r->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !r->jit_stack) {
        r->context = pcre2_match_context_create(NULL);
        r->jit_stack = pcre2_jit_stack_create(1 << 16, JIT_STACK_BYTES, NULL);
        CHECK(r->context && r->jit_stack, E_INTERNAL, "out of memory: regex stack");
        pcre2_jit_stack_assign(r->context, NULL, r->jit_stack);
        rc = pcre2_match(code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, r->match[level],
                         r->context);
    }
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) {
        PCRE2_UCHAR why[160] = "";
        pcre2_get_error_message(rc, why, sizeof why);
        FAIL(E_INTERNAL, "split pattern %d failed on a text of %zu bytes: %s", level + 1, n, why);
    }
    *has_match = rc >= 0;
    return OK;
}

// Cut text by the patterns from `level` on.
static Err cut(Run *r, int level, const char *text, size_t n) {
    if (level == r->p->nsplits) return r->fn(r->cx, text, n);
    PCRE2_SIZE *where = pcre2_get_ovector_pointer(r->match[level]);
    size_t done = 0; // pieces before this are out
    size_t from = 0; // where to search
    while (from < n) {
        bool has_match = false;
        TRY(find(r, level, text, n, from, &has_match));
        if (!has_match) break;
        size_t start = where[0];
        size_t end = where[1];
        bool is_empty =
            end <= start; // cuts, but is no piece; the search goes on one character later
        size_t next = end;
        if (is_empty) {
            next = (start > from ? start : from) + 1;
            while (next < n && ((uint8_t)text[next] & 0xC0) == 0x80) next++;
            end = start = start > done ? start : done;
        }
        if (start > done && r->p->kind[level] == SPLIT_ISOLATED) {
            TRY(cut(r, level + 1, text + done, start - done));
        }
        if (!is_empty) TRY(cut(r, level + 1, text + start, end - start));
        done = end;
        from = next;
    }
    if (done < n && r->p->kind[level] == SPLIT_ISOLATED) {
        TRY(cut(r, level + 1, text + done, n - done));
    }
    return OK;
}

Err pretokenize_run(const Pretokenizer *p, const char *text, size_t n, PieceFn fn, void *cx) {
    Err err = OK;
    Run r = {.p = p, .fn = fn, .cx = cx};
    for (int i = 0; i < p->nsplits; i++) {
        r.match[i] = pcre2_match_data_create(1, NULL);
        CHECK_OR(r.match[i], done, E_INTERNAL, "out of memory: regex match");
    }
    if (n > 0) TRY_OR(cut(&r, 0, text, n), done);
done:
    for (int i = 0; i < p->nsplits; i++) pcre2_match_data_free(r.match[i]);
    pcre2_jit_stack_free(r.jit_stack);
    pcre2_match_context_free(r.context);
    return err;
}
