// scratch_dir.h - a folder of its own for a test program, paths inside it and small files in it.
//
// scratch_setup and scratch_teardown are for cmocka: around a group, or around each test. The
// folder is /tmp/<program>_XXXXXX; it goes away with everything that is in it, read-only or not.
#pragma once
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char scratch_dir[96]; // the folder, while there is one

static inline int scratch_setup(void **state) {
    (void)state;
    snprintf(scratch_dir, sizeof scratch_dir, "/tmp/%.64s_XXXXXX", program_invocation_short_name);
    return mkdtemp(scratch_dir) ? 0 : -1;
}

static inline int scratch_teardown(void **state) {
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "chmod -R u+w %s && rm -rf %s", scratch_dir, scratch_dir);
    return system(command);
}

// at: the path of `name` in the folder; good until the eighth call after this one.
static inline const char *at(const char *name) {
    static char path[8][512];
    static int next;
    next = (next + 1) % 8;
    snprintf(path[next], sizeof path[next], "%s/%s", scratch_dir, name);
    return path[next];
}

// scratch_write: a file of n bytes in place of what was there. Returns path.
static inline const char *scratch_write(const char *path, const void *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f) fail_msg("cannot write %s", path);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    return path;
}

static inline const char *scratch_write_text(const char *path, const char *text) {
    return scratch_write(path, text, strlen(text));
}
