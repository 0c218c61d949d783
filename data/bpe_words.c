// bpe_words.c - one pass over the training text: distinct pieces and how often each occurs.
#include "bpe_words.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "bytelevel.h"
#include "formats.h"
#include "pretokenize.h"

#define FIRST_SLOTS ((uint64_t)1 << 14)

typedef struct Reading {
    Words *w;
    const Pretokenizer *pretokenizer;
} Reading;

// Double the hash table and enter all words again.
static Err grow_slots(Words *w) {
    uint64_t nslots = w->slots ? 2 * (w->mask + 1) : FIRST_SLOTS;
    int64_t *slots = malloc(nslots * sizeof *slots);
    CHECK(slots, E_INTERNAL, "out of memory: %lld distinct words", (long long)w->n);
    memset(slots, 0xFF, nslots * sizeof *slots);
    for (int64_t k = 0; k < w->n; k++) {
        uint64_t i = XXH3_64bits(w->bytes + w->p[k].offset, w->p[k].nbytes);
        while (slots[i & (nslots - 1)] >= 0) i++;
        slots[i & (nslots - 1)] = k;
    }
    free(w->slots);
    w->slots = slots;
    w->mask = nslots - 1;
    return OK;
}

static Err add_word(Words *w, const char *piece, size_t n) {
    if (w->n == w->capacity) {
        int64_t capacity = 2 * w->capacity + 4096;
        Word *p = realloc(w->p, (size_t)capacity * sizeof *p);
        CHECK(p, E_INTERNAL, "out of memory: %lld distinct words", (long long)capacity);
        w->p = p;
        w->capacity = capacity;
    }
    if (w->bytes_capacity - w->nbytes < n) {
        size_t capacity = 2 * w->bytes_capacity + n + 65536;
        char *bytes = realloc(w->bytes, capacity);
        CHECK(bytes, E_INTERNAL, "out of memory: %zu bytes of words", capacity);
        w->bytes = bytes;
        w->bytes_capacity = capacity;
    }
    memcpy(w->bytes + w->nbytes, piece, n);
    w->p[w->n++] = (Word){w->nbytes, (uint32_t)n, 1};
    w->nbytes += n;
    return OK;
}

static Err count_piece(void *cx, const char *piece, size_t n) {
    Words *w = ((Reading *)cx)->w;
    CHECK(n < (size_t)1 << 30, E_INPUT, "a piece of text of %zu bytes without any place to cut", n);
    if (2 * (uint64_t)w->n >= w->mask) TRY(grow_slots(w));
    uint64_t i = XXH3_64bits(piece, n);
    for (; w->slots[i & w->mask] >= 0; i++) {
        Word *word = &w->p[w->slots[i & w->mask]];
        if (word->nbytes == n && !memcmp(w->bytes + word->offset, piece, n)) {
            word->count++;
            return OK;
        }
    }
    w->slots[i & w->mask] = w->n;
    return add_word(w, piece, n);
}

static Err count_document(void *cx, const Document *doc) {
    Reading *r = cx;
    r->w->text_bytes += doc->nbytes;
    if (utf8_valid_bytes(doc->text, doc->nbytes) == doc->nbytes) {
        return pretokenize_run(r->pretokenizer, doc->text, doc->nbytes, count_piece, r);
    }
    char *text = NULL;
    size_t n = 0;
    TRY(utf8_repair(&text, &n, doc->text, doc->nbytes));
    Err err = pretokenize_run(r->pretokenizer, text, n, count_piece, r);
    free(text);
    return err;
}

Err words_read(Words *w, const char *const *paths, int npaths) {
    *w = (Words){0};
    Err err = OK;
    Pretokenizer *p = NULL;
    for (int i = 0; i < npaths; i++) TRY(formats_check(paths[i]));
    TRY_OR(pretokenize_create(&p), done);
    for (int i = 0; i < DEEPSEEK_SPLITS; i++) {
        const char *pattern = pretokenize_deepseek[i];
        TRY_OR(pretokenize_add(p, pattern, strlen(pattern), false, SPLIT_ISOLATED), done);
    }
    TRY_OR(grow_slots(w), done);
    Reading r = {w, p};
    for (int i = 0; i < npaths; i++) TRY_OR(formats_read(paths[i], count_document, &r), done);
done:
    pretokenize_destroy(&p);
    return err;
}

void words_free(Words *w) {
    free(w->p);
    free(w->bytes);
    free(w->slots);
    *w = (Words){0};
}
