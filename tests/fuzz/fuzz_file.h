// fuzz_file.h - the bytes of one fuzzing input as a file or folder that a parser can open.
//
// Everything lies in memory (memfd, or a folder under /dev/shm), so that thousands of inputs a second never touch a
// disk. A program that ends by a crash leaves its folder behind: launch/fuzz removes it.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

// fuzz_die: the harness itself cannot go on.
static inline void fuzz_die(const char *what) {
    perror(what);
    abort();
}

static inline void fuzz_put(int fd, const void *data, size_t n) {
    if (ftruncate(fd, 0) != 0) fuzz_die("ftruncate");
    for (size_t at = 0; at < n;) {
        ssize_t put = pwrite(fd, (const char *)data + at, n - at, (off_t)at);
        if (put <= 0) fuzz_die("pwrite");
        at += (size_t)put;
    }
}

// fuzz_path: the path of a file that holds exactly these bytes, until the next call.
static inline const char *fuzz_path(const void *data, size_t n) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        if (fd < 0) fuzz_die("memfd_create");
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    fuzz_put(fd, data, n);
    return path;
}

// fuzz_folder: a folder of this program's own, made on the first call and removed at exit.
static char fuzz_folder_path[96];
static inline void fuzz_folder_remove(void) {
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s'", fuzz_folder_path);
    if (system(command) != 0) perror(fuzz_folder_path);
}
static inline const char *fuzz_folder(const char *program) {
    if (!fuzz_folder_path[0]) {
        snprintf(fuzz_folder_path, sizeof fuzz_folder_path, "/dev/shm/%s_XXXXXX", program);
        if (!mkdtemp(fuzz_folder_path)) fuzz_die(fuzz_folder_path);
        atexit(fuzz_folder_remove);
    }
    return fuzz_folder_path;
}

// A reader of numbers from the front of an input; what is missing reads as zero.
typedef struct FuzzInput {
    const uint8_t *p;
    size_t n;
} FuzzInput;

static inline uint64_t fuzz_take(FuzzInput *in, size_t bytes) {
    uint64_t v = 0;
    size_t n = bytes < in->n ? bytes : in->n;
    memcpy(&v, in->p, n);
    in->p += n;
    in->n -= n;
    return v;
}
