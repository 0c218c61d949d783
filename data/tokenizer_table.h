// tokenizer_table.h - inside of a Tokenizer: its tables and the searches in them. For tokenizer*.c
// only.
//
// After loading, everything is bytes and ids. Four tables: tokens by id; merges by (left id, right
// id); whole pieces by their bytes, for the pieces that are known to encode to one token; a trie of
// the added tokens.
#pragma once
#include "pretokenize.h"
#include "tokenizer.h"

#define MAX_TOKEN_ID ((1 << 24) - 1) // larger ids are taken for damage
#define SHORT_PIECE 128              // bytes; longer pieces are merged with a heap

enum {
    TOKEN_PRESENT = 1, // the id is a token
    TOKEN_BYTES = 2,   // an ordinary token: its string was made of byte symbols
    TOKEN_ADDED = 4,   // listed in added_tokens
    TOKEN_WHOLE = 8,   // a piece of exactly these bytes is this token
    ADDED_LSTRIP = 16,
    ADDED_RSTRIP = 32,
    ADDED_SINGLE_WORD = 64,
};

typedef struct Token {
    size_t offset; // into pool
    uint32_t nbytes;
    uint32_t is; // TOKEN_*, ADDED_*
} Token;

typedef struct Merge {
    uint32_t left, right; // left == EMPTY_SLOT: free
    int32_t rank;         // lower merges first
    int32_t id;           // the result
} Merge;
#define EMPTY_SLOT UINT32_MAX

typedef struct PieceSlot {
    uint32_t tag; // upper half of the hash
    int32_t id;   // -1: free
} PieceSlot;

// A trie node: the children of a node are a linked list.
typedef struct TrieNode {
    int32_t child, sibling; // -1 = none
    int32_t id;             // token that ends here, -1 = none
    uint8_t byte;
} TrieNode;

typedef struct Trie {
    int32_t root[256];
    TrieNode *nodes; // [n]
    int32_t n, capacity;
    bool is_empty;
} Trie;

struct Tokenizer {
    char *path;
    char hash[33];
    int vocab_size;
    Token *tokens; // [vocab_size]
    char *pool;    // bytes of all tokens
    size_t pool_bytes, pool_capacity;
    int32_t byte_id[256];
    Merge *merges; // [merge_mask + 1]
    uint64_t merge_mask;
    PieceSlot *pieces; // [piece_mask + 1]
    uint64_t piece_mask;
    // Added tokens: those found in the raw text, and those found after the (empty) normaliser.
    Trie added[2];
    Pretokenizer *pretokenizer;
    Pretokenizer *word_class; // one pattern: a word character, for single_word
    bool has_prefix_space;    // ByteLevel's add_prefix_space
    int32_t bos, eos, pad;
};

// table_merge: the merge of two neighbours, NULL if there is none.
static inline const Merge *table_merge(const Tokenizer *t, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t i = (key * 0x9E3779B97F4A7C15u) >> 20;
    for (;; i++) {
        const Merge *m = &t->merges[i & t->merge_mask];
        if (m->left == (uint32_t)left && m->right == (uint32_t)right) return m;
        if (m->left == EMPTY_SLOT) return NULL;
    }
}

// table_create: room for n merges and n tokens, all empty. Errors: E_INTERNAL, memory.
Err table_create(Tokenizer *t, int vocab_size, int64_t nmerges) MUST_CHECK;
void table_free(Tokenizer *t);
// table_add_merge: the last one of equal pairs stands.
void table_add_merge(Tokenizer *t, int32_t left, int32_t right, int32_t rank, int32_t id);
// table_add_piece: enter token `id` into the table of whole pieces.
void table_add_piece(Tokenizer *t, int32_t id);
// table_piece: the token of exactly these bytes, -1 if none is entered.
int32_t table_piece(const Tokenizer *t, const char *bytes, size_t n);
// trie_add / trie_find: the longest added token that text starts with (-1 if none); *nbytes its
// length.
Err trie_add(Trie *trie, const char *bytes, size_t n, int32_t id) MUST_CHECK;
int32_t trie_find(const Trie *trie, const char *text, size_t n, size_t *nbytes);

// tokenizer_merge: byte-pair merging of one piece, ids appended. No look-up of the whole piece.
Err tokenizer_merge(const Tokenizer *t, const char *piece, size_t n, TokenIds *ids) MUST_CHECK;
// tokenizer_reserve: make room for n more ids.
Err tokenizer_reserve(TokenIds *ids, int64_t n) MUST_CHECK;
