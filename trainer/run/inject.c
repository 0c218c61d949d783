// inject.c - faults on demand. See inject.h.
#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "nearest.h"
#include "staging.h"

enum { RANGE_MAX = 64 }; // steps of a range that is remembered: bits of Inject.done

// ---- parsing ------------------------------------------------------------------------------------

typedef enum Key { KEY_STEP, KEY_SAVE, KEY_RANK, KEY_LAYER, KEY_IN, KEY_FACTOR, KEY_SECONDS, KEYS } Key;
static const char *const key_names[KEYS] = {"step", "save", "rank", "layer", "in", "factor", "seconds"};

#define K(key) (1u << KEY_##key)
static const struct Kind {
    const char *name;
    unsigned must, may; // keys
    bool has_range;     // first-last
} kinds[INJECT_KINDS] = {
    [INJECT_KILL] = {"kill", K(STEP) | K(RANK), K(LAYER), false},
    [INJECT_HANG] = {"hang", K(STEP) | K(RANK), K(LAYER), false},
    [INJECT_NAN] = {"nan", K(STEP) | K(RANK), K(LAYER) | K(IN), true},
    [INJECT_SLOW] = {"slow", K(STEP) | K(RANK), K(FACTOR) | K(SECONDS) | K(IN), true},
    [INJECT_DISKFULL] = {"diskfull", K(SAVE), K(RANK), false},
    [INJECT_CORRUPT] = {"corrupt", K(SAVE), K(RANK), false},
};

// find_word: index of text[0..n) among the names, -1 if it is none; *near: the nearest, or NULL.
static int find_word(const char *text, size_t n, const char *const *names, int nnames, const char **near) {
    char word[NEAREST_MAX];
    snprintf(word, sizeof word, "%.*s", (int)n, text);
    for (int i = 0; i < nnames; i++) {
        if (strlen(names[i]) == n && memcmp(names[i], text, n) == 0) return i;
    }
    *near = word_nearest(word, names, nnames);
    return -1;
}

static Err unknown(const char *text, const char *what, size_t n, const char *word, const char *near, const char *all) {
    FAIL(E_USAGE, "--inject %s: \"%.*s\" is no %s; there are %s%s%s%s", text, (int)n, word, what, all,
         near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

// whole: digits from *s on; false if there are none or too many.
static bool whole(const char **s, int64_t *out) {
    size_t n = strspn(*s, "0123456789");
    if (n == 0 || n > 12) return false;
    *out = strtoll(*s, NULL, 10);
    *s += n;
    return true;
}

static Err set_range(Fault *f, const char *s, const char *key) {
    bool has_range = kinds[f->kind].has_range;
    bool ok = whole(&s, &f->first);
    f->last = f->first;
    if (ok && has_range && *s == '-') {
        s++;
        ok = whole(&s, &f->last);
    }
    CHECK(ok && *s == '\0' && f->first >= 1 && f->last >= f->first, E_USAGE,
          "--inject %s: %s is a number from 1 on%s", f->text, key, has_range ? ", or a range like 5-20" : "");
    CHECK(f->kind == INJECT_SLOW || f->last - f->first < RANGE_MAX, E_USAGE, "--inject %s: at most %d steps",
          f->text, RANGE_MAX);
    return OK;
}

static Err set_real(const Fault *f, double *out, const char *s, double above, const char *key) {
    char *end = NULL;
    *out = strtod(s, &end);
    CHECK(end != s && *end == '\0' && isfinite(*out) && *out > above && *out <= 1e6, E_USAGE,
          "--inject %s: %s is a number above %g, at most 1e6", f->text, key, above);
    return OK;
}

static Err set_key(Fault *f, Key key, const char *s) {
    const char *name = key_names[key];
    if (key == KEY_STEP || key == KEY_SAVE) return set_range(f, s, name);
    if (key == KEY_FACTOR) return set_real(f, &f->factor, s, 1.0, name);
    if (key == KEY_SECONDS) return set_real(f, &f->seconds, s, 0.0, name);
    if (key == KEY_IN && f->kind == INJECT_SLOW) {
        f->is_data = strcmp(s, "data") == 0;
        CHECK(f->is_data || strcmp(s, "pass") == 0, E_USAGE, "--inject %s: in is pass or data", f->text);
        return OK;
    }
    if (key == KEY_IN) {
        f->is_gradient = strcmp(s, "gradient") == 0;
        CHECK(f->is_gradient || strcmp(s, "output") == 0, E_USAGE, "--inject %s: in is output or gradient", f->text);
        return OK;
    }
    bool ok = whole(&s, key == KEY_RANK ? &f->rank : &f->layer);
    CHECK(ok && *s == '\0', E_USAGE, "--inject %s: %s is a number from 0 on", f->text, name);
    return OK;
}

static Err parse_kind(Fault *f, const char *text) {
    const char *names[INJECT_KINDS], *near = NULL;
    size_t n = strcspn(text, "@");
    for (int i = 0; i < INJECT_KINDS; i++) names[i] = kinds[i].name;
    int k = find_word(text, n, names, INJECT_KINDS, &near);
    if (k < 0) return unknown(f->text, "fault", n, text, near, "kill, hang, nan, slow, diskfull and corrupt");
    CHECK(text[n] == '@', E_USAGE, "--inject %s: say where: %s@%s", f->text, names[k],
          kinds[k].must & K(SAVE) ? "save=N" : "step=N,rank=R");
    f->kind = (InjectKind)k;
    return OK;
}

// parse_one: KIND@key=value,key=value.
static Err parse_one(Fault *f, const char *text) {
    memset(f, 0, sizeof *f);
    f->layer = -1;
    CHECK(strlen(text) < sizeof f->text, E_USAGE, "--inject %.40s...: too long", text);
    snprintf(f->text, sizeof f->text, "%s", text);
    TRY(parse_kind(f, text));
    const struct Kind *kind = &kinds[f->kind];
    unsigned have = 0;
    for (const char *s = strchr(text, '@') + 1; s;) {
        const char *near = NULL, *comma = strchr(s, ',');
        char value[96];
        size_t n = strcspn(s, "=,");
        int key = find_word(s, n, key_names, KEYS, &near);
        if (key < 0) return unknown(f->text, "key", n, s, near, "step, save, rank, layer, in, factor and seconds");
        CHECK((kind->must | kind->may) & (1u << key), E_USAGE, "--inject %s: %s has no %s", f->text, kind->name,
              key_names[key]);
        CHECK(!(have & (1u << key)), E_USAGE, "--inject %s: %s is there twice", f->text, key_names[key]);
        CHECK(s[n] == '=', E_USAGE, "--inject %s: %s needs a value: %s=N", f->text, key_names[key], key_names[key]);
        size_t len = comma ? (size_t)(comma - s) - n - 1 : strlen(s + n + 1);
        snprintf(value, sizeof value, "%.*s", (int)len, s + n + 1);
        TRY(set_key(f, (Key)key, value));
        have |= 1u << key;
        s = comma ? comma + 1 : NULL;
    }
    for (int k = 0; k < KEYS; k++)
        CHECK(!(kind->must & ~have & (1u << k)), E_USAGE, "--inject %s: %s is missing", f->text, key_names[k]);
    unsigned how = have & (K(FACTOR) | K(SECONDS));
    CHECK(f->kind != INJECT_SLOW || how == K(FACTOR) || how == K(SECONDS), E_USAGE,
          "--inject %s: give either factor or seconds", f->text);
    CHECK(!f->is_data || how == K(SECONDS), E_USAGE, "--inject %s: late data have seconds, no factor", f->text);
    return OK;
}

Err inject_parse(Inject *in, const char *const *texts, int n) {
    memset(in, 0, sizeof *in);
    CHECK(n <= INJECT_MAX, E_USAGE, "--inject: %d faults; at most %d", n, INJECT_MAX);
    for (int i = 0; i < n; i++) TRY(parse_one(&in->fault[i], texts[i]));
    in->n = n;
    return OK;
}

Err inject_check(const Inject *in, int world, int64_t nblocks) {
    for (int i = 0; i < in->n; i++) {
        const Fault *f = &in->fault[i];
        CHECK(f->rank < world, E_USAGE, "--inject %s: there is no rank %lld, there are %d", f->text,
              (long long)f->rank, world);
        CHECK(f->layer < nblocks, E_USAGE, "--inject %s: there is no layer %lld, there are %lld", f->text,
              (long long)f->layer, (long long)nblocks);
    }
    return OK;
}

// ---- what has happened --------------------------------------------------------------------------

// One line for each fault that happened: the fault as given, then the step or save.
static void read_done(Inject *in) {
    char line[160];
    FILE *f = fopen(in->path, "re");
    while (f && fgets(line, sizeof line, f)) {
        char *at = strrchr(line, ' ');
        if (!at) continue;
        *at = '\0';
        int64_t when = strtoll(at + 1, NULL, 10);
        for (int i = 0; i < in->n; i++) {
            const Fault *x = &in->fault[i];
            if (strcmp(x->text, line) == 0 && when >= x->first && when <= x->last)
                in->done[i] |= (uint64_t)1 << (when - x->first);
        }
    }
    if (f) fclose(f);
}

static bool is_done(const Inject *in, int i, int64_t when) {
    const Fault *f = &in->fault[i];
    return f->kind != INJECT_SLOW && (in->done[i] >> (when - f->first) & 1);
}

// remember: on disk before it happens.
static Err remember(Inject *in, int i, int64_t when) {
    const Fault *f = &in->fault[i];
    char line[160];
    if (f->kind == INJECT_SLOW) return OK;
    in->done[i] |= (uint64_t)1 << (when - f->first);
    int n = snprintf(line, sizeof line, "%s %lld\n", f->text, (long long)when);
    int fd = open(in->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    bool ok = fd >= 0 && write(fd, line, (size_t)n) == n && fsync(fd) == 0;
    int why = errno;
    if (fd >= 0) close(fd);
    CHECK(ok, E_OUTPUT, "cannot write %s: %s", in->path, strerror(why));
    return OK;
}

Err inject_start(Inject *in, const char *run_dir, Comm *world) {
    if (in->n == 0) return OK;
    in->rank = world->rank;
    snprintf(in->path, sizeof in->path, "%s/injected", run_dir);
    if (world->rank == 0) read_done(in);
    TRY(world->broadcast(world, in->done, sizeof in->done, 0));
    for (int i = 0; i < in->n; i++) {
        const Fault *f = &in->fault[i];
        uint64_t all = f->last - f->first >= RANGE_MAX - 1 ? UINT64_MAX
                                                           : ((uint64_t)1 << (f->last - f->first + 1)) - 1;
        bool is_over = f->kind != INJECT_SLOW && in->done[i] == all;
        log_line("INJECTED   %s: %s", f->text,
                 is_over ? "happened before in this run directory, not again" : "this run is made to fail on purpose");
    }
    return OK;
}

// ---- kill, hang, slow ---------------------------------------------------------------------------

static void announce(const Inject *in, const Fault *f) {
    log_any("injected: %s (step %lld)", f->text, (long long)in->step);
}

// stop_here: kill or hang. Does not return.
static void stop_here(const Inject *in, const Fault *f) {
    announce(in, f);
    fflush(NULL);
    if (f->kind == INJECT_KILL) kill(getpid(), SIGKILL);
    for (;;) pause();
}

static bool is_stop(const Fault *f) {
    return f->kind == INJECT_KILL || f->kind == INJECT_HANG;
}

Err inject_step(Inject *in, int64_t step) {
    if (!in) return OK;
    in->step = step;
    for (int i = 0; i < in->n; i++) {
        Fault *f = &in->fault[i];
        f->is_due = f->kind <= INJECT_SLOW && f->rank == in->rank && step >= f->first && step <= f->last &&
                    !is_done(in, i, step);
        if (!f->is_due) continue;
        TRY(remember(in, i, step));
        if (is_stop(f) && f->layer < 0) stop_here(in, f);
        if (f->kind == INJECT_SLOW && step == f->first) announce(in, f);
    }
    return OK;
}

static void sleep_seconds(double s) {
    struct timespec t = {(time_t)s, (long)((s - floor(s)) * 1e9)};
    while (nanosleep(&t, &t) != 0 && errno == EINTR) {}
}

void inject_delay(const Inject *in, double seconds) {
    for (int i = 0; in && i < in->n; i++) {
        const Fault *f = &in->fault[i];
        if (!f->is_due || f->kind != INJECT_SLOW || f->is_data) continue;
        sleep_seconds(f->factor > 1.0 ? (f->factor - 1.0) * seconds : f->seconds);
    }
}

void inject_data(const Inject *in) {
    for (int i = 0; in && i < in->n; i++) {
        const Fault *f = &in->fault[i];
        if (f->is_due && f->kind == INJECT_SLOW && f->is_data) sleep_seconds(f->seconds);
    }
}

// ---- inside a pass ------------------------------------------------------------------------------

static Err write_nan(const Cx *cx, Mat x) {
    const float f32 = NAN;
    const uint16_t bf16 = 0x7FC0;
    if (x.rows == 0) return OK;
    return cx->dev->to_device(x.p, x.t == DT_F32 ? (const void *)&f32 : &bf16, dtype_bytes(x.t));
}

static Err tap_hidden(void *user, int64_t layer, Mat x) {
    InjectPass *p = user;
    for (int i = 0; i < p->in->n; i++) {
        const Fault *f = &p->in->fault[i];
        if (!f->is_due || max_i64(f->layer, 0) != layer || !p->is_first) continue;
        if (is_stop(f)) stop_here(p->in, f);
        if (f->kind != INJECT_NAN || f->is_gradient) continue;
        announce(p->in, f);
        TRY(write_nan(p->cx, x));
    }
    return p->inner && p->inner->hidden ? p->inner->hidden(p->inner->user, layer, x) : OK;
}

// spoil_gradient: the first value of the layer's first gradient here.
static Err spoil_gradient(InjectPass *p, int64_t layer) {
    for (int i = 0; i < p->params->n; i++) {
        if (p->params->p[i].layer == layer) return write_nan(p->cx, p->params->p[i].grad);
    }
    return OK;
}

static Err tap_grads(void *user, int64_t layer) {
    InjectPass *p = user;
    for (int i = 0; i < p->in->n; i++) {
        const Fault *f = &p->in->fault[i];
        bool is_here = f->is_due && p->is_first && max_i64(f->layer, 0) == layer;
        if (!is_here || f->kind != INJECT_NAN || !f->is_gradient) continue;
        announce(p->in, f);
        TRY(spoil_gradient(p, layer));
    }
    return p->inner && p->inner->grads ? p->inner->grads(p->inner->user, layer) : OK;
}

const Taps *inject_taps(InjectPass *p, Inject *in, Params *params, Cx *cx, int64_t pass, const Taps *inner) {
    bool any = false;
    for (int i = 0; in && i < in->n; i++) any = any || (in->fault[i].is_due && in->fault[i].kind != INJECT_SLOW);
    if (!any) return inner;
    InjectPass new = {.in = in, .params = params, .cx = cx, .inner = inner, .is_first = pass == 0};
    *p = new;
    Taps taps = {.user = p, .hidden = tap_hidden, .grads = tap_grads};
    p->taps = taps;
    return &p->taps;
}

// ---- saves --------------------------------------------------------------------------------------

Err inject_save(Inject *in, InjectSave *out) {
    memset(out, 0, sizeof *out);
    if (!in) return OK;
    in->saves++;
    for (int i = 0; i < in->n; i++) {
        const Fault *f = &in->fault[i];
        bool is_save = f->kind == INJECT_DISKFULL || f->kind == INJECT_CORRUPT;
        if (!is_save || f->rank != in->rank || in->saves != f->first || is_done(in, i, in->saves)) continue;
        TRY(remember(in, i, in->saves));
        announce(in, f);
        if (f->kind == INJECT_DISKFULL) out->is_disk_full = true;
        if (f->kind == INJECT_CORRUPT) out->is_corrupt = true;
    }
    return OK;
}
