// main.c - `tessera <command> ...`: find the command, run it, end with its code.
//
// The only place that prints an error (once) and the only one whose return value ends the process:
// see fail.h for the exit codes.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "commands.h"
#include "log.h"
#include "nearest.h"
#include "ops.h"

typedef struct Subcommand {
    const char *name;
    const char *help;
    Err (*run)(int argc, char **argv);
} Subcommand;

static const Subcommand commands[] = {
    {"train", "train a model, alone or under mpirun", cmd_train},
    {"eval", "held-out loss, bits per byte, in-context copy of a checkpoint", cmd_eval},
    {"generate", "continue a text with a checkpoint", cmd_generate},
    {"tokenizer", "train a byte-level BPE tokenizer, encode and decode with one", cmd_tokenizer},
    {"prepare", "turn text into token shards", cmd_prepare},
    {"dump", "write logits, losses and gradients for given tokens", cmd_dump},
    {"import", "read a Hugging Face DeepSeek checkpoint", cmd_import},
    {"export", "write a checkpoint as a Hugging Face DeepSeek model", cmd_export},
    {"inspect", "show and verify a run, checkpoint, token shard or tensor file", cmd_inspect},
    {"report", "draw a run, or several, as one page of plots", cmd_report},
    {"bench", "speed of operations and steps, as a fraction of the machine's peak", cmd_bench},
    {"numerics", "the FP8 laboratory: error by granularity, accumulation and K", cmd_numerics},
    {"doctor", "describe this machine, its ranks and the libraries", cmd_doctor},
};

static void print_help(FILE *out) {
    fprintf(out, "usage: tessera COMMAND [FLAGS]\n\n"
                 "Trains DeepSeek-V3-shaped Mixture-of-Experts language models in FP8.\n\n");
    for (int i = 0; i < COUNT_OF(commands); i++) {
        fprintf(out, "  %-10s  %s\n", commands[i].name, commands[i].help);
    }
    fprintf(out,
            "\nEvery command takes --isa NAME: compute with this instruction set instead of the "
            "best here\n(amx, avx512-bf16, avx512, avx2, portable; 'tessera doctor' says which "
            "can run).\n");
    fprintf(out,
            "\n'tessera COMMAND --help' lists a command's flags; 'tessera --version' versions.\n");
}

static Err unknown_command(const char *word) {
    const char *names[COUNT_OF(commands)];
    for (int i = 0; i < COUNT_OF(commands); i++) names[i] = commands[i].name;
    const char *near = word_nearest(word, names, COUNT_OF(commands));
    if (near) FAIL(E_USAGE, "unknown command '%.60s'; did you mean '%s'?", word, near);
    FAIL(E_USAGE, "unknown command '%.60s'; see 'tessera --help'", word);
}

// take_isa: obey `--isa NAME` or `--isa=NAME` wherever it stands before `--`, and take it out of
// the command line: no command has to know it. The last one counts.
static Err take_isa(int *argc, char **argv) {
    const char *name = NULL;
    int n = 1;
    bool has_ended = false;
    for (int i = 1; i < *argc; i++) {
        has_ended = has_ended || !strcmp(argv[i], "--");
        if (!has_ended && !strncmp(argv[i], "--isa=", strlen("--isa="))) {
            name = argv[i] + strlen("--isa=");
        } else if (!has_ended && !strcmp(argv[i], "--isa")) {
            CHECK(i + 1 < *argc, E_USAGE, "--isa needs a NAME; 'tessera doctor' lists them");
            name = argv[++i];
        } else {
            argv[n++] = argv[i];
        }
    }
    *argc = n;
    argv[n] = NULL;
    if (name) TRY(ops_isa_select(name));
    return OK;
}

static Err run(int argc, char **argv) {
    TRY(take_isa(&argc, argv));
    if (argc < 2) {
        print_help(stderr);
        FAIL(E_USAGE, "no command");
    }
    const char *word = argv[1];
    if (!strcmp(word, "--help") || !strcmp(word, "-h") || !strcmp(word, "help")) {
        print_help(stdout);
        return OK;
    }
    if (!strcmp(word, "--version")) {
        version_print(stdout);
        return OK;
    }
    for (int i = 0; i < COUNT_OF(commands); i++) {
        if (!strcmp(word, commands[i].name)) return commands[i].run(argc - 1, argv + 1);
    }
    return unknown_command(word);
}

// A standard stream that came closed stays unwritable: else the next file that is opened gets its
// number, and our messages with it.
static void hold_streams(void) {
    int fd = open("/dev/null", O_RDONLY);
    while (fd >= 0 && fd <= STDERR_FILENO) fd = open("/dev/null", O_RDONLY);
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
    hold_streams();
    signal(SIGXFSZ, SIG_IGN); // a file size limit fails the write (E_OUTPUT) instead of killing us
    Err err = run(argc, argv);
    // What was promised on standard output must have arrived there.
    if (fflush(stdout) != 0 || ferror(stdout)) {
        if (err == OK)
            err = fail_at(E_OUTPUT, __FILE__, __LINE__, "standard output: %s", strerror(errno));
    }
    if (err != OK) log_error();
    return err;
}
