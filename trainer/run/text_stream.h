// text_stream.h - text that is made token by token, handed on as soon as it is certain: whole characters only, and
// nothing that may still become a text at which to stop.
#pragma once
#include "fail.h"

typedef Err (*TextSink)(void *user, const char *text, size_t n);

typedef struct TextStream {
    const char *const *stop; // [nstop] texts that end it; not handed on themselves
    int nstop;
    TextSink sink; // gets valid UTF-8; what is none in the bytes becomes U+FFFD, as in Python's errors="replace"
    void *user;
    bool is_stopped; // one of them came: nothing is handed on any more
    char *held;      // [nheld] bytes that wait
    size_t nheld, capacity;
} TextStream;

// text_stream_add: the bytes of one more token. Errors: the sink's, E_INTERNAL: memory. Local.
Err text_stream_add(TextStream *s, const char *bytes, size_t n) MUST_CHECK;
// text_stream_end: no more comes: what waited is handed on, a part of a character as U+FFFD. Local.
Err text_stream_end(TextStream *s) MUST_CHECK;
void text_stream_free(TextStream *s);
