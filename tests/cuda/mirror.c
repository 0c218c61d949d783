// mirror.c - the memory of mirror.h: the device is opened before the tests of a program begin; without one a program
// that was built for a real GPU says so and ends with 77, which counts as skipped.
#include "mirror.h"

#include <stdlib.h>
#include <string.h>

#include "gemm_cuda_sm90.h"

enum { PATTERN = 0xA5, GAP = 512, SCRATCH = 4 << 20 };

static const Device *device;
static Arena *scratch; // of the device, NaN before each operation
static char *scratch_base;
static char *image, *twin; // the same bytes on the host and on the device
static size_t image_size;

static Err poison(size_t bytes) {
    enum { PIECE = 1 << 20 };
    static char nan[PIECE];
    memset(nan, 0xFF, sizeof nan);
    for (size_t at = 0; at < bytes; at += PIECE)
        TRY(device->to_device(scratch_base + at, nan, bytes - at < PIECE ? bytes - at : PIECE));
    return OK;
}

static Err open_all(void) {
    TRY(device_cuda_open(&device, 0));
    TRY(arena_create_on(&scratch, device, "scratch", SCRATCH, false));
    TRY(arena_push(scratch, (void **)&scratch_base, SCRATCH, "scratch"));
    arena_release(scratch, 0);
    arena_reset_high(scratch);
    return poison(SCRATCH);
}

// Plain kernels unless a test chooses: their bounds are those of the CPU's arithmetic.
__attribute__((constructor)) static void mirror_open(void) {
    Err err = open_all();
    gemm_sm90_choose(0);
    if (err == OK) return;
    if (err == E_PEER) {
        printf("SKIP: %s\n", fail_message());
        exit(77);
    }
    fail_report(stderr, "mirror", true);
    exit(70);
}

void mirror_begin(Mirror *m, const OpCx *cx) {
    memset(m, 0, sizeof *m);
    m->cx = *cx;
    m->cx.scratch = scratch;
}

void mirror_bytes(Mirror *m, void *variable, int64_t bytes) {
    char *host = NULL;
    memcpy(&host, variable, sizeof host);
    if (!host) return;
    if (m->nitems == MIRROR_ITEMS) abort();
    m->item[m->nitems++] = (struct MirrorItem){variable, host, bytes > 0 ? (size_t)bytes : 0};
}

static int64_t span(int64_t rows, int64_t step, int64_t cols) {
    return rows > 0 && cols > 0 ? (rows - 1) * step + cols : 0;
}

void mirror_mat(Mirror *m, Mat *x) {
    mirror_bytes(m, &x->p, span(x->rows, x->ld, x->cols) * (int64_t)dtype_bytes(x->t));
}

void mirror_matq(Mirror *m, MatQ *x, int64_t tiles) {
    if (tiles == 0) tiles = ceil_div(x->cols, TILE);
    int64_t codes = span(x->rows, x->ld, x->cols), rows = ceil_div(x->rows, x->tile_rows > 1 ? TILE : 1);
    int64_t scales = rows > 0 && tiles > 0 ? (rows - 1) * x->srow + (tiles - 1) * x->scol + 1 : 0;
    mirror_bytes(m, &x->q, span(x->nmat, x->qstep, codes));
    mirror_bytes(m, &x->s, span(x->nmat, x->sstep, scales) * (x->st == SCALE_F32 ? 4 : 1));
}

void mirror_groups(Mirror *m, Groups *g) {
    mirror_bytes(m, &g->start, g->n * (int64_t)sizeof *g->start);
    mirror_bytes(m, &g->count, g->n * (int64_t)sizeof *g->count);
}

static int by_host(const void *a, const void *b) {
    const struct MirrorBlock *x = a, *y = b;
    return (x->host > y->host) - (x->host < y->host);
}

// Blocks of the host that hold all items, none touching another.
static void join(Mirror *m) {
    struct MirrorBlock *b = m->block;
    for (int i = 0; i < m->nitems; i++) b[i] = (struct MirrorBlock){m->item[i].host, m->item[i].bytes, 0};
    qsort(b, (size_t)m->nitems, sizeof *b, by_host);
    for (int i = 0; i < m->nitems; i++) {
        struct MirrorBlock *last = m->nblocks ? &b[m->nblocks - 1] : NULL;
        if (last && b[i].host < last->host + last->bytes) {
            size_t end = (size_t)(b[i].host - last->host) + b[i].bytes;
            if (end > last->bytes) last->bytes = end;
        } else {
            b[m->nblocks++] = b[i];
        }
    }
    size_t at = GAP;
    for (int i = 0; i < m->nblocks; i++) {
        b[i].at = at + ((uintptr_t)b[i].host & 255);
        at = (b[i].at + b[i].bytes + GAP + 255) / 256 * 256;
    }
    m->image = at;
}

static Err make_room(size_t bytes) {
    if (bytes <= image_size) return OK;
    device->release(twin);
    free(image);
    image_size = 2 * bytes;
    image = malloc(image_size);
    CHECK(image, E_INTERNAL, "mirror: out of memory");
    TRY(device->alloc((void **)&twin, image_size, "mirror"));
    return OK;
}

Err mirror_up(Mirror *m) {
    join(m);
    TRY(make_room(m->image));
    memset(image, PATTERN, m->image);
    for (int i = 0; i < m->nblocks; i++) memcpy(image + m->block[i].at, m->block[i].host, m->block[i].bytes);
    TRY(device->to_device(twin, image, m->image));
    for (int i = 0; i < m->nitems; i++) {
        const struct MirrorItem *t = &m->item[i];
        int b = 0;
        while (b + 1 < m->nblocks && t->host >= m->block[b + 1].host) b++;
        char *on_device = twin + m->block[b].at + (t->host - m->block[b].host);
        memcpy(t->variable, &on_device, sizeof on_device);
    }
    return OK;
}

// What lies between the blocks is as it was.
static Err look_at_pattern(const Mirror *m) {
    size_t at = 0;
    for (int i = 0; i <= m->nblocks; i++) {
        size_t end = i < m->nblocks ? m->block[i].at : m->image;
        for (; at < end; at++)
            CHECK((uint8_t)image[at] == PATTERN, E_INTERNAL,
                  "an operation wrote outside of its operands: between operands %d and %d of %d, by address", i - 1, i,
                  m->nblocks);
        if (i < m->nblocks) at += m->block[i].bytes;
    }
    return OK;
}

Err mirror_down(Mirror *m, Err err) {
    if (err == OK) err = device->sync();
    if (err != OK) return err;
    CHECK(arena_mark(scratch) == 0, E_INTERNAL, "an operation kept %zu bytes of scratch", arena_mark(scratch));
    TRY(poison(arena_high(scratch)));
    arena_reset_high(scratch);
    TRY(device->to_host(image, twin, m->image));
    TRY(look_at_pattern(m));
    for (int i = 0; i < m->nblocks; i++) { // constants of the program cannot be written, and have not changed
        const struct MirrorBlock *b = &m->block[i];
        if (memcmp(b->host, image + b->at, b->bytes) != 0) memcpy(b->host, image + b->at, b->bytes);
    }
    return OK;
}
