// tensorfile.c - named tensors in HDF5: files, datasets, reading and writing flat rows.
//
// Every public function takes the HDF5 lock once and calls a function whose name ends in _held.
#define H5_USE_110_API
#include "tensorfile.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arena.h"
#include "h5_file.h"
#include "h5_zstd.h"
#include "tensorfile_boxes.h"

#define CHUNK_BYTES (1 << 20)

struct TensorFile {
    int64_t id; // hid_t, -1 when closed
    bool is_write;
    char path[PATH_MAX];
    char source[PATH_MAX]; // the last source file of a virtual tensor that was found good
};

#define LOCKED(call)                                                                               \
    do {                                                                                           \
        h5_lock();                                                                                 \
        Err locked_err_ = (call);                                                                  \
        h5_unlock();                                                                               \
        TRY(locked_err_);                                                                          \
    } while (0)

static Err wrong(const TensorFile *f, const char *name, const char *what) {
    const char *verb = f->is_write ? "cannot write" : "cannot read";
    return fail_at(f->is_write ? E_OUTPUT : E_INPUT, __FILE__, __LINE__, "%s: %s tensor %s: %s: %s",
                   f->path, verb, name, what, h5_error_text());
}
#define TRY_H5(ok, f, name, what)                                                                  \
    do {                                                                                           \
        if (!(ok)) return wrong((f), (name), (what));                                              \
    } while (0)
#define TRY_H5_OR(ok, label, f, name, what)                                                        \
    do {                                                                                           \
        if (!(ok)) {                                                                               \
            err = wrong((f), (name), (what));                                                      \
            goto label;                                                                            \
        }                                                                                          \
    } while (0)

// ---- files -------------------------------------------------------------------------------------

static Err file_new(TensorFile **f, const char *path, bool is_write) {
    *f = NULL;
    CHECK(strlen(path) < PATH_MAX, E_USAGE, "%s: path too long", path);
    MEM_NEW(*f, 1);
    (*f)->is_write = is_write;
    snprintf((*f)->path, sizeof(*f)->path, "%s", path);
    h5_lock();
    Err err = is_write ? h5_file_create(&(*f)->id, path) : h5_file_open(&(*f)->id, path);
    h5_unlock();
    if (err != OK) {
        mem_free(*f);
        *f = NULL;
        return fail_frame(err, __FILE__, __LINE__);
    }
    return OK;
}

Err tensorfile_create(TensorFile **f, const char *path) {
    TRY(file_new(f, path, true));
    return OK;
}

Err tensorfile_open(TensorFile **f, const char *path) {
    TRY(file_new(f, path, false));
    return OK;
}

Err tensorfile_close(TensorFile **f, bool is_sync) {
    TensorFile *file = *f;
    *f = NULL;
    if (!file) return OK;
    h5_lock();
    Err err = h5_file_close(&file->id, file->path, file->is_write, is_sync);
    h5_unlock();
    mem_free(file);
    TRY(err);
    return OK;
}

void tensorfile_drop(TensorFile **f) {
    if (!*f) return;
    h5_lock();
    H5Fclose((*f)->id); // its failure adds nothing to the error that brought us here
    h5_unlock();
    mem_free(*f);
    *f = NULL;
}

Err tensorfile_sync_folder(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES) return OK;
    CHECK(fd >= 0, E_OUTPUT, "%s: cannot open the folder to sync it: %s", path, strerror(errno));
    int rc = fsync(fd), why = errno;
    close(fd);
    // EINVAL: FUSE and some network file systems; EBADF: CIFS.
    bool is_without = why == EINVAL || why == ENOTSUP || why == ENOSYS || why == EBADF;
    CHECK(rc == 0 || is_without, E_OUTPUT, "%s: cannot sync the folder: %s", path, strerror(why));
    return OK;
}

// ---- types and shapes --------------------------------------------------------------------------

static hid_t disk_type(DType t) {
    switch (t) {
    case DT_F32: return H5T_IEEE_F32LE;
    case DT_F64: return H5T_IEEE_F64LE;
    case DT_BF16:
    case DT_U16: return H5T_STD_U16LE;
    case DT_I32: return H5T_STD_I32LE;
    case DT_I64: return H5T_STD_I64LE;
    case DT_U8: return H5T_STD_U8LE;
    case DT_U32: return H5T_STD_U32LE;
    case DT_U64: return H5T_STD_U64LE;
    }
    return -1;
}

static hid_t memory_type(DType t) {
    return H5Tget_native_type(disk_type(t), H5T_DIR_ASCEND); // a new id: close it
}

// Chunk of about CHUNK_BYTES: whole trailing dimensions, then a part of one, then ones.
static void chunk_shape(hsize_t *chunk, int ndim, const int64_t *shape, size_t item) {
    int64_t left = (int64_t)(CHUNK_BYTES / item);
    for (int i = ndim - 1; i >= 0; i--) {
        int64_t n = min_i64(shape[i], left);
        chunk[i] = (hsize_t)max_i64(n, 1);
        left = n < shape[i] ? 1 : left / max_i64(n, 1);
        if (left < 1) left = 1;
    }
}

int64_t tensorfile_chunk_rows(DType t, int64_t cols) {
    return max_i64((int64_t)(CHUNK_BYTES / dtype_bytes(t)) / max_i64(cols, 1), 1);
}

static Err shape_check(const TensorFile *f, const char *name, int ndim, const int64_t *shape) {
    CHECK(f->is_write, E_INTERNAL, "%s: tensor %s: the file is open for reading", f->path, name);
    CHECK(name[0] && strlen(name) < TENSOR_NAME, E_INTERNAL, "%s: tensor name '%s'", f->path, name);
    CHECK(ndim >= 0 && ndim <= TENSOR_DIMS, E_INTERNAL, "%s: tensor %s: %d dimensions", f->path,
          name, ndim);
    for (int i = 0; i < ndim; i++) {
        CHECK(shape[i] >= 0, E_INTERNAL, "%s: tensor %s: dimension %d is %lld", f->path, name, i,
              (long long)shape[i]);
    }
    return OK;
}

static hid_t space_of(int ndim, const int64_t *shape) {
    hsize_t dims[TENSOR_DIMS];
    for (int i = 0; i < ndim; i++) dims[i] = (hsize_t)shape[i];
    return ndim == 0 ? H5Screate(H5S_SCALAR) : H5Screate_simple(ndim, dims, NULL);
}

static Err info_held(TensorFile *f, const char *name, hid_t set, TensorInfo *info) {
    memset(info, 0, sizeof *info);
    snprintf(info->name, sizeof info->name, "%s", name);
    hid_t space = H5Dget_space(set), type = H5Dget_type(set), list = H5Dget_create_plist(set);
    int ndim = H5Sget_simple_extent_ndims(space);
    hsize_t dims[H5S_MAX_RANK] = {0};
    if (ndim > 0) H5Sget_simple_extent_dims(space, dims, NULL);
    info->is_virtual = list >= 0 && H5Pget_layout(list) == H5D_VIRTUAL;
    static const DType all[] = {DT_F32, DT_F64, DT_U16, DT_I32, DT_I64, DT_U8, DT_U32, DT_U64};
    bool is_known = false;
    for (size_t i = 0; i < sizeof all / sizeof *all && !is_known; i++) {
        is_known = H5Tequal(type, disk_type(all[i])) > 0;
        info->dtype = all[i];
    }
    H5Sclose(space);
    H5Tclose(type);
    H5Pclose(list);
    CHECK(is_known, E_INPUT, "%s: dataset %s has a type that is not a tensor's", f->path, name);
    CHECK(ndim >= 0 && ndim <= TENSOR_DIMS, E_INPUT,
          "%s: dataset %s has %d dimensions, at most %d expected", f->path, name, ndim,
          TENSOR_DIMS);
    bool has_dtype = false;
    if (info->dtype == DT_U16) TRY(h5_has_attribute(f->id, f->path, name, "dtype", &has_dtype));
    if (has_dtype) {
        char text[16];
        TRY(h5_get_text(f->id, f->path, name, "dtype", text, sizeof text));
        CHECK(strcmp(text, "bf16") == 0, E_INPUT, "%s: dataset %s: dtype '%s', expected 'bf16'",
              f->path, name, text);
        info->dtype = DT_BF16;
    }
    info->ndim = ndim;
    info->rows = 1;
    info->cols = 1;
    for (int i = 0; i < ndim; i++) info->shape[i] = (int64_t)dims[i];
    if (ndim > 1) info->cols = info->shape[ndim - 1];
    for (int i = 0; i < (ndim > 1 ? ndim - 1 : ndim); i++) info->rows *= info->shape[i];
    return OK;
}

static Err dataset_open(TensorFile *f, const char *name, hid_t *set, TensorInfo *info) {
    htri_t there = H5Lexists(f->id, name, H5P_DEFAULT);
    h5_error_clear();
    CHECK(there > 0, f->is_write ? E_INTERNAL : E_INPUT, "%s: no tensor '%s' in this file", f->path,
          name);
    hid_t access = H5Pcreate(H5P_DATASET_ACCESS);
    H5Pset_virtual_prefix(access, "${ORIGIN}");
    *set = H5Dopen2(f->id, name, access);
    H5Pclose(access);
    TRY_H5(*set >= 0, f, name, "open");
    Err err = info_held(f, name, *set, info);
    if (err != OK) {
        H5Dclose(*set);
        return fail_frame(err, __FILE__, __LINE__);
    }
    return OK;
}

// ---- writing -----------------------------------------------------------------------------------

// A new dataset with the creation list `create`; the BF16 mark included.
static Err dataset_create(TensorFile *f, const char *name, DType t, hid_t space, hid_t create) {
    hid_t link = H5Pcreate(H5P_LINK_CREATE);
    H5Pset_create_intermediate_group(link, 1);
    htri_t there = H5Lexists(f->id, name, H5P_DEFAULT);
    h5_error_clear();
    hid_t set =
        there > 0 ? -1 : H5Dcreate2(f->id, name, disk_type(t), space, link, create, H5P_DEFAULT);
    H5Pclose(link);
    CHECK(there <= 0, E_INTERNAL, "%s: tensor %s written twice", f->path, name);
    TRY_H5(set >= 0, f, name, "create");
    TRY_H5(H5Dclose(set) >= 0, f, name, "create");
    if (t == DT_BF16) TRY(h5_set_text(f->id, f->path, name, "dtype", "bf16"));
    return OK;
}

static Err declare_held(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape) {
    TRY(shape_check(f, name, ndim, shape));
    int64_t elements = 1;
    for (int i = 0; i < ndim; i++) elements *= shape[i];
    hid_t create = H5Pcreate(H5P_DATASET_CREATE), space = space_of(ndim, shape);
    bool ok = create >= 0 && space >= 0;
    if (ok && ndim > 0 && elements > 0) {
        hsize_t chunk[TENSOR_DIMS];
        unsigned level = 1;
        chunk_shape(chunk, ndim, shape, dtype_bytes(t));
        ok = H5Pset_chunk(create, ndim, chunk) >= 0 && H5Pset_shuffle(create) >= 0 &&
             H5Pset_filter(create, H5_ZSTD_FILTER, H5Z_FLAG_MANDATORY, 1, &level) >= 0;
    }
    Err err = ok ? dataset_create(f, name, t, space, create) : wrong(f, name, "declare");
    H5Sclose(space);
    H5Pclose(create);
    TRY(err);
    return OK;
}

// Move n flat rows between the dataset and dense memory, box by box.
static Err rows_move(TensorFile *f, hid_t set, const TensorInfo *info, int64_t first, int64_t n,
                     void *memory, bool is_write) {
    Err err = OK;
    hid_t type = memory_type(info->dtype), file_space = H5Dget_space(set), mem_space = -1;
    TRY_H5_OR(type >= 0 && file_space >= 0, done, f, info->name, "select");
    Box box[BOX_MAX];
    int lead = info->ndim > 1 ? info->ndim - 1 : info->ndim; // dimensions that make the flat rows
    int nbox = info->ndim > 0 ? boxes_of_rows(box, lead, info->shape, first, n) : 1;
    char *p = memory;
    for (int b = 0; b < nbox; b++) {
        hsize_t start[TENSOR_DIMS] = {0}, count[TENSOR_DIMS] = {1, 1, 1, 1}, total = 1;
        for (int i = 0; i < info->ndim; i++) {
            start[i] = i < lead ? (hsize_t)box[b].start[i] : 0;
            count[i] = i < lead ? (hsize_t)box[b].count[i] : (hsize_t)info->cols;
            total *= count[i];
        }
        // The same rank as the file's: HDF5 is ten times slower when it maps between ranks.
        mem_space = H5Screate_simple(info->ndim > 0 ? info->ndim : 1, count, NULL);
        TRY_H5_OR(mem_space >= 0, done, f, info->name, "select");
        TRY_H5_OR(info->ndim == 0 || H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start, NULL,
                                                         count, NULL) >= 0,
                  done, f, info->name, "select");
        herr_t rc = is_write ? H5Dwrite(set, type, mem_space, file_space, H5P_DEFAULT, p)
                             : H5Dread(set, type, mem_space, file_space, H5P_DEFAULT, p);
        TRY_H5_OR(rc >= 0, done, f, info->name, is_write ? "write" : "damaged data");
        p += (size_t)total * dtype_bytes(info->dtype);
        H5Sclose(mem_space);
        mem_space = -1;
    }
done:
    if (mem_space >= 0) H5Sclose(mem_space);
    if (file_space >= 0) H5Sclose(file_space);
    if (type >= 0) H5Tclose(type);
    return err;
}

static Err write_rows_held(TensorFile *f, const char *name, int64_t first, int64_t n,
                           const void *data) {
    hid_t set;
    TensorInfo info;
    TRY(dataset_open(f, name, &set, &info));
    Err err = OK;
    CHECK_OR(first >= 0 && n >= 0 && first <= info.rows - n, done, E_INTERNAL,
             "%s: tensor %s: rows %lld + %lld of %lld", f->path, name, (long long)first,
             (long long)n, (long long)info.rows);
    if (n > 0 && info.cols > 0)
        TRY_OR(rows_move(f, set, &info, first, n, (void *)data, true), done);
done:
    if (H5Dclose(set) < 0 && err == OK) err = wrong(f, name, "write");
    return err;
}

Err tensorfile_declare(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape) {
    LOCKED(declare_held(f, name, t, ndim, shape));
    return OK;
}

Err tensorfile_write_rows(TensorFile *f, const char *name, int64_t first, int64_t n,
                          const void *data) {
    LOCKED(write_rows_held(f, name, first, n, data));
    return OK;
}

Err tensorfile_write(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape,
                     const void *data) {
    TRY(tensorfile_declare(f, name, t, ndim, shape));
    int64_t rows = 1;
    for (int i = 0; i < (ndim > 1 ? ndim - 1 : ndim); i++) rows *= shape[i];
    TRY(tensorfile_write_rows(f, name, 0, rows, data));
    return OK;
}

static int by_first(const void *a, const void *b) {
    const TensorPiece *x = a, *y = b;
    return x->first < y->first ? -1 : x->first > y->first;
}

// The pieces, in order of their rows, must cover [0, rows) once.
static Err pieces_check(const TensorFile *f, const char *name, const TensorPiece *pieces, int64_t n,
                        int64_t rows) {
    TensorPiece *sorted = malloc((size_t)(n + 1) * sizeof *sorted);
    CHECK(sorted, E_INTERNAL, "%s: out of memory", f->path);
    memcpy(sorted, pieces, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_first);
    int64_t next = 0;
    for (int64_t i = 0; i < n && sorted[i].first == next && sorted[i].rows > 0; i++) {
        next += sorted[i].rows;
        if (i == n - 1 && next == rows) next = -1;
    }
    free(sorted);
    CHECK(next == -1 || (n == 0 && rows == 0), E_INTERNAL,
          "%s: virtual tensor %s: pieces do not cover its %lld rows once (around row %lld)",
          f->path, name, (long long)rows, (long long)next);
    return OK;
}

// One piece: up to BOX_MAX boxes of the virtual tensor, each fed by consecutive rows of the source.
static bool piece_map(hid_t create, int ndim, const int64_t *shape, int64_t cols,
                      const TensorPiece *piece) {
    Box box[BOX_MAX];
    int lead = ndim > 1 ? ndim - 1 : ndim;
    int nbox = boxes_of_rows(box, lead, shape, piece->first, piece->rows);
    hsize_t source_dims[2] = {(hsize_t)piece->rows, (hsize_t)cols};
    hid_t to = space_of(ndim, shape), from = H5Screate_simple(2, source_dims, NULL);
    bool ok = to >= 0 && from >= 0;
    hsize_t at = 0;
    for (int b = 0; ok && b < nbox; b++) {
        hsize_t start[TENSOR_DIMS] = {0}, count[TENSOR_DIMS], rows = 1;
        for (int i = 0; i < ndim; i++) {
            start[i] = i < lead ? (hsize_t)box[b].start[i] : 0;
            count[i] = i < lead ? (hsize_t)box[b].count[i] : (hsize_t)cols;
            rows *= i < lead ? count[i] : 1;
        }
        hsize_t from_start[2] = {at, 0}, from_count[2] = {rows, (hsize_t)cols};
        ok = H5Sselect_hyperslab(to, H5S_SELECT_SET, start, NULL, count, NULL) >= 0 &&
             H5Sselect_hyperslab(from, H5S_SELECT_SET, from_start, NULL, from_count, NULL) >= 0 &&
             H5Pset_virtual(create, to, piece->file, piece->dataset, from) >= 0;
        at += rows;
    }
    if (to >= 0) H5Sclose(to);
    if (from >= 0) H5Sclose(from);
    return ok;
}

static Err virtual_held(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape,
                        const TensorPiece *pieces, int64_t npieces) {
    TRY(shape_check(f, name, ndim, shape));
    CHECK(ndim >= 1 && ndim <= 3, E_INTERNAL, "%s: virtual tensor %s: %d dimensions", f->path, name,
          ndim);
    int64_t cols = ndim > 1 ? shape[ndim - 1] : 1, rows = 1;
    for (int i = 0; i < (ndim > 1 ? ndim - 1 : ndim); i++) rows *= shape[i];
    TRY(pieces_check(f, name, pieces, npieces, rows));
    hid_t create = H5Pcreate(H5P_DATASET_CREATE), space = space_of(ndim, shape);
    bool ok = create >= 0 && space >= 0;
    for (int64_t i = 0; ok && i < npieces && cols > 0; i++) {
        ok = piece_map(create, ndim, shape, cols, &pieces[i]);
    }
    Err err = ok ? dataset_create(f, name, t, space, create) : wrong(f, name, "map");
    H5Sclose(space);
    H5Pclose(create);
    TRY(err);
    return OK;
}

Err tensorfile_virtual(TensorFile *f, const char *name, DType t, int ndim, const int64_t *shape,
                       const TensorPiece *pieces, int64_t npieces) {
    LOCKED(virtual_held(f, name, t, ndim, shape, pieces, npieces));
    return OK;
}

// ---- reading -----------------------------------------------------------------------------------

// HDF5 reads a missing or unreadable source file as zeros: open each one before, so that it is an
// error.
static Err sources_check(TensorFile *f, const char *name, hid_t set) {
    hid_t list = H5Dget_create_plist(set);
    size_t n = 0;
    Err err = OK;
    TRY_H5_OR(list >= 0 && H5Pget_virtual_count(list, &n) >= 0, done, f, name, "sources");
    char copy[PATH_MAX];
    snprintf(copy, sizeof copy, "%s", f->path);
    const char *dir = dirname(copy);
    for (size_t i = 0; i < n; i++) {
        char file[PATH_MAX], path[2 * PATH_MAX], dataset[TENSOR_NAME];
        TRY_H5_OR(H5Pget_virtual_filename(list, i, file, sizeof file) >= 0 &&
                      H5Pget_virtual_dsetname(list, i, dataset, sizeof dataset) >= 0,
                  done, f, name, "sources");
        if (strcmp(file, f->source) == 0) continue; // pieces of one file mostly follow each other
        snprintf(path, sizeof path, "%s%s%s", file[0] == '/' ? "" : dir, file[0] == '/' ? "" : "/",
                 file);
        int64_t id;
        TRY_OR(h5_file_open(&id, path), done);
        htri_t there = H5Lexists(id, dataset, H5P_DEFAULT);
        h5_error_clear();
        H5Fclose(id);
        CHECK_OR(there > 0, done, E_INPUT, "%s: no dataset '%s', a part of tensor %s of %s", path,
                 dataset, name, f->path);
        snprintf(f->source, sizeof f->source, "%s", file);
    }
done:
    if (list >= 0) H5Pclose(list);
    return err;
}

static Err read_rows_held(TensorFile *f, const char *name, DType t, int64_t first, int64_t n,
                          int64_t elements, void *out) {
    hid_t set;
    TensorInfo info;
    TRY(dataset_open(f, name, &set, &info));
    Err err = OK;
    CHECK_OR(info.dtype == t, done, E_INPUT, "%s: tensor %s is %s, expected %s", f->path, name,
             dtype_name(info.dtype), dtype_name(t));
    if (elements >= 0) { // the whole tensor
        CHECK_OR(info.rows * info.cols == elements, done, E_INPUT,
                 "%s: tensor %s has %lld elements, expected %lld", f->path, name,
                 (long long)(info.rows * info.cols), (long long)elements);
        n = info.rows;
    }
    CHECK_OR(first >= 0 && n >= 0 && first <= info.rows - n, done, E_INPUT,
             "%s: tensor %s: rows %lld to %lld wanted, it has %lld", f->path, name,
             (long long)first, (long long)(first + n), (long long)info.rows);
    if (info.is_virtual) TRY_OR(sources_check(f, name, set), done);
    if (n > 0 && info.cols > 0) TRY_OR(rows_move(f, set, &info, first, n, out, false), done);
done:
    H5Dclose(set);
    return err;
}

Err tensorfile_read(TensorFile *f, const char *name, DType t, int64_t elements, void *out) {
    LOCKED(read_rows_held(f, name, t, 0, 0, max_i64(elements, 0), out));
    return OK;
}

Err tensorfile_read_rows(TensorFile *f, const char *name, DType t, int64_t first, int64_t n,
                         void *out) {
    LOCKED(read_rows_held(f, name, t, first, n, -1, out));
    return OK;
}

// ---- what is inside ----------------------------------------------------------------------------

bool tensorfile_has(TensorFile *f, const char *name) {
    h5_lock();
    htri_t there = H5Lexists(f->id, name, H5P_DEFAULT);
    h5_error_clear();
    h5_unlock();
    return there > 0;
}

static Err info_of_held(TensorFile *f, const char *name, TensorInfo *info) {
    hid_t set;
    TRY(dataset_open(f, name, &set, info));
    H5Dclose(set);
    return OK;
}

Err tensorfile_info(TensorFile *f, const char *name, TensorInfo *info) {
    LOCKED(info_of_held(f, name, info));
    return OK;
}

typedef struct NameList {
    char (*name)[TENSOR_NAME];
    int64_t n, cap;
    bool is_bad; // out of memory, or a name that is too long
} NameList;

// Links are visited, not objects: HDF5 passes over objects it cannot read without a word.
static herr_t name_add(hid_t file, const char *name, const H5L_info_t *link, void *arg) {
    NameList *list = arg;
    H5O_info_t info;
    if (link->type != H5L_TYPE_HARD) return 0;
    if (H5Oget_info_by_name2(file, name, &info, H5O_INFO_BASIC, H5P_DEFAULT) < 0) return -1;
    if (info.type != H5O_TYPE_DATASET) return 0;
    if (list->n == list->cap) {
        int64_t cap = list->cap ? 2 * list->cap : 64;
        void *p = realloc(list->name, (size_t)cap * TENSOR_NAME);
        if (!p) {
            list->is_bad = true;
            return -1;
        }
        list->name = p;
        list->cap = cap;
    }
    list->is_bad |= strlen(name) >= TENSOR_NAME;
    snprintf(list->name[list->n++], TENSOR_NAME, "%s", name);
    return list->is_bad ? -1 : 0;
}

static Err list_held(TensorFile *f, TensorInfo **out, int64_t *n) {
    NameList names = {0};
    TensorInfo *list = NULL;
    Err err = OK;
    herr_t rc = H5Lvisit(f->id, H5_INDEX_NAME, H5_ITER_INC, name_add, &names);
    CHECK_OR(rc >= 0 && !names.is_bad, done, E_INPUT, "%s: cannot list the tensors: %s", f->path,
             h5_error_text());
    list = calloc((size_t)names.n + 1, sizeof *list);
    CHECK_OR(list, done, E_INTERNAL, "%s: out of memory", f->path);
    for (int64_t i = 0; i < names.n; i++) TRY_OR(info_of_held(f, names.name[i], &list[i]), done);
    *out = list;
    *n = names.n;
    list = NULL;
done:
    free(list);
    free(names.name);
    return err;
}

Err tensorfile_list(TensorFile *f, TensorInfo **list, int64_t *n) {
    *list = NULL;
    *n = 0;
    LOCKED(list_held(f, list, n));
    return OK;
}

Err tensorfile_set_text(TensorFile *f, const char *tensor, const char *key, const char *value) {
    LOCKED(h5_set_text(f->id, f->path, tensor ? tensor : "/", key, value));
    return OK;
}

Err tensorfile_set_int(TensorFile *f, const char *tensor, const char *key, int64_t value) {
    LOCKED(h5_set_int(f->id, f->path, tensor ? tensor : "/", key, value));
    return OK;
}

Err tensorfile_set_double(TensorFile *f, const char *tensor, const char *key, double value) {
    LOCKED(h5_set_double(f->id, f->path, tensor ? tensor : "/", key, value));
    return OK;
}

Err tensorfile_get_text(TensorFile *f, const char *tensor, const char *key, char *value,
                        size_t cap) {
    LOCKED(h5_get_text(f->id, f->path, tensor ? tensor : "/", key, value, cap));
    return OK;
}

Err tensorfile_has_key(TensorFile *f, const char *tensor, const char *key, bool *there) {
    LOCKED(h5_has_attribute(f->id, f->path, tensor ? tensor : "/", key, there));
    return OK;
}

Err tensorfile_get_int(TensorFile *f, const char *tensor, const char *key, int64_t *value) {
    LOCKED(h5_get_int(f->id, f->path, tensor ? tensor : "/", key, value));
    return OK;
}

Err tensorfile_get_double(TensorFile *f, const char *tensor, const char *key, double *value) {
    LOCKED(h5_get_double(f->id, f->path, tensor ? tensor : "/", key, value));
    return OK;
}
