// generate.h - a text goes on: a prompt through the model once, then token by token on the cache of latents.
#pragma once
#include "sampling.h"
#include "solo.h"
#include "text_stream.h"
#include "tokenizer.h"

typedef enum GenerateEnd {
    GENERATE_LENGTH,   // as many tokens as were asked for
    GENERATE_DOCUMENT, // the token that ends documents
    GENERATE_STOP,     // a text at which to stop
    GENERATE_CONTEXT,  // no position is left
} GenerateEnd;

typedef struct GenerateSpec {
    SamplingRule rule;
    uint64_t seed;      // token i of sample k is a function of the seed, k, i and the logits
    int64_t max_tokens; // of a sample
    int64_t context;    // positions that the model has; prompt and sample lie in them
    const char *const *stop; // [nstop]
    int nstop;
} GenerateSpec;

typedef struct Sample {
    int32_t *ids; // [n] tokens, the last one included that ended it; borrowed, until the next sample
    int64_t n;
    GenerateEnd end;
    double seconds;
} Sample;

typedef struct Generator Generator;

// generate_open: runs the prompt, [n] tokens, through the model in pieces of a micro-batch. `s` is published; `t` and
// what spec points to must stay. An empty prompt is the beginning of a document: what ends the one before stands for
// it, as in training data. Errors: E_USAGE: the prompt fills the context; E_INPUT: the tokenizer is not this model's;
// E_INTERNAL: memory. Local.
Err generate_open(Generator **out, Solo *s, const Tokenizer *t, const GenerateSpec *spec, const int32_t *prompt,
                  int64_t n) MUST_CHECK;
// generate_sample: the k-th continuation of the prompt, its text to the sink as it comes; special tokens are no text.
// Errors: the sink's; E_NUMERIC: logits that are not finite. Local.
Err generate_sample(Generator *g, int64_t k, TextSink sink, void *user, Sample *out) MUST_CHECK;
// generate_prompt: tokens of the prompt as it was run, and the seconds that took.
void generate_prompt(const Generator *g, int64_t *n, double *seconds);
void generate_close(Generator **g);
