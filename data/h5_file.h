// h5_file.h - what every HDF5 file of ours shares: the lock, error texts, opening, closing,
// attributes. Private to data/.
//
// The HDF5 library is not thread-safe, so one mutex guards every call of it: h5_lock() before,
// h5_unlock() after. All other functions here expect the lock to be held. Ids are int64_t (hid_t),
// so that hdf5.h stays out of headers. Strings on disk are fixed-length UTF-8, never
// variable-length.
#pragma once
#include "fail.h"

// h5_lock: take the mutex; the first call silences HDF5's own error printing and registers zstd.
void h5_lock(void);
void h5_unlock(void);
// h5_error_text: the innermost message of the first HDF5 failure since h5_lock or h5_error_clear,
// "unknown HDF5 error" if there is none; forgets it. Valid until the next call on this thread.
const char *h5_error_text(void);
// h5_error_clear: forget a failure that was expected.
void h5_error_clear(void);

// h5_file_create: a new file (an old one of that name is overwritten), library bounds v18..v110, no
// file locking (network file systems). h5_file_open: read-only. Errors: E_OUTPUT / E_INPUT.
Err h5_file_create(int64_t *file, const char *path) MUST_CHECK;
Err h5_file_open(int64_t *file, const char *path) MUST_CHECK;
// h5_file_close: flush (if is_write) and close, then fsync (if is_sync). Errors: E_OUTPUT
// (is_write), so a disk that filled up late is never lost; E_INPUT otherwise.
Err h5_file_close(int64_t *file, const char *path, bool is_write, bool is_sync) MUST_CHECK;

// Attributes of `object` in `file` ("/" or a dataset). Setting replaces. Errors: E_OUTPUT on set;
// E_INPUT on get if the attribute is missing, of another kind, or (text) longer than cap - 1 bytes.
Err h5_set_text(int64_t file, const char *path, const char *object, const char *key,
                const char *value) MUST_CHECK;
Err h5_set_int(int64_t file, const char *path, const char *object, const char *key,
               int64_t value) MUST_CHECK;
Err h5_set_double(int64_t file, const char *path, const char *object, const char *key,
                  double value) MUST_CHECK;
Err h5_get_text(int64_t file, const char *path, const char *object, const char *key, char *value,
                size_t cap) MUST_CHECK;
Err h5_get_int(int64_t file, const char *path, const char *object, const char *key,
               int64_t *value) MUST_CHECK;
Err h5_get_double(int64_t file, const char *path, const char *object, const char *key,
                  double *value) MUST_CHECK;
// Whether there is such an attribute; what cannot be read is damage, not absence.
Err h5_has_attribute(int64_t file, const char *path, const char *object, const char *key,
                     bool *there) MUST_CHECK;
