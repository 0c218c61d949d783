// verdict.c - who holds up a run that stands still. See verdict.h.
#include "verdict.h"

#include <math.h>
#include <string.h>

#include "log.h"

// A rank that waits: in this operation of this group.
static bool is_waiting(const LedgerState *s) {
    return s->is_known && s->is_inside && !s->is_silent && !s->is_gone;
}

static const LedgerGroup *waits_in(const LedgerState *s) {
    return &s->group[s->inside.group];
}

static bool is_same_group(const LedgerGroup *g, const LedgerGroup *h) {
    return g->first == h->first && g->stride == h->stride && strcmp(g->name, h->name) == 0;
}

// entered_of: operations of the group named `name`, with these first rank and stride, that a rank has begun; -1 if it
// is not known.
static int64_t entered_of(const LedgerState *s, const LedgerGroup *g) {
    for (int i = 0; s->is_known && i < s->ngroups; i++) {
        if (is_same_group(&s->group[i], g)) return s->group[i].entered;
    }
    return -1;
}

// is_same_wait: both wait in one operation.
static bool is_same_wait(const LedgerState *a, const LedgerState *b) {
    return a->inside.seq == b->inside.seq && is_same_group(waits_in(a), waits_in(b));
}

// mark_missing: is_in[i]: rank i is one of those that keep `w` waiting: those of its group that have not entered the
// operation; if all have, those that are in no operation now, or do not answer. Returns how many.
static int mark_missing(bool *is_in, const LedgerState *r, int n, const LedgerState *w) {
    const LedgerGroup *g = waits_in(w);
    int found = 0;
    memset(is_in, 0, (size_t)n * sizeof *is_in);
    for (int pass = 0; pass < 2 && found == 0; pass++) {
        for (int k = 0; k < g->n; k++) {
            int i = g->first + k * g->stride;
            if (i < 0 || i >= n || i == w->rank) continue;
            bool has_entered = entered_of(&r[i], g) >= w->inside.seq;
            bool is_absent = pass == 0 ? !has_entered : !is_waiting(&r[i]);
            if (!is_absent) continue;
            is_in[i] = true;
            found++;
        }
    }
    return found;
}

void verdict_ranks(char *out, size_t size, const bool *is_in, int n) {
    int total = 0, pieces = 0, shown = 0;
    size_t at = 0;
    for (int i = 0; i < n; i++) total += is_in[i];
    at += (size_t)snprintf(out, size, total == 1 ? "rank " : "ranks ");
    for (int i = 0; i < n && at + 40 < size; i++) {
        int last = i;
        if (!is_in[i]) continue;
        while (last + 1 < n && is_in[last + 1]) last++;
        if (pieces == 12) break;
        at += (size_t)snprintf(out + at, size - at, "%s%d", pieces++ ? ", " : "", i);
        if (last > i) at += (size_t)snprintf(out + at, size - at, last > i + 1 ? "-%d" : ", %d", last);
        shown += last - i + 1;
        i = last;
    }
    if (shown < total) snprintf(out + at, size - at, " and %d more", total - shown);
}

static Text32 ago(double seconds) {
    return text_duration(seconds > 0.0 ? seconds : 0.0);
}

// add_doing: what the named rank was in last.
static void add_doing(char *out, size_t size, const LedgerState *s) {
    static const char *const passes[LEDGER_PASSES] = {"", " forward", " backward"};
    char last[200], block[48] = "";
    if (s->is_inside) ledger_describe(last, sizeof last, &s->inside, s->group);
    else if (s->has_last) ledger_describe(last, sizeof last, &s->last, s->group);
    if (s->layer >= 0 && s->phase == PHASE_STEP)
        snprintf(block, sizeof block, ", in block %d%s", (int)s->layer, passes[s->pass]);
    size_t at = (size_t)snprintf(out, size, "; its last: ");
    if (s->is_inside) at += (size_t)snprintf(out + at, size - at, "in %s since %s, ", last, ago(s->inside_age).s);
    else if (s->has_last) at += (size_t)snprintf(out + at, size - at, "left %s %s ago, ", last, ago(s->last_age).s);
    at += (size_t)snprintf(out + at, size - at, "phase %s, step %lld%s", ledger_phase_name(s->phase),
                           (long long)s->step, block);
    if (s->is_gone)
        snprintf(out + at, size - at, "; its process %d is gone", (int)s->pid);
    else if (s->is_silent)
        snprintf(out + at, size - at, "; it does not answer: process %d is stopped, or its host is lost", (int)s->pid);
    else
        snprintf(out + at, size - at, "; no sign of life since %s", ago(s->idle).s);
}

static const char *host_of(const LedgerState *s) {
    return s->is_known && s->host[0] ? s->host : "host unknown";
}

// say_missing: `w` and those with it wait for the ranks is_in, the first of which is `m`.
static void say_missing(Verdict *v, const LedgerState *r, int n, const LedgerState *w, const LedgerState *m,
                        bool *is_in) {
    char op[200], who[200], waiting[240], more[48] = "", doing[500] = "";
    double longest = 0.0;
    int others = 0, with = 0, elsewhere = 0;
    const char *how = "never entered";
    if (entered_of(m, waits_in(w)) >= w->inside.seq)
        how = m->is_inside && is_same_wait(m, w) ? "stopped in" : "began but never came to finish";
    verdict_ranks(who, sizeof who, is_in, n);
    for (int i = 0; i < n; i++) others += is_in[i];
    for (int i = 0; i < n; i++) {
        bool is_named = is_in[i];
        is_in[i] = is_waiting(&r[i]) && is_same_wait(&r[i], w);
        elsewhere += is_waiting(&r[i]) && !is_in[i] && !is_named;
        if (!is_in[i]) continue;
        with++;
        if (r[i].inside_age > longest) longest = r[i].inside_age;
    }
    verdict_ranks(waiting, 200, is_in, n);
    size_t at = strlen(waiting);
    snprintf(waiting + at, sizeof waiting - at, with == 1 ? " waits" : " wait");
    ledger_describe(op, sizeof op, &w->inside, w->group);
    if (m->is_known) add_doing(doing, sizeof doing, m);
    if (elsewhere > 0) snprintf(more, sizeof more, " (%d more wait elsewhere)", elsewhere);
    snprintf(v->text, sizeof v->text, "%s (%s%s) %s %s, that %s in since %s%s%s", who, host_of(m),
             others > 1 ? " and others" : "", how, op, waiting, ago(longest).s, more, doing);
}

// say_stuck: all who belong to it are in the operation of `w`, or in two that should be one.
static void say_stuck(Verdict *v, const LedgerState *r, int n, const LedgerState *w, bool *is_in) {
    char op[200], other[200], who[200];
    const LedgerState *odd = NULL;
    for (int i = 0; i < n; i++) {
        is_in[i] = is_waiting(&r[i]) && is_same_wait(&r[i], w);
        if (is_in[i] && (r[i].inside.op != w->inside.op || strcmp(r[i].inside.what, w->inside.what) != 0)) odd = &r[i];
    }
    verdict_ranks(who, sizeof who, is_in, n);
    ledger_describe(op, sizeof op, &w->inside, w->group);
    if (odd) {
        ledger_describe(other, sizeof other, &odd->inside, odd->group);
        snprintf(v->text, sizeof v->text,
                 "ranks are in different operations: rank %d (%s) in %s, rank %d (%s) in %s, since %s", (int)w->rank,
                 host_of(w), op, (int)odd->rank, host_of(odd), other, ago(w->inside_age).s);
        return;
    }
    snprintf(v->text, sizeof v->text,
             "%s are all in %s since %s and it does not end: no rank is missing, look at the network and the devices",
             who, op, ago(w->inside_age).s);
}

// ahead: a rank that waits in a later operation of the group of `w`, which w, waiting in this one, has not come to; of
// several the one that waits longest. NULL: none.
static const LedgerState *ahead(const LedgerState *r, int n, const LedgerState *w) {
    const LedgerState *found = NULL;
    for (int i = 0; i < n; i++) {
        if (!is_waiting(&r[i]) || !is_same_group(waits_in(&r[i]), waits_in(w))) continue;
        if (r[i].inside.seq <= entered_of(w, waits_in(w))) continue; // w has begun it
        if (!found || r[i].inside_age > found->inside_age) found = &r[i];
    }
    return found;
}

// last_in: of those that wait in the operation of `w`, the one that came last.
static const LedgerState *last_in(const LedgerState *r, int n, const LedgerState *w) {
    const LedgerState *last = w;
    for (int i = 0; i < n; i++)
        if (is_waiting(&r[i]) && is_same_wait(&r[i], w) && r[i].inside_age < last->inside_age) last = &r[i];
    return last;
}

// say_late: the operation of `w` has all its ranks only since `m` came.
static void say_late(Verdict *v, const LedgerState *w, const LedgerState *m) {
    char op[200];
    ledger_describe(op, sizeof op, &m->inside, m->group);
    snprintf(v->text, sizeof v->text, "rank %d (%s) came to %s %s after rank %d (%s), and is in it since %s",
             (int)m->rank, host_of(m), op, ago(w->inside_age - m->inside_age).s, (int)w->rank, host_of(w),
             ago(m->inside_age).s);
}

// say_cycle: w waits for m and m, in the end, for w.
static void say_cycle(Verdict *v, const LedgerState *w, const LedgerState *m) {
    char op[200], other[200];
    ledger_describe(op, sizeof op, &w->inside, w->group);
    ledger_describe(other, sizeof other, &m->inside, m->group);
    snprintf(v->text, sizeof v->text,
             "ranks wait for each other: rank %d (%s) in %s since %s, rank %d (%s) in %s since %s", (int)w->rank,
             host_of(w), op, ago(w->inside_age).s, (int)m->rank, host_of(m), other,
             ago(m->inside_age).s);
}

static double limit_of(const double *limit, const LedgerState *s) {
    return s->phase >= 0 && s->phase < LEDGER_PHASES ? limit[s->phase] : 0.0;
}

static bool is_late(const double *limit, const LedgerState *s, double age) {
    return limit_of(limit, s) > 0.0 && age >= limit_of(limit, s);
}

// nearest: of all that wait for rank m, one of the smallest group, which is the operation that m would have come to
// first; of two, the one that waits longer. `w` is one of them.
static const LedgerState *nearest(const LedgerState *r, int n, const LedgerState *w, int m, bool *is_in) {
    const LedgerState *seen = w;
    for (int i = 0; i < n; i++) {
        const LedgerState *s = &r[i];
        if (!is_waiting(s) || is_same_wait(s, w) || is_same_wait(s, seen) || waits_in(s)->n > waits_in(w)->n) continue;
        seen = s;
        if (mark_missing(is_in, r, n, s) == 0 || !is_in[m]) continue;
        if (waits_in(s)->n < waits_in(w)->n || s->inside_age > w->inside_age) w = s;
    }
    mark_missing(is_in, r, n, w);
    for (int i = 0; i < n; i++) is_in[i] = is_in[i] && !is_waiting(&r[i]);
    return w;
}

static void wait_or_hang(Verdict *v, const double *limit, const LedgerState *s, double age) {
    v->kind = is_late(limit, s, age) ? VERDICT_HANG : VERDICT_WAIT;
    v->left = limit_of(limit, s) > 0.0 ? limit_of(limit, s) - age : INFINITY;
}

// all_entered: nobody is missing in the operation of `w`. Either others have left it and wait in a later one, which
// those that are in this one still keep from ending; or it has had all its ranks for too long; or it has them only now.
static void all_entered(Verdict *v, const LedgerState *r, int n, const LedgerState *w, const double *limit,
                        bool *is_in) {
    const LedgerState *next = ahead(r, n, w), *m = last_in(r, n, w);
    if (next && mark_missing(is_in, r, n, next) > 0) { // w at least
        for (v->culprit = 0; !is_in[v->culprit];) v->culprit++;
        wait_or_hang(v, limit, next, next->inside_age);
        say_missing(v, r, n, next, &r[v->culprit], is_in);
        return;
    }
    wait_or_hang(v, limit, m, m->inside_age);
    if (v->kind == VERDICT_WAIT) {
        v->culprit = (int)(m - r);
        say_late(v, w, m);
    } else {
        say_stuck(v, r, n, w, is_in);
    }
}

// follow: from a rank that waits to the end of its chain.
static void follow(Verdict *v, const LedgerState *r, int n, int from, const double *limit, bool *is_in, bool *was) {
    memset(was, 0, (size_t)n * sizeof *was);
    for (int at = from;;) {
        const LedgerState *w = &r[at];
        was[at] = true;
        int found = mark_missing(is_in, r, n, w), next = -1, end = -1;
        for (int i = 0; found > 0 && i < n; i++) {
            if (!is_in[i]) continue;
            if (is_waiting(&r[i])) {
                if (next < 0) next = i;
                is_in[i] = false; // not to be named: it waits itself
            } else if (end < 0) {
                end = i;
            }
        }
        if (found == 0) {
            all_entered(v, r, n, w, limit, is_in);
            return;
        }
        if (end >= 0) {
            const LedgerState *m = &r[end];
            bool is_out = !m->is_known || m->is_silent || m->is_gone || m->is_closed;
            wait_or_hang(v, limit, m, m->idle);
            if (is_out) v->kind = VERDICT_HANG;
            v->culprit = end;
            w = nearest(r, n, w, end, is_in);
            say_missing(v, r, n, w, m, is_in);
            return;
        }
        if (was[next]) {
            v->kind = VERDICT_HANG;
            say_cycle(v, w, &r[next]);
            return;
        }
        at = next;
    }
}

static bool is_lost(const LedgerState *s) {
    return !s->is_known || s->is_silent || s->is_gone;
}

// behind: rank i has begun fewer operations of a group than another of its ranks; *g: that group, *most: of the other.
static bool behind(const LedgerState *r, int n, int i, const LedgerGroup **g, int64_t *most) {
    for (int k = 0; k < r[i].ngroups; k++) {
        *g = &r[i].group[k];
        *most = 0;
        for (int m = 0; m < (*g)->n; m++) {
            int other = (*g)->first + m * (*g)->stride;
            int64_t has = other >= 0 && other < n ? entered_of(&r[other], *g) : -1;
            if (has > *most) *most = has;
        }
        if ((*g)->entered < *most) return true;
    }
    return false;
}

// say_idle: nobody waits in an operation, yet rank `idle` stands still: perhaps it waits for its device, and that for a
// rank that has not issued its part. A rank that does not answer is named first, then one that is behind.
static void say_idle(Verdict *v, const LedgerState *r, int n, int idle) {
    char doing[500] = "", how[120] = "stands still and nobody waits for it";
    const LedgerGroup *g = NULL;
    int64_t most = 0;
    v->kind = VERDICT_HANG;
    v->culprit = -1;
    int known = 0;
    for (int i = 0; i < n; i++) known += r[i].is_known;
    for (int i = 0; i < n && v->culprit < 0 && known > 1; i++) {
        if (is_lost(&r[i]) && !r[i].is_closed) v->culprit = i;
    }
    if (v->culprit >= 0)
        snprintf(how, sizeof how, "is lost, while rank %d (%s) stands still", idle, host_of(&r[idle]));
    for (int i = 0; i < n && v->culprit < 0; i++) {
        if (!behind(r, n, i, &g, &most)) continue;
        v->culprit = i;
        snprintf(how, sizeof how, "never began operation %lld of %s, while rank %d (%s) stands still", (long long)most,
                 g->name, idle, host_of(&r[idle]));
    }
    if (v->culprit < 0) v->culprit = idle;
    const LedgerState *m = &r[v->culprit];
    if (m->is_known) add_doing(doing, sizeof doing, m);
    snprintf(v->text, sizeof v->text, "rank %d (%s) %s%s", v->culprit, host_of(m), how, doing);
}

void verdict_find(Verdict *v, const LedgerState *r, int n, const double limit[LEDGER_PHASES], bool *marks) {
    bool *is_in = marks, *was = marks + n;
    int longest = -1, idle = -1, known = 0;
    memset(v, 0, sizeof *v);
    v->culprit = -1;
    for (int i = 0; i < n; i++) {
        const LedgerState *s = &r[i];
        known += s->is_known;
        if (is_waiting(s)) {
            if (is_late(limit, s, s->inside_age) && (longest < 0 || s->inside_age > r[longest].inside_age)) longest = i;
        } else if (s->is_known && !s->is_closed && !s->is_silent && is_late(limit, s, s->idle)) {
            if (idle < 0 || s->idle > r[idle].idle) idle = i;
        }
    }
    if (longest >= 0 && known == 1 && n > 1) {
        char op[200];
        ledger_describe(op, sizeof op, &r[longest].inside, r[longest].group);
        v->kind = VERDICT_HANG;
        snprintf(v->text, sizeof v->text, "rank %d (%s) waits in %s since %s, and nothing is known of any other rank",
                 longest, host_of(&r[longest]), op, ago(r[longest].inside_age).s);
        return;
    }
    if (longest >= 0) {
        follow(v, r, n, longest, limit, is_in, was);
        return;
    }
    if (idle >= 0) say_idle(v, r, n, idle);
}
