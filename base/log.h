// log.h - lines for people. One rank speaks (the first), to standard output and to the run's log file.
//
// Errors of other ranks go to standard error with their rank. Machine-readable records are not logged
// here: see metrics.h.
#pragma once
#include "fail.h"

// log_init: this process is `rank` of `nranks`; only rank 0 prints log_line. Local.
void log_init(int rank, int nranks);
// log_open: from now on rank 0 also appends every line to `path`. Errors: E_OUTPUT. Local.
Err log_open(const char *path) MUST_CHECK;
void log_close(void);
// log_to: where lines go from now on in place of standard output, for commands whose output that is. Local.
void log_to(FILE *out);
// log_line: one line on rank 0 (a newline is added). log_warn: the same, prefixed "warning: ".
void log_line(const char *fmt, ...) PRINTF_LIKE(1, 2);
void log_warn(const char *fmt, ...) PRINTF_LIKE(1, 2);
// log_any: one line on whichever rank calls, prefixed "[rank r/n]", to standard error.
void log_any(const char *fmt, ...) PRINTF_LIKE(1, 2);
// log_error: report the current error of this thread on standard error (and in the log file).
void log_error(void);

// now_seconds: monotonic clock.
double now_seconds(void);
// human readable sizes and durations into a small static-size buffer: "1.23 GiB", "2m05s".
typedef struct Text32 {
    char s[32];
} Text32;
Text32 text_bytes(double bytes);
Text32 text_duration(double seconds);
Text32 text_count(double n); // 671.03B, 15.7M, 812
