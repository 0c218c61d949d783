// report_page.c - the page of a report: the tables of runs, settings and events, the figures
// between them.
//
// It is HTML that is XML too: every element is closed, so that any parser can check it. No scripts,
// nothing from elsewhere.
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "arena.h"
#include "commands.h"
#include "log.h"
#include "plot_svg.h"
#include "report.h"

// ---- the table of runs -------------------------------------------------------------------------

enum { CELL = 400 };
typedef void Fact(const ReportRun *r, char *out);

static void at_step(char *out, const char *fmt, AtStep a) {
    if (!isfinite(a.value)) return;
    int n = snprintf(out, CELL, fmt, a.value);
    snprintf(out + n, (size_t)(CELL - n), " (step %lld)", (long long)a.step);
}

static void fact_folder(const ReportRun *r, char *out) {
    snprintf(out, CELL, "%.300s", r->dir);
}

static void fact_origin(const ReportRun *r, char *out) {
    snprintf(out, CELL, "%.390s", r->origin);
}

static void fact_model(const ReportRun *r, char *out) {
    const Config *c = r->config;
    if (!c) return;
    snprintf(
        out, CELL,
        "%lld layers, width %lld, %lld heads, %lld experts top-%lld + %lld shared, MTP %lld, %s",
        (long long)c->model.num_hidden_layers, (long long)c->model.hidden_size,
        (long long)c->model.num_attention_heads, (long long)c->model.n_routed_experts,
        (long long)c->model.num_experts_per_tok, (long long)c->model.n_shared_experts,
        (long long)c->model.num_nextn_predict_layers, config_choice(c, "precision", "mode").s);
}

static void fact_parameters(const ReportRun *r, char *out) {
    if (!r->config) return;
    snprintf(out, CELL, "%s, %s active per token; MTP %s", text_count((double)r->count.total).s,
             text_count((double)r->count.active).s, text_count((double)r->count.mtp).s);
}

static void fact_ranks(const ReportRun *r, char *out) {
    if (r->world <= 0 || r->ep <= 0) return;
    snprintf(out, CELL, "%lld = %lld expert-parallel x %lld data-parallel, %lld thread%s each",
             (long long)r->world, (long long)r->ep, (long long)(r->world / r->ep),
             (long long)r->threads, r->threads == 1 ? "" : "s");
}

static void fact_steps(const ReportRun *r, char *out) {
    int64_t total = r->config ? r->config->train.steps : 0;
    int n = snprintf(out, CELL, "%lld", (long long)r->last_step);
    if (total > 0)
        n += snprintf(out + n, (size_t)(CELL - n), " of %lld (%.3g%%)", (long long)total,
                      100.0 * (double)r->last_step / (double)total);
    if (r->first_step > 1)
        snprintf(out + n, (size_t)(CELL - n), ", from %lld on", (long long)r->first_step);
}

static void fact_state(const ReportRun *r, char *out) {
    if (r->stop[0])
        snprintf(out, CELL, "ended: %.300s", r->stop);
    else if (r->config && r->last_step >= r->config->train.steps)
        snprintf(out, CELL, "finished");
    else if (r->last_step > 0 && r->eta_s > 0)
        snprintf(out, CELL, "not finished; at its last step %s were to go",
                 text_duration(r->eta_s).s);
}

static void fact_tokens(const ReportRun *r, char *out) {
    if (r->tokens <= 0) return;
    snprintf(out, CELL, "%s in %s sequences", text_count((double)r->tokens).s,
             text_count((double)r->samples).s);
}

static void fact_loss(const ReportRun *r, char *out) {
    at_step(out, "%.4f", r->lm_last);
}

static void fact_best(const ReportRun *r, char *out) {
    at_step(out, "%.4f", r->lm_best);
}

static void fact_total(const ReportRun *r, char *out) {
    at_step(out, "%.4f", r->loss_last);
}

static void fact_eval(const ReportRun *r, char *out) {
    at_step(out, "%.4f", r->eval_last);
}

static void fact_eval_best(const ReportRun *r, char *out) {
    if (r->evals > 1) at_step(out, "%.4f", r->eval_best);
}

static void fact_bits(const ReportRun *r, char *out) {
    at_step(out, "%.4f", r->bits_last);
}

static void fact_speed(const ReportRun *r, char *out) {
    if (r->step_s <= 0 || r->tokens_seen <= 0) return;
    int n = snprintf(out, CELL, "%s tokens/s", text_count(r->tokens_seen / r->step_s).s);
    if (r->mfu_time > 0)
        snprintf(out + n, (size_t)(CELL - n), ", MFU %.1f%%", 100 * r->mfu_s / r->mfu_time);
}

static void fact_time(const ReportRun *r, char *out) {
    if (r->step_s <= 0) return;
    int n = snprintf(out, CELL, "%s in steps", text_duration(r->step_s).s);
    if (r->time_last > r->time_first)
        snprintf(out + n, (size_t)(CELL - n), ", %s from the first event to the last",
                 text_duration(r->time_last - r->time_first).s);
}

static void fact_starts(const ReportRun *r, char *out) {
    int n = snprintf(out, CELL, "%lld", (long long)(r->starts + r->resumes));
    if (r->resumes > 0)
        snprintf(out + n, (size_t)(CELL - n), ", %lld of them resumed", (long long)r->resumes);
}

static void fact_saves(const ReportRun *r, char *out) {
    int n = snprintf(out, CELL, "%lld", (long long)r->saves);
    if (r->failed_saves > 0)
        n += snprintf(out + n, (size_t)(CELL - n), ", %lld failed", (long long)r->failed_saves);
    if (isfinite(r->saved.value))
        snprintf(out + n, (size_t)(CELL - n), ", the last of step %lld, %s",
                 (long long)r->saved.step, text_bytes(r->saved.value).s);
}

static void fact_bad(const ReportRun *r, char *out) {
    int n = snprintf(out, CELL, "%lld", (long long)r->bad);
    if (r->bad > 0)
        snprintf(out + n, (size_t)(CELL - n), ", %lld rollback%s, %lld sequences left out",
                 (long long)r->rollbacks, r->rollbacks == 1 ? "" : "s", (long long)r->skipped);
}

static void fact_trouble(const ReportRun *r, char *out) {
    if (r->hangs + r->stragglers > 0)
        snprintf(out, CELL, "%lld hang%s, %lld time%s a slow rank", (long long)r->hangs,
                 r->hangs == 1 ? "" : "s", (long long)r->stragglers, r->stragglers == 1 ? "" : "s");
}

static const struct {
    const char *name;
    Fact *fact;
} facts[] = {
    {"folder", fact_folder},
    {"begun from", fact_origin},
    {"model", fact_model},
    {"parameters", fact_parameters},
    {"ranks", fact_ranks},
    {"steps", fact_steps},
    {"state", fact_state},
    {"tokens", fact_tokens},
    {"loss of the next token, last", fact_loss},
    {"lowest", fact_best},
    {"total loss, last", fact_total},
    {"held-out loss, last", fact_eval},
    {"held-out loss, lowest", fact_eval_best},
    {"held-out bits per byte, last", fact_bits},
    {"throughput, mean", fact_speed},
    {"time", fact_time},
    {"starts", fact_starts},
    {"saves", fact_saves},
    {"steps not finite", fact_bad},
    {"stuck or slow ranks", fact_trouble},
};

static void sample(FILE *f, int run) {
    static const double two[2] = {0, 0};
    PlotSeries s = {.x = two, .y = two, .n = 2, .style = PLOT_CURVE, .colour = 1 + run};
    fputs("<span class=\"key\"><svg width=\"34\" height=\"12\" viewBox=\"0 0 34 12\">", f);
    plot_sample(f, &s, 0, 0, 6);
    fputs("</svg></span>", f);
}

static void names_of_runs(Report *p) {
    fputs("<thead><tr><th></th>", p->f);
    for (int r = 0; r < p->nruns; r++) {
        fputs("<th>", p->f);
        if (p->nruns > 1) sample(p->f, r);
        plot_text(p->f, p->run[r].name);
        fputs("</th>", p->f);
    }
    fputs("</tr></thead>\n", p->f);
}

static void table_of_runs(Report *p) {
    fputs("<div class=\"wide\"><table>", p->f);
    names_of_runs(p);
    fputs("<tbody>\n", p->f);
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) {
        char cell[REPORT_RUNS][CELL];
        bool is_there = false;
        for (int r = 0; r < p->nruns; r++) {
            cell[r][0] = '\0';
            facts[i].fact(&p->run[r], cell[r]);
            is_there = is_there || cell[r][0];
        }
        if (!is_there) continue;
        fprintf(p->f, "<tr><th>%s</th>", facts[i].name);
        for (int r = 0; r < p->nruns; r++) {
            fputs("<td>", p->f);
            plot_text(p->f, cell[r]);
            fputs("</td>", p->f);
        }
        fputs("</tr>\n", p->f);
    }
    fputs("</tbody></table></div>\n", p->f);
}

// ---- settings ----------------------------------------------------------------------------------

// table_of_settings: those in which the runs differ.
static Err table_of_settings(Report *p) {
    ReportSettings of[REPORT_RUNS] = {0};
    int shown = 0;
    Err err = OK;
    if (p->nruns < 2) return OK;
    for (int r = 0; r < p->nruns; r++) TRY_OR(report_settings(&p->run[r], &of[r]), done);
    for (int i = 0; i < of[0].n; i++) {
        const char *key = of[0].key[i];
        bool is_same = true;
        for (int r = 1; r < p->nruns; r++)
            is_same =
                is_same && strcmp(report_setting(&of[r], key), report_setting(&of[0], key)) == 0;
        if (is_same) continue;
        if (shown++ == 0) {
            fputs("<h2>Settings that differ</h2>\n<div class=\"wide\"><table>", p->f);
            names_of_runs(p);
            fputs("<tbody>\n", p->f);
        }
        fputs("<tr><th>", p->f);
        plot_text(p->f, key);
        fputs("</th>", p->f);
        for (int r = 0; r < p->nruns; r++) {
            fputs("<td>", p->f);
            plot_text(p->f, report_setting(&of[r], key));
            fputs("</td>", p->f);
        }
        fputs("</tr>\n", p->f);
    }
    if (shown > 0) fputs("</tbody></table></div>\n", p->f);
done:
    for (int r = 0; r < p->nruns; r++) report_settings_free(&of[r]);
    return err;
}

static void configs(Report *p) {
    fputs("<h2>Settings</h2>\n", p->f);
    for (int r = 0; r < p->nruns; r++) {
        if (!p->run[r].config_text) continue;
        fputs("<details><summary>config.yaml of ", p->f);
        plot_text(p->f, p->run[r].name);
        fputs("</summary><pre>", p->f);
        plot_text(p->f, p->run[r].config_text);
        fputs("</pre></details>\n", p->f);
    }
}

// ---- events ------------------------------------------------------------------------------------

static void row_of_event(Report *p, int run, const ReportEvent *e) {
    static const char *const bad[] = {"nonfinite", "save_failed", "hang"};
    char when[32] = "";
    time_t t = (time_t)e->time;
    struct tm utc;
    bool is_bad = false;
    for (int i = 0; i < 3; i++) is_bad = is_bad || strcmp(e->kind, bad[i]) == 0;
    if (isfinite(e->time) && e->time > 0 && e->time < 2e11 && gmtime_r(&t, &utc))
        strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &utc);
    fprintf(p->f, "<tr%s>", is_bad ? " class=\"bad\"" : "");
    if (p->nruns > 1) {
        fputs("<td>", p->f);
        plot_text(p->f, p->run[run].name);
        fputs("</td>", p->f);
    }
    fprintf(p->f, "<td>%s</td><td>", when);
    if (e->step >= 0) fprintf(p->f, "%lld", (long long)e->step);
    fputs("</td><td>", p->f);
    plot_text(p->f, e->kind);
    fputs("</td><td>", p->f);
    plot_text(p->f, e->text);
    fputs("</td></tr>\n", p->f);
}

static void table_of_events(Report *p, const char *title, bool is_notable) {
    int64_t n = 0, shown = 0;
    for (int r = 0; r < p->nruns; r++) {
        const ReportEvents *list = is_notable ? &p->run[r].notable : &p->run[r].routine;
        n += list->n;
        shown += list->n < REPORT_EVENTS ? list->n : REPORT_EVENTS;
    }
    if (n == 0) return;
    fprintf(p->f, "<details%s><summary>%s: %lld", is_notable ? " open=\"open\"" : "", title,
            (long long)n);
    if (shown < n) fprintf(p->f, ", the last %lld of them", (long long)shown);
    fprintf(p->f,
            "</summary><div class=\"wide\"><table class=\"long\"><thead><tr>%s<th>time "
            "(UTC)</th><th>step</th>"
            "<th>event</th><th></th></tr></thead><tbody>\n",
            p->nruns > 1 ? "<th>run</th>" : "");
    for (int r = 0; r < p->nruns; r++) {
        const ReportEvents *list = is_notable ? &p->run[r].notable : &p->run[r].routine;
        for (int64_t k = list->n > REPORT_EVENTS ? list->n - REPORT_EVENTS : 0; k < list->n; k++)
            row_of_event(p, r, &list->ring[k % REPORT_EVENTS]);
    }
    fputs("</tbody></table></div></details>\n", p->f);
}

// ---- the page ----------------------------------------------------------------------------------

static bool has_steps(const Report *p) {
    int64_t first, last;
    report_span(p, &first, &last);
    return first <= last;
}

static void title(Report *p) {
    for (int r = 0; r < p->nruns; r++) {
        if (r > 0) fputs(", ", p->f);
        plot_text(p->f, p->run[r].name);
    }
}

Err report_page(Report *p) {
    FILE *f = p->f;
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>",
          f);
    title(p);
    fputs("</title>\n", f);
    report_style(f);
    fputs("</head><body>\n<h1>", f);
    title(p);
    fputs("</h1>\n", f);
    table_of_runs(p);
    TRY(table_of_settings(p));
    fputs("<h2>Training</h2>\n", f);
    if (has_steps(p)) {
        report_legend(p);
        fputs("<div class=\"figures\">\n", f);
        TRY(report_curves(p));
        fputs("</div>\n<h2>Sites and experts</h2>\n<div class=\"figures\">\n", f);
        TRY(report_heats(p));
        fputs("</div>\n", f);
    } else {
        fputs("<p>No step is finished yet.</p>\n", f);
    }
    fputs("<h2>Events</h2>\n", f);
    table_of_events(p, "starts, stops and what went wrong", true);
    table_of_events(p, "saves and evaluations", false);
    configs(p);
    fprintf(f, "<p class=\"soft\">%s</p>\n</body></html>\n", version_line());
    return OK;
}
