// fuzz_shard.c - token shards whose attributes, tables and chunks say anything: an HDF5 file that is whole, with
// contents taken from the input. Whatever is accepted can be read to its end without leaving it.
//
// Damage of HDF5's own structures is another subject (fuzz_shard_file.c).
#include "fuzz_file.h"

#include <hdf5.h>

#include "h5_file.h"
#include "h5_zstd.h"
#include "tokens.h"

static const char *const ints[] = {"version", "n_tokens", "n_docs",  "n_text_bytes", "vocab_size",
                                   "bos_id",  "eos_id",   "pad_id"};
static const char *const texts[] = {"format", "tokenizer_hash", "source_name", "split", "content_hash"};
static const char *const tables[] = {"doc_offsets", "doc_bytes", "doc_flags", "doc_hash", "chunk_hash"};

// small: a number that is mostly small, sometimes anything.
static int64_t small(FuzzInput *in) {
    uint8_t kind = (uint8_t)fuzz_take(in, 1);
    return kind < 200 ? kind % 20 : (int64_t)fuzz_take(in, 8);
}

static void put_attributes(int64_t file, const char *path, FuzzInput *in, int64_t n, int64_t docs) {
    uint64_t odd = fuzz_take(in, 2); // which attributes are not as they should be
    const int64_t right[] = {1, n, docs, 100, 512, 0, 1, -1};
    for (int i = 0; i < 8; i++) {
        if (h5_set_int(file, path, "/", ints[i], odd >> i & 1 ? small(in) : right[i]) != OK) fail_clear();
    }
    const char *const good[] = {"moe-tokens", "0123456789abcdef0123456789abcdef", "a", "train",
                                "0123456789abcdef0123456789abcdef"};
    for (int i = 0; i < 5; i++) {
        char text[256] = "";
        size_t k = odd >> (8 + i) & 1 ? fuzz_take(in, 1) : 0;
        for (size_t j = 0; j < k; j++) text[j] = (char)(1 + fuzz_take(in, 1) % 255);
        if (h5_set_text(file, path, "/", texts[i], k ? text : good[i]) != OK) fail_clear();
    }
}

static void put_table(hid_t file, const char *name, FuzzInput *in, int64_t right) {
    uint64_t v[64] = {0};
    uint8_t odd = (uint8_t)fuzz_take(in, 1);
    hsize_t n = (hsize_t)(odd & 1 ? fuzz_take(in, 1) % 64 : (uint64_t)right);
    for (hsize_t i = 0; i < n; i++) v[i] = odd & 2 ? (uint64_t)small(in) : odd & 4 ? fuzz_take(in, 8) : i;
    hid_t space = H5Screate_simple(1, &n, NULL);
    hid_t type = odd & 8 ? H5T_STD_I16LE : H5T_STD_U64LE;
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (set >= 0 && n > 0) H5Dwrite(set, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, v);
    if (set >= 0) H5Dclose(set);
    H5Sclose(space);
}

// put_tokens: chunks of 16 or so tokens, written as they should be; then some are replaced by any bytes.
static void put_tokens(hid_t file, FuzzInput *in, int64_t n) {
    uint8_t odd = (uint8_t)fuzz_take(in, 1);
    hsize_t dims = (hsize_t)n, max = H5S_UNLIMITED, chunk = odd & 1 ? 1 + fuzz_take(in, 1) : 16;
    unsigned level = 3;
    hid_t create = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, &dims, &max);
    H5Pset_chunk(create, 1, &chunk);
    if (!(odd & 2)) H5Pset_filter(create, H5_ZSTD_FILTER, H5Z_FLAG_MANDATORY, 1, &level);
    hid_t type = odd & 4 ? H5T_STD_U32LE : odd & 8 ? H5T_STD_I64LE : H5T_STD_U16LE;
    hid_t set = H5Dcreate2(file, "tokens", type, space, H5P_DEFAULT, create, H5P_DEFAULT);
    uint16_t ids[128] = {0};
    for (int64_t i = 0; i < n; i++) ids[i] = (uint16_t)fuzz_take(in, 1);
    if (set >= 0 && n > 0 && !(odd & 16)) H5Dwrite(set, H5T_NATIVE_UINT16, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids);
    for (hsize_t at = 0; set >= 0 && at < dims; at += chunk) {
        uint8_t how = (uint8_t)fuzz_take(in, 1), raw[256] = {0};
        if (!(how & 1)) continue;
        size_t size = fuzz_take(in, 1);
        for (size_t i = 0; i < size; i++) raw[i] = (uint8_t)fuzz_take(in, 1);
        H5Dwrite_chunk(set, H5P_DEFAULT, how & 2 ? 1 : 0, &at, size, raw);
    }
    if (set >= 0) H5Dclose(set);
    H5Sclose(space);
    H5Pclose(create);
}

static void build(const char *path, FuzzInput *in) {
    int64_t file;
    h5_lock();
    if (h5_file_create(&file, path) != OK) abort();
    int64_t n = (int64_t)(fuzz_take(in, 1) % 100), docs = (int64_t)(fuzz_take(in, 1) % 8);
    put_attributes(file, path, in, n, docs);
    put_tokens(file, in, n);
    for (int i = 0; i < 5; i++) put_table(file, tables[i], in, i < 2 ? docs + 1 : i < 4 ? docs : (n + 15) / 16);
    if (h5_file_close(&file, path, true, false) != OK) abort();
    h5_unlock();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static char path[160];
    static int32_t out[256];
    snprintf(path, sizeof path, "%s/a.h5", fuzz_folder("fuzz_shard"));
    FuzzInput in = {data, n};
    build(path, &in);
    Tokens *t = NULL;
    const char *const paths[] = {path};
    Err err = tokens_open(&t, paths, 1);
    if (err != OK && t) abort();
    if (err == OK) {
        int64_t count = tokens_count(t), docs = tokens_docs(t);
        if (tokens_doc_start(t, docs) != count) abort();
        for (int64_t i = 0; i < docs && i < 64; i++) {
            if (tokens_doc_start(t, i) > tokens_doc_start(t, i + 1)) abort();
        }
        for (int64_t at = 0; at < count && at < 4096; at += 7) {
            int64_t doc = tokens_doc_of(t, at);
            if (doc < 0 || doc >= docs) abort();
            if (tokens_read(t, at, count - at < 256 ? count - at : 256, out) != OK) fail_clear();
        }
        if (tokens_read(t, count, 1, out) == OK) abort();
        fail_clear();
        if (tokens_verify(t) != OK) fail_clear();
    }
    tokens_close(&t);
    fail_clear();
    return 0;
}
