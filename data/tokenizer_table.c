// tokenizer_table.c - the tables of a tokenizer and the merging of one piece.
#include "tokenizer_table.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "arena.h"

static uint64_t slots_for(int64_t n) {
    uint64_t slots = 64;
    while (slots < 2 * (uint64_t)n) slots *= 2;
    return slots;
}

Err table_create(Tokenizer *t, int vocab_size, int64_t nmerges) {
    uint64_t nslots = slots_for(nmerges);
    MEM_NEW(t->merges, nslots);
    for (uint64_t i = 0; i < nslots; i++) t->merges[i].left = EMPTY_SLOT;
    t->merge_mask = nslots - 1;
    nslots = slots_for(vocab_size);
    MEM_NEW(t->pieces, nslots);
    for (uint64_t i = 0; i < nslots; i++) t->pieces[i].id = -1;
    t->piece_mask = nslots - 1;
    MEM_NEW(t->tokens, vocab_size);
    t->vocab_size = vocab_size;
    for (int i = 0; i < 256; i++) t->byte_id[i] = -1;
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < 256; i++) t->added[k].root[i] = -1;
        t->added[k].is_empty = true;
    }
    return OK;
}

void table_free(Tokenizer *t) {
    mem_free(t->merges);
    mem_free(t->pieces);
    mem_free(t->tokens);
    free(t->added[0].nodes);
    free(t->added[1].nodes);
}

void table_add_merge(Tokenizer *t, int32_t left, int32_t right, int32_t rank, int32_t id) {
    Merge *m = (Merge *)table_merge(t, left, right);
    if (!m) {
        uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
        uint64_t i = (key * 0x9E3779B97F4A7C15u) >> 20; // as in table_merge
        while (t->merges[i & t->merge_mask].left != EMPTY_SLOT) i++;
        m = &t->merges[i & t->merge_mask];
    }
    *m = (Merge){(uint32_t)left, (uint32_t)right, rank, id};
}

void table_add_piece(Tokenizer *t, int32_t id) {
    uint64_t hash = XXH3_64bits(t->pool + t->tokens[id].offset, t->tokens[id].nbytes);
    uint64_t i = hash;
    while (t->pieces[i & t->piece_mask].id >= 0) i++;
    t->pieces[i & t->piece_mask] = (PieceSlot){(uint32_t)(hash >> 32), id};
}

int32_t table_piece(const Tokenizer *t, const char *bytes, size_t n) {
    uint64_t hash = XXH3_64bits(bytes, n);
    for (uint64_t i = hash;; i++) {
        PieceSlot s = t->pieces[i & t->piece_mask];
        if (s.id < 0) return -1;
        if (s.tag != (uint32_t)(hash >> 32)) continue;
        const Token *token = &t->tokens[s.id];
        if (token->nbytes == n && !memcmp(t->pool + token->offset, bytes, n)) return s.id;
    }
}

Err trie_add(Trie *trie, const char *bytes, size_t n, int32_t id) {
    if (n == 0) return OK; // an empty marker can never be found
    if ((size_t)trie->n + n > (size_t)trie->capacity) {
        size_t capacity = 2 * ((size_t)trie->n + n);
        CHECK(capacity < INT32_MAX, E_INPUT, "added tokens are too long");
        TrieNode *nodes = realloc(trie->nodes, capacity * sizeof *nodes);
        CHECK(nodes, E_INTERNAL, "out of memory: added tokens");
        trie->nodes = nodes;
        trie->capacity = (int32_t)capacity;
    }
    int32_t *link = &trie->root[(uint8_t)bytes[0]];
    int32_t node = -1;
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = (uint8_t)bytes[i];
        while (*link >= 0 && trie->nodes[*link].byte != byte) link = &trie->nodes[*link].sibling;
        if (*link < 0) {
            trie->nodes[trie->n] = (TrieNode){-1, -1, -1, byte};
            *link = trie->n++;
        }
        node = *link;
        link = &trie->nodes[node].child;
    }
    trie->nodes[node].id = id;
    trie->is_empty = false;
    return OK;
}

int32_t trie_find(const Trie *trie, const char *text, size_t n, size_t *nbytes) {
    int32_t found = -1;
    int32_t node = n > 0 ? trie->root[(uint8_t)text[0]] : -1;
    for (size_t i = 0; node >= 0;) {
        if (trie->nodes[node].id >= 0) {
            found = trie->nodes[node].id;
            *nbytes = i + 1;
        }
        if (++i == n) break;
        node = trie->nodes[node].child;
        while (node >= 0 && trie->nodes[node].byte != (uint8_t)text[i])
            node = trie->nodes[node].sibling;
    }
    return found;
}

Err tokenizer_reserve(TokenIds *ids, int64_t n) {
    if (ids->n + n <= ids->capacity) return OK;
    int64_t capacity = 2 * ids->capacity > ids->n + n ? 2 * ids->capacity : ids->n + n + 64;
    int32_t *p = realloc(ids->p, (size_t)capacity * sizeof *p);
    CHECK(p, E_INTERNAL, "out of memory: %lld token ids", (long long)capacity);
    ids->p = p;
    ids->capacity = capacity;
    return OK;
}

// Short pieces: look at all neighbours each time, take the lowest rank, leftmost first.
static void merge_short(const Tokenizer *t, const char *piece, int n, TokenIds *ids) {
    int32_t id[SHORT_PIECE];
    const Merge *merge[SHORT_PIECE]; // of id[i] and id[i + 1]
    for (int i = 0; i < n; i++) id[i] = t->byte_id[(uint8_t)piece[i]];
    for (int i = 0; i + 1 < n; i++) merge[i] = table_merge(t, id[i], id[i + 1]);
    while (n > 1) {
        int best = -1;
        for (int i = 0; i + 1 < n; i++) {
            if (merge[i] && (best < 0 || merge[i]->rank < merge[best]->rank)) best = i;
        }
        if (best < 0) break;
        id[best] = merge[best]->id;
        n--;
        memmove(id + best + 1, id + best + 2, (size_t)(n - best - 1) * sizeof *id);
        if (best + 1 < n) {
            memmove(merge + best + 1, merge + best + 2, (size_t)(n - best - 2) * sizeof *merge);
            merge[best] = table_merge(t, id[best], id[best + 1]);
        }
        if (best > 0) merge[best - 1] = table_merge(t, id[best - 1], id[best]);
    }
    memcpy(ids->p + ids->n, id, (size_t)n * sizeof *id);
    ids->n += n;
}

// Long pieces: a linked list of symbols and a heap of possible merges, some of them out of date.
typedef struct Symbol {
    int32_t id; // -1: merged away
    int32_t previous, next;
} Symbol;

typedef struct Candidate {
    int32_t rank, at, id;
} Candidate;

typedef struct Heap {
    Candidate *p;
    int64_t n;
} Heap;

static bool is_before(Candidate a, Candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void heap_push(Heap *h, Candidate c) {
    int64_t i = h->n++;
    for (; i > 0 && is_before(c, h->p[(i - 1) / 2]); i = (i - 1) / 2) h->p[i] = h->p[(i - 1) / 2];
    h->p[i] = c;
}

static Candidate heap_pop(Heap *h) {
    Candidate top = h->p[0];
    Candidate last = h->p[--h->n];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && is_before(h->p[child + 1], h->p[child])) child++;
        if (!is_before(h->p[child], last)) break;
        h->p[i] = h->p[child];
    }
    h->p[i] = last;
    return top;
}

static void push_pair(const Tokenizer *t, Heap *h, const Symbol *s, int32_t left) {
    if (left < 0 || s[left].next < 0) return;
    const Merge *m = table_merge(t, s[left].id, s[s[left].next].id);
    if (m) heap_push(h, (Candidate){m->rank, left, m->id});
}

static Err merge_long(const Tokenizer *t, const char *piece, int32_t n, TokenIds *ids) {
    Err err = OK;
    Symbol *s = malloc((size_t)n * sizeof *s);
    // Each of the n - 1 merges brings two new neighbours at most, and n - 1 are there to begin
    // with.
    Heap heap = {malloc(3 * (size_t)n * sizeof(Candidate)), 0};
    CHECK_OR(s && heap.p, done, E_INTERNAL, "out of memory: merging a piece of %d bytes", (int)n);
    for (int32_t i = 0; i < n; i++) {
        s[i] = (Symbol){t->byte_id[(uint8_t)piece[i]], i - 1, i + 1 < n ? i + 1 : -1};
    }
    for (int32_t i = 0; i + 1 < n; i++) push_pair(t, &heap, s, i);
    while (heap.n > 0) {
        Candidate c = heap_pop(&heap);
        int32_t next = s[c.at].id >= 0 ? s[c.at].next : -1;
        if (next < 0) continue;
        const Merge *m = table_merge(t, s[c.at].id, s[next].id);
        if (!m || m->rank != c.rank || m->id != c.id) continue;
        s[c.at].id = c.id;
        s[c.at].next = s[next].next;
        if (s[next].next >= 0) s[s[next].next].previous = c.at;
        s[next].id = -1;
        push_pair(t, &heap, s, s[c.at].previous);
        push_pair(t, &heap, s, c.at);
    }
    for (int32_t i = 0; i >= 0; i = s[i].next) ids->p[ids->n++] = s[i].id;
done:
    free(s);
    free(heap.p);
    return err;
}

Err tokenizer_merge(const Tokenizer *t, const char *piece, size_t n, TokenIds *ids) {
    CHECK(n < (size_t)1 << 30, E_INPUT, "a piece of text of %zu bytes without any place to cut", n);
    TRY(tokenizer_reserve(ids, (int64_t)n));
    if (n <= SHORT_PIECE) {
        merge_short(t, piece, (int)n, ids);
        return OK;
    }
    return merge_long(t, piece, (int32_t)n, ids);
}
