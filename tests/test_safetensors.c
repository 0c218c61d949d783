// test_safetensors.c - safetensors: round trips, conversions against a second decoder, bad headers,
// and fuzzed files, which must never crash the reader.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fp8.h"
#include "must.h"
#include "rng.h"
#include "safetensors.h"
#include "scratch_dir.h"

// Write a file from a header text and n data bytes (value = index).
static void put_file(const char *path, const char *header, size_t n) {
    FILE *f = fopen(path, "wb");
    uint64_t len = strlen(header);
    fwrite(&len, 8, 1, f);
    fwrite(header, 1, len, f);
    for (size_t i = 0; i < n; i++) fputc((int)(i & 255), f);
    fclose(f);
}

static void round_trip(void **state) {
    (void)state;
    const StDecl decl[] = {
        {"long", ST_I64, 1, {3}},      {"b \"quoted\"", ST_F32, 2, {2, 3}},
        {"scalar", ST_F32, 0, {0}},    {"none", ST_F32, 2, {0, 7}},
        {"h", ST_BF16, 3, {2, 2, 2}},  {"codes", ST_F8_E4M3, 2, {3, 5}},
        {"last empty", ST_U8, 1, {0}},
    };
    const int64_t l[] = {1, -2, INT64_MAX};
    const float b[] = {1, 2, 3, 4, 5, 6.5f}, s = -0.0f;
    const uint16_t h[] = {0x3F80, 0x4000, 0, 0x8000, 0x7F80, 0xFF80, 1, 0x4049};
    uint8_t codes[15];
    for (int i = 0; i < 15; i++) codes[i] = (uint8_t)(i * 9);
    SafetensorsWriter *w;
    MUST_OK(safetensors_create(&w, at("a.safetensors"), decl, 7));
    MUST_OK(safetensors_put(w, "long", l, 8));
    MUST_OK(safetensors_put(w, "long", l + 1, 16));
    assert_int_equal(safetensors_put(w, "short", &s, 4), E_INTERNAL); // there is no such tensor
    MUST_OK(safetensors_put(w, "b \"quoted\"", b, sizeof b));
    MUST_OK(safetensors_put(w, "scalar", &s, 4));
    assert_int_equal(safetensors_put(w, "h", h, 17), E_INTERNAL);
    MUST_OK(safetensors_put(w, "h", h, sizeof h));
    MUST_OK(safetensors_put(w, "codes", codes, sizeof codes));
    MUST_OK(safetensors_finish(&w, true));
    assert_null(w);
    FILE *f = fopen(at("a.safetensors"), "rb");
    uint64_t n;
    assert_int_equal(fread(&n, 8, 1, f), 1);
    assert_int_equal(n % 8, 0);
    fclose(f);

    Safetensors *st;
    MUST_OK(safetensors_open(&st, at("a.safetensors")));
    assert_int_equal(safetensors_count(st), 7);
    for (int i = 1; i < 7; i++) {
        assert_true(strcmp(safetensors_at(st, i - 1)->name, safetensors_at(st, i)->name) < 0);
    }
    const StTensor *t;
    MUST_OK(safetensors_get(st, "long", &t));
    assert_int_equal(t->dtype, ST_I64);
    assert_int_equal(t->rows, 3);
    assert_int_equal(t->cols, 1);
    assert_memory_equal(t->data, l, sizeof l);
    float out[8];
    MUST_OK(safetensors_read_f32(st, "b \"quoted\"", 1, 1, out));
    assert_memory_equal(out, b + 3, 12);
    MUST_OK(safetensors_read_f32(st, "scalar", 0, 1, out));
    assert_memory_equal(out, &s, 4);
    MUST_OK(safetensors_read_f32(st, "none", 0, 0, out));
    MUST_OK(safetensors_read_f32(st, "h", 0, 4, out));
    for (int i = 0; i < 8; i++) assert_true(f32_bits(out[i]) == (uint32_t)h[i] << 16);
    assert_int_equal(safetensors_read_f32(st, "h", 3, 2, out), E_INPUT);
    assert_int_equal(safetensors_read_f32(st, "h", -1, 2, out), E_INPUT);
    assert_int_equal(safetensors_read_f32(st, "long", 0, 1, out), E_INPUT);
    assert_int_equal(safetensors_read_f32(st, "absent", 0, 1, out), E_INPUT);
    assert_non_null(strstr(fail_message(), "absent"));
    safetensors_close(&st);
    assert_null(st);

    MUST_OK(safetensors_create(&w, at("b.safetensors"), decl, 7));
    MUST_OK(safetensors_put(w, "long", l, 16));
    assert_int_equal(safetensors_finish(&w, false), E_INTERNAL); // incomplete: removed
    assert_int_not_equal(access(at("b.safetensors"), F_OK), 0);
    const StDecl twice[] = {{"x", ST_U8, 1, {1}}, {"x", ST_U8, 1, {1}}};
    assert_int_equal(safetensors_create(&w, at("b.safetensors"), twice, 2), E_INTERNAL);
}

// Parts of tensors in any order are the file that whole tensors in turn make.
static void side_by_side(void **state) {
    (void)state;
    const StDecl decl[] = {{"s", ST_F32, 1, {2}}, {"h", ST_U16, 1, {2}}, {"q", ST_U8, 1, {5}}};
    const float s[] = {1, 2};
    const uint16_t h[] = {3, 4};
    const uint8_t q[] = {5, 6, 7, 8, 9};
    char a[1000], b[1000];
    SafetensorsWriter *w;
    MUST_OK(safetensors_create(&w, at("turn.safetensors"), decl, 3));
    MUST_OK(safetensors_put(w, "s", s, sizeof s));
    MUST_OK(safetensors_put(w, "h", h, sizeof h));
    MUST_OK(safetensors_put(w, "q", q, sizeof q));
    MUST_OK(safetensors_finish(&w, false));
    MUST_OK(safetensors_create(&w, at("side.safetensors"), decl, 3));
    MUST_OK(safetensors_put(w, "q", q, 3));
    MUST_OK(safetensors_put(w, "s", s, 4));
    MUST_OK(safetensors_put(w, "q", q + 3, 2));
    MUST_OK(safetensors_put(w, "h", h, sizeof h));
    assert_int_equal(safetensors_put(w, "q", q, 1), E_INTERNAL); // it is full
    MUST_OK(safetensors_put(w, "s", s + 1, 4));
    MUST_OK(safetensors_finish(&w, false));
    FILE *f = fopen(at("turn.safetensors"), "rb"), *g = fopen(at("side.safetensors"), "rb");
    size_t n = fread(a, 1, sizeof a, f);
    assert_true(n > 17 && n < sizeof a);
    assert_int_equal(fread(b, 1, sizeof b, g), n);
    assert_memory_equal(a, b, n);
    fclose(f);
    fclose(g);
    // A part that is missing in the middle is missed, though the file has its full length.
    MUST_OK(safetensors_create(&w, at("hole.safetensors"), decl, 3));
    MUST_OK(safetensors_put(w, "s", s, sizeof s));
    MUST_OK(safetensors_put(w, "q", q, sizeof q));
    assert_int_equal(safetensors_finish(&w, false), E_INTERNAL);
    assert_non_null(strstr(fail_message(), "'h' has 0 of 4 bytes"));
}

// A decoder by the definition: sign * 2^(e-bias) * (1 + m/2^bits), for all codes.
static double decode(uint32_t code, int ebits, int mbits) {
    uint32_t m = code & ((1u << mbits) - 1), e = code >> mbits & ((1u << ebits) - 1);
    int bias = (1 << (ebits - 1)) - 1;
    double v = e == 0 ? ldexp(m, 1 - bias - mbits) : ldexp(1 + ldexp(m, -mbits), (int)e - bias);
    if (e == (1u << ebits) - 1) v = m ? NAN : INFINITY;
    return code >> (ebits + mbits) & 1 ? -v : v;
}

static void conversions(void **state) {
    (void)state;
    static uint16_t all[65536];
    static float out[65536];
    uint8_t bytes[256];
    double d[2] = {1.0 / 3, -1e300};
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    for (int i = 0; i < 256; i++) bytes[i] = (uint8_t)i;
    const StDecl decl[] = {{"d", ST_F64, 1, {2}},
                           {"h", ST_F16, 2, {256, 256}},
                           {"e5", ST_F8_E5M2, 1, {256}},
                           {"e4", ST_F8_E4M3, 1, {256}}};
    SafetensorsWriter *w;
    MUST_OK(safetensors_create(&w, at("c.safetensors"), decl, 4));
    MUST_OK(safetensors_put(w, "d", d, sizeof d));
    MUST_OK(safetensors_put(w, "h", all, sizeof all));
    MUST_OK(safetensors_put(w, "e5", bytes, 256));
    MUST_OK(safetensors_put(w, "e4", bytes, 256));
    MUST_OK(safetensors_finish(&w, false));
    Safetensors *st;
    MUST_OK(safetensors_open(&st, at("c.safetensors")));
    MUST_OK(safetensors_read_f32(st, "d", 0, 2, out));
    assert_true(out[0] == (float)d[0] && out[1] == -INFINITY);
    MUST_OK(safetensors_read_f32(st, "h", 0, 256, out));
    for (uint32_t i = 0; i < 65536; i++) {
        double want = decode(i, 5, 10);
        assert_true(isnan(want) ? isnan(out[i])
                                : out[i] == want && !signbit(out[i]) == !signbit(want));
    }
    MUST_OK(safetensors_read_f32(st, "e5", 0, 256, out));
    for (uint32_t i = 0; i < 256; i++) {
        double want = decode(i, 5, 2);
        assert_true(isnan(want) ? isnan(out[i]) : out[i] == want);
    }
    MUST_OK(safetensors_read_f32(st, "e4", 0, 256, out));
    for (uint32_t i = 0; i < 256; i++) {
        double want = (i & 0x78) == 0x78
                          ? ((i & 7) == 7 ? NAN : ldexp(1 + (i & 7) / 8.0, 8) * (i >> 7 ? -1 : 1))
                          : decode(i, 4, 3);
        assert_true(isnan(want) ? isnan(out[i]) : out[i] == want);
    }
    safetensors_close(&st);
}

static void bad_headers(void **state) {
    (void)state;
#define T(name, dtype, shape, range)                                                               \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" range "}"
    static const struct {
        const char *header;
        size_t data;
        const char *why; // in the message; NULL = must be accepted
    } cases[] = {
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 8, NULL},
        {"{" T("a", "F32", "[2]", "[0,8]") "}   ", 8, NULL},
        {"{}", 0, NULL},
        {"{\"__metadata__\":{\"format\":\"pt\"}," T("b", "U8", "[]",
                                                    "[0,1]") "," T("a", "U8", "[0]", "[1,1]") "}",
         1, NULL},
        {"{" T("b", "U8", "[2]", "[1,3]") "," T("a", "U8", "[1]", "[0,1]") "," T("e", "U8", "[0]",
                                                                                 "[1,1]") "}",
         3, NULL},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 7, "outside"},
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 9, "after the last"},
        {"{" T("a", "F32", "[3]", "[0,8]") "}", 8, "do not make"},
        {"{" T("a", "F33", "[2]", "[0,8]") "}", 8, "F33"},
        {"{" T("a", "F32", "[2]", "[8,0]") "}", 8, "outside"},
        {"{" T("a", "F32", "[2]", "[-8,0]") "}", 8, "outside"},
        {"{" T("a", "F32", "[-2]", "[0,8]") "}", 8, "not a count"},
        {"{" T("a", "F32", "[2.0]", "[0,8]") "}", 8, "not a count"},
        {"{" T("a", "F32", "[2]", "[0.0,8.0]") "}", 8, "not integers"},
        {"{" T("a", "F32", "[2]", "[0,8,8]") "}", 8, "expected dtype"},
        {"{" T("a", "F32", "2", "[0,8]") "}", 8, "expected dtype"},
        {"{\"a\":7}", 0, "expected dtype"},
        {"{" T("a", "U8", "[4611686018427387904,4]", "[0,0]") "}", 0, "too many"},
        {"{" T("a", "F64", "[4611686018427387904]", "[0,0]") "}", 0, "do not make"},
        {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "dimensions"},
        {"{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[3,5]") "}", 5, "gap"},
        {"{" T("a", "U8", "[2]", "[0,2]") "," T("b", "U8", "[2]", "[1,3]") "}", 3, "overlap"},
        {"{" T("a", "U8", "[2]", "[1,3]") "}", 3, "gap"},
        {"{" T("a", "U8", "[1]", "[0,1]") "," T("a", "U8", "[1]", "[1,2]") "}", 2, "duplicate"},
        {"[1]", 0, "'{'"},
        {" {}", 0, "'{'"},
        {"{\"a\":", 0, "header"},
        {"{} x", 0, "header"},
        {"", 0, "'{'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_file(at("x.safetensors"), cases[i].header, cases[i].data);
        Safetensors *st;
        Err err = safetensors_open(&st, at("x.safetensors"));
        if (cases[i].why) {
            assert_int_equal(err, E_INPUT);
            assert_null(st);
            assert_non_null(strstr(fail_message(), "x.safetensors"));
            if (!strstr(fail_message(), cases[i].why)) fail_msg("case %zu: %s", i, fail_message());
        } else {
            MUST_OK(err);
            safetensors_close(&st);
        }
    }
    Safetensors *st;
    assert_int_equal(safetensors_open(&st, at("no such file")), E_INPUT);
    assert_int_equal(safetensors_open(&st, scratch_dir), E_INPUT); // a directory without a model
}

static void shards(void **state) {
    (void)state;
    const char *names[] = {"model.layers.0.w", "model.layers.1.w", "lm_head.weight"};
    const char *files[] = {"model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors",
                           "model-00002-of-00002.safetensors"};
    char sub[96];
    snprintf(sub, sizeof sub, "%s/hf", scratch_dir);
    mkdir(sub, 0700);
    for (int i = 0; i < 3; i += 2) {
        StDecl decl[2] = {{names[i], ST_F32, 1, {2}}, {names[i == 0], ST_F32, 1, {2}}};
        SafetensorsWriter *w;
        char path[160];
        snprintf(path, sizeof path, "%s/%s", sub, files[i]);
        MUST_OK(safetensors_create(&w, path, decl, i == 0 ? 2 : 1));
        for (int k = 0; k < (i == 0 ? 2 : 1); k++) {
            float x[2] = {(float)(i + k), 10};
            MUST_OK(safetensors_put(w, decl[k].name, x, 8));
        }
        MUST_OK(safetensors_finish(&w, false));
    }
    Safetensors *st;
    MUST_OK(safetensors_write_index(at("hf/model.safetensors.index.json"), names, files, 3, 24));
    MUST_OK(safetensors_open(&st, sub));
    assert_int_equal(safetensors_count(st), 3);
    for (int i = 0; i < 3; i++) {
        float x[2];
        MUST_OK(safetensors_read_f32(st, names[i], 0, 2, x));
        assert_true(x[0] == (float)i && x[1] == 10);
        assert_non_null(strstr(safetensors_find(st, names[i])->file, files[i]));
    }
    safetensors_close(&st);
    const char *wrong[] = {files[0], files[2], files[2]}; // the index lies
    MUST_OK(safetensors_write_index(at("hf/model.safetensors.index.json"), names, wrong, 3, 24));
    assert_int_equal(safetensors_open(&st, sub), E_INPUT);
    assert_non_null(strstr(fail_message(), "should be in"));
    const char *absent[] = {files[0], files[0], "gone.safetensors"};
    MUST_OK(safetensors_write_index(at("hf/model.safetensors.index.json"), names, absent, 3, 24));
    assert_int_equal(safetensors_open(&st, sub), E_INPUT);
    assert_non_null(strstr(fail_message(), "gone.safetensors"));
    const char *outside[] = {files[0], files[0], "../x.safetensors"};
    MUST_OK(safetensors_write_index(at("hf/model.safetensors.index.json"), names, outside, 3, 24));
    assert_int_equal(safetensors_open(&st, sub), E_INPUT);
    scratch_write_text(at("hf/model.safetensors.index.json"), "{\"weight_map\":");
    assert_int_equal(safetensors_open(&st, sub), E_INPUT);
}

static void fuzz(void **state) {
    (void)state;
    const char *header =
        "{\"__metadata__\":{\"format\":\"pt\"}," T("model.a", "F32", "[3,4]", "[0,48]") "," T(
            "b", "BF16", "[5]", "[48,58]") "," T("c", "I64", "[]", "[58,66]") "}";
    size_t n = 8 + strlen(header) + 66;
    put_file(at("good.safetensors"), header, 66);
    char *image = malloc(n), *copy = malloc(n);
    FILE *f = fopen(at("good.safetensors"), "rb");
    assert_int_equal(fread(image, 1, n, f), n);
    fclose(f);
    int refused = 0;
    const int trials = 3000;
    for (int trial = 0; trial < trials; trial++) {
        Philox r = philox(1, 1, (uint64_t)trial);
        size_t len = n;
        memcpy(copy, image, n);
        if (trial % 3 == 0)
            len = r.v[0] % n;
        else
            for (uint32_t k = 0; k <= r.v[3] % 3; k++) {
                uint32_t where = (uint32_t)(philox(2, k, (uint64_t)trial).v[0] % (n - 66));
                copy[where] ^= (char)(1 << philox(2, k, (uint64_t)trial).v[1] % 8);
            }
        scratch_write(at("fuzz.safetensors"), copy, len);
        Safetensors *st;
        Err err = safetensors_open(&st, at("fuzz.safetensors"));
        if (err != OK) {
            assert_int_equal(err, E_INPUT);
            assert_null(st);
            refused++;
            continue;
        }
        for (int64_t i = 0; i < safetensors_count(st); i++) { // every byte must be readable
            const StTensor *t = safetensors_at(st, i);
            volatile uint8_t sum = 0;
            for (size_t k = 0; k < t->bytes; k++) sum ^= ((const uint8_t *)t->data)[k];
        }
        safetensors_close(&st);
    }
    assert_true(refused > trials / 2);
    free(image);
    free(copy);
}

static void disk_full(void **state) {
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    static uint8_t x[20000];
    const StDecl decl[] = {{"x", ST_U8, 1, {20000}}};
    for (int trial = 0; trial < 3; trial++) {
        small = old;
        small.rlim_cur = (rlim_t)(trial * 9000);
        setrlimit(RLIMIT_FSIZE, &small);
        SafetensorsWriter *w;
        Err err = safetensors_create(&w, at("full.safetensors"), decl, 1);
        if (err == OK) err = safetensors_put(w, "x", x, sizeof x);
        if (err == OK) err = safetensors_finish(&w, true);
        setrlimit(RLIMIT_FSIZE, &old);
        assert_int_equal(err, E_OUTPUT);
        assert_non_null(strstr(fail_message(), "full.safetensors"));
        safetensors_drop(&w);
        assert_int_not_equal(access(at("full.safetensors"), F_OK), 0);
    }
}

static Err write_bytes(const char *path, uint8_t value, bool is_given_up) {
    const StDecl decl[] = {{"x", ST_U8, 1, {1}}};
    SafetensorsWriter *w;
    Err err = safetensors_create(&w, path, decl, 1);
    if (err == OK && !is_given_up) err = safetensors_put(w, "x", &value, 1);
    if (err == OK && !is_given_up) err = safetensors_finish(&w, false);
    safetensors_drop(&w);
    return err;
}

static uint8_t read_byte(const char *path) {
    Safetensors *st;
    MUST_OK(safetensors_open(&st, path));
    uint8_t value = *(const uint8_t *)safetensors_at(st, 0)->data;
    safetensors_close(&st);
    return value;
}

// What was there before stays until the new file is whole; links are followed; a device is neither
// replaced nor removed.
static void replaces(void **state) {
    (void)state;
    MUST_OK(write_bytes(at("old.safetensors"), 1, false));
    MUST_OK(write_bytes(at("old.safetensors"), 2, true));
    assert_int_equal(read_byte(at("old.safetensors")), 1);
    assert_int_equal(symlink("old.safetensors", at("link.safetensors")), 0);
    MUST_OK(write_bytes(at("link.safetensors"), 3, false));
    assert_int_equal(read_byte(at("old.safetensors")), 3);
    assert_int_equal(mkfifo(at("pipe"), 0600), 0);
    int fd = open(at("pipe"), O_RDWR);
    assert_true(fd >= 0);
    struct stat st;
    MUST_OK(write_bytes(at("pipe"), 4, true));
    MUST_OK(write_bytes(at("pipe"), 4, false));
    assert_int_equal(stat(at("pipe"), &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    close(fd);
    assert_int_equal(mkdir(at("folder"), 0700), 0);
    assert_int_equal(write_bytes(at("folder"), 5, false), E_OUTPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),  cmocka_unit_test(side_by_side), cmocka_unit_test(conversions),
        cmocka_unit_test(bad_headers), cmocka_unit_test(shards),       cmocka_unit_test(fuzz),
        cmocka_unit_test(disk_full),   cmocka_unit_test(replaces),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
