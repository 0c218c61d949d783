// run_watch.c - the ledger and the watchdog of a run: which limits, which files, what is said and how the job ends when
// it stands still.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "log.h"
#include "run.h"

// append: one line to a file of the run directory, as a whole. From any rank: the first may be the one that hangs.
// flags: O_CREAT for a file that the run has not made.
static void append(const Run *r, const char *name, int flags, const char *line, size_t n) {
    char path[1200];
    if (!r->dir[0]) return;
    snprintf(path, sizeof path, "%s/%s", r->dir, name);
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | flags, 0666);
    if (fd < 0) return;
    if (write(fd, line, n) != (ssize_t)n) log_any("cannot write %s", path);
    close(fd);
}

// say: in the watchdog's thread, of whichever rank found out.
static void say(void *user, bool is_hang, const char *text) {
    const Run *r = user;
    const char *prefix = is_hang ? "hang       " : "waiting    ";
    char line[2 * VERDICT_TEXT + 200], inside[2 * VERDICT_TEXT];
    struct timeval now;
    log_any("%s%s", prefix, text);
    int n = snprintf(line, sizeof line, "%s%s\n", prefix, text);
    append(r, "train.log", 0, line, (size_t)n);
    if (!is_hang) return;
    gettimeofday(&now, NULL);
    metrics_escape(inside, sizeof inside, text);
    n = snprintf(line, sizeof line, "{\"time\":%lld.%03d,\"event\":\"hang\",\"step\":%lld,\"text\":\"%s\"}\n",
                 (long long)now.tv_sec, (int)(now.tv_usec / 1000), (long long)ledger_head(r->ledger)->step, inside);
    append(r, "events.jsonl", 0, line, (size_t)n);
    // The ledgers go on until the launcher has ended every process; a stopped one it wakes first.
    n = snprintf(line, sizeof line, "%s\n", text);
    append(r, "ledger/" LEDGER_SAID, O_CREAT, line, (size_t)n);
}

// end: of this process alone. The main thread may be anywhere inside MPI, which is then no other thread's to call
// (MPI_THREAD_SERIALIZED), not even for MPI_Abort. Every rank that answers ends like this; the launcher sees their code
// and ends what is stopped.
static void end(void *user) {
    (void)user;
    boot_end(E_PEER);
}

Err run_watch_start(Run *r) {
    const Boot *b = &r->boot;
    const Mesh *m = &r->mesh;
    WatchdogSpec spec = {.is_one_host = b->local_nranks == b->nranks, .say = say, .end = end, .user = r};
    TRY(comm_agree(b->world, ledger_create(&r->ledger, b->rank, b->nranks, b->host)));
    TRY(ledger_watch(r->ledger, b->world, 0, 1));
    TRY(ledger_watch(r->ledger, b->ep, m->dp_rank * m->ep, 1));
    TRY(ledger_watch(r->ledger, b->edp, m->ep_rank, m->ep));
    spec.ledger = r->ledger;
    spec.limit[PHASE_START] = (double)r->config->watchdog.start;
    spec.limit[PHASE_DATA] = (double)r->config->watchdog.data;
    spec.limit[PHASE_STEP] = (double)r->config->watchdog.step;
    spec.limit[PHASE_SAVE] = (double)r->config->watchdog.save;
    spec.limit[PHASE_EVAL] = (double)r->config->watchdog.eval;
    return watchdog_start(&r->watchdog, &spec, b->world);
}

Err run_watch_devices(Run *r) {
    const Boot *b = &r->boot;
    const Mesh *m = &r->mesh;
    if (b->world->on_device) TRY(ledger_watch(r->ledger, b->world->on_device, 0, 1));
    if (b->ep->on_device) TRY(ledger_watch(r->ledger, b->ep->on_device, m->dp_rank * m->ep, 1));
    if (b->edp->on_device) TRY(ledger_watch(r->ledger, b->edp->on_device, m->ep_rank, m->ep));
    return OK;
}

Err run_watch_files(Run *r) {
    char dir[1100];
    snprintf(dir, sizeof dir, "%s/ledger", r->dir);
    // The path may be known to the first rank only where it chose one.
    TRY(comm_agree(r->boot.world, OK));
    if (ledger_open(r->ledger, dir) != OK) {
        log_any("warning: the ledger stays in memory: %s", fail_message());
        fail_clear();
    }
    watchdog_files(r->watchdog, dir);
    return OK;
}

void run_watch_stop(Run *r) {
    watchdog_stop(&r->watchdog);
    ledger_close(&r->ledger);
}
