// args.h - the flags of one subcommand.
//
// A subcommand owns a constant table of its flags and one Command that names the table; args_parse
// checks the command line against it, so that unknown flags, missing values and missing operands
// are one kind of message everywhere. Flags are long: `--name value` or `--name=value`. `--` ends
// them.
//
//     static const Flag flags[] = {
//         {"config", "FILE", NULL, FLAG_REQUIRED, "the run's YAML file"},
//         {"device", "auto|cpu", "auto", 0, "where to compute"},
//         {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT, "override one setting"},
//         {"dry-run", NULL, NULL, 0, "print sizes and stop"},
//     };
//     static const Command command = {"tessera train", "", "Trains a model.",
//                                     flags, COUNT_OF(flags), 0, 0};
//     Args a;
//     TRY(args_parse(&a, &command, argc, argv));   // argv[0] is the command's own word, skipped
//     if (a.is_help) return OK;                    // it was printed; nothing to free
//     ... args_get(&a, "config") ...
//     args_free(&a);
#pragma once
#include "fail.h"

#define COUNT_OF(array) ((int)(sizeof(array) / sizeof((array)[0])))

enum {
    FLAG_REQUIRED = 1, // an error if absent
    FLAG_REPEAT = 2,   // may be given several times: args_count, args_nth
};

typedef struct Flag {
    const char *name;     // without the dashes
    const char *value;    // what stands for the value in the help; NULL = a switch without value;
                          // "a|b|c" = only these values are accepted, "a|b|PATH" = these or any
    const char *fallback; // the value if the flag is absent, shown in the help; NULL = none
    int is;               // FLAG_REQUIRED, FLAG_REPEAT or 0
    const char *help;     // one line
} Flag;

typedef struct Command {
    const char *name;     // "tessera train"
    const char *operands; // as shown in the usage line: "INPUT...", "PATH", ""
    const char *about;    // one or more lines
    const Flag *flags;    // [nflags]
    int nflags;
    int min_operands;
    int max_operands; // -1 = any number
} Command;

typedef struct ArgValue {
    const Flag *flag;
    const char *text; // NULL for a switch
} ArgValue;

typedef struct Args {
    const Command *command;
    bool is_help;          // --help was given: the help was printed, nothing else is set
    const char **operands; // [noperands] borrowed from argv
    int noperands;
    ArgValue *values; // [nvalues] flags in the order given
    int nvalues;
} Args;

// args_parse: check argv[1..argc-1] against the command's table. `--help` or `-h` anywhere prints
// the help on standard output. Errors: E_USAGE, the message says what to type; nothing has to be
// freed then. Local.
Err args_parse(Args *a, const Command *command, int argc, char **argv) MUST_CHECK;
// args_free: give back what args_parse allocated.
void args_free(Args *a);
// args_help: print the help of a command.
void args_help(const Command *command, FILE *out);

// args_has: the flag was given. args_get: its (last) value, else its fallback, else NULL.
bool args_has(const Args *a, const char *name);
const char *args_get(const Args *a, const char *name);
// args_count / args_nth: how often a FLAG_REPEAT flag was given, and its i-th value in order.
int args_count(const Args *a, const char *name);
const char *args_nth(const Args *a, const char *name, int i);
// args_all: every value of a FLAG_REPEAT flag in order, at most `max`: out [*n]. Errors: E_USAGE if there are more.
Err args_all(const Args *a, const char *name, const char **out, int max, int *n) MUST_CHECK;
// args_int / args_float: the value (or fallback) as a number; *out is untouched if there is none.
// Errors: E_USAGE if it is not a number in [min, max].
Err args_int(const Args *a, const char *name, int64_t min, int64_t max, int64_t *out) MUST_CHECK;
Err args_float(const Args *a, const char *name, double min, double max, double *out) MUST_CHECK;
// args_seconds: the value as a duration in seconds: 3600 or 3600s, 90m, 1h30m, 2d, 1:30:00 (h:m:s), 90:00 (m:s),
// 1-12:00:00 (days). *out is untouched if there is none. Errors: E_USAGE if it is none of these or not in
// [min, max] seconds. Local.
Err args_seconds(const Args *a, const char *name, double min, double max, double *out) MUST_CHECK;
// args_nearest: the candidate most like `word` (edit distance, at most a third of its length and
// 3), or NULL. For "did you mean".
const char *args_nearest(const char *word, const char *const *candidates, int n);
