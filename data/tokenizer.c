// tokenizer.c - encoding and decoding. Loading is in tokenizer_load.c, the searches in
// tokenizer_table.c.
//
// Text goes through: repair of UTF-8; added tokens found in the raw text; in what lies between, the
// added tokens that are looked for after normalisation; in what then lies between, the
// pre-tokeniser; for each of its pieces one look-up, and merging only if that fails.
#include "tokenizer_table.h"

#include <stdlib.h>
#include <string.h>

#include "bytelevel.h"

typedef struct Encode {
    const Tokenizer *t;
    TokenIds *ids;
} Encode;

static Err encode_piece(void *cx, const char *piece, size_t n) {
    Encode *e = cx;
    int32_t id = table_piece(e->t, piece, n);
    if (id < 0) return tokenizer_merge(e->t, piece, n, e->ids);
    TRY(tokenizer_reserve(e->ids, 1));
    e->ids->p[e->ids->n++] = id;
    return OK;
}

// Text without added tokens.
static Err encode_plain(Encode *e, const char *text, size_t n) {
    if (n == 0) return OK;
    if (!e->t->has_prefix_space || text[0] == ' ') {
        return pretokenize_run(e->t->pretokenizer, text, n, encode_piece, e);
    }
    char *spaced = malloc(n + 1);
    CHECK(spaced, E_INTERNAL, "out of memory: encoding %zu bytes", n);
    spaced[0] = ' ';
    memcpy(spaced + 1, text, n);
    Err err = OK;
    TRY_OR(pretokenize_run(e->t->pretokenizer, spaced, n + 1, encode_piece, e), done);
done:
    free(spaced);
    return err;
}

// Unicode White_Space, as \s of the pre-tokeniser.
static bool is_space(int c) {
    return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

// The start of the last character of text[0..n), n > 0.
static size_t last_character(const char *text, size_t n) {
    size_t i = n - 1;
    while (i > 0 && ((uint8_t)text[i] & 0xC0) == 0x80) i--;
    return i;
}

static size_t spaces_before(const char *text, size_t at, size_t stop) {
    while (at > stop) {
        size_t i = last_character(text, at);
        int c = 0;
        if (utf8_get(&c, text + i, at - i) < 0 || !is_space(c)) break;
        at = i;
    }
    return at > stop ? at : stop;
}

static size_t spaces_after(const char *text, size_t at, size_t n) {
    while (at < n) {
        int c = 0;
        int length = utf8_get(&c, text + at, n - at);
        if (length < 0 || !is_space(c)) break;
        at += (size_t)length;
    }
    return at;
}

static Err note_match(void *cx, const char *piece, size_t n) {
    (void)piece;
    *(bool *)cx = n > 0;
    return OK;
}

// Is the character at text[i..] (is_before: the one that ends at i) part of a word?
static Err is_word_at(const Tokenizer *t, const char *text, size_t n, size_t i, bool is_before,
                      bool *is_word) {
    *is_word = false;
    if (is_before ? i == 0 : i == n) return OK;
    size_t start = is_before ? last_character(text, i) : i;
    int c = 0;
    int length = utf8_get(&c, text + start, n - start);
    return pretokenize_run(t->word_class, text + start, (size_t)abs(length), note_match, is_word);
}

static Err encode_level(Encode *e, int level, const char *text, size_t n);

// A token was found at [start, stop): apply its flags; *done is where the last one ended.
static Err encode_added(Encode *e, int level, const char *text, size_t n, size_t start, size_t stop,
                        int32_t id, size_t *done) {
    uint32_t is = e->t->tokens[id].is;
    if (is & ADDED_SINGLE_WORD) {
        bool is_word_before = false;
        bool is_word_after = false;
        TRY(is_word_at(e->t, text, n, start, true, &is_word_before));
        TRY(is_word_at(e->t, text, n, stop, false, &is_word_after));
        if (is_word_before || is_word_after) return OK;
    }
    if (is & ADDED_LSTRIP) start = spaces_before(text, start, *done);
    if (is & ADDED_RSTRIP) stop = spaces_after(text, stop, n);
    if (start > *done) TRY(encode_level(e, level + 1, text + *done, start - *done));
    TRY(tokenizer_reserve(e->ids, 1));
    e->ids->p[e->ids->n++] = id;
    *done = stop;
    return OK;
}

// Level 0 and 1 look for added tokens, leftmost first, the longest of those; level 2 is plain text.
static Err encode_level(Encode *e, int level, const char *text, size_t n) {
    if (level == 2) return encode_plain(e, text, n);
    const Trie *trie = &e->t->added[level];
    if (trie->is_empty) return encode_level(e, level + 1, text, n);
    size_t done = 0;
    for (size_t i = 0; i < n;) {
        size_t length = 0;
        int32_t id =
            trie->root[(uint8_t)text[i]] >= 0 ? trie_find(trie, text + i, n - i, &length) : -1;
        if (id < 0) {
            i++;
            continue;
        }
        TRY(encode_added(e, level, text, n, i, i + length, id, &done));
        i += length; // not `done`: Hugging Face also finds tokens in blanks that a right strip took
    }
    if (done < n) TRY(encode_level(e, level + 1, text + done, n - done));
    return OK;
}

Err tokenizer_append(const Tokenizer *t, const char *text, size_t n, TokenIds *ids) {
    Encode e = {t, ids};
    if (n == 0) return OK;
    if (utf8_valid_bytes(text, n) == n) return encode_level(&e, 0, text, n);
    char *repaired = NULL;
    size_t nrepaired = 0;
    Err err = OK;
    TRY(utf8_repair(&repaired, &nrepaired, text, n));
    TRY_OR(encode_level(&e, 0, repaired, nrepaired), done);
done:
    free(repaired);
    return err;
}

Err tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int32_t **ids, int64_t *nids) {
    TokenIds list = {0};
    Err err = tokenizer_append(t, text, n, &list);
    if (err != OK) {
        free(list.p);
        return fail_frame(err, __FILE__, __LINE__);
    }
    *ids = list.p;
    *nids = list.n;
    return OK;
}

Err tokenizer_decode(const Tokenizer *t, const int32_t *ids, int64_t n, char **text,
                     size_t *nbytes) {
    size_t total = 0;
    for (int64_t i = 0; i < n; i++) {
        size_t length = 0;
        CHECK(tokenizer_bytes(t, ids[i], &length), E_INPUT,
              "%s: id %d (number %lld) is not a token; ids are below %d", t->path, (int)ids[i],
              (long long)i + 1, t->vocab_size);
        total += length;
    }
    char *out = malloc(total + 1);
    CHECK(out, E_INTERNAL, "out of memory: decoding to %zu bytes", total);
    *nbytes = 0;
    for (int64_t i = 0; i < n; i++) {
        size_t length = 0;
        memcpy(out + *nbytes, tokenizer_bytes(t, ids[i], &length), t->tokens[ids[i]].nbytes);
        *nbytes += length;
    }
    out[total] = '\0';
    *text = out;
    return OK;
}

int tokenizer_vocab_size(const Tokenizer *t) {
    return t->vocab_size;
}

const char *tokenizer_bytes(const Tokenizer *t, int32_t id, size_t *n) {
    if (id < 0 || id >= t->vocab_size || !(t->tokens[id].is & TOKEN_PRESENT)) return NULL;
    *n = t->tokens[id].nbytes;
    return t->pool + t->tokens[id].offset;
}

int32_t tokenizer_id(const Tokenizer *t, const char *content) {
    size_t n = strlen(content);
    for (int k = 0; k < 2; k++) {
        size_t length = 0;
        int32_t id = trie_find(&t->added[k], content, n, &length);
        if (id >= 0 && length == n) return id;
    }
    return -1;
}

bool tokenizer_is_added(const Tokenizer *t, int32_t id) {
    return id >= 0 && id < t->vocab_size && (t->tokens[id].is & TOKEN_ADDED);
}

int32_t tokenizer_bos(const Tokenizer *t) {
    return t->bos;
}

int32_t tokenizer_eos(const Tokenizer *t) {
    return t->eos;
}

int32_t tokenizer_pad(const Tokenizer *t) {
    return t->pad;
}

const char *tokenizer_hash(const Tokenizer *t) {
    return t->hash;
}

const char *tokenizer_path(const Tokenizer *t) {
    return t->path;
}
