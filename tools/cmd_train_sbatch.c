// cmd_train_sbatch.c - `tessera train ... --print-sbatch`: launch/slurm.sbatch filled in for this run.
//
// The script is compiled in (sbatch_template.h, made from the file); a line that begins with one of the keys below gets
// a value.
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "boot.h"
#include "cmd_train_sbatch.h"
#include "sbatch_template.h"

#define TEXT 8192

// append: formatted text behind what is there; *ok = false if it does not fit.
static void append(char *text, bool *ok, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void append(char *text, bool *ok, const char *fmt, ...) {
    size_t n = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    int wrote = vsnprintf(text + n, TEXT - n, fmt, ap);
    va_end(ap);
    *ok = *ok && wrote >= 0 && (size_t)wrote < TEXT - n;
}

// append_quoted: a word for the shell, in single quotes where it needs them.
static void append_quoted(char *text, bool *ok, const char *word) {
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=,:@%+";
    if (*word && strspn(word, plain) == strlen(word)) {
        append(text, ok, "%s", word);
        return;
    }
    append(text, ok, "'");
    for (const char *c = word; *c; c++) append(text, ok, *c == '\'' ? "'\\''" : "%c", *c);
    append(text, ok, "'");
}

static void append_flag(char *text, bool *ok, const char *flag, const char *value) {
    if (!value) return;
    append(text, ok, "%s--%s ", text[0] ? " " : "", flag);
    append_quoted(text, ok, value);
}

// The flags of this command that the job is to have as well, as words of a shell.
static void job_flags(char *text, bool *ok, const TrainOptions *o, const SbatchShape *shape) {
    char number[32];
    append_flag(text, ok, "init-from", o->init_from);
    if (o->steps > 0) {
        snprintf(number, sizeof number, "%lld", (long long)o->steps);
        append_flag(text, ok, "steps", number);
    }
    if (o->threads > 0) {
        snprintf(number, sizeof number, "%d", o->threads);
        append_flag(text, ok, "threads", number);
    }
    if (o->device && strcmp(o->device, "auto") != 0) append_flag(text, ok, "device", o->device);
    for (int i = 0; i < o->nsets; i++) append_flag(text, ok, "set", o->sets[i]);
    for (int i = 0; i < shape->ninjects; i++) append_flag(text, ok, "inject", shape->injects[i]);
}

static void absolute(char *out, const char *path) {
    char real[PATH_MAX], here[PATH_MAX];
    if (realpath(path, real)) path = real;
    if (path[0] == '/' || !getcwd(here, sizeof here)) {
        snprintf(out, 2 * PATH_MAX, "%s", path);
    } else {
        snprintf(out, 2 * PATH_MAX, "%s/%s", here, path);
    }
}

// resume_from: the value of --resume, its path absolute; "auto" without one.
static Err resume_from(char *out, const char *resume) {
    char path[PATH_MAX];
    int64_t step = -1;
    if (!run_resume_has_path(resume)) {
        snprintf(out, 2 * PATH_MAX, "%s", resume ? resume : "auto");
        return OK;
    }
    TRY(run_resume_split(resume, path, sizeof path, &step));
    absolute(out, path);
    size_t n = strlen(out);
    if (step >= 0) snprintf(out + n, 2 * PATH_MAX - n, "@%lld", (long long)step);
    return OK;
}

typedef struct Value {
    const char *key; // what the line begins with
    const char *as;  // what it begins with then; NULL: the same
    char text[TEXT];
} Value;

// print_filled: the template, a line that begins with a key followed by its value.
static void print_filled(const Value *v, int n) {
    for (const char *line = sbatch_template; *line;) {
        size_t len = strcspn(line, "\n");
        const Value *hit = NULL;
        for (int i = 0; i < n; i++)
            if (strncmp(line, v[i].key, strlen(v[i].key)) == 0) hit = &v[i];
        if (hit) {
            printf("%s%s\n", hit->as ? hit->as : hit->key, hit->text);
        } else {
            printf("%.*s\n", (int)len, line);
        }
        line += len + (line[len] == '\n');
    }
}

Err train_print_sbatch(const TrainOptions *o, const SbatchShape *shape) {
    enum { NODES, TASKS, CORES, TIME, SIGNAL, NAME, HERE, GPUS, PROGRAM, CONFIG, RUN, RESUME, FLAGS, LEAD, VALUES };
    static Value v[VALUES] = {
        [NODES] = {.key = "#SBATCH --nodes="},       [TASKS] = {.key = "#SBATCH --ntasks-per-node="},
        [CORES] = {.key = "#SBATCH --cpus-per-task="}, [TIME] = {.key = "#SBATCH --time="},
        [SIGNAL] = {.key = "#SBATCH --signal="},     [NAME] = {.key = "#SBATCH --job-name="},
        [HERE] = {.key = "##SBATCH --chdir=", .as = "#SBATCH --chdir="},
        [GPUS] = {.key = "##SBATCH --gpus-per-node="}, [PROGRAM] = {.key = "tessera="},
        [CONFIG] = {.key = "config="},               [RUN] = {.key = "run="},
        [RESUME] = {.key = "resume=auto", .as = "resume="},
        [FLAGS] = {.key = "flags="},                 [LEAD] = {.key = "lead="},
    };
    if (o->device && strcmp(o->device, "cuda") == 0) v[GPUS].as = "#SBATCH --gpus-per-node=";
    CHECK(!run_resume_has_path(o->resume) || o->run_dir, E_USAGE,
          "--print-sbatch: with --resume %s the run's folder must be named: --run-dir", o->resume);
    Config *c = NULL;
    TRY(config_load(&c, o->config_path, o->sets, o->nsets));
    int64_t per_node = shape->ranks_per_node > 0 ? shape->ranks_per_node : max_i64(1, c->parallel.ep / shape->nodes);
    int64_t world = shape->nodes * per_node;
    Err err = config_check_train(c);
    if (err == OK) err = config_check_world(c, (int)world);
    config_free(c);
    TRY(err);
    int64_t cores = o->threads > 0 ? o->threads : max_i64(1, boot_cores() / per_node);
    int64_t lead = o->grace > 0.0 ? (int64_t)o->grace : 120;
    int64_t minutes = o->time_limit > 0.0 ? ((int64_t)o->time_limit + 59) / 60 : 1440;
    CHECK(lead < 60 * minutes, E_USAGE,
          "--print-sbatch: Slurm would signal the job %lld s before its end (--grace), but it is to take %lld s in all "
          "(--time-limit, in whole minutes)",
          (long long)lead, (long long)(60 * minutes));
    char stem[256], run[512], path[2 * PATH_MAX], program[PATH_MAX] = "", flags[TEXT] = "";
    bool ok = true;
    config_name(stem, sizeof stem, o->config_path);
    snprintf(run, sizeof run, "runs/%s", stem);
    if (readlink("/proc/self/exe", program, sizeof program - 1) < 0) snprintf(program, sizeof program, "tessera");
    for (int i = 0; i < VALUES; i++) v[i].text[0] = '\0';
    append(v[NODES].text, &ok, "%lld", (long long)shape->nodes);
    append(v[TASKS].text, &ok, "%lld", (long long)per_node);
    append(v[CORES].text, &ok, "%lld", (long long)cores);
    append(v[TIME].text, &ok, "%lld-%02lld:%02lld:00", (long long)minutes / 1440, (long long)minutes / 60 % 24,
           (long long)minutes % 60);
    append(v[SIGNAL].text, &ok, "B:USR1@%lld", (long long)lead);
    append_quoted(v[NAME].text, &ok, stem);
    absolute(path, ".");
    append_quoted(v[HERE].text, &ok, path);
    append(v[GPUS].text, &ok, "%lld", (long long)per_node);
    append_quoted(v[PROGRAM].text, &ok, program);
    absolute(path, o->config_path);
    append_quoted(v[CONFIG].text, &ok, path);
    absolute(path, o->run_dir ? o->run_dir : run);
    append_quoted(v[RUN].text, &ok, path);
    TRY(resume_from(path, o->resume));
    append_quoted(v[RESUME].text, &ok, path);
    job_flags(flags, &ok, o, shape);
    append_quoted(v[FLAGS].text, &ok, flags);
    append(v[LEAD].text, &ok, "%lld", (long long)lead);
    CHECK(ok, E_USAGE, "--print-sbatch: the command line is too long for a script");
    print_filled(v, VALUES);
    return OK;
}
