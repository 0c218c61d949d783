// cmd_dump.c - `tessera dump`: what a checkpoint computes for given tokens, for comparing with other programs.
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "checkpoint.h"
#include "commands.h"
#include "dump.h"
#include "log.h"

typedef struct Request {
    const char *checkpoint, *tokens, *out;
    const char **sets;
    int nsets;
    DumpGrads grads;
    int64_t threads;
} Request;

static Err load(Solo *solo, Config **c, const Request *r, int64_t B, int64_t S) {
    char dir[4096], yaml[4200];
    TRY(solo_find(dir, sizeof dir, r->checkpoint));
    snprintf(yaml, sizeof yaml, "%s/config.yaml", dir);
    TRY(dump_config(c, yaml, r->sets, r->nsets, B, S));
    TRY(solo_open(solo, *c, r->grads != DUMP_NO_GRADS, solo_threads(r->threads)));
    TRY(checkpoint_load(dir, model_params(solo->model), &solo->cx, false));
    return solo_publish(solo);
}

static Err dump(const Request *r) {
    Safetensors *st = NULL;
    int32_t *tokens = NULL;
    int64_t B = 0, S = 0;
    Config *c = NULL;
    Solo solo = {0};
    Dump d = {0};
    Err err = OK;
    TRY_OR(safetensors_open(&st, r->tokens), done);
    TRY_OR(dump_read_tokens(st, r->tokens, &tokens, &B, &S), done);
    TRY_OR(load(&solo, &c, r, B, S), done);
    TRY_OR(dump_compute(&d, &solo, c, tokens, B, S, r->grads), done);
    TRY_OR(dump_write(&d, r->out), done);
    log_line("%s: %lld tensors for %lld sequences of %lld tokens, lm_loss %.9g, loss %.9g", r->out, (long long)d.n,
             (long long)B, (long long)S, (double)dump_find(&d, "lm_loss")->data[0],
             (double)dump_find(&d, "loss")->data[0]);
done:
    dump_free(&d);
    solo_close(&solo);
    config_free(c);
    mem_free(tokens);
    safetensors_close(&st);
    return err;
}

Err cmd_dump(int argc, char **argv) {
    static const Flag flags[] = {
        {"checkpoint", "PATH", NULL, FLAG_REQUIRED,
         "run directory (its newest checkpoint), PATH@STEP, or a checkpoint"},
        {"tokens", "FILE", NULL, FLAG_REQUIRED, "safetensors file with 'tokens' I32 [sequences, positions]"},
        {"out", "FILE", NULL, FLAG_REQUIRED, "safetensors file to write"},
        {"grads", "main|total", NULL, 0,
         "also gradients: of the main loss alone, or of the total with MTP and balance loss"},
        {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT, "override one setting of the checkpoint's config"},
        {"threads", "N", NULL, 0, "threads (default: OMP_NUM_THREADS or all cores)"},
    };
    static const Command command = {
        "tessera dump",
        "",
        "Runs tokens through a checkpoint, in FP32 unless --set precision.mode says otherwise, and writes logits, "
        "hidden\n"
        "states, losses, expert counts and gradients under Hugging Face's names, all F32.",
        flags,
        COUNT_OF(flags),
        0,
        0,
    };
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Request r = {
        .checkpoint = args_get(&a, "checkpoint"), .tokens = args_get(&a, "tokens"), .out = args_get(&a, "out")};
    const char *grads = args_get(&a, "grads");
    if (grads) r.grads = !strcmp(grads, "main") ? DUMP_MAIN : DUMP_TOTAL;
    r.nsets = args_count(&a, "set");
    Err err = OK;
    TRY_OR(args_int(&a, "threads", 1, 4096, &r.threads), done);
    TRY_OR(mem_alloc((void **)&r.sets, (size_t)(r.nsets + 1) * sizeof *r.sets, "settings"), done);
    for (int i = 0; i < r.nsets; i++) r.sets[i] = args_nth(&a, "set", i);
    TRY_OR(dump(&r), done);
done:
    mem_free(r.sets);
    args_free(&a);
    return err;
}
