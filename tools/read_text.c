// read_text.c - a whole file at once.
#include "read_text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

Err read_text(const char *path, char **text, size_t *n) {
    bool is_stdin = !strcmp(path, "-");
    FILE *f = is_stdin ? stdin : fopen(path, "rb");
    CHECK(f, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    Err err = OK;
    char *p = NULL;
    size_t used = 0;
    size_t capacity = 0;
    for (size_t got = 1; got > 0; used += got) {
        if (used == capacity) {
            capacity = 2 * capacity + 65536;
            char *bigger = realloc(p, capacity);
            CHECK_OR(bigger, failed, E_INTERNAL, "%s: out of memory", path);
            p = bigger;
        }
        got = fread(p + used, 1, capacity - used, f);
    }
    CHECK_OR(!ferror(f), failed, E_INPUT, "%s: cannot read: %s", path, strerror(errno));
    if (!is_stdin) fclose(f);
    p[used] = '\0'; // the last round had room and got nothing
    *text = p;
    *n = used;
    return OK;
failed:
    free(p);
    if (!is_stdin) fclose(f);
    return err;
}
