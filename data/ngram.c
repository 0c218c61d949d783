// ngram.c - Witten-Bell byte n-grams in two hash tables: counts of n-grams, statistics of contexts.
#include "ngram.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// Bytes and their number make the key: up to 7 bytes and the length + 1 on top, so no key is 0.
typedef struct Cell {
    uint64_t key;      // 0 = empty
    uint32_t count;    // of an n-gram; N(h) of a context
    uint32_t distinct; // T(h) of a context
} Cell;

typedef struct Table {
    Cell *cell;
    size_t used, mask; // mask + 1 cells, a power of two
} Table;

static size_t place(const Table *t, uint64_t key) {
    size_t i = (size_t)((key * 0x9E3779B97F4A7C15ull) >> 20) & t->mask;
    while (t->cell[i].key != 0 && t->cell[i].key != key) i = (i + 1) & t->mask;
    return i;
}

static Err table_grow(Table *t) {
    Table bigger = {.used = t->used, .mask = t->cell ? 2 * t->mask + 1 : (1 << 16) - 1};
    bigger.cell = calloc(bigger.mask + 1, sizeof *bigger.cell);
    CHECK(bigger.cell, E_INTERNAL, "n-gram table: out of memory");
    for (size_t i = 0; t->cell && i <= t->mask; i++) {
        if (t->cell[i].key) bigger.cell[place(&bigger, t->cell[i].key)] = t->cell[i];
    }
    free(t->cell);
    *t = bigger;
    return OK;
}

// The cell of a key, made if new.
static Err table_get(Table *t, uint64_t key, Cell **out) {
    if (!t->cell || 2 * t->used > t->mask) TRY(table_grow(t));
    *out = &t->cell[place(t, key)];
    if ((*out)->key == 0) {
        (*out)->key = key;
        t->used++;
    }
    return OK;
}

static const Cell *table_find(const Table *t, uint64_t key) {
    const Cell *c = &t->cell[place(t, key)];
    return c->key ? c : NULL;
}

static uint64_t key_of(uint64_t history, int n) { // of the last n bytes
    return (history & ((1ull << 8 * n) - 1)) | (uint64_t)(n + 1) << 56;
}

static Err file_read(const char *path, uint8_t **out, size_t *n) {
    FILE *f = fopen(path, "rbe");
    CHECK(f, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    size_t cap = 1 << 20, used = 0;
    uint8_t *p = NULL;
    Err err = OK;
    for (;;) {
        uint8_t *more = realloc(p, cap);
        CHECK_OR(more, failed, E_INTERNAL, "%s: out of memory", path);
        p = more;
        used += fread(p + used, 1, cap - used, f);
        if (used < cap) break;
        cap *= 2;
    }
    CHECK_OR(!ferror(f), failed, E_INPUT, "%s: cannot read: %s", path, strerror(errno));
    CHECK_OR(used > 0, failed, E_INPUT, "%s: empty", path);
    fclose(f);
    *out = p;
    *n = used;
    return OK;
failed:
    fclose(f);
    free(p);
    return err;
}

static Err count_file(Table *grams, const char *path, int order) {
    uint8_t *text;
    size_t n;
    TRY(file_read(path, &text, &n));
    uint64_t history = 0;
    Err err = OK;
    for (size_t i = 0; i < n; i++) {
        history = history << 8 | text[i];
        for (int k = 0; k <= order && (size_t)k <= i; k++) { // context of k bytes + this one
            Cell *c;
            TRY_OR(table_get(grams, key_of(history, k + 1), &c), done);
            c->count++;
        }
    }
done:
    free(text);
    return err;
}

static Err contexts_of(const Table *grams, Table *contexts) {
    for (size_t i = 0; i <= grams->mask; i++) {
        const Cell *g = &grams->cell[i];
        if (g->key == 0) continue;
        int n = (int)(g->key >> 56) - 1; // bytes of the n-gram
        Cell *c;
        TRY(table_get(contexts, key_of((g->key & ((1ull << 56) - 1)) >> 8, n - 1), &c));
        c->count += g->count;
        c->distinct++;
    }
    return OK;
}

static double probability(const Table *grams, const Table *contexts, uint64_t before, uint8_t byte,
                          int order) {
    double p = 1.0 / 256;
    for (int k = 0; k <= order; k++) {
        const Cell *h = table_find(contexts, key_of(before, k));
        if (!h) break; // longer contexts were not seen either
        const Cell *g = table_find(grams, key_of(before << 8 | byte, k + 1));
        p = ((g ? g->count : 0) + h->distinct * p) / ((double)h->count + h->distinct);
    }
    return p;
}

Err ngram_bits_per_byte(const char *const *train, int ntrain, const char *heldout, int order,
                        double *out) {
    CHECK(order >= 0 && order <= NGRAM_MAX_ORDER && ntrain > 0, E_INTERNAL,
          "n-gram of order %d on %d files", order, ntrain);
    Table grams = {0}, contexts = {0};
    uint8_t *text = NULL;
    size_t n = 0;
    Err err = OK;
    for (int i = 0; i < ntrain; i++) TRY_OR(count_file(&grams, train[i], order), done);
    TRY_OR(contexts_of(&grams, &contexts), done);
    TRY_OR(file_read(heldout, &text, &n), done);
    double bits = 0;
    uint64_t before = 0;
    for (size_t i = 0; i < n; i++) {
        int k = i < (size_t)order ? (int)i : order;
        bits -= log2(probability(&grams, &contexts, before, text[i], k));
        before = before << 8 | text[i];
    }
    *out = bits / (double)n;
done:
    free(text);
    free(grams.cell);
    free(contexts.cell);
    return err;
}
