// test_numerics.c - the FP8 laboratory: its measures and its forms of quantisation against brute
// force, its plots, and the records of the whole command.
#include <jansson.h>
#include <sys/stat.h>

#include "reference.h"

#include "boot.h"
#include "checkpoint_fixture.h"
#include "commands.h"
#include "gemm_engine.h"
#include "numerics.h"
#include "plot_svg.h"
#include "scratch_dir.h"
#include "xml_check.h"

// ---- measures ----------------------------------------------------------------------------------

static void test_gemm_error(void **state) {
    (void)state;
    float c[4] = {1.5f, -2.0f, 0.0f, 4.0f};
    double exact[4] = {1.0, -2.0, 1.0, 2.0}; // errors 0.5, 0, 1, 2; rms(exact) = sqrt(10 / 4)
    GemmError e = gemm_error(c, exact, 4);
    ref_near(e.max_rel, 2.0 / sqrt(2.5), 1e-15, "max", 0, 0);
    ref_near(e.rms_rel, sqrt(5.25 / 10.0), 1e-15, "rms", 0, 0);
    double zero[2] = {0, 0};
    e = gemm_error(c, zero, 2);
    assert_true(e.max_rel == 0 && e.rms_rel == 0);
}

static void test_quant_error(void **state) {
    (void)state;
    Mat x = ref_mat(DT_F32, 2, 3, 2), y = ref_mat(DT_F32, 2, 3, 1);
    const double xs[6] = {1, -2, 0, 4, NAN, INFINITY}, ys[6] = {1.5, -2, 0.5, 3, 7, 7};
    for (int i = 0; i < 6; i++) {
        ref_set(x, i / 3, i % 3, xs[i]);
        ref_set(y, i / 3, i % 3, ys[i]);
    }
    QuantError e = quant_error(y, x); // errors 0.5, 0, 0.5, -1 of 1, -2, 0, 4
    ref_near(e.mae, 2.0 / 4, 1e-15, "mae", 0, 0);
    ref_near(e.rel_rms, sqrt(1.5 / 21.0), 1e-15, "rel_rms", 0, 0);
    ref_near(e.value_rms, sqrt((0.25 + 0.0625) / 3.0), 1e-15, "value_rms", 0, 0);
    free(x.p);
    free(y.p);
}

// ---- quantisation ------------------------------------------------------------------------------

static Numerics laboratory(void) {
    static Arena *arena;
    if (!arena) MUST_OK(arena_create(&arena, "laboratory", (size_t)64 << 20, false));
    Numerics n = {.arena = arena, .ops = ops_cpu(), .cx = ref_cx(1)};
    return n;
}

// BF16 values over many octaves, with zeros, and with values that are not finite if asked.
static Mat wild(int64_t rows, int64_t cols, bool with_bad) {
    Mat x = ref_random(DT_F32, rows, cols, 3, 1.0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            Philox z = philox(5, (uint64_t)(rows * 1000 + cols), (uint64_t)(r * cols + c));
            double v = ldexp(ref_at(x, r, c), (int)(z.v[0] % 40) - 30);
            if (z.v[1] % 11 == 0) v = 0;
            if (with_bad && z.v[1] % 97 == 0) v = z.v[2] % 2 ? NAN : -INFINITY;
            ref_set(x, r, c, bf16_round((float)v));
        }
    return x;
}

// The largest finite magnitude of what shares the scale of (r, c), by definition.
static double shared_amax(Mat x, QuantForm form, int64_t r, int64_t c) {
    double most = 0;
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t j = 0; j < x.cols; j++) {
            bool is_shared = form == QUANT_TENSOR || (form == QUANT_ROW && i == r) ||
                             (form == QUANT_TILE && i == r && j / 128 == c / 128) ||
                             (form == QUANT_BLOCK && i / 128 == r / 128 && j / 128 == c / 128) ||
                             (form == QUANT_STATIC && i < ceil_div(x.rows, 8));
            if (is_shared && isfinite(ref_at(x, i, j))) most = fmax(most, fabs(ref_at(x, i, j)));
        }
    return most;
}

// Every value became the nearest of all E4M3 codes times the scale of its piece.
static void check_form(Mat x, QuantForm form, ScaleType st, bool is_usual) {
    Numerics n = laboratory();
    Mat y = ref_mat(DT_F32, x.rows, x.cols, 0);
    QuantCount count = {0};
    int64_t clamped = 0, lost = 0;
    MUST_OK(quant_apply(&n, y, &count, x, form, st));
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) {
            double amax = shared_amax(x, form, r, c), v = ref_at(x, r, c), got = ref_at(y, r, c);
            double s = st == SCALE_F32 ? (float)amax / 448.0f : exp2(ceil(log2(amax / 448.0)));
            if (amax == 0) s = 1;
            if (!isfinite(v)) {
                assert_true(isnan(got));
                continue;
            }
            double q = (float)v / (float)s, best = INFINITY;
            for (int code = 0; code < 256; code++)
                if ((code & 0x7F) != 0x7F)
                    best = fmin(best, fabs(f32_from_e4m3((uint8_t)code) - q));
            ref_near(fabs(got / s - q), best, 1e-5 * fabs(q) + 1e-12, quant_form_name(form), r, c);
            clamped += fabs(q) > 448;
            lost += v != 0 && got == 0;
        }
    assert_int_equal(count.values, x.rows * x.cols);
    assert_int_equal(count.saturated, clamped);
    assert_int_equal(count.underflow, lost);
    if (is_usual) assert_true(lost > 0);
    if (is_usual && form == QUANT_STATIC) assert_true(clamped > 0);
    assert_int_equal(arena_mark(n.arena), 0);
    free(y.p);
}

static void test_forms_by_brute_force(void **state) {
    (void)state;
    static const int64_t sizes[][2] = {{24, 140}, {1, 1}, {3, 128}, {130, 7}, {9, 301}};
    for (int i = 0; i < 5; i++) {
        Mat x = wild(sizes[i][0], sizes[i][1], i > 2);
        if (i == 0) ref_set(x, 20, 7, 65536.0); // beyond what a static scale was calibrated on
        for (int form = 0; form < QUANT_FORMS; form++)
            for (int st = 0; st < 2; st++) check_form(x, (QuantForm)form, (ScaleType)st, i == 0);
        free(x.p);
    }
}

// ---- plots -------------------------------------------------------------------------------------

static char *text_of(const char *path) {
    static char text[1 << 18];
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is not there", path);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    return text;
}

static void test_plot(void **state) {
    (void)state;
    double x[5] = {1, 10, 100, 1000, 10000}, y[5] = {1e-5, 1e-3, 0, 1e-2, 1e-1};
    double bad[5] = {NAN, -1, INFINITY, 0, NAN}, low[5] = {-3, 0, 4.5, 1, 2},
           two[5] = {32, 64, 128, 256, 512};
    const PlotSeries first[] = {{"a < b & \"c\"", x, y, 5, false},
                                {"nothing", x, bad, 5, false},
                                {"empty", NULL, NULL, 0, true}};
    const PlotSeries second[] = {{"linear", two, low, 5, true}}, one[] = {{"one", x, x, 1, false}};
    const PlotPanel panels[] = {
        {"log", {"x", PLOT_LOG10}, {"y", PLOT_LOG10}, first, 3},
        {"linear", {"x", PLOT_LOG2}, {"y", PLOT_LINEAR}, second, 1},
        {"one point", {"x", PLOT_LINEAR}, {"y", PLOT_LOG2}, one, 1},
        {"no point", {"x", PLOT_LINEAR}, {"y", PLOT_LOG10}, first + 1, 1},
    };
    MUST_OK(plot_svg(at("p.svg"), "A <title>", panels, 4));
    char *svg = text_of(at("p.svg"));
    assert_xml(svg);
    assert_non_null(strstr(svg, "A &lt;title&gt;"));
    assert_non_null(strstr(svg, "a &lt; b &amp; "));
    assert_non_null(strstr(svg, ">256</text>"));
    assert_non_null(strstr(svg, ">-2</text>"));
    assert_null(strstr(svg, "nan"));
    assert_null(strstr(svg, "inf"));
    // The line of the first series: two pieces of two points, from corner to corner.
    char *line = strstr(svg, "<path class=\"line\" d=\"M");
    assert_non_null(line);
    *strchr(line + 22, '"') = '\0';
    assert_string_equal(line + 22, "M82.0 414.0L189.5 249.0M404.5 166.5L512.0 84.0");
    // A band with a gap is two polygons; what an axis does not span is cut off; marks; text that is no UTF-8.
    double high[5] = {2, 3, NAN, 30, 4}, base[5] = {1, 1, 1, 1, 1}, steps[5] = {1, 2, 3, 4, 5};
    const PlotSeries band[] = {{"c\x01 \xff\xc3\xa9", steps, base, 5, PLOT_BAND, .high = high, .colour = 3}};
    const PlotMark marks[] = {{2, MARK_SAVE, 0}, {3, MARK_BAD, 0}, {4, MARK_RESTART, 2}, {9, MARK_EVAL, 0}};
    const PlotPanel more[] = {{"band", {"x", PLOT_WHOLE}, {"y", PLOT_LINEAR, 0, 10}, band, 1, marks, 4}};
    MUST_OK(plot_svg(at("q.svg"), "t", more, 1));
    svg = text_of(at("q.svg"));
    assert_xml(svg);
    char *path = strstr(svg, "<path class=\"band\" d=\"");
    assert_non_null(path);
    *strchr(path + 22, '"') = '\0';
    assert_int_equal(times(path, "M"), 2);
    assert_int_equal(times(path, "z"), 2);
    assert_int_equal(times(path, "L"), 6);
    path += strlen(path) + 1;
    assert_non_null(strstr(path, "c? ?\xc3\xa9</text>"));
    svg = text_of(at("q.svg"));
    assert_int_equal(times(svg, "<svg "), 2);
    assert_int_equal(times(svg, "\"m0\""), 1);
    assert_int_equal(times(svg, "\"cross m3\""), 1);
    assert_int_equal(times(svg, "\"cross s1\""), 1);
    assert_int_equal(times(svg, "m1\""), 0); // outside
    MUST_FAIL(plot_svg(at("no/p.svg"), "t", panels, 1), E_OUTPUT, "p.svg");
}

// ---- the command -------------------------------------------------------------------------------

static Err command(const char *out, const char *json, const char *checkpoint, const char *threads) {
    const char *v[16] = {"numerics"};
    int n = 1;
    const char *const given[][2] = {
        {"--out", out}, {"--json", json}, {"--checkpoint", checkpoint}, {"--threads", threads}};
    for (int i = 0; i < 4; i++)
        if (given[i][1]) v[n++] = given[i][0], v[n++] = given[i][1];
    return cmd_numerics(n, (char **)v);
}

typedef struct Records {
    json_t *line[1024];
    int n;
} Records;

static Records records_of(const char *path) {
    Records r = {.n = 0};
    char *text = text_of(path);
    assert_true(text[0] && text[strlen(text) - 1] == '\n');
    for (char *p = strtok(text, "\n"); p; p = strtok(NULL, "\n")) {
        json_error_t e;
        json_t *o = json_loads(p, JSON_REJECT_DUPLICATES, &e);
        if (!json_is_object(o)) fail_msg("not an object: %s (%s)", p, e.text);
        assert_true(r.n < 1024);
        r.line[r.n++] = o;
    }
    return r;
}

static void records_free(Records *r) {
    for (int i = 0; i < r->n; i++) json_decref(r->line[i]);
}

static const char *word(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) fail_msg("no number %s", key);
    return json_number_value(v);
}

// The one record of a product; *rms too if wanted.
static double product(const Records *r, int k, const char *mode) {
    double got = NAN;
    for (int i = 0; i < r->n; i++) {
        const json_t *o = r->line[i];
        if (strcmp(word(o, "test"), "gemm") || strcmp(word(o, "accumulate"), mode)) continue;
        if (number(o, "k") != k) continue;
        assert_true(isnan(got));
        got = number(o, "max_rel_err");
        assert_true(number(o, "rms_rel_err") > 0 && number(o, "rms_rel_err") < got);
    }
    if (isnan(got)) fail_msg("no record of k %d, %s", k, mode);
    return got;
}

static double quantised(const Records *r, const char *data, const char *granularity,
                        const char *scale, const char *key) {
    for (int i = 0; i < r->n; i++) {
        const json_t *o = r->line[i];
        if (!strcmp(word(o, "test"), "quant") && !strcmp(word(o, "data"), data) &&
            !strcmp(word(o, "granularity"), granularity) && !strcmp(word(o, "scale"), scale))
            return number(o, key);
    }
    fail_msg("no record of %s, %s, %s", data, granularity, scale);
    return NAN;
}

static void check_products(const Records *r) {
    static const char *const modes[] = {"promote128", "fp32", "hopper14", "promote128_hopper14"};
    for (int k = 128; k <= 16384; k *= 2)
        for (int m = 0; m < 4; m++) {
            double e = product(r, k, modes[m]);
            assert_true(e > (m < 2 ? 1e-9 : 1e-4) && e < (m < 2 ? 1e-4 : m == 2 ? 1e-1 : 3e-3));
        }
    double native = product(r, 4096, "hopper14");
    assert_true(native > 3e-3 && native < 3e-2);
    assert_true(native >= 10 * product(r, 4096, "promote128_hopper14"));
    assert_true(native > 3 * product(r, 512, "hopper14"));
    double interval[2] = {0, 0};
    int n = 0;
    for (int i = 0; i < r->n; i++) {
        const json_t *o = r->line[i];
        bool is_gemm = !strcmp(word(o, "test"), "gemm");
        assert_true(is_gemm == !!json_object_get(o, "k"));
        assert_true(is_gemm == !!json_object_get(o, "accumulate"));
        if (!json_object_get(o, "interval")) continue;
        assert_true(number(o, "gemm_k") == 4096);
        assert_true(number(o, "interval") == 32 << n++);
        if (number(o, "interval") == 128) interval[0] = number(o, "max_rel_err");
        if (number(o, "interval") == 4096) interval[1] = number(o, "max_rel_err");
    }
    assert_int_equal(n, 8);
    // 128 is the paper's choice; an interval of K is no promotion: the same sums, the same errors.
    assert_true(interval[0] == product(r, 4096, "promote128_hopper14"));
    assert_true(interval[1] == native);
}

static void check_quantised(const Records *r) {
    static const char *const forms[] = {"tensor", "row", "tile_1x128", "block_128x128"};
    static const char *const outliers[] = {"channel_outliers", "token_outliers"};
    static const char *const scales[] = {"f32", "ue8m0"};
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < 2; i++) {
            double tile = quantised(r, outliers[i], forms[2], scales[s], "value_rel_rms");
            for (int f = 0; f < 4; f++)
                assert_true(f == 2 || (f == 1 && i == 1) ||
                            quantised(r, outliers[i], forms[f], scales[s], "value_rel_rms") >
                                1.5 * tile);
            assert_true(quantised(r, outliers[i], forms[2], scales[s], "mae") <
                        quantised(r, outliers[i], forms[0], scales[s], "mae"));
            assert_true(quantised(r, outliers[i], forms[2], scales[s], "underflow_pct") <
                        quantised(r, outliers[i], forms[0], scales[s], "underflow_pct"));
        }
        for (int f = 0; f < 4;
             f++) { // 3 bits of mantissa: 2^-4 at most, 2^-4 / sqrt(3) or less on average
            double e = quantised(r, "gaussian", forms[f], scales[s], "rel_rms");
            assert_true(e > 0.02 && e < 0.0361);
            assert_true(quantised(r, "gaussian", forms[f], scales[s], "clamped_pct") < 1.0 / 1.28);
        }
    }
}

static void test_command(void **state) {
    (void)state;
    MUST_OK(command(at("lab"), at("copy.jsonl"), NULL, "2"));
    Records r = records_of(at("lab/numerics.jsonl"));
    check_products(&r);
    check_quantised(&r);
    records_free(&r);
    char *own = strdup(text_of(at("lab/numerics.jsonl")));
    assert_string_equal(own, text_of(at("copy.jsonl")));
    static const char *const plots[] = {"lab/quantisation.svg", "lab/accumulation.svg",
                                        "lab/promotion.svg"};
    for (int i = 0; i < 3; i++) {
        assert_xml(text_of(at(plots[i])));
        assert_true(times(text_of(at(plots[i])), "class=\"mark\"") > 10);
    }
    // Again, over the old files, with another number of threads and one file for both: the same.
    MUST_OK(command(at("lab"), at("lab/numerics.jsonl"), NULL, "1"));
    assert_string_equal(own, text_of(at("lab/numerics.jsonl")));
    free(own);
}

static void test_checkpoint(void **state) {
    (void)state;
    Boot boot = {.nranks = 1};
    Fixture f;
    CheckpointInfo info = fixture_info(1);
    MUST_OK(comm_self(&boot.world, "world"));
    MUST_OK(fixture_open(&f, &boot, 1, "fp8", 160, NULL));
    fixture_all(&f, true, DT_BF16, true);
    MUST_OK(checkpoint_save(at("saved"), f.params, &f.cx, &info, f.config, 2, 0));
    fixture_close(&f);
    comm_destroy(&boot.world);
    // A second file that cannot be written costs nothing of what is in the folder.
    MUST_FAIL(command(at("with"), at("no/file.json"), at("saved"), NULL), E_OUTPUT, "no/file.json");
    Records r = records_of(at("with/numerics.jsonl"));
    static const char *const names[] = {
        "model.layers.0.self_attn.o_proj.weight/master", "model.layers.0.self_attn.o_proj.weight/m",
        "model.layers.1.mlp.experts.down_proj.weight/master", "model.embed_tokens.weight/m"};
    for (int i = 0; i < 4; i++)
        for (int s = 0; s < 2; s++) {
            double e = quantised(&r, names[i], "tile_1x128", s ? "ue8m0" : "f32", "rel_rms");
            assert_true(e > 0.015 && e < 0.0361);
        }
    records_free(&r);
}

static void test_refusals(void **state) {
    (void)state;
    struct stat st;
    scratch_write_text(at("file"), "x");
    MUST_FAIL(command(NULL, NULL, NULL, NULL), E_USAGE, "--out");
    MUST_FAIL(command(at("file"), NULL, NULL, NULL), E_OUTPUT, "is not a folder");
    MUST_FAIL(command(at("no/folder"), NULL, NULL, NULL), E_OUTPUT, "no/folder");
    MUST_FAIL(command(at("new"), NULL, NULL, "0"), E_USAGE, "--threads");
    MUST_FAIL(command(at("new"), NULL, at("nowhere"), NULL), E_INPUT, "nowhere");
    assert_int_not_equal(stat(at("new"), &st), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemm_error),
        cmocka_unit_test(test_quant_error),
        cmocka_unit_test(test_forms_by_brute_force),
        cmocka_unit_test(test_plot),
        cmocka_unit_test(test_command),
        cmocka_unit_test(test_checkpoint),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("numerics", tests, scratch_setup, scratch_teardown);
}
