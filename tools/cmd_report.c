// cmd_report.c - `tessera report RUN_DIR...`: a run, or several beside each other, as one page of
// plots.
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "arena.h"
#include "commands.h"
#include "log.h"
#include "outfile.h"
#include "report.h"

static const Flag flags[] = {
    {"out", "FILE", NULL, 0,
     "where the page is written (default: report.html in the first RUN_DIR)"},
    {"smooth", "N", NULL, 0,
     "curves are means over N steps (default: a hundredth of the longest run)"},
};

static const Command command = {
    "tessera report",
    "RUN_DIR...",
    "Writes one HTML page of plots: losses, gradient norm, speed, balance of the experts, FP8\n"
    "health, saves and restarts. Several runs are drawn over each other. The page needs\n"
    "nothing but itself; a run that is still going on can be looked at.",
    flags,
    COUNT_OF(flags),
    1,
    REPORT_RUNS};

static Err write_page(Report *p, const char *path) {
    OutFile o;
    TRY(outfile_open(&o, path));
    p->f = o.f;
    Err err = report_page(p);
    if (err != OK) {
        outfile_drop(&o);
        return err;
    }
    bool is_file = o.temporary != NULL; // a pipe may be our own output
    TRY(outfile_finish(&o, false));
    if (is_file) log_line("report     %s", path);
    return OK;
}

// read_and_write: the page is opened last: nothing is written if a run cannot be read.
static Err read_and_write(Report *p, const Args *a) {
    char path[4200];
    const char *out = args_get(a, "out");
    TRY(args_int(a, "smooth", 1, INT64_C(1) << 40, &p->smooth));
    for (int i = 0; i < a->noperands; i++) {
        p->nruns = i + 1; // also what was read in part is given back
        TRY(report_read(&p->run[i], a->operands[i]));
    }
    int n = (int)strlen(a->operands[0]);
    while (n > 1 && a->operands[0][n - 1] == '/') n--;
    snprintf(path, sizeof path, "%.*s/report.html", n, a->operands[0]);
    return write_page(p, out ? out : path);
}

Err cmd_report(int argc, char **argv) {
    Args a;
    Report *p;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = mem_alloc((void **)&p, sizeof *p, "the report");
    if (err == OK) {
        err = read_and_write(p, &a);
        for (int i = 0; i < p->nruns; i++) report_free(&p->run[i]);
        mem_free(p);
    }
    args_free(&a);
    return err;
}
