// pretokenize.h - cutting text into the pieces inside which BPE merges.
//
// A Pretokenizer is a list of regular expressions; each is applied inside the pieces of the one
// before, so look-around never sees past a piece. Patterns are written for Oniguruma with Ruby's
// syntax, as in Hugging Face files, and are run by PCRE2 (UTF, UCP). One thing is translated: \s
// and \S become the Unicode White_Space set, because PCRE2's \s has U+180E as well. Characters
// newer than PCRE2's Unicode tables may be cut differently; that is all that is known to differ.
#pragma once
#include "fail.h"

typedef struct Pretokenizer Pretokenizer;

typedef enum SplitKind {
    SPLIT_ISOLATED, // matches and the text between them are pieces
    SPLIT_MATCHES,  // only matches are pieces, what is between is dropped ("Removed", inverted)
} SplitKind;

// Called for every piece in order: text[0..n), n > 0, valid UTF-8.
typedef Err (*PieceFn)(void *cx, const char *piece, size_t n);

// pretokenize_create: no patterns yet: the text is one piece. Errors: E_INTERNAL, memory. Local.
Err pretokenize_create(Pretokenizer **out) MUST_CHECK;
// pretokenize_destroy: *p = NULL. Accepts NULL.
void pretokenize_destroy(Pretokenizer **p);
// pretokenize_add: append a pattern of n bytes; is_literal: it is a plain string, not an
// expression.
// Errors: E_INPUT if it does not compile or uses what PCRE2 reads in another way (&& and nested [
// in a class).
Err pretokenize_add(Pretokenizer *p, const char *pattern, size_t n, bool is_literal,
                    SplitKind kind) MUST_CHECK;
// pretokenize_run: call fn for each piece. `text` must be valid UTF-8 (it is not checked again).
// Thread-safe.
// Errors: E_INTERNAL if the regex engine gives up, and those of fn.
Err pretokenize_run(const Pretokenizer *p, const char *text, size_t n, PieceFn fn,
                    void *cx) MUST_CHECK;

// The three expressions of DeepSeek-V3's tokenizer.json, all SPLIT_ISOLATED, and GPT-2's.
#define DEEPSEEK_SPLITS 3
extern const char *const pretokenize_deepseek[DEEPSEEK_SPLITS];
extern const char *const pretokenize_gpt2;
