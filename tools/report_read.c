// report_read.c - metrics.jsonl and events.jsonl of a run, each read once.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "arena.h"
#include "json_lines.h"
#include "log.h"
#include "report.h"

enum { PATH_CAP = 4200 };

// Where a quantity stands in a line of metrics.jsonl, in its order; NULL: it is made of something else, and most steps
// have none.
static const char *const keys[Q_COUNT] = {
    [Q_BATCH] = "global_batch",
    [Q_LOSS] = "loss",
    [Q_LM] = "lm_loss",
    [Q_MTP] = "mtp_loss",
    [Q_BALANCE] = "balance_loss",
    [Q_GRAD_NORM] = "grad_norm",
    [Q_LR] = "lr",
    [Q_TOKENS_PER_S] = "tokens_per_s",
    [Q_STEP_MS] = "step_ms",
    [Q_MFU] = "mfu",
    [Q_MAXVIO] = "maxvio",
    [Q_DEAD] = "dead_experts",
    [Q_DISPATCH] = "a2a_dispatch_bytes",
    [Q_COMBINE] = "a2a_combine_bytes",
    [Q_META] = "a2a_meta_bytes",
    [Q_SATURATED] = "fp8_saturated",
    [Q_UNDERFLOW] = "fp8_underflow",
    [Q_NAN_TILES] = "fp8_nonfinite_tiles",
    [Q_RSS] = "rss_bytes",
    [Q_SLOW] = "slow_factor",
};

static double number(JsonLines *j, const char *key) {
    return json_field_number(json_lines_field(j, key));
}

// whole: a count; -1 if it is none.
static int64_t whole(JsonLines *j, const char *key) {
    double v = number(j, key);
    return v >= 0 && v < 9e15 ? (int64_t)v : -1;
}

static void keep_least(AtStep *best, double value, int64_t step) {
    if (isfinite(value) && !(best->value <= value)) *best = (AtStep){value, step};
}

static void warn_of_damage(const JsonLines *j, const char *path) {
    JsonDamage d = json_lines_damage(j);
    if (d.lines > 0)
        log_warn("%s:%lld: not a JSON object; %lld such line%s left out", path, (long long)d.first,
                 (long long)d.lines, d.lines == 1 ? "" : "s");
    if (d.is_torn) log_warn("%s: the last line has no end yet and is left out", path);
}

// ---- sites -------------------------------------------------------------------------------------

// find_site: sites come in the same order in every line: look behind the last one first.
static Err find_site(ReportRun *r, const char *name, int *at) {
    for (int k = 0; k < r->nsites; k++) {
        int i = (*at + 1 + k) % r->nsites;
        if (strcmp(r->site[i].name, name) == 0) {
            *at = i;
            return OK;
        }
    }
    *at = -1;
    if (r->nsites == REPORT_SITES) return OK;
    if (r->nsites % 64 == 0) {
        ReportSite *larger = realloc(r->site, (size_t)(r->nsites + 64) * sizeof *larger);
        CHECK(larger, E_INTERNAL, "no memory for %d sites", r->nsites + 64);
        r->site = larger;
    }
    ReportSite *s = &r->site[r->nsites];
    memset(s, 0, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s", name);
    TRY(series_create(&s->saturated, REPORT_CELLS, true));
    *at = r->nsites++;
    return series_create(&s->underflow, REPORT_CELLS, true);
}

static Err read_sites(ReportRun *r, JsonLines *j, int64_t step) {
    JsonField names = json_lines_field(j, "fp8_health.site"), name;
    if (!names.value) return OK;
    JsonField lists[2] = {json_lines_field(j, "fp8_health.saturated"),
                          json_lines_field(j, "fp8_health.underflow")};
    int i = r->nsites - 1;
    double worst[2] = {NAN, NAN};
    for (size_t at = 0; (name = json_field_element(names, at)).value; at++) {
        char text[sizeof r->site->name];
        double share[2];
        json_field_text(name, text, sizeof text);
        TRY(find_site(r, text, &i));
        for (int k = 0; k < 2; k++) {
            share[k] = json_field_number(json_field_element(lists[k], at));
            worst[k] = fmax(worst[k], share[k]); // of a number and NAN the number
        }
        if (i < 0) continue;
        series_add(&r->site[i].saturated, step, share[0]);
        series_add(&r->site[i].underflow, step, share[1]);
    }
    series_add(&r->of[Q_WORST_SATURATED], step, worst[0]);
    series_add(&r->of[Q_WORST_UNDERFLOW], step, worst[1]);
    return OK;
}

static void read_shadow(ReportRun *r, JsonLines *j, int64_t step) {
    JsonField list = json_lines_field(j, "fp8_shadow.error"), v;
    double worst = NAN, sum = 0;
    int n = 0;
    for (size_t at = 0; (v = json_field_element(list, at)).value; at++) {
        double error = json_field_number(v);
        if (!isfinite(error)) continue;
        worst = fmax(worst, error);
        sum += error;
        n++;
    }
    series_add(&r->of[Q_SHADOW_WORST], step, worst);
    series_add(&r->of[Q_SHADOW_MEAN], step, n > 0 ? sum / n : NAN);
}

// ---- metrics.jsonl -----------------------------------------------------------------------------

// What the table at the head says of the steps.
static void sum_up(ReportRun *r, JsonLines *j, int64_t step, const double *v) {
    int64_t tokens = whole(j, "tokens"), samples = whole(j, "samples"),
            skipped = whole(j, "skipped_samples");
    if (r->first_step == 0) r->first_step = step;
    r->last_step = step;
    if (tokens >= 0) r->tokens = tokens;
    if (samples >= 0) r->samples = samples;
    if (skipped >= 0) r->skipped = skipped;
    r->eta_s = number(j, "eta_s");
    if (isfinite(v[Q_LM])) r->lm_last = (AtStep){v[Q_LM], step};
    if (isfinite(v[Q_LOSS])) r->loss_last = (AtStep){v[Q_LOSS], step};
    keep_least(&r->lm_best, v[Q_LM], step);
    if (!isfinite(v[Q_STEP_MS])) return;
    double s = v[Q_STEP_MS] * 1e-3;
    r->step_s += s;
    if (isfinite(v[Q_TOKENS_PER_S])) r->tokens_seen += v[Q_TOKENS_PER_S] * s;
    if (!isfinite(v[Q_MFU])) return;
    r->mfu_s += v[Q_MFU] * s;
    r->mfu_time += s;
}

static Err read_metrics(ReportRun *r) {
    char path[PATH_CAP];
    JsonLines *j = NULL;
    int64_t outside = 0, outside_line = 0;
    bool is_there;
    snprintf(path, sizeof path, "%s/metrics.jsonl", r->dir);
    TRY(json_lines_open(&j, path));
    Err err = OK;
    for (;;) {
        TRY_OR(json_lines_next(j, &is_there), done);
        if (!is_there) break;
        int64_t step = whole(j, "step");
        if (step <= r->last_step) { // none, or one that was there
            if (outside++ == 0) outside_line = json_lines_line(j);
            continue;
        }
        double v[Q_COUNT];
        for (int q = 0; q < Q_COUNT; q++) {
            v[q] = keys[q] ? number(j, keys[q]) : NAN;
            series_add(&r->of[q], step, v[q]);
        }
        sum_up(r, j, step, v);
        TRY_OR(read_sites(r, j, step), done);
        read_shadow(r, j, step);
    }
    warn_of_damage(j, path);
    if (outside > 0)
        log_warn("%s:%lld: expected a step behind the line's before; %lld such line%s left out",
                 path, (long long)outside_line, (long long)outside, outside == 1 ? "" : "s");
done:
    json_lines_close(&j);
    return err;
}

// ---- events.jsonl ------------------------------------------------------------------------------

// describe: the other fields as "key value, key value".
static void describe(const JsonLines *j, char *out, size_t cap) {
    size_t n = 0;
    out[0] = '\0';
    for (JsonField f = {NULL, NULL}; n + 8 < cap && (f = json_lines_each(j, f)).value;) {
        char key[64], value[400];
        snprintf(key, sizeof key, "%s", f.key);
        if (strcmp(key, "time") == 0 || strcmp(key, "event") == 0 || strcmp(key, "step") == 0)
            continue;
        json_field_text(f, value, sizeof value);
        if (strcmp(key, "bytes") == 0)
            snprintf(value, sizeof value, "%s", text_bytes(json_field_number(f)).s);
        if (strcmp(key, "text") == 0 || strcmp(key, "reason") == 0 || strcmp(key, "why") == 0)
            key[0] = '\0';
        int put = snprintf(out + n, cap - n, "%s%s%s%s", n > 0 ? ", " : "", key, key[0] ? " " : "",
                           value);
        n += put > 0 ? (size_t)put : 0;
    }
}

static Err keep(ReportEvents *list, const ReportEvent *e) {
    if (!list->ring) MEM_NEW(list->ring, REPORT_EVENTS);
    list->ring[list->n++ % REPORT_EVENTS] = *e;
    return OK;
}

static void note_eval(ReportRun *r, JsonLines *j, int64_t step) {
    double loss = number(j, "loss"), bits = number(j, "bits_per_byte");
    r->evals++;
    series_add(&r->of[Q_EVALS], step, 1);
    series_add(&r->of[Q_EVAL], step, loss);
    series_add(&r->of[Q_BITS], step, bits);
    if (isfinite(loss)) r->eval_last = (AtStep){loss, step};
    if (isfinite(bits)) r->bits_last = (AtStep){bits, step};
    keep_least(&r->eval_best, loss, step);
}

static void note_start(ReportRun *r, JsonLines *j, bool is_resume) {
    r->world = whole(j, "world");
    r->ep = whole(j, "ep");
    r->threads = whole(j, "threads");
    r->starts += !is_resume;
    r->resumes += is_resume;
}

static Err note_event(ReportRun *r, JsonLines *j) {
    ReportEvent e = {.time = number(j, "time"), .step = whole(j, "step")};
    json_field_text(json_lines_field(j, "event"), e.kind, sizeof e.kind);
    describe(j, e.text, sizeof e.text);
    bool is_eval = strcmp(e.kind, "eval") == 0, is_save = strcmp(e.kind, "save") == 0,
         is_start = strcmp(e.kind, "start") == 0, is_resume = strcmp(e.kind, "resume") == 0;
    if (isfinite(e.time)) r->time_last = e.time;
    if (isfinite(e.time) && r->time_first == 0) r->time_first = e.time;
    snprintf(r->stop, sizeof r->stop, "%s",
             strcmp(e.kind, "stop") == 0 || strcmp(e.kind, "hang") == 0 ? e.text : "");
    if (is_eval) note_eval(r, j, e.step);
    if (is_start || is_resume) note_start(r, j, is_resume);
    if (is_save) {
        r->saves++;
        r->saved = (AtStep){number(j, "bytes"), e.step};
        series_add(&r->of[Q_SAVES], e.step, 1);
        series_add(&r->of[Q_STALL], e.step, number(j, "stall_s"));
        series_add(&r->of[Q_SAVE_S], e.step, number(j, "seconds"));
    }
    if ((is_start || is_resume) && r->starts + r->resumes > 1)
        series_add(&r->of[Q_STARTS], e.step, 1);
    if (strcmp(e.kind, "nonfinite") == 0) {
        char policy[16];
        json_field_text(json_lines_field(j, "policy"), policy, sizeof policy);
        r->bad++;
        r->rollbacks += strcmp(policy, "rollback") == 0;
        series_add(&r->of[Q_BAD], e.step, 1);
    }
    r->failed_saves += strcmp(e.kind, "save_failed") == 0;
    r->hangs += strcmp(e.kind, "hang") == 0;
    r->stragglers += strcmp(e.kind, "straggler") == 0;
    return keep(is_eval || is_save ? &r->routine : &r->notable, &e);
}

static Err read_events(ReportRun *r) {
    char path[PATH_CAP];
    JsonLines *j = NULL;
    bool is_there = true;
    snprintf(path, sizeof path, "%s/events.jsonl", r->dir);
    if (json_lines_open(&j, path) != OK) {
        log_warn("%s; no events are shown", fail_message());
        fail_clear();
        return OK;
    }
    Err err = OK;
    while (is_there) {
        TRY_OR(json_lines_next(j, &is_there), done);
        if (is_there) TRY_OR(note_event(r, j), done);
    }
    warn_of_damage(j, path);
done:
    json_lines_close(&j);
    return err;
}

// ---- a run -------------------------------------------------------------------------------------

// name_of: the last part of the path, or of what it leads to.
static void name_of(ReportRun *r) {
    char *real = realpath(r->dir, NULL);
    const char *path = real ? real : r->dir, *slash = strrchr(path, '/');
    snprintf(r->name, sizeof r->name, "%s", slash && slash[1] ? slash + 1 : path);
    free(real);
}

Err report_read(ReportRun *r, const char *dir) {
    static const AtStep none = {NAN, 0};
    char path[PATH_CAP];
    struct stat st;
    memset(r, 0, sizeof *r);
    r->dir = dir;
    r->lm_last = r->lm_best = r->loss_last = r->eval_last = r->eval_best = r->bits_last = r->saved =
        none;
    CHECK(strlen(dir) < 4096, E_INPUT, "the path of a run directory is too long");
    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    CHECK(stat(dir, &st) == 0, E_INPUT, "%s: %s", dir, strerror(errno));
    CHECK(stat(path, &st) == 0, E_INPUT, "%s holds no run: %s: %s; name a run directory", dir, path,
          strerror(errno));
    name_of(r);
    for (int q = 0; q < Q_COUNT; q++)
        TRY(series_create(&r->of[q], REPORT_PARTS, keys[q] == NULL));
    TRY(read_metrics(r));
    TRY(read_events(r));
    return report_read_model(r);
}

void report_free(ReportRun *r) {
    for (int q = 0; q < Q_COUNT; q++) series_free(&r->of[q]);
    for (int i = 0; i < r->nsites; i++) {
        series_free(&r->site[i].saturated);
        series_free(&r->site[i].underflow);
    }
    free(r->site);
    mem_free(r->notable.ring);
    mem_free(r->routine.ring);
    free(r->config_text);
    config_free(r->config);
    mem_free(r->bias);
    mem_free(r->bias_layer);
    memset(r, 0, sizeof *r);
}
