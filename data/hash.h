// hash.h - fingerprints: XXH3-128 of bytes in memory, in a stream or in a file, and its text form.
//
// Used for content, tokenizer and checkpoint fingerprints. XXH3 is fast and finds damage; it does
// not resist an attacker. The text form is 32 lower-case hex digits, most significant first (what
// `xxhsum -H128` prints).
#pragma once
#include "fail.h"

typedef struct Hash128 {
    uint64_t lo, hi;
} Hash128;

typedef struct HashText {
    char s[33];
} HashText;

typedef struct HashStream HashStream;

// hash128: XXH3-128, seed 0, of n bytes. Local.
Hash128 hash128(const void *p, size_t n);
// hash64: XXH64, seed 0, of n bytes: the per-chunk and per-document hash of token shards.
uint64_t hash64(const void *p, size_t n);
// hash64_seeded: 64-bit XXH3 of n bytes with a seed, for sums of hashes of rows. Local.
uint64_t hash64_seeded(const void *p, size_t n, uint64_t seed);
bool hash_equal(Hash128 a, Hash128 b);
// hash_text: 32 hex digits. hash_parse: the inverse; false if `text` is anything else.
HashText hash_text(Hash128 h);
bool hash_parse(const char *text, Hash128 *out);

// hash_stream_new: an empty stream; hash_stream_end gives the hash of everything added since then
// (the stream may go on). hash_stream_free accepts a NULL stream and sets *s = NULL. Errors:
// E_INTERNAL.
Err hash_stream_new(HashStream **s) MUST_CHECK;
void hash_stream_add(HashStream *s, const void *p, size_t n);
Hash128 hash_stream_end(const HashStream *s);
void hash_stream_free(HashStream **s);

// hash_file: hash and, if `bytes` is not NULL, size of a file. Errors: E_INPUT naming it. Local.
Err hash_file(const char *path, Hash128 *out, int64_t *bytes) MUST_CHECK;
