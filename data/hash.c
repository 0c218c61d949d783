// hash.c - XXH3-128 by libxxhash, and its text form.
#include "hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

struct HashStream {
    XXH3_state_t *state;
};

Hash128 hash128(const void *p, size_t n) {
    XXH128_hash_t h = XXH3_128bits(p, n);
    return (Hash128){h.low64, h.high64};
}

uint64_t hash64(const void *p, size_t n) {
    return XXH64(p, n, 0);
}

uint64_t hash64_seeded(const void *p, size_t n, uint64_t seed) {
    return XXH3_64bits_withSeed(p, n, seed);
}

bool hash_equal(Hash128 a, Hash128 b) {
    return a.lo == b.lo && a.hi == b.hi;
}

HashText hash_text(Hash128 h) {
    HashText t;
    snprintf(t.s, sizeof t.s, "%016llx%016llx", (unsigned long long)h.hi, (unsigned long long)h.lo);
    return t;
}

bool hash_parse(const char *text, Hash128 *out) {
    uint64_t part[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) return false;
        part[i / 16] = part[i / 16] << 4 | (uint64_t)digit;
    }
    if (text[32] != '\0') return false;
    *out = (Hash128){part[1], part[0]};
    return true;
}

Err hash_stream_new(HashStream **s) {
    *s = calloc(1, sizeof **s);
    CHECK(*s, E_INTERNAL, "hash: out of memory");
    (*s)->state = XXH3_createState(); // aligned as XXH3 needs it
    if (!(*s)->state || XXH3_128bits_reset((*s)->state) != XXH_OK) {
        hash_stream_free(s);
        FAIL(E_INTERNAL, "hash: out of memory");
    }
    return OK;
}

void hash_stream_add(HashStream *s, const void *p, size_t n) {
    if (n > 0) XXH3_128bits_update(s->state, p, n);
}

Hash128 hash_stream_end(const HashStream *s) {
    XXH128_hash_t h = XXH3_128bits_digest(s->state);
    return (Hash128){h.low64, h.high64};
}

void hash_stream_free(HashStream **s) {
    if (!*s) return;
    XXH3_freeState((*s)->state);
    free(*s);
    *s = NULL;
}

Err hash_file(const char *path, Hash128 *out, int64_t *bytes) {
    HashStream *s = NULL;
    Err err = OK;
    char *block = NULL;
    int64_t total = 0;
    const size_t cap = 1 << 20;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    block = malloc(cap);
    CHECK_OR(block, done, E_INTERNAL, "hash: out of memory");
    TRY_OR(hash_stream_new(&s), done);
    for (;;) {
        ssize_t n = read(fd, block, cap);
        if (n < 0 && errno == EINTR) continue;
        CHECK_OR(n >= 0, done, E_INPUT, "%s: cannot read: %s", path, strerror(errno));
        if (n == 0) break;
        hash_stream_add(s, block, (size_t)n);
        total += n;
    }
    *out = hash_stream_end(s);
    if (bytes) *bytes = total;
done:
    hash_stream_free(&s);
    free(block);
    close(fd);
    return err;
}
