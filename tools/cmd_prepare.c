// cmd_prepare.c - `tessera prepare`: text, jsonl and jsonl.zst to token shards.
//
// Every document is encoded and followed by the tokenizer's EOS; BOS is never added, so a document
// is preceded by the EOS of the one before. Documents keep their order: training permutes windows,
// not documents. Either all shards appear or, after an error, none.
#include "commands.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "args.h"
#include "formats.h"
#include "hash.h"
#include "log.h"
#include "tokenizer.h"
#include "tokens.h"

#define PROGRESS_SECONDS 10.0

typedef struct Prepare {
    const Tokenizer *tokenizer;
    const char *dir, *name;
    TokenMeta meta;
    TokenWriter *writer; // of the shard being written, NULL between shards
    int64_t nshards;     // started
    TokenIds ids;
    int64_t docs, empty, tokens, bytes;
    double start, reported;
} Prepare;

static void shard_path(const Prepare *p, int64_t i, char path[PATH_MAX]) {
    snprintf(path, PATH_MAX, "%s/%s-%05lld.h5", p->dir, p->name, (long long)i);
}

static void progress(Prepare *p, bool is_end) {
    double now = now_seconds();
    if (!is_end && now - p->reported < PROGRESS_SECONDS) return;
    p->reported = now;
    double seconds = now - p->start;
    log_line("%s of text, %s document%s, %s tokens, %s/s", text_bytes((double)p->bytes).s,
             text_count((double)p->docs).s, p->docs == 1 ? "" : "s", text_count((double)p->tokens).s,
             text_bytes((double)p->bytes / (seconds > 1e-3 ? seconds : 1e-3)).s);
}

// warn_lines: a whole file that looks like JSON lines under another name, as some programs write them.
static void warn_lines(const Document *doc) {
    if (doc->line > 0 || doc->text[0] != '{' || !memmem(doc->text, doc->nbytes, "}\n{", 3)) return;
    log_warn("%s looks like JSON lines, but its name does not end in .jsonl or .jsonl.zst: it is taken as one text, "
             "braces and keys included", doc->path);
}

static Err add_document(void *cx, const Document *doc) {
    Prepare *p = cx;
    if (doc->nbytes == 0) {
        p->empty++;
        return OK;
    }
    warn_lines(doc);
    p->ids.n = 0;
    TRY(tokenizer_append(p->tokenizer, doc->text, doc->nbytes, &p->ids));
    if (p->ids.n == p->ids.capacity) { // room for EOS
        int32_t *bigger = realloc(p->ids.p, (size_t)(p->ids.n + 1) * sizeof *bigger);
        CHECK(bigger, E_INTERNAL, "%s: out of memory", doc->path);
        p->ids.p = bigger;
        p->ids.capacity = p->ids.n + 1;
    }
    p->ids.p[p->ids.n++] = (int32_t)p->meta.eos_id;
    if (p->writer && token_writer_tokens(p->writer) + p->ids.n > TOKEN_SHARD_MAX) {
        TRY(token_writer_finish(&p->writer, 0));
    }
    if (!p->writer) {
        char path[PATH_MAX];
        shard_path(p, p->nshards, path);
        TRY(token_writer_open(&p->writer, path, &p->meta, p->nshards));
        p->nshards++;
    }
    TRY(token_writer_add(p->writer, p->ids.p, p->ids.n, (int64_t)doc->nbytes,
                         hash64(doc->text, doc->nbytes)));
    p->docs++;
    p->tokens += p->ids.n;
    p->bytes += (int64_t)doc->nbytes;
    progress(p, false);
    return OK;
}

static Err directory_make(const char *dir) {
    char path[PATH_MAX];
    CHECK(*dir && strlen(dir) < sizeof path - 64, E_USAGE, "--out %s: not a usable directory name",
          dir);
    snprintf(path, sizeof path, "%s", dir);
    for (char *slash = strchr(path + 1, '/');; slash = strchr(slash + 1, '/')) {
        if (slash) *slash = '\0';
        CHECK(mkdir(path, 0777) == 0 || errno == EEXIST, E_OUTPUT, "%s: cannot create: %s", path,
              strerror(errno));
        if (!slash) break;
        *slash = '/';
    }
    struct stat st;
    CHECK(stat(dir, &st) == 0 && S_ISDIR(st.st_mode), E_OUTPUT, "%s: not a directory", dir);
    return OK;
}

// Is `file` a shard called `name`: NAME-00000.h5?
static bool is_shard(const char *file, const char *name) {
    size_t n = strlen(name);
    return !strncmp(file, name, n) && file[n] == '-' && strspn(file + n + 1, "0123456789") == 5 &&
           !strcmp(file + n + 6, ".h5");
}

static Err output_is_free(const char *dir, const char *name) {
    CHECK(*name && !strpbrk(name, "/*?[]\\"), E_USAGE, "--name %s: expected a plain file name",
          name);
    DIR *d = opendir(dir);
    if (!d) return OK; // what cannot be created is told when it is
    char first[NAME_MAX + 1] = "";
    int n = 0;
    for (struct dirent *e; (e = readdir(d));) {
        if (!is_shard(e->d_name, name)) continue;
        if (!n++ || strcmp(e->d_name, first) < 0) snprintf(first, sizeof first, "%s", e->d_name);
    }
    closedir(d);
    CHECK(n == 0, E_USAGE,
          "%s/%s is there already (%d shard%s): remove it, or give another --name or --out", dir,
          first, n, n == 1 ? "" : "s");
    return OK;
}

static Err inputs_are_there(const Args *a) {
    for (int i = 0; i < a->noperands; i++) TRY(formats_check(a->operands[i]));
    return OK;
}

static Err meta_make(TokenMeta *m, const Tokenizer *t, const Args *a) {
    m->vocab_size = tokenizer_vocab_size(t);
    m->bos_id = tokenizer_bos(t);
    m->eos_id = tokenizer_eos(t);
    m->pad_id = tokenizer_pad(t);
    CHECK(m->eos_id >= 0, E_INPUT,
          "%s: no end-of-text token under any known name; documents could not be told apart",
          tokenizer_path(t));
    const char *split = args_get(a, "split"), *base = strrchr(a->operands[0], '/');
    CHECK(strlen(split) < sizeof m->split, E_USAGE, "--split: at most %zu characters",
          sizeof m->split - 1);
    snprintf(m->tokenizer_hash, sizeof m->tokenizer_hash, "%s", tokenizer_hash(t));
    snprintf(m->split, sizeof m->split, "%s", split);
    snprintf(m->source_name, sizeof m->source_name,
             a->noperands > 1 ? "%.100s and %d more" : "%.100s", base ? base + 1 : a->operands[0],
             a->noperands - 1);
    return OK;
}

static Err shards_write(Prepare *p, const Args *a) {
    char path[PATH_MAX];
    for (int i = 0; i < a->noperands; i++) {
        int64_t before = p->docs;
        TRY(formats_read(a->operands[i], add_document, p));
        CHECK(p->docs > before, E_INPUT, "%s: no text in it", a->operands[i]);
    }
    TRY(token_writer_finish(&p->writer, p->nshards));
    for (int64_t i = 0; i < p->nshards - 1;
         i++) { // their number was not known when they were closed
        shard_path(p, i, path);
        TRY(tokens_set_shard_count(path, p->nshards));
    }
    return OK;
}

static void shards_remove(Prepare *p) {
    char path[PATH_MAX];
    token_writer_drop(&p->writer);
    for (int64_t i = 0; i < p->nshards; i++) {
        shard_path(p, i, path);
        unlink(path);
    }
}

Err cmd_prepare(int argc, char **argv) {
    static const Flag flags[] = {
        {"tokenizer", "FILE", NULL, FLAG_REQUIRED,
         "a Hugging Face tokenizer.json (byte-level BPE)"},
        {"out", "DIR", NULL, FLAG_REQUIRED, "where to write NAME-00000.h5, NAME-00001.h5, ..."},
        {"name", "NAME", "tokens", 0, "what to call the shards"},
        {"split", "TEXT", "train", 0, "noted in the shards"},
    };
    static const Command command = {
        "tessera prepare",
        "INPUT...",
        "Encodes text (a whole file is one document), .jsonl (one object a line, key \"text\"), or "
        "either\n"
        "compressed as .zst, into token shards. Every document is followed by the tokenizer's EOS; "
        "BOS is\n"
        "not added. Empty documents of a .jsonl are left out.",
        flags,
        COUNT_OF(flags),
        1,
        -1,
    };
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    Err err = OK;
    Tokenizer *t = NULL;
    Prepare p = {.dir = args_get(&a, "out"), .name = args_get(&a, "name")};
    TRY_OR(inputs_are_there(&a), done);
    TRY_OR(output_is_free(p.dir, p.name), done);
    TRY_OR(tokenizer_load(&t, args_get(&a, "tokenizer")), done);
    TRY_OR(meta_make(&p.meta, t, &a), done);
    TRY_OR(directory_make(p.dir), done);
    p.tokenizer = t;
    p.start = p.reported = now_seconds();
    err = shards_write(&p, &a);
    if (err != OK) {
        shards_remove(&p);
        fail_frame(err, __FILE__, __LINE__);
        goto done;
    }
    progress(&p, true);
    if (p.empty > 0)
        log_warn("%lld empty document%s left out", (long long)p.empty, p.empty == 1 ? " was" : "s were");
    log_line("%s/%s-*.h5: %lld shard%s, %.3f bytes per token, tokenizer %s", p.dir, p.name,
             (long long)p.nshards, p.nshards == 1 ? "" : "s", (double)p.bytes / (double)p.tokens,
             p.meta.tokenizer_hash);
done:
    free(p.ids.p);
    tokenizer_free(&t);
    args_free(&a);
    return err;
}
