// bpe_train.c - byte-pair encoding learned from word counts, and the tokenizer.json it is written
// to.
//
// Each pair of neighbouring symbols has its count (over all words, times the word's count) and the
// list of words it was ever seen in. A lazy heap gives the most frequent pair: an entry whose count
// is out of date goes back with the present one. A merge visits the listed words only, so learning
// costs about as much as its changes.
#include "bpe_train.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "arena.h"
#include "bpe_words.h"
#include "bytelevel.h"
#include "outfile.h"
#include "pretokenize.h"

#define NSPECIAL 3
static const char *const special_tokens[NSPECIAL] = {
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>",
};

typedef struct Pair {
    int32_t left, right; // left < 0: free slot
    int64_t count;
    int32_t *words; // [nwords] indices of words that have or had it
    int64_t nwords, capacity;
    int32_t round; // the merge after which it was last put into the list of grown pairs
} Pair;

typedef struct HeapEntry {
    int64_t count;
    int32_t left, right;
} HeapEntry;

typedef struct Token {
    char *bytes; // [nbytes]
    int32_t nbytes;
} Token;

typedef struct Train {
    Words words;
    int32_t **symbols; // [words.n] the current ids of each word
    int32_t *nsymbols;
    int32_t *symbol_pool;
    Pair *pairs; // [pair_mask + 1] hash table
    uint64_t pair_mask;
    int64_t npairs;
    HeapEntry *heap;
    int64_t nheap, heap_capacity;
    Token *tokens; // [vocab_size] by id; NSPECIAL empty ones first
    int ntokens;
    int32_t *token_slots; // [token_mask + 1] hash table of the merged tokens' ids, 0 = free
    uint64_t token_mask;
    int32_t (*merges)[2]; // [nmerges] in order; two merges may give the same token
    int nmerges, merges_capacity;
    int round;
} Train;

static uint64_t pair_hash(int32_t left, int32_t right) {
    return (((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u) >> 20;
}

static Err grow_pairs(Train *t) {
    uint64_t nslots = t->pairs ? 2 * (t->pair_mask + 1) : (uint64_t)1 << 14;
    Pair *pairs = malloc(nslots * sizeof *pairs);
    CHECK(pairs, E_INTERNAL, "out of memory: %lld pairs", (long long)t->npairs);
    for (uint64_t i = 0; i < nslots; i++) pairs[i] = (Pair){.left = -1};
    for (uint64_t k = 0; t->pairs && k <= t->pair_mask; k++) {
        if (t->pairs[k].left < 0) continue;
        uint64_t i = pair_hash(t->pairs[k].left, t->pairs[k].right);
        while (pairs[i & (nslots - 1)].left >= 0) i++;
        pairs[i & (nslots - 1)] = t->pairs[k];
    }
    free(t->pairs);
    t->pairs = pairs;
    t->pair_mask = nslots - 1;
    return OK;
}

static Err find_pair(Train *t, int32_t left, int32_t right, Pair **out) {
    if (2 * (uint64_t)t->npairs >= t->pair_mask) TRY(grow_pairs(t));
    uint64_t i = pair_hash(left, right);
    for (;; i++) {
        Pair *p = &t->pairs[i & t->pair_mask];
        if (p->left < 0) {
            *p = (Pair){.left = left, .right = right, .round = -1};
            t->npairs++;
        }
        if (p->left == left && p->right == right) {
            *out = p;
            return OK;
        }
    }
}

// The heap's order: larger count, then smaller left, then smaller right id.
static bool is_before(HeapEntry a, HeapEntry b) {
    if (a.count != b.count) return a.count > b.count;
    if (a.left != b.left) return a.left < b.left;
    return a.right < b.right;
}

static Err heap_push(Train *t, HeapEntry e) {
    if (t->nheap == t->heap_capacity) {
        int64_t capacity = 2 * t->heap_capacity + 4096;
        HeapEntry *heap = realloc(t->heap, (size_t)capacity * sizeof *heap);
        CHECK(heap, E_INTERNAL, "out of memory: %lld pairs", (long long)capacity);
        t->heap = heap;
        t->heap_capacity = capacity;
    }
    int64_t i = t->nheap++;
    for (; i > 0 && is_before(e, t->heap[(i - 1) / 2]); i = (i - 1) / 2)
        t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = e;
    return OK;
}

static HeapEntry heap_pop(Train *t) {
    HeapEntry top = t->heap[0];
    HeapEntry last = t->heap[--t->nheap];
    int64_t i = 0;
    for (int64_t child; (child = 2 * i + 1) < t->nheap; i = child) {
        if (child + 1 < t->nheap && is_before(t->heap[child + 1], t->heap[child])) child++;
        if (!is_before(t->heap[child], last)) break;
        t->heap[i] = t->heap[child];
    }
    t->heap[i] = last;
    return top;
}

// The pair occurs `change` times more in word w.
static Err count_pair(Train *t, int32_t left, int32_t right, int64_t change, int32_t w) {
    Pair *p = NULL;
    TRY(find_pair(t, left, right, &p));
    p->count += change;
    if (change < 0 || (p->nwords > 0 && p->words[p->nwords - 1] == w)) return OK;
    if (p->nwords == p->capacity) {
        int64_t capacity = 2 * p->capacity + 4;
        int32_t *words = realloc(p->words, (size_t)capacity * sizeof *words);
        CHECK(words, E_INTERNAL, "out of memory: words of a pair");
        p->words = words;
        p->capacity = capacity;
    }
    p->words[p->nwords++] = w;
    return OK;
}

// The byte symbols in the order of their code points: their ids are NSPECIAL + position.
static Err start_tokens(Train *t, int vocab_size, int32_t byte_id[256]) {
    MEM_NEW(t->tokens, vocab_size);
    t->token_mask = 1023;
    while (t->token_mask < 2 * (uint64_t)vocab_size) t->token_mask = 2 * t->token_mask + 1;
    MEM_NEW(t->token_slots, t->token_mask + 1);
    t->ntokens = NSPECIAL;
    for (int c = 0; c < BYTE_SYMBOL_MAX; c++) {
        int byte = bytelevel_byte(c);
        if (byte < 0) continue;
        Token *token = &t->tokens[t->ntokens];
        *token = (Token){malloc(1), 1};
        CHECK(token->bytes, E_INTERNAL, "out of memory: vocabulary");
        token->bytes[0] = (char)byte;
        byte_id[byte] = t->ntokens++;
    }
    return OK;
}

static Err start_words(Train *t, const int32_t byte_id[256]) {
    const Words *words = &t->words;
    CHECK(words->n < INT32_MAX, E_INPUT, "more than 2^31 distinct words in the text");
    MEM_NEW(t->symbols, words->n);
    MEM_NEW(t->nsymbols, words->n);
    MEM_NEW(t->symbol_pool, words->nbytes);
    TRY(grow_pairs(t));
    for (int32_t w = 0; w < (int32_t)words->n; w++) {
        const Word *word = &words->p[w];
        int32_t *s = t->symbol_pool + word->offset;
        t->symbols[w] = s;
        t->nsymbols[w] = (int32_t)word->nbytes;
        for (uint32_t i = 0; i < word->nbytes; i++) {
            s[i] = byte_id[(uint8_t)words->bytes[word->offset + i]];
            if (i > 0) TRY(count_pair(t, s[i - 1], s[i], word->count, w));
        }
    }
    for (uint64_t i = 0; i <= t->pair_mask; i++) {
        const Pair *p = &t->pairs[i];
        if (p->left >= 0) TRY(heap_push(t, (HeapEntry){p->count, p->left, p->right}));
    }
    return OK;
}

// The id of the token left + right: an old one if another merge has made the same bytes, else new.
static Err token_of(Train *t, int32_t left, int32_t right, int32_t *id) {
    const Token *a = &t->tokens[left];
    const Token *b = &t->tokens[right];
    Token new_token = {malloc((size_t)(a->nbytes + b->nbytes)), a->nbytes + b->nbytes};
    CHECK(new_token.bytes, E_INTERNAL, "out of memory: vocabulary");
    memcpy(new_token.bytes, a->bytes, (size_t)a->nbytes);
    memcpy(new_token.bytes + a->nbytes, b->bytes, (size_t)b->nbytes);
    uint64_t i = XXH3_64bits(new_token.bytes, (size_t)new_token.nbytes);
    for (; t->token_slots[i & t->token_mask] > 0; i++) {
        const Token *other = &t->tokens[t->token_slots[i & t->token_mask]];
        if (other->nbytes == new_token.nbytes &&
            !memcmp(other->bytes, new_token.bytes, (size_t)other->nbytes)) {
            free(new_token.bytes);
            *id = t->token_slots[i & t->token_mask];
            return OK;
        }
    }
    t->token_slots[i & t->token_mask] = t->ntokens;
    *id = t->ntokens;
    t->tokens[t->ntokens++] = new_token;
    return OK;
}

static Err note_merge(Train *t, int32_t left, int32_t right) {
    if (t->nmerges == t->merges_capacity) {
        int capacity = 2 * t->merges_capacity + 4096;
        void *merges = realloc(t->merges, (size_t)capacity * sizeof *t->merges);
        CHECK(merges, E_INTERNAL, "out of memory: merges");
        t->merges = merges;
        t->merges_capacity = capacity;
    }
    t->merges[t->nmerges][0] = left;
    t->merges[t->nmerges++][1] = right;
    return OK;
}

// Replace left right by id in one word, leftmost first, and move the counts of the neighbours.
static Err merge_in_word(Train *t, int32_t w, int32_t left, int32_t right, int32_t id) {
    int32_t *s = t->symbols[w];
    int32_t n = t->nsymbols[w];
    int64_t count = t->words.p[w].count;
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        if (s[i] != left || i + 1 == n || s[i + 1] != right) {
            s[kept++] = s[i];
            continue;
        }
        TRY(count_pair(t, left, right, -count, w));
        if (kept > 0) {
            TRY(count_pair(t, s[kept - 1], left, -count, w));
            TRY(count_pair(t, s[kept - 1], id, count, w));
        }
        if (i + 2 < n) {
            TRY(count_pair(t, right, s[i + 2], -count, w));
            TRY(count_pair(t, id, s[i + 2], count, w));
        }
        s[kept++] = id;
        i++;
    }
    t->nsymbols[w] = kept;
    return OK;
}

// Push the pairs of one word that contain the new token; only those can have grown.
static Err push_grown(Train *t, int32_t w, int32_t id) {
    const int32_t *s = t->symbols[w];
    for (int32_t i = 0; i + 1 < t->nsymbols[w]; i++) {
        if (s[i] != id && s[i + 1] != id) continue;
        Pair *p = NULL;
        TRY(find_pair(t, s[i], s[i + 1], &p));
        if (p->round == t->round) continue;
        p->round = t->round;
        TRY(heap_push(t, (HeapEntry){p->count, p->left, p->right}));
    }
    return OK;
}

static Err merge_pair(Train *t, int32_t left, int32_t right) {
    int32_t id = 0;
    TRY(token_of(t, left, right, &id));
    TRY(note_merge(t, left, right));
    Pair *p = NULL;
    TRY(find_pair(t, left, right, &p));
    int32_t *words = p->words; // taken over: the table may move, and this pair is gone
    int64_t nwords = p->nwords;
    p->words = NULL;
    p->nwords = p->capacity = 0;
    t->round++;
    Err err = OK;
    for (int64_t i = 0; i < nwords; i++) TRY_OR(merge_in_word(t, words[i], left, right, id), done);
    for (int64_t i = 0; i < nwords; i++) TRY_OR(push_grown(t, words[i], id), done);
done:
    free(words);
    return err;
}

static Err learn(Train *t, int vocab_size) {
    while (t->ntokens < vocab_size) {
        CHECK(t->nheap > 0, E_INPUT,
              "the text gives only %d tokens of the %d wanted (%zu bytes, %lld different words): "
              "give more text "
              "or --vocab-size %d",
              t->ntokens, vocab_size, t->words.text_bytes, (long long)t->words.n, t->ntokens);
        HeapEntry top = heap_pop(t);
        Pair *p = NULL;
        TRY(find_pair(t, top.left, top.right, &p));
        if (p->count == top.count && p->count >= 2) {
            TRY(merge_pair(t, top.left, top.right));
        } else if (p->count < top.count && p->count >= 2) {
            TRY(heap_push(t, (HeapEntry){p->count, top.left, top.right}));
        }
    }
    return OK;
}

static void train_free(Train *t) {
    for (int i = 0; t->tokens && i < t->ntokens; i++) free(t->tokens[i].bytes);
    for (uint64_t i = 0; t->pairs && i <= t->pair_mask; i++) free(t->pairs[i].words);
    words_free(&t->words);
    mem_free(t->symbols);
    mem_free(t->nsymbols);
    mem_free(t->symbol_pool);
    mem_free(t->tokens);
    mem_free(t->token_slots);
    free(t->pairs);
    free(t->heap);
    free(t->merges);
}

// The symbols of one token as a JSON string.
static json_t *symbol_string(const Token *token) {
    char *text = malloc(2 * (size_t)token->nbytes);
    if (!text) return NULL;
    size_t n = bytelevel_encode(text, (const uint8_t *)token->bytes, (size_t)token->nbytes);
    json_t *string = json_stringn(text, n);
    free(text);
    return string;
}

// model.vocab and model.merges.
static json_t *model_json(const Train *t) {
    json_t *vocab = json_object();
    json_t *merges = json_array();
    json_t **symbols = calloc((size_t)t->ntokens, sizeof *symbols);
    bool is_complete = vocab && merges && symbols;
    for (int id = 0; is_complete && id < t->ntokens; id++) {
        symbols[id] =
            id < NSPECIAL ? json_string(special_tokens[id]) : symbol_string(&t->tokens[id]);
        is_complete = symbols[id] &&
                      !json_object_set_new(vocab, json_string_value(symbols[id]), json_integer(id));
    }
    for (int i = 0; is_complete && i < t->nmerges; i++) {
        json_t *merge = json_sprintf("%s %s", json_string_value(symbols[t->merges[i][0]]),
                                     json_string_value(symbols[t->merges[i][1]]));
        is_complete = !json_array_append_new(merges, merge);
    }
    for (int id = 0; symbols && id < t->ntokens; id++) json_decref(symbols[id]);
    free(symbols);
    if (!is_complete) {
        json_decref(vocab);
        json_decref(merges);
        return NULL;
    }
    return json_pack("{s:s, s:n, s:n, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout",
                     "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                     "byte_fallback", 0, "ignore_merges", 0, "vocab", vocab, "merges", merges);
}

static json_t *byte_level_json(bool uses_regex) {
    return json_pack("{s:s, s:b, s:b, s:b}", "type", "ByteLevel", "add_prefix_space", 0,
                     "trim_offsets", 1, "use_regex", (int)uses_regex);
}

static json_t *tokenizer_json(const Train *t) {
    json_t *added = json_array();
    for (int id = 0; id < NSPECIAL; id++) {
        json_array_append_new(added,
                              json_pack("{s:i, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id, "content",
                                        special_tokens[id], "single_word", 0, "lstrip", 0, "rstrip",
                                        0, "normalized", 0, "special", 1));
    }
    json_t *splits = json_array();
    for (int i = 0; i < DEEPSEEK_SPLITS; i++) {
        json_array_append_new(splits, json_pack("{s:s, s:{s:s}, s:s, s:b}", "type", "Split",
                                                "pattern", "Regex", pretokenize_deepseek[i],
                                                "behavior", "Isolated", "invert", 0));
    }
    json_array_append_new(splits, byte_level_json(false));
    return json_pack("{s:s, s:n, s:n, s:o, s:n, s:{s:s, s:o}, s:n, s:o, s:o}", "version", "1.0",
                     "truncation", "padding", "added_tokens", added, "normalizer", "pre_tokenizer",
                     "type", "Sequence", "pretokenizers", splits, "post_processor", "decoder",
                     byte_level_json(true), "model", model_json(t));
}

static Err write_json(const json_t *root, const char *path) {
    OutFile out;
    TRY(outfile_open(&out, path));
    if (json_dumpf(root, out.f, JSON_INDENT(1)) == 0) return outfile_finish(&out, true);
    Err err = fail_at(E_OUTPUT, __FILE__, __LINE__, "cannot write %s: %s", path, strerror(errno));
    outfile_drop(&out);
    return err;
}

Err bpe_train(const char *const *paths, int npaths, int vocab_size, const char *out_json) {
    CHECK(vocab_size >= BPE_MIN_VOCAB && vocab_size <= BPE_MAX_VOCAB, E_USAGE,
          "a vocabulary of %d tokens: expected %d (three special tokens and the 256 bytes) to %d",
          vocab_size, BPE_MIN_VOCAB, BPE_MAX_VOCAB);
    CHECK(npaths > 0, E_USAGE, "no text to learn a vocabulary from");
    Err err = OK;
    Train t = {0};
    json_t *root = NULL;
    int32_t byte_id[256];
    TRY(outfile_check(out_json)); // what cannot be written costs no time
    TRY_OR(words_read(&t.words, paths, npaths), done);
    CHECK_OR(t.words.n > 0, done, E_INPUT, "%s: the text is empty", paths[0]);
    TRY_OR(start_tokens(&t, vocab_size, byte_id), done);
    TRY_OR(start_words(&t, byte_id), done);
    TRY_OR(learn(&t, vocab_size), done);
    root = tokenizer_json(&t);
    CHECK_OR(root, done, E_INTERNAL, "out of memory: tokenizer.json");
    TRY_OR(write_json(root, out_json), done);
done:
    json_decref(root);
    train_free(&t);
    return err;
}
