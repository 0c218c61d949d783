// fail.c - the thread-local error: one message, where it was born, and the frames it passed.
#include "fail.h"

#include <string.h>

#define FRAMES 24

static _Thread_local struct {
    Err code;
    char message[1024];
    int nframes;
    struct {
        const char *file;
        int line;
    } frame[FRAMES];
} current;

static void frame_add(const char *file, int line) {
    if (current.nframes >= FRAMES) return;
    current.frame[current.nframes].file = file;
    current.frame[current.nframes].line = line;
    current.nframes++;
}

Err fail_at(Err code, const char *file, int line, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char text[sizeof current.message]; // fmt's arguments may point into the current message
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    memcpy(current.message, text, sizeof text);
    current.code = code;
    current.nframes = 0;
    frame_add(file, line);
    return code;
}

Err fail_frame(Err code, const char *file, int line) {
    if (current.code == OK) { // an Err that was not born in fail_at: keep it explainable
        return fail_at(code, file, line, "error %d without a message", (int)code);
    }
    frame_add(file, line);
    return code;
}

const char *fail_message(void) {
    return current.code == OK ? "" : current.message;
}

Err fail_code(void) {
    return current.code;
}

void fail_report(FILE *out, const char *prefix, bool verbose) {
    if (current.code == OK) return;
    fprintf(out, "%s: %s\n", prefix, current.message);
    if (!verbose && current.code != E_INTERNAL) return;
    for (int i = 0; i < current.nframes; i++) {
        fprintf(out, "    %s %s:%d\n", i == 0 ? "at" : "by", current.frame[i].file,
                current.frame[i].line);
    }
}

void fail_clear(void) {
    current.code = OK;
    current.nframes = 0;
    current.message[0] = '\0';
}
