// drive.c - see drive.h.
#include "drive.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_WORDS 128
#define SHOWN 65536 // how much of the end of an output a failure shows

extern char **environ;

static struct {
    char program[4096], source[4096], dir[128];
    int njobs;
    char **texts; // [ntexts] outputs of jobs
    int ntexts;
} drive;

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void nap(void) {
    struct timespec t = {0, 5000000};
    nanosleep(&t, NULL);
}

// ---- the program and the folder -----------------------------------------------------------------

void drive_init(int argc, char **argv) {
    if (argc != 3 || !realpath(argv[1], drive.program) || !realpath(argv[2], drive.source)) {
        fprintf(stderr, "usage: %s PROGRAM SOURCE_FOLDER\n", argv[0]);
        exit(2);
    }
    snprintf(drive.dir, sizeof drive.dir, "/tmp/tessera-train-XXXXXX");
    if (!mkdtemp(drive.dir)) {
        perror(drive.dir);
        exit(2);
    }
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk) {
    (void)st;
    (void)type;
    (void)walk;
    return remove(path);
}

int drive_done(int failed) {
    for (int i = 0; i < drive.ntexts; i++) free(drive.texts[i]);
    free(drive.texts);
    if (nftw(drive.dir, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0) perror(drive.dir);
    return failed;
}

const char *drive_dir(void) {
    return drive.dir;
}

const char *drive_source(void) {
    return drive.source;
}

const char *drive_program(void) {
    return drive.program;
}

const char *tiny(void) {
    static char text[sizeof drive.source + 40];
    snprintf(text, sizeof text, "--config %s/configs/tiny.yaml", drive.source);
    return text;
}

// ---- processes ----------------------------------------------------------------------------------

static int split_words(char *line, char **words, int max) {
    int n = 0;
    for (char *save = NULL, *w = strtok_r(line, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        assert_true(n + 1 < max);
        words[n++] = w;
    }
    words[n] = NULL;
    return n;
}

static void start(Job *j, int64_t max_file, int ranks, const char *fmt, va_list ap) {
    char words_text[sizeof j->line], *words[MAX_WORDS];
    memset(j, 0, sizeof *j);
    j->out = j->err = "";
    int at = ranks > 1 ? snprintf(j->line, sizeof j->line, "mpirun -q -n %d ", ranks) : 0;
    at += snprintf(j->line + at, sizeof j->line - (size_t)at, "%s ", drive.program);
    at += vsnprintf(j->line + at, sizeof j->line - (size_t)at, fmt, ap);
    assert_true(at < (int)sizeof j->line);
    strcpy(words_text, j->line);
    split_words(words_text, words, MAX_WORDS);
    snprintf(j->out_path, sizeof j->out_path, "%s/job%d.out", drive.dir, drive.njobs);
    snprintf(j->err_path, sizeof j->err_path, "%s/job%d.err", drive.dir, drive.njobs++);

    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, j->out_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    posix_spawn_file_actions_addopen(&files, 2, j->err_path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    struct rlimit was, is;
    getrlimit(RLIMIT_FSIZE, &was);
    is = was;
    if (max_file > 0) {
        is.rlim_cur = (rlim_t)max_file;
        signal(SIGXFSZ, SIG_IGN); // inherited: the write fails instead
        setrlimit(RLIMIT_FSIZE, &is);
    }
    j->started = seconds_now();
    int rc = posix_spawnp(&j->pid, words[0], &files, NULL, words, environ);
    setrlimit(RLIMIT_FSIZE, &was);
    signal(SIGXFSZ, SIG_DFL);
    posix_spawn_file_actions_destroy(&files);
    if (rc != 0) fail_msg("cannot start %s: %s", j->line, strerror(rc));
}

void job_start(Job *j, int ranks, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    start(j, 0, ranks, fmt, ap);
    va_end(ap);
}

void job_start_limited(Job *j, int64_t max_file, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    start(j, max_file, 1, fmt, ap);
    va_end(ap);
}

static pid_t parent_of(pid_t pid) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = '\0';
    char *end = strrchr(text, ')'); // the name may hold anything
    int parent = 0;
    return end && sscanf(end + 1, " %*c %d", &parent) == 1 ? parent : 0;
}

pid_t job_rank(const Job *j, int index) {
    DIR *d = opendir("/proc");
    pid_t found = 0;
    if (!d) return 0;
    for (struct dirent *e; !found && (e = readdir(d));) {
        if (!isdigit((unsigned char)e->d_name[0])) continue;
        pid_t pid = atoi(e->d_name);
        if (parent_of(pid) == j->pid && index-- == 0) found = pid;
    }
    closedir(d);
    return found;
}

// A limit was passed. The ranks first: nobody else would end them once mpirun is gone.
static void end_job(Job *j) {
    pid_t ranks[64];
    int n = 0;
    while (n < 64 && (ranks[n] = job_rank(j, n)) != 0) n++;
    for (int i = 0; i < n; i++) kill(ranks[i], SIGKILL);
    kill(j->pid, SIGKILL);
}

// output_of: the whole file; a fast machine writes more lines than any fixed end of it holds.
static const char *output_of(const char *path) {
    size_t n = 0;
    char *text = read_file(path, &n);
    char **texts = realloc(drive.texts, (size_t)(drive.ntexts + 1) * sizeof *texts);
    assert_non_null(texts);
    drive.texts = texts;
    return texts[drive.ntexts++] = text;
}

static bool has_ended(Job *j) {
    int status = 0;
    pid_t got = j->pid ? waitpid(j->pid, &status, WNOHANG) : 0;
    if (got != j->pid || got == 0) return j->pid == 0;
    j->seconds = seconds_now() - j->started;
    j->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    j->pid = 0;
    j->out = output_of(j->out_path);
    j->err = output_of(j->err_path);
    return true;
}

static const char *end_of(const char *text) {
    size_t n = strlen(text);
    return n > SHOWN ? text + n - SHOWN : text;
}

// cmocka's own messages end after a thousand characters.
static void show(const Job *j) {
    fprintf(stderr, "%s\n%s%s", j->line, end_of(j->out), end_of(j->err));
}

int job_wait(Job *j, double limit) {
    while (!has_ended(j)) {
        if (!j->is_timed_out && seconds_now() - j->started > limit) {
            j->is_timed_out = true;
            end_job(j);
        }
        nap();
    }
    if (!j->is_timed_out) return j->code;
    show(j);
    fail_msg("still running after %.0f s", limit);
    return -1;
}

void job_signal(const Job *j, int sig) {
    assert_true(j->pid > 0);
    assert_int_equal(kill(j->pid, sig), 0); // an ended one that was not waited for still takes it
}

int run(Job *j, int ranks, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    start(j, 0, ranks, fmt, ap);
    va_end(ap);
    return job_wait(j, 300);
}

void run_ok(int ranks, const char *fmt, ...) {
    static Job j;
    va_list ap;
    va_start(ap, fmt);
    start(&j, 0, ranks, fmt, ap);
    va_end(ap);
    job_wait(&j, 300);
    assert_ends(&j, 0);
}

void assert_says(const Job *j, const char *text) {
    if (strstr(j->out, text) || strstr(j->err, text)) return;
    show(j);
    fail_msg("\"%s\" is not in the output", text);
}

void assert_ends(const Job *j, int code) {
    if (j->code == code) return;
    show(j);
    fail_msg("ended with %d, not %d", j->code, code);
}

// ---- files --------------------------------------------------------------------------------------

const char *path_of(const char *fmt, ...) {
    static char paths[16][512];
    static int next;
    char *p = paths[next++ % 16];
    int at = snprintf(p, sizeof paths[0], "%s/", drive.dir);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(p + at, sizeof paths[0] - (size_t)at, fmt, ap);
    va_end(ap);
    return p;
}

bool has_file(const char *path) {
    return access(path, F_OK) == 0;
}

char *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot read %s: %s", path, strerror(errno));
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    char *text = malloc((size_t)size + 1);
    assert_non_null(text);
    *n = fread(text, 1, (size_t)size, f);
    text[*n] = '\0';
    fclose(f);
    return text;
}

void write_file(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f) fail_msg("cannot write %s: %s", path, strerror(errno));
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

void copy_file(const char *from, const char *to) {
    size_t n = 0;
    char *data = read_file(from, &n);
    write_file(to, data, n);
    free(data);
}

// ---- metrics ------------------------------------------------------------------------------------

static int count_lines(const char *path) {
    FILE *f = fopen(path, "r");
    int n = 0;
    if (!f) return 0;
    for (int c; (c = fgetc(f)) != EOF;) n += c == '\n';
    fclose(f);
    return n;
}

void wait_for_step(Job *j, const char *run_dir, int step, double limit) {
    char path[600];
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    double start_time = seconds_now();
    while (count_lines(path) < step) {
        if (has_ended(j)) {
            show(j);
            fail_msg("ended with %d before step %d", j->code, step);
        }
        if (seconds_now() - start_time > limit) {
            end_job(j);
            job_wait(j, limit);
            fail_msg("no step %d after %.0f s", step, limit);
        }
        nap();
    }
}

Steps steps_read(const char *run_dir) {
    Steps s = {0};
    char path[600];
    size_t size = 0;
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    s.text = read_file(path, &size);
    s.line = calloc(size / 2 + 1, sizeof *s.line);
    assert_non_null(s.line);
    for (char *at = s.text; *at;) {
        char *end = strchr(at, '\n');
        if (!end || *at != '{' || end[-1] != '}') fail_msg("%s: line %d is torn: %s", path, s.n + 1, at);
        *end = '\0';
        int step = (int)json_number(at, "step");
        if (s.n == 0) s.first = step;
        if (step != s.first + s.n) fail_msg("%s: line %d is not step %d: %s", path, s.n + 1, s.first + s.n, at);
        s.line[s.n++] = at;
        at = end + 1;
    }
    return s;
}

void steps_free(Steps *s) {
    free(s->line);
    free(s->text);
    memset(s, 0, sizeof *s);
}

const char *json_text(const char *line, const char *key) {
    static char values[4][256];
    static int next;
    char *v = values[next++ % 4], name[128];
    v[0] = '\0';
    snprintf(name, sizeof name, "\"%s\":", key);
    const char *at = strstr(line, name);
    if (!at) return v;
    at += strlen(name);
    at += strspn(at, " ");
    size_t n = *at == '[' ? strcspn(at, "]") + 1 : strcspn(at, ",}");
    snprintf(v, sizeof values[0], "%.*s", (int)n, at);
    return v;
}

double json_number(const char *line, const char *key) {
    const char *v = json_text(line, key);
    char *end;
    double x = strtod(v, &end);
    return *v && *end == '\0' ? x : NAN;
}

double steps_mean(const Steps *s, const char *key, int first, int last) {
    double sum = 0.0;
    assert_true(first >= s->first && last < s->first + s->n);
    for (int i = first; i <= last; i++) sum += json_number(s->line[i - s->first], key);
    return sum / (last - first + 1);
}

const char *step_text(const Steps *s, int step, const char *key) {
    if (step < s->first || step >= s->first + s->n) fail_msg("there is no step %d", step);
    const char *text = json_text(s->line[step - s->first], key);
    if (!*text) fail_msg("step %d has no %s", step, key);
    return text;
}

void assert_same_steps(const Steps *a, const Steps *b, int first, int last, const char *fields) {
    char list[512];
    snprintf(list, sizeof list, "%s", fields);
    for (char *save = NULL, *key = strtok_r(list, " ", &save); key; key = strtok_r(NULL, " ", &save)) {
        for (int i = first; i <= last; i++) {
            const char *x = step_text(a, i, key), *y = step_text(b, i, key);
            if (strcmp(x, y) != 0) fail_msg("step %d: %s is %s and %s", i, key, x, y);
        }
    }
}

void same_steps(const char *run_a, const char *run_b, int first, int last, const char *fields) {
    Steps a = steps_read(run_a), b = steps_read(run_b);
    assert_same_steps(&a, &b, first, last, fields);
    steps_free(&a);
    steps_free(&b);
}
