// evaluate.c - forward passes that only look.
#include "evaluate.h"

#include <math.h>
#include <string.h>

#include "log.h"
#include "prof.h"
#include "rng.h"

#define PROGRESS_SECONDS 15.0 // a pass over a held-out text that takes longer says how far it is
#define COPY_FIRST_SYMBOL 3 // ids 0, 1, 2 are begin, end and padding

// What one evaluation borrows and gives back.
typedef struct Quiet {
    QuantCount *health;
    ExBytes bytes;
    CxMark mark;
} Quiet;

static Err quiet_begin(Model *m, Cx *cx, Quiet *q) {
    Quiet now = {cx->health, cx->bytes, cx_mark_acts(cx)};
    *q = now;
    TRY(model_zero_counts(m, cx));
    cx->health = NULL; // not counted
    return OK;
}

// quiet_end: with the result of the passes, which it returns.
static Err quiet_end(Model *m, Cx *cx, const Quiet *q, Err err) {
    cx->health = q->health;
    cx->bytes = q->bytes;
    cx_release_acts(cx, q->mark);
    TRY(err);
    return model_zero_counts(m, cx);
}

// windows_load: up to B windows from `first` (n of them real) and their targets; the rest of the
// batch is empty.
static Err windows_load(const Shape *s, Loader *l, int64_t first, int64_t n, int32_t *tokens,
                        int32_t *targets, int32_t *valid, int32_t *doc_start) {
    int64_t ld = s->S + 1 + s->nmtp;
    memset(tokens, 0, (size_t)(s->B * ld) * sizeof *tokens);
    if (doc_start) memset(doc_start, 0, (size_t)(s->B * s->S) * sizeof *doc_start);
    if (n > 0) TRY(loader_eval_batch(l, first, n, tokens, valid, NULL, doc_start));
    for (int64_t b = 0; b < s->B; b++) {
        for (int64_t i = 0; i < s->S; i++) {
            targets[b * s->S + i] = b < n && i < valid[b] ? tokens[b * ld + i + 1] : -1;
        }
    }
    return OK;
}

static Err heldout_passes(Model *m, Cx *cx, Loader *l, int64_t windows, Stop *stop, LossSums *sums) {
    const Shape *s = model_shape(m);
    int64_t ld = s->S + 1 + s->nmtp, per_pass = s->B * cx->world->nranks;
    int32_t *tokens = NULL, *targets = NULL, *valid = NULL, *doc_start = NULL;
    ARENA_NEW(cx->host_acts, tokens, s->B * ld);
    ARENA_NEW(cx->host_acts, targets, s->B * s->S);
    ARENA_NEW(cx->host_acts, valid, s->B);
    if (s->document_mask) ARENA_NEW(cx->host_acts, doc_start, s->B * s->S);
    double said = now_seconds();
    for (int64_t w = 0; w < windows; w += per_pass) {
        if (now_seconds() - said > PROGRESS_SECONDS) {
            log_line("held-out   %lld of %lld windows", (long long)w, (long long)windows);
            said = now_seconds();
        }
        int64_t first = w + s->B * cx->world->rank;
        int64_t n = max_i64(0, min_i64(s->B, windows - first));
        Err mine = windows_load(s, l, first, n, tokens, targets, valid, doc_start);
        TRY(stop_agree(stop, cx->world, mine));
        if (stop_is_due(stop)) break;
        Batch b = {.nseq = s->B,
                   .S = s->S,
                   .ld = ld,
                   .tokens = tokens,
                   .targets = targets,
                   .doc_start = doc_start,
                   .is_complete = true,
                   .is_main_only = true};
        TRY(model_fwd(m, cx, &b, sums, NULL));
    }
    return OK;
}

Err evaluate_heldout(Model *m, Cx *cx, Loader *l, int corpora, int64_t max_windows, Stop *stop,
                     EvalResult *r) {
    const Shape *s = model_shape(m);
    int64_t all = loader_eval_windows(l),
            windows = max_windows > 0 ? min_i64(max_windows, all) : all;
    LossSums sums = {0};
    Quiet q;
    TRY(quiet_begin(m, cx, &q));
    prof_enter(PROF_EVAL);
    Err err = heldout_passes(m, cx, l, windows, stop, &sums);
    prof_leave();
    TRY(quiet_end(m, cx, &q, err));
    int64_t n[2] = {sums.lm_targets, sums.lm_correct};
    TRY(comm_sum(cx->world, &sums.lm, 1));
    TRY(comm_sum_i64(cx->world, n, 2));
    memset(r, 0, sizeof *r);
    r->is_stopped = stop_is_due(stop);
    r->nats = sums.lm;
    r->tokens = n[0];
    r->correct = n[1];
    r->loss = n[0] > 0 ? r->nats / (double)n[0] : NAN;
    r->text_bytes = loader_text_bytes(l);
    r->bits_per_byte = NAN;
    if (windows == all && r->text_bytes > 0) {
        double nats = r->nats + corpora * log((double)s->V);
        r->bits_per_byte = nats / (log(2.0) * (double)r->text_bytes);
    }
    return OK;
}

int64_t copy_sequence(int32_t *tokens, int64_t len, int64_t first_symbol, int64_t vocab,
                      uint64_t seed, uint64_t index) {
    uint64_t stream = 0xC0B1ull + index;
    int64_t most = max_i64(8, len / 2);
    int64_t n = 8 + philox(seed, stream, 0).v[0] % (uint64_t)(most - 8 + 1);
    for (int64_t i = 0; i < len; i++) {
        if (i >= n)
            tokens[i] = tokens[i - n];
        else
            tokens[i] = (int32_t)(first_symbol + philox(seed, stream, (uint64_t)i + 1).v[0] %
                                                     (uint64_t)(vocab - first_symbol));
    }
    return n;
}

// Sums of one copy evaluation; `period` belongs to the batch in flight.
typedef struct CopyTally {
    const int64_t *period; // [B]
    int64_t S, nseq;       // positions per sequence, sequences that count
    int64_t repeat, repeat_hit, control, control_hit;
} CopyTally;

static Err copy_tally(void *user, int mtp, int64_t row0, int64_t n, const float *loss,
                      const int32_t *correct) {
    CopyTally *t = user;
    (void)loss;
    if (mtp != 0) return OK;
    for (int64_t r = 0; r < n; r++) {
        int64_t b = (row0 + r) / t->S, target = (row0 + r) % t->S + 1;
        if (b >= t->nseq || target >= t->S) continue;
        if (target >= t->period[b]) {
            t->repeat++;
            t->repeat_hit += correct[r];
        } else {
            t->control++;
            t->control_hit += correct[r];
        }
    }
    return OK;
}

static Err copy_passes(Model *m, Cx *cx, int64_t nseq, uint64_t seed, CopyTally *t) {
    const Shape *s = model_shape(m);
    int32_t *tokens = NULL;
    int64_t *period = NULL, per_pass = s->B * cx->world->nranks;
    ARENA_NEW(cx->host_acts, tokens, s->B * s->S);
    ARENA_NEW(cx->host_acts, period, s->B);
    t->period = period;
    t->S = s->S;
    Taps taps = {.user = t, .loss = copy_tally};
    for (int64_t w = 0; w < nseq; w += per_pass) {
        int64_t first = w + s->B * cx->world->rank;
        t->nseq = max_i64(0, min_i64(s->B, nseq - first));
        for (int64_t b = 0; b < s->B; b++) {
            period[b] = copy_sequence(tokens + b * s->S, s->S, COPY_FIRST_SYMBOL, s->V, seed,
                                      (uint64_t)(first + b));
        }
        LossSums sums = {0};
        Batch b = {.nseq = s->B, .S = s->S, .ld = s->S, .tokens = tokens, .is_main_only = true};
        TRY(model_fwd(m, cx, &b, &sums, &taps));
    }
    return OK;
}

Err evaluate_copy(Model *m, Cx *cx, int64_t nseq, uint64_t seed, CopyResult *r) {
    CHECK(model_shape(m)->S >= 16, E_CONFIG,
          "the copy task needs sequences of 16 tokens or more, train.seq_len is %lld",
          (long long)model_shape(m)->S);
    CopyTally t = {0};
    Quiet q;
    TRY(quiet_begin(m, cx, &q));
    TRY(quiet_end(m, cx, &q, copy_passes(m, cx, nseq, seed, &t)));
    int64_t n[4] = {t.repeat, t.repeat_hit, t.control, t.control_hit};
    TRY(comm_sum_i64(cx->world, n, 4));
    r->repeat_tokens = n[0];
    r->control_tokens = n[2];
    r->repeat_accuracy = n[0] ? (double)n[1] / (double)n[0] : NAN;
    r->control_accuracy = n[2] ? (double)n[3] / (double)n[2] : NAN;
    r->chance = 1.0 / (double)(model_shape(m)->V - COPY_FIRST_SYMBOL);
    return OK;
}
