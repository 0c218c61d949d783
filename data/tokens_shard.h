// tokens_shard.h - one opened token shard: what its header says and where its chunks lie. Private
// to data/.
#pragma once
#include "tokens.h"

typedef struct Shard {
    char *path;
    int fd;
    TokenMeta meta;
    Hash128 content; // as the file says
    int64_t n_tokens, n_docs, n_text_bytes;
    int64_t first_token, first_doc; // in the stream of all shards
    int item;                       // bytes of a token, 2 or 4
    int64_t chunk_tokens, n_chunks;
    uint64_t *chunk_at, *chunk_size; // [n_chunks] place in the file
    bool *is_raw;                    // [n_chunks] stored without compression
    uint64_t *chunk_hash;            // [n_chunks]
    uint64_t *doc_offset;            // [n_docs + 1]
} Shard;

// shard_open: read everything but the tokens and check it. Errors: E_INPUT. shard_close: frees.
Err shard_open(Shard *s, const char *path) MUST_CHECK;
void shard_close(Shard *s);
// shard_hash_tables: add the datasets after /tokens to the content hash.
Err shard_hash_tables(const Shard *s, HashStream *h) MUST_CHECK;
