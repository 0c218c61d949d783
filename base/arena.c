// arena.c - bump arenas over reserved address space, and the counted allocator beside them.
#include "arena.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct Arena {
    char name[32];
    char *base;     // NULL in measure mode
    size_t size;    // reserved bytes
    size_t used;    // bytes handed out
    size_t high;    // largest `used` ever
    bool is_measure;
    void *map;      // on the host: what was reserved, `room` bytes; base is its first huge page
    size_t room;
    const Device *dev; // owner of the memory; NULL: address space of the host
    size_t have;       // bytes with memory behind them, of a device
};

// Arenas start at a multiple of this: a page of 2 MiB must be aligned to be one, and older kernels align a
// mapping to 4 KiB only.
#define HUGE_PAGE ((size_t)2 << 20)

// In measure mode addresses start here: aligned, never mapped, so that touching one is a clean crash.
#define MEASURE_BASE ((uintptr_t)4096)

static bool is_poisoned;
static _Atomic int64_t alloc_count;

static size_t align_up(size_t n) {
    return (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

Err arena_create(Arena **out, const char *name, size_t bytes, bool is_measure) {
    Arena *a = calloc(1, sizeof *a);
    CHECK(a, E_INTERNAL, "arena %s: out of memory", name);
    snprintf(a->name, sizeof a->name, "%s", name);
    a->is_measure = is_measure;
    if (!is_measure) {
        a->size = align_up(bytes ? bytes : ARENA_ALIGN);
        a->room = a->size + HUGE_PAGE;
        a->map = mmap(NULL, a->room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (a->map == MAP_FAILED) {
            free(a);
            FAIL(E_INTERNAL, "arena %s: cannot reserve %.1f MiB of address space", name,
                 (double)bytes / 1048576.0);
        }
        madvise(a->map, a->room, MADV_HUGEPAGE);
        a->base = (char *)(((uintptr_t)a->map + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
    }
    atomic_fetch_add(&alloc_count, 1);
    *out = a;
    return OK;
}

Err arena_create_on(Arena **out, const Device *dev, const char *name, size_t bytes, bool is_measure) {
    if (is_measure || !dev->alloc) {
        TRY(arena_create(out, name, bytes, is_measure));
        return OK;
    }
    Arena *a = calloc(1, sizeof *a);
    CHECK(a, E_INTERNAL, "arena %s: out of memory", name);
    snprintf(a->name, sizeof a->name, "%s", name);
    a->size = align_up(bytes ? bytes : ARENA_ALIGN);
    a->dev = dev;
    Err err = dev->reserve((void **)&a->base, a->size, &a->have, name);
    if (err != OK) {
        free(a);
        TRY(err);
    }
    atomic_fetch_add(&alloc_count, 1);
    *out = a;
    return OK;
}

void arena_destroy(Arena **a) {
    if (!*a) return;
    if ((*a)->dev)
        (*a)->dev->release((*a)->base);
    else if ((*a)->base)
        munmap((*a)->map, (*a)->room);
    free(*a);
    *a = NULL;
}

Err arena_push(Arena *a, void **out, size_t bytes, const char *what) {
    size_t need = align_up(bytes);
    if (!a->is_measure) {
        CHECK(need <= a->size - a->used, E_INTERNAL,
              "arena %s: block %s of %zu bytes does not fit: %zu of %zu bytes are in use", a->name, what,
              bytes, a->used, a->size);
    }
    if (a->dev && a->used + need > a->have) TRY(a->dev->grow(a->base, &a->have, a->used + need, a->name));
    *out = a->is_measure ? (void *)(MEASURE_BASE + a->used) : (void *)(a->base + a->used);
    a->used += need;
    if (a->used > a->high) a->high = a->used;
    if (is_poisoned && !a->is_measure && !a->dev) memset(*out, 0xFF, need);
    return OK;
}

size_t arena_mark(const Arena *a) {
    return a->used;
}

void arena_release(Arena *a, size_t mark) {
    a->used = mark;
}

bool arena_is_measure(const Arena *a) {
    return a->is_measure;
}

size_t arena_high(const Arena *a) {
    return a->high;
}

void arena_reset_high(Arena *a) {
    a->high = a->used;
}

const char *arena_name(const Arena *a) {
    return a->name;
}

size_t arena_size(const Arena *a) {
    return a->size;
}

size_t arena_held(const Arena *a) {
    return a->dev ? a->have : 0;
}

void arena_poison(bool on) {
    is_poisoned = on;
}

Err mem_alloc(void **out, size_t bytes, const char *what) {
    size_t need = align_up(bytes ? bytes : 1);
    *out = aligned_alloc(ARENA_ALIGN, need);
    CHECK(*out, E_INTERNAL, "out of memory: %s needs %zu bytes", what, bytes);
    memset(*out, 0, need);
    atomic_fetch_add(&alloc_count, 1);
    return OK;
}

void mem_free(void *p) {
    free(p);
}

int64_t mem_count(void) {
    return atomic_load(&alloc_count);
}

Err arena_mat(Arena *a, Mat *m, DType t, int64_t rows, int64_t cols, const char *what) {
    void *p = NULL;
    TRY(arena_push(a, &p, (size_t)(rows * cols) * dtype_bytes(t), what));
    *m = mat(p, t, rows, cols);
    return OK;
}

#define MATQ_ALIGN 16 // bytes between rows of codes are a multiple of it

int64_t matq_payload_bytes(ScaleType st, int64_t cols) {
    int64_t scales = ceil_div(cols, TILE) * (st == SCALE_F32 ? 4 : 1);
    return ceil_div(cols, 4) * 4 + ceil_div(scales, 4) * 4;
}

int64_t matq_row_bytes(ScaleType st, int64_t cols) {
    return ceil_div(matq_payload_bytes(st, cols), MATQ_ALIGN) * MATQ_ALIGN;
}

MatQ matq_wire(void *p, ScaleType st, CodeType ct, int64_t rows, int64_t cols) {
    int64_t row_bytes = matq_row_bytes(st, cols);
    MatQ m = {0};
    m.q = p;
    m.s = (char *)p + ceil_div(cols, 4) * 4;
    m.st = st;
    m.ct = ct;
    m.rows = rows;
    m.cols = cols;
    m.ld = row_bytes;
    m.srow = st == SCALE_F32 ? row_bytes / 4 : row_bytes;
    m.scol = 1;
    m.tile_rows = 1;
    m.nmat = 1;
    return m;
}

Err arena_matq_rows(Arena *a, MatQ *m, ScaleType st, CodeType ct, int64_t rows, int64_t cols,
                    const char *what) {
    void *p = NULL;
    TRY(arena_push(a, &p, (size_t)(rows * matq_row_bytes(st, cols)), what));
    *m = matq_wire(p, st, ct, rows, cols);
    return OK;
}

Err arena_matq_cols(Arena *a, MatQ *m, ScaleType st, CodeType ct, int64_t channels, int64_t tokens,
                    int64_t ngroups, const char *what) {
    int64_t tiles = ceil_div(tokens, TILE) + ngroups, ld = ceil_div(tokens, MATQ_ALIGN) * MATQ_ALIGN;
    memset(m, 0, sizeof *m);
    void *q = NULL;
    void *s = NULL;
    TRY(arena_push(a, &q, (size_t)(channels * ld), what));
    TRY(arena_push(a, &s, (size_t)(channels * tiles) * (st == SCALE_F32 ? 4 : 1), what));
    m->q = q;
    m->s = s;
    m->st = st;
    m->ct = ct;
    m->rows = channels;
    m->cols = tokens;
    m->ld = ld;
    m->srow = 1;
    m->scol = channels;
    m->tile_rows = 1;
    m->nmat = 1;
    return OK;
}
