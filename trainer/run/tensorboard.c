// tensorboard.c - event files: TFRecord framing and the few protocol buffer fields that a scalar
// needs.
//
//   Event      1 wall_time double, 2 step varint, 3 file_version string, 5 summary, 7 session_log
//   Summary    1 value (repeated);  Value  1 tag string, 2 simple_value float
//   SessionLog 1 status varint (1 = START)
// Every event is one write(2), so a killed run leaves whole records or a short last one, which
// readers skip.
#include "tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include "arena.h"

#define RECORD_MAX 16384
#define TAG_MAX 128

struct TbWriter {
    int fd;
    char path[4200];
    uint8_t summary[RECORD_MAX / 2]; // values of the step in the making
    size_t nsummary;
};

typedef struct Bytes {
    uint8_t b[RECORD_MAX];
    size_t n;
} Bytes;

uint32_t tb_crc32c(const void *p, size_t n) {
    const uint8_t *b = p;
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < n; i++) {
        crc ^= b[i];
        for (int k = 0; k < 8; k++) crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static uint32_t masked_crc(const void *p, size_t n) {
    uint32_t crc = tb_crc32c(p, n);
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

static void put_le(uint8_t *to, uint64_t v, int nbytes) {
    for (int i = 0; i < nbytes; i++) to[i] = (uint8_t)(v >> (8 * i));
}

static size_t put_varint(uint8_t *to, uint64_t v) {
    size_t n = 0;
    while (v >= 0x80) {
        to[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    to[n++] = (uint8_t)v;
    return n;
}

// Key of a field: number and wire type (0 varint, 1 64-bit, 2 length-delimited, 5 32-bit).
static size_t put_key(uint8_t *to, int field, int wire) {
    return put_varint(to, (uint64_t)field << 3 | (uint64_t)wire);
}

static size_t put_blob(uint8_t *to, int field, const void *p, size_t n) {
    size_t k = put_key(to, field, 2);
    k += put_varint(to + k, n);
    memcpy(to + k, p, n);
    return k + n;
}

// Starts an Event at b: wall time and step.
static void event_begin(Bytes *b, int64_t step) {
    struct timeval now;
    gettimeofday(&now, NULL);
    double wall = (double)now.tv_sec + 1e-6 * (double)now.tv_usec;
    uint64_t bits;
    memcpy(&bits, &wall, sizeof bits);
    b->n = put_key(b->b, 1, 1);
    put_le(b->b + b->n, bits, 8);
    b->n += 8;
    b->n += put_key(b->b + b->n, 2, 0);
    b->n += put_varint(b->b + b->n, (uint64_t)step);
}

static Err write_record(TbWriter *w, const Bytes *event) {
    uint8_t out[RECORD_MAX + 16];
    put_le(out, event->n, 8);
    put_le(out + 8, masked_crc(out, 8), 4);
    memcpy(out + 12, event->b, event->n);
    put_le(out + 12 + event->n, masked_crc(event->b, event->n), 4);
    size_t total = event->n + 16;
    for (size_t done = 0; done < total;) {
        ssize_t n = write(w->fd, out + done, total - done);
        if (n < 0 && errno == EINTR) continue;
        CHECK(n > 0, E_OUTPUT, "cannot write %s: %s", w->path, n < 0 ? strerror(errno) : "no room");
        done += (size_t)n;
    }
    return OK;
}

static Err write_head(TbWriter *w, int64_t first_step) {
    Bytes e;
    event_begin(&e, 0);
    e.n += put_blob(e.b + e.n, 3, "brain.Event:2", 13);
    TRY(write_record(w, &e));
    if (first_step <= 0) return OK;
    uint8_t log[4];
    size_t n = put_key(log, 1, 0);
    n += put_varint(log + n, 1);
    event_begin(&e, first_step);
    e.n += put_blob(e.b + e.n, 7, log, n);
    return write_record(w, &e);
}

Err tb_open(TbWriter **out, const char *dir, int64_t first_step) {
    *out = NULL;
    CHECK(mkdir(dir, 0777) == 0 || errno == EEXIST, E_OUTPUT, "cannot create %s: %s", dir,
          strerror(errno));
    TbWriter *w;
    MEM_NEW(w, 1);
    char host[64] = "host";
    gethostname(host, sizeof host - 1);
    struct timeval now;
    gettimeofday(&now, NULL);
    // Readers take files of a folder in name order: the time first, fine enough for quick restarts.
    snprintf(w->path, sizeof w->path, "%s/events.out.tfevents.%010lld.%06ld.%s.%d", dir,
             (long long)now.tv_sec, (long)now.tv_usec, host, (int)getpid());
    w->fd = open(w->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    Err err = OK;
    CHECK_OR(w->fd >= 0, fail, E_OUTPUT, "cannot create %s: %s", w->path, strerror(errno));
    TRY_OR(write_head(w, first_step), fail);
    *out = w;
    return OK;
fail:
    tb_close(&w);
    return err;
}

void tb_close(TbWriter **w) {
    if (!*w) return;
    if ((*w)->fd >= 0) close((*w)->fd);
    mem_free(*w);
    *w = NULL;
}

void tb_scalar(TbWriter *w, const char *tag, double value) {
    uint8_t v[TAG_MAX + 16];
    size_t ntag = strnlen(tag, TAG_MAX);
    size_t n = put_blob(v, 1, tag, ntag);
    n += put_key(v + n, 2, 5);
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    put_le(v + n, bits, 4);
    n += 4;
    if (w->nsummary + n + 8 > sizeof w->summary) return; // a curve more than fits is left out
    w->nsummary += put_blob(w->summary + w->nsummary, 1, v, n);
}

Err tb_flush(TbWriter *w, int64_t step) {
    Bytes e;
    event_begin(&e, step);
    e.n += put_blob(e.b + e.n, 5, w->summary, w->nsummary);
    w->nsummary = 0;
    return write_record(w, &e);
}
