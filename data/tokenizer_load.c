// tokenizer_load.c - reading a Hugging Face tokenizer.json into the tables of a Tokenizer.
//
// The file is JSON of 0.1 to 20 MB. Every part that could change ids is either understood or
// refused by name; a part that cannot (truncation, padding, post_processor) is left unread.
#include "tokenizer_table.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "arena.h"
#include "bytelevel.h"

#define MAX_FILE_BYTES ((size_t)512 << 20)
#define MAX_TOKEN_BYTES ((size_t)1 << 20)

// What is known while loading.
typedef struct Loading {
    Tokenizer *t;
    const char *path;
    json_t *ids; // vocabulary: symbol string -> id
    char *line;  // [line_capacity] scratch for one string
    size_t line_capacity;
    bool has_byte_level;
    bool has_split;
} Loading;

// The string at object[key]; `missing` if it is absent or null.
static const char *text_at(const json_t *object, const char *key, const char *missing) {
    json_t *value = json_object_get(object, key);
    return json_is_string(value) ? json_string_value(value) : missing;
}

static bool is_set(const json_t *value) {
    if (!value || json_is_null(value) || json_is_false(value)) return false;
    if (json_is_string(value)) return json_string_length(value) > 0;
    if (json_is_number(value)) return json_number_value(value) != 0;
    return true;
}

static Err read_file(Tokenizer *t, const char *path, char **text, size_t *n) {
    FILE *f = fopen(path, "rb");
    CHECK(f, E_INPUT, "%s: cannot open the tokenizer: %s", path, strerror(errno));
    Err err = OK;
    size_t capacity = 1 << 20;
    size_t used = 0;
    char *p = malloc(capacity);
    CHECK_OR(p, failed, E_INTERNAL, "%s: out of memory", path);
    for (size_t got = 1; got > 0; used += got) {
        if (capacity - used < capacity / 2) {
            CHECK_OR(capacity < MAX_FILE_BYTES, failed, E_INPUT,
                     "%s: too large for a tokenizer.json", path);
            char *bigger = realloc(p, 2 * capacity);
            CHECK_OR(bigger, failed, E_INTERNAL, "%s: out of memory", path);
            p = bigger;
            capacity *= 2;
        }
        got = fread(p + used, 1, capacity - used, f);
    }
    CHECK_OR(!ferror(f), failed, E_INPUT, "%s: cannot read: %s", path, strerror(errno));
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(p, used));
    for (int i = 0; i < 16; i++) snprintf(t->hash + 2 * i, 3, "%02x", canonical.digest[i]);
    *text = p;
    *n = used;
    fclose(f);
    return OK;
failed:
    free(p);
    fclose(f);
    return err;
}

// Store the bytes of a token.
static Err set_token(Tokenizer *t, int32_t id, const char *bytes, size_t n, uint32_t is) {
    if (t->pool_capacity - t->pool_bytes < n) {
        size_t capacity = 2 * t->pool_capacity + n + 4096;
        char *pool = realloc(t->pool, capacity);
        CHECK(pool, E_INTERNAL, "out of memory: vocabulary");
        t->pool = pool;
        t->pool_capacity = capacity;
    }
    if (n > 0) memcpy(t->pool + t->pool_bytes, bytes, n);
    t->tokens[id] = (Token){t->pool_bytes, (uint32_t)n, is};
    t->pool_bytes += n;
    return OK;
}

// Symbols -> bytes into l->line; *n < 0 if the string is not made of symbols.
static Err symbols_to_bytes(Loading *l, const char *symbols, size_t nsymbols, int64_t *n) {
    CHECK(nsymbols <= MAX_TOKEN_BYTES, E_INPUT, "%s: a token of %zu bytes", l->path, nsymbols);
    if (nsymbols > l->line_capacity) {
        char *bigger = realloc(l->line, 2 * nsymbols);
        CHECK(bigger, E_INTERNAL, "out of memory: vocabulary");
        l->line = bigger;
        l->line_capacity = 2 * nsymbols;
    }
    *n = bytelevel_decode((uint8_t *)l->line, symbols, nsymbols);
    return OK;
}

static Err check_id(const Loading *l, const json_t *value, const char *token, int32_t *id) {
    CHECK(json_is_integer(value), E_INPUT, "%s: the id of token '%.60s' is not an integer", l->path,
          token);
    json_int_t number = json_integer_value(value);
    CHECK(number >= 0 && number <= MAX_TOKEN_ID, E_INPUT,
          "%s: token '%.60s' has id %lld, expected 0 to %d", l->path, token, (long long)number,
          MAX_TOKEN_ID);
    *id = (int32_t)number;
    return OK;
}

// First pass: how large the tables must be.
static Err measure(Loading *l, json_t *vocab, json_t *added, int *vocab_size) {
    const char *token;
    json_t *value;
    int32_t last = -1;
    int32_t id = 0;
    json_object_foreach(vocab, token, value) {
        TRY(check_id(l, value, token, &id));
        if (id > last) last = id;
    }
    size_t i;
    json_array_foreach(added, i, value) {
        TRY(check_id(l, json_object_get(value, "id"), text_at(value, "content", "?"), &id));
        if (id > last) last = id;
    }
    *vocab_size = last + 1;
    return OK;
}

static Err load_vocab(Loading *l, json_t *vocab) {
    Tokenizer *t = l->t;
    const char *token;
    json_t *value;
    json_object_foreach(vocab, token, value) {
        int32_t id = (int32_t)json_integer_value(value);
        CHECK(!t->tokens[id].is, E_INPUT, "%s: id %d stands for two tokens, one is '%.60s'",
              l->path, (int)id, token);
        size_t length = strlen(token);
        int64_t n = -1;
        TRY(symbols_to_bytes(l, token, length, &n));
        if (n >= 0) {
            TRY(set_token(t, id, l->line, (size_t)n, TOKEN_PRESENT | TOKEN_BYTES));
            if (n == 1) t->byte_id[(uint8_t)l->line[0]] = id;
        } else { // a marker that is in the vocabulary as well; BPE can never make it
            TRY(set_token(t, id, token, length, TOKEN_PRESENT));
        }
    }
    for (int byte = 0; byte < 256; byte++) {
        CHECK(t->byte_id[byte] >= 0, E_INPUT,
              "%s: not a complete byte-level vocabulary: no token for byte 0x%02X, text would be "
              "lost",
              l->path, byte);
    }
    return OK;
}

// The two halves of a merge: ["a", "b"] or "a b". The second is written into *right after cutting.
static Err merge_halves(Loading *l, const json_t *merge, size_t i, char **left, char **right) {
    const json_t *a = json_array_get(merge, 0);
    const json_t *b = json_array_get(merge, 1);
    if (json_is_array(merge) && json_array_size(merge) == 2 && json_is_string(a) &&
        json_is_string(b)) {
        *left = strdup(json_string_value(a));
        *right = strdup(json_string_value(b));
    } else {
        const char *space = json_is_string(merge) ? strchr(json_string_value(merge), ' ') : NULL;
        CHECK(space && !strchr(space + 1, ' '), E_INPUT,
              "%s: merge %zu is damaged, expected \"a b\" or [\"a\", \"b\"]", l->path, i);
        *left = strndup(json_string_value(merge), (size_t)(space - json_string_value(merge)));
        *right = strdup(space + 1);
    }
    CHECK(*left && *right, E_INTERNAL, "out of memory: merges");
    return OK;
}

static Err find_id(const Loading *l, const char *token, size_t merge, int32_t *id) {
    json_t *value = json_object_get(l->ids, token);
    CHECK(value, E_INPUT, "%s: merge %zu needs token '%.80s', which is not in the vocabulary",
          l->path, merge, token);
    *id = (int32_t)json_integer_value(value);
    CHECK(l->t->tokens[*id].is & TOKEN_BYTES, E_INPUT,
          "%s: merge %zu uses '%.80s', which is not made of byte symbols", l->path, merge, token);
    return OK;
}

static Err load_merge(Loading *l, size_t i, const char *left, const char *right) {
    int32_t a = 0;
    int32_t b = 0;
    int32_t ab = 0;
    TRY(find_id(l, left, i, &a));
    TRY(find_id(l, right, i, &b));
    char *both = NULL;
    CHECK(asprintf(&both, "%s%s", left, right) >= 0, E_INTERNAL, "out of memory: merges");
    Err err = find_id(l, both, i, &ab);
    free(both);
    if (err != OK) return err;
    table_add_merge(l->t, a, b, (int32_t)i, ab);
    return OK;
}

static Err load_merges(Loading *l, json_t *merges) {
    size_t i;
    json_t *merge;
    json_array_foreach(merges, i, merge) {
        char *left = NULL;
        char *right = NULL;
        Err err = merge_halves(l, merge, i, &left, &right);
        if (err == OK) err = load_merge(l, i, left, right);
        free(left);
        free(right);
        if (err != OK) return fail_frame(err, __FILE__, __LINE__);
    }
    return OK;
}

static Err load_added(Loading *l, json_t *added) {
    Tokenizer *t = l->t;
    size_t i;
    json_t *entry;
    json_array_foreach(added, i, entry) {
        json_t *content = json_object_get(entry, "content");
        CHECK(json_is_string(content), E_INPUT, "%s: added token %zu has no content", l->path, i);
        const char *text = json_string_value(content);
        size_t n = json_string_length(content);
        CHECK(n <= MAX_TOKEN_BYTES, E_INPUT, "%s: added token %zu has %zu bytes", l->path, i, n);
        int32_t id = (int32_t)json_integer_value(json_object_get(entry, "id"));
        json_t *in_vocab = json_object_getn(l->ids, text, n);
        CHECK(!in_vocab || json_integer_value(in_vocab) == id, E_INPUT,
              "%s: added token '%.60s' has id %d, but the vocabulary says %lld", l->path, text,
              (int)id, (long long)json_integer_value(in_vocab));
        uint32_t is = t->tokens[id].is;
        CHECK(!(is & TOKEN_PRESENT) || (in_vocab && !(is & TOKEN_ADDED)), E_INPUT,
              "%s: id %d stands for two tokens, one is the added '%.60s'", l->path, (int)id, text);
        // Where the token also is made of byte symbols BPE may reach it too; its bytes are then
        // those.
        if (!(is & TOKEN_BYTES)) TRY(set_token(t, id, text, n, TOKEN_PRESENT));
        is = TOKEN_ADDED;
        if (is_set(json_object_get(entry, "lstrip"))) is |= ADDED_LSTRIP;
        if (is_set(json_object_get(entry, "rstrip"))) is |= ADDED_RSTRIP;
        if (is_set(json_object_get(entry, "single_word"))) is |= ADDED_SINGLE_WORD;
        t->tokens[id].is |= is;
        bool is_normalized = is_set(json_object_get(entry, "normalized"));
        TRY(trie_add(&t->added[is_normalized], text, n, id));
    }
    // The word characters of Rust's regex crate, as near as general categories come.
    static const char word[] =
        "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200c}\\x{200d}\\x{24b6}-\\x{24e9}]";
    return pretokenize_add(t->word_class, word, sizeof word - 1, false, SPLIT_MATCHES);
}

static Err check_normalizer(const Loading *l, const json_t *normalizer) {
    if (!is_set(normalizer)) return OK;
    const char *type = text_at(normalizer, "type", "?");
    CHECK(!strcmp(type, "Sequence"), E_INPUT,
          "%s: normalizer %s is not supported, only tokenizers that leave the text as it is",
          l->path, type);
    size_t i;
    json_t *inner;
    json_array_foreach(json_object_get(normalizer, "normalizers"), i, inner)
        TRY(check_normalizer(l, inner));
    return OK;
}

static Err add_pattern(Loading *l, const char *pattern, size_t n, bool is_literal, SplitKind kind) {
    Err err = pretokenize_add(l->t->pretokenizer, pattern, n, is_literal, kind);
    return err == OK ? OK : fail_at(err, __FILE__, __LINE__, "%s: %s", l->path, fail_message());
}

static Err load_split(Loading *l, const json_t *split) {
    const char *behavior = text_at(split, "behavior", "?");
    bool is_inverted = is_set(json_object_get(split, "invert"));
    bool is_isolated =
        !strcasecmp(behavior, "isolated"); // inverted or not, the pieces are the same
    bool is_matches = !strcasecmp(behavior, "removed") && is_inverted;
    CHECK(is_isolated || is_matches, E_INPUT, "%s: Split with behavior %s%s is not supported",
          l->path, behavior, is_inverted ? " inverted" : "");
    const json_t *pattern = json_object_get(split, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    const json_t *text = regex ? regex : json_object_get(pattern, "String");
    CHECK(json_is_string(text), E_INPUT, "%s: Split without a pattern (Regex or String)", l->path);
    l->has_split = true;
    return add_pattern(l, json_string_value(text), json_string_length(text), !regex,
                       is_matches ? SPLIT_MATCHES : SPLIT_ISOLATED);
}

static Err load_pretokenizer(Loading *l, const json_t *p, int depth) {
    CHECK(json_is_object(p) && depth < 8, E_INPUT, "%s: pre_tokenizer is missing or damaged",
          l->path);
    const char *type = text_at(p, "type", "?");
    CHECK(!l->has_byte_level, E_INPUT, "%s: pre_tokenizer %s after ByteLevel is not supported",
          l->path, type);
    if (!strcmp(type, "Sequence")) {
        size_t i;
        json_t *inner;
        json_t *list = json_object_get(p, "pretokenizers");
        CHECK(json_is_array(list), E_INPUT, "%s: pre_tokenizer Sequence without a list", l->path);
        json_array_foreach(list, i, inner) TRY(load_pretokenizer(l, inner, depth + 1));
        return OK;
    }
    if (!strcmp(type, "Split")) return load_split(l, p);
    if (!strcmp(type, "Digits")) {
        bool is_single = is_set(json_object_get(p, "individual_digits"));
        l->has_split = true;
        return add_pattern(l, is_single ? "\\p{N}" : "\\p{N}+", is_single ? 5 : 6, false,
                           SPLIT_ISOLATED);
    }
    CHECK(!strcmp(type, "ByteLevel"), E_INPUT, "%s: pre_tokenizer %s is not supported", l->path,
          type);
    l->has_byte_level = true;
    l->t->has_prefix_space = is_set(json_object_get(p, "add_prefix_space"));
    CHECK(!l->t->has_prefix_space || !l->has_split, E_INPUT,
          "%s: ByteLevel with add_prefix_space after a Split is not supported", l->path);
    const json_t *use_regex = json_object_get(p, "use_regex"); // older files do not have it: true
    if (use_regex && !is_set(use_regex)) return OK;
    return add_pattern(l, pretokenize_gpt2, strlen(pretokenize_gpt2), false, SPLIT_ISOLATED);
}

static Err check_model(const Loading *l, const json_t *model) {
    CHECK(json_is_object(model), E_INPUT,
          "%s: no \"model\", expected a Hugging Face tokenizer.json", l->path);
    const char *type = text_at(model, "type", "BPE"); // old files do not say
    CHECK(!strcmp(type, "BPE"), E_INPUT, "%s: model %s is not supported, only byte-level BPE",
          l->path, type);
    static const char *const refused[] = {"dropout", "continuing_subword_prefix",
                                          "end_of_word_suffix"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        CHECK(!is_set(json_object_get(model, refused[i])), E_INPUT, "%s: model.%s is not supported",
              l->path, refused[i]);
    }
    CHECK(json_is_object(json_object_get(model, "vocab")), E_INPUT, "%s: model.vocab is missing",
          l->path);
    CHECK(json_is_array(json_object_get(model, "merges")), E_INPUT, "%s: model.merges is missing",
          l->path);
    return OK;
}

// Find the tokens that a piece of their own bytes encodes to: most words of real text then need one
// look-up.
static Err load_pieces(Tokenizer *t, bool ignores_merges) {
    TokenIds ids = {0};
    Err err = OK;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        Token *token = &t->tokens[id];
        if (!(token->is & TOKEN_BYTES) || token->nbytes == 0) continue;
        bool is_whole = ignores_merges;
        if (!is_whole && token->nbytes <= SHORT_PIECE) {
            ids.n = 0;
            TRY_OR(tokenizer_merge(t, t->pool + token->offset, token->nbytes, &ids), done);
            is_whole = ids.n == 1 && ids.p[0] == id;
        }
        if (!is_whole) continue;
        token->is |= TOKEN_WHOLE;
        table_add_piece(t, id);
    }
done:
    free(ids.p);
    return err;
}

static void find_special(Tokenizer *t) {
    static const char *const bos[] = {"<\uff5cbegin\u2581of\u2581sentence\uff5c>",
                                      "<|begin_of_text|>", "<|bos|>", "<|startoftext|>", "<s>"};
    static const char *const eos[] = {"<\uff5cend\u2581of\u2581sentence\uff5c>", "<|end_of_text|>",
                                      "<|eos|>", "<|endoftext|>", "</s>"};
    static const char *const pad[] = {"<\uff5c\u2581pad\u2581\uff5c>", "<|finetune_right_pad_id|>",
                                      "<|pad|>", "<pad>", "[PAD]"};
    t->bos = t->eos = t->pad = -1;
    for (int i = 0; i < 5; i++) {
        if (t->bos < 0) t->bos = tokenizer_id(t, bos[i]);
        if (t->eos < 0) t->eos = tokenizer_id(t, eos[i]);
        if (t->pad < 0) t->pad = tokenizer_id(t, pad[i]);
    }
}

static Err load_json(Loading *l, json_t *root) {
    Tokenizer *t = l->t;
    json_t *model = json_object_get(root, "model");
    json_t *added = json_object_get(root, "added_tokens");
    TRY(check_model(l, model));
    TRY(check_normalizer(l, json_object_get(root, "normalizer")));
    l->ids = json_object_get(model, "vocab");
    json_t *merges = json_object_get(model, "merges");
    int vocab_size = 0;
    TRY(measure(l, l->ids, added, &vocab_size));
    TRY(table_create(t, vocab_size, (int64_t)json_array_size(merges)));
    TRY(pretokenize_create(&t->pretokenizer));
    TRY(pretokenize_create(&t->word_class));
    TRY(load_pretokenizer(l, json_object_get(root, "pre_tokenizer"), 0));
    CHECK(l->has_byte_level, E_INPUT,
          "%s: pre_tokenizer has no ByteLevel, only byte-level BPE is supported", l->path);
    TRY(load_vocab(l, l->ids));
    TRY(load_merges(l, merges));
    TRY(load_added(l, added));
    TRY(load_pieces(t, is_set(json_object_get(model, "ignore_merges"))));
    find_special(t);
    return OK;
}

Err tokenizer_load(Tokenizer **out, const char *path) {
    Err err = OK;
    Tokenizer *t = NULL;
    char *text = NULL;
    size_t n = 0;
    json_t *root = NULL;
    Loading l = {.path = path};
    MEM_NEW(t, 1);
    l.t = t;
    t->path = strdup(path);
    CHECK_OR(t->path, done, E_INTERNAL, "%s: out of memory", path);
    TRY_OR(read_file(t, path, &text, &n), done);
    json_error_t at;
    root = json_loadb(text, n, JSON_ALLOW_NUL, &at);
    CHECK_OR(root, done, E_INPUT, "%s:%d: not JSON: %s", path, at.line, at.text);
    TRY_OR(load_json(&l, root), done);
done:
    json_decref(root);
    free(text);
    free(l.line);
    if (err != OK) tokenizer_free(&t);
    *out = t;
    return err;
}

void tokenizer_free(Tokenizer **t) {
    if (!*t) return;
    pretokenize_destroy(&(*t)->pretokenizer);
    pretokenize_destroy(&(*t)->word_class);
    table_free(*t);
    free((*t)->pool);
    free((*t)->path);
    mem_free(*t);
    *t = NULL;
}
