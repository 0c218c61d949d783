// fuzz_config.c - any bytes as a config file: refused with a code of ours, or accepted; what is accepted is dumped and
// read again, and must dump to the same text.
#include "fuzz_file.h"

#include "config.h"

// must: what config_dump wrote has to be accepted, and has to say the same again.
static void check_dump(const Config *c) {
    char *text = NULL, *again = NULL;
    Config *copy = NULL;
    if (config_dump(c, &text) != OK) abort();
    if (config_load(&copy, fuzz_path(text, strlen(text)), NULL, 0) != OK) abort();
    if (config_dump(copy, &again) != OK || strcmp(text, again) != 0) abort();
    config_free(copy);
    free(text);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Config *c = NULL;
    Err err = config_load(&c, fuzz_path(data, n), NULL, 0);
    if (err == OK) {
        for (int world = 1; world <= 8; world *= 2) {
            if (config_check_world(c, world) != OK) fail_clear();
        }
        check_dump(c);
        config_free(c);
    } else if (err != E_CONFIG || c) {
        abort();
    }
    fail_clear();
    // The same bytes as one --set argument.
    char *text = malloc(n + 1);
    if (!text) fuzz_die("malloc");
    memcpy(text, data, n);
    text[n] = '\0';
    const char *const sets[] = {text};
    c = NULL;
    err = config_load(&c, NULL, sets, 1);
    if (err == OK) config_free(c);
    else if (c) abort();
    fail_clear();
    free(text);
    return 0;
}
