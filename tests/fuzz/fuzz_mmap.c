// fuzz_mmap.c - in the fuzzers, mmap of a file for reading is a block of exactly its size on the heap, so that
// AddressSanitizer sees a read behind its end, which the rest of a mapped page would hide. The build renames the calls.
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void *mmap(void *addr, size_t n, int prot, int flags, int fd, off_t at) {
    if (addr || prot != PROT_READ || !(flags & MAP_PRIVATE) || n == 0) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    char *p = malloc(n);
    if (p && pread(fd, p, n, at) == (ssize_t)n) return p;
    free(p);
    return MAP_FAILED;
}

int munmap(void *p, size_t n) {
    (void)n;
    free(p);
    return 0;
}
