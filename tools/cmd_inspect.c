// cmd_inspect.c - `tessera inspect PATH`: what a run, a checkpoint, token shards or a tensor file
// hold.
//
// Everything that has a hash is read and compared; what has none is at least read to its end.
// Damage ends the command with code 65 after everything else has been shown.
#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "args.h"
#include "checkpoint.h"
#include "checkpoint_dir.h"
#include "commands.h"
#include "inspect_ledger.h"
#include "log.h"
#include "manifest.h"
#include "safetensors.h"
#include "tokens.h"

#define STAGE_BYTES ((int64_t)8 << 20)

static const Command command = {
    "tessera inspect",
    "PATH",
    "Shows what a run directory, checkpoint, token shard (or folder of shards), tensor file or\n"
    "safetensors file holds, and verifies its hashes; of RUN_DIR/ledger or a file in it, what each\n"
    "rank was in last. Ends with 65 if something is damaged.",
    NULL,
    0,
    1,
    1};

static bool has(const char *dir, const char *name) {
    char path[CKDIR_PATH + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return access(path, F_OK) == 0;
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

static void print_shape(int ndim, const int64_t *shape) {
    char text[256] = "[";
    size_t at = 1;
    for (int d = 0; d < ndim; d++) {
        at += (size_t)snprintf(text + at, sizeof text - at, d > 0 ? ", %lld" : "%lld",
                               (long long)shape[d]);
    }
    snprintf(text + at, sizeof text - at, "]");
    printf("%-22s", text);
}

// ---- checkpoints and runs ----------------------------------------------------------------------

static void print_manifest(const Manifest *m) {
    int64_t bytes = 0, params = 0;
    for (int64_t i = 0; i < m->nfiles; i++) bytes += m->files[i].bytes;
    for (int64_t i = 0; i < m->ntensors; i++) {
        if (ends_with(m->tensors[i].name, "/master"))
            params += manifest_rows(m, i) * manifest_cols(m, i);
    }
    printf("  step %lld, %lld samples, %lld tokens\n", (long long)m->step, (long long)m->samples,
           (long long)m->tokens);
    if (m->skipped > 0)
        printf("  %lld of the samples left no trace, their batches were not finite: %s\n", (long long)m->skipped,
               m->skipped_ranges);
    printf("  %lld parameters in %lld tensors, %s in %lld files\n", (long long)params,
           (long long)m->ntensors, text_bytes((double)bytes).s, (long long)m->nfiles);
    printf("  written %s by %d rank%s, expert-parallel size %d\n", m->created, m->world,
           m->world == 1 ? "" : "s", m->ep);
    printf("  data fingerprint %s\n", m->data_fingerprint[0] ? m->data_fingerprint : "none");
    if (m->read_samples >= 0)
        printf("  data order       seed %lld; %lld samples read, hash %016llx\n", (long long)m->seed,
               (long long)m->read_samples, (unsigned long long)m->read_hash);
    printf("  tokenizer        %s\n", m->tokenizer_hash[0] ? m->tokenizer_hash : "none");
}

static void print_contents(const Manifest *m) {
    printf("files\n");
    for (int64_t i = 0; i < m->nfiles; i++) {
        printf("  %-20s %14lld bytes  %s\n", m->files[i].name, (long long)m->files[i].bytes,
               hash_text(m->files[i].hash).s);
    }
    printf("tensors\n");
    int64_t at = 0;
    for (int64_t i = 0; i < m->ntensors; i++) {
        int64_t n = 0;
        for (; at < m->npieces && m->pieces[at].tensor == i; at++) n++;
        printf("  %-4s ", dtype_name(m->tensors[i].dtype));
        print_shape(m->tensors[i].ndim, m->tensors[i].shape);
        printf(" %s (%lld piece%s)\n", m->tensors[i].name, (long long)n, n == 1 ? "" : "s");
    }
}

static Err inspect_checkpoint(const char *path) {
    Manifest *m = NULL;
    printf("checkpoint %s\n", path);
    TRY(manifest_read(&m, path));
    print_manifest(m);
    print_contents(m);
    int64_t nfiles = m->nfiles, npieces = m->npieces;
    manifest_free(&m);
    fflush(stdout);
    TRY(checkpoint_verify(path));
    printf("verified: %lld files and %lld pieces of tensors have their hashes\n", (long long)nfiles,
           (long long)npieces);
    return OK;
}

// The last whole line of a file, "" if there is none.
static void last_line(char *out, size_t n, const char *path, int64_t *lines) {
    out[0] = '\0';
    *lines = 0;
    FILE *f = fopen(path, "re");
    if (!f) return;
    char *line = NULL;
    size_t cap = 0;
    for (ssize_t got; (got = getline(&line, &cap, f)) > 0 && line[got - 1] == '\n'; (*lines)++) {
        line[got - 1] = '\0';
        snprintf(out, n, "%s", line);
    }
    free(line);
    fclose(f);
}

// One line per checkpoint; the first damage found is the result.
static Err inspect_list(const char *dir) {
    CkEntry *list = NULL;
    int n = 0;
    TRY(ckdir_list(dir, &list, &n));
    printf("checkpoints in %s: %d\n", dir, n);
    Err worst = OK;
    char why[1024] = "";
    for (int i = 0; i < n; i++) {
        char path[CKDIR_PATH + 64];
        snprintf(path, sizeof path, "%s/%s", dir, list[i].name);
        Err err = checkpoint_verify(path);
        printf("  %s  %s\n", list[i].name, err == OK ? "verified" : fail_message());
        fflush(stdout);
        if (err != OK && worst == OK) {
            worst = err;
            snprintf(why, sizeof why, "%s", fail_message());
        }
    }
    free(list);
    CHECK(worst == OK, worst, "%s", why);
    return OK;
}

static Err inspect_run(const char *path) {
    char file[CKDIR_PATH + 64], dir[CKDIR_PATH + 64];
    static char line[8192];
    int64_t lines;
    printf("run %s\n", path);
    snprintf(file, sizeof file, "%s/metrics.jsonl", path);
    last_line(line, sizeof line, file, &lines);
    printf("  metrics.jsonl: %lld steps%s\n", (long long)lines, lines > 0 ? ", the last one" : "");
    char *sites = strstr(line, ",\"fp8_health\":"), *gemms = strstr(line, ",\"fp8_shadow\":");
    if (sites) strcpy(sites, "}"); // the long arrays are for programs
    else if (gemms) strcpy(gemms, "}");
    if (lines > 0) printf("    %s\n", line);
    snprintf(dir, sizeof dir, "%s/checkpoints", path);
    return inspect_list(dir);
}

// ---- token shards ------------------------------------------------------------------------------

static Err print_tokens(const Tokens *t) {
    const TokenMeta *m = tokens_meta(t);
    printf("  %d shard%s, %lld tokens, %lld documents, %lld bytes of text (%.3f bytes per token)\n",
           tokens_shards(t), tokens_shards(t) == 1 ? "" : "s", (long long)tokens_count(t),
           (long long)tokens_docs(t), (long long)tokens_text_bytes(t),
           tokens_count(t) > 0 ? (double)tokens_text_bytes(t) / (double)tokens_count(t) : 0.0);
    printf("  vocabulary %lld, bos %lld, eos %lld, pad %lld\n", (long long)m->vocab_size,
           (long long)m->bos_id, (long long)m->eos_id, (long long)m->pad_id);
    printf("  tokenizer   %s\n  source      %s%s%s\n  fingerprint %s\n", m->tokenizer_hash,
           m->source_name, m->split[0] ? ", split " : "", m->split, tokens_fingerprint(t).s);
    fflush(stdout);
    TRY(tokens_verify(t));
    printf("verified: every dataset has its hash\n");
    return OK;
}

static Err inspect_tokens(const char *path) {
    Tokens *t = NULL;
    printf("token shards %s\n", path);
    TRY(tokens_open(&t, &path, 1));
    Err err = print_tokens(t);
    tokens_close(&t);
    return err;
}

// ---- tensor files ------------------------------------------------------------------------------

// Reads a tensor to its end and prints the hash of its values.
static Err print_tensor(TensorFile *f, const TensorInfo *info, void *stage, HashStream *hash) {
    int64_t row_bytes = max_i64(info->cols * (int64_t)dtype_bytes(info->dtype), 1);
    CHECK(row_bytes <= STAGE_BYTES, E_INPUT, "tensor %s has rows of %lld bytes", info->name,
          (long long)row_bytes);
    int64_t step = STAGE_BYTES / row_bytes;
    for (int64_t at = 0; at < info->rows; at += step) {
        int64_t n = min_i64(step, info->rows - at);
        TRY(tensorfile_read_rows(f, info->name, info->dtype, at, n, stage));
        hash_stream_add(hash, stage, (size_t)(n * info->cols) * dtype_bytes(info->dtype));
    }
    printf("  %-4s ", dtype_name(info->dtype));
    print_shape(info->ndim, info->shape);
    printf(" %s %s%s\n", hash_text(hash_stream_end(hash)).s, info->name,
           info->is_virtual ? " (virtual)" : "");
    return OK;
}

static Err print_tensors(TensorFile *f) {
    TensorInfo *list = NULL;
    int64_t n = 0;
    void *stage = NULL;
    TRY(tensorfile_list(f, &list, &n));
    Err err = mem_alloc(&stage, STAGE_BYTES, "staging buffer");
    printf("  %lld tensors: type, shape, hash of the values, name\n", (long long)n);
    for (int64_t i = 0; i < n && err == OK; i++) {
        HashStream *hash = NULL;
        err = hash_stream_new(&hash);
        if (err == OK) err = print_tensor(f, &list[i], stage, hash);
        hash_stream_free(&hash);
    }
    free(list);
    mem_free(stage);
    return err;
}

// A file of a checkpoint is compared with the manifest beside it.
static Err check_beside(const char *path, bool *is_verified) {
    char dir_text[CKDIR_PATH], base_text[CKDIR_PATH];
    snprintf(dir_text, sizeof dir_text, "%s", path);
    snprintf(base_text, sizeof base_text, "%s", path);
    const char *dir = dirname(dir_text), *base = basename(base_text);
    if (!has(dir, MANIFEST_NAME)) return OK;
    Manifest *m = NULL;
    TRY(manifest_read(&m, dir));
    Err err = OK;
    for (int64_t i = 0; i < m->nfiles && err == OK; i++) {
        if (strcmp(m->files[i].name, base) != 0) continue;
        err = manifest_check_file(m, dir, i);
        *is_verified = err == OK;
    }
    manifest_free(&m);
    return err;
}

// What the file says it is, "" if nothing.
static Err format_of(TensorFile *f, char *format, size_t n) {
    bool there = false;
    format[0] = '\0';
    TRY(tensorfile_has_key(f, NULL, "format", &there));
    if (there) TRY(tensorfile_get_text(f, NULL, "format", format, n));
    return OK;
}

static Err inspect_hdf5(const char *path) {
    TensorFile *f = NULL;
    char format[64];
    bool is_verified = false;
    TRY(check_beside(path, &is_verified)); // first: the library may not survive a damaged file
    TRY(tensorfile_open(&f, path));
    Err err = format_of(f, format, sizeof format);
    if (err == OK && strcmp(format, "moe-tokens") == 0) {
        tensorfile_drop(&f);
        return inspect_tokens(path);
    }
    if (err == OK) {
        printf("tensor file %s\n", path);
        err = print_tensors(f);
    }
    tensorfile_drop(&f);
    TRY(err);
    if (is_verified) printf("verified: the file has the hash that the manifest beside it says\n");
    return OK;
}

static Err inspect_safetensors(const char *path) {
    Safetensors *st = NULL;
    TRY(safetensors_open(&st, path));
    int64_t n = safetensors_count(st), elements = 0;
    printf("safetensors %s\n", path);
    for (int64_t i = 0; i < n; i++) {
        const StTensor *t = safetensors_at(st, i);
        printf("  %-8s ", st_type_name(t->dtype));
        print_shape(t->ndim, t->shape);
        printf(" %s\n", t->name);
        elements += t->rows * t->cols;
    }
    printf(
        "%lld tensors, %lld elements (the format has no hashes; header and sizes are consistent)\n",
        (long long)n, (long long)elements);
    safetensors_close(&st);
    return OK;
}

// ---- which is it -------------------------------------------------------------------------------

static bool holds_shards(const char *path) {
    DIR *d = opendir(path);
    bool is_found = false;
    for (struct dirent *e; d && !is_found && (e = readdir(d));)
        is_found = ends_with(e->d_name, ".h5");
    if (d) closedir(d);
    return is_found;
}

static Err inspect_folder(const char *path) {
    if (has(path, MANIFEST_NAME)) return inspect_checkpoint(path);
    if (has(path, "metrics.jsonl") || has(path, "checkpoints")) return inspect_run(path);
    if (has(path, "model.safetensors") || has(path, "model.safetensors.index.json"))
        return inspect_safetensors(path);
    CkEntry *list = NULL;
    int n = 0;
    TRY(ckdir_list(path, &list, &n));
    free(list);
    if (n > 0) return inspect_list(path);
    CHECK(!has(path, "index.h5"), E_INPUT,
          "%s/%s is missing: this was a checkpoint, or never became one", path, MANIFEST_NAME);
    if (holds_shards(path)) return inspect_tokens(path);
    if (has(path, "rank_00000.bin")) return inspect_ledgers(path);
    FAIL(E_INPUT,
         "%s is neither a run, a checkpoint, a folder of token shards nor one of safetensors",
         path);
}

static Err inspect(const char *path) {
    struct stat st;
    CHECK(stat(path, &st) == 0, E_INPUT, "cannot read %s: %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode)) return inspect_folder(path);
    FILE *f = fopen(path, "re");
    CHECK(f, E_INPUT, "cannot read %s: %s", path, strerror(errno));
    char head[8] = "";
    size_t n = fread(head, 1, sizeof head, f);
    fclose(f);
    if (n == 8 && memcmp(head, "\x89HDF\r\n\x1a\n", 8) == 0) return inspect_hdf5(path);
    if (n == 8 && memcmp(head, "TSLEDGER", 8) == 0) return inspect_ledger(path);
    if (ends_with(path, ".safetensors")) return inspect_safetensors(path);
    CHECK(!ends_with(path, ".h5"), E_INPUT, "%s is damaged: not an HDF5 file", path);
    FAIL(E_INPUT, "%s is neither a tensor file, a token shard (HDF5) nor a .safetensors file",
         path);
}

Err cmd_inspect(int argc, char **argv) {
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    char path[CKDIR_PATH];
    snprintf(path, sizeof path, "%s", a.operands[0]);
    for (size_t n = strlen(path); n > 1 && path[n - 1] == '/';) path[--n] = '\0';
    Err err = inspect(path);
    fflush(stdout);
    args_free(&a);
    return err;
}
