// stop.c - see stop.h.
#include "stop.h"

#include "boot.h"
#include "log.h"

#define YEAR (366.0 * 86400.0)

void stop_limit(Stop *s, double started, double time_limit, int64_t end_time, int64_t now_time) {
    s->deadline = 0.0;
    s->limit_name = "";
    if (time_limit > 0.0) {
        s->deadline = started + time_limit;
        s->limit_name = "--time-limit";
    }
    double left = (double)(end_time - now_time);
    if (end_time <= 0 || left <= 0.0 || left > YEAR) return;
    double at = now_seconds() + left;
    if (s->deadline > 0.0 && s->deadline <= at) return;
    s->deadline = at;
    s->limit_name = "SLURM_JOB_END_TIME";
}

double stop_margin(const Stop *s) {
    return (s->is_saving ? 2.5 : 1.5) * s->save_s + s->step_s + 2.0;
}

int64_t stop_look(const Stop *s) {
    if (!s) return 0;
    int sig = s->signalled ? s->signalled() : 0;
    if (sig) return sig;
    return s->deadline > 0.0 && now_seconds() + stop_margin(s) >= s->deadline ? STOP_TIME : 0;
}

Err stop_agree(Stop *s, Comm *world, Err mine) {
    int64_t v[2] = {stop_look(s), mine};
    TRY(comm_max_i64(world, v, 2));
    if (v[1] != OK) return comm_agree(world, mine); // the message travels
    if (s && !s->reason) s->reason = v[0];
    return OK;
}

bool stop_is_due(const Stop *s) {
    return s && s->reason != 0;
}

const char *stop_reason(const Stop *s) {
    static char text[64];
    if (s->reason != STOP_TIME) return boot_signal_name((int)s->reason);
    snprintf(text, sizeof text, "the time limit (%s)", s->limit_name);
    return text;
}

Err stop_settle(Stop *s, Comm *world) {
    int64_t any = s->deadline > 0.0 || s->grace > 0.0;
    TRY(comm_max_i64(world, &any, 1));
    s->is_limited = any != 0;
    return OK;
}

bool stop_wants_save(const Stop *s) {
    return s->is_limited && !s->is_measured && s->wait == 0;
}

void stop_note_step(Stop *s, double seconds) {
    s->step_s = seconds > s->step_s ? seconds : 0.9 * s->step_s + 0.1 * seconds;
    if (s->wait > 0) s->wait--;
}

// check_grace: a warning if a signal would come too late.
static void check_grace(Stop *s) {
    double need = (s->is_beside ? 2.0 : 1.0) * s->save_s + s->step_s;
    if (!(s->grace > 0.0) || need <= s->grace || need <= 1.2 * s->warned_s) return;
    s->warned_s = need;
    log_warn("a save takes %.1f s%s and a step %.1f s, --grace is %.1f s: a signal would come too late for a save. "
             "Send it %.0f s before the end (Slurm: --signal=USR1@%.0f), or lose what came after the last checkpoint",
             s->save_s, s->is_beside ? ", may have to wait for another one that is under way," : "", s->step_s,
             s->grace, 1.5 * need + 5.0, 1.5 * need + 5.0);
}

void stop_note_save(Stop *s, double seconds) {
    if (seconds > s->save_s) s->save_s = seconds;
    s->is_measured = true;
    check_grace(s);
}

void stop_note_failed_save(Stop *s, double seconds) {
    if (seconds > s->save_s) s->save_s = seconds;
    s->pause = s->pause > 0 ? 2 * s->pause : 2;
    s->wait = s->pause;
    check_grace(s);
}
