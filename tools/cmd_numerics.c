// cmd_numerics.c - `tessera numerics`: the FP8 laboratory. What quantisation and accumulation cost,
// as tables, plots and records.
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "args.h"
#include "commands.h"
#include "gemm_engine.h"
#include "log.h"
#include "numerics.h"
#include "outfile.h"
#include "solo.h"

static const Flag flags[] = {
    {"out", "DIR", NULL, FLAG_REQUIRED,
     "folder for quantisation.svg, accumulation.svg, promotion.svg, numerics.jsonl"},
    {"json", "FILE", NULL, 0, "also write the records, one JSON object per case, to FILE"},
    {"checkpoint", "PATH", NULL, 0, "also quantise weights and momenta of this run or checkpoint"},
    {"threads", "N", NULL, 0, "threads (default: OMP_NUM_THREADS, or all cores)"},
};

static const Command command = {"tessera numerics",
                                "",
                                "Measures what FP8 loses: quantisation by granularity and data; "
                                "products by length of the sum,\n"
                                "accumulation and promotion interval. Takes some seconds.",
                                flags,
                                COUNT_OF(flags),
                                0,
                                0};

void numerics_json(Numerics *n, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    vfprintf(n->records, fmt, ap);
    va_end(ap);
    fputc('\n', n->records);
}

NumericsPath numerics_path(const Numerics *n, const char *name) {
    NumericsPath p;
    snprintf(p.s, sizeof p.s, "%s/%s", n->dir, name);
    return p;
}

static Err make_folder(const char *dir) {
    CHECK(strlen(dir) < 3900, E_USAGE, "--out: the path is too long");
    struct stat st;
    if (mkdir(dir, 0777) != 0)
        CHECK(errno == EEXIST, E_OUTPUT, "--out: cannot make %s: %s", dir, strerror(errno));
    CHECK(stat(dir, &st) == 0 && S_ISDIR(st.st_mode), E_OUTPUT, "--out: %s is not a folder", dir);
    return OK;
}

static Err measure(Numerics *n, int threads) {
    Err err = OK;
    n->ops = ops_cpu();
    n->cx.nthreads = threads;
    TRY_OR(arena_create(&n->arena, "numerics", (size_t)1 << 30, false), done);
    TRY_OR(arena_create(&n->cx.scratch, "numerics scratch", gemm_scratch_bytes(threads, 1), false),
           done);
    TRY_OR(numerics_quant(n), done);
    TRY_OR(numerics_gemm(n), done);
done:
    arena_destroy(&n->cx.scratch);
    arena_destroy(&n->arena);
    return err;
}

static Err write_records(const char *path, const char *text, size_t bytes) {
    OutFile o;
    TRY(outfile_open(&o, path));
    fwrite(text, 1, bytes, o.f);
    TRY(outfile_finish(&o, false));
    return OK;
}

// Records are kept in memory until all is measured: they go to one file or two, which may be the
// same.
static Err measure_into(Numerics *n, const char *json, int threads) {
    char *text = NULL;
    size_t bytes = 0;
    n->records = open_memstream(&text, &bytes);
    CHECK(n->records, E_INTERNAL, "no memory for the records");
    Err err = measure(n, threads);
    bool is_whole = fclose(n->records) == 0;
    if (err == OK) CHECK_OR(is_whole, done, E_INTERNAL, "no memory for the records");
    if (err == OK) TRY_OR(write_records(numerics_path(n, "numerics.jsonl").s, text, bytes), done);
    if (err == OK && json) TRY_OR(write_records(json, text, bytes), done);
    if (err == OK) log_line("\nplots and records are in %s", n->dir);
done:
    free(text);
    return err;
}

Err cmd_numerics(int argc, char **argv) {
    Args a;
    Numerics n = {0};
    char checkpoint[4096];
    int64_t threads = 0;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = OK;
    n.dir = args_get(&a, "out");
    TRY_OR(args_int(&a, "threads", 1, 1024, &threads), done);
    if (args_get(&a, "checkpoint")) {
        TRY_OR(solo_find(checkpoint, sizeof checkpoint, args_get(&a, "checkpoint")), done);
        n.checkpoint = checkpoint;
    }
    TRY_OR(make_folder(n.dir), done);
    TRY_OR(measure_into(&n, args_get(&a, "json"), solo_threads(threads)), done);
done:
    args_free(&a);
    return err;
}
