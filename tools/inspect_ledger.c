// inspect_ledger.c - what ranks were in last, from the files that outlive them. See inspect_ledger.h.
#include "inspect_ledger.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "arena.h"
#include "log.h"
#include "verdict.h"

enum { SHOWN = 24 };        // operations of one rank
#define STOPPED_SECONDS 5.0 // watchdogs look once a second, or ask others for two

static double day_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void print_time(double day) {
    time_t whole = (time_t)day;
    struct tm t;
    char text[40];
    gmtime_r(&whole, &t);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &t);
    printf("%s.%03dZ", text, (int)((day - (double)whole) * 1e3));
}

static void print_head(const LedgerHead *h) {
    printf("rank %d of %d, %s, process %d%s\n", (int)h->rank, (int)h->nranks, h->host, (int)h->pid,
           h->is_closed ? ", ended by itself" : "");
    printf("  last sign of life ");
    print_time(h->progress + h->wall);
    if (h->alive > 0.0) printf(", process alive at ");
    if (h->alive > 0.0) print_time(h->alive + h->wall);
    printf(", step %lld, phase %s since ", (long long)h->step, ledger_phase_name(h->phase));
    print_time(h->phase_since + h->wall);
    printf("\n");
    for (int g = 0; g < h->ngroups; g++) {
        printf("  group %-6s %lld operations begun, %d ranks: %d", h->group[g].name, (long long)h->group[g].entered,
               (int)h->group[g].n, (int)h->group[g].first);
        printf(h->group[g].n > 1 ? ", %d, ...\n" : "\n", (int)(h->group[g].first + h->group[g].stride));
    }
}

Err inspect_ledger(const char *path) {
    LedgerHead h;
    LedgerEntry *ring = NULL;
    char op[200];
    MEM_NEW(ring, LEDGER_RING);
    Err err = ledger_read(path, &h, ring);
    if (err != OK) mem_free(ring);
    TRY(err);
    printf("ledger %s\n", path);
    print_head(&h);
    int64_t kept = h.count < LEDGER_RING ? h.count : LEDGER_RING, shown = kept < SHOWN ? kept : SHOWN;
    printf("  the last %lld of %lld operations\n", (long long)shown, (long long)h.count);
    for (int64_t i = h.count - shown; i < h.count; i++) {
        const LedgerEntry *e = &ring[i % LEDGER_RING];
        ledger_describe(op, sizeof op, e, h.group);
        printf("  step %-6lld ", (long long)e->step);
        print_time(e->entered + h.wall);
        if (e->left > 0.0) printf("  %9.3f ms", (e->left - e->entered) * 1e3);
        else printf("  %-12s", h.inside == i ? "INSIDE" : "under way");
        printf("  %10s  %s\n", text_bytes((double)e->bytes).s, op);
    }
    mem_free(ring);
    return OK;
}

// ---- all ranks ----------------------------------------------------------------------------------

// rank_of: "rank_00012.bin" -> 12, -1 for other names.
static int rank_of(const char *name) {
    char *end = NULL;
    if (strncmp(name, "rank_", 5) != 0) return -1;
    long n = strtol(name + 5, &end, 10);
    return end != name + 5 && strcmp(end, ".bin") == 0 && n >= 0 && n < 1000000 ? (int)n : -1;
}

static Err highest_rank(const char *dir, int *n) {
    DIR *d = opendir(dir);
    CHECK(d, E_INPUT, "cannot read %s: %s", dir, strerror(errno));
    *n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        int rank = rank_of(e->d_name);
        if (rank >= *n) *n = rank + 1;
    }
    closedir(d);
    return OK;
}

// is_here: the process is there still, on this host.
static bool is_here(const LedgerHead *h) {
    char host[64] = "";
    if (gethostname(host, sizeof host) != 0) return true;
    host[sizeof host - 1] = '\0';
    return strcmp(host, h->host) != 0 || kill(h->pid, 0) == 0 || errno != ESRCH;
}

static void print_state(const LedgerState *s) {
    char op[200];
    printf("rank %-5d %-16s process %-8d step %-6lld phase %-5s ", (int)s->rank, s->host, (int)s->pid,
           (long long)s->step, ledger_phase_name(s->phase));
    if (s->is_silent && !s->is_gone) printf("stopped, ");
    if (s->is_closed) printf("ended by itself\n");
    else if (s->is_inside) {
        ledger_describe(op, sizeof op, &s->inside, s->group);
        printf("%sin %s\n", s->is_gone ? "gone, was " : "", op);
    } else if (s->has_last) {
        ledger_describe(op, sizeof op, &s->last, s->group);
        printf("%sleft %s\n", s->is_gone ? "gone, had " : "", op);
    } else printf("%s\n", s->is_gone ? "gone, was in no operation" : "in no operation");
}

// read_all: states of ranks 0..n-1; ages are to the last sign of life of any of them, so that what ended long ago reads
// as it was when it ended.
static int read_all(const char *dir, LedgerState *s, int n, LedgerHead *h, LedgerEntry *ring) {
    int nbad = 0;
    double last = 0.0;
    char path[4200];
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i < n; i++) {
            snprintf(path, sizeof path, "%s/rank_%05d.bin", dir, i);
            if (access(path, F_OK) != 0) continue;
            if (ledger_read(path, h, ring) != OK) {
                if (turn == 0) printf("%s\n", fail_message());
                nbad += turn;
                fail_clear();
                continue;
            }
            double seen = (h->alive > h->progress ? h->alive : h->progress) + h->wall;
            if (is_here(h) && !h->is_closed) seen = day_seconds();
            if (seen > last) last = seen;
            if (turn == 1) ledger_state(&s[i], h, ring, last - h->wall, 0.0);
            // A process that is stopped goes on waiting, but its watchdog does not.
            if (turn == 1) s[i].is_silent = h->alive > 0.0 && last - h->wall - h->alive > STOPPED_SECONDS;
            if (turn == 1) s[i].is_gone = !is_here(h);
        }
    }
    return nbad;
}

// print_said: what the run itself said of it when it was ended. False: nothing.
static bool print_said(const char *dir) {
    char path[4200], line[2 * VERDICT_TEXT];
    struct stat file;
    snprintf(path, sizeof path, "%s/" LEDGER_SAID, dir);
    FILE *f = fopen(path, "r");
    bool ok = f && fstat(fileno(f), &file) == 0 && file.st_size > 0;
    if (ok) {
        printf("the run was ended at ");
        print_time((double)file.st_mtim.tv_sec + 1e-9 * (double)file.st_mtim.tv_nsec);
        printf(", as it stood still:\n");
        while (fgets(line, sizeof line, f)) fputs(line, stdout);
    }
    if (f) fclose(f);
    return ok;
}

// judge: who held up the others. Processes that are gone count as they were when they went.
static void judge(LedgerState *s, int n, bool *marks) {
    double limit[LEDGER_PHASES];
    Verdict v;
    for (int i = 0; i < LEDGER_PHASES; i++) limit[i] = 1.0;
    for (int i = 0; i < n; i++) s[i].is_gone = false;
    verdict_find(&v, s, n, limit, marks);
    if (v.kind != VERDICT_NONE) printf("%s\n", v.text);
}

Err inspect_ledgers(const char *dir) {
    LedgerState *s = NULL;
    LedgerEntry *ring = NULL;
    bool *marks = NULL;
    LedgerHead h;
    int n = 0;
    TRY(highest_rank(dir, &n));
    CHECK(n > 0, E_INPUT, "%s holds no ledger", dir);
    MEM_NEW(ring, LEDGER_RING);
    MEM_NEW(s, n);
    MEM_NEW(marks, 2 * n);
    printf("ledgers %s\n", dir);
    int nbad = read_all(dir, s, n, &h, ring);
    for (int i = 0; i < n; i++) {
        if (s[i].is_known) print_state(&s[i]);
        s[i].rank = i;
    }
    // A process that was stopped goes on for a moment before it is ended, and its ledger with it: what was found before
    // that counts.
    if (!print_said(dir)) judge(s, n, marks);
    mem_free(ring);
    mem_free(s);
    mem_free(marks);
    CHECK(nbad == 0, E_INPUT, "%s: %d damaged ledger%s", dir, nbad, nbad == 1 ? "" : "s");
    return OK;
}
