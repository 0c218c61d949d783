// fuzz_manifest.c - any bytes as the manifest.json of a checkpoint: as they are, and once more with the hash of its own
// made right, so that what lies behind that check is reached too.
#include "fuzz_file.h"

#include <fcntl.h>
#include <jansson.h>

#include "manifest.h"

static void put(const char *dir, const void *data, size_t n) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, MANIFEST_NAME);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) fuzz_die(path);
    fuzz_put(fd, data, n);
    close(fd);
}

static void read_it(const char *dir) {
    Manifest *m = NULL;
    Err err = manifest_read(&m, dir);
    (void)manifest_peek_serial(dir, 2);
    if (err == OK) {
        for (int64_t i = 0; i < m->ntensors; i++) {
            if (manifest_rows(m, i) <= 0 || manifest_cols(m, i) <= 0) abort();
            if (manifest_tensor(m, m->tensors[i].name) < 0) abort();
        }
        // The files it names are not there, or have another size: never accepted, unless it names none.
        if (manifest_sizes(m, dir) == OK && m->nfiles > 0) abort();
    } else if (err != E_INPUT || m) {
        abort();
    }
    manifest_free(&m);
    fail_clear();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    const char *dir = fuzz_folder("fuzz_manifest");
    put(dir, data, n);
    read_it(dir);
    json_t *root = json_loadb((const char *)data, n, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(root)) {
        json_object_del(root, "manifest_hash");
        char *text = json_dumps(root, JSON_COMPACT);
        if (text) {
            json_object_set_new(root, "manifest_hash", json_string(hash_text(hash128(text, strlen(text))).s));
            free(text);
            text = json_dumps(root, JSON_COMPACT);
            if (text) put(dir, text, strlen(text));
            free(text);
            read_it(dir);
        }
    }
    json_decref(root);
    return 0;
}
