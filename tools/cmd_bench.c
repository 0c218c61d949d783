// cmd_bench.c - `tessera bench`: speed here, as a fraction of what this machine can do at best.
//
// To add a subject: its function in bench.h and its line in the table.
#include <errno.h>
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
    for (int i = 0; i < COUNT_OF(subjects); i++) {
        if (subjects[i].run == bench_step && b->nconfigs == 0) continue;
        if (i > 0) log_line(" ");
        TRY(subjects[i].run(b));
    }
    return OK;
}

static Err run_subject(const char *name, Bench *b) {
    const char *names[COUNT_OF(subjects)];
    for (int i = 0; i < COUNT_OF(subjects); i++) {
        names[i] = subjects[i].name;
        if (strcmp(name, names[i]) != 0) continue;
        TRY(subjects[i].run(b));
        return OK;
    }
    const char *near = word_nearest(name, names, COUNT_OF(subjects));
    FAIL(E_USAGE, "tessera bench: unknown subject '%.60s'; %s%s", name,
         near ? "did you mean " : "known are gemm, quant, attention, adam, exchange and step",
         near ? near : "");
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
    if (b->is_busy) {
        CHECK(threads < 2, E_USAGE, "tessera bench: --busy times one thread, not %lld",
              (long long)threads);
        b->threads = 1;
    }
    b->is_profile = args_has(a, "profile");
    TRY(args_all(a, "config", b->configs, COUNT_OF(b->configs), &b->nconfigs));
    TRY(args_all(a, "set", b->sets, COUNT_OF(b->sets), &b->nsets));
    if (path) {
        b->json = json = fopen(path, "we");
        CHECK(json, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    }
    TRY_OR(arena_create(&b->arena, "bench operands", (size_t)1 << 32, false), done);
    TRY_OR(arena_create(&b->scratch, "bench scratch", (size_t)1 << 32, false), done);
    if (a->noperands > 0)
        TRY_OR(run_subject(a->operands[0], b), done);
    else
        TRY_OR(run_all(b), done);
    if (args_get(a, "plot") && b->rank == 0) TRY_OR(bench_roofline(b, args_get(a, "plot")), done);
done:
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
