// test_tokens.c - token shards: what is written is read back from any place by any thread; damage,
// full disks and shards that do not belong together are named.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "must.h"
#include "rng.h"
#include "scratch_dir.h"
#include "tensorfile.h"
#include "tokens.h"

// A file that HDF5 could not flush (the full disk) stays in its memory.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5";
}

enum { N_MAX = 200000, D_MAX = 2000 };
static int32_t ids[N_MAX];
static int64_t doc[D_MAX]; // starts

static TokenMeta meta_of(int64_t vocab) {
    TokenMeta m = {vocab, 0, 1, 2, "0123456789abcdef0123456789abcdef", "unit test", "train"};
    return m;
}

// n random tokens in documents of random length (some empty) -> ids, doc. Returns documents.
static int64_t make(int64_t n, int64_t vocab, uint64_t seed) {
    int64_t docs = 0;
    for (int64_t i = 0; i < n; i++)
        ids[i] = (int32_t)(philox(seed, 1, (uint64_t)i).v[0] % (uint64_t)vocab);
    for (int64_t a = 0; a < n; docs++) {
        doc[docs] = a;
        a += docs % 7 == 3 ? 0 : 1 + philox(seed, 2, (uint64_t)docs).v[0] % 1000;
    }
    doc[docs] = n;
    return docs;
}

static Err write_shard(const char *path, int64_t docs, int64_t vocab, int64_t index) {
    TokenMeta meta = meta_of(vocab);
    TokenWriter *w;
    Err err = token_writer_open(&w, path, &meta, index);
    for (int64_t d = 0; d < docs && err == OK; d++) {
        err = token_writer_add(w, ids + doc[d], doc[d + 1] - doc[d], 10 + d, (uint64_t)d * 77);
    }
    if (err == OK) err = token_writer_finish(&w, 0);
    token_writer_drop(&w);
    return err;
}

// A file that is being written, or was left over, beside `name`.
static bool has_partial(const char *name) {
    char pattern[256];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s.partial-*", at(name));
    bool is_found = glob(pattern, 0, NULL, &found) == 0;
    if (is_found) globfree(&found);
    return is_found;
}

static void check_stream(int64_t n, int64_t docs, int64_t vocab) {
    const char *path = at("s.h5");
    MUST_OK(write_shard(path, docs, vocab, 0));
    assert_false(has_partial("s.h5"));
    Tokens *t;
    MUST_OK(tokens_open(&t, &path, 1));
    assert_int_equal(tokens_count(t), n);
    assert_int_equal(tokens_docs(t), docs);
    assert_int_equal(tokens_text_bytes(t), docs * 10 + docs * (docs - 1) / 2);
    assert_int_equal(tokens_meta(t)->vocab_size, vocab);
    assert_int_equal(tokens_meta(t)->eos_id, 1);
    assert_string_equal(tokens_meta(t)->source_name, "unit test");
    static int32_t out[N_MAX];
    MUST_OK(tokens_read(t, 0, n, out));
    if (n) assert_memory_equal(out, ids, (size_t)n * 4);
    for (int r = 0; r < 50 && n > 0; r++) {
        int64_t first = philox(3, 3, (uint64_t)r).v[0] % n,
                len = philox(3, 3, (uint64_t)r).v[1] % 5000;
        if (len > n - first) len = n - first;
        MUST_OK(tokens_read(t, first, len, out));
        if (len) assert_memory_equal(out, ids + first, (size_t)len * 4);
        int64_t d = tokens_doc_of(t, first);
        assert_true(doc[d] <= first && first < doc[d + 1]);
    }
    for (int64_t d = 0; d <= docs; d++) assert_int_equal(tokens_doc_start(t, d), doc[d]);
    assert_int_equal(tokens_read(t, n, 1, out), E_INPUT);
    assert_int_equal(tokens_read(t, -1, 1, out), E_INPUT);
    MUST_OK(tokens_verify(t));
    tokens_close(&t);
    assert_null(t);
}

static void round_trips(void **state) {
    (void)state;
    check_stream(0, make(0, 100, 0), 100);
    check_stream(1, make(1, 100, 1), 100);
    check_stream(TOKEN_CHUNK, make(TOKEN_CHUNK, 65536, 2), 65536);
    check_stream(TOKEN_CHUNK + 1, make(TOKEN_CHUNK + 1, 65537, 3), 65537);
    check_stream(N_MAX, make(N_MAX, 129280, 4), 129280);
    check_stream(N_MAX - 5, make(N_MAX - 5, 512, 5), 512);
}

static void shard_header(void **state) {
    (void)state;
    // The layout as any HDF5 reader sees it.
    int64_t docs = make(40000, 1000, 6), v;
    char text[64];
    MUST_OK(write_shard(at("h.h5"), docs, 1000, 3));
    MUST_OK(tokens_set_shard_count(at("h.h5"), 4));
    TensorFile *f;
    MUST_OK(tensorfile_open(&f, at("h.h5")));
    TensorInfo info;
    MUST_OK(tensorfile_info(f, "tokens", &info));
    assert_int_equal(info.dtype, DT_U16);
    assert_int_equal(info.shape[0], 40000);
    static uint16_t raw[40000];
    MUST_OK(tensorfile_read(f, "tokens", DT_U16, 40000, raw)); // through the HDF5 filter
    for (int i = 0; i < 40000; i++) assert_int_equal(raw[i], ids[i]);
    static uint64_t table[D_MAX];
    MUST_OK(tensorfile_read(f, "doc_offsets", DT_U64, docs + 1, table));
    assert_memory_equal(table, doc, (size_t)(docs + 1) * 8);
    MUST_OK(tensorfile_read(f, "doc_bytes", DT_U64, docs + 1, table));
    assert_int_equal(table[2], 21);
    MUST_OK(tensorfile_read(f, "doc_hash", DT_U64, docs, table));
    assert_int_equal(table[2], 154);
    MUST_OK(tensorfile_read(f, "chunk_hash", DT_U64, 3, table));
    assert_true(table[1] == hash64(raw + TOKEN_CHUNK, 2 * TOKEN_CHUNK));
    MUST_OK(tensorfile_get_text(f, NULL, "format", text, sizeof text));
    assert_string_equal(text, "moe-tokens");
    MUST_OK(tensorfile_get_int(f, NULL, "shard_index", &v));
    assert_int_equal(v, 3);
    MUST_OK(tensorfile_get_int(f, NULL, "shard_count", &v));
    assert_int_equal(v, 4);
    MUST_OK(tensorfile_close(&f, false));
}

static void several_shards(void **state) {
    (void)state;
    static int32_t all[3 * 50000], out[3 * 50000];
    const int64_t sizes[] = {50000, 0, 20001};
    int64_t total = 0, docs = 0;
    mkdir(at("many"), 0700);
    static const char *names[] = {"many/a-00000.h5", "many/a-00001.h5", "many/a-00002.h5"};
    for (int i = 0; i < 3; i++) {
        int64_t d = make(sizes[i], 300, (uint64_t)(10 + i));
        MUST_OK(write_shard(at(names[i]), d, 300, i));
        memcpy(all + total, ids, (size_t)sizes[i] * 4);
        total += sizes[i];
        docs += d;
    }
    FILE *other = fopen(at("many/notes.txt"), "w");
    fclose(other);
    const char *paths[] = {at("many"), at("many/a-0000?.h5")};
    char fingerprint[33];
    for (int i = 0; i < 2; i++) {
        Tokens *t;
        MUST_OK(tokens_open(&t, &paths[i], 1));
        assert_int_equal(tokens_shards(t), 3);
        assert_int_equal(tokens_count(t), total);
        assert_int_equal(tokens_docs(t), docs);
        MUST_OK(tokens_read(t, 0, total, out));
        assert_memory_equal(out, all, (size_t)total * 4);
        MUST_OK(tokens_read(t, 49990, 20, out));
        assert_memory_equal(out, all + 49990, 80);
        assert_int_equal(tokens_doc_start(t, tokens_doc_of(t, 50000)),
                         50000); // a shard begins a document
        assert_int_equal(tokens_doc_start(t, docs), total);
        if (i == 0)
            strcpy(fingerprint, tokens_fingerprint(t).s);
        else
            assert_string_equal(fingerprint, tokens_fingerprint(t).s);
        tokens_close(&t);
    }
    const char *swapped[] = {at(names[2]), at(names[0])};
    Tokens *t;
    MUST_OK(tokens_open(&t, swapped, 2));
    assert_string_not_equal(fingerprint, tokens_fingerprint(t).s);
    tokens_close(&t);
    int64_t d = make(100, 301, 1);
    MUST_OK(write_shard(at("many/b.h5"), d, 301, 0)); // another vocabulary
    assert_int_equal(tokens_open(&t, paths, 1), E_INPUT);
    assert_null(t);
    assert_non_null(strstr(fail_message(), "one tokenizer"));
}

static void bad_ids(void **state) {
    (void)state;
    TokenMeta meta = meta_of(100);
    TokenWriter *w;
    MUST_OK(token_writer_open(&w, at("bad.h5"), &meta, 0));
    assert_true(has_partial("bad.h5"));
    const int32_t high[] = {1, 100}, low[] = {-1};
    assert_int_equal(token_writer_add(w, high, 2, 1, 1), E_INPUT);
    assert_non_null(strstr(fail_message(), "100"));
    assert_int_equal(token_writer_add(w, low, 1, 1, 1), E_INPUT);
    token_writer_drop(&w);
    assert_false(has_partial("bad.h5"));
    assert_int_not_equal(access(at("bad.h5"), F_OK), 0);
}

static void damage(void **state) {
    (void)state;
    const int64_t n = 60000;
    int64_t docs = make(n, 512, 20);
    MUST_OK(write_shard(at("good.h5"), docs, 512, 0));
    struct stat st;
    stat(at("good.h5"), &st);
    size_t size = (size_t)st.st_size;
    uint8_t *image = malloc(size);
    FILE *f = fopen(at("good.h5"), "rb");
    assert_int_equal(fread(image, 1, size, f), size);
    fclose(f);
    static int32_t out[60000];
    int found = 0, in_chunks = 0;
    const char *bad = at("damaged.h5");
    for (int trial = 0; trial < 200; trial++) {
        size_t len = size, where = philox(21, 1, (uint64_t)trial).v[0] % size;
        uint8_t old = image[where];
        if (trial % 4 == 0)
            len = where;
        else
            image[where] ^= (uint8_t)(1 << trial % 8);
        scratch_write(bad, image, len);
        image[where] = old;
        Tokens *t;
        Err err = tokens_open(&t, &bad, 1);
        bool is_open = err == OK;
        if (is_open) err = tokens_read(t, 0, n, out);
        if (err == OK)
            assert_memory_equal(out, ids, sizeof out); // never wrong tokens
        else {
            assert_int_equal(err, E_INPUT);
            assert_non_null(strstr(fail_message(), "damaged.h5"));
            found++;
            in_chunks += is_open && strstr(fail_message(), "chunk ") != NULL;
        }
        tokens_close(&t);
    }
    assert_true(found > 150 && in_chunks > 50);
    free(image);
    const char *text = scratch_write_text(at("text.h5"), "not HDF5 at all");
    Tokens *t;
    assert_int_equal(tokens_open(&t, &text, 1), E_INPUT);
    const char *absent = at("absent.h5"), *empty = at("no*match.h5");
    assert_int_equal(tokens_open(&t, &absent, 1), E_INPUT);
    assert_int_equal(tokens_open(&t, &empty, 1), E_INPUT);
    // Another kind of HDF5 file.
    TensorFile *other;
    const char *tensors = at("tensors.h5");
    MUST_OK(tensorfile_create(&other, tensors));
    MUST_OK(tensorfile_close(&other, false));
    assert_int_equal(tokens_open(&t, &tensors, 1), E_INPUT);
    assert_non_null(strstr(fail_message(), "format"));
}

static void wrong_hash_is_named(void **state) {
    (void)state;
    // A frame that is sound but not the one that was hashed: two constant chunks pack to frames of
    // equal size; write the first over the second.
    for (int i = 0; i < 2 * TOKEN_CHUNK; i++) ids[i] = i < TOKEN_CHUNK ? 3 : 4;
    int64_t docs = 1;
    doc[0] = 0;
    doc[1] = 2 * TOKEN_CHUNK;
    const char *path = at("swap.h5");
    MUST_OK(write_shard(path, docs, 512, 0));
    struct stat st;
    stat(path, &st);
    uint8_t *image = malloc((size_t)st.st_size);
    FILE *f = fopen(path, "rb");
    assert_int_equal(fread(image, 1, (size_t)st.st_size, f), st.st_size);
    fclose(f);
    size_t frame[2] = {0, 0}, n = 0; // frames begin with the zstd magic number
    for (size_t i = 0; i + 4 < (size_t)st.st_size && n < 2; i++) {
        if (memcmp(image + i, "\x28\xb5\x2f\xfd", 4) == 0) frame[n++] = i;
    }
    assert_int_equal(n, 2);
    assert_true(frame[1] - frame[0] < 64);
    memcpy(image + frame[1], image + frame[0], frame[1] - frame[0]);
    scratch_write(path, image, (size_t)st.st_size);
    free(image);
    Tokens *t;
    static int32_t out[2 * TOKEN_CHUNK];
    MUST_OK(tokens_open(&t, &path, 1));
    MUST_OK(tokens_read(t, 0, TOKEN_CHUNK, out));
    assert_int_equal(tokens_read(t, TOKEN_CHUNK, 1, out), E_INPUT);
    assert_non_null(strstr(fail_message(), "chunk 1"));
    assert_non_null(strstr(fail_message(), "expected "));
    assert_int_equal(tokens_verify(t), E_INPUT);
    tokens_close(&t);
}

static void disk_full(void **state) {
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    int64_t docs = make(100000, 512, 40);
    MUST_OK(write_shard(at("fits.h5"), docs, 512, 0));
    struct stat st;
    stat(at("fits.h5"), &st);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    for (int trial = 0; trial < 12; trial++) {
        small = old;
        small.rlim_cur = trial < 8 ? (rlim_t)(trial * st.st_size / 8)
                                   : (rlim_t)(st.st_size - 1 - (trial - 8) * 300);
        setrlimit(RLIMIT_FSIZE, &small);
        Err err = write_shard(at("full.h5"), docs, 512, 0);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(err, E_OUTPUT);
        assert_non_null(strstr(fail_message(), "full.h5"));
        assert_int_not_equal(access(at("full.h5"), F_OK), 0);
        assert_false(has_partial("full.h5"));
    }
    MUST_OK(write_shard(at("full.h5"), docs, 512, 0));
}

static void *reader(void *arg) {
    Tokens *t = arg;
    int32_t out[3000];
    uint64_t me = (uint64_t)(uintptr_t)&out;
    for (uint64_t r = 0; r < 1500; r++) {
        int64_t first = philox(me, 1, r).v[0] % (N_MAX - 3000);
        if (tokens_read(t, first, 3000, out) != OK || memcmp(out, ids + first, sizeof out) != 0)
            return "bad";
    }
    return NULL;
}

static void threads(void **state) {
    (void)state;
    const char *path = at("threads.h5");
    MUST_OK(write_shard(path, make(N_MAX, 5000, 50), 5000, 0));
    Tokens *t;
    MUST_OK(tokens_open(&t, &path, 1));
    pthread_t p[4];
    for (int i = 0; i < 4; i++) pthread_create(&p[i], NULL, reader, t);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(p[i], &result);
        assert_null(result);
    }
    tokens_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),    cmocka_unit_test(shard_header),
        cmocka_unit_test(several_shards), cmocka_unit_test(bad_ids),
        cmocka_unit_test(damage),         cmocka_unit_test(wrong_hash_is_named),
        cmocka_unit_test(disk_full),      cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
