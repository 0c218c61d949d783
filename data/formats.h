// formats.h - reading text documents from files.
//
//     name ends in     is
//     .jsonl           one JSON object a line, the document is its string "text"; blank lines pass
//     anything else    text: the whole file is one document
//     the same + .zst  the same, compressed with zstd (one or several frames)
//
// Lines are streamed; a file is never held whole unless it is one document. Bytes are handed on as
// they
// are: broken UTF-8 in a text file is the tokenizer's business.
#pragma once
#include "fail.h"

typedef struct Document {
    const char
        *text;     // [nbytes] valid during the call only; may hold zero bytes after JSON's \u0000
    size_t nbytes; // 0 is possible in .jsonl
    const char *path; // where it comes from
    int64_t line;     // 1-based line of a .jsonl, 0 for a whole file
} Document;

// Called for every document in order; an error stops the reading and is handed on.
typedef Err (*DocumentFn)(void *cx, const Document *doc);

// formats_check: what is wrong with a file can be seen without reading it: it is not there or not readable, a folder,
// empty. So that a list of files is refused before hours are spent on those before it. Local. Errors: E_INPUT.
Err formats_check(const char *path) MUST_CHECK;

// formats_read: call fn for each document of the file. Local.
// Errors: E_INPUT naming the file (and the line): cannot be opened or read, damaged or truncated
// zstd, not JSON, no string "text", a zero byte in a text file (so it is not text), an empty text
// file, a .jsonl without any document.
Err formats_read(const char *path, DocumentFn fn, void *cx) MUST_CHECK;
