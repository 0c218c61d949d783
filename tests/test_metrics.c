// test_metrics.c - metrics.jsonl (keys, cutting, full disk), events.jsonl, TensorBoard records, the
// line.
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "log.h"
#include "metrics.h"
#include "scratch_dir.h"
#include "tensorboard.h"

static void run_path(char out[256], const char *name) {
    snprintf(out, 256, "%s/%s", scratch_dir, name);
}

static size_t read_all(const char *name, char *buf, size_t cap) {
    char path[256];
    run_path(path, name);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    size_t n = fread(buf, 1, cap - 1, f);
    buf[n] = '\0';
    fclose(f);
    return n;
}

static void write_all(const char *name, const char *text) {
    scratch_write_text(at(name), text);
}

static StepMetrics sample(int64_t step) {
    StepMetrics s;
    memset(&s, 0, sizeof s);
    s.step = step;
    s.tokens = step * 4096;
    s.samples = step * 8;
    s.loss = 10.8342915f;
    s.lm_loss = 8.33407116f;
    s.mtp_loss = 8.3324461f;
    s.nmtp = 1;
    s.mtp[0] = 8.3324461f;
    s.balance_loss = 0.000486f;
    s.grad_norm = 1.25;
    s.lr = 1e-4;
    s.tokens_per_s = 12345;
    s.step_ms = 331.5;
    s.mfu = NAN;
    s.maxvio = 0.75;
    s.dead_experts = 0.03125;
    s.a2a_dispatch_bytes = 9007199254740993; // 2^53 + 1: must not go through a double
    s.a2a_combine_bytes = 22;
    s.a2a_meta_bytes = 33;
    s.fp8.saturated = 0.0001;
    s.fp8.underflow = 0.0123;
    s.rss_bytes = 3.5e9;
    s.global_batch = 8;
    s.eta_s = 3700;
    s.unsaved_steps = 3;
    s.unsaved_s = 65.5;
    return s;
}

static Metrics *open_at(int64_t loaded) {
    Metrics *m;
    assert_int_equal(metrics_open(&m, scratch_dir, loaded, 0), OK);
    return m;
}

static void test_keys(void **state) {
    (void)state;
    Metrics *m = open_at(0);
    StepMetrics s = sample(1);
    assert_int_equal(metrics_step(m, &s, 200, false), OK);
    s = sample(2);
    s.has_hash = true;
    s.state_hash = 0x00FEDCBA98765432u;
    s.route_hash = 0x12u;
    s.mfu = 0.455;
    s.loss = INFINITY;
    s.skipped = 16;
    s.has_slow = true;
    s.slow_rank = 5;
    s.slow_factor = 1.25;
    assert_int_equal(metrics_step(m, &s, 200, false), OK);
    metrics_close(&m);
    assert_null(m);
    char text[8192];
    read_all("metrics.jsonl", text, sizeof text);
    char *second = strchr(text, '\n') + 1;
    second[-1] = '\0';
    assert_string_equal(
        text,
        "{\"step\":1,\"tokens\":4096,\"samples\":8,\"global_batch\":8,\"loss\":10.8342915,\"lm_"
        "loss\":8.33407116,"
        "\"mtp_loss\":8.3324461,\"mtp_losses\":[8.3324461],\"balance_loss\":0.000486000004,\"grad_"
        "norm\":1.25,"
        "\"lr\":0.0001,\"tokens_per_s\":12345,\"step_ms\":331.5,\"mfu\":null,\"maxvio\":0.75,"
        "\"dead_experts\":0.03125,\"a2a_dispatch_bytes\":9007199254740993,\"a2a_combine_bytes\":22,"
        "\"a2a_meta_bytes\":33,\"fp8_saturated\":0.0001,\"fp8_underflow\":0.0123,\"fp8_nonfinite_"
        "tiles\":0,"
        "\"rss_bytes\":3.5e+09,\"eta_s\":3700,\"unsaved_steps\":3,\"unsaved_s\":65.5}");
    assert_non_null(strstr(second, "\"loss\":null,"));
    assert_non_null(strstr(second, "\"mfu\":0.455,"));
    assert_non_null(strstr(second, ""
                                   ",\"state_hash\":\"00fedcba98765432\",\"route_hash\":\"0000000000000012\"}\n"));
    assert_null(strchr(second, '\n')[1] ? second : NULL);
}

// The rows of a made-up model: block and site of row k are (k / 3, k % 3 + 5).
enum { BLOCKS = 400, ROWS = 3 * BLOCKS };

static Health *made_up_health(void) {
    static HealthRow row[ROWS];
    static Health h = {.n = ROWS, .row = row, .nrows = ROWS};
    for (int k = 0; k < ROWS; k++) {
        HealthRow r = {site_label(k / 3, (Site)(k % 3 + 5)), k * 1e-7, 1.0 / (k + 3), k % 2,
                       0x1p-48, ldexp(1.0, k % 60 - 50), 0x1p7, k * 0.25};
        if (k == 7) r.scale_min = r.scale_median = r.scale_max = NAN;
        row[k] = r;
    }
    return &h;
}

static Shadow *made_up_shadow(int n) {
    static ShadowRow row[5];
    static double packed[15];
    static Shadow h = {.n = 15, .packed = packed, .row = row};
    h.nrows = n;
    for (int k = 0; k < n; k++) {
        ShadowRow r = {{"L0.o.fprop"}, k == 3 ? 0.0875 : 0.01 * k};
        r.gemm.s[1] = (char)('0' + k);
        row[k] = r;
    }
    return &h;
}

static json_t *array_of(json_t *object, const char *key, size_t n) {
    json_t *a = json_object_get(object, key);
    if (!json_is_array(a) || json_array_size(a) != n)
        fail_msg("%s: not an array of %zu but of %zu", key, n, json_array_size(a));
    return a;
}

// The objects are JSON whatever their length, arrays in step, and only where they belong.
static void test_arrays(void **state) {
    (void)state;
    Metrics *m = open_at(0);
    for (int i = 1; i <= 4; i++) {
        StepMetrics s = sample(i);
        if (i == 2 || i == 3) s.health = made_up_health();
        if (i == 3 || i == 4) s.shadow = made_up_shadow(5);
        assert_int_equal(metrics_step(m, &s, 200, false), OK);
    }
    metrics_close(&m);
    static char text[2000000];
    read_all("metrics.jsonl", text, sizeof text);
    char *line = text;
    for (int i = 1; i <= 4; i++, line = strchr(line, '\n') + 1) {
        json_error_t why;
        json_t *all = json_loads(line, JSON_DISABLE_EOF_CHECK | JSON_REJECT_DUPLICATES, &why);
        if (!all) fail_msg("step %d, column %d: %s", i, why.column, why.text);
        assert_int_equal(json_integer_value(json_object_get(all, "step")), i);
        json_t *h = json_object_get(all, "fp8_health"), *g = json_object_get(all, "fp8_shadow");
        assert_int_equal(h != NULL, i == 2 || i == 3);
        assert_int_equal(g != NULL, i == 3 || i == 4);
        if (h) {
            static const char *const keys[] = {"site",      "saturated",    "underflow", "nonfinite_tiles",
                                               "scale_min", "scale_median", "scale_max", "amax"};
            assert_int_equal(json_object_size(h), 8);
            for (int k = 0; k < 8; k++) array_of(h, keys[k], ROWS);
            const HealthRow *want = made_up_health()->row;
            for (size_t k = 0; k < ROWS; k++) {
                assert_string_equal(json_string_value(json_array_get(array_of(h, "site", ROWS), k)), want[k].site.s);
                double got[7];
                for (int j = 1; j < 8; j++) {
                    json_t *v = json_array_get(json_object_get(h, keys[j]), k);
                    assert_true(json_is_number(v) || (json_is_null(v) && k == 7 && j >= 4 && j <= 6));
                    got[j - 1] = json_number_value(v);
                }
                assert_true(fabs(got[0] - want[k].saturated) <= 1e-5 * want[k].saturated);
                assert_true(fabs(got[1] - want[k].underflow) <= 1e-5 * want[k].underflow);
                assert_true(got[2] == (double)want[k].nonfinite_tiles && got[6] == want[k].amax);
                assert_true(k == 7 || fabs(got[4] / want[k].scale_median - 1) < 1e-5);
            }
        }
        if (g) {
            assert_string_equal(json_string_value(json_array_get(array_of(g, "gemm", 5), 4)), "L4.o.fprop");
            assert_true(json_number_value(json_array_get(array_of(g, "error", 5), 3)) == 0.0875);
        }
        json_decref(all);
    }
    assert_int_equal(*line, '\0');
}

// %.9g of a float reads back as the same float.
static void test_floats_round_trip(void **state) {
    (void)state;
    Metrics *m = open_at(0);
    float want[50];
    for (int i = 0; i < 50; i++) {
        StepMetrics s = sample(i + 1);
        want[i] = s.loss = expf(sinf((float)i * 12.9898f) * 20.0f);
        assert_int_equal(metrics_step(m, &s, 50, false), OK);
    }
    metrics_close(&m);
    static char text[65536];
    read_all("metrics.jsonl", text, sizeof text);
    char *at = text;
    for (int i = 0; i < 50; i++) {
        at = strstr(at, "\"loss\":") + 7;
        assert_true(strtof(at, NULL) == want[i]);
    }
}

static void expect_steps(const char *want) {
    static char text[65536];
    char got[256] = "";
    read_all("metrics.jsonl", text, sizeof text);
    for (char *at = text; (at = strstr(at, "{\"step\":")); at++) {
        snprintf(got + strlen(got), sizeof got - strlen(got), "%ld ", strtol(at + 8, NULL, 10));
    }
    assert_string_equal(got, want);
    size_t n = strlen(text);
    assert_true(n == 0 || text[n - 1] == '\n');
}

static void test_cut_on_open(void **state) {
    (void)state;
    const char *lines =
        "{\"step\":1,\"loss\":3}\n{\"step\":2,\"loss\":3}\n{\"step\":3,\"loss\":3}\n"
        "{\"step\":4,\"loss\":3}\n{\"step\":5,\"lo";
    static const struct {
        int64_t loaded;
        const char *want;
    } cases[] = {{0, ""},         {1, "1 "},       {3, "1 2 3 "},
                 {4, "1 2 3 4 "}, {5, "1 2 3 4 "}, {90, "1 2 3 4 "}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_all("metrics.jsonl", lines);
        Metrics *m = open_at(cases[i].loaded);
        expect_steps(cases[i].want);
        metrics_close(&m);
    }
    // a whole last object whose newline was lost is torn too; damaged and repeated lines go
    write_all("metrics.jsonl",
              "{\"step\":1}\nrubbish\n{\"step\":2}\n{\"step\":2}\n{\"step\":1}\n{\"step\":3}");
    Metrics *m = open_at(9);
    expect_steps("1 2 ");
    StepMetrics s = sample(3);
    assert_int_equal(metrics_step(m, &s, 9, false), OK);
    metrics_close(&m);
    expect_steps("1 2 3 ");
    char path[256];
    run_path(path, "metrics.jsonl.tmp");
    assert_int_not_equal(access(path, F_OK), 0);
}

static void test_events(void **state) {
    (void)state;
    write_all("events.jsonl", "{\"a\":1}\n{\"torn\":");
    Metrics *m = open_at(0);
    assert_int_equal(metrics_event(m, "start", "%s", ""), OK);
    char text[64];
    metrics_escape(text, sizeof text, "a \"b\" \\ c\n");
    assert_string_equal(text, "a \\\"b\\\" \\\\ c\\u000a");
    assert_int_equal(metrics_event(m, "save", "\"step\":%d,\"why\":\"%s\"", 3, text), OK);
    metrics_close(&m);
    char all[1024];
    read_all("events.jsonl", all, sizeof all);
    assert_non_null(strstr(all, "{\"a\":1}\n{\"time\":"));
    assert_null(strstr(all, "torn"));
    assert_non_null(strstr(all, ",\"event\":\"start\"}\n"));
    assert_non_null(
        strstr(all, ",\"event\":\"save\",\"step\":3,\"why\":\"a \\\"b\\\" \\\\ c\\u000a\"}\n"));
}

// The last word on a step's evaluation counts, of that step only.
static void test_stopped_evaluation(void **state) {
    (void)state;
    char dir[256];
    run_path(dir, "");
    write_all("events.jsonl", "{\"a\":1}\nrubbish\n");
    assert_false(metrics_eval_is_stopped(dir, 3));
    Metrics *m = open_at(0);
    assert_int_equal(metrics_event(m, EVENT_EVAL, "\"step\":%d,\"loss\":%d", 3, 1), OK);
    assert_false(metrics_eval_is_stopped(dir, 3));
    assert_int_equal(metrics_event(m, EVENT_EVAL_STOPPED, "\"step\":%d", 3), OK);
    assert_int_equal(metrics_event(m, EVENT_EVAL, "\"step\":%d,\"loss\":%d", 33, 1), OK);
    assert_int_equal(metrics_event(m, "save", "\"step\":%d", 3), OK);
    assert_true(metrics_eval_is_stopped(dir, 3));
    assert_false(metrics_eval_is_stopped(dir, 33));
    assert_int_equal(metrics_event(m, EVENT_EVAL, "\"step\":%d,\"loss\":%d", 3, 1), OK);
    assert_false(metrics_eval_is_stopped(dir, 3));
    metrics_close(&m);
    run_path(dir, "not/there");
    assert_false(metrics_eval_is_stopped(dir, 3));
}

static void test_other_ranks_are_silent(void **state) {
    (void)state;
    char nowhere[256];
    run_path(nowhere, "not/there");
    Metrics *m;
    assert_int_equal(metrics_open(&m, nowhere, 0, 3), OK);
    StepMetrics s = sample(1);
    assert_int_equal(metrics_step(m, &s, 9, true), OK);
    assert_int_equal(metrics_event(m, "x", "%s", ""), OK);
    metrics_close(&m);
    assert_int_equal(metrics_open(&m, nowhere, 0, 0), E_OUTPUT);
    assert_null(m);
}

// A file that may not grow stands for a full disk: the error comes back and whole lines stay.
static void test_full_disk(void **state) {
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    Metrics *m = open_at(0);
    StepMetrics s = sample(1);
    assert_int_equal(metrics_step(m, &s, 9, false), OK);
    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    tight = old;
    tight.rlim_cur = 900;
    setrlimit(RLIMIT_FSIZE, &tight);
    s = sample(2);
    Err err = metrics_step(m, &s, 9, false);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(err, E_OUTPUT);
    assert_non_null(strstr(fail_message(), "metrics.jsonl"));
    metrics_close(&m);
    expect_steps("1 ");
}

// An independent reader of the event files.
static uint32_t slow_masked_crc(const uint8_t *p, size_t n) {
    uint32_t table[256], crc = ~0u;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
        table[i] = c;
    }
    for (size_t i = 0; i < n; i++) crc = table[(crc ^ p[i]) & 255] ^ (crc >> 8);
    crc = ~crc;
    return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

static uint64_t varint(const uint8_t **p) {
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
        uint8_t b = *(*p)++;
        v |= (uint64_t)(b & 127) << shift;
        if (b < 128) return v;
    }
}

// Looks for tag's value in an event; returns its step, -1 if it has no such tag.
static int64_t event_scalar(const uint8_t *p, size_t n, const char *tag, float *value) {
    const uint8_t *end = p + n, *summary_end;
    int64_t step = -1;
    bool is_found = false;
    while (p < end) {
        uint64_t key = varint(&p);
        if (key == (1 << 3 | 1))
            p += 8;
        else if (key == (2 << 3 | 0))
            step = (int64_t)varint(&p);
        else if (key == (3 << 3 | 2) || key == (7 << 3 | 2))
            p += varint(&p);
        else {
            assert_int_equal(key, 5 << 3 | 2);
            uint64_t size = varint(&p);
            for (summary_end = p + size; p < summary_end;) {
                assert_int_equal(varint(&p), 1 << 3 | 2);
                uint64_t nvalue = varint(&p);
                const uint8_t *v = p;
                assert_int_equal(varint(&v), 1 << 3 | 2);
                uint64_t ntag = varint(&v);
                bool is_it = ntag == strlen(tag) && memcmp(v, tag, ntag) == 0;
                v += ntag;
                assert_int_equal(*v++, 2 << 3 | 5);
                if (is_it) memcpy(value, v, 4);
                is_found |= is_it;
                p += nvalue;
                assert_ptr_equal(v + 4, p);
            }
        }
    }
    return is_found ? step : -1;
}

static void test_tensorboard(void **state) {
    (void)state;
    assert_int_equal(tb_crc32c("123456789", 9), 0xE3069283u);
    Metrics *m = open_at(400);
    for (int i = 401; i <= 403; i++) {
        StepMetrics s = sample(i);
        s.grad_norm = i * 0.5;
        if (i == 402) s.health = made_up_health();
        assert_int_equal(metrics_step(m, &s, 500, false), OK);
    }
    metrics_close(&m);
    char path[600] = "", dir[256];
    run_path(dir, "events");
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, "events.out.tfevents.", 20) == 0) {
            snprintf(path, sizeof path, "events/%s", e->d_name);
        }
    }
    closedir(d);
    static char file[65536];
    size_t n = read_all(path, file, sizeof file);
    assert_true(n > 0);
    int records = 0;
    int64_t next = 401;
    for (size_t at = 0; at < n; records++) {
        uint64_t size;
        uint32_t crc;
        memcpy(&size, file + at, 8);
        memcpy(&crc, file + at + 8, 4);
        assert_int_equal(crc, slow_masked_crc((uint8_t *)file + at, 8));
        assert_true(at + size + 16 <= n);
        const uint8_t *event = (uint8_t *)file + at + 12;
        memcpy(&crc, event + size, 4);
        assert_int_equal(crc, slow_masked_crc(event, size));
        if (records == 0)
            assert_non_null(memmem(event, size,
                                   "\x1a\x0d"
                                   "brain.Event:2",
                                   15));
        if (records == 1)
            assert_memory_equal(event + size - 4, "\x3a\x02\x08\x01", 4); // session start
        float value = 0;
        int64_t step = event_scalar(event, size, "train/grad_norm", &value);
        if (records >= 2) {
            assert_int_equal(step, next++);
            assert_true(value == (float)step * 0.5f);
            bool has_worst = event_scalar(event, size, "fp8/worst_underflow", &value) == step;
            assert_true(has_worst == (step == 402) && (!has_worst || value == 1.0f / 3.0f));
        }
        at += size + 16;
    }
    assert_int_equal(records, 5);
}

// The line for people: what it says, and that it fits.
static void test_line(void **state) {
    (void)state;
    char path[256], text[4096];
    run_path(path, "train.log");
    assert_int_equal(log_open(path), OK);
    Metrics *m = open_at(0);
    StepMetrics s = sample(120000);
    s.mfu = 0.4213;
    s.tokens_per_s = 3.27e6;
    s.rss_bytes = 61.2 * 1024 * 1024 * 1024;
    s.eta_s = 12.5 * 86400;
    HealthRow row[3] = {{site_label(3, SITE_O_DY), 1e-4, 0.0, 0, 1, 1, 1, 1},
                        {site_label(61, SITE_EXPERT_DOWN_X_T), 0.0, 0.01234, 0, 1, 1, 1, 1},
                        {site_label(2, SITE_Q_W), 1e-4, 0.01, 0, 1, 1, 1, 1}};
    Health health = {.n = 3, .row = row, .nrows = 3};
    s.health = &health;
    assert_int_equal(metrics_step(m, &s, 235000, true), OK);
    row[0].saturated = row[2].saturated = 0.0;
    row[1].underflow = row[2].underflow = 1.0; // the first of equals
    row[0].nonfinite_tiles = 3;
    row[2].nonfinite_tiles = 12;
    s.step++;
    assert_int_equal(metrics_step(m, &s, 235000, true), OK);
    s.step++; // nothing was quantised; the shadow speaks without being asked for a line
    s.health = NULL;
    s.shadow = made_up_shadow(5);
    assert_int_equal(metrics_step(m, &s, 235000, false), OK);
    s.step++;
    health.nrows = 0;
    s.health = &health;
    s.shadow = made_up_shadow(0);
    assert_int_equal(metrics_step(m, &s, 235000, true), OK);
    metrics_close(&m);
    log_close();
    size_t n = read_all("train.log", text, sizeof text);
#define REST                                                                                       \
    "/235000 eta 12d12h | loss 10.8343 lm 8.3341 mtp 8.3324 | gnorm 1.25 lr 1.0e-04 | 3.27M tok/s " \
    "MFU 42.1% | MaxVio 0.75 dead 3.1% | "
#define TAIL " | unsaved 3 steps 1m06s | 61.2 GiB\n"
    assert_string_equal(
        text, "step 120000" REST "fp8 sat 0.01% (L3.o.dy) uf 1.23% (L61.expert.down.x_t)" TAIL
              "step 120001" REST "fp8 sat 0% uf 100% (L61.expert.down.x_t) NaN tiles 12 (L2.q.w)" TAIL
              "fp8 shadow step 120002: largest error of a product against BF16 8.75% (L3.o.fprop), median 2.00%, "
              "5 products\n"
              "step 120003" REST "unsaved 3 steps 1m06s | 61.2 GiB\n");
    assert_true(n <= 700 + 3 * strlen("unsaved 3 steps 1m06s | "));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_keys, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_arrays, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_floats_round_trip, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_cut_on_open, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_events, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_stopped_evaluation, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_other_ranks_are_silent, scratch_setup,
                                        scratch_teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_tensorboard, scratch_setup, scratch_teardown),
        cmocka_unit_test_setup_teardown(test_line, scratch_setup, scratch_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
