// tensorfile.h - named tensors in HDF5: what checkpoints are made of.
//
// A tensor has up to 4 dimensions, row-major. Every function that takes rows sees it as the flat
// matrix [rows, cols]: cols = the last dimension, rows = the product of the others; a 1-D tensor
// [N] is N rows of one column, a scalar is one row of one column. On disk: chunks of about 1 MiB,
// byte shuffle and zstd level 1 (filter 32015). BF16 is stored as unsigned 16-bit integers with the
// attribute dtype = "bf16".
//
// A virtual tensor holds no data: it shows pieces that lie in other files as one tensor, to us and
// to any HDF5 reader. HDF5 reads a missing piece as zeros without an error; our reader checks
// first.
//
// All functions are thread-safe between files (one mutex for the library); one file is used by one
// thread at a time. Local. Errors: E_OUTPUT when writing (disk full may only show at close: check
// it), E_INPUT when reading, both naming the file.
#pragma once
#include "view.h"

#define TENSOR_DIMS 4
#define TENSOR_NAME 192

typedef struct TensorFile TensorFile;

typedef struct TensorInfo {
    char name[TENSOR_NAME];
    DType dtype;
    int ndim;
    int64_t shape[TENSOR_DIMS];
    int64_t rows, cols; // the flat view
    bool is_virtual;
} TensorInfo;

// A run of flat rows of a virtual tensor: all rows of a 2-D dataset [rows, cols] in another file.
typedef struct TensorPiece {
    const char *file;    // relative to the directory of the index file
    const char *dataset; // name there
    int64_t first;       // first flat row in the virtual tensor
    int64_t rows;
} TensorPiece;

// tensorfile_create: a new file for writing; an old one of that name is overwritten.
// tensorfile_open: for reading.
Err tensorfile_create(TensorFile **f, const char *path) MUST_CHECK;
Err tensorfile_open(TensorFile **f, const char *path) MUST_CHECK;
// tensorfile_close: flush and close, fsync too if is_sync; *f = NULL whatever happens; accepts
// NULL. E_OUTPUT here means that the file is not complete.
Err tensorfile_close(TensorFile **f, bool is_sync) MUST_CHECK;
// tensorfile_drop: close on an error path; what was written is worthless and errors are ignored
// (the current error of the thread is kept).
void tensorfile_drop(TensorFile **f);
// tensorfile_sync_folder: the names in a folder (after a rename, say) on their way to the disk. A file system that
// cannot sync folders is no error, nor is a folder that may be written but not read: no more can be had there, and it
// does no harm until power fails. Errors: E_OUTPUT (an I/O error, a full disk).
Err tensorfile_sync_folder(const char *path) MUST_CHECK;

// tensorfile_write: a whole tensor. `data` is dense, in the byte order of the machine.
Err tensorfile_write(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape,
                     const void *data) MUST_CHECK;
// tensorfile_declare + tensorfile_write_rows: the same in parts: n flat rows from `first`. Rows
// never written read as 0.
Err tensorfile_declare(TensorFile *f, const char *name, DType t, int ndim,
                       const int64_t *shape) MUST_CHECK;
Err tensorfile_write_rows(TensorFile *f, const char *name, int64_t first, int64_t n,
                          const void *data) MUST_CHECK;
// tensorfile_chunk_rows: flat rows of one chunk of a 2-D tensor with rows of `cols` elements (all
// chunks but the last): what is read and decompressed together. Pure.
int64_t tensorfile_chunk_rows(DType t, int64_t cols);
// tensorfile_virtual: a virtual tensor of up to 3 dimensions. The pieces must cover every row once,
// in any order (E_INTERNAL otherwise).
Err tensorfile_virtual(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape,
                       const TensorPiece *pieces, int64_t npieces) MUST_CHECK;

// tensorfile_has: whether there is a dataset of this name. tensorfile_info: what it is.
bool tensorfile_has(TensorFile *f, const char *name);
Err tensorfile_info(TensorFile *f, const char *name, TensorInfo *info) MUST_CHECK;
// tensorfile_list: all tensors by name order; free *list with free().
Err tensorfile_list(TensorFile *f, TensorInfo **list, int64_t *n) MUST_CHECK;
// tensorfile_read: the whole tensor, which must have this type and these elements in all.
Err tensorfile_read(TensorFile *f, const char *name, DType t, int64_t elements,
                    void *out) MUST_CHECK;
// tensorfile_read_rows: n flat rows from `first`, [n, cols]; n = 0 is allowed.
Err tensorfile_read_rows(TensorFile *f, const char *name, DType t, int64_t first, int64_t n,
                         void *out) MUST_CHECK;

// Attributes of the file (tensor = NULL) or of a tensor. Setting replaces; getting a missing one,
// or one of another kind, is E_INPUT. Texts are cut nowhere: a text of cap bytes or more is an
// error.
Err tensorfile_set_text(TensorFile *f, const char *tensor, const char *key,
                        const char *value) MUST_CHECK;
Err tensorfile_set_int(TensorFile *f, const char *tensor, const char *key,
                       int64_t value) MUST_CHECK;
Err tensorfile_set_double(TensorFile *f, const char *tensor, const char *key,
                          double value) MUST_CHECK;
Err tensorfile_get_text(TensorFile *f, const char *tensor, const char *key, char *value,
                        size_t cap) MUST_CHECK;
Err tensorfile_has_key(TensorFile *f, const char *tensor, const char *key,
                       bool *there) MUST_CHECK;
Err tensorfile_get_int(TensorFile *f, const char *tensor, const char *key,
                       int64_t *value) MUST_CHECK;
Err tensorfile_get_double(TensorFile *f, const char *tensor, const char *key,
                          double *value) MUST_CHECK;
