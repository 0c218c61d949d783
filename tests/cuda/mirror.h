// mirror.h - operations of the CUDA backend for callers whose operands lie in memory of the host.
//
// The unit tests of the families keep matrices, counters and tables wherever it suits them: heap, stack, constants. A
// mirror of an operation (mirror_ops.c, one for each line of ops.def) copies what its arguments span to the device,
// runs the operation there, waits, and copies back what has changed. So the same tests run on a GPU, and under the
// fibers of simt.h, where the mirrors themselves are tested: there host code cannot touch the device's memory.
//
// Operands that overlap on the host overlap in the same way on the device and keep their alignment to 256 bytes; what
// lies between them is filled with a pattern, and an operation that writes there is refused with E_INTERNAL.
#pragma once
#include "device.h"
#include "ops.h"

enum { MIRROR_ITEMS = 32 };

typedef struct Mirror {
    OpCx cx; // as the caller's, with scratch on the device
    int nitems;
    struct MirrorItem {
        void *variable; // the pointer that is replaced
        char *host;
        size_t bytes;
    } item[MIRROR_ITEMS];
    int nblocks;
    struct MirrorBlock {
        char *host;
        size_t bytes, at; // at: offset in the image
    } block[MIRROR_ITEMS];
    size_t image; // bytes of the image, patterns included
} Mirror;

// mirror_begin: a call with the caller's cx.
void mirror_begin(Mirror *m, const OpCx *cx);
// mirror_bytes: *variable points to `bytes` bytes of the host, NULL to none.
void mirror_bytes(Mirror *m, void *variable, int64_t bytes);
// mirror_mat, mirror_matq: what the views span; `tiles`: scales along the columns, 0 = one for each 128.
void mirror_mat(Mirror *m, Mat *x);
void mirror_matq(Mirror *m, MatQ *x, int64_t tiles);
// mirror_groups: start and count. To be called after what needs their values on the host.
void mirror_groups(Mirror *m, Groups *g);
// mirror_up: everything named so far lies on the device, and the pointers say so.
Err mirror_up(Mirror *m) MUST_CHECK;
// mirror_down: err is what the operation returned. Waits, copies back, and looks at the pattern.
Err mirror_down(Mirror *m, Err err) MUST_CHECK;
