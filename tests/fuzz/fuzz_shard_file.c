// fuzz_shard_file.c - any bytes as a token shard: what our reader and libhdf5 make of a file whose structure is
// damaged.
#include "fuzz_file.h"

#include "tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int32_t out[64];
    Tokens *t = NULL;
    const char *const paths[] = {fuzz_path(data, n)};
    Err err = tokens_open(&t, paths, 1);
    if (err != OK && t) abort();
    if (err == OK && tokens_count(t) >= 64 && tokens_read(t, 0, 64, out) != OK) fail_clear();
    if (err == OK && tokens_verify(t) != OK) fail_clear();
    tokens_close(&t);
    fail_clear();
    return 0;
}
