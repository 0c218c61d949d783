// test_tensorfile.c - hashes and HDF5 tensor files: round trips against plain arrays, flat rows of
// virtual tensors, damage, missing parts and a full disk.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hash.h"
#include "must.h"
#include "rng.h"
#include "scratch_dir.h"
#include "tensorfile.h"

// A file that HDF5 could not flush (the full disk) stays in its memory.
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libhdf5";
}

static void hash_vectors(void **state) {
    (void)state;
    // The published values of the empty input.
    assert_string_equal(hash_text(hash128("", 0)).s, "99aa06d3014798d86001c324468d497f");
    assert_true(hash64("", 0) == 0xef46db3751d8e999ull);
    char text[5000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (char)philox(1, 2, i).v[0];
    HashStream *s;
    MUST_OK(hash_stream_new(&s));
    for (size_t i = 0, n = 0; i < sizeof text; i += n, n = (n * 7 + 1) % 600) {
        if (n > sizeof text - i) n = sizeof text - i;
        hash_stream_add(s, text + i, n);
    }
    Hash128 whole = hash128(text, sizeof text), parsed;
    assert_true(hash_equal(hash_stream_end(s), whole));
    hash_stream_free(&s);
    assert_null(s);
    assert_true(hash_parse(hash_text(whole).s, &parsed));
    assert_true(hash_equal(parsed, whole));
    assert_false(hash_parse("12", &parsed));
    assert_false(hash_parse("99aa06d3014798d86001c324468d497g", &parsed));
    assert_false(hash_parse("99aa06d3014798d86001c324468d497f0", &parsed));
    scratch_write(at("bytes"), text, sizeof text);
    int64_t bytes;
    MUST_OK(hash_file(at("bytes"), &parsed, &bytes));
    assert_true(hash_equal(parsed, whole));
    assert_int_equal(bytes, sizeof text);
    assert_int_equal(hash_file(at("nothing"), &parsed, NULL), E_INPUT);
    assert_non_null(strstr(fail_message(), "nothing"));
}

static void fill(void *p, size_t n, uint64_t stream) {
    uint8_t *b = p;
    for (size_t i = 0; i < n; i++)
        b[i] = (uint8_t)(philox(7, stream, i / 8).v[i / 4 % 2] >> 8 * (i % 4));
}

static void round_trips(void **state) {
    (void)state;
    static const DType types[] = {DT_F32, DT_BF16, DT_F64, DT_I32, DT_I64,
                                  DT_U8,  DT_U16,  DT_U32, DT_U64};
    static const int64_t shapes[][5] = {
        {0},       {1, 1000},   {2, 37, 65},   {3, 3, 50, 40}, {4, 2, 3, 5, 7},
        {2, 0, 8}, {1, 400000}, {2, 3, 300001}};
    const int ntypes = 9, nshapes = 8;
    TensorFile *f;
    char name[64];
    MUST_OK(tensorfile_create(&f, at("a.h5")));
    uint8_t *data = malloc(8 * 900003), *back = malloc(8 * 900003);
    for (int t = 0; t < ntypes; t++) {
        for (int s = 0; s < nshapes; s++) {
            size_t n = dtype_bytes(types[t]);
            for (int i = 0; i < shapes[s][0]; i++) n *= (size_t)shapes[s][1 + i];
            fill(data, n, (uint64_t)(100 * t + s));
            snprintf(name, sizeof name, "%s%d", s % 2 ? "group/x." : "y.", t * 10 + s);
            MUST_OK(tensorfile_write(f, name, types[t], (int)shapes[s][0], shapes[s] + 1, data));
        }
    }
    assert_int_equal(tensorfile_write(f, "y.0", DT_F32, 0, NULL, data), E_INTERNAL); // twice
    MUST_OK(tensorfile_close(&f, true));
    assert_null(f);
    MUST_OK(tensorfile_open(&f, at("a.h5")));
    TensorInfo *list;
    int64_t count;
    MUST_OK(tensorfile_list(f, &list, &count));
    assert_int_equal(count, ntypes * nshapes);
    free(list);
    for (int t = 0; t < ntypes; t++) {
        for (int s = 0; s < nshapes; s++) {
            int64_t elements = 1;
            TensorInfo info;
            for (int i = 0; i < shapes[s][0]; i++) elements *= shapes[s][1 + i];
            size_t n = (size_t)elements * dtype_bytes(types[t]);
            fill(data, n, (uint64_t)(100 * t + s));
            snprintf(name, sizeof name, "%s%d", s % 2 ? "group/x." : "y.", t * 10 + s);
            MUST_OK(tensorfile_info(f, name, &info));
            assert_int_equal(info.dtype, types[t]);
            assert_int_equal(info.ndim, shapes[s][0]);
            assert_memory_equal(info.shape, shapes[s] + 1, (size_t)info.ndim * 8);
            assert_int_equal(info.rows * info.cols, elements);
            MUST_OK(tensorfile_read(f, name, types[t], elements, back));
            if (n) assert_memory_equal(back, data, n);
            for (int r = 0; r < 6 && info.rows > 0; r++) { // row ranges
                int64_t first = philox(1, (uint64_t)s, (uint64_t)r).v[0] % info.rows;
                int64_t rows = philox(2, (uint64_t)s, (uint64_t)r).v[0] % (info.rows - first + 1);
                size_t row = (size_t)info.cols * dtype_bytes(types[t]);
                MUST_OK(tensorfile_read_rows(f, name, types[t], first, rows, back));
                if (rows) assert_memory_equal(back, data + (size_t)first * row, (size_t)rows * row);
            }
            assert_int_equal(tensorfile_read_rows(f, name, types[t], 1, info.rows, back), E_INPUT);
            assert_int_equal(tensorfile_read(f, name, types[t], elements + 1, back), E_INPUT);
        }
    }
    assert_int_equal(tensorfile_read(f, "y.0", DT_I32, 1, back), E_INPUT);
    assert_non_null(strstr(fail_message(), "f32"));
    assert_int_equal(tensorfile_read(f, "absent", DT_I32, 1, back), E_INPUT);
    assert_true(tensorfile_has(f, "group/x.1"));
    assert_false(tensorfile_has(f, "group/x.2"));
    assert_false(tensorfile_has(f, "nogroup/x.2"));
    MUST_OK(tensorfile_close(&f, false));
    free(data);
    free(back);
}

static void rows_written_in_parts(void **state) {
    (void)state;
    enum { E = 4, N = 50, K = 33 };
    static float whole[E * N * K], back[E * N * K];
    const int64_t shape[] = {E, N, K}, cuts[] = {0, 7, 60, 61, 200};
    fill(whole, sizeof whole, 5);
    TensorFile *f;
    MUST_OK(tensorfile_create(&f, at("parts.h5")));
    MUST_OK(tensorfile_declare(f, "w", DT_F32, 3, shape));
    for (int i = 3; i >= 0; i--) {
        MUST_OK(tensorfile_write_rows(f, "w", cuts[i], cuts[i + 1] - cuts[i], whole + cuts[i] * K));
    }
    assert_int_equal(tensorfile_write_rows(f, "w", 199, 2, whole), E_INTERNAL);
    MUST_OK(tensorfile_close(&f, false));
    MUST_OK(tensorfile_open(&f, at("parts.h5")));
    MUST_OK(tensorfile_read(f, "w", DT_F32, E * N * K, back));
    assert_memory_equal(back, whole, sizeof whole);
    MUST_OK(tensorfile_close(&f, false));
}

static void attributes(void **state) {
    (void)state;
    TensorFile *f;
    const int64_t shape[] = {3};
    const float x[] = {1, 2, 3};
    char text[32];
    int64_t i;
    double d;
    MUST_OK(tensorfile_create(&f, at("attr.h5")));
    MUST_OK(tensorfile_write(f, "x", DT_F32, 1, shape, x));
    MUST_OK(tensorfile_set_text(f, NULL, "name", "first"));
    MUST_OK(tensorfile_set_text(f, NULL, "name", "the second text"));
    MUST_OK(tensorfile_set_text(f, NULL, "empty", ""));
    MUST_OK(tensorfile_set_int(f, NULL, "step", INT64_MIN + 5));
    MUST_OK(tensorfile_set_double(f, "x", "scale", 0.1));
    MUST_OK(tensorfile_close(&f, false));
    MUST_OK(tensorfile_open(&f, at("attr.h5")));
    MUST_OK(tensorfile_get_text(f, NULL, "name", text, sizeof text));
    assert_string_equal(text, "the second text");
    MUST_OK(tensorfile_get_text(f, NULL, "empty", text, sizeof text));
    assert_string_equal(text, "");
    MUST_OK(tensorfile_get_int(f, NULL, "step", &i));
    assert_true(i == INT64_MIN + 5);
    MUST_OK(tensorfile_get_double(f, "x", "scale", &d));
    assert_true(d == 0.1);
    assert_int_equal(tensorfile_get_text(f, NULL, "name", text, 15), E_INPUT);
    MUST_OK(tensorfile_get_text(f, NULL, "name", text, 16));
    assert_int_equal(tensorfile_get_int(f, NULL, "name", &i), E_INPUT);
    assert_int_equal(tensorfile_get_text(f, NULL, "step", text, sizeof text), E_INPUT);
    assert_int_equal(tensorfile_get_double(f, "x", "absent", &d), E_INPUT);
    assert_non_null(strstr(fail_message(), "absent"));
    MUST_OK(tensorfile_close(&f, false));
}

// Cut rows of a tensor at random, spread the pieces over three shard files, read flat rows back.
static void virtual_one(int ndim, const int64_t *shape, DType t, uint64_t seed) {
    int64_t cols = ndim > 1 ? shape[ndim - 1] : 1, rows = 1;
    for (int i = 0; i < (ndim > 1 ? ndim - 1 : ndim); i++) rows *= shape[i];
    size_t row = (size_t)cols * dtype_bytes(t);
    uint8_t *whole = malloc((size_t)rows * row), *back = malloc((size_t)rows * row);
    fill(whole, (size_t)rows * row, seed);
    static const char *files[] = {"s0.h5", "s1.h5", "s2.h5"};
    TensorFile *shard[3], *f;
    char sub[128], names[16][16];
    snprintf(sub, sizeof sub, "%s/tmp", scratch_dir);
    mkdir(sub, 0700);
    for (int i = 0; i < 3; i++) {
        snprintf(sub, sizeof sub, "tmp/%s", files[i]);
        MUST_OK(tensorfile_create(&shard[i], at(sub)));
    }
    TensorPiece pieces[16];
    int n = 0;
    for (int64_t first = 0; first < rows; n++) {
        int64_t len = 1 + philox(seed, 3, (uint64_t)n).v[0] % (uint64_t)(rows / 4 + 1);
        if (first + len > rows || n == 15) len = rows - first;
        int64_t piece_shape[] = {len, cols};
        snprintf(names[n], sizeof names[n], "w/%d", n);
        MUST_OK(tensorfile_write(shard[n % 3], names[n], t, 2, piece_shape,
                                 whole + (size_t)first * row));
        pieces[n] = (TensorPiece){files[n % 3], names[n], first, len};
        first += len;
    }
    for (int i = 0; i < 3; i++) MUST_OK(tensorfile_close(&shard[i], false));
    MUST_OK(tensorfile_create(&f, at("tmp/index.h5")));
    MUST_OK(tensorfile_virtual(f, "w", t, ndim, shape, pieces, n));
    if (n > 1) {
        assert_int_equal(tensorfile_virtual(f, "bad", t, ndim, shape, pieces, n - 1), E_INTERNAL);
        assert_int_equal(tensorfile_virtual(f, "bad", t, ndim, shape, pieces + 1, n - 1),
                         E_INTERNAL);
    }
    MUST_OK(tensorfile_close(&f, true));
    MUST_OK(tensorfile_sync_folder(at("tmp")));
    char to[128];
    snprintf(to, sizeof to, "%s/done%d", scratch_dir,
             (int)seed); // as a checkpoint appears: by a rename
    assert_int_equal(rename(at("tmp"), to), 0);
    char index[160];
    snprintf(index, sizeof index, "%s/index.h5", to);
    MUST_OK(tensorfile_open(&f, index));
    TensorInfo info;
    MUST_OK(tensorfile_info(f, "w", &info));
    assert_true(info.is_virtual);
    assert_int_equal(info.dtype, t);
    assert_int_equal(info.rows, rows);
    MUST_OK(tensorfile_read(f, "w", t, rows * cols, back));
    assert_memory_equal(back, whole, (size_t)rows * row);
    for (int r = 0; r < 20; r++) {
        int64_t first = philox(seed, 4, (uint64_t)r).v[0] % rows;
        int64_t len = philox(seed, 5, (uint64_t)r).v[0] % (rows - first + 1);
        MUST_OK(tensorfile_read_rows(f, "w", t, first, len, back));
        if (len) assert_memory_equal(back, whole + (size_t)first * row, (size_t)len * row);
    }
    MUST_OK(tensorfile_close(&f, false));
    // A missing shard is an error, not zeros.
    snprintf(index, sizeof index, "%s/s0.h5", to);
    assert_int_equal(unlink(index), 0);
    snprintf(index, sizeof index, "%s/index.h5", to);
    MUST_OK(tensorfile_open(&f, index));
    assert_int_equal(tensorfile_read(f, "w", t, rows * cols, back), E_INPUT);
    assert_non_null(strstr(fail_message(), "s0.h5"));
    MUST_OK(tensorfile_close(&f, false));
    free(whole);
    free(back);
}

static void virtual_tensors(void **state) {
    (void)state;
    virtual_one(3, (const int64_t[]){5, 24, 16}, DT_F32, 1);
    virtual_one(3, (const int64_t[]){8, 3, 130}, DT_BF16, 2);
    virtual_one(2, (const int64_t[]){100, 40}, DT_BF16, 3);
    virtual_one(1, (const int64_t[]){77}, DT_F32, 4);
    virtual_one(2, (const int64_t[]){1, 5}, DT_F64, 5);
}

static void damage(void **state) {
    (void)state;
    static float x[40000], back[40000];
    const int64_t shape[] = {200, 200};
    for (int i = 0; i < 40000; i++) x[i] = (float)rng_normal(1, 1, (uint64_t)i);
    TensorFile *f;
    MUST_OK(tensorfile_create(&f, at("whole.h5")));
    MUST_OK(tensorfile_write(f, "x", DT_F32, 2, shape, x));
    MUST_OK(tensorfile_close(&f, false));
    struct stat st;
    stat(at("whole.h5"), &st);
    size_t size = (size_t)st.st_size;
    char *image = malloc(size);
    FILE *file = fopen(at("whole.h5"), "rb");
    assert_int_equal(fread(image, 1, size, file), size);
    fclose(file);
    int found = 0;
    for (int trial = 0; trial < 120; trial++) {
        char *copy = malloc(size);
        memcpy(copy, image, size);
        size_t n = size, where = philox(3, 1, (uint64_t)trial).v[0] % size;
        if (trial % 4 == 0)
            n = where; // cut
        else
            copy[where] ^= (char)(1 << trial % 8);
        scratch_write(at("bad.h5"), copy, n);
        free(copy);
        Err err = tensorfile_open(&f, at("bad.h5"));
        if (err == OK) {
            err = tensorfile_read(f, "x", DT_F32, 40000, back);
            MUST_OK(tensorfile_close(&f, false));
        }
        // Either the damage is reported with the file's name, or it hit bytes that do not matter.
        if (err == OK)
            assert_memory_equal(back, x, sizeof x);
        else
            assert_non_null(strstr(fail_message(), "bad.h5"));
        if (err != OK) assert_int_equal(err, E_INPUT);
        found += err != OK;
    }
    assert_true(found > 100);
    assert_int_equal(tensorfile_open(&f, at("absent.h5")), E_INPUT);
    assert_null(f);
    free(image);
}

static void disk_full(void **state) {
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    static uint8_t x[600000];
    fill(x, sizeof x, 9);
    // Limits from "nothing fits" to "only the last metadata does not".
    int64_t size = 0;
    for (int trial = -1; trial < 24; trial++) {
        small = old;
        // The last kilobytes are where only flush or close can fail.
        if (trial >= 0)
            small.rlim_cur =
                trial < 12 ? (rlim_t)(trial * size / 12) : (rlim_t)(size - 1 - (trial - 12) * 97);
        setrlimit(RLIMIT_FSIZE, &small);
        TensorFile *f = NULL;
        Err err = tensorfile_create(&f, at("full.h5"));
        for (int i = 0; i < 6 && err == OK; i++) {
            char name[8];
            const int64_t shape[] = {1, 100000};
            snprintf(name, sizeof name, "x%d", i);
            err = tensorfile_write(f, name, DT_U8, 2, shape, x + i * 100000);
        }
        if (err == OK) err = tensorfile_set_text(f, NULL, "note", "some text");
        if (err == OK) err = tensorfile_close(&f, true);
        setrlimit(RLIMIT_FSIZE, &old);
        if (trial < 0) {
            MUST_OK(err);
            struct stat st;
            stat(at("full.h5"), &st);
            size = st.st_size;
            assert_true(size > 500000);
        } else {
            assert_int_equal(err, E_OUTPUT);
            assert_non_null(strstr(fail_message(), "full.h5"));
            assert_non_null(strstr(fail_message(), "File too large"));
        }
        tensorfile_drop(&f);
        unlink(at("full.h5"));
    }
    assert_int_equal(tensorfile_create(&(TensorFile *){NULL}, at("no/such/dir.h5")), E_OUTPUT);
    // The library still works.
    rows_written_in_parts(state);
}

static void *worker(void *arg) {
    int id = (int)(intptr_t)arg;
    char name[32];
    static __thread float x[20000], back[20000];
    const int64_t shape[] = {20000};
    for (int round = 0; round < 10; round++) {
        TensorFile *f;
        snprintf(name, sizeof name, "thread%d.h5", id);
        char path[128];
        snprintf(path, sizeof path, "%s/%s", scratch_dir, name);
        fill(x, sizeof x, (uint64_t)(id * 100 + round));
        if (tensorfile_create(&f, path) || tensorfile_write(f, "x", DT_F32, 1, shape, x) ||
            tensorfile_close(&f, false) || tensorfile_open(&f, path) ||
            tensorfile_read(f, "x", DT_F32, 20000, back) || tensorfile_close(&f, false) ||
            memcmp(x, back, sizeof x) != 0) {
            return "failed";
        }
    }
    return NULL;
}

static void threads(void **state) {
    (void)state;
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, worker, (void *)(intptr_t)i);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(t[i], &result);
        assert_null(result);
    }
}

// Whatever bit is wrong in a file: it does not look like one that holds less.
static void nothing_goes_missing(void **state) {
    (void)state;
    TensorFile *f;
    const int64_t shape[] = {40};
    int64_t values[40] = {7}, n;
    MUST_OK(tensorfile_create(&f, at("whole.h5")));
    MUST_OK(tensorfile_write(f, "one", DT_I64, 1, shape, values));
    MUST_OK(tensorfile_write(f, "folder/two", DT_I64, 1, shape, values));
    MUST_OK(tensorfile_set_text(f, NULL, "format", "test"));
    MUST_OK(tensorfile_close(&f, false));
    FILE *in = fopen(at("whole.h5"), "rb");
    assert_non_null(in);
    static uint8_t whole[65536], bad[65536];
    size_t bytes = fread(whole, 1, sizeof whole, in);
    fclose(in);
    int refused = 0;
    for (size_t i = 0; i < bytes; i += 3) {
        memcpy(bad, whole, bytes);
        bad[i] ^= (uint8_t)(1 << (i % 8));
        scratch_write(at("bad.h5"), bad, bytes);
        TensorInfo *list = NULL;
        bool there = false;
        Err err = tensorfile_open(&f, at("bad.h5"));
        if (err == OK) err = tensorfile_list(f, &list, &n);
        if (err == OK) assert_int_equal(n, 2);
        if (err == OK) err = tensorfile_has_key(f, NULL, "format", &there);
        if (err == OK) assert_true(there);
        refused += err != OK;
        free(list);
        tensorfile_drop(&f);
    }
    assert_true(refused > 10);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hash_vectors),
        cmocka_unit_test(round_trips),
        cmocka_unit_test(rows_written_in_parts),
        cmocka_unit_test(attributes),
        cmocka_unit_test(virtual_tensors),
        cmocka_unit_test(damage),
        cmocka_unit_test(nothing_goes_missing),
        cmocka_unit_test(disk_full),
        cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
