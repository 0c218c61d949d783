// fail.h - how every function of Tessera fails.
//
// A function that can fail returns Err. The values are the exit codes of the program, so the code that
// a user's job script sees is the one written where the problem was found. The first CHECK or FAIL
// writes one message; every TRY on the way up adds its place to a thread-local trace. Nothing below
// main exits; main prints the trace with fail_report() and ends with the code.
//
//     Err plan_build(Plan *p, int64_t T) {
//         CHECK(T > 0, E_INTERNAL, "plan: %lld tokens", (long long)T);
//         TRY(arena_push(...));
//         return OK;
//     }
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum Err {
    OK = 0,
    E_USAGE = 64,    // command line, run directory occupied
    E_INPUT = 65,    // a named input is missing, unreadable or damaged, or changed where it must not
    E_PEER = 69,     // another rank or a device was lost or is not there; another run has the run directory
    E_INTERNAL = 70, // a bug, or a resource that should be there (memory)
    E_OUTPUT = 74,   // disk full, not writable
    E_STOPPED = 75,  // stopped by signal or time limit after a verified save: requeue
    E_CONFIG = 78,   // configuration, --set included
    E_NUMERIC = 80,  // non-finite loss or gradient
} Err;

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(f, a) __attribute__((format(printf, f, a)))

// fail_at: start a new error: store `code` and the message, with its place. Returns code. Local.
Err fail_at(Err code, const char *file, int line, const char *fmt, ...) PRINTF_LIKE(4, 5);
// fail_frame: add one place to the trace of the current error. Returns code. Local.
Err fail_frame(Err code, const char *file, int line);
// fail_message: the message of the current error of this thread, "" if none.
const char *fail_message(void);
// fail_code: the code of the current error of this thread, OK if none.
Err fail_code(void);
// fail_report: write "prefix: message" and, for E_INTERNAL or if `verbose`, the trace. Local.
void fail_report(FILE *out, const char *prefix, bool verbose);
// fail_clear: forget the current error (after it was handled).
void fail_clear(void);

// The macros return the code they were given, not what fail_at returns, so that the compiler sees that it is not OK.
#define FAIL(code, ...)                                                                            \
    do {                                                                                           \
        fail_at((code), __FILE__, __LINE__, __VA_ARGS__);                                          \
        return (code);                                                                             \
    } while (0)
#define CHECK(cond, code, ...)                                                                     \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fail_at((code), __FILE__, __LINE__, __VA_ARGS__);                                      \
            return (code);                                                                         \
        }                                                                                          \
    } while (0)
#define TRY(call)                                                                                  \
    do {                                                                                           \
        Err err_ = (call);                                                                         \
        if (err_ != OK) {                                                                          \
            fail_frame(err_, __FILE__, __LINE__);                                                  \
            return err_;                                                                           \
        }                                                                                          \
    } while (0)
// TRY_OR: for functions that own something; jumps to `label` with `err` (a local Err) set.
#define TRY_OR(call, label)                                                                        \
    do {                                                                                           \
        err = (call);                                                                              \
        if (err != OK) {                                                                           \
            fail_frame(err, __FILE__, __LINE__);                                                   \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)
// CHECK_OR: CHECK for functions that own something.
#define CHECK_OR(cond, label, code, ...)                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            err = fail_at((code), __FILE__, __LINE__, __VA_ARGS__);                                \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)
