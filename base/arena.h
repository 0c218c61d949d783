// arena.h - memory. Arenas own, views point into them.
//
// An arena is one reservation of address space; a push hands out the next aligned block, a release goes
// back to a mark. Pages are only taken when touched, so reserving the worst case is free on the CPU.
// In measure mode nothing is reserved: pushes return addresses that must not be touched and only the
// high-water mark counts. The same code runs in both modes, so sizes cannot drift from use.
#pragma once
#include "device.h"
#include "view.h"

#define ARENA_ALIGN 64

typedef struct Arena Arena;

// arena_create: reserve `bytes` (0 with is_measure). Errors: E_INTERNAL if there is no address space. Local.
Err arena_create(Arena **out, const char *name, size_t bytes, bool is_measure) MUST_CHECK;
// arena_create_on: the same in the memory of a device (device.h), which takes it as it is pushed, some 64 MiB at a
// time, where the device can do that; on the CPU and in measure mode as arena_create. Errors: E_INTERNAL if the device
// has not that much, then or in a push. Local.
Err arena_create_on(Arena **out, const Device *dev, const char *name, size_t bytes, bool is_measure) MUST_CHECK;
// arena_destroy: give the memory back; *a = NULL. Accepts NULL.
void arena_destroy(Arena **a);
// arena_push: the next `bytes` bytes, aligned to 64. Contents undefined (0xFF, which is NaN in every
// floating-point format, after arena_poison(true), in host memory). Errors: E_INTERNAL naming arena, block and sizes.
Err arena_push(Arena *a, void **out, size_t bytes, const char *what) MUST_CHECK;
// arena_mark / arena_release: everything pushed after the mark is given back.
size_t arena_mark(const Arena *a);
void arena_release(Arena *a, size_t mark);
// arena_is_measure: true where blocks must not be touched.
bool arena_is_measure(const Arena *a);
// arena_high: the high-water mark in bytes since creation (or since arena_reset_high).
size_t arena_high(const Arena *a);
void arena_reset_high(Arena *a);
const char *arena_name(const Arena *a);
size_t arena_size(const Arena *a);
// arena_held: bytes of a device's memory behind it so far; 0 on the host.
size_t arena_held(const Arena *a);
// arena_poison: from now on, fill every pushed block of every arena with 0xFF. For tests.
void arena_poison(bool on);

// mem_alloc: zeroed, 64-byte aligned memory outside arenas, for what lives as long as its owner.
// Errors: E_INTERNAL. mem_free accepts NULL.
Err mem_alloc(void **out, size_t bytes, const char *what) MUST_CHECK;
void mem_free(void *p);
// mem_count: how many arenas and mem_alloc blocks were ever made by this process. A training step
// after the first must not change it (tested).
int64_t mem_count(void);

// ARENA_NEW(a, ptr, n): push n objects of *ptr's type.
#define ARENA_NEW(a, ptr, n)                                                                       \
    TRY(arena_push((a), (void **)&(ptr), (size_t)(n) * sizeof *(ptr), #ptr))
// MEM_NEW(ptr, n): the same from mem_alloc.
#define MEM_NEW(ptr, n) TRY(mem_alloc((void **)&(ptr), (size_t)(n) * sizeof *(ptr), #ptr))

// arena_mat: push a dense matrix.
Err arena_mat(Arena *a, Mat *m, DType t, int64_t rows, int64_t cols, const char *what) MUST_CHECK;
// arena_matq_rows: push a row-quantised activation [rows, cols], tiles 1x128, in the wire layout: each
// row is its codes, then its scales (matq_row_bytes bytes in all).
Err arena_matq_rows(Arena *a, MatQ *m, ScaleType st, CodeType ct, int64_t rows, int64_t cols,
                    const char *what) MUST_CHECK;
// matq_row_bytes: bytes of one such row, a multiple of 16: what the TMA of a GPU asks of the distance of rows, so that
// codes are read where they arrived.
int64_t matq_row_bytes(ScaleType st, int64_t cols);
// matq_payload_bytes: its codes and its scales, each a multiple of 4 bytes, without what aligns the next row.
int64_t matq_payload_bytes(ScaleType st, int64_t cols);
// matq_wire: view `rows` contiguous wire rows at p as a row-quantised activation of these formats.
MatQ matq_wire(void *p, ScaleType st, CodeType ct, int64_t rows, int64_t cols);
// arena_matq_cols: push a transposed activation [rows=channels, cols=tokens] for Wgrad; room for
// ceil(tokens/128) + ngroups scales per channel; scale layout [tile][channel] (srow 1, scol rows);
// channels of codes are a multiple of 16 bytes apart.
Err arena_matq_cols(Arena *a, MatQ *m, ScaleType st, CodeType ct, int64_t channels, int64_t tokens,
                    int64_t ngroups, const char *what) MUST_CHECK;
