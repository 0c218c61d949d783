// dump.h - everything a model computes for given tokens, by name, for comparing with any other implementation.
//
// Names and shapes, all F32, for tokens [B,S], D MTP modules, L main layers:
//   logits [B,S,V]; mtp_logits.<k> [B,S-k,V], k = 1..D; hidden.<layer> [B,S,D] (after blocks 0..L-1), [B,S-k,D]
//   (block L+k-1 = module k); counts.<layer> [E]; lm_loss [] mean over B*(S-1) targets; mtp_loss.<k> [] mean over
//   B*(S-1-k); balance_loss [] = seq_alpha * sum over MoE blocks of the mean over sequences; loss [] = lm_loss +
//   weight/D * sum of mtp_loss + balance_loss; grad.<Hugging Face name>, unclipped: of lm_loss (main) or of loss
//   (total). Shared tables have one gradient, under the main name.
#pragma once
#include "safetensors.h"
#include "solo.h"

typedef enum DumpGrads { DUMP_NO_GRADS, DUMP_MAIN, DUMP_TOTAL } DumpGrads;

typedef struct DumpTensor {
    char name[128];
    int ndim; // 0 = a scalar
    int64_t shape[3];
    int64_t n;   // numbers
    float *data; // [n]
} DumpTensor;

typedef struct Dump {
    DumpTensor *t;
    int64_t n, room;
} Dump;

// dump_config: the settings of a dump of tokens [B,S]: the config.yaml at `path` with precision.mode fp32, then
// `sets`, then one rank and the size of the batch. The weight of the MTP loss and alpha are the config's. E_CONFIG.
// Local.
Err dump_config(Config **out, const char *path, const char *const *sets, int nsets, int64_t B,
                int64_t S) MUST_CHECK;
// dump_compute: one pass. `s` was opened with_grad unless grads is DUMP_NO_GRADS, and published. Errors: E_INPUT: a
// token outside the vocabulary (row and column), S too short (2 + D); E_NUMERIC: a loss that is not finite. Local.
Err dump_compute(Dump *out, Solo *s, const Config *c, const int32_t *tokens, int64_t B, int64_t S,
                 DumpGrads grads) MUST_CHECK;
// dump_find: NULL if there is none.
const DumpTensor *dump_find(const Dump *d, const char *name);
// dump_write: as one safetensors file. E_OUTPUT.
Err dump_write(const Dump *d, const char *path) MUST_CHECK;
void dump_free(Dump *d);
// dump_read_tokens: `tokens` I32 (or I64) [B,S] of a safetensors file; *tokens from mem_alloc. E_INPUT. Local.
Err dump_read_tokens(const Safetensors *st, const char *path, int32_t **tokens, int64_t *B, int64_t *S) MUST_CHECK;
