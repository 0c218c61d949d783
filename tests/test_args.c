// test_args.c - the flag parser: both spellings, repeats, defaults, and what wrong usage is told.
#include "../tools/args.c"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static const Flag flags[] = {
    {"config", "FILE", NULL, FLAG_REQUIRED, "the file"},
    {"set", "KEY=VALUE", NULL, FLAG_REPEAT, "override"},
    {"device", "auto|cpu|cuda", "auto", 0, "where"},
    {"steps", "N", "10", 0, "how many"},
    {"resume", "auto|never|PATH[@STEP]", NULL, 0, "from where"},
    {"dry-run", NULL, NULL, 0, "stop early"},
};
static const Command command = {"tessera try", "INPUT...", "Tries.", flags, COUNT_OF(flags), 1, 2};

#define PARSE(a, ...)                                                                              \
    args_parse((a), &command, COUNT_OF(((const char *[]){"try", __VA_ARGS__})),                    \
               (char **)(const char *[]){"try", __VA_ARGS__})

// A word in capitals among the choices is any text.
static void test_open_choice(void **state) {
    (void)state;
    Args a;
    const char *const given[] = {"auto", "runs/x@3", "PATH"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(PARSE(&a, "x", "--config", "f", "--resume", given[i]), OK);
        assert_string_equal(args_get(&a, "resume"), given[i]);
        args_free(&a);
    }
}

static void test_accepts(void **state) {
    (void)state;
    Args a;
    assert_int_equal(
        PARSE(&a, "x", "--config", "f", "--set=a=b", "--set", "c=d", "--dry-run", "--", "--y"), OK);
    assert_string_equal(args_get(&a, "config"), "f");
    assert_int_equal(args_count(&a, "set"), 2);
    assert_string_equal(args_nth(&a, "set", 0), "a=b");
    assert_string_equal(args_nth(&a, "set", 1), "c=d");
    assert_null(args_nth(&a, "set", 2));
    assert_true(args_has(&a, "dry-run"));
    assert_false(args_has(&a, "device"));
    assert_string_equal(args_get(&a, "device"), "auto");
    assert_int_equal(a.noperands, 2);
    assert_string_equal(a.operands[0], "x");
    assert_string_equal(a.operands[1], "--y");
    int64_t steps = 0;
    assert_int_equal(args_int(&a, "steps", 0, 100, &steps), OK);
    assert_int_equal(steps, 10);
    args_free(&a);

    assert_int_equal(PARSE(&a, "--config=f", "--steps", "-3", "-", "--device=cpu"), OK);
    assert_int_equal(args_int(&a, "steps", -5, 100, &steps), OK);
    assert_int_equal(steps, -3);
    assert_int_equal(args_int(&a, "steps", 0, 100, &steps), E_USAGE);
    double number = 0;
    assert_int_equal(args_float(&a, "steps", -5, 100, &number), OK);
    assert_true(number == -3);
    assert_string_equal(args_get(&a, "device"), "cpu");
    args_free(&a);
}

static void test_refuses(void **state) {
    (void)state;
    Args a;
    assert_int_equal(PARSE(&a, "x", "--confg=f"), E_USAGE);
    assert_non_null(strstr(fail_message(), "did you mean --config?"));
    assert_int_equal(PARSE(&a, "x", "--zzzzzzzz"), E_USAGE);
    assert_null(strstr(fail_message(), "did you mean"));
    assert_int_equal(PARSE(&a, "x"), E_USAGE);
    assert_non_null(strstr(fail_message(), "--config is missing"));
    assert_int_equal(PARSE(&a, "x", "--config"), E_USAGE);
    assert_non_null(strstr(fail_message(), "type --config FILE"));
    assert_int_equal(PARSE(&a, "x", "--config", "--dry-run"), E_USAGE);
    assert_int_equal(PARSE(&a, "x", "--config=f", "--dry-run=1"), E_USAGE);
    assert_int_equal(PARSE(&a, "x", "--config=f", "--device=tpu"), E_USAGE);
    assert_non_null(strstr(fail_message(), "auto|cpu|cuda"));
    assert_int_equal(PARSE(&a, "x", "--config=f", "--device=aut"), E_USAGE);
    assert_int_equal(PARSE(&a, "x", "--config=f", "--config=g"), E_USAGE);
    assert_int_equal(PARSE(&a, "x", "--config=f", "-q"), E_USAGE);
    assert_int_equal(PARSE(&a, "--config=f"), E_USAGE);
    assert_int_equal(PARSE(&a, "x", "y", "z", "--config=f"), E_USAGE);
    assert_non_null(strstr(fail_message(), "'z'"));
    int64_t steps = 0;
    assert_int_equal(PARSE(&a, "x", "--config=f", "--steps=1x"), OK);
    assert_int_equal(args_int(&a, "steps", 0, 100, &steps), E_USAGE);
    args_free(&a);
    assert_int_equal(PARSE(&a, "x", "--config=f", "--steps=99999999999999999999"), OK);
    assert_int_equal(args_int(&a, "steps", 0, INT64_MAX, &steps), E_USAGE);
    args_free(&a);
}

static double seconds_of(const char *text) {
    Args a;
    double s = -7.0;
    char flag[64];
    snprintf(flag, sizeof flag, "--steps=%s", text);
    assert_int_equal(PARSE(&a, "x", "--config=f", flag), OK);
    Err err = args_seconds(&a, "steps", 1, 1e6, &s);
    assert_true(err == OK ? s >= 1 : s == -7.0);
    args_free(&a);
    fail_clear();
    return err == OK ? s : -1.0;
}

static void test_durations(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double seconds;
    } good[] = {{"3600", 3600},   {"1.5", 1.5},      {"90m", 5400},   {"90.5s", 90.5},          {"1h30m", 5400},
                {"2d", 172800},   {"1d2h3m4s", 93784}, {"1:30:00", 5400}, {"90:00", 5400},      {"0:02", 2},
                {"1-12:00:00", 129600}, {"100:00:00", 360000}};
    for (int i = 0; i < COUNT_OF(good); i++) assert_true(seconds_of(good[i].text) == good[i].seconds);
    static const char *const bad[] = {"", "m", "0", "-5", "1:60", "1:2:3:4", "1h1", "1m1h", "5x", "1e9", "1-2",
                                      "1-30:00", ":30", "30:", "1h 30m", "nan", "inf", "0x10",
                                      "2m2m", "1:-5"};
    for (int i = 0; i < COUNT_OF(bad); i++) {
        if (seconds_of(bad[i]) >= 0) fail_msg("'%s' was taken for %g s", bad[i], seconds_of(bad[i]));
    }
}

// Whatever the flags, no line of the help is wider than a terminal, and nothing is lost.
static void test_help_fits(void **state) {
    (void)state;
    static const Flag many[] = {
        {"resume-from-somewhere", "auto|never|PATH[@STEP]", NULL, 0,
         "a text that is so long that it does not fit into a line of eighty columns, and then "
         "some"},
        {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT | FLAG_REQUIRED, "override one"},
        {"heldout-text-of-the-baselines", "FILE", "none", 0, "short"},
    };
    static const Command wide = {"tessera try",
                                 "INPUT...",
                                 "Many words about this command, on\nmore lines than one, every "
                                 "one of them as short as a terminal wants it.",
                                 many,
                                 COUNT_OF(many),
                                 1,
                                 1};
    char text[4096] = "";
    FILE *f = fmemopen(text, sizeof text, "w");
    args_help(&wide, f);
    fclose(f);
    assert_int_equal(strncmp(text, "usage: tessera try --set SECTION.KEY=VALUE...\n", 46), 0);
    assert_non_null(strstr(text, "[--heldout-text-of-the-baselines FILE] INPUT...\n"));
    assert_non_null(strstr(text, "(required) (may be repeated)\n"));
    assert_non_null(strstr(text, " short (default none)\n"));
    assert_non_null(strstr(text, "on more lines than one, every"));
    for (const char *line = text; *line;) {
        size_t n = strcspn(line, "\n");
        assert_in_range(n, 0, 80);
        line += n + 1;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_choice), cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_refuses), cmocka_unit_test(test_durations), cmocka_unit_test(test_help_fits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
