// fuzz_tokenizer.c - any bytes as a tokenizer.json; one that is accepted encodes a text and gives it back.
#include "fuzz_file.h"

#include "tokenizer.h"

static const char sample[] =
    "It is a truth universally acknowledged, 1813: na\xc3\xafve <|begin|> \xf0\x9f\x99\x82 \xff\n\n  x";

static void use(const Tokenizer *t) {
    TokenIds ids = {0};
    char *text = NULL;
    size_t n = 0;
    int size = tokenizer_vocab_size(t);
    if (tokenizer_append(t, sample, sizeof sample - 1, &ids) == OK) {
        for (int64_t i = 0; i < ids.n; i++) {
            if (ids.p[i] < 0 || ids.p[i] >= size) abort();
        }
        if (tokenizer_decode(t, ids.p, ids.n, &text, &n) != OK) abort();
    }
    free(text);
    free(ids.p);
    const int32_t bad[] = {-1, size};
    for (int i = 0; i < 2; i++) {
        text = NULL;
        if (tokenizer_decode(t, bad + i, 1, &text, &n) == OK) abort();
        if (tokenizer_bytes(t, bad[i], &n)) abort();
    }
    if (tokenizer_bos(t) >= size || tokenizer_eos(t) >= size || tokenizer_pad(t) >= size) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Tokenizer *t = NULL;
    Err err = tokenizer_load(&t, fuzz_path(data, n));
    if (err == OK) use(t);
    else if (err != E_INPUT || t) abort();
    tokenizer_free(&t);
    fail_clear();
    return 0;
}
