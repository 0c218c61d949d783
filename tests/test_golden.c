// test_golden.c - every committed case of tests/golden against what transformers computed (see its README).
//
// The way is the one of `tessera import` and `tessera dump`: config.json and weights are imported, tokens are run
// in FP32, and everything that `dump` writes is compared by name. Tolerances are the project's promise: logits
// 1e-4, losses 1e-5 relative, gradients 1e-3 relative in the Frobenius norm, counts equal, zero gradients exactly
// zero.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint.h"
#include "dump.h"
#include "hf_masters.h"
#include "log.h"
#include "must.h"
#include "scratch_dir.h"

#define FOLDER "tests/golden"

static int setup(void **state) {
    log_init(1, 2); // no lines
    return scratch_setup(state);
}

// One imported case.
typedef struct Case {
    const char *name;
    char dir[256];
    Safetensors *weights, *expect;
    Config *config; // of the dump
    Solo solo;
    int32_t *tokens;
    int64_t B, S;
} Case;

static double expect_scalar(const Case *c, const char *name) {
    float v = 0;
    MUST_OK(safetensors_read_f32(c->expect, name, 0, 1, &v));
    return v;
}

// dump_settings: the case's config as a checkpoint would store it, read the way `dump` does.
static void dump_settings(Case *c, const Config *imported, const char *mode) {
    char *text = NULL, path[128], weight[64], alpha[64], precision[64];
    const char *sets[] = {weight, alpha, precision};
    snprintf(path, sizeof path, "%s/config.yaml", scratch_dir);
    snprintf(weight, sizeof weight, "mtp.loss_weight=%.9g", expect_scalar(c, "mtp_loss_weight"));
    snprintf(alpha, sizeof alpha, "balance.seq_alpha=%.9g", expect_scalar(c, "seq_alpha"));
    snprintf(precision, sizeof precision, "precision.mode=%s", mode ? mode : "");
    MUST_OK(config_dump(imported, &text));
    scratch_write_text(path, text);
    free(text);
    MUST_OK(dump_config(&c->config, path, sets, mode ? 3 : 2, c->B, c->S));
}

static void case_open(Case *c, const char *name, const char *dir, const char *mode, bool with_grad, int nthreads) {
    char path[512];
    Config *imported = NULL;
    memset(c, 0, sizeof *c);
    c->name = name;
    snprintf(c->dir, sizeof c->dir, "%s", dir);
    snprintf(path, sizeof path, FOLDER "/%s/expect.safetensors", name);
    MUST_OK(safetensors_open(&c->expect, path));
    MUST_OK(safetensors_open(&c->weights, c->dir));
    MUST_OK(dump_read_tokens(c->expect, path, &c->tokens, &c->B, &c->S));
    MUST_OK(hf_import_config(&imported, c->dir, c->weights));
    dump_settings(c, imported, mode);
    config_free(imported);
    MUST_OK(solo_open(&c->solo, c->config, with_grad, nthreads));
    MUST_OK(import_weights(c->weights, c->dir, model_params(c->solo.model), &c->solo.shape));
    MUST_OK(solo_publish(&c->solo));
}

static void case_close(Case *c) {
    solo_close(&c->solo);
    config_free(c->config);
    mem_free(c->tokens);
    safetensors_close(&c->weights);
    safetensors_close(&c->expect);
}

static const DumpTensor *find(const Case *c, const Dump *d, const StTensor *want) {
    const DumpTensor *got = dump_find(d, want->name);
    if (!got) fail_msg("%s: the dump has no %s", c->name, want->name);
    assert_int_equal(got->ndim, want->ndim);
    for (int i = 0; i < got->ndim; i++) assert_int_equal(got->shape[i], want->shape[i]);
    return got;
}

// Compare one tensor of the expectation; returns the error as a share of what is allowed.
static double compare(const Case *c, const Dump *d, const Safetensors *from, const StTensor *want) {
    const DumpTensor *got = find(c, d, want);
    float *ref = malloc((size_t)got->n * sizeof *ref + 1);
    MUST_OK(safetensors_read_f32(from, want->name, 0, want->rows, ref));
    double worst = 0, diff2 = 0, ref2 = 0, got2 = 0;
    for (int64_t i = 0; i < got->n; i++) {
        double e = fabs((double)got->data[i] - (double)ref[i]);
        if (!(e <= worst)) worst = e; // also NaN
        diff2 += e * e;
        ref2 += (double)ref[i] * (double)ref[i];
        got2 += (double)got->data[i] * (double)got->data[i];
    }
    double first = ref[0];
    free(ref);
    if (!strncmp(want->name, "grad.", 5)) {
        if (ref2 == 0) {
            if (got2 != 0)
                fail_msg("%s: %s is zero in the reference, here its norm is %g", c->name, want->name, sqrt(got2));
            return 0;
        }
        return sqrt(diff2 / ref2) / 1e-3;
    }
    if (!strncmp(want->name, "counts.", 7)) return worst == 0 ? 0 : INFINITY;
    if (strstr(want->name, "loss")) return first == 0 ? (worst == 0 ? 0 : INFINITY) : worst / fabs(first) / 1e-5;
    return worst / 1e-4; // logits, hidden states
}

static bool is_setting(const char *name) {
    return !strcmp(name, "tokens") || !strcmp(name, "mtp_loss_weight") || !strcmp(name, "seq_alpha");
}

// Every tensor of `from` against the dump.
static void compare_all(const Case *c, const Dump *d, const Safetensors *from, const char *what) {
    double worst = 0;
    const char *where = "";
    int64_t n = 0, grads = 0;
    for (int64_t i = 0; i < safetensors_count(from); i++) {
        const StTensor *want = safetensors_at(from, i);
        if (is_setting(want->name)) continue;
        double share = compare(c, d, from, want);
        if (!(share <= 1))
            print_message("%s (%s): %s is off by %.3g of the tolerance\n", c->name, what, want->name, share);
        if (!(share <= worst)) {
            worst = share;
            where = want->name;
        }
        n++;
        grads += !strncmp(want->name, "grad.", 5);
    }
    print_message("%s (%s): %lld tensors, worst %s with %.2g of the tolerance\n", c->name, what, (long long)n,
                  where, worst);
    assert_true(worst <= 1);
    if (grads == 0) return;
    for (int64_t i = 0; i < d->n; i++) { // nothing may be left uncompared
        bool is_grad = !strncmp(d->t[i].name, "grad.", 5);
        if (is_grad && !safetensors_find(from, d->t[i].name))
            fail_msg("%s: no reference for %s", c->name, d->t[i].name);
    }
}

static bool has_grads(const Safetensors *st) {
    for (int64_t i = 0; i < safetensors_count(st); i++) {
        if (!strncmp(safetensors_at(st, i)->name, "grad.", 5)) return true;
    }
    return false;
}

static void check_case(const char *name, const char *dir) {
    Case c;
    Dump d;
    char path[512];
    Safetensors *total = NULL;
    snprintf(path, sizeof path, FOLDER "/%s/expect_total.safetensors", name);
    case_open(&c, name, dir, NULL, true, 1);
    bool with_main = has_grads(c.expect);
    MUST_OK(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, with_main ? DUMP_MAIN : DUMP_NO_GRADS));
    compare_all(&c, &d, c.expect, with_main ? "main" : "forward");
    dump_free(&d);
    if (access(path, R_OK) == 0) {
        MUST_OK(safetensors_open(&total, path));
        MUST_OK(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_TOTAL));
        compare_all(&c, &d, total, "total");
        dump_free(&d);
        safetensors_close(&total);
    }
    case_close(&c);
}

static void golden_case(void **state) {
    char dir[256];
    snprintf(dir, sizeof dir, FOLDER "/%s", (const char *)*state);
    check_case(*state, dir);
}

#define GOLDEN(name)                                                                                               \
    { "golden " name, golden_case, NULL, NULL, (void *)(uintptr_t)name }

static const char *const names[] = {"plain", "groups", "shared2",   "dense2",  "yarn", "yarn_mscale", "wide",
                                    "tied",  "fp8",    "v2_groups", "v2_lite", "mtp1", "mtp2"};

// A case that is committed is a case that is run.
static void no_case_is_forgotten(void **state) {
    (void)state;
    int found = 0;
    DIR *d = opendir(FOLDER);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[512];
        snprintf(path, sizeof path, FOLDER "/%s/config.json", e->d_name);
        if (access(path, F_OK) != 0) continue;
        bool is_listed = false;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) is_listed |= !strcmp(names[i], e->d_name);
        if (!is_listed) fail_msg("%s is not listed in this test", e->d_name);
        found++;
    }
    closedir(d);
    assert_int_equal(found, sizeof names / sizeof names[0]);
}

// The worst share of the tolerance over all tensors of one kind.
static double worst_of(const Case *c, const Dump *d, const char *prefix) {
    double worst = 0;
    for (int64_t i = 0; i < safetensors_count(c->expect); i++) {
        const StTensor *want = safetensors_at(c->expect, i);
        if (!strncmp(want->name, prefix, strlen(prefix))) worst = fmax(worst, compare(c, d, c->expect, want));
    }
    return worst;
}

// The comparison itself can fail: a weight that is off by one percent, a bias that moves the routing.
static void notices_wrong_weights(void **state) {
    (void)state;
    Case c;
    Dump d;
    case_open(&c, "groups", FOLDER "/groups", NULL, true, 1);
    Param *p = params_find(model_params(c.solo.model), P_KV_A_NORM, 1);
    for (int64_t i = 0; i < p->cols; i++) ((float *)p->master.p)[i] *= 1.01f;
    MUST_OK(solo_publish(&c.solo));
    MUST_OK(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_MAIN));
    assert_true(worst_of(&c, &d, "logits") > 1);
    assert_true(worst_of(&c, &d, "lm_loss") > 1);
    assert_true(worst_of(&c, &d, "grad.") > 1);
    dump_free(&d);
    for (int64_t i = 0; i < p->cols; i++) ((float *)p->master.p)[i] /= 1.01f;
    model_params(c.solo.model)->bias[1][5] = 3; // the idle expert
    MUST_OK(solo_publish(&c.solo));
    MUST_OK(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_NO_GRADS));
    assert_true(worst_of(&c, &d, "counts.") > 1);
    dump_free(&d);
    case_close(&c);
}

// What `tessera import`, then `tessera dump` do: through a checkpoint and a file.
static void survives_checkpoint_and_file(void **state) {
    (void)state;
    Case c;
    Dump d;
    Safetensors *file = NULL;
    char dir[128], found[512], path[128];
    CheckpointInfo info = {.world = 1, .ep = 1};
    snprintf(dir, sizeof dir, "%s/run/checkpoints", scratch_dir);
    snprintf(path, sizeof path, "%s/dump.safetensors", scratch_dir);
    case_open(&c, "mtp1", FOLDER "/mtp1", NULL, true, 1);
    Params *p = model_params(c.solo.model);
    MUST_OK(checkpoint_save(dir, p, &c.solo.cx, &info, c.config, 1, 0));
    for (int i = 0; i < p->n; i++) {
        memset(p->p[i].master.p, 0xFF, (size_t)(p->p[i].own.nrows * p->p[i].cols) * sizeof(float));
    }
    snprintf(dir, sizeof dir, "%s/run", scratch_dir);
    MUST_OK(solo_find(found, sizeof found, dir));
    MUST_OK(checkpoint_load(found, p, &c.solo.cx, false));
    MUST_OK(solo_publish(&c.solo));
    MUST_OK(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_MAIN));
    MUST_OK(dump_write(&d, path));
    MUST_OK(safetensors_open(&file, path));
    assert_int_equal(safetensors_count(file), d.n);
    compare_all(&c, &d, c.expect, "from a checkpoint");
    for (int64_t i = 0; i < d.n; i++) {
        const StTensor *t;
        MUST_OK(safetensors_get(file, d.t[i].name, &t));
        assert_int_equal(t->dtype, ST_F32);
        assert_int_equal(t->ndim, d.t[i].ndim);
        assert_memory_equal(t->data, d.t[i].data, t->bytes);
    }
    dump_free(&d);
    safetensors_close(&file);
    case_close(&c);
    assert_int_equal(solo_find(found, sizeof found, "/tmp/no/such/run"), E_INPUT);
    fail_clear();
}

static void threads_change_nothing(void **state) {
    (void)state;
    Dump one, more;
    for (int threads = 1; threads <= 3; threads++) {
        Case c;
        case_open(&c, "mtp2", FOLDER "/mtp2", NULL, true, threads);
        MUST_OK(dump_compute(threads == 1 ? &one : &more, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_TOTAL));
        for (int64_t i = 0; threads > 1 && i < one.n; i++) {
            assert_string_equal(one.t[i].name, more.t[i].name);
            assert_memory_equal(one.t[i].data, more.t[i].data, (size_t)one.t[i].n * sizeof(float));
        }
        if (threads > 1) dump_free(&more);
        case_close(&c);
    }
    dump_free(&one);
}

// The other precisions, asked for by --set, are near the same numbers and not the same.
static void other_precisions_are_near(void **state) {
    (void)state;
    const char *const modes[] = {"bf16", "fp8"};
    for (int i = 0; i < 2; i++) {
        Case c;
        Dump d;
        case_open(&c, "wide", FOLDER "/wide", modes[i], true, 1);
        MUST_OK(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_MAIN));
        double want = expect_scalar(&c, "lm_loss"), off = fabs((double)dump_find(&d, "lm_loss")->data[0] - want) / want;
        print_message("wide (%s): lm_loss is off by %.2g\n", modes[i], off);
        assert_true(off > 1e-7 && off < 0.05);
        assert_true(worst_of(&c, &d, "hidden.") > 1);
        dump_free(&d);
        case_close(&c);
    }
}

static void refuses_bad_tokens(void **state) {
    (void)state;
    Case c;
    Dump d;
    case_open(&c, "mtp2", FOLDER "/mtp2", NULL, false, 1);
    int32_t was = c.tokens[20];
    for (int i = 0; i < 2; i++) {
        c.tokens[20] = i ? -1 : 53;
        assert_int_equal(dump_compute(&d, &c.solo, c.config, c.tokens, c.B, c.S, DUMP_NO_GRADS), E_INPUT);
        assert_non_null(strstr(fail_message(), "sequence 1, position 1"));
        assert_int_equal(d.n, 0);
    }
    c.tokens[20] = was;
    assert_int_equal(dump_compute(&d, &c.solo, c.config, c.tokens, 1, 3, DUMP_NO_GRADS), E_INPUT); // 2 modules need 4
    int32_t *tokens = NULL;
    int64_t B, S;
    char path[128];
    SafetensorsWriter *w = NULL;
    Safetensors *st = NULL;
    snprintf(path, sizeof path, "%s/tokens.safetensors", scratch_dir);
    const StDecl wrong[] = {{"tokens", ST_I32, 1, {4}}, {"tokens", ST_F32, 2, {2, 2}}, {"token", ST_I32, 2, {2, 2}}};
    for (int i = 0; i < 3; i++) {
        MUST_OK(safetensors_create(&w, path, &wrong[i], 1));
        MUST_OK(safetensors_put(w, wrong[i].name, "0123456789abcdef", 16));
        MUST_OK(safetensors_finish(&w, false));
        MUST_OK(safetensors_open(&st, path));
        assert_int_equal(dump_read_tokens(st, path, &tokens, &B, &S), E_INPUT);
        safetensors_close(&st);
    }
    fail_clear();
    case_close(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        GOLDEN("plain"),
        GOLDEN("groups"),
        GOLDEN("shared2"),
        GOLDEN("dense2"),
        GOLDEN("yarn"),
        GOLDEN("yarn_mscale"),
        GOLDEN("wide"),
        GOLDEN("tied"),
        GOLDEN("fp8"),
        GOLDEN("v2_groups"),
        GOLDEN("v2_lite"),
        GOLDEN("mtp1"),
        GOLDEN("mtp2"),
        cmocka_unit_test(no_case_is_forgotten),
        cmocka_unit_test(notices_wrong_weights),
        cmocka_unit_test(survives_checkpoint_and_file),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(other_precisions_are_near),
        cmocka_unit_test(refuses_bad_tokens),
    };
    return cmocka_run_group_tests(tests, setup, scratch_teardown);
}
