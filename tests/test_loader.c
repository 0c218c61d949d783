// test_loader.c - batches against windows cut by hand out of plain arrays; evaluation covers every
// token once; ids the model does not have, short data and other tokenizers are refused.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <hdf5.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "loader.h"
#include "must.h"
#include "rng.h"
#include "sampler.h"
#include "scratch_dir.h"
#include "tokens.h"

static char path[3][96]; // shards a, b, c

enum { N = 40000, SEQ = 60, DEPTH = 2, WIDTH = SEQ + 1 + DEPTH };
static int32_t ids[2][N];       // of a and b
static int32_t doc_first[2][N]; // first token of the document of each token
static const int64_t size_of[2] = {N, 777};

static void write_shard(const char *file, const int32_t *v, int64_t n, int32_t *first,
                        const char *hash) {
    TokenMeta meta = {600, 0, 1, 2, "", "test", "train"};
    snprintf(meta.tokenizer_hash, sizeof meta.tokenizer_hash, "%s", hash);
    TokenWriter *w;
    MUST_OK(token_writer_open(&w, file, &meta, 0));
    for (int64_t a = 0, d = 0; a < n; d++) {
        int64_t len = 1 + philox(5, (uint64_t)n, (uint64_t)d).v[0] % 90;
        if (a + len > n) len = n - a;
        MUST_OK(token_writer_add(w, v + a, len, 4 * len, 0));
        for (int64_t i = 0; i < len && first; i++) first[a + i] = (int32_t)a;
        a += len;
    }
    MUST_OK(token_writer_finish(&w, 1));
}

// claim_vocabulary: another number in a shard's attribute.
static void claim_vocabulary(const char *file, int64_t size) {
    hid_t f = H5Fopen(file, H5F_ACC_RDWR, H5P_DEFAULT), attribute = H5Aopen(f, "vocab_size", H5P_DEFAULT);
    assert_true(f >= 0 && H5Awrite(attribute, H5T_NATIVE_INT64, &size) >= 0);
    H5Aclose(attribute);
    H5Fclose(f);
}

static int setup(void **state) {
    if (scratch_setup(state) != 0) return -1;
    for (int k = 0; k < 2; k++) {
        for (uint64_t i = 0; i < N; i++)
            ids[k][i] = (int32_t)(philox(9, (uint64_t)k, i).v[0] % 600);
    }
    for (int k = 0; k < 3; k++) snprintf(path[k], sizeof path[k], "%s/%c.h5", scratch_dir, 'a' + k);
    write_shard(path[0], ids[0], size_of[0], doc_first[0], "same");
    write_shard(path[1], ids[1], size_of[1], doc_first[1], "same");
    write_shard(path[2], ids[1], 500, NULL, "another");
    return 0;
}

static LoaderSpec spec_of(const LoaderCorpus *c, int n) {
    return (LoaderSpec){.corpora = c,
                        .ncorpora = n,
                        .seq_len = SEQ,
                        .mtp_depth = DEPTH,
                        .vocab_size = 600,
                        .seed = 11};
}

static void check_docs(int k, int64_t at, int64_t n, const int32_t *doc_start) {
    for (int64_t p = 0; p < n; p++) {
        int64_t want = doc_first[k][at + p] - at;
        assert_int_equal(doc_start[p], want > 0 ? want : 0);
    }
}

static void batches(void **state) {
    (void)state;
    const LoaderCorpus corpora[] = {{path[0], 3}, {path[1], 1}};
    LoaderSpec spec = spec_of(corpora, 2);
    Loader *l;
    MUST_OK(loader_open(&l, &spec));
    Sampler s;
    const double weights[] = {3, 1};
    const int64_t windows[] = {sampler_windows(size_of[0], SEQ, DEPTH),
                               sampler_windows(size_of[1], SEQ, DEPTH)};
    MUST_OK(sampler_init(&s, 11, 2, weights, windows));
    assert_int_equal(loader_windows(l), windows[0] + windows[1]);
    enum { B = 900 };
    static int32_t all[B * WIDTH], part[B * WIDTH];
    static int32_t doc[B * SEQ];
    MUST_OK(loader_batch(l, 0, B, all, doc, NULL));
    int from_b = 0;
    for (int g = 0; g < B; g++) {
        Sample a = sampler_at(&s, g);
        from_b += a.corpus;
        assert_memory_equal(all + g * WIDTH, ids[a.corpus] + a.window * SEQ, WIDTH * 4);
        check_docs(a.corpus, a.window * SEQ, SEQ, doc + g * SEQ);
    }
    assert_int_equal(from_b, B / 4);
    // Any cutting of the sample numbers, in any order, gives the same samples.
    for (int r = 0; r < 20; r++) {
        int first = (int)(philox(1, 1, (uint64_t)r).v[0] % (B - 8));
        MUST_OK(loader_batch(l, first, 8, part, NULL, NULL));
        assert_memory_equal(part, all + first * WIDTH, 8 * WIDTH * 4);
    }
    // What parts read adds up to the whole, and to what the order alone says; a part less, a part twice, or
    // another seed does not.
    ReadProof whole = loader_proof(l, 0, B), sum = {0, 0};
    for (int first = B - 9; first >= 0; first -= 9) MUST_OK(loader_batch(l, first, 9, all, NULL, &sum));
    assert_true(sum.samples == B && sum.hash == whole.hash);
    ReadProof less = loader_proof(l, 0, B - 9), twice = less, other;
    MUST_OK(loader_batch(l, 9, 9, all, NULL, &twice));
    assert_true(less.hash != whole.hash && twice.samples == B && twice.hash != whole.hash);
    LoaderSpec reseeded = spec;
    Loader *l2;
    reseeded.seed++;
    MUST_OK(loader_open(&l2, &reseeded));
    other = loader_proof(l2, 0, B);
    assert_true(other.samples == B && other.hash != whole.hash);
    loader_close(&l2);
    double epoch = loader_epoch(l, 1, B);
    assert_true(fabs(epoch - (double)from_b / (double)windows[1]) < 1e-12);
    loader_close(&l);
    assert_null(l);
}

static void one_epoch_covers_all(void **state) {
    (void)state;
    const LoaderCorpus corpus = {path[1], 0};
    LoaderSpec spec = spec_of(&corpus, 1);
    Loader *l;
    MUST_OK(loader_open(&l, &spec));
    int64_t n = loader_windows(l);
    assert_int_equal(n, (777 - 1 - DEPTH) / SEQ);
    static int32_t out[20 * WIDTH];
    bool seen[20] = {false};
    MUST_OK(loader_batch(l, n, n, out, NULL, NULL)); // the second epoch
    for (int64_t i = 0; i < n; i++) {
        for (int64_t w = 0; w < n; w++) {
            if (memcmp(out + i * WIDTH, ids[1] + w * SEQ, WIDTH * 4) != 0) continue;
            assert_false(seen[w]);
            seen[w] = true;
        }
    }
    for (int64_t w = 0; w < n; w++) assert_true(seen[w]);
    loader_close(&l);
}

static void evaluation(void **state) {
    (void)state;
    const LoaderCorpus corpora[] = {{path[1], 0}, {path[0], 0}};
    LoaderSpec spec = spec_of(corpora, 2);
    spec.is_eval = true;
    Loader *l;
    MUST_OK(loader_open(&l, &spec));
    assert_int_equal(loader_tokens(l), 777 + N);
    assert_int_equal(loader_text_bytes(l), 4 * (777 + N));
    int64_t n = loader_eval_windows(l), n_b = (776 + SEQ - 1) / SEQ;
    assert_int_equal(n, n_b + (N - 1 + SEQ - 1) / SEQ);
    static uint8_t scored[2][N];
    for (int64_t i = 0; i < n; i++) {
        int32_t row[WIDTH], valid, avail, doc[SEQ];
        MUST_OK(loader_eval_batch(l, i, 1, row, &valid, &avail, doc));
        int k = i < n_b ? 1 : 0;
        int64_t at = (i < n_b ? i : i - n_b) * SEQ;
        assert_true(valid >= 1 && valid <= SEQ && avail <= WIDTH);
        for (int p = 0; p < WIDTH; p++) {
            if (p < avail)
                assert_int_equal(row[p], ids[k][at + p]);
            else
                assert_int_equal(row[p], 2); // pad_id
        }
        assert_true(avail == WIDTH || at + avail == size_of[k]);
        for (int p = 0; p < valid; p++) scored[k][at + p + 1]++;
        check_docs(k, at, valid, doc);
    }
    for (int k = 0; k < 2; k++) {
        assert_int_equal(scored[k][0], 0);
        for (int64_t i = 1; i < size_of[k]; i++) assert_int_equal(scored[k][i], 1);
    }
    // A batch of several is the same as one by one.
    static int32_t rows[7 * WIDTH], valid[7];
    int32_t row[WIDTH];
    MUST_OK(loader_eval_batch(l, n_b - 3, 7, rows, valid, NULL, NULL));
    MUST_OK(loader_eval_batch(l, n_b - 1, 1, row, NULL, NULL, NULL));
    assert_memory_equal(rows + 2 * WIDTH, row, sizeof row);
    assert_int_equal(valid[2], 776 - (n_b - 1) * SEQ);
    assert_int_equal(loader_eval_batch(l, n - 1, 2, rows, valid, NULL, NULL), E_INTERNAL);
    assert_int_equal(loader_batch(l, 0, 1, rows, NULL, NULL), E_INTERNAL);
    loader_close(&l);
}

static void refused(void **state) {
    (void)state;
    Loader *l;
    LoaderCorpus c[] = {{path[0], 1}, {path[2], 1}};
    LoaderSpec spec = spec_of(c, 2);
    assert_int_equal(loader_open(&l, &spec), E_INPUT); // another tokenizer
    assert_null(l);
    assert_non_null(strstr(fail_message(), "tokenizer"));
    spec.ncorpora = 1;
    spec.seq_len = N;
    assert_int_equal(loader_open(&l, &spec), E_INPUT); // too short
    assert_non_null(strstr(fail_message(), "a.h5"));
    spec.is_eval = true;
    MUST_OK(loader_open(&l, &spec)); // but long enough to evaluate on
    assert_int_equal(loader_eval_windows(l), 1);
    loader_close(&l);
    spec = spec_of(c, 1);
    spec.vocab_size = 599;
    assert_int_equal(loader_open(&l, &spec), E_INPUT); // before any step: the shard says how many tokens there are
    assert_non_null(strstr(fail_message(), "has 600 tokens, but model.vocab_size is 599"));
    claim_vocabulary(path[0], 599);
    MUST_OK(loader_open(&l, &spec)); // and a shard that says less than it holds is found out when it is read
    static int32_t out[600 * WIDTH];
    assert_int_equal(loader_batch(l, 0, 600, out, NULL, NULL), E_INPUT);
    assert_non_null(strstr(fail_message(), "id 599"));
    assert_non_null(strstr(fail_message(), "vocab_size is 599"));
    loader_close(&l);
    claim_vocabulary(path[0], 600);
    c[0].weight = -1;
    spec = spec_of(c, 1);
    assert_int_equal(loader_open(&l, &spec), E_CONFIG);
    c[0] = (LoaderCorpus){"/no/such/shard.h5", 1};
    assert_int_equal(loader_open(&l, &spec), E_INPUT);
    assert_non_null(strstr(fail_message(), "/no/such/shard.h5"));
}

static void fingerprints(void **state) {
    (void)state;
    LoaderCorpus c[] = {{path[0], 1}, {path[1], 1}};
    char text[5][33];
    for (int i = 0; i < 5; i++) {
        LoaderSpec spec = spec_of(c, 2);
        c[1].weight = i == 1 ? 2 : 1;
        if (i == 2) spec.seq_len++;
        if (i == 3) spec.ncorpora = 1;
        if (i == 4) spec.seed++; // not part of it
        Loader *l;
        MUST_OK(loader_open(&l, &spec));
        strcpy(text[i], loader_fingerprint(l).s);
        assert_string_equal(loader_tokenizer_hash(l), "same");
        loader_close(&l);
    }
    for (int i = 1; i < 4; i++) {
        for (int j = 0; j < i; j++) assert_string_not_equal(text[i], text[j]);
    }
    assert_string_equal(text[0], text[4]);
}

static Loader *shared;

static void *reader(void *arg) {
    const int32_t *all = arg;
    int32_t out[4 * WIDTH];
    for (uint64_t r = 0; r < 200; r++) {
        int64_t first = philox(3, (uintptr_t)&out, r).v[0] % 96;
        if (loader_batch(shared, first, 4, out, NULL, NULL) != OK) return "failed";
        if (memcmp(out, all + first * WIDTH, sizeof out) != 0) return "differs";
    }
    return NULL;
}

static void threads(void **state) {
    (void)state;
    const LoaderCorpus corpora[] = {{path[0], 2}, {path[1], 1}};
    LoaderSpec spec = spec_of(corpora, 2);
    MUST_OK(loader_open(&shared, &spec));
    static int32_t all[100 * WIDTH];
    MUST_OK(loader_batch(shared, 0, 100, all, NULL, NULL));
    pthread_t t[4];
    for (int i = 0; i < 4; i++) pthread_create(&t[i], NULL, reader, all);
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(t[i], &result);
        assert_null(result);
    }
    loader_close(&shared);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(batches),      cmocka_unit_test(one_epoch_covers_all),
        cmocka_unit_test(evaluation),   cmocka_unit_test(refused),
        cmocka_unit_test(fingerprints), cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
