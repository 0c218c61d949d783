// formats.c - text, .jsonl and their .zst forms, read through one buffered byte source.
#include "formats.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#define BLOCK_BYTES ((size_t)1 << 17)
#define MAX_DOCUMENT_BYTES ((size_t)1 << 32) // stops a damaged file before memory does

// Decompressed bytes of a file, block by block.
typedef struct Source {
    const char *path;
    FILE *file;
    ZSTD_DStream *zstd; // NULL: not compressed
    char *packed;       // [BLOCK_BYTES] as read from the file, zstd only
    ZSTD_inBuffer in;
    bool is_inside_frame;
    bool is_packed_full; // the last output block was full: zstd may hold more without new input
    char *block;         // [BLOCK_BYTES] current decompressed block
} Source;

// A text under construction: one line or one file.
typedef struct Text {
    char *p;
    size_t n, capacity;
} Text;

static bool ends_with(const char *s, size_t n, const char *suffix) {
    size_t m = strlen(suffix);
    return n >= m && !memcmp(s + n - m, suffix, m);
}

static Err source_open(Source *s, const char *path, bool is_zstd) {
    *s = (Source){.path = path};
    s->file = fopen(path, "rb");
    CHECK(s->file, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    s->block = malloc(BLOCK_BYTES);
    CHECK(s->block, E_INTERNAL, "%s: out of memory", path);
    if (is_zstd) {
        s->packed = malloc(BLOCK_BYTES);
        s->zstd = ZSTD_createDStream();
        CHECK(s->packed && s->zstd, E_INTERNAL, "%s: out of memory", path);
    }
    return OK;
}

static void source_close(Source *s) {
    if (s->file) fclose(s->file);
    ZSTD_freeDStream(s->zstd);
    free(s->packed);
    free(s->block);
}

static Err file_read(Source *s, char *out, size_t *n) {
    errno = 0;
    *n = fread(out, 1, BLOCK_BYTES, s->file);
    CHECK(!ferror(s->file), E_INPUT, "%s: cannot read: %s", s->path, strerror(errno));
    return OK;
}

// The next block into s->block; *n = 0 at the end.
static Err source_next(Source *s, size_t *n) {
    if (!s->zstd) return file_read(s, s->block, n);
    ZSTD_outBuffer out = {s->block, BLOCK_BYTES, 0};
    while (out.pos == 0) {
        if (s->in.pos == s->in.size && !s->is_packed_full) {
            size_t got = 0;
            TRY(file_read(s, s->packed, &got));
            if (got == 0) {
                CHECK(!s->is_inside_frame, E_INPUT, "%s: damaged: ends inside a zstd frame",
                      s->path);
                break;
            }
            s->in = (ZSTD_inBuffer){s->packed, got, 0};
        }
        size_t rest = ZSTD_decompressStream(s->zstd, &out, &s->in);
        CHECK(!ZSTD_isError(rest), E_INPUT, "%s: damaged: zstd says: %s", s->path,
              ZSTD_getErrorName(rest));
        s->is_inside_frame = rest != 0;
        s->is_packed_full = out.pos == out.size && rest != 0;
    }
    *n = out.pos;
    return OK;
}

static Err text_append(Text *t, const char *p, size_t n, const char *path) {
    CHECK(t->n + n <= MAX_DOCUMENT_BYTES, E_INPUT, "%s: a document of more than %zu bytes", path,
          MAX_DOCUMENT_BYTES);
    if (t->n + n > t->capacity) {
        size_t capacity = 2 * t->capacity > t->n + n ? 2 * t->capacity : t->n + n;
        char *bigger = realloc(t->p, capacity);
        CHECK(bigger, E_INTERNAL, "%s: out of memory: a document of %zu bytes", path, t->n + n);
        t->p = bigger;
        t->capacity = capacity;
    }
    if (n > 0) memcpy(t->p + t->n, p, n);
    t->n += n;
    return OK;
}

static Err read_whole(Source *s, Text *text, DocumentFn fn, void *cx) {
    for (size_t n = 1; n > 0;) {
        TRY(source_next(s, &n));
        const char *zero = memchr(s->block, 0, n);
        CHECK(!zero, E_INPUT,
              "%s: not a text file: byte %zu is zero. Accepted: text, .jsonl, either also as .zst",
              s->path, text->n + (size_t)(zero - s->block));
        TRY(text_append(text, s->block, n, s->path));
    }
    CHECK(text->n > 0, E_INPUT, "%s: empty, expected text", s->path);
    return fn(cx, &(Document){text->p, text->n, s->path, 0});
}

static bool is_blank(const char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (!strchr(" \t\r\n", p[i]) || p[i] == '\0') return false;
    }
    return true;
}

static Err json_document(const char *line, size_t n, const char *path, int64_t number,
                         DocumentFn fn, void *cx) {
    Err err = OK;
    json_error_t at;
    if (number == 1 && n >= 3 && memcmp(line, "\xEF\xBB\xBF", 3) == 0) { // a byte order mark
        line += 3;
        n -= 3;
    }
    json_t *object = json_loadb(line, n, JSON_ALLOW_NUL | JSON_DECODE_ANY, &at);
    CHECK(object, E_INPUT, "%s:%lld: not JSON: %s (column %d)", path, (long long)number, at.text,
          at.column);
    json_t *text = json_object_get(object, "text");
    CHECK_OR(json_is_object(object), done, E_INPUT,
             "%s:%lld: expected a JSON object {\"text\": ...}", path, (long long)number);
    CHECK_OR(json_is_string(text), done, E_INPUT, "%s:%lld: the object has no string \"text\"",
             path, (long long)number);
    Document doc = {json_string_value(text), json_string_length(text), path, number};
    TRY_OR(fn(cx, &doc), done);
done:
    json_decref(object);
    return err;
}

static Err read_lines(Source *s, Text *line, DocumentFn fn, void *cx) {
    int64_t number = 1;
    int64_t ndocs = 0;
    for (size_t n = 1; n > 0;) {
        TRY(source_next(s, &n));
        bool is_end = n == 0;
        for (size_t i = 0; i < n || is_end;) {
            const char *newline = n > i ? memchr(s->block + i, '\n', n - i) : NULL;
            size_t length = newline ? (size_t)(newline - (s->block + i)) : n - i;
            TRY(text_append(line, s->block + i, length, s->path));
            i += length + 1;
            if (newline || is_end) {
                if (!is_blank(line->p, line->n)) {
                    TRY(json_document(line->p, line->n, s->path, number, fn, cx));
                    ndocs++;
                }
                line->n = 0;
                number++;
            }
            if (is_end) break;
        }
    }
    CHECK(ndocs > 0, E_INPUT, "%s: holds no document, expected lines {\"text\": ...}", s->path);
    return OK;
}

Err formats_check(const char *path) {
    struct stat st;
    CHECK(access(path, R_OK) == 0 && stat(path, &st) == 0, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    CHECK(!S_ISDIR(st.st_mode), E_INPUT, "%s: a folder, expected files: %s/*", path, path);
    CHECK(!S_ISREG(st.st_mode) || st.st_size > 0, E_INPUT, "%s: empty, expected text", path);
    return OK;
}

Err formats_read(const char *path, DocumentFn fn, void *cx) {
    size_t n = strlen(path);
    bool is_zstd = ends_with(path, n, ".zst");
    if (is_zstd) n -= strlen(".zst");
    bool is_jsonl = ends_with(path, n, ".jsonl");
    Err err = OK;
    Source source;
    Text text = {0};
    TRY_OR(source_open(&source, path, is_zstd), done);
    TRY_OR((is_jsonl ? read_lines : read_whole)(&source, &text, fn, cx), done);
done:
    free(text.p);
    source_close(&source);
    return err;
}
