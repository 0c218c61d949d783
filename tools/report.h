// report.h - what `tessera report` knows of a run, and the parts that read and draw it.
//
//     report_read.c    metrics.jsonl, events.jsonl
//     report_model.c   config.yaml, the biases of the newest checkpoint
//     report_plots.c   curves over the steps
//     report_heat.c    heat maps: FP8 by site, biases by layer and expert
//     report_page.c    the page: tables of runs, events and settings
//     report_style.c   its style sheet
#pragma once
#include "config.h"
#include "params.h"
#include "report_series.h"

enum {
    REPORT_RUNS = 7,      // in one page: as many as there are colours
    REPORT_PARTS = 1000,  // of a series: at most twice as many points in a figure
    REPORT_CELLS = 160,   // of a site in the heat maps
    REPORT_SITES = 4096,  // more are left out
    REPORT_EVENTS = 400,  // of each of the two lists: the last ones
};

// Everything that is drawn over the steps.
typedef enum Quantity {
    Q_LOSS, Q_LM, Q_MTP, Q_BALANCE, Q_GRAD_NORM, Q_LR, Q_BATCH,
    Q_TOKENS_PER_S, Q_MFU, Q_STEP_MS, Q_SLOW, Q_RSS,
    Q_MAXVIO, Q_DEAD, Q_DISPATCH, Q_COMBINE, Q_META,
    Q_SATURATED, Q_UNDERFLOW, Q_NAN_TILES,
    Q_WORST_SATURATED, Q_WORST_UNDERFLOW, Q_SHADOW_WORST, Q_SHADOW_MEAN, // of sites, where a step has them
    Q_EVAL, Q_BITS, Q_STALL, Q_SAVE_S,                                   // of events
    Q_SAVES, Q_STARTS, Q_BAD, Q_EVALS,                                   // where events were
    Q_COUNT,
} Quantity;

// One place where values are quantised, over the steps that have fp8_health.
typedef struct ReportSite {
    char name[48];
    Series saturated, underflow; // shares
} ReportSite;

typedef struct ReportEvent {
    double time;
    char kind[24];
    int64_t step;
    char text[480]; // its other fields
} ReportEvent;

// The last REPORT_EVENTS of so many.
typedef struct ReportEvents {
    ReportEvent *ring; // event k is ring[k % REPORT_EVENTS]
    int64_t n;
} ReportEvents;

// A number and the step it belongs to; NAN: there is none.
typedef struct AtStep {
    double value;
    int64_t step;
} AtStep;

typedef struct ReportRun {
    const char *dir; // as it was given
    char name[96];   // its last part
    // metrics.jsonl
    Series of[Q_COUNT];
    ReportSite *site; // [nsites]
    int nsites;
    int64_t first_step, last_step, tokens, samples, skipped;
    AtStep lm_last, lm_best, loss_last;
    double step_s, tokens_seen, mfu_s, mfu_time; // sums: seconds of steps, their tokens, mfu * seconds, its seconds
    double eta_s;
    // events.jsonl
    ReportEvents notable, routine; // routine: saves and evaluations
    int64_t starts, resumes, saves, failed_saves, evals, bad, rollbacks, hangs, stragglers;
    AtStep eval_last, eval_best, bits_last, saved;
    double time_first, time_last;
    int64_t world, ep, threads; // of the last start; -1: it does not say
    char stop[200];         // why it stopped, "" if the last event does not say
    // config.yaml and checkpoint
    char *config_text;
    size_t config_bytes;
    Config *config; // NULL: not readable by this version
    ParamCount count;
    char origin[512]; // the run a fork began from, "" else
    char checkpoint[64];
    float *bias; // [nlayers, nexperts] of the newest checkpoint
    int64_t *bias_layer;
    int64_t bias_step;
    int nlayers, nexperts;
} ReportRun;

typedef struct Report {
    ReportRun run[REPORT_RUNS];
    int nruns;
    int64_t smooth; // steps; 0: a hundredth of the longest run
    FILE *f;
} Report;

// report_read: all of a run's folder. What cannot be read but its metrics is warned of and left out. Errors: E_INPUT:
// the folder holds no run; E_INTERNAL. report_free: also of a run that was read in part. Local.
Err report_read(ReportRun *r, const char *dir) MUST_CHECK;
void report_free(ReportRun *r);
// report_read_model: its config and biases. Local.
Err report_read_model(ReportRun *r) MUST_CHECK;
// The settings of config.yaml as it is written, one by one: "section.key", or deeper.
typedef struct ReportSettings {
    char *text;         // what key and value point into
    const char **key, **value; // [n]
    int n;
} ReportSettings;
// report_settings: of a run's config_text; empty without. Errors: E_INTERNAL. report_setting: the value of a key, "" if
// there is none. Local.
Err report_settings(const ReportRun *r, ReportSettings *out) MUST_CHECK;
void report_settings_free(ReportSettings *s);
const char *report_setting(const ReportSettings *s, const char *key);
// report_page: the whole page to p->f; errors of writing are those of the stream. Errors: E_INTERNAL. Local.
Err report_page(Report *p) MUST_CHECK;
// report_style: the <style> of the page and all its figures, light and dark. Local.
void report_style(FILE *f);
// report_legend: what marks and curves of all figures are. Local.
void report_legend(Report *p);
// report_curves, report_heats: all figures of their kind, each a <figure>; those without values are left out. Errors:
// E_INTERNAL. Local.
Err report_curves(Report *p) MUST_CHECK;
Err report_heats(Report *p) MUST_CHECK;
// report_span: first and last step of all runs; *last < *first: none. Pure.
void report_span(const Report *p, int64_t *first, int64_t *last);
