// tokenizer.h - text <-> token ids with any byte-level BPE in Hugging Face's tokenizer.json.
//
// What is read: model BPE (merges as strings or pairs, ignore_merges), pre-tokenisers Split, Digits
// and ByteLevel alone or in a Sequence, added tokens with all their flags. What is refused, by
// name: normalisers that do something, models that are not byte-level BPE, dropout, vocabularies
// that lack one of the 256 bytes. The post-processor is ignored: encoding never adds BOS or EOS by
// itself; callers do, with the special ids.
//
// A Tokenizer does not change after loading: all functions that take it const may be called by
// several threads.
#pragma once
#include "fail.h"

typedef struct Tokenizer Tokenizer;

// A growing list of ids; {0} is empty. The owner frees p.
typedef struct TokenIds {
    int32_t *p; // [n]
    int64_t n, capacity;
} TokenIds;

// tokenizer_load: read a tokenizer.json. Local.
// Errors: E_INPUT naming the file and the part that is missing, damaged or not supported.
Err tokenizer_load(Tokenizer **out, const char *path) MUST_CHECK;
// tokenizer_free: *t = NULL. Accepts NULL.
void tokenizer_free(Tokenizer **t);

// tokenizer_append: encode n bytes of text and append the ids to the list. Broken UTF-8 is replaced
// by U+FFFD as Python's errors="replace" does. Text that looks like an added token becomes that
// token.
// Errors: E_INTERNAL (memory, regex engine); the list may then hold some of the ids.
Err tokenizer_append(const Tokenizer *t, const char *text, size_t n, TokenIds *ids) MUST_CHECK;
// tokenizer_encode: the same into a new malloc'ed array ([*nids], NULL if 0).
Err tokenizer_encode(const Tokenizer *t, const char *text, size_t n, int32_t **ids,
                     int64_t *nids) MUST_CHECK;
// tokenizer_decode: the bytes of n ids, added tokens included, as a malloc'ed, 0-terminated text of
// *nbytes bytes. Not necessarily UTF-8 if ids end inside a character. Errors: E_INPUT for an id
// that is no token.
Err tokenizer_decode(const Tokenizer *t, const int32_t *ids, int64_t n, char **text,
                     size_t *nbytes) MUST_CHECK;

// tokenizer_vocab_size: largest id + 1.
int tokenizer_vocab_size(const Tokenizer *t);
// tokenizer_bytes: the bytes of one token (borrowed, *n of them), NULL if the id is no token.
const char *tokenizer_bytes(const Tokenizer *t, int32_t id, size_t *n);
// tokenizer_id: the id of the added token with this content, -1 if there is none.
int32_t tokenizer_id(const Tokenizer *t, const char *content);
// tokenizer_is_added: the id is an added token (a marker, not text).
bool tokenizer_is_added(const Tokenizer *t, int32_t id);
// Special ids by the names that DeepSeek, Llama, GPT-2, Qwen and this program use; -1 if absent.
int32_t tokenizer_bos(const Tokenizer *t);
int32_t tokenizer_eos(const Tokenizer *t);
int32_t tokenizer_pad(const Tokenizer *t);
// tokenizer_hash: XXH3-128 of the file's bytes, 32 hexadecimal digits. tokenizer_path: as given to
// load.
const char *tokenizer_hash(const Tokenizer *t);
const char *tokenizer_path(const Tokenizer *t);
