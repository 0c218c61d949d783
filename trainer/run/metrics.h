// metrics.h - what a run writes down: metrics.jsonl (one object per finished step), events.jsonl,
// TensorBoard events, and the line for people.
#pragma once
#include "config.h"
#include "health.h"
#include "shadow_gemm.h"

typedef struct StepMetrics {
    int64_t step, tokens, samples; // after this step, consumed in all
    float loss, lm_loss, balance_loss;
    float mtp_loss; // mean over modules
    int nmtp;
    float mtp[16];
    double grad_norm, lr;
    double tokens_per_s, step_ms,
        mfu;             // mfu: model FLOPs / (time * peak), NAN if the peak is not known
    double maxvio;       // mean over MoE layers
    double dead_experts; // share of experts without a token in this step, all layers
    int64_t a2a_dispatch_bytes, a2a_combine_bytes, a2a_meta_bytes;
    HealthTotals fp8;       // of the step
    const Health *health;   // its rows, on steps that print a line; NULL on others
    const Shadow *shadow;   // its rows, on steps that compare with BF16; NULL on others
    double rss_bytes; // largest over ranks
    int64_t global_batch;
    int64_t skipped; // samples of batches that were not finite, in all
    bool has_hash;
    uint64_t state_hash, route_hash; // route_hash: of the step's expert loads (balance.h)
    double eta_s;
    int64_t unsaved_steps; // what a crash now would cost: since the last verified save,
    double unsaved_s;      // and its seconds
    bool has_slow;         // several ranks:
    int slow_rank;         // the one that computed longest in this step,
    double slow_factor;    // over the median rank
} StepMetrics;

// Events that are read again.
#define EVENT_EVAL "eval"
#define EVENT_EVAL_STOPPED "eval_stopped"

typedef struct Metrics Metrics;
// metrics_open: files in run_dir; metrics.jsonl is cut to steps <= loaded_step (a torn last line is
// dropped). Only rank 0 does anything. E_OUTPUT.
Err metrics_open(Metrics **out, const char *run_dir, int64_t loaded_step, int rank) MUST_CHECK;
// metrics_step: one line of metrics.jsonl, TensorBoard scalars, and (print) the readable line. Rows
// of s->health and s->shadow become the objects fp8_health and fp8_shadow, parallel arrays; what
// the shadow found has a readable line of its own, print or not. After E_OUTPUT it may be called again
// with the same step. Local (rank 0).
Err metrics_step(Metrics *m, const StepMetrics *s, int64_t total_steps, bool print) MUST_CHECK;
// metrics_event: one line of events.jsonl: {"time":..,"event":kind,...}; fields is a JSON object's
// inside, e.g. "\"step\":3". E_OUTPUT.
Err metrics_event(Metrics *m, const char *kind, const char *fields_fmt, ...) PRINTF_LIKE(3, 4);
// metrics_eval_is_stopped: of all evaluations of this step in events.jsonl the last one was given up. Local.
bool metrics_eval_is_stopped(const char *run_dir, int64_t step);
// metrics_escape: `text` as the inside of a JSON string, for the fields of an event; cut to n
// bytes. Pure.
void metrics_escape(char *out, size_t n, const char *text);
void metrics_close(Metrics **m);
