// cmd_bench.c - `tessera bench`: speed here, as a fraction of what this machine can do at best.
//
// To add a subject: its function in bench.h and its line in the table.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "bench.h"
#include "boot.h"
#include "commands.h"
#include "log.h"
#include "nearest.h"
#include "solo.h"

static const struct {
    const char *name;
    Err (*run)(Bench *b);
} subjects[] = {
    {"gemm", bench_gemm}, {"quant", bench_quant},       {"attention", bench_attention},
    {"adam", bench_adam}, {"exchange", bench_exchange}, {"step", bench_step},
};

static const Flag flags[] = {
    {"threads", "N", NULL, 0,
     "threads to use; default: OMP_NUM_THREADS, else all cores of this process"},
    {"device", "cpu|cuda", "cpu", 0,
     "what is measured; cuda: the GPU, beside its own library and a copy in its memory"},
    {"shape", "AxBxC", NULL, FLAG_REPEAT,
     "instead of the subject's own: gemm M x N x K or M x N x K x experts; quant rows x columns; attention sequences x "
     "positions x heads; adam rows of 1024 parameters"},
    {"json", "FILE", NULL, 0, "also write one JSON object per case to FILE"},
    {"config", "FILE", NULL, FLAG_REPEAT, "step: a run whose step is measured"},
    {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT, "step: override one setting"},
    {"profile", NULL, NULL, 0, "step: where its time goes, by region"},
    {"plot", "FILE.svg", NULL, 0, "also draw everything measured under the roofline"},
    {"busy", NULL, NULL, 0,
     "one thread, in its processor time: for a machine with other work; the best of many samples "
     "is nearest to a quiet machine"},
    {"all", NULL, NULL, 0, "every shape, not only those of doc/performance.md"},
};
static const Command command = {
    "tessera bench",
    "[gemm|quant|attention|adam|exchange|step]",
    "Measures speed, as a fraction of this machine's measured peak. Without a subject: all of "
    "them\n"
    "but step, and that too if there is a --config; takes about a minute.",
    flags,
    COUNT_OF(flags),
    0,
    1};

static Err run_all(Bench *b) {
    CHECK(!boot_is_launched(), E_USAGE,
          "tessera bench: under a launcher name one subject, exchange or step");
    CHECK(b->nshapes == 0, E_USAGE, "tessera bench: --shape needs a subject");
    if (b->wants_device) TRY(bench_device_open(b, 0, false));
    for (int i = 0; i < COUNT_OF(subjects); i++) {
        if (subjects[i].run == bench_step && b->nconfigs == 0) continue;
        if (subjects[i].run == bench_exchange && b->wants_device) continue; // its rows travel through the host
        if (i > 0) log_line(" ");
        TRY(subjects[i].run(b));
    }
    return OK;
}

// parse_shapes: "4096x7168x2048" and the like.
static Err parse_shapes(Bench *b, const Args *a) {
    const char *texts[BENCH_SHAPES];
    TRY(args_all(a, "shape", texts, BENCH_SHAPES, &b->nshapes));
    for (int i = 0; i < b->nshapes; i++) {
        const char *at = texts[i];
        for (int k = 0; k < 4 && at; k++) {
            char *end = NULL;
            b->shapes[i][k] = strtoll(at, &end, 10);
            bool is_number = *at >= '0' && *at <= '9' && b->shapes[i][k] > 0 && b->shapes[i][k] < ((int64_t)1 << 31);
            CHECK(is_number && (*end == '\0' || (*end == 'x' && k < 3)), E_USAGE,
                  "--shape %s: expected numbers above 0 with x between them, as in 4096x7168x2048", texts[i]);
            at = *end ? end + 1 : NULL;
        }
    }
    return OK;
}

// check_shapes: the subject gets as many numbers as it needs.
static Err check_shapes(const Bench *b, const char *subject) {
    int least = !strcmp(subject, "gemm") || !strcmp(subject, "attention") ? 3
                : !strcmp(subject, "quant")                               ? 2
                : !strcmp(subject, "adam")                                ? 1
                                                                          : 0;
    CHECK(least > 0 || b->nshapes == 0, E_USAGE, "tessera bench %s has no --shape", subject);
    for (int i = 0; i < b->nshapes; i++)
        CHECK(b->shapes[i][least - 1] > 0, E_USAGE, "tessera bench %s: --shape needs %d numbers", subject, least);
    return OK;
}

static Err run_subject(const char *name, Bench *b) {
    const char *names[COUNT_OF(subjects)];
    for (int i = 0; i < COUNT_OF(subjects); i++) {
        names[i] = subjects[i].name;
        if (strcmp(name, names[i]) != 0) continue;
        TRY(check_shapes(b, name));
        CHECK(!b->wants_device || subjects[i].run != bench_exchange, E_USAGE,
              "tessera bench exchange: rows travel through memory of the host; --device cpu measures that");
        if (b->wants_device && subjects[i].run != bench_step) TRY(bench_device_open(b, 0, false));
        TRY(subjects[i].run(b));
        return OK;
    }
    const char *near = word_nearest(name, names, COUNT_OF(subjects));
    CHECK(near, E_USAGE, "tessera bench: unknown subject '%.60s'; known are gemm, quant, attention, adam, exchange and "
                         "step", name);
    FAIL(E_USAGE, "tessera bench: unknown subject '%.60s'; did you mean %s?", name, near);
}

static Err bench_with(Bench *b, const Args *a) {
    Err err = OK;
    const char *path = args_get(a, "json");
    FILE *json = NULL;
    int64_t threads = 0;
    TRY(args_int(a, "threads", 1, 1024, &threads));
    b->asked = (int)threads;
    b->threads = solo_threads(threads);
    b->is_all = args_has(a, "all");
    b->is_busy = args_has(a, "busy");
    b->is_profile = args_has(a, "profile");
    TRY(args_all(a, "config", b->configs, COUNT_OF(b->configs), &b->nconfigs));
    TRY(args_all(a, "set", b->sets, COUNT_OF(b->sets), &b->nsets));
    TRY(parse_shapes(b, a));
    b->wants_device = args_get(a, "device") && strcmp(args_get(a, "device"), "cuda") == 0;
    if (b->is_busy) {
        CHECK(threads < 2 && !b->wants_device, E_USAGE,
              "tessera bench: --busy times one thread of the processor; leave out --threads and --device");
        b->threads = 1;
    }
    b->on = backend_cpu();
    if (path) {
        b->json = json = fopen(path, "we");
        CHECK(json, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
        setvbuf(json, NULL, _IOLBF, 0); // a run that is killed leaves the figures it has
    }
    if (!b->wants_device) {
        TRY_OR(arena_create(&b->arena, "bench operands", (size_t)1 << 32, false), done);
        TRY_OR(arena_create(&b->scratch, "bench scratch", (size_t)1 << 32, false), done);
    }
    if (a->noperands > 0)
        TRY_OR(run_subject(a->operands[0], b), done);
    else
        TRY_OR(run_all(b), done);
    if (args_get(a, "plot") && b->rank == 0) TRY_OR(bench_roofline(b, args_get(a, "plot")), done);
done:
    if (b->is_device) bench_device_close(b);
    arena_destroy(&b->scratch);
    arena_destroy(&b->arena);
    if (json) {
        bool is_written = !ferror(json);
        is_written = fclose(json) == 0 && is_written;
        if (err == OK) CHECK(is_written, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    }
    return err;
}

Err cmd_bench(int argc, char **argv) {
    Args a;
    Bench b = {0};
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = bench_with(&b, &a);
    args_free(&a);
    return err;
}
