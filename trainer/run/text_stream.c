// text_stream.c - bytes of tokens to whole characters.
#include "text_stream.h"

#include <stdlib.h>
#include <string.h>

#include "bytelevel.h"

static Err append(TextStream *s, const char *bytes, size_t n) {
    if (s->nheld + n > s->capacity) {
        size_t capacity = 2 * (s->nheld + n) + 64;
        char *bigger = realloc(s->held, capacity);
        CHECK(bigger, E_INTERNAL, "out of memory: %zu bytes of text", capacity);
        s->held = bigger;
        s->capacity = capacity;
    }
    if (n) memcpy(s->held + s->nheld, bytes, n);
    s->nheld += n;
    return OK;
}

// stop_at: where the first of the texts that end it begins, nheld if none is there.
static size_t stop_at(const TextStream *s) {
    for (size_t at = 0; at < s->nheld; at++) {
        for (int i = 0; i < s->nstop; i++) {
            size_t n = strlen(s->stop[i]);
            if (n > 0 && n <= s->nheld - at && !memcmp(s->held + at, s->stop[i], n)) return at;
        }
    }
    return s->nheld;
}

// maybe_from: where the longest end of the bytes begins with which one of these texts begins.
static size_t maybe_from(const TextStream *s) {
    for (size_t at = 0; at < s->nheld; at++) {
        for (int i = 0; i < s->nstop; i++) {
            size_t n = s->nheld - at;
            if (strlen(s->stop[i]) > n && !memcmp(s->held + at, s->stop[i], n)) return at;
        }
    }
    return s->nheld;
}

// hand_on: the first n bytes, but for the beginning of a character at their end unless is_end.
static Err hand_on(TextStream *s, size_t n, bool is_end) {
    size_t at = 0;
    while (at < n) {
        int code_point = 0;
        size_t good = utf8_valid_bytes(s->held + at, n - at);
        if (good > 0) TRY(s->sink(s->user, s->held + at, good));
        at += good;
        if (at == n) break;
        size_t broken = (size_t)-utf8_get(&code_point, s->held + at, n - at);
        if (!is_end && at + broken == n) break; // the next token may complete it
        char instead[4];
        TRY(s->sink(s->user, instead, (size_t)utf8_put(instead, 0xFFFD)));
        at += broken;
    }
    s->nheld -= at;
    if (at > 0) memmove(s->held, s->held + at, s->nheld);
    return OK;
}

Err text_stream_add(TextStream *s, const char *bytes, size_t n) {
    if (s->is_stopped) return OK;
    TRY(append(s, bytes, n));
    size_t stop = stop_at(s);
    if (stop < s->nheld) {
        s->is_stopped = true;
        s->nheld = stop;
        return hand_on(s, stop, true);
    }
    return hand_on(s, maybe_from(s), false);
}

Err text_stream_end(TextStream *s) {
    return hand_on(s, s->nheld, true);
}

void text_stream_free(TextStream *s) {
    free(s->held);
    s->held = NULL;
    s->nheld = s->capacity = 0;
}
