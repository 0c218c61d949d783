// bpe_train.h - learning a byte-level BPE vocabulary from text.
//
// The text is cut by DeepSeek-V3's three patterns; inside the pieces the most frequent pair of
// neighbours is merged, again and again, ties going to the smaller left id, then the smaller right
// id. So the result depends on the text alone: not on the order of files, on threads or on hashing.
// Ids: 0 BOS, 1 EOS, 2 PAD (DeepSeek's names), 3-258 the 256 bytes in the order of their symbols'
// code points, then the merges in the order learned.
#pragma once
#include "fail.h"

#define BPE_MIN_VOCAB (3 + 256)
#define BPE_MAX_VOCAB 1000000

// bpe_train: learn vocab_size tokens from the files (any form that formats.h reads) and write a
// Hugging Face tokenizer.json. The output file appears whole by a rename or not at all. Local.
// Errors: E_USAGE for a vocab_size out of range; E_INPUT for an input that cannot be read or is
// empty, and for a text that has too few different pairs (one that occurs once is never merged):
// the message says how many tokens it gives; E_OUTPUT if the file cannot be written.
Err bpe_train(const char *const *paths, int npaths, int vocab_size,
              const char *out_json) MUST_CHECK;
