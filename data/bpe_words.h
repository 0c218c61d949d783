// bpe_words.h - counting the distinct pieces ("words") of a text, for bpe_train.
#pragma once
#include "fail.h"

typedef struct Word {
    size_t offset;   // into bytes
    uint32_t nbytes; // > 0
    int64_t count;   // how often it occurs
} Word;

typedef struct Words {
    Word *p; // [n] in order of first occurrence
    int64_t n, capacity;
    char *bytes; // [nbytes] all distinct words, back to back
    size_t nbytes, bytes_capacity;
    int64_t *slots; // [mask + 1] hash table of indices into p, -1 = free
    uint64_t mask;
    size_t text_bytes; // bytes of all documents
} Words;

// words_read: count the pieces of all files, cut by DeepSeek-V3's patterns; broken UTF-8 becomes
// U+FFFD. *w is set also on an error and must be given to words_free. Errors: those of
// formats_read; E_INTERNAL. Local.
Err words_read(Words *w, const char *const *paths, int npaths) MUST_CHECK;
void words_free(Words *w);
