// cmd_tokenizer.c - `tessera tokenizer train | encode | decode`.
#include "commands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "args.h"
#include "bpe_train.h"
#include "checkpoint_dir.h"
#include "log.h"
#include "read_text.h"
#include "tokenizer.h"

// folder_make: of the file to write, like the folder that `tessera prepare` writes into.
static Err folder_make(const char *file) {
    char folder[4096];
    const char *slash = strrchr(file, '/');
    if (!slash || slash == file) return OK;
    snprintf(folder, sizeof folder, "%.*s", (int)(slash - file), file);
    return ckdir_make(folder);
}

static Err run_train(int argc, char **argv) {
    static const Flag flags[] = {
        {"vocab-size", "N", NULL, FLAG_REQUIRED, "tokens to learn, the 259 fixed ones included"},
        {"out", "FILE", NULL, FLAG_REQUIRED, "the tokenizer.json to write"},
    };
    static const Command command = {
        "tessera tokenizer train",
        "INPUT...",
        "Learns a byte-level BPE vocabulary from text (.jsonl: key \"text\"; both also as .zst) "
        "and writes it as\n"
        "a Hugging Face tokenizer.json. The same text gives the same file.",
        flags,
        COUNT_OF(flags),
        1,
        -1,
    };
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = OK;
    int64_t vocab_size = 0;
    double start = now_seconds();
    TRY_OR(args_int(&a, "vocab-size", BPE_MIN_VOCAB, BPE_MAX_VOCAB, &vocab_size), done);
    TRY_OR(folder_make(args_get(&a, "out")), done);
    TRY_OR(bpe_train(a.operands, a.noperands, (int)vocab_size, args_get(&a, "out")), done);
    log_line("%s: %lld tokens from %d file%s in %.2f s", args_get(&a, "out"), (long long)vocab_size,
             a.noperands, a.noperands == 1 ? "" : "s", now_seconds() - start);
done:
    args_free(&a);
    return err;
}

static Err print_ids(const Args *a, const Tokenizer *t) {
    char *file_text = NULL;
    const char *text = args_get(a, "text");
    size_t n = text ? strlen(text) : 0;
    if (!text) {
        TRY(read_text(a->operands[0], &file_text, &n));
        text = file_text;
    }
    TokenIds ids = {0};
    Err err = OK;
    TRY_OR(tokenizer_append(t, text, n, &ids), done);
    for (int64_t i = 0; i < ids.n; i++) printf(i ? " %d" : "%d", (int)ids.p[i]);
    printf("\n");
    CHECK_OR(!fflush(stdout), done, E_OUTPUT, "cannot write the ids: %s", strerror(errno));
done:
    free(ids.p);
    free(file_text);
    return err;
}

static Err run_encode(int argc, char **argv) {
    static const Flag flags[] = {
        {"tokenizer", "FILE", NULL, FLAG_REQUIRED,
         "a Hugging Face tokenizer.json (byte-level BPE)"},
        {"text", "TEXT", NULL, 0, "what to encode, instead of a file"},
    };
    static const Command command = {"tessera tokenizer encode",
                                    "[FILE]",
                                    "Prints the token ids of a text: of --text, or of FILE ('-' is "
                                    "standard input), on one line.\n"
                                    "No BOS or EOS is added.",
                                    flags,
                                    COUNT_OF(flags),
                                    0,
                                    1};
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = OK;
    Tokenizer *t = NULL;
    bool has_text = args_has(&a, "text");
    CHECK_OR(has_text != (a.noperands == 1), done, E_USAGE,
             "tessera tokenizer encode: expected either --text TEXT or one FILE ('-' is standard "
             "input), found %s",
             has_text ? "both" : "neither");
    TRY_OR(tokenizer_load(&t, args_get(&a, "tokenizer")), done);
    TRY_OR(print_ids(&a, t), done);
done:
    tokenizer_free(&t);
    args_free(&a);
    return err;
}

// The ids in one word, separated by blanks or commas.
static Err read_ids(const char *word, TokenIds *ids) {
    for (const char *p = word; *p;) {
        char *end = NULL;
        errno = 0;
        long id = strtol(p, &end, 10);
        bool is_number = end > p && errno == 0 && id >= 0 && id <= INT32_MAX &&
                         (!*end || strchr(" ,\t\n", *end));
        CHECK(
            is_number, E_USAGE,
            "tessera tokenizer decode: '%.40s' is not a list of token ids, type numbers: 17 4 905",
            word);
        if (ids->n == ids->capacity) {
            int64_t capacity = 2 * ids->capacity + 256;
            int32_t *bigger = realloc(ids->p, (size_t)capacity * sizeof *bigger);
            CHECK(bigger, E_INTERNAL, "out of memory: token ids");
            ids->p = bigger;
            ids->capacity = capacity;
        }
        ids->p[ids->n++] = (int32_t)id;
        p = end + strspn(end, " ,\t\n");
    }
    return OK;
}

static Err print_text(const Args *a, const Tokenizer *t) {
    TokenIds ids = {0};
    char *text = NULL;
    size_t n = 0;
    Err err = OK;
    for (int i = 0; i < a->noperands; i++) TRY_OR(read_ids(a->operands[i], &ids), done);
    TRY_OR(tokenizer_decode(t, ids.p, ids.n, &text, &n), done);
    fwrite(text, 1, n, stdout);
    printf("\n");
    CHECK_OR(!fflush(stdout), done, E_OUTPUT, "cannot write the text: %s", strerror(errno));
done:
    free(ids.p);
    free(text);
    return err;
}

static Err run_decode(int argc, char **argv) {
    static const Flag flags[] = {
        {"tokenizer", "FILE", NULL, FLAG_REQUIRED,
         "a Hugging Face tokenizer.json (byte-level BPE)"},
    };
    static const Command command = {"tessera tokenizer decode",
                                    "ID...",
                                    "Prints the text of token ids, and a line end.",
                                    flags,
                                    COUNT_OF(flags),
                                    1,
                                    -1};
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = OK;
    Tokenizer *t = NULL;
    TRY_OR(tokenizer_load(&t, args_get(&a, "tokenizer")), done);
    TRY_OR(print_text(&a, t), done);
done:
    tokenizer_free(&t);
    args_free(&a);
    return err;
}

Err cmd_tokenizer(int argc, char **argv) {
    static const char *const names[] = {"train", "encode", "decode"};
    static Err (*const run[])(int, char **) = {run_train, run_encode, run_decode};
    const char *name = argc > 1 ? argv[1] : "";
    for (int i = 0; i < COUNT_OF(names); i++) {
        if (!strcmp(name, names[i])) return run[i](argc - 1, argv + 1);
    }
    if (!strcmp(name, "--help") || !strcmp(name, "-h")) {
        printf("usage: tessera tokenizer train|encode|decode [--help]\n\n"
               "  train   learn a byte-level BPE vocabulary from text\n"
               "  encode  text to token ids\n"
               "  decode  token ids to text\n");
        return OK;
    }
    const char *near = args_nearest(name, names, COUNT_OF(names));
    CHECK(near, E_USAGE, "tessera tokenizer: type train, encode or decode after it, found '%s'",
          name);
    FAIL(E_USAGE, "tessera tokenizer: unknown word '%s'; did you mean '%s'?", name, near);
}
