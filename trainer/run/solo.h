// solo.h - a model on one rank without MPI, for commands that look at a checkpoint: dump, eval; or only
// its table of parameters: import, export.
#pragma once
#include "model_memory.h"

typedef struct Solo {
    Boot boot; // one rank, comm self
    Mesh mesh;
    Shape shape;
    Cx cx;
    Model *model;
    Params *table; // of solo_table
} Solo;

// solo_open: memory for passes of c->train.micro_batch sequences of c->train.seq_len tokens, complete or not;
// gradients if with_grad. c->parallel.ep is ignored. Parameters are undefined: load them, then solo_publish. Local.
Err solo_open(Solo *s, const Config *c, bool with_grad, int nthreads) MUST_CHECK;
// solo_table: only s->table, the parameters' names and shapes, with no memory behind them: for what reads Weights.
// Local.
Err solo_table(Solo *s, const Config *c, int nthreads) MUST_CHECK;
// solo_find: the checkpoint directory that PATH, PATH@STEP or a run directory means (newest verified). E_INPUT if
// there is none.
Err solo_find(char *out, size_t n, const char *path) MUST_CHECK;
// solo_publish: compute copies from masters.
Err solo_publish(Solo *s) MUST_CHECK;
// solo_close: accepts a zeroed or half-opened Solo.
void solo_close(Solo *s);
// solo_threads: `asked` if above 0, else what OpenMP found: OMP_NUM_THREADS, or the cores of this process.
int solo_threads(int64_t asked);
