// watchdog.c - the thread that notices a run that stands still. See watchdog.h.
#include "watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "arena.h"
#include "log.h"
#include "peers.h"

#define ANSWER_SECONDS 2.0 // in which a living rank answers
#define STOPPED_SECONDS 3.0 // a look that comes this much too late: the process was stopped

struct Watchdog {
    WatchdogSpec spec;
    Peers *peers;
    pthread_t thread;
    bool is_running;
    volatile int is_stopping;
    int rank, nranks;
    double tick;      // seconds between two looks
    double since;     // when the process was last found to have been stopped
    double quiet;     // until then nobody is asked
    bool is_asked;    // another rank asked this one to look into it
    char dir[1200];   // of the ledgers' files, "" before they are
    LedgerState *state; // [nranks]
    bool *is_answered, *is_refused; // [nranks]
    bool *marks;                    // [2 * nranks] of verdict_find
};

static void own_state(void *user, LedgerState *out) {
    Watchdog *w = user;
    ledger_state(out, ledger_head(w->spec.ledger), ledger_ring(w->spec.ledger), now_seconds(), w->since);
}

static void on_asked(void *user, PeerQuestion question) {
    Watchdog *w = user;
    if (question == ASK_LEAD) w->is_asked = true;
    if (question == ASK_END) w->spec.end(w->spec.user);
}

// is_late: this rank gives no sign of life for longer than its phase allows.
static bool is_late(Watchdog *w) {
    LedgerState s;
    own_state(w, &s);
    double limit = w->spec.limit[s.phase];
    return limit > 0.0 && (s.is_inside ? s.inside_age : s.idle) >= limit;
}

// ask: peers_ask, which may take a while: signs of life before and after it.
static void ask(Watchdog *w, PeerQuestion question, int first, int n, bool *is_answered, bool *is_refused,
                LedgerState *states) {
    ledger_alive(w->spec.ledger);
    peers_ask(w->peers, question, first, n, ANSWER_SECONDS, is_answered, is_refused, states);
    ledger_alive(w->spec.ledger);
}

// ---- who looks into it --------------------------------------------------------------------------

// has_leader: a lower rank's thread answers, so it is the lowest one's business. First rank 0 alone, then the next 8,
// the next 64 and so on together: where ranks live it takes one question, where a thousand are lost four waits.
static bool has_leader(Watchdog *w) {
    for (int first = 0, n = 1; first < w->rank && !peers_are_deaf(w->peers); first += n, n *= 8) {
        int most = n < w->rank - first ? n : w->rank - first;
        memset(w->is_answered, 0, (size_t)most * sizeof *w->is_answered);
        ask(w, ASK_HELLO, first, most, w->is_answered, w->is_refused, NULL);
        for (int i = 0; i < most; i++) {
            bool leads = false, is_refused = false;
            if (!w->is_answered[i]) continue;
            ask(w, ASK_LEAD, first + i, 1, &leads, &is_refused, NULL);
            if (leads) return true;
        }
    }
    return false;
}

// from_file: what a rank that does not answer wrote, if its file can be read here.
static void from_file(Watchdog *w, int rank) {
    LedgerHead h;
    LedgerEntry ring[LEDGER_RING];
    char path[1400];
    LedgerState *s = &w->state[rank];
    memset(s, 0, sizeof *s);
    snprintf(path, sizeof path, "%s/rank_%05d.bin", w->dir, rank);
    if (w->dir[0] && ledger_read(path, &h, ring) == OK) {
        struct timespec day;
        clock_gettime(CLOCK_REALTIME, &day); // clocks of two hosts: near enough
        ledger_state(s, &h, ring, (double)day.tv_sec + 1e-9 * (double)day.tv_nsec - h.wall, 0.0);
    } else {
        fail_clear();
        s->rank = rank;
    }
    s->is_silent = !peers_are_deaf(w->peers);
    s->is_gone = w->is_refused[rank];
}

// collect: what every rank is in.
static void collect(Watchdog *w) {
    memset(w->is_answered, 0, (size_t)w->nranks * sizeof *w->is_answered);
    memset(w->is_refused, 0, (size_t)w->nranks * sizeof *w->is_refused);
    for (int turn = 0; turn < 2; turn++) // a busy one has two chances
        ask(w, ASK_STATE, 0, w->nranks, w->is_answered, w->is_refused, w->state);
    for (int i = 0; i < w->nranks; i++) {
        if (i == w->rank) own_state(w, &w->state[i]);
        else if (!w->is_answered[i]) from_file(w, i);
    }
}

// end_all: everybody, then this process.
static void end_all(Watchdog *w) {
    memset(w->is_answered, 0, (size_t)w->nranks * sizeof *w->is_answered);
    ask(w, ASK_END, 0, w->nranks, w->is_answered, w->is_refused, NULL);
    w->spec.end(w->spec.user);
}

// look_into: returns after how many seconds to look again.
static double look_into(Watchdog *w, double later) {
    Verdict v;
    collect(w);
    if (w->is_stopping) return later;
    verdict_find(&v, w->state, w->nranks, w->spec.limit, w->marks);
    if (v.kind == VERDICT_NONE) return later;
    if (v.kind == VERDICT_HANG || v.left > 5.0) w->spec.say(w->spec.user, v.kind == VERDICT_HANG, v.text);
    if (v.kind == VERDICT_HANG) end_all(w);
    return v.left < later ? v.left : later;
}

// ---- the thread ---------------------------------------------------------------------------------

// look: once a tick.
static void look(Watchdog *w) {
    if (now_seconds() < w->quiet || (!w->is_asked && !is_late(w))) return;
    LedgerState s;
    own_state(w, &s);
    double later = w->spec.limit[s.phase] > 10.0 ? w->spec.limit[s.phase] / 2.0 : 5.0;
    // Without answers all late ranks find the same: they take turns, and the first ends the job.
    if (peers_are_deaf(w->peers)) peers_serve(w->peers, w->rank < 50 ? 0.2 * w->rank : 10.0, &w->is_stopping);
    if (w->is_asked || !has_leader(w)) later = look_into(w, later);
    w->is_asked = false;
    w->quiet = now_seconds() + later;
}

static void *run(void *user) {
    Watchdog *w = user;
    double before = now_seconds();
    while (!w->is_stopping) {
        peers_serve(w->peers, w->tick, &w->is_stopping);
        double now = now_seconds();
        if (now - before > w->tick + STOPPED_SECONDS) w->since = now;
        ledger_alive(w->spec.ledger);
        if (!w->is_stopping) look(w);
        before = now_seconds();
    }
    return NULL;
}

static Err start_thread(Watchdog *w) {
    sigset_t all, was;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &was); // signals are the main thread's
    int why = pthread_create(&w->thread, NULL, run, w);
    pthread_sigmask(SIG_SETMASK, &was, NULL);
    CHECK(why == 0, E_INTERNAL, "cannot start the watchdog's thread: %s", strerror(why));
    w->is_running = true;
    return OK;
}

static Err fill_watchdog(Watchdog *w, Comm *world) {
    PeerHandler handler = {own_state, on_asked, w};
    w->rank = world->rank;
    w->nranks = world->nranks;
    MEM_NEW(w->state, w->nranks);
    MEM_NEW(w->is_answered, w->nranks);
    MEM_NEW(w->is_refused, w->nranks);
    MEM_NEW(w->marks, 2 * w->nranks);
    TRY(peers_open(&w->peers, world, w->spec.is_one_host, &handler));
    TRY(start_thread(w));
    TRY(peers_try(w->peers, world));
    if (peers_are_deaf(w->peers))
        log_warn("watchdog: ranks cannot reach each other over TCP: should the run stand still, it is told from the "
                 "ledgers' files who holds it up");
    return OK;
}

Err watchdog_start(Watchdog **out, const WatchdogSpec *spec, Comm *world) {
    Watchdog *w = NULL;
    double shortest = 0.0;
    *out = NULL;
    for (int i = 0; i < LEDGER_PHASES; i++) {
        double s = spec->limit[i];
        if (s > 0.0 && (shortest == 0.0 || s < shortest)) shortest = s;
    }
    if (shortest == 0.0) return OK;
    MEM_NEW(w, 1);
    w->spec = *spec;
    w->tick = shortest / 10.0 < 1.0 ? shortest / 10.0 : 1.0;
    *out = w;
    Err err = fill_watchdog(w, world);
    if (err != OK) watchdog_stop(out);
    return err;
}

void watchdog_files(Watchdog *w, const char *dir) {
    if (w) snprintf(w->dir, sizeof w->dir, "%s", dir);
}

void watchdog_stop(Watchdog **w) {
    if (!*w) return;
    (*w)->is_stopping = 1;
    if ((*w)->is_running) pthread_join((*w)->thread, NULL);
    peers_close(&(*w)->peers);
    mem_free((*w)->state);
    mem_free((*w)->is_answered);
    mem_free((*w)->is_refused);
    mem_free((*w)->marks);
    mem_free(*w);
    *w = NULL;
}
