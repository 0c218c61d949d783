// test_bpe_train.c - the vocabulary learned from the sample novels against what Hugging Face's
// trainer learns from them, small random texts against a brute-force trainer written here,
// determinism, and bad input.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bpe_train.h"
#include "bytelevel.h"
#include "scratch_dir.h"
#include "tokenizer.h"

static char text_path[128], json_path[128], other_path[128];

static int setup(void **state) {
    if (scratch_setup(state) != 0) return -1;
    snprintf(text_path, sizeof text_path, "%s/text.txt", scratch_dir);
    snprintf(json_path, sizeof json_path, "%s/a.json", scratch_dir);
    snprintf(other_path, sizeof other_path, "%s/b.json", scratch_dir);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    unlink(text_path);
    unlink(json_path);
    unlink(other_path);
    return rmdir(scratch_dir); // fails if a temporary file was left behind
}

static Tokenizer *train(const char *const *paths, int npaths, int vocab_size, const char *out) {
    Err err = bpe_train(paths, npaths, vocab_size, out);
    if (err != OK) fail_report(stderr, "bpe_train", true);
    assert_int_equal(err, OK);
    Tokenizer *t = NULL;
    assert_int_equal(tokenizer_load(&t, out), OK);
    assert_int_equal(tokenizer_vocab_size(t), vocab_size);
    return t;
}

static void expect_ids(const Tokenizer *t, const char *text, const int *want, int nwant) {
    int32_t *ids = NULL;
    int64_t n = 0;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), &ids, &n), OK);
    assert_int_equal(n, nwant);
    for (int i = 0; i < nwant; i++) assert_int_equal(ids[i], want[i]);
    free(ids);
}

static void expect_token(const Tokenizer *t, int id, const char *want) {
    size_t n = 0;
    const char *bytes = tokenizer_bytes(t, id, &n);
    assert_non_null(bytes);
    assert_int_equal(n, strlen(want));
    assert_memory_equal(bytes, want, n);
}

// The merges and ids below were made by Hugging Face tokenizers 0.23.3 (BpeTrainer, vocab_size
// 4096, min_frequency 2, the same splits, initial alphabet and special tokens, each file one text).
static void test_novels(void **state) {
    (void)state;
    static const char *const paths[] = {"data/samples/emma.txt",
                                        "data/samples/pride_and_prejudice.txt",
                                        "data/samples/sense_and_sensibility.txt"};
    static const char *const turned[] = {"data/samples/sense_and_sensibility.txt",
                                         "data/samples/emma.txt",
                                         "data/samples/pride_and_prejudice.txt"};
    Tokenizer *t = train(paths, 3, 4096, json_path);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_pad(t), 2);
    expect_token(t, 3, "!");
    expect_token(t, 258, "\xad");
    expect_token(t, 259, " t");
    expect_token(t, 260, "he");
    expect_token(t, 261, " a");
    expect_token(t, 3259, " liberty");
    expect_token(t, 4095, " doubted");
    static const int hello[] = {42, 511, 81, 14, 1082, 3, 681, 313, 223, 19, 26, 19, 23, 16};
    expect_ids(t, "Hello, world! It was 1815.", hello, 14);
    static const int mixed[] = {656, 16,  790,  379, 431, 1168, 620, 4,   204, 201, 204, 201, 223,
                                289, 281, 1281, 130, 105, 223,  163, 119, 258, 165, 247, 232, 162,
                                226, 236, 223,  19,  20,  21,   22,  23,  24,  25,  26};
    expect_ids(t, "Mr. Darcy's \"pride\"\r\n\r\n  and caf\u00e9 \u4e2d\u6587\u304b 12345678", mixed,
               37);
    // The same text in another order of files gives the same file, byte for byte.
    Tokenizer *again = train(turned, 3, 4096, other_path);
    assert_string_equal(tokenizer_hash(again), tokenizer_hash(t));
    tokenizer_free(&again);
    tokenizer_free(&t);
}

// Brute force: words as lists of ids, all pairs counted anew for every merge.
#define MAX_WORDS 400
typedef struct Slow {
    int ids[MAX_WORDS][40], n[MAX_WORDS], nwords;
    char bytes[600][64];
    int nbytes[600], ntokens;
} Slow;

static bool slow_merge(Slow *s) {
    static int counts[600][600];
    memset(counts, 0, sizeof counts);
    for (int w = 0; w < s->nwords; w++) {
        for (int i = 0; i + 1 < s->n[w]; i++) counts[s->ids[w][i]][s->ids[w][i + 1]]++;
    }
    int left = 0;
    int right = 0;
    for (int a = 0; a < s->ntokens; a++) {
        for (int b = 0; b < s->ntokens; b++) {
            if (counts[a][b] > counts[left][right]) {
                left = a;
                right = b;
            }
        }
    }
    if (counts[left][right] < 2) return false;
    char both[128];
    int n = s->nbytes[left] + s->nbytes[right];
    memcpy(both, s->bytes[left], (size_t)s->nbytes[left]);
    memcpy(both + s->nbytes[left], s->bytes[right], (size_t)s->nbytes[right]);
    int id = 0;
    while (id < s->ntokens && !(s->nbytes[id] == n && !memcmp(s->bytes[id], both, (size_t)n))) id++;
    if (id == s->ntokens) {
        memcpy(s->bytes[id], both, (size_t)n);
        s->nbytes[id] = n;
        s->ntokens++;
    }
    for (int w = 0; w < s->nwords; w++) {
        int kept = 0;
        for (int i = 0; i < s->n[w]; i++) {
            bool is_pair = i + 1 < s->n[w] && s->ids[w][i] == left && s->ids[w][i + 1] == right;
            s->ids[w][kept++] = is_pair ? id : s->ids[w][i];
            i += is_pair;
        }
        s->n[w] = kept;
    }
    return true;
}

static void test_brute_force(void **state) {
    (void)state;
    static Slow s;
    uint64_t lcg = 9;
    for (int round = 0; round < 6; round++) {
        char text[MAX_WORDS * 20];
        int n = 0;
        s.nwords = 60 + 50 * round;
        s.ntokens = 3;
        for (int c = 0; c < BYTE_SYMBOL_MAX; c++) {
            if (bytelevel_byte(c) < 0) continue;
            s.bytes[s.ntokens][0] = (char)bytelevel_byte(c);
            s.nbytes[s.ntokens++] = 1;
        }
        for (int w = 0; w < s.nwords; w++) {
            lcg = lcg * 6364136223846793005u + 1442695040888963407u;
            int length = 1 + (int)(lcg >> 40) % 14;
            s.n[w] = length + 1;
            text[n++] = ' ';
            s.ids[w][0] = 223; // the space: byte 32 is symbol U+0120
            for (int i = 1; i <= length; i++) {
                lcg = lcg * 6364136223846793005u + 1442695040888963407u;
                text[n] = (char)('a' + (int)(lcg >> 40) % (2 + round % 3));
                s.ids[w][i] = text[n++] - '!' + 3;
            }
        }
        scratch_write(text_path, text, (size_t)n);
        const char *paths[] = {text_path};
        int target = 259 + 20 + 15 * round;
        bool has_more = true;
        while (has_more && s.ntokens < target) has_more = slow_merge(&s);
        assert_true(has_more);
        Tokenizer *t = train(paths, 1, target, json_path);
        for (int id = 3; id < target; id++) {
            size_t nbytes = 0;
            const char *bytes = tokenizer_bytes(t, id, &nbytes);
            assert_int_equal(nbytes, s.nbytes[id]);
            assert_memory_equal(bytes, s.bytes[id], nbytes);
        }
        // Encoding the text it was learned from must give the brute-force words.
        int32_t *ids = NULL;
        int64_t nids = 0;
        int64_t at = 0;
        assert_int_equal(tokenizer_encode(t, text, (size_t)n, &ids, &nids), OK);
        for (int w = 0; w < s.nwords; w++) {
            for (int i = 0; i < s.n[w]; i++) assert_int_equal(ids[at++], s.ids[w][i]);
        }
        assert_int_equal(at, nids);
        free(ids);
        tokenizer_free(&t);
    }
}

static void test_bad_input(void **state) {
    (void)state;
    const char *paths[] = {text_path, "/nonexistent/text.txt"};
    scratch_write(text_path, "", 0);
    assert_int_equal(bpe_train(paths, 1, 300, json_path), E_INPUT);
    assert_non_null(strstr(fail_message(), "empty"));
    scratch_write(text_path, "abcabc\n", 7);
    assert_int_equal(bpe_train(paths, 2, 300, json_path), E_INPUT);
    assert_non_null(strstr(fail_message(), "/nonexistent/text.txt"));
    assert_int_equal(bpe_train(paths, 1, 258, json_path), E_USAGE);
    assert_int_equal(bpe_train(paths, 1, 2000000000, json_path), E_USAGE);
    assert_int_equal(bpe_train(paths, 0, 300, json_path), E_USAGE);
    // abcabc has two merges: ab, abc; what occurs once is not merged.
    unlink(json_path);
    assert_int_equal(bpe_train(paths, 1, 262, json_path), E_INPUT);
    assert_non_null(strstr(fail_message(), "--vocab-size 261"));
    assert_int_not_equal(access(json_path, F_OK), 0);
    Tokenizer *t = train(paths, 1, 261, json_path);
    expect_token(t, 260, "abc");
    tokenizer_free(&t);
    t = train(paths, 1, 259, json_path); // no merges at all
    static const int bytes[] = {67, 68, 201};
    expect_ids(t, "ab\n", bytes, 3);
    tokenizer_free(&t);
    assert_int_equal(bpe_train(paths, 1, 261, "/nonexistent/a.json"), E_OUTPUT);
    assert_int_equal(bpe_train(paths, 2, 261, "/nonexistent/a.json"), E_OUTPUT); // before any text is read
    assert_int_equal(bpe_train(paths, 1, 261, scratch_dir), E_OUTPUT); // a folder is in the way
    char left_over[80];
    snprintf(left_over, sizeof left_over, "%s.partial-%ld", scratch_dir, (long)getpid());
    assert_int_not_equal(access(left_over, F_OK), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_novels),
                                       cmocka_unit_test(test_brute_force),
                                       cmocka_unit_test(test_bad_input)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
