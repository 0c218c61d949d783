// loader.h - batches of token windows from blended corpora, addressed by sample number.
//
// Stateless: loader_batch(first, n) is a function of (corpora, weights, seq_len, D, seed) and the
// sample numbers (see sampler.h), so there is nothing to save but the number of samples consumed,
// and any number of ranks reads the same global batch. Thread-safe: a prefetching thread may call
// it beside another.
//
// Local. Errors: E_CONFIG for weights; E_INPUT for data: missing, damaged, too short for one window, of a tokenizer
// with more tokens than the model has, or (when it is read) a token id that the model does not have.
#pragma once
#include "hash.h"

typedef struct LoaderCorpus {
    const char *path; // shard, directory of *.h5, or pattern (see tokens_open)
    double weight; // share of the samples; all weights 0 = in proportion to the corpora's windows
} LoaderCorpus;

typedef struct LoaderSpec {
    const LoaderCorpus *corpora;
    int ncorpora;
    int64_t seq_len;
    int64_t mtp_depth;  // D: a window is seq_len + 1 + D tokens
    int64_t vocab_size; // of the model: a larger id is an error
    uint64_t seed;
    bool is_eval; // only the sequential functions will be used: a corpus may be shorter than a
                  // window
} LoaderSpec;

typedef struct Loader Loader;

// What was read: how many samples, and the sum (modulo 2^64) over them of a 64-bit hash of (number, corpus,
// window). Parts that different ranks read add up in any order, and the whole equals loader_proof(0, n) only if
// exactly the samples 0 .. n-1 were read, each once, each where this data order has it.
typedef struct ReadProof {
    int64_t samples;
    uint64_t hash;
} ReadProof;

Err loader_open(Loader **l, const LoaderSpec *spec) MUST_CHECK;
// loader_close: *l = NULL; accepts NULL.
void loader_close(Loader **l);

// loader_batch: samples first .. first+n-1. tokens [n, seq_len+1+D] i32. doc_start [n, seq_len] i32
// or NULL: for each position the first position, inside the window, of the document it belongs to.
// read: what was read is added to it; NULL = not recorded.
Err loader_batch(Loader *l, int64_t first, int64_t n, int32_t *tokens, int32_t *doc_start,
                 ReadProof *read) MUST_CHECK;
// loader_proof: what reading samples first .. first+n-1 adds, without reading them: some 100 ns each.
ReadProof loader_proof(Loader *l, int64_t first, int64_t n);
// loader_windows: windows of one epoch, all corpora. loader_epoch: passes over corpus k after
// `samples` samples, as a fraction.
int64_t loader_windows(const Loader *l);
double loader_epoch(Loader *l, int k, int64_t samples);

// Evaluation: the corpora one after another, each cut into windows at 0, seq_len, 2*seq_len, ...
// The last window of a corpus is padded, so every token but the first of each corpus (nothing comes
// before it) is the next-token target of exactly one position.
//
// loader_eval_windows: how many there are: sum over corpora of ceil((tokens - 1) / seq_len).
int64_t loader_eval_windows(const Loader *l);
// loader_eval_batch: windows first .. first+n-1. tokens [n, seq_len+1+D] as above, padded with
// pad_id (or 0); valid [n]: positions p whose next token p+1 is real, 1 .. seq_len; avail [n] or
// NULL: tokens of the window that are real, valid+1 .. seq_len+1+D, so that the target of MTP depth
// k at position p, token p+1+k, is real where p + 1 + k < avail. doc_start as above.
Err loader_eval_batch(Loader *l, int64_t first, int64_t n, int32_t *tokens, int32_t *valid,
                      int32_t *avail, int32_t *doc_start) MUST_CHECK;
// loader_tokens, loader_text_bytes: tokens and bytes of text of all corpora: bits per byte =
// nats / (ln 2 * text bytes).
int64_t loader_tokens(const Loader *l);
int64_t loader_text_bytes(const Loader *l);

// loader_fingerprint: XXH3-128 text over everything sample contents and order depend on but the
// seed: format version, shard contents in order, weights, seq_len, D.
HashText loader_fingerprint(const Loader *l);
// loader_tokenizer_hash: of the tokenizer that made corpus 0; all corpora must have the same.
const char *loader_tokenizer_hash(const Loader *l);
