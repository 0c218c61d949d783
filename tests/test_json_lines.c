// test_json_lines.c - files of JSON lines: fields, lists, texts, lines of any length; what is an object and what is
// not.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_lines.h"
#include "must.h"
#include "scratch_dir.h"

static JsonLines *lines_of(const char *text) {
    JsonLines *j = NULL;
    MUST_OK(json_lines_open(&j, scratch_write_text(at("l.jsonl"), text)));
    return j;
}

static bool next(JsonLines *j) {
    bool is_there;
    MUST_OK(json_lines_next(j, &is_there));
    return is_there;
}

static void assert_text(JsonField f, const char *expected) {
    char text[64];
    json_field_text(f, text, sizeof text);
    assert_string_equal(text, expected);
}

static void test_fields(void **state) {
    (void)state;
    JsonLines *j =
        lines_of("{\"step\":12,\"loss\":-1.5e-3,\"nan\":null,\"is\":true,\"list\":[1, null,\"x,]\",[2],{}],"
                 "\"in\":{\"site\":[\"L0\"],\"n\":7},\"empty\":[]}\r\n"
                 " {} \n{\"text\":\"a\\\"\\\\\\/\\n\\u00e9\\u20acz\",\"step\":0}\n");
    assert_true(next(j));
    assert_true(json_field_number(json_lines_field(j, "step")) == 12);
    assert_true(json_field_number(json_lines_field(j, "loss")) == -1.5e-3);
    assert_true(isnan(json_field_number(json_lines_field(j, "nan"))));
    assert_true(isnan(json_field_number(json_lines_field(j, "is"))));
    assert_true(isnan(json_field_number(json_lines_field(j, "absent"))));
    assert_null(json_lines_field(j, "ste").value);
    assert_text(json_lines_field(j, "absent"), "");
    assert_text(json_lines_field(j, "is"), "true");
    assert_true(json_field_number(json_lines_field(j, "in.n")) == 7);
    assert_text(json_lines_field(j, "in.site"), "[\"L0\"]");
    assert_null(json_lines_field(j, "in.absent").value);
    assert_null(json_lines_field(j, "step.n").value);
    static const char *const elements[] = {"1", "null", "x,]", "[2]", "{}"};
    static const char *const keys[] = {"step", "loss", "nan", "is", "list", "in", "empty"};
    JsonField list = json_lines_field(j, "list"), f = {NULL, NULL};
    for (size_t i = 0; i < 5; i++) assert_text(json_field_element(list, i), elements[i]);
    assert_null(json_field_element(list, 5).value);
    assert_null(json_field_element(json_lines_field(j, "empty"), 0).value);
    assert_null(json_field_element(json_lines_field(j, "step"), 0).value);
    assert_null(json_field_element(json_lines_field(j, "absent"), 0).value);
    for (int i = 0; i < 7; i++) assert_string_equal((f = json_lines_each(j, f)).key, keys[i]);
    assert_null(json_lines_each(j, f).value);
    assert_text(json_lines_field(j, "loss"), "-0.0015");
    assert_true(next(j));
    assert_null(json_lines_each(j, (JsonField){NULL, NULL}).value);
    assert_true(next(j));
    assert_int_equal(json_lines_line(j), 3);
    assert_text(json_lines_field(j, "text"), "a\"\\/\n\xc3\xa9\xe2\x82\xacz");
    char small[7]; // what is cut ends with a whole character
    json_field_text(json_lines_field(j, "text"), small, sizeof small);
    assert_string_equal(small, "a\"\\/\n");
    assert_false(next(j));
    assert_false(next(j));
    assert_int_equal(json_lines_damage(j).lines, 0);
    assert_false(json_lines_damage(j).is_torn);
    json_lines_close(&j);
}

static void test_damage(void **state) {
    (void)state;
    JsonLines *j =
        lines_of("{\"a\":1}\n\nrubbish\n[1]\n{\"a\":2}\n{\"a\":3}x\n{\"a\":\"\xff\"}\n{\"a\":4}\n{\"a\":5}");
    for (int k = 1; k <= 4; k += k == 2 ? 2 : 1) {
        assert_true(next(j));
        assert_true(json_field_number(json_lines_field(j, "a")) == k);
    }
    assert_false(next(j));
    assert_int_equal(json_lines_damage(j).lines, 5);
    assert_int_equal(json_lines_damage(j).first, 2);
    assert_true(json_lines_damage(j).is_torn);
    json_lines_close(&j);
    j = lines_of("");
    assert_false(next(j));
    assert_false(json_lines_damage(j).is_torn);
    json_lines_close(&j);
    json_lines_close(&j);
    MUST_FAIL(json_lines_open(&j, at("absent")), E_INPUT, "absent");
    assert_null(j);
    MUST_OK(json_lines_open(&j, scratch_dir));
    bool is_there;
    MUST_FAIL(json_lines_next(j, &is_there), E_INPUT, "cannot read");
    json_lines_close(&j);
}

// Lines of any length.
static void test_long(void **state) {
    (void)state;
    static const size_t sizes[] = {10, 4087, 700000, 40};
    FILE *f = fopen(at("long"), "wb");
    for (size_t i = 0; i < 4; i++) {
        fprintf(f, "{\"n\":%zu,\"t\":\"", i);
        for (size_t k = 0; k < sizes[i]; k++) putc('a' + (int)i, f);
        fputs("\"}\n", f);
    }
    fclose(f);
    JsonLines *j = NULL;
    char *text = malloc(800000);
    MUST_OK(json_lines_open(&j, at("long")));
    for (int i = 0; i < 4; i++) {
        assert_true(next(j));
        assert_true(json_field_number(json_lines_field(j, "n")) == i);
        json_field_text(json_lines_field(j, "t"), text, 800000);
        assert_int_equal(strlen(text), sizes[i]);
    }
    assert_false(next(j));
    assert_int_equal(json_lines_damage(j).lines, 0);
    free(text);
    json_lines_close(&j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_long),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
