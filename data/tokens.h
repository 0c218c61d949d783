// tokens.h - token shards: HDF5 files with a stream of token ids and where its documents begin.
//
// Root attributes: format = "moe-tokens", version = 1, n_tokens, n_docs, n_text_bytes, vocab_size,
// bos_id, eos_id, pad_id (-1 = none), eod_rule = "append" (every document ends with eos_id),
// tokenizer_hash (XXH3-128 of tokenizer.json), source_name, split, shard_index, shard_count,
// created_by, content_hash.
// - /tokens u16 if vocab_size <= 65536 else u32, [N]; chunks of 16384 tokens, zstd 3, no shuffle
// - /doc_offsets u64 [docs+1]: first token of each document; the last entry is N
// - /doc_bytes u64 [docs+1]: prefix sums of the documents' bytes of text
// - /doc_flags u8 [docs]: 0
// - /doc_hash u64 [docs]: XXH64 of the document's text
// - /chunk_hash u64 [chunks]: XXH64 of each uncompressed chunk of /tokens, the last padded with 0
//
// content_hash = XXH3-128 of the bytes of all datasets in this order (/tokens without padding).
//
// The reader looks up every chunk's place in the file at open and then only preads and
// decompresses, so many threads may read one Tokens at once. Every chunk is checked against its
// hash.
#pragma once
#include "hash.h"

#define TOKEN_CHUNK 16384
#define TOKEN_SHARD_MAX (1ll << 30) // tokens of one shard

// What a shard says about itself; texts are copied.
typedef struct TokenMeta {
    int64_t vocab_size;
    int64_t bos_id, eos_id, pad_id; // -1 = none
    char tokenizer_hash[40];
    char source_name[128];
    char split[64];
} TokenMeta;

// ---- writing ----

typedef struct TokenWriter TokenWriter;

// token_writer_open: a new shard. It is written beside its place and appears by a rename in
// token_writer_finish. Errors: E_OUTPUT.
Err token_writer_open(TokenWriter **w, const char *path, const TokenMeta *meta,
                      int64_t shard_index) MUST_CHECK;
// token_writer_add: one document of n ids (its final eos_id included by the caller), made of
// text_bytes bytes of text with XXH64 `text_hash`. Errors: E_OUTPUT; E_INPUT for an id outside the
// vocabulary.
Err token_writer_add(TokenWriter *w, const int32_t *ids, int64_t n, int64_t text_bytes,
                     uint64_t text_hash) MUST_CHECK;
// token_writer_tokens: tokens so far.
int64_t token_writer_tokens(const TokenWriter *w);
// token_writer_finish: write the rest, fsync, rename. *w = NULL always. shard_count: how many
// shards the set has, 0 if not known yet. Errors: E_OUTPUT (what was written is removed).
Err token_writer_finish(TokenWriter **w, int64_t shard_count) MUST_CHECK;
// token_writer_drop: give up and remove the file. Accepts NULL.
void token_writer_drop(TokenWriter **w);
// tokens_set_shard_count: write the number of shards into a finished shard. Errors: E_OUTPUT.
Err tokens_set_shard_count(const char *path, int64_t count) MUST_CHECK;

// ---- reading ----

typedef struct Tokens Tokens;

// tokens_open: shards as one stream, in this order; they must agree on vocabulary, special ids and
// tokenizer. Each path is a shard, a directory (all its *.h5 by name) or a pattern with * or ?.
// Errors: E_INPUT naming the file and what is wrong.
Err tokens_open(Tokens **t, const char *const *paths, int npaths) MUST_CHECK;
// tokens_close: *t = NULL; accepts NULL.
void tokens_close(Tokens **t);

int64_t tokens_count(const Tokens *t);
int64_t tokens_docs(const Tokens *t);
int64_t tokens_text_bytes(const Tokens *t);
int tokens_shards(const Tokens *t);
const char *tokens_path(const Tokens *t, int shard);
const TokenMeta *tokens_meta(const Tokens *t);
// tokens_fingerprint: XXH3-128, as text, of the shards' content hashes in order.
HashText tokens_fingerprint(const Tokens *t);
// tokens_doc_start: first token of document i, 0 <= i <= docs (tokens_count for i = docs).
int64_t tokens_doc_start(const Tokens *t, int64_t i);
// tokens_doc_of: the document that holds token `at`.
int64_t tokens_doc_of(const Tokens *t, int64_t at);
// tokens_read: ids [first, first+n). Thread-safe. Errors: E_INPUT: outside of the stream, or a
// damaged chunk, naming file, chunk, expected and found hash.
Err tokens_read(const Tokens *t, int64_t first, int64_t n, int32_t *out) MUST_CHECK;
// tokens_verify: read everything and compare the content hashes. Errors: E_INPUT.
Err tokens_verify(const Tokens *t) MUST_CHECK;
