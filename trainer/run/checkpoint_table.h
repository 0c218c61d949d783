// checkpoint_table.h - the logical tensors of a checkpoint and which rank of a layout holds which
// rows.
//
// One entry per parameter and part (master, m, v), one per router bias, two for a calibration. Rows are those of the
// whole logical tensor, seen as [rows, cols]: for stacked experts [E*rows, cols]. Everything here
// is pure arithmetic, so every rank knows what every other rank writes. Private to checkpoint*.c.
#pragma once
#include "manifest.h"
#include "params.h"

typedef struct CkTensor {
    ManifestTensor is;  // name, type, shape
    const Param *param; // NULL for what all ranks have alike: biases, calibration
    int64_t block;      // of a bias, else -1
    Mat here;           // this rank's rows, in the memory of the device
    int64_t cols;       // of the flat view
    bool is_state;      // m or v: not needed to start from weights alone
    bool is_optional;   // a checkpoint may lack it: what is here stays
} CkTensor;

typedef struct CkTable {
    CkTensor *t;
    int64_t n;
    int64_t stage_bytes; // the largest run of rows that this rank moves
} CkTable;

// cktable_build: with m and v if with_state, with the calibration of static scales unless `c` is NULL. Views point
// into p and c. Local. cktable_free sets t->t = NULL.
Err cktable_build(CkTable *t, const Params *p, Calibration *c, bool with_state) MUST_CHECK;
// cktable_is_calibration: is this the name of a tensor of the calibration? Pure.
bool cktable_is_calibration(const char *name);
void cktable_free(CkTable *t);
// cktable_rows: the rows of tensor `t` that rank `rank` of the world writes: masters and moments
// have one owner per row, biases are written by rank 0. *rows may be 0. Pure.
void cktable_rows(const CkTensor *t, const Mesh *m, int rank, int64_t *first, int64_t *rows);
// cktable_shape_text: "[64, 512, 256]".
void cktable_shape_text(char *out, size_t n, const ManifestTensor *t);
