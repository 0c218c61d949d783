// evaluate.h - held-out loss, bits per byte, and the in-context copy task.
//
// Evaluation changes nothing that training reads: counters are put back, expert counts zeroed.
#pragma once
#include "loader.h"
#include "model.h"
#include "stop.h"

typedef struct EvalResult {
    double nats;          // sum over scored tokens
    int64_t tokens;       // scored
    int64_t correct;      // of them predicted exactly
    double loss;          // nats / tokens
    int64_t text_bytes;   // of the whole held-out text
    double bits_per_byte; // all windows scored: (nats + ln V for each corpus' first token, which
                          // nothing predicts) / (ln 2 * text_bytes); else NAN
    bool is_stopped;      // given up between two passes: the numbers are not of all windows
} EvalResult;

// evaluate_heldout: non-overlapping windows of seq_len, every token but the first scored once. At
// most `max_windows` windows (0 = all). `corpora`: how many texts the loader holds. `stop` (NULL:
// never) is looked at before every pass. Collective over world.
Err evaluate_heldout(Model *m, Cx *cx, Loader *l, int corpora, int64_t max_windows, Stop *stop,
                     EvalResult *r) MUST_CHECK;

typedef struct CopyResult {
    int64_t repeat_tokens, control_tokens;
    double repeat_accuracy;  // second and later occurrence of a random string
    double control_accuracy; // first occurrence: must stay at chance
    double chance;           // 1 / symbols
} CopyResult;

// copy_sequence: sequence number `index` of the copy task: a random string of n in [8, len/2]
// symbols from [first_symbol, vocab), repeated to fill tokens [len]. Returns n. Pure.
int64_t copy_sequence(int32_t *tokens, int64_t len, int64_t first_symbol, int64_t vocab,
                      uint64_t seed, uint64_t index);
// evaluate_copy: nseq sequences of the copy task (symbols 3 and up). Collective over world.
Err evaluate_copy(Model *m, Cx *cx, int64_t nseq, uint64_t seed, CopyResult *r) MUST_CHECK;
