// test_formats.c - documents out of text, .jsonl and .zst files, what is said about damaged ones,
// and garbage.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "formats.h"
#include "scratch_dir.h"

static char path[128];

// {"text":"hi"}\n\n{"id":3,"text":"th\u00e9 \u0000re"}\n as one zstd frame with a checksum.
static const uint8_t two_lines[] = {
    0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x33, 0x99, 0x01, 0x00, 0x7b, 0x22, 0x74, 0x65, 0x78, 0x74, 0x22,
    0x3a, 0x22, 0x68, 0x69, 0x22, 0x7d, 0x0a, 0x0a, 0x7b, 0x22, 0x69, 0x64, 0x22, 0x3a, 0x33, 0x2c,
    0x22, 0x74, 0x65, 0x78, 0x74, 0x22, 0x3a, 0x22, 0x74, 0x68, 0x5c, 0x75, 0x30, 0x30, 0x65, 0x39,
    0x20, 0x5c, 0x75, 0x30, 0x30, 0x30, 0x30, 0x72, 0x65, 0x22, 0x7d, 0x0a, 0x1f, 0xee, 0xb2, 0x53};
// {"text":"aaa...a"}\n with 400,000 times a: more than one block of the reader.
static const uint8_t long_line[] = {
    0x28, 0xb5, 0x2f, 0xfd, 0xa4, 0x8c, 0x1a, 0x06, 0x00, 0x94, 0x00, 0x00, 0x50, 0x7b,
    0x22, 0x74, 0x65, 0x78, 0x74, 0x22, 0x3a, 0x22, 0x61, 0x01, 0x00, 0xf3, 0xff, 0x39,
    0x40, 0x02, 0x02, 0x00, 0x10, 0x61, 0x02, 0x00, 0x10, 0x61, 0x5d, 0x00, 0x00, 0x20,
    0x61, 0x22, 0x7d, 0x0a, 0x01, 0x00, 0x85, 0xda, 0x03, 0x21, 0x46, 0x7b, 0x81, 0xdc};

typedef struct Seen {
    int ndocs;
    size_t nbytes;
    int64_t lines[8];
    char text[8][64];
    size_t length[8];
    int stop_at; // return E_PEER at this document, 0 = never
} Seen;

static Err see(void *cx, const Document *doc) {
    Seen *s = cx;
    assert_string_equal(doc->path, path);
    if (s->ndocs < 8) {
        s->lines[s->ndocs] = doc->line;
        s->length[s->ndocs] = doc->nbytes;
        memcpy(s->text[s->ndocs], doc->text, doc->nbytes < 63 ? doc->nbytes : 63);
    }
    s->ndocs++;
    s->nbytes += doc->nbytes;
    if (s->ndocs == s->stop_at) FAIL(E_PEER, "stop");
    return OK;
}

// Write the bytes to a file of this name and read it.
static Err read_bytes(Seen *s, const char *name, const void *bytes, size_t n) {
    snprintf(path, sizeof path, "%s/%s", scratch_dir, name);
    scratch_write(path, bytes, n);
    int stop_at = s->stop_at;
    *s = (Seen){.stop_at = stop_at};
    Err err = formats_read(path, see, s);
    unlink(path);
    return err;
}
#define READ(s, name, text) read_bytes((s), (name), (text), sizeof(text) - 1)

static void test_text(void **state) {
    (void)state;
    Seen s = {0};
    assert_int_equal(READ(&s, "a.txt", "one\r\ntwo\xff"), OK);
    assert_int_equal(s.ndocs, 1);
    assert_int_equal(s.lines[0], 0);
    assert_string_equal(s.text[0], "one\r\ntwo\xff");
    assert_int_equal(READ(&s, "README", "x"), OK);
    assert_int_equal(READ(&s, "a.txt", ""), E_INPUT);
    assert_non_null(strstr(fail_message(), "empty"));
    assert_int_equal(READ(&s, "a.gz", "ab\0cd"), E_INPUT);
    assert_non_null(strstr(fail_message(), "byte 2 is zero"));
    char *large = malloc(1000000);
    memset(large, 'x', 1000000);
    assert_int_equal(read_bytes(&s, "a.txt", large, 1000000), OK);
    assert_int_equal(s.nbytes, 1000000);
    large[700001] = '\0';
    assert_int_equal(read_bytes(&s, "a.txt", large, 1000000), E_INPUT);
    assert_non_null(strstr(fail_message(), "byte 700001 is zero"));
    free(large);
    assert_int_equal(formats_read("/nonexistent.txt", see, &s), E_INPUT);
    assert_int_equal(formats_read("/tmp", see, &s), E_INPUT);
    assert_int_equal(formats_check("/nonexistent.txt"), E_INPUT);
    assert_int_equal(formats_check("/tmp"), E_INPUT);
    assert_non_null(strstr(fail_message(), "a folder, expected files: /tmp/*"));
    assert_int_equal(formats_check("/dev/null"), OK); // not known before it is read
}

static void test_jsonl(void **state) {
    (void)state;
    Seen s = {0};
    assert_int_equal(
        READ(&s, "a.jsonl",
             "{\"text\":\"a\\n\"}\r\n  \n{\"text\": \"\", \"x\": [1]}\n{\"text\":\"\\u4e2d\"}"),
        OK);
    assert_int_equal(s.ndocs, 3);
    assert_string_equal(s.text[0], "a\n");
    assert_int_equal(s.length[1], 0);
    assert_string_equal(s.text[2], "\u4e2d");
    assert_int_equal(s.lines[0], 1);
    assert_int_equal(s.lines[1], 3);
    assert_int_equal(s.lines[2], 4);
    assert_int_equal(READ(&s, "a.jsonl", "\xEF\xBB\xBF{\"text\":\"marked\"}\n"), OK);
    assert_string_equal(s.text[0], "marked");
    static const struct {
        const char *text, *word;
    } bad[] = {{"{\"text\":\"a\"}\n{\"text\":\"b\"\n", "a.jsonl:2: not JSON"},
               {"{\"text\":\"a\"}\n[1]\n", "a.jsonl:2: expected a JSON object"},
               {"{\"txt\":\"a\"}\n", "a.jsonl:1: the object has no string \"text\""},
               {"{\"text\":7}\n", "no string"},
               {"\n\n{\"text\":\"\xff\"}\n", "a.jsonl:3: not JSON"},
               {"{\"text\":\"a\"} {\"text\":\"b\"}\n", "a.jsonl:1: not JSON"},
               {"", "no document"},
               {"\n \n", "no document"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(read_bytes(&s, "a.jsonl", bad[i].text, strlen(bad[i].text)), E_INPUT);
        assert_non_null(strstr(fail_message(), bad[i].word));
    }
    // An error of the callback stops the reading and comes back.
    s.stop_at = 2;
    assert_int_equal(READ(&s, "a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}\n"),
                     E_PEER);
    assert_int_equal(s.ndocs, 2);
}

static void test_zstd(void **state) {
    (void)state;
    Seen s = {0};
    assert_int_equal(read_bytes(&s, "a.jsonl.zst", two_lines, sizeof two_lines), OK);
    assert_int_equal(s.ndocs, 2);
    assert_int_equal(s.lines[1], 3);
    assert_int_equal(s.length[1], 8);
    assert_memory_equal(s.text[1], "th\xc3\xa9 \0re", 8);
    assert_int_equal(read_bytes(&s, "a.txt.zst", two_lines, sizeof two_lines), OK); // as text
    assert_int_equal(s.ndocs, 1);
    assert_int_equal(s.nbytes, 51);
    assert_int_equal(read_bytes(&s, "a.jsonl.zst", long_line, sizeof long_line), OK);
    assert_int_equal(s.ndocs, 1);
    assert_int_equal(s.nbytes, 400000);
    // Several frames in one file.
    uint8_t both[sizeof two_lines + sizeof long_line];
    memcpy(both, long_line, sizeof long_line);
    memcpy(both + sizeof long_line, two_lines, sizeof two_lines);
    assert_int_equal(read_bytes(&s, "a.jsonl.zst", both, sizeof both), OK);
    assert_int_equal(s.ndocs, 3);
    assert_int_equal(s.lines[2], 4);
    for (size_t n = 0; n < sizeof long_line; n++) {
        assert_int_equal(read_bytes(&s, "a.jsonl.zst", long_line, n), E_INPUT);
        if (n > 0) assert_non_null(strstr(fail_message(), "damaged"));
    }
    assert_int_equal(READ(&s, "a.jsonl.zst", "{\"text\":\"not compressed\"}\n"), E_INPUT);
    memcpy(both, two_lines, sizeof two_lines);
    both[12] ^= 1; // found by the frame's checksum
    assert_int_equal(read_bytes(&s, "a.jsonl.zst", both, sizeof two_lines), E_INPUT);
}

static void test_garbage(void **state) {
    (void)state;
    static const char *const names[] = {"a.jsonl", "a.txt", "a.jsonl.zst", "a.txt.zst"};
    static const char line[] = "{\"text\":\"abc \\u00e9\"}\n{\"id\":1,\"text\":\"\"}\n";
    uint64_t lcg = 77;
    int nread = 0;
    for (int round = 0; round < 2000; round++) {
        uint8_t bytes[128];
        bool is_zstd = round % 4 >= 2;
        size_t n =
            is_zstd ? (round % 8 < 4 ? sizeof two_lines : sizeof long_line) : sizeof line - 1;
        memcpy(bytes, is_zstd ? (round % 8 < 4 ? two_lines : long_line) : (const uint8_t *)line, n);
        for (int k = 0; k < 1 + round % 5; k++) {
            lcg = lcg * 6364136223846793005u + 1442695040888963407u;
            bytes[(lcg >> 33) % n] = (uint8_t)(lcg >> 56);
        }
        Seen s = {0};
        Err err = read_bytes(&s, names[round % 4], bytes, n);
        assert_true(err == OK || err == E_INPUT);
        nread += err == OK;
    }
    assert_true(nread > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_text), cmocka_unit_test(test_jsonl),
                                       cmocka_unit_test(test_zstd), cmocka_unit_test(test_garbage)};
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
