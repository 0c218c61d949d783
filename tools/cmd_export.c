// cmd_export.c - `tessera export`: a checkpoint as a Hugging Face DeepSeek model.
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "checkpoint.h"
#include "commands.h"
#include "hf.h"
#include "solo.h"

static Err export(const char *path, const char *to, const HfExport *wanted) {
    char dir[4096], tokenizer[4200];
    Config *c = NULL;
    Solo solo = {0};
    CkReader *reader = NULL;
    HfExport how = *wanted;
    Err err = OK;
    TRY_OR(solo_find(dir, sizeof dir, path), done);
    TRY_OR(checkpoint_read_config(dir, &c), done);
    snprintf(tokenizer, sizeof tokenizer, "%s/tokenizer.json", dir);
    if (access(tokenizer, F_OK) == 0) how.tokenizer = tokenizer;
    TRY_OR(solo_table(&solo, c, solo_threads(0)), done);
    TRY_OR(checkpoint_open(&reader, dir, solo.table, &solo.cx), done);
    Weights from = checkpoint_weights(reader);
    TRY_OR(hf_export(to, solo.table, &from, &solo.shape, c, &solo.cx, &how), done);
done:
    checkpoint_close(&reader);
    solo_close(&solo);
    config_free(c);
    return err;
}

Err cmd_export(int argc, char **argv) {
    static const Flag flags[] = {
        {"checkpoint", "PATH", NULL, FLAG_REQUIRED,
         "run directory (its newest checkpoint), PATH@STEP, or a checkpoint"},
        {"to", "HF_DIR", NULL, FLAG_REQUIRED, "folder to write, new or empty"},
        {"dtype", "bf16|fp8|f32", "bf16", 0,
         "type of the weights; fp8: linears in F8_E4M3 with F32 scales of 128x128 blocks, the rest BF16; "
         "e_score_correction_bias is always F32"},
        {"no-mtp", NULL, NULL, 0, "leave out the multi-token prediction modules, which transformers ignores"},
    };
    static const Command command = {
        "tessera export",
        "",
        "Writes a checkpoint as a Hugging Face DeepSeek-V3 model: config.json, safetensors under the hub's names "
        "(files of at\n"
        "most 4 GB with an index), generation_config.json, and the tokenizer if the checkpoint has one.",
        flags,
        COUNT_OF(flags),
        0,
        0,
    };
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    const char *dtype = args_get(&a, "dtype");
    HfExport how = {.dtype = !strcmp(dtype, "f32") ? HF_F32 : !strcmp(dtype, "fp8") ? HF_FP8 : HF_BF16,
                    .without_mtp = args_has(&a, "no-mtp")};
    Err err = export(args_get(&a, "checkpoint"), args_get(&a, "to"), &how);
    args_free(&a);
    return err;
}
