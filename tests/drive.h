// drive.h - drives the built program from a test: start it, alone or under mpirun, wait, signal, kill, read what it
// wrote.
//
// A test program calls drive_init(argc, argv) with the program's path as argv[1] and the source folder as argv[2], and
// drive_done() at its end. Command lines are format strings whose words are separated by blanks. Every failure of
// the driver itself (cannot start, nothing to read) fails the running cmocka test, with the output of the command.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <sys/types.h>

// One started command.
typedef struct Job {
    pid_t pid;            // 0: not running
    int code;             // exit code, 128 + signal if a signal ended it
    double seconds;       // how long it ran
    double started;
    bool is_timed_out;    // it was killed because it ran past its limit
    char line[4096];      // what was started
    char out_path[256], err_path[256];
    const char *out, *err; // its outputs, whole, after job_wait; empty before. Valid until drive_done
} Job;

// drive_init: remember the program, make the temporary folder. Local.
void drive_init(int argc, char **argv);
// drive_done: remove the temporary folder. Returns failed.
int drive_done(int failed);
// drive_dir / drive_source: the temporary folder; the source folder. drive_program: the program.
const char *drive_dir(void);
const char *drive_source(void);
const char *drive_program(void);

// job_start: start `tessera <words>` on that many ranks (1 = without mpirun). job_start_limited: one rank, and no
// file may grow beyond max_file bytes (a write then fails as on a full disk; MPI itself would not start).
void job_start(Job *j, int ranks, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void job_start_limited(Job *j, int64_t max_file, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
// job_wait: until it ends, at most `limit` seconds (then it and its ranks are killed and the test fails).
int job_wait(Job *j, double limit);
// job_signal: to what was started (mpirun hands SIGUSR1 and SIGTERM on to its ranks).
void job_signal(const Job *j, int sig);
// job_rank: process id of one of the ranks of a job under mpirun; 0 if there is none (yet).
pid_t job_rank(const Job *j, int index);
// run: job_start and job_wait. Returns the exit code.
int run(Job *j, int ranks, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
// run_ok: run, which must end with 0.
void run_ok(int ranks, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// assert_says: both outputs of a finished job together hold `text`.
void assert_says(const Job *j, const char *text);
// assert_ends: the job's exit code, with its output if it is another one.
void assert_ends(const Job *j, int code);

// tiny: the words that choose the tests' model; SHORT: on short sequences, every part of it, a tenth of the time.
const char *tiny(void);
#define SHORT "--set train.seq_len=32 --set debug.state_hash=true --threads 1"

// path_of: a path inside the temporary folder, in one of a few static buffers. has_file: does it exist?
const char *path_of(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
bool has_file(const char *path);
// read_file: whole text, to be freed; copy_file; write_file: for making bad inputs.
char *read_file(const char *path, size_t *n);
void write_file(const char *path, const void *data, size_t n);
void copy_file(const char *from, const char *to);
// wait_for_step: until metrics.jsonl of a run has this many lines while the job runs.
void wait_for_step(Job *j, const char *run_dir, int step, double limit);

// Steps of a metrics.jsonl.
typedef struct Steps {
    int n, first; // lines; step of the first
    char **line;  // line[i] is step first + i
    char *text;
} Steps;

// steps_read: DIR/metrics.jsonl; every line must be an object of its own, the steps one after the other.
Steps steps_read(const char *run_dir);
void steps_free(Steps *s);
// json_text: a field's value as written, "" if there is none. json_number: as a number, NAN if there is none.
const char *json_text(const char *line, const char *key);
double json_number(const char *line, const char *key);
// step_text: a field of one step, which must be there. steps_mean: mean of a field over steps first..last.
const char *step_text(const Steps *s, int step, const char *key);
double steps_mean(const Steps *s, const char *key, int first, int last);
// assert_same_steps: the fields (separated by blanks) of steps first..last are the same text: equal to the bit.
void assert_same_steps(const Steps *a, const Steps *b, int first, int last, const char *fields);
// same_steps: of the runs in two folders; BITS: what two undisturbed runs of one layout have in common to the bit.
void same_steps(const char *run_a, const char *run_b, int first, int last, const char *fields);
#define BITS "loss lm_loss mtp_loss balance_loss grad_norm samples tokens state_hash"
