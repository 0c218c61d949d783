// log.c - rank-aware text output.
#include "log.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int log_rank, log_nranks = 1;
static FILE *log_file, *log_out; // log_out: NULL = standard output

void log_init(int rank, int nranks) {
    log_rank = rank;
    log_nranks = nranks;
}

Err log_open(const char *path) {
    log_close();
    if (log_rank != 0) return OK;
    log_file = fopen(path, "ae");
    CHECK(log_file, E_OUTPUT, "cannot write the log %s: %s", path, strerror(errno));
    return OK;
}

void log_to(FILE *out) {
    log_out = out;
}

void log_close(void) {
    if (log_file) fclose(log_file);
    log_file = NULL;
}

static void log_write(const char *prefix, const char *fmt, va_list ap) {
    if (log_rank != 0) return;
    char text[2048];
    vsnprintf(text, sizeof text, fmt, ap);
    FILE *out = log_out ? log_out : stdout;
    fprintf(out, "%s%s\n", prefix, text);
    // A reader that is gone wants no more lines: that they cannot be written is no failure of the run.
    if (fflush(out) != 0 && errno == EPIPE && !freopen("/dev/null", "we", out)) return;
    if (log_file) {
        fprintf(log_file, "%s%s\n", prefix, text);
        fflush(log_file);
    }
}

void log_line(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    log_write("", fmt, ap);
    va_end(ap);
}

void log_warn(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    log_write("warning: ", fmt, ap);
    va_end(ap);
}

void log_any(const char *fmt, ...) {
    char text[2048];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (log_nranks > 1) {
        fprintf(stderr, "[rank %d/%d] %s\n", log_rank, log_nranks, text);
    } else {
        fprintf(stderr, "%s\n", text);
    }
}

void log_error(void) {
    if (fail_code() == OK) return;
    char prefix[64] = "tessera: error";
    if (log_nranks > 1) {
        snprintf(prefix, sizeof prefix, "[rank %d/%d] tessera: error", log_rank, log_nranks);
    }
    fail_report(stderr, prefix, false);
    fflush(stderr);
    if (log_file) {
        fail_report(log_file, prefix, true);
        fflush(log_file);
    }
}

double now_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

Text32 text_bytes(double bytes) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int i = 0;
    while (bytes >= 1024.0 && i < 5) {
        bytes /= 1024.0;
        i++;
    }
    Text32 t;
    snprintf(t.s, sizeof t.s, i == 0 ? "%.0f %s" : "%.2f %s", bytes, unit[i]);
    return t;
}

Text32 text_duration(double seconds) {
    Text32 t;
    long s = (long)(seconds + 0.5);
    if (seconds < 0 || seconds > 1e9) {
        snprintf(t.s, sizeof t.s, "?");
    } else if (s < 60) {
        snprintf(t.s, sizeof t.s, "%lds", s);
    } else if (s < 3600) {
        snprintf(t.s, sizeof t.s, "%ldm%02lds", s / 60, s % 60);
    } else if (s < 86400) {
        snprintf(t.s, sizeof t.s, "%ldh%02ldm", s / 3600, s / 60 % 60);
    } else {
        snprintf(t.s, sizeof t.s, "%ldd%02ldh", s / 86400, s / 3600 % 24);
    }
    return t;
}

Text32 text_count(double n) {
    Text32 t;
    if (n >= 1e9) {
        snprintf(t.s, sizeof t.s, n >= 2e10 ? "%.2fB" : "%.3fB", n / 1e9);
    } else if (n >= 1e6) {
        snprintf(t.s, sizeof t.s, "%.2fM", n / 1e6);
    } else if (n >= 1e4) {
        snprintf(t.s, sizeof t.s, "%.1fk", n / 1e3);
    } else {
        snprintf(t.s, sizeof t.s, "%.0f", n);
    }
    return t;
}
