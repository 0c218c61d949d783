// cmd_import.c - `tessera import`: a Hugging Face DeepSeek checkpoint becomes one of ours.
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "checkpoint.h"
#include "commands.h"
#include "hf.h"
#include "log.h"
#include "solo.h"
#include "tokenizer.h"

// Nothing is overwritten: `out` must not hold anything.
static Err check_free(const char *out) {
    CHECK(out[0], E_USAGE, "--out: the path is empty");
    DIR *d = opendir(out);
    if (!d) return OK; // what cannot be created is told when it is
    bool is_empty = true;
    for (struct dirent *e; (e = readdir(d));)
        is_empty = is_empty && (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."));
    closedir(d);
    CHECK(is_empty, E_USAGE, "%s is not empty: nothing is overwritten; choose another folder for --out", out);
    return OK;
}

static Err save(Solo *solo, const Weights *from, const Config *c, const char *out) {
    CheckpointInfo info = {.world = 1, .ep = 1};
    char dir[4096];
    if (c->data.tokenizer) {
        Tokenizer *t = NULL;
        TRY(tokenizer_load(&t, c->data.tokenizer));
        snprintf(info.tokenizer_hash, sizeof info.tokenizer_hash, "%s", tokenizer_hash(t));
        tokenizer_free(&t);
    }
    CHECK(snprintf(dir, sizeof dir, "%s/checkpoints", out) < (int)sizeof dir, E_USAGE, "--out is too long");
    Err err = checkpoint_save_from(dir, solo->table, from, &solo->cx, &info, c);
    if (err != OK) rmdir(dir); // empty: the next try may use the same folder
    return err;
}

static Err import(const char *from, const char *out) {
    Safetensors *st = NULL;
    Config *c = NULL;
    Solo solo = {0};
    HfReader *reader = NULL;
    Err err = OK;
    TRY_OR(check_free(out), done);
    TRY_OR(safetensors_open(&st, from), done);
    TRY_OR(hf_import_config(&c, from, st), done);
    TRY_OR(solo_table(&solo, c, 1), done);
    TRY_OR(hf_open(&reader, st, from, solo.table, &solo.shape), done);
    Weights weights = hf_weights(reader);
    TRY_OR(save(&solo, &weights, c, out), done);
    ParamCount n = params_count(&solo.shape);
    log_line("imported %s: %s parameters, %s active per token, %s in %lld MTP modules%s", from,
             text_count((double)n.total).s, text_count((double)n.active).s, text_count((double)n.mtp).s,
             (long long)solo.shape.nmtp, c->data.tokenizer ? ", with its tokenizer" : "");
    log_line("train it with 'tessera train --config %s/checkpoints/step_00000000/config.yaml --init-from %s --run-dir "
             "DIR --set data.train=SHARDS --set train.steps=N', with batch and learning rate of your own; look at it "
             "with 'tessera inspect %s'",
             out, out, out);
done:
    hf_close(&reader);
    solo_close(&solo);
    config_free(c);
    safetensors_close(&st);
    return err;
}

Err cmd_import(int argc, char **argv) {
    static const Flag flags[] = {
        {"from", "HF_DIR", NULL, FLAG_REQUIRED,
         "folder with config.json and safetensors; tokenizer.json is taken along"},
        {"out", "PATH", NULL, FLAG_REQUIRED, "folder to write, new or empty; usable wherever a run directory is"},
    };
    static const Command command = {
        "tessera import",
        "",
        "Reads a Hugging Face DeepSeek-V3 (or V2) checkpoint: F32, BF16, F16, or FP8 with weight_scale_inv, MTP "
        "modules\n"
        "included. The result holds FP32 master weights and router biases, no optimizer state.",
        flags,
        COUNT_OF(flags),
        0,
        0,
    };
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = import(args_get(&a, "from"), args_get(&a, "out"));
    args_free(&a);
    return err;
}
