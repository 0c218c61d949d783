// metrics.c - metrics.jsonl, events.jsonl, TensorBoard scalars and the line for people.
//
// metrics.jsonl holds exactly one object per finished step. Lines are written whole, with one
// write(2) each; what a killed run left behind (a torn line, steps after the checkpoint that is
// resumed) is cut when the file is opened, by writing a new file beside it and renaming.
#include "metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "arena.h"
#include "json_text.h"
#include "log.h"
#include "tensorboard.h"

#define PATH_CAP 4096
#define LINE_CAP 4096
enum { HEALTH_CAP = 256, SHADOW_CAP = 96 }; // most bytes of one row of the objects

struct Metrics {
    char steps_path[PATH_CAP], events_path[PATH_CAP];
    int steps_fd, events_fd; // -1 on other ranks than the first
    TbWriter *tb;
    char *text; // [ntext] the line of metrics.jsonl in the making
    size_t ntext;
    int64_t last_step; // whose line is written
};

// One line in the making; a line that does not fit is a bug of the caller and reported by
// line_write.
typedef struct Line {
    char *s; // [cap]
    size_t n, cap;
} Line;

static void line_add(Line *l, const char *fmt, ...) PRINTF_LIKE(2, 3);
static void line_add(Line *l, const char *fmt, ...) {
    if (l->n >= l->cap) return;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(l->s + l->n, l->cap - l->n, fmt, ap);
    va_end(ap);
    l->n += n > 0 ? (size_t)n : 0;
}

static void line_int(Line *l, const char *key, int64_t v) {
    line_add(l, ",\"%s\":%lld", key, (long long)v);
}

// %.9g brings back every float exactly; JSON has no NaN or infinity.
static void line_real(Line *l, const char *key, double v) {
    if (isfinite(v)) {
        line_add(l, ",\"%s\":%.9g", key, v);
    } else {
        line_add(l, ",\"%s\":null", key);
    }
}

static Err line_write(int fd, const char *path, const Line *l) {
    CHECK(l->n < l->cap, E_INTERNAL, "a line for %s is longer than %zu bytes", path, l->cap);
    off_t before = lseek(fd, 0, SEEK_END);
    for (size_t done = 0; done < l->n;) {
        ssize_t n = write(fd, l->s + done, l->n - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            int why = n < 0 ? errno : ENOSPC;
            if (before >= 0 && ftruncate(fd, before) != 0) log_warn("%s ends in a torn line", path);
            FAIL(E_OUTPUT, "cannot write %s: %s", path, strerror(why));
        }
        done += (size_t)n;
    }
    return OK;
}

// The step of a complete line of ours, -1 for anything else.
static int64_t line_step(const char *line, size_t n) {
    static const char head[] = "{\"step\":";
    if (n < sizeof head + 1 || memcmp(line, head, sizeof head - 1) != 0) return -1;
    if (line[n - 1] != '\n' || line[n - 2] != '}') return -1;
    char *end;
    errno = 0;
    long long step = strtoll(line + sizeof head - 1, &end, 10);
    return errno == 0 && step > 0 && (*end == ',' || *end == '}') ? step : -1;
}

// Copies the lines of steps up to `loaded_step`, in rising order, from one file to another.
static Err copy_lines(FILE *from, FILE *to, const char *path, int64_t loaded_step, int64_t *ncut) {
    char *line = NULL;
    size_t cap = 0;
    int64_t last = 0;
    ssize_t n;
    Err err = OK;
    *ncut = 0;
    while ((n = getline(&line, &cap, from)) > 0) {
        int64_t step = line_step(line, (size_t)n);
        bool is_torn = line[n - 1] != '\n'; // what a killed run leaves: nothing to worry about
        if (step < 0 && !is_torn)
            log_warn("%s: dropped a damaged line after step %lld", path, (long long)last);
        if (step <= last || step > loaded_step) {
            (*ncut)++;
            continue;
        }
        last = step;
        CHECK_OR(fwrite(line, 1, (size_t)n, to) == (size_t)n, done, E_OUTPUT, "cannot write %s: %s",
                 path, strerror(errno));
    }
    CHECK_OR(!ferror(from), done, E_OUTPUT, "cannot read %s: %s", path, strerror(errno));
done:
    free(line);
    return err;
}

// Cuts metrics.jsonl to the steps up to loaded_step.
static Err cut_steps(const char *path, int64_t loaded_step) {
    FILE *from = fopen(path, "re");
    if (!from && errno == ENOENT) return OK;
    CHECK(from, E_OUTPUT, "cannot read %s: %s", path, strerror(errno));
    char temp[PATH_CAP + 8];
    snprintf(temp, sizeof temp, "%s.tmp", path);
    FILE *to = fopen(temp, "we");
    int64_t ncut = 0;
    Err err = OK;
    CHECK_OR(to, done, E_OUTPUT, "cannot create %s: %s", temp, strerror(errno));
    TRY_OR(copy_lines(from, to, path, loaded_step, &ncut), done);
    bool is_flushed = fflush(to) == 0 && fsync(fileno(to)) == 0;
    bool is_closed = fclose(to) == 0;
    to = NULL;
    CHECK_OR(is_flushed && is_closed, done, E_OUTPUT, "cannot write %s: %s", temp, strerror(errno));
    if (ncut > 0) {
        CHECK_OR(rename(temp, path) == 0, done, E_OUTPUT, "cannot replace %s: %s", path,
                 strerror(errno));
    }
done:
    if (to) fclose(to);
    fclose(from);
    unlink(temp); // gone already if it was renamed
    return err;
}

static Err open_append(int *fd, const char *path) {
    *fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    CHECK(*fd >= 0, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    return OK;
}

// Cuts a torn last line of events.jsonl.
static Err cut_torn(int fd, const char *path) {
    off_t size = lseek(fd, 0, SEEK_END);
    CHECK(size >= 0, E_OUTPUT, "cannot read %s: %s", path, strerror(errno));
    off_t keep = size;
    char c = '\n';
    while (keep > 0) {
        CHECK(pread(fd, &c, 1, keep - 1) == 1, E_OUTPUT, "cannot read %s: %s", path,
              strerror(errno));
        if (c == '\n') break;
        keep--;
    }
    if (keep == size) return OK;
    CHECK(ftruncate(fd, keep) == 0, E_OUTPUT, "cannot write %s: %s", path, strerror(errno));
    return OK;
}

Err metrics_open(Metrics **out, const char *run_dir, int64_t loaded_step, int rank) {
    *out = NULL;
    CHECK(strlen(run_dir) < PATH_CAP - 32, E_OUTPUT,
          "the path of the run directory is too long: %s", run_dir);
    Metrics *m;
    MEM_NEW(m, 1);
    m->steps_fd = m->events_fd = -1;
    if (rank != 0) {
        *out = m;
        return OK;
    }
    snprintf(m->steps_path, sizeof m->steps_path, "%s/metrics.jsonl", run_dir);
    snprintf(m->events_path, sizeof m->events_path, "%s/events.jsonl", run_dir);
    char dir[PATH_CAP + 16];
    snprintf(dir, sizeof dir, "%s/events", run_dir);
    Err err = OK;
    TRY_OR(cut_steps(m->steps_path, loaded_step), fail);
    TRY_OR(open_append(&m->steps_fd, m->steps_path), fail);
    TRY_OR(open_append(&m->events_fd, m->events_path), fail);
    TRY_OR(cut_torn(m->events_fd, m->events_path), fail);
    TRY_OR(tb_open(&m->tb, dir, loaded_step + 1), fail);
    *out = m;
    return OK;
fail:
    metrics_close(&m);
    return err;
}

void metrics_close(Metrics **m) {
    if (!*m) return;
    if ((*m)->steps_fd >= 0) close((*m)->steps_fd);
    if ((*m)->events_fd >= 0) close((*m)->events_fd);
    tb_close(&(*m)->tb);
    mem_free((*m)->text);
    mem_free(*m);
    *m = NULL;
}

// ---- the objects of parallel arrays --------------------------------------------------------------

// A number of an array with k before it.
static void item(Line *l, int64_t k, int digits, double v) {
    if (isfinite(v)) {
        line_add(l, k > 0 ? ",%.*g" : "%.*g", digits, v);
    } else {
        line_add(l, k > 0 ? ",null" : "null");
    }
}

// 6 digits are plenty for shares; magnitudes come back as they are.
#define ITEMS(l, name, n, digits, value)                                                           \
    do {                                                                                           \
        line_add((l), "],\"" name "\":[");                                                         \
        for (int64_t k = 0; k < (n); k++) item((l), k, (digits), (double)(value));                 \
    } while (0)

static void line_health(Line *l, const Health *h) {
    const HealthRow *r = h->row;
    line_add(l, ",\"fp8_health\":{\"site\":[");
    for (int64_t k = 0; k < h->nrows; k++)
        line_add(l, k > 0 ? ",\"%s\"" : "\"%s\"", r[k].site.s);
    ITEMS(l, "saturated", h->nrows, 6, r[k].saturated);
    ITEMS(l, "underflow", h->nrows, 6, r[k].underflow);
    line_add(l, "],\"nonfinite_tiles\":[");
    for (int64_t k = 0; k < h->nrows; k++)
        line_add(l, k > 0 ? ",%lld" : "%lld", (long long)r[k].nonfinite_tiles);
    ITEMS(l, "scale_min", h->nrows, 9, r[k].scale_min);
    ITEMS(l, "scale_median", h->nrows, 9, r[k].scale_median);
    ITEMS(l, "scale_max", h->nrows, 9, r[k].scale_max);
    ITEMS(l, "amax", h->nrows, 9, r[k].amax);
    line_add(l, "]}");
}

static void line_shadow(Line *l, const Shadow *h) {
    line_add(l, ",\"fp8_shadow\":{\"gemm\":[");
    for (int64_t k = 0; k < h->nrows; k++)
        line_add(l, k > 0 ? ",\"%s\"" : "\"%s\"", h->row[k].gemm.s);
    ITEMS(l, "error", h->nrows, 6, h->row[k].error);
    line_add(l, "]}");
}

// line_reserve: room for the longest line with these rows: allocated once.
static Err line_reserve(Metrics *m, const StepMetrics *s) {
    size_t need = LINE_CAP;
    if (s->health) need += (size_t)s->health->n * HEALTH_CAP;
    if (s->shadow) need += (size_t)s->shadow->n * SHADOW_CAP;
    if (need <= m->ntext) return OK;
    mem_free(m->text);
    m->text = NULL;
    MEM_NEW(m->text, need);
    m->ntext = need;
    return OK;
}

static Err write_json(Metrics *m, const StepMetrics *s) {
    TRY(line_reserve(m, s));
    Line l = {m->text, 0, m->ntext};
    line_add(&l, "{\"step\":%lld", (long long)s->step);
    line_int(&l, "tokens", s->tokens);
    line_int(&l, "samples", s->samples);
    line_int(&l, "global_batch", s->global_batch);
    if (s->skipped > 0) line_int(&l, "skipped_samples", s->skipped);
    line_real(&l, "loss", s->loss);
    line_real(&l, "lm_loss", s->lm_loss);
    line_real(&l, "mtp_loss", s->mtp_loss);
    line_add(&l, ",\"mtp_losses\":[");
    for (int k = 0; k < s->nmtp; k++) {
        const char *comma = k > 0 ? "," : "";
        if (isfinite(s->mtp[k])) {
            line_add(&l, "%s%.9g", comma, s->mtp[k]);
        } else {
            line_add(&l, "%snull", comma);
        }
    }
    line_add(&l, "]");
    line_real(&l, "balance_loss", s->balance_loss);
    line_real(&l, "grad_norm", s->grad_norm);
    line_real(&l, "lr", s->lr);
    line_real(&l, "tokens_per_s", s->tokens_per_s);
    line_real(&l, "step_ms", s->step_ms);
    line_real(&l, "mfu", s->mfu);
    line_real(&l, "maxvio", s->maxvio);
    line_real(&l, "dead_experts", s->dead_experts);
    line_int(&l, "a2a_dispatch_bytes", s->a2a_dispatch_bytes);
    line_int(&l, "a2a_combine_bytes", s->a2a_combine_bytes);
    line_int(&l, "a2a_meta_bytes", s->a2a_meta_bytes);
    line_real(&l, "fp8_saturated", s->fp8.saturated);
    line_real(&l, "fp8_underflow", s->fp8.underflow);
    line_int(&l, "fp8_nonfinite_tiles", s->fp8.nonfinite_tiles);
    line_real(&l, "rss_bytes", s->rss_bytes);
    line_real(&l, "eta_s", s->eta_s);
    line_int(&l, "unsaved_steps", s->unsaved_steps);
    line_real(&l, "unsaved_s", s->unsaved_s);
    if (s->has_slow) line_int(&l, "slow_rank", s->slow_rank);
    if (s->has_slow) line_real(&l, "slow_factor", s->slow_factor);
    if (s->has_hash)
        line_add(&l, ",\"state_hash\":\"%016llx\",\"route_hash\":\"%016llx\"", (unsigned long long)s->state_hash,
                 (unsigned long long)s->route_hash);
    if (s->health) line_health(&l, s->health);
    if (s->shadow) line_shadow(&l, s->shadow);
    line_add(&l, "}\n");
    return line_write(m->steps_fd, m->steps_path, &l);
}

static Err write_tensorboard(TbWriter *tb, const StepMetrics *s) {
    tb_scalar(tb, "loss/total", s->loss);
    tb_scalar(tb, "loss/lm", s->lm_loss);
    for (int k = 0; k < s->nmtp; k++) {
        char tag[32];
        snprintf(tag, sizeof tag, "loss/mtp_%d", k + 1);
        tb_scalar(tb, tag, s->mtp[k]);
    }
    tb_scalar(tb, "loss/balance", s->balance_loss);
    tb_scalar(tb, "train/grad_norm", s->grad_norm);
    tb_scalar(tb, "train/lr", s->lr);
    tb_scalar(tb, "train/tokens", (double)s->tokens);
    tb_scalar(tb, "train/global_batch", (double)s->global_batch);
    tb_scalar(tb, "speed/tokens_per_s", s->tokens_per_s);
    tb_scalar(tb, "speed/step_ms", s->step_ms);
    if (isfinite(s->mfu)) tb_scalar(tb, "speed/mfu", s->mfu);
    tb_scalar(tb, "experts/maxvio", s->maxvio);
    tb_scalar(tb, "experts/dead", s->dead_experts);
    tb_scalar(tb, "exchange/dispatch_bytes", (double)s->a2a_dispatch_bytes);
    tb_scalar(tb, "exchange/combine_bytes", (double)s->a2a_combine_bytes);
    tb_scalar(tb, "fp8/saturated", s->fp8.saturated);
    tb_scalar(tb, "fp8/underflow", s->fp8.underflow);
    tb_scalar(tb, "fp8/nonfinite_tiles", (double)s->fp8.nonfinite_tiles);
    if (s->health && s->health->nrows > 0) {
        tb_scalar(tb, "fp8/worst_saturated", health_worst_saturated(s->health)->saturated);
        tb_scalar(tb, "fp8/worst_underflow", health_worst_underflow(s->health)->underflow);
    }
    const ShadowRow *bad = s->shadow ? shadow_worst(s->shadow) : NULL;
    if (bad) tb_scalar(tb, "fp8/worst_gemm_error", bad->error);
    tb_scalar(tb, "memory/rss_bytes", s->rss_bytes);
    return tb_flush(tb, s->step);
}

// share: "0.0131% (L3.o.dy)", or "0%". Three digits: shares of interest are far below a percent.
static void line_share(Line *l, const char *what, double share, const char *site) {
    line_add(l, share > 0.0 ? " %s %.3g%% (%s)" : " %s 0%%", what, 100.0 * share, site);
}

static void print_health(Line *l, const Health *h) {
    if (h->nrows == 0) return;
    const HealthRow *sat = health_worst_saturated(h), *uf = health_worst_underflow(h),
                    *bad = health_worst_nonfinite(h);
    line_add(l, " | fp8");
    line_share(l, "sat", sat->saturated, sat->site.s);
    line_share(l, "uf", uf->underflow, uf->site.s);
    if (bad->nonfinite_tiles > 0)
        line_add(l, " NaN tiles %lld (%s)", (long long)bad->nonfinite_tiles, bad->site.s);
}

static void print_shadow(const StepMetrics *s) {
    const ShadowRow *w = shadow_worst(s->shadow);
    if (!w) return;
    log_line("fp8 shadow step %lld: largest error of a product against BF16 %.2f%% (%s), median "
             "%.2f%%, %lld products",
             (long long)s->step, 100.0 * w->error, w->gemm.s, 100.0 * shadow_median(s->shadow),
             (long long)s->shadow->nrows);
}

static void print_line(const StepMetrics *s, int64_t total_steps) {
    char text[LINE_CAP];
    Line l = {text, 0, sizeof text};
    char total[24];
    int width = snprintf(total, sizeof total, "%lld", (long long)total_steps);
    line_add(&l, "step %*lld/%s eta %s", width, (long long)s->step, total,
             text_duration(s->eta_s).s);
    line_add(&l, " | loss %.4f lm %.4f", s->loss, s->lm_loss);
    if (s->nmtp > 0) line_add(&l, " mtp %.4f", s->mtp_loss);
    line_add(&l, " | gnorm %.3g lr %.1e | %s tok/s", s->grad_norm, s->lr,
             text_count(s->tokens_per_s).s);
    if (isfinite(s->mfu)) line_add(&l, " MFU %.1f%%", 100 * s->mfu);
    line_add(&l, " | MaxVio %.2f dead %.1f%%", s->maxvio, 100 * s->dead_experts);
    if (s->health) print_health(&l, s->health);
    if (s->skipped > 0) line_add(&l, " | skipped %lld samples", (long long)s->skipped);
    if (s->unsaved_steps > 0)
        line_add(&l, " | unsaved %lld step%s %s", (long long)s->unsaved_steps, s->unsaved_steps == 1 ? "" : "s",
                 text_duration(s->unsaved_s).s);
    line_add(&l, " | %.1f GiB", s->rss_bytes / (1024.0 * 1024.0 * 1024.0));
    log_line("%s", l.s);
}

Err metrics_step(Metrics *m, const StepMetrics *s, int64_t total_steps, bool print) {
    if (m->steps_fd < 0) return OK;
    if (m->last_step != s->step) TRY(write_json(m, s)); // not again if the rest is tried again
    m->last_step = s->step;
    TRY(write_tensorboard(m->tb, s));
    if (print) print_line(s, total_steps);
    if (s->shadow) print_shadow(s);
    return OK;
}

Err metrics_event(Metrics *m, const char *kind, const char *fields_fmt, ...) {
    if (m->events_fd < 0) return OK;
    struct timeval now;
    gettimeofday(&now, NULL);
    char text[LINE_CAP];
    Line l = {text, 0, sizeof text};
    line_add(&l, "{\"time\":%lld.%03d,\"event\":\"%s\"", (long long)now.tv_sec,
             (int)(now.tv_usec / 1000), kind);
    size_t head = l.n;
    line_add(&l, ",");
    va_list ap;
    va_start(ap, fields_fmt);
    int n = vsnprintf(l.s + l.n, l.cap - l.n, fields_fmt, ap);
    va_end(ap);
    l.n = n > 0 ? l.n + (size_t)n : head;
    line_add(&l, "}\n");
    return line_write(m->events_fd, m->events_path, &l);
}

bool metrics_eval_is_stopped(const char *run_dir, int64_t step) {
    char path[PATH_CAP], kind[32], *line = NULL;
    size_t cap = 0;
    bool is_stopped = false;
    snprintf(path, sizeof path, "%s/events.jsonl", run_dir);
    FILE *f = fopen(path, "re");
    while (f && getline(&line, &cap, f) > 0) {
        long long at = -1;
        if (sscanf(line, "{\"time\":%*[0-9.],\"event\":\"%31[a-z_]\",\"step\":%lld", kind, &at) != 2 || at != step)
            continue;
        if (strcmp(kind, EVENT_EVAL) == 0) is_stopped = false;
        if (strcmp(kind, EVENT_EVAL_STOPPED) == 0) is_stopped = true;
    }
    free(line);
    if (f) fclose(f);
    return is_stopped;
}

void metrics_escape(char *out, size_t n, const char *text) {
    size_t k = 0;
    for (; *text && k + JSON_BYTE + 1 < n; text++) k += json_byte(out + k, (unsigned char)*text);
    out[k] = '\0';
}
