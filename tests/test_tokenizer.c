// test_tokenizer.c - loading, encoding, decoding: golden ids of DeepSeek-V3's file (where it is at
// hand), random vocabularies against a brute-force BPE written here, added tokens, refusals by
// name, and random garbage.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "bytelevel.h"
#include "scratch_dir.h"
#include "tokenizer.h"

#define DEEPSEEK_FILE "../shared/data/tokenizer/deepseek_v3_tokenizer.json"
#define BYTE_LEVEL                                                                                 \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_regex\":"      \
    "false}"

static char path[128];

static int setup(void **state) {
    if (scratch_setup(state) != 0) return -1;
    snprintf(path, sizeof path, "%s/t.json", scratch_dir);
    return 0;
}

static uint64_t lcg = 1;
static int random_below(int n) {
    lcg = lcg * 6364136223846793005u + 1442695040888963407u;
    return (int)((lcg >> 33) % (uint64_t)n);
}

// A vocabulary made by the test: tokens 0-255 in `byte_of_id` order and then the merges.
#define B(c) (255 - (c)) // id of a byte
#define MAX_MERGES 40
typedef struct Made {
    int nmerges;
    int left[MAX_MERGES], right[MAX_MERGES], result[MAX_MERGES]; // by rank
    char bytes[256 + MAX_MERGES][64];
    int nbytes[256 + MAX_MERGES]; // by id
    int ntokens;
    const char *pre_tokenizer, *normalizer, *added, *model_extra;
    bool has_pairs; // merges as ["a","b"]
} Made;

static Made made_bytes(void) {
    Made m = {.ntokens = 256,
              .pre_tokenizer = BYTE_LEVEL,
              .normalizer = "null",
              .added = "",
              .model_extra = ""};
    for (int id = 0; id < 256; id++) {
        m.bytes[id][0] = (char)(255 - id); // not the usual order
        m.nbytes[id] = 1;
    }
    return m;
}

static int made_token(Made *m, const char *bytes, int n) {
    for (int id = 0; id < m->ntokens; id++) {
        if (m->nbytes[id] == n && !memcmp(m->bytes[id], bytes, (size_t)n)) return id;
    }
    memcpy(m->bytes[m->ntokens], bytes, (size_t)n);
    m->nbytes[m->ntokens] = n;
    return m->ntokens++;
}

static void made_merge(Made *m, int left, int right) {
    char both[64];
    int n = m->nbytes[left] + m->nbytes[right];
    if (n > 60 || m->nmerges == MAX_MERGES) return;
    for (int i = 0; i < m->nmerges; i++) {
        if (m->left[i] == left && m->right[i] == right) return;
    }
    memcpy(both, m->bytes[left], (size_t)m->nbytes[left]);
    memcpy(both + m->nbytes[left], m->bytes[right], (size_t)m->nbytes[right]);
    m->left[m->nmerges] = left;
    m->right[m->nmerges] = right;
    m->result[m->nmerges++] = made_token(m, both, n);
}

static void put_symbols(FILE *f, const char *bytes, int n) {
    for (int i = 0; i < n; i++) {
        char text[4];
        int length = utf8_put(text, bytelevel_symbol((uint8_t)bytes[i]));
        if (text[0] == '"' || text[0] == '\\') fputc('\\', f);
        fwrite(text, 1, (size_t)length, f);
    }
}

static void made_write(const Made *m) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    fprintf(f,
            "{\"added_tokens\":[%s],\"normalizer\":%s,\"pre_tokenizer\":%s,\"model\":{\"type\":"
            "\"BPE\",%s\"vocab\":{",
            m->added, m->normalizer, m->pre_tokenizer, m->model_extra);
    for (int id = 0; id < m->ntokens; id++) {
        fprintf(f, id ? ",\"" : "\"");
        put_symbols(f, m->bytes[id], m->nbytes[id]);
        fprintf(f, "\":%d", id);
    }
    fprintf(f, "},\"merges\":[");
    for (int i = 0; i < m->nmerges; i++) {
        fprintf(f, "%s%s\"", i ? "," : "", m->has_pairs ? "[" : "");
        put_symbols(f, m->bytes[m->left[i]], m->nbytes[m->left[i]]);
        fprintf(f, m->has_pairs ? "\",\"" : " ");
        put_symbols(f, m->bytes[m->right[i]], m->nbytes[m->right[i]]);
        fprintf(f, m->has_pairs ? "\"]" : "\"");
    }
    fprintf(f, "]}}\n");
    assert_int_equal(fclose(f), 0);
}

static Tokenizer *made_load(const Made *m) {
    made_write(m);
    Tokenizer *t = NULL;
    Err err = tokenizer_load(&t, path);
    if (err != OK) fail_report(stderr, "tokenizer_load", true);
    assert_int_equal(err, OK);
    return t;
}

static int made_encode(const Made *m, const char *text, int n, int *ids) {
    for (int i = 0; i < n; i++) ids[i] = 255 - (uint8_t)text[i];
    for (;;) {
        int rank = 0;
        int at = -1;
        for (; rank < m->nmerges && at < 0; rank++) {
            for (int i = 0; i + 1 < n && at < 0; i++) {
                if (ids[i] == m->left[rank] && ids[i + 1] == m->right[rank]) at = i;
            }
        }
        if (at < 0) return n;
        ids[at] = m->result[rank - 1];
        memmove(ids + at + 1, ids + at + 2, (size_t)(n - at - 2) * sizeof *ids);
        n--;
    }
}

static void expect_ids(const Tokenizer *t, const char *text, const int *want, int nwant) {
    int32_t *ids = NULL;
    int64_t n = 0;
    assert_int_equal(tokenizer_encode(t, text, strlen(text), &ids, &n), OK);
    assert_int_equal(n, nwant);
    for (int i = 0; i < nwant; i++) assert_int_equal(ids[i], want[i]);
    free(ids);
}
#define EXPECT(t, text, ...)                                                                       \
    expect_ids((t), (text), (const int[]){__VA_ARGS__},                                            \
               (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)))

// Ids made by Hugging Face tokenizers 0.22.2.
static void test_golden_deepseek(void **state) {
    (void)state;
    if (access(DEEPSEEK_FILE, R_OK) != 0) skip();
    Tokenizer *t = NULL;
    assert_int_equal(tokenizer_load(&t, DEEPSEEK_FILE), OK);
    assert_int_equal(tokenizer_vocab_size(t), 128815);
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), 1);
    assert_int_equal(tokenizer_pad(t), 2);
    assert_int_equal(tokenizer_id(t, "<\uff5cfim\u2581hole\uff5c>"), 128800);
    EXPECT(t,
           "Hello! \u6bd5\u8001\u5e08\uff011 + 1 = 2 "
           "\u0120\u00d1\u0124\u00d0\u00b2\u00d1\u012c\u00d1\u0122",
           19923, 3, 223, 5464, 5008, 1175, 19, 940, 223, 19, 438, 223, 20, 6113, 257, 76589, 131,
           100, 76032, 1628, 76589, 131, 108, 76589, 131, 98);
    EXPECT(t, " 1234567 3.14159 2024\u5e74", 223, 6895, 18009, 25, 223, 21, 16, 9926, 3318, 223,
           939, 22, 695);
    EXPECT(t, "don't can't !foo .bar $x @y", 20385, 1664, 588, 1664, 4050, 40897, 1204, 6515, 957,
           90, 2390, 91);
    EXPECT(t, "\r\n\r\n  x\n \n", 204, 201, 204, 201, 223, 1527, 77968);
    EXPECT(t, "a <\uff5cfim\u2581begin\uff5c> b", 67, 223, 128801, 291);
    EXPECT(t, "<|EOT|><|EOT|>", 128805, 128805);
    tokenizer_free(&t);
    assert_null(t);
}

// One piece of up to 400 bytes (array and heap) against the brute force, merges in both notations.
static void test_merging(void **state) {
    (void)state;
    for (int round = 0; round < 60; round++) {
        Made m = made_bytes();
        m.has_pairs = round & 1;
        while (m.nmerges < 5 + round % 30) {
            int left = random_below(m.ntokens - 252) + 252; // 252 to 255 stand for 'a' to 'd' here
            int right = random_below(m.ntokens - 252) + 252;
            made_merge(&m, left < 256 ? B('a' + left - 252) : left,
                       right < 256 ? B('a' + right - 252) : right);
        }
        Tokenizer *t = made_load(&m);
        assert_int_equal(tokenizer_vocab_size(t), m.ntokens);
        for (int k = 0; k < 12; k++) {
            char text[400];
            int want[400];
            int n = 1 + random_below(k < 9 ? 60 : 399);
            for (int i = 0; i < n; i++) text[i] = (char)('a' + random_below(k % 3 ? 4 : 1 + k % 2));
            int nwant = made_encode(&m, text, n, want);
            int32_t *ids = NULL;
            int64_t nids = 0;
            assert_int_equal(tokenizer_encode(t, text, (size_t)n, &ids, &nids), OK);
            assert_int_equal(nids, nwant);
            for (int i = 0; i < nwant; i++) assert_int_equal(ids[i], want[i]);
            char *back = NULL;
            size_t nback = 0;
            assert_int_equal(tokenizer_decode(t, ids, nids, &back, &nback), OK);
            assert_int_equal(nback, n);
            assert_memory_equal(back, text, n);
            free(back);
            free(ids);
        }
        tokenizer_free(&t);
    }
}

#define ADDED(id, content, flags)                                                                  \
    "{\"id\":" #id ",\"content\":\"" content "\",\"special\":true" flags "}"

static void test_added_tokens(void **state) {
    (void)state;
    Made m = made_bytes();
    // clang-format off
    m.added = ADDED(300, "<s>", "") ","
              ADDED(301, "<L>", ",\"lstrip\":true") ","
              ADDED(302, "<R>", ",\"rstrip\":true") ","
              ADDED(303, "word", ",\"single_word\":true") ","
              ADDED(304, "<s><s>", "") ","
              ADDED(305, "<N>", ",\"normalized\":true") ","
              ADDED(306, "<pad>", "");
    // clang-format on
    Tokenizer *t = made_load(&m);
    assert_int_equal(tokenizer_vocab_size(t), 307);
    assert_int_equal(tokenizer_bos(t), 300);
    assert_int_equal(tokenizer_eos(t), -1);
    assert_int_equal(tokenizer_pad(t), 306);
    assert_true(tokenizer_is_added(t, 301));
    assert_false(tokenizer_is_added(t, 97));
    size_t n = 0;
    assert_null(tokenizer_bytes(t, 299, &n));
    assert_non_null(tokenizer_bytes(t, 304, &n));
    assert_int_equal(n, 6);
    EXPECT(t, "a<s>b", B('a'), 300, B('b'));
    EXPECT(t, "<s><s><s>", 304, 300); // the longest
    EXPECT(t, "<s", B('<'), B('s'));
    EXPECT(t, "a \t<L> b", B('a'), 301, B(' '), B('b'));
    EXPECT(t,
           "a <R> \xe3\x80\x80"
           "b",
           B('a'), B(' '), 302, B('b')); // U+3000 is a blank too
    EXPECT(t, "<R> <L>", 302, 301);
    EXPECT(t, "a word, words", B('a'), B(' '), 303, B(','), B(' '), B('w'), B('o'), B('r'), B('d'),
           B('s'));
    EXPECT(t, "\xc3\xa9word", B(0xc3), B(0xa9), B('w'), B('o'), B('r'), B('d'));
    EXPECT(t, "<N><s><N", 305, 300, B('<'), B('N'));
    int32_t bad[] = {300, 299};
    char *text = NULL;
    assert_int_equal(tokenizer_decode(t, bad, 2, &text, &n), E_INPUT);
    assert_non_null(strstr(fail_message(), "id 299"));
    bad[1] = -1;
    assert_int_equal(tokenizer_decode(t, bad, 2, &text, &n), E_INPUT);
    bad[1] = 307;
    assert_int_equal(tokenizer_decode(t, bad, 2, &text, &n), E_INPUT);
    assert_int_equal(tokenizer_decode(t, bad, 1, &text, &n), OK);
    assert_string_equal(text, "<s>");
    free(text);
    tokenizer_free(&t);
}

// Splits, prefix space, ignore_merges and what becomes of broken UTF-8.
static void test_pieces(void **state) {
    (void)state;
    Made m = made_bytes();
    made_merge(&m, B('a'), B(' '));  // 256: only where no cut stands between
    made_merge(&m, B(' '), B('a'));  // 257
    made_merge(&m, B('1'), B('2'));  // 258
    made_merge(&m, B('\''), B('s')); // 259
    Tokenizer *t = made_load(&m);
    EXPECT(t, "a a 12", 256, 256, 258);
    EXPECT(t, "\xf0\x9f\x98!\xed\xa0\x80", B(0xef), B(0xbf), B(0xbd), B('!'), B(0xef), B(0xbf),
           B(0xbd), B(0xef), B(0xbf), B(0xbd), B(0xef), B(0xbf), B(0xbd));
    int32_t *ids = (int32_t *)1;
    int64_t n = 7;
    assert_int_equal(tokenizer_encode(t, "", 0, &ids, &n), OK);
    assert_null(ids);
    assert_int_equal(n, 0);
    tokenizer_free(&t);

    m.pre_tokenizer = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"; // the GPT-2 pattern
    t = made_load(&m);
    EXPECT(t, "a a's  a", 257, 257, 259, B(' '), 257);
    EXPECT(t,
           "a\xe1\xa0\x8e"
           "a",
           257, B(0xe1), B(0xa0), B(0x8e), B('a')); // U+180E is no space
    tokenizer_free(&t);

    m.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
                      "\"Regex\":\"[^\\\\s]\"},"
                      "\"behavior\":\"Removed\",\"invert\":true},{\"type\":\"Digits\",\"individual_"
                      "digits\":false}," BYTE_LEVEL "]}";
    t = made_load(&m);
    EXPECT(t, "a 12", B('a'), B('1'), B('2')); // blanks are dropped
    tokenizer_free(&t);

    m.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
                      "\"String\":\"2(\"},"
                      "\"behavior\":\"Isolated\",\"invert\":false}," BYTE_LEVEL "]}";
    t = made_load(&m);
    EXPECT(t, "122(12", 258, B('2'), B('('), 258);
    tokenizer_free(&t);

    m = made_bytes();
    made_merge(&m, B('a'), B('b'));                  // 256
    assert_int_equal(made_token(&m, "abc", 3), 257); // in the vocabulary, but no merge leads to it
    t = made_load(&m);
    EXPECT(t, "abc", 256, B('c'));
    tokenizer_free(&t);
    m.model_extra = "\"ignore_merges\":true,";
    t = made_load(&m);
    EXPECT(t, "abc", 257);
    EXPECT(t, "abcc", 256, B('c'), B('c'));
    tokenizer_free(&t);
}

static void expect_refusal(const Made *m, const char *word) {
    made_write(m);
    Tokenizer *t = NULL;
    assert_int_equal(tokenizer_load(&t, path), E_INPUT);
    assert_null(t);
    if (!strstr(fail_message(), word))
        print_message("expected '%s' in: %s\n", word, fail_message());
    assert_non_null(strstr(fail_message(), word));
    assert_non_null(strstr(fail_message(), path));
}

static void test_refusals(void **state) {
    (void)state;
    Tokenizer *t = NULL;
    assert_int_equal(tokenizer_load(&t, "/nonexistent/tokenizer.json"), E_INPUT);
    assert_int_equal(tokenizer_load(&t, "/tmp"), E_INPUT);
    static const struct {
        int field; // 0 normalizer, 1 pre_tokenizer, 2 added, 3 model_extra
        const char *text, *word;
    } cases[] = {
        {0, "{\"type\":\"NFC\"}", "NFC"},
        {0, "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}", "Lowercase"},
        {1, "null", "pre_tokenizer"},
        {1, "{\"type\":\"Whitespace\"}", "Whitespace"},
        {1, "{\"type\":\"Sequence\",\"pretokenizers\":[]}", "ByteLevel"},
        {1, "{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL "," BYTE_LEVEL "]}",
         "after ByteLevel"},
        {1, "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"MergedWithNext\"}",
         "MergedWithNext"},
        {1, "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},\"behavior\":\"Isolated\"}",
         "does not compile"},
        {1, "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}",
         "&&"},
        {1, "{\"type\":\"Split\",\"behavior\":\"Isolated\"}", "pattern"},
        {2, "{\"id\":300}", "content"},
        {2, "{\"id\":\"x\",\"content\":\"y\"}", "integer"},
        {2, "{\"id\":-1,\"content\":\"y\"}", "-1"},
        {2, "{\"id\":2000000000,\"content\":\"y\"}", "2000000000"},
        {2, "{\"id\":3,\"content\":\"yyy\"}", "two tokens"},
        {2, "{\"id\":300,\"content\":\"a\"}", "vocabulary says"},
        {3, "\"dropout\":0.1,", "dropout"},
        {3, "\"end_of_word_suffix\":\"</w>\",", "end_of_word_suffix"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        Made m = made_bytes();
        *(cases[i].field == 0   ? &m.normalizer
          : cases[i].field == 1 ? &m.pre_tokenizer
          : cases[i].field == 2 ? &m.added
                                : &m.model_extra) = cases[i].text;
        expect_refusal(&m, cases[i].word);
    }
    Made m = made_bytes();
    m.nbytes[155] = 2; // 'a' is missing now
    m.bytes[155][1] = 'q';
    expect_refusal(&m, "0x64");
    m = made_bytes();
    made_merge(&m, B('a'), B('b'));
    m.ntokens--;
    expect_refusal(&m, "'ab'");
}

static void test_other_files(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "{}",
        "\xff\xfe",
        "{\"model\":3}",
        "{\"model\":{\"type\":\"Unigram\"}}",
        "{\"model\":{\"type\":\"BPE\"}}",
        "{\"model\":{\"vocab\":{}}}",
        "{\"model\":{\"vocab\":{\"a\":1.5},\"merges\":[]}}",
        "{\"model\":{\"vocab\":{},\"merges\":[]},\"pre_tokenizer\":" BYTE_LEVEL "}"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        scratch_write_text(path, texts[i]);
        Tokenizer *t = NULL;
        assert_int_equal(tokenizer_load(&t, path), E_INPUT);
        assert_null(t);
    }
    scratch_write_text(path, "{\"model\":{\"type\":\"Unigram\"}}");
    Tokenizer *t = NULL;
    assert_int_equal(tokenizer_load(&t, path), E_INPUT);
    assert_non_null(strstr(fail_message(), "Unigram"));
}

// Random damage to a small good file: refused or still usable, never a crash.
static void test_garbage(void **state) {
    (void)state;
    Made m = made_bytes();
    for (int i = 0; i < 20; i++)
        made_merge(&m, 155 + random_below(4), i % 2 ? 155 + random_below(4) : m.ntokens - 1);
    m.added = ADDED(300, "<s>", ",\"lstrip\":true") "," ADDED(
        301, "ww", ",\"single_word\":true,\"normalized\":true");
    m.pre_tokenizer = "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
                      "\"Regex\":\"\\\\s+|[a-c]+x?\"},"
                      "\"behavior\":\"Isolated\",\"invert\":false}," BYTE_LEVEL "]}";
    made_write(&m);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    static char good[20000], bad[20000];
    size_t n = fread(good, 1, sizeof good, f);
    fclose(f);
    assert_true(n > 1000 && n < sizeof good);
    int nloaded = 0;
    for (int round = 0; round < 1000; round++) {
        memcpy(bad, good, n);
        char *pattern = strstr(bad, "s+|[a-c]+x?"); // the head holds no zero byte before it
        assert_non_null(pattern);
        size_t length = round % 10 == 1 ? (size_t)random_below((int)n) : n;
        for (int k = 1 + random_below(2); k > 0; k--) {
            // Many hits go to the head, where the structure is, or into the split pattern.
            size_t at = (size_t)random_below(random_below(2) ? 600 : (int)n);
            if (round % 3 == 0) {
                pattern[random_below(11)] = "*+?()|ax.-^$ "[random_below(13)];
                continue;
            }
            bool is_digit = bad[at] >= '0' && bad[at] <= '9';
            bool is_letter = (bad[at] | 32) >= 'a' && (bad[at] | 32) <= 'z';
            if (is_digit && round % 2)
                bad[at] = (char)('0' + random_below(10));
            else if (is_letter && round % 2)
                bad[at] = (char)('a' + random_below(4));
            else
                bad[at] = random_below(2) ? (char)random_below(256) : "{}[]\",:\\"[random_below(8)];
        }
        scratch_write(path, bad, length);
        Tokenizer *t = NULL;
        Err err = tokenizer_load(&t, path);
        assert_true(err == OK || err == E_INPUT);
        if (err != OK) continue;
        nloaded++;
        TokenIds ids = {0};
        static const char text[] = "abcdabcd  <s> ww wwa\xff \xe4\xb8\xad";
        Err encode_err = tokenizer_append(t, text, sizeof text - 1, &ids);
        assert_true(encode_err == OK ||
                    encode_err == E_INTERNAL); // a damaged pattern may exhaust the engine
        free(ids.p);
        tokenizer_free(&t);
    }
    assert_true(nloaded > 50); // so that the second half of the loop is tested too
}

static void test_utf8(void **state) {
    (void)state;
    for (int c = 0; c < 0x110000; c++) {
        if (c >= 0xD800 && c < 0xE000) continue;
        char text[4];
        int n = utf8_put(text, c);
        int back = 0;
        assert_int_equal(utf8_get(&back, text, (size_t)n), n);
        assert_int_equal(back, c);
        if (n > 1) assert_true(utf8_get(&back, text, (size_t)n - 1) == 1 - n);
    }
    for (int byte = 0; byte < 256; byte++) {
        assert_int_equal(bytelevel_byte(bytelevel_symbol((uint8_t)byte)), byte);
    }
    assert_int_equal(bytelevel_symbol(' '), 0x120);
    assert_int_equal(bytelevel_symbol('\n'), 0x10A);
    assert_int_equal(bytelevel_byte(BYTE_SYMBOL_MAX), -1);
    static const struct {
        const char *broken, *repaired;
    } cases[] = {
        // From the Unicode standard, section 3.9 (U+FFFD substitution of maximal subparts).
        {"\xc0\xaf\xe0\x80\xbf\xf0\x81\x82"
         "A",
         "????????A"},
        {"\xed\xa0\x80\xed\xbf\xbf\xed\xaf"
         "A",
         "????????A"},
        {"\xf4\x91\x92\x93\xff"
         "A\x80\xbf"
         "B",
         "?????A??B"},
        {"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
         "A",
         "????A"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *out = NULL;
        size_t n = 0;
        assert_int_equal(utf8_repair(&out, &n, cases[i].broken, strlen(cases[i].broken)), OK);
        const char *p = out;
        for (const char *want = cases[i].repaired; *want; want++) {
            if (*want == '?') {
                assert_memory_equal(p, "\xef\xbf\xbd", 3);
                p += 3;
            } else {
                assert_int_equal(*p++, *want);
            }
        }
        assert_true(p == out + n);
        free(out);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_deepseek), cmocka_unit_test(test_merging),
        cmocka_unit_test(test_added_tokens),    cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_other_files),
        cmocka_unit_test(test_garbage),         cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
