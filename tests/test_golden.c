// test_golden.c - every committed case of tests/golden against what transformers computed (see its README).
//
// The way is the one of `tessera import` and `tessera dump`: config.json and weights are imported, tokens are run in FP32,
// and everything that `dump` writes is compared by name. Tolerances are the project's promise: logits 1e-4, losses
// 1e-5 relative, gradients 1e-3 relative in the Frobenius norm, counts equal, zero gradients exactly zero.
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "dump.h"
#include "hf.h"
#include "log.h"

#define FOLDER "tests/golden"
#define MUST_OK(call)                                                                              \
    do {                                                                                           \
        if ((call) != OK) fail_msg("%s: %s", #call, fail_message());                               \
    } while (0)

static char root[64];

static int setup(void **state) {
    (void)state;
    log_init(1, 2); // no lines
    strcpy(root, "/tmp/test_golden_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", root);
    return system(command);
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

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) < 0, 0);
    assert_int_equal(fclose(f), 0);
}

// dump_settings: the case's config as a checkpoint would store it, read the way `dump` does.
static void dump_settings(Case *c, const Config *imported) {
    char *text = NULL, path[128], weight[64], alpha[64];
    const char *sets[] = {weight, alpha};
    snprintf(path, sizeof path, "%s/config.yaml", root);
    snprintf(weight, sizeof weight, "mtp.loss_weight=%.9g", expect_scalar(c, "mtp_loss_weight"));
    snprintf(alpha, sizeof alpha, "balance.seq_alpha=%.9g", expect_scalar(c, "seq_alpha"));
    MUST_OK(config_dump(imported, &text));
    write_text(path, text);
    free(text);
    MUST_OK(dump_config(&c->config, path, sets, 2, c->B, c->S));
}

static void case_open(Case *c, const char *name, const char *dir, bool with_grad, int nthreads) {
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
    dump_settings(c, imported);
    config_free(imported);
    MUST_OK(solo_open(&c->solo, c->config, with_grad, nthreads));
    MUST_OK(hf_import_weights(c->weights, c->dir, model_params(c->solo.model), &c->solo.shape, &c->solo.cx));
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
            if (got2 != 0) fail_msg("%s: %s is zero in the reference, here its norm is %g", c->name, want->name, sqrt(got2));
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
        if (!(share <= 1)) print_message("%s (%s): %s is off by %.3g of the tolerance\n", c->name, what, want->name, share);
        if (!(share <= worst)) {
            worst = share;
            where = want->name;
        }
        n++;
        grads += !strncmp(want->name, "grad.", 5);
    }
    print_message("%s (%s): %lld tensors, worst %s with %.2g of the tolerance\n", c->name, what, (long long)n, where, worst);
    assert_true(worst <= 1);
    if (grads == 0) return;
    for (int64_t i = 0; i < d->n; i++) { // nothing may be left uncompared
        bool is_grad = !strncmp(d->t[i].name, "grad.", 5);
        if (is_grad && !safetensors_find(from, d->t[i].name)) fail_msg("%s: no reference for %s", c->name, d->t[i].name);
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
    case_open(&c, name, dir, true, 2);
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

#define GOLDEN(name)                                                                               \
    { "golden " name, golden_case, NULL, NULL, (void *)(uintptr_t)name }

int main(void) {
    const struct CMUnitTest tests[] = {
        GOLDEN("plain"),     GOLDEN("groups"), GOLDEN("shared2"),   GOLDEN("dense2"),  GOLDEN("yarn"),
        GOLDEN("yarn_mscale"), GOLDEN("wide"), GOLDEN("tied"),      GOLDEN("fp8"),     GOLDEN("v2_groups"),
        GOLDEN("v2_lite"),   GOLDEN("mtp1"),   GOLDEN("mtp2"),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
