// test_report.c - the report of a run: what its curves keep of long runs, and the page of runs that are whole, still
// going on, damaged, empty, several.
#include <math.h>
#include <sys/stat.h>

#include "commands.h"
#include "must.h"
#include "report.h"
#include "scratch_dir.h"
#include "xml_check.h"

// ---- series ------------------------------------------------------------------------------------

// A million steps in some hundred parts: the one spike, the mean, the ends and a gap are there.
static void test_series(void **state) {
    (void)state;
    enum { STEPS = 1000000, SPIKE = 543210 };
    Series s;
    SeriesPoints p;
    double sum = 0, spike_at = NAN;
    int gaps = 0;
    MUST_OK(series_create(&s, REPORT_PARTS, false));
    for (int64_t step = 11; step < 11 + STEPS; step++) {
        bool is_gap = step >= 200000 && step < 210000;
        double v = step == SPIKE ? 99 : step == SPIKE + 7 ? -99 : (double)(step % 10);
        series_add(&s, step, is_gap ? NAN : v);
        if (!is_gap) sum += v;
    }
    series_add(&s, 5, 1e9); // before the first
    SeriesPart all = series_total(&s);
    assert_int_equal(all.n, STEPS - 10000);
    assert_true(all.lo == -99 && all.hi == 99 && all.sum == sum);
    assert_int_equal(s.first, 11);
    assert_int_equal(s.last, 10 + STEPS);
    MUST_OK(series_points(&s, 2, 30000, &p));
    assert_true(p.n > REPORT_PARTS / 2 && p.n <= REPORT_PARTS);
    double width = p.x[1] - p.x[0];
    for (int i = 0; i < p.n; i++) {
        if (i > 0 && i < p.n - 1) assert_true(p.x[i] - p.x[i - 1] == width);
        bool is_gap = isnan(p.mean[i]);
        gaps += is_gap;
        assert_true(isnan(p.smooth[i]) == is_gap && isnan(p.hi[i]) == is_gap);
        if (is_gap) continue;
        if (p.hi[i] == 2 * 99)
            spike_at = p.x[i];
        else if (p.lo[i] != 2 * -99)
            assert_true(p.lo[i] == 0 && p.hi[i] == 18 && fabs(p.mean[i] - 9) < 0.1);
        assert_true(fabs(p.smooth[i] - 9) < 0.1);
    }
    assert_true(fabs(spike_at - SPIKE) <= width / 2);
    assert_true(p.x[p.n - 1] <= 10 + STEPS);
    assert_true(gaps >= 10000 / width - 2 && gaps <= 10000 / width);
    series_points_free(&p);
    series_free(&s);
}

static void test_smoothing(void **state) {
    (void)state;
    Series s;
    SeriesPoints p;
    static const double v[] = {1, 2, 6, NAN, 10, 20};
    MUST_OK(series_create(&s, 8, false));
    for (int i = 0; i < 6; i++) series_add(&s, i + 1, v[i]);
    static const double expected[2][6] = {{1.5, 3, 4, NAN, 15, 15}, {3, 3, 3, NAN, 15, 15}};
    for (int reach = 1; reach <= 2; reach++) { // one step or two on both sides, never across the gap
        MUST_OK(series_points(&s, 1, 2 * reach, &p));
        assert_int_equal(p.n, 6);
        for (int i = 0; i < 6; i++) {
            double e = expected[reach - 1][i];
            assert_true(isnan(e) ? isnan(p.smooth[i]) : p.smooth[i] == e);
        }
        series_points_free(&p);
    }
    series_free(&s);
    // Sparse: what has no value is no gap.
    MUST_OK(series_create(&s, 8, true));
    series_add(&s, 10, 1);
    series_add(&s, 40, 3);
    MUST_OK(series_points(&s, 1, 1, &p));
    assert_int_equal(p.n, 2);
    assert_true(p.mean[0] == 1 && p.mean[1] == 3);
    series_points_free(&p);
    series_free(&s);
}

// ---- pages -------------------------------------------------------------------------------------

static char *text_of(const char *path) {
    static char *text;
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is not there", path);
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    free(text);
    text = malloc(n + 1);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, n, f), n);
    fclose(f);
    text[n] = '\0';
    return text;
}

static Err report(const char *a, const char *b, const char *out) {
    const char *v[8] = {"report", a};
    int n = 2;
    if (b) v[n++] = b;
    if (out) v[n++] = "--out", v[n++] = out;
    return cmd_report(n, (char **)v);
}

// What does not matter to a test. `more`: further fields.
static void put_step(FILE *f, int step, double loss, double norm, const char *more) {
    fprintf(
        f,
        "{\"step\":%d,\"tokens\":%d,\"samples\":%d,\"global_batch\":8,\"loss\":%.9g,\"lm_loss\":%.9g,\"mtp_loss\":%."
        "9g,"
        "\"mtp_losses\":[%.9g],\"grad_norm\":%.9g,\"lr\":0.001,\"tokens_per_s\":1000,\"step_ms\":256,\"mfu\":null,"
        "\"maxvio\":0.5,\"dead_experts\":0,\"fp8_saturated\":0,\"fp8_underflow\":0.001%s}\n",
        step, 256 * step, 8 * step, 1.3 * loss, loss, loss, loss, norm, more);
}

static FILE *make_run(const char *name) {
    char path[600];
    mkdir(at(name), 0777);
    snprintf(path, sizeof path, "%s/metrics.jsonl", at(name));
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    return f;
}

static void write_in(const char *run, const char *name, const char *text) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", at(run), name);
    scratch_write_text(path, text);
}

// The d="..." of the first path of a class in a figure.
static const char *path_in(const char *page, const char *figure, const char *class) {
    static char path[1 << 17];
    char what[80];
    snprintf(what, sizeof what, "aria-label=\"%s\"", figure);
    const char *p = strstr(page, what);
    if (!p) fail_msg("no figure %s", figure);
    snprintf(what, sizeof what, "<path class=\"%s\" d=\"", class);
    p = strstr(p, what);
    assert_non_null(p);
    size_t n = strcspn(p + strlen(what), "\"");
    assert_true(n < sizeof path);
    memcpy(path, p + strlen(what), n);
    path[n] = '\0';
    return path;
}

static void test_page(void **state) {
    (void)state;
    FILE *f = make_run("run");
    for (int step = 1; step <= 50; step++)
        put_step(f, step, step == 30 ? 2.5 : 5 - 0.01 * step, 1,
                 step % 10 == 0 ? ",\"fp8_health\":{\"site\":[\"L0.o.x\",\"L1.<b>&\"],\"saturated\":[0.0125,0],"
                                  "\"underflow\":[0.002,0.004]}"
                                : "");
    fclose(f);
    write_in(
        "run", "events.jsonl",
        "{\"time\":1796032259.895,\"event\":\"start\",\"step\":0,\"samples\":0,\"world\":4,\"ep\":2,\"threads\":1}\n"
        "{\"time\":1796032269.5,\"event\":\"eval\",\"step\":20,\"loss\":4.75,\"tokens\":5,\"bits_per_byte\":1.875}\n"
        "{\"time\":1796032270,\"event\":\"save\",\"step\":25,\"seconds\":1.5,\"stall_s\":0.25,\"bytes\":3145728}\n"
        "{\"time\":1796032271,\"event\":\"stop\",\"step\":25,\"reason\":\"SIGUSR1\"}\n"
        "{\"time\":1796032371,\"event\":\"resume\",\"step\":25,\"samples\":200,\"world\":2,\"ep\":1,\"threads\":3}\n"
        "{\"time\":1796032380,\"event\":\"nonfinite\",\"step\":33,\"policy\":\"rollback\",\"text\":\"a <tag> & "
        "\\\"b\\\"\"}\n"
        "{\"time\":1796032390,\"event\":\"eval\",\"step\":40,\"loss\":4.5,\"tokens\":5,\"bits_per_byte\":1.75}\n"
        "{\"time\":17960323");
    write_in("run", "config.yaml", "train:\n  lr: 0.001 # <script>alert(1)</script>\n");
    MUST_OK(report(at("run"), NULL, NULL));
    const char *page = text_of(at("run/report.html"));
    assert_xml(page);
    static const char *const says[] = {"<h1>run</h1>",
                                       "4.5000 (step 50)",
                                       "2.5000 (step 30)",
                                       "4.5000 (step 40)",
                                       "1.7500 (step 40)",
                                       "2 = 1 expert-parallel x 2 data-parallel, 3 threads each",
                                       "12.8k in 400 sequences",
                                       "1000 tokens/s",
                                       "13s in steps, 2m10s from the first event to the last",
                                       "2, 1 of them resumed",
                                       "1, the last of step 25, 3.00 MiB",
                                       "1, 1 rollback, 0 sequences left out",
                                       "2026-11-30 09:50:59",
                                       "a &lt;tag&gt; &amp; &quot;b&quot;",
                                       "SIGUSR1",
                                       "L1.&lt;b&gt;&amp;",
                                       "1.25%",
                                       "lr: 0.001 # &lt;script&gt;",
                                       "aria-label=\"Loss\"",
                                       "aria-label=\"Held-out loss\"",
                                       "aria-label=\"Held-out bits per byte\"",
                                       "aria-label=\"Gradient norm\"",
                                       "aria-label=\"MaxVio\"",
                                       "aria-label=\"Dead experts\"",
                                       "aria-label=\"FP8 saturation by site\"",
                                       "aria-label=\"FP8 underflow by site\"",
                                       "aria-label=\"Saves\""};
    for (size_t i = 0; i < sizeof says / sizeof *says; i++) assert_has(page, says[i]);
    // Never measured here, or always 0.
    static const char *const not [] = {"aria-label=\"MFU\"",
                                       "aria-label=\"Expert exchange\"",
                                       "aria-label=\"Global batch\"",
                                       "<script",
                                       "http",
                                       "nan",
                                       "inf,"};
    for (size_t i = 0; i < sizeof not / sizeof *not ; i++)
        if (strstr(page, not [i])) fail_msg("\"%s\" is in the page", not [i]);
    int curves = times(page, "class=\"plot\"") - 2;
    assert_int_equal(times(page, "<path class=\"cross m3\" d="), curves + 1); // and the legend
    assert_int_equal(times(page, "<path class=\"cross m2\""), curves + 1);
    assert_int_equal(times(page, "<path class=\"cross m1\""), 2 * curves + 1);
    assert_int_equal(times(page, "<path class=\"m0\""), curves + 1);
    assert_int_equal(times(path_in(page, "Gradient norm", "thin"), "L"), 49);
}

// A hundred thousand steps and one of them a spike: the page is small and shows it.
static void test_large(void **state) {
    (void)state;
    FILE *f = make_run("large");
    for (int step = 1; step <= 100000; step++)
        put_step(f, step, step == 77777 ? 50 : 3 + (step % 7) * 0.01, step == 54321 ? 1000 : 1 + step % 3, "");
    fclose(f);
    MUST_OK(report(at("large"), NULL, at("large.html")));
    const char *page = text_of(at("large.html"));
    assert_xml(page);
    assert_true(strlen(page) < 1000000);
    const char *band = path_in(page, "Gradient norm", "band");
    assert_true(times(band, "L") < 2 * REPORT_PARTS);
    // The axis spans 1/1.3 to 1300; the spike's place in it is known.
    int found = 0;
    double expected = 200 - 190 * log10(1000 * 1.3) / log10(1000 * 1.3 * 1.3), x = 66 + 560 * 54320 / 99999.0;
    for (const char *p = band; (p = strpbrk(p, "ML")); p++) {
        double at_x, at_y;
        assert_int_equal(sscanf(p + 1, "%lf %lf", &at_x, &at_y), 2);
        found += fabs(at_y - expected) < 0.3 && fabs(at_x - x) < 9; // the margin of 1.5 % on both sides
    }
    assert_int_equal(found, 1);
    assert_has(page, "; largest 65, outside"); // the total loss
}

// Damage is passed over; what is null or missing leaves a gap; steps that come twice count once.
static void test_damage(void **state) {
    (void)state;
    FILE *f = make_run("damaged");
    put_step(f, 1, 5, 1, "");
    put_step(f, 2, NAN, 1, ""); // prints nan, which is not JSON
    put_step(f, 3, 4, 1, "");
    put_step(f, 3, 0.25, 9, "");
    fputs("{\"step\":4,\"loss\":3,\"lm_loss\":3}\n{\"step\":5,\"grad_norm\":2}\n[]\n", f);
    put_step(f, 6, 2, 1, "");
    put_step(f, 7, 1, 1, "");
    fputs("{\"step\":8,\"loss\":0.5,\"lm_lo", f);
    fclose(f);
    write_in("damaged", "config.yaml", "train: {no_such_key: 1}\n");
    MUST_OK(report(at("damaged"), NULL, NULL));
    const char *page = text_of(at("damaged/report.html"));
    assert_xml(page);
    assert_has(page, "<th>steps</th><td>7</td>");
    assert_has(page, "1.0000 (step 7)");
    assert_has(page, "no_such_key");
    assert_null(strstr(page, "0.2500"));
    // lm_loss of 1, 3, 4, 6 and 7: three pieces. The last curve of the list is drawn first, next token's last.
    const char *p = strstr(page, "aria-label=\"Loss\"");
    const char *line = NULL, *end = strstr(p, "</figure>");
    while ((p = strstr(p, "<path class=\"line\" d=\"")) && p < end) line = p++;
    assert_non_null(line);
    int pens = 0;
    for (p = line + 22; *p != '"'; p++) pens += *p == 'M';
    assert_int_equal(pens, 3);
}

static void test_several(void **state) {
    (void)state;
    FILE *f = make_run("a<b>&\"c\" \xff");
    for (int step = 1; step <= 20; step++) put_step(f, step, 4, 1, "");
    fclose(f);
    write_in("a<b>&\"c\" \xff", "config.yaml", "train:\n  lr: 0.001\n  steps: 20\nmodel:\n  rope_scaling: null\n");
    f = make_run("second");
    for (int step = 11; step <= 40; step++) put_step(f, step, 3, 1, "");
    fclose(f);
    write_in("second", "config.yaml", "train:\n  lr: 0.002\n  steps: 20\nmodel:\n  rope_scaling:\n    factor: 40\n");
    write_in("second", "events.jsonl",
             "{\"time\":1,\"event\":\"start\",\"step\":10}\n{\"time\":2,\"event\":\"resume\",\"step\":15}\n"
             "{\"time\":3,\"event\":\"save\",\"step\":20}\n");
    MUST_OK(report(at("a<b>&\"c\" \xff"), at("second"), at("two.html")));
    const char *page = text_of(at("two.html"));
    assert_xml(page);
    assert_has(page, "<h1>a&lt;b&gt;&amp;&quot;c&quot; ?, second</h1>");
    assert_has(page, "<tr><th>train.lr</th><td>0.001</td><td>0.002</td></tr>");
    assert_has(page, "<tr><th>model.rope_scaling</th><td>null</td><td></td></tr>");
    assert_null(strstr(page, "train.steps"));
    assert_has(page, "<th>steps</th><td>20</td><td>40, from 11 on</td>");
    // Marks have the colour of their run, saves are left out; every figure names both.
    int figures = times(page, "class=\"plot\"");
    assert_int_equal(times(page, "<path class=\"cross s1\""), figures);
    assert_null(strstr(page, "<path class=\"m0\""));
    assert_int_equal(times(page, "</svg>second</span>"), figures);
}

static void test_empty(void **state) {
    (void)state;
    fclose(make_run("empty"));
    MUST_OK(report(at("empty"), NULL, NULL));
    const char *page = text_of(at("empty/report.html"));
    assert_xml(page);
    assert_has(page, "No step is finished yet.");
    FILE *f = make_run("one");
    put_step(f, 1, 4, 1, "");
    fclose(f);
    MUST_OK(report(at("one"), at("empty"), NULL));
    assert_xml(text_of(at("one/report.html")));
}

static void test_refusals(void **state) {
    (void)state;
    MUST_FAIL(report(at("nowhere"), NULL, NULL), E_INPUT, "nowhere: No such file");
    mkdir(at("other"), 0777);
    MUST_FAIL(report(at("other"), NULL, NULL), E_INPUT, "other holds no run");
    fclose(make_run("good"));
    MUST_FAIL(report(at("good"), NULL, at("no/where.html")), E_OUTPUT, "where.html");
    write_in("good", "report.html", "before");
    MUST_FAIL(report(at("good"), at("other"), NULL), E_INPUT, "other holds no run");
    assert_string_equal(text_of(at("good/report.html")), "before");
    const char *none[] = {"report"}, *zero[] = {"report", at("good"), "--smooth", "0"};
    MUST_FAIL(cmd_report(1, (char **)none), E_USAGE, "RUN_DIR");
    MUST_FAIL(cmd_report(4, (char **)zero), E_USAGE, "--smooth");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_series), cmocka_unit_test(test_smoothing), cmocka_unit_test(test_page),
        cmocka_unit_test(test_large),  cmocka_unit_test(test_damage),    cmocka_unit_test(test_several),
        cmocka_unit_test(test_empty),  cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
