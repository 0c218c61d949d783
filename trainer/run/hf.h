// hf.h - Hugging Face DeepSeek-V2/V3 checkpoints in and out.
//
// A checkpoint is a directory: config.json, model.safetensors (or shards and model.safetensors.index.json) under
// the hub's names with one tensor per expert, optionally tokenizer.json. Weights are [out, in], rotary pairs
// adjacent, exactly as our own parameters, so nothing is permuted. MTP module k is layer num_hidden_layers + k - 1;
// its copies of the embedding and the head are written on export and must agree with the originals on import.
#pragma once
#include "safetensors.h"
#include "weights.h"

// hf_import_config: config.json of `dir` as a Config: section model from the file; train.{steps,global_batch} 1 and
// train.seq_len (at most 4096) because they have no default; data.tokenizer if there is a tokenizer.json. `st`: the
// weights; MTP modules that config.json promises but that are not there (transformers drops them) are
// left out with a warning. Settings that would change the mathematics and that we lack (attention_bias, another
// activation, rotary halves, ...) are E_INPUT naming key, value and what is supported. Local.
Err hf_import_config(Config **out, const char *dir, const Safetensors *st) MUST_CHECK;
// HfReader: the weights of such a directory as a source, read where they are asked for: from F32, BF16, F16, or F8_E4M3
// with NAME_scale_inv (128x128 blocks).
typedef struct HfReader HfReader;
// hf_open: for a table of parameters; all are borrowed. E_INPUT names the tensor that is missing, differently shaped
// (expected and found), of no usable type, unknown, or a copy that differs from its original. *r must be closed,
// whatever it returns. hf_weights: good until hf_close; rows that are not finite are E_INPUT. Local.
Err hf_open(HfReader **r, const Safetensors *st, const char *dir, const Params *p, const Shape *s) MUST_CHECK;
Weights hf_weights(HfReader *r);
// hf_close: accepts NULL; *r = NULL.
void hf_close(HfReader **r);

// Types of the weights in an export; e_score_correction_bias is F32 in all.
typedef enum HfDtype {
    HF_BF16,
    HF_F32,
    HF_FP8 // the linears that have FP8 products (KIND_FP8) in F8_E4M3 with F32 NAME_scale_inv, the rest BF16
} HfDtype;

typedef struct HfExport {
    HfDtype dtype;
    bool without_mtp;      // leave the MTP modules out
    int64_t shard_bytes;   // start a new file before it holds more than this, 0 = 4 GB
    const char *tokenizer; // tokenizer.json to take along, NULL = none
} HfExport;

// hf_export: write the directory `dir` (it appears by one rename, complete; it must not exist or be empty) from `from`,
// whose table is p. FP8 codes and scales are those that training multiplies with (fp8.scaling tile, FP32 weight
// scales): weight_prepare's, of the master rounded to BF16. E_USAGE: `dir` is not empty; E_OUTPUT; E_INPUT of the
// source. Local.
Err hf_export(const char *dir, const Params *p, const Weights *from, const Shape *s, const Config *c, const Cx *cx,
              const HfExport *how) MUST_CHECK;

// hf_write_config: `dir`/config.json, generation_config.json, and, with a tokenizer, tokenizer.json and
// tokenizer_config.json. For hf_export.
Err hf_write_config(const char *dir, const Config *c, const Shape *s, const HfExport *how) MUST_CHECK;
