// safetensors.h - the tensor files of Hugging Face: reading and writing, single files and shards.
//
// File: u64 little-endian N, N bytes of JSON
// {"name":{"dtype","shape","data_offsets":[begin,end]},...}, then the data; row-major,
// little-endian. A directory is read as one name -> tensor table: either its model.safetensors, or
// all files named by its model.safetensors.index.json. Files are memory-mapped; pages that
// safetensors_read_f32 has read are given back, so a directory of any size is read in little memory.
//
// Local. Reading errors are E_INPUT and name the file and the reason; writing errors are E_OUTPUT.
#pragma once
#include "fail.h"

#define ST_DIMS 8

typedef enum StType {
    ST_BOOL,
    ST_U8,
    ST_I8,
    ST_F8_E5M2,
    ST_F8_E4M3,
    ST_I16,
    ST_U16,
    ST_F16,
    ST_BF16,
    ST_I32,
    ST_U32,
    ST_F32,
    ST_F64,
    ST_I64,
    ST_U64,
    ST_TYPES
} StType;

// st_type_name: as in files, "BF16". st_type_bytes: bytes of one element.
const char *st_type_name(StType t);
size_t st_type_bytes(StType t);

typedef struct StTensor {
    const char *name;
    const char *file; // path of the file that holds it
    StType dtype;
    int ndim;
    int64_t shape[ST_DIMS];
    int64_t rows, cols; // flat view: cols = last dimension; [N] is N rows of one column
    size_t bytes;
    const void *data; // in the mapped file; alignment is not promised
} StTensor;

typedef struct Safetensors Safetensors;

// safetensors_open: a file, or a directory as said above. The whole header is checked: sizes,
// types, duplicate names, gaps and overlaps. An index must name every tensor where it is.
Err safetensors_open(Safetensors **st, const char *path) MUST_CHECK;
// safetensors_close: unmaps; *st = NULL; accepts NULL. Tensors and names die with it.
void safetensors_close(Safetensors **st);
// safetensors_count, safetensors_at: all tensors, by name order.
int64_t safetensors_count(const Safetensors *st);
const StTensor *safetensors_at(const Safetensors *st, int64_t i);
// safetensors_find: NULL if there is none of this name. safetensors_get: E_INPUT then.
const StTensor *safetensors_find(const Safetensors *st, const char *name);
Err safetensors_get(const Safetensors *st, const char *name, const StTensor **out) MUST_CHECK;
// safetensors_read_f32: n flat rows from `first` as float, [n, cols]. Types F32, F64, BF16, F16,
// F8_E4M3 and F8_E5M2 (exact but for F64, which is rounded).
Err safetensors_read_f32(const Safetensors *st, const char *name, int64_t first, int64_t n,
                         float *out) MUST_CHECK;

// What a file to be written will hold, in this order.
typedef struct StDecl {
    const char *name;
    StType dtype;
    int ndim;
    int64_t shape[ST_DIMS];
} StDecl;

typedef struct SafetensorsWriter SafetensorsWriter;

// safetensors_create: write the header of a new file (an old one is overwritten): __metadata__
// {"format":"pt"}, padded with spaces so that the data starts at a multiple of 8. Tensors sorted by
// falling element size, as the reference writer does, keep every tensor aligned.
Err safetensors_create(SafetensorsWriter **w, const char *path, const StDecl *decl,
                       int64_t n) MUST_CHECK;
// safetensors_put: the next `bytes` bytes of tensor `name` (several calls per tensor are fine). Tensors may be written
// side by side; into a pipe only one after the other, as declared. Errors also E_INTERNAL: no such tensor, too many
// bytes.
Err safetensors_put(SafetensorsWriter *w, const char *name, const void *data,
                    size_t bytes) MUST_CHECK;
// safetensors_finish: check that every byte was written, flush, fsync if is_sync, close; *w = NULL always.
Err safetensors_finish(SafetensorsWriter **w, bool is_sync) MUST_CHECK;
// safetensors_drop: give up on an error path: close and remove the file. Accepts NULL.
void safetensors_drop(SafetensorsWriter **w);

// safetensors_write_index: `path` = DIR/model.safetensors.index.json, with tensor names[i] in
// files[i] (base names) and total_size = bytes of all tensors.
Err safetensors_write_index(const char *path, const char *const *names, const char *const *files,
                            int64_t n, int64_t total_size) MUST_CHECK;
