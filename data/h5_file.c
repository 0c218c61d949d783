// h5_file.c - the one mutex of HDF5, its error texts, files and attributes.
#define H5_USE_110_API
#include "h5_file.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "h5_zstd.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// The innermost message of the first failure since the lock was taken: later calls (closing what is
// open) clear or overwrite HDF5's own error stack.
static char failure[256];

static herr_t first_entry(unsigned n, const H5E_error2_t *e, void *text) {
    if (n == 0 && e->desc) snprintf(text, sizeof failure, "%s", e->desc);
    return 0;
}

// HDF5 calls this whenever one of its functions fails.
static herr_t record(hid_t stack, void *unused) {
    (void)unused;
    if (!failure[0]) H5Ewalk2(stack, H5E_WALK_UPWARD, first_entry, failure);
    return 0;
}

void h5_error_clear(void) {
    failure[0] = '\0';
}

const char *h5_error_text(void) {
    static _Thread_local char text[sizeof failure];
    memcpy(text, failure, sizeof text);
    h5_error_clear();
    if (!text[0]) return "unknown HDF5 error";
    // System errors come as "..., errno = 28, error message = 'No space left on device', buf =
    // ...".
    char *from = strstr(text, "error message = '");
    if (from) {
        from += strlen("error message = '");
        char *to = strchr(from, '\'');
        if (to) *to = '\0';
        return from;
    }
    return text;
}

void h5_lock(void) {
    static bool is_ready = false;
    static _Thread_local bool is_recorded = false;
    pthread_mutex_lock(&mutex);
    h5_error_clear();
    if (!is_ready) {
        // A file that could not be flushed (disk full) would be tried again at exit, endlessly: we
        // close every file ourselves.
        H5dont_atexit();
        H5open();
        H5Zregister(h5_zstd_class());
        is_ready = true;
    }
    if (is_recorded) return;
    H5Eset_auto2(H5E_DEFAULT, record, NULL); // a thread-safe build of HDF5 has an error stack per thread
    is_recorded = true;
}

void h5_unlock(void) {
    pthread_mutex_unlock(&mutex);
}

static hid_t access_list(void) {
    hid_t list = H5Pcreate(H5P_FILE_ACCESS);
    if (list < 0) return -1;
    if (H5Pset_libver_bounds(list, H5F_LIBVER_V18, H5F_LIBVER_V110) < 0 ||
        H5Pset_fclose_degree(list, H5F_CLOSE_STRONG) < 0 ||
        H5Pset_file_locking(list, false, true) < 0) {
        H5Pclose(list);
        return -1;
    }
    return list;
}

Err h5_file_create(int64_t *file, const char *path) {
    hid_t list = access_list();
    CHECK(list >= 0, E_INTERNAL, "%s: HDF5: %s", path, h5_error_text());
    *file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, list);
    H5Pclose(list);
    CHECK(*file >= 0, E_OUTPUT, "%s: cannot create: %s", path, h5_error_text());
    return OK;
}

Err h5_file_open(int64_t *file, const char *path) {
    *file = -1;
    if (access(path, R_OK) != 0) FAIL(E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    hid_t list = access_list();
    CHECK(list >= 0, E_INTERNAL, "%s: HDF5: %s", path, h5_error_text());
    *file = H5Fopen(path, H5F_ACC_RDONLY, list);
    H5Pclose(list);
    CHECK(*file >= 0, E_INPUT, "%s: not a readable HDF5 file, or damaged: %s", path,
          h5_error_text());
    return OK;
}

static Err sync_file(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, E_OUTPUT, "%s: cannot open to sync: %s", path, strerror(errno));
    int rc = fsync(fd), saved = errno;
    close(fd);
    CHECK(rc == 0, E_OUTPUT, "%s: fsync: %s", path, strerror(saved));
    return OK;
}

Err h5_file_close(int64_t *file, const char *path, bool is_write, bool is_sync) {
    hid_t id = *file;
    *file = -1;
    if (id < 0) return OK;
    bool is_bad = is_write && H5Fflush(id, H5F_SCOPE_LOCAL) < 0;
    char text[256];
    if (is_bad) snprintf(text, sizeof text, "%s", h5_error_text());
    if (H5Fclose(id) < 0) { // close even if the flush failed
        if (!is_bad) snprintf(text, sizeof text, "%s", h5_error_text());
        is_bad = true;
    }
    CHECK(!is_bad, is_write ? E_OUTPUT : E_INPUT, "%s: cannot %s: %s", path,
          is_write ? "write" : "close", text);
    if (is_sync) TRY(sync_file(path));
    return OK;
}

static herr_t attribute_put(hid_t file, const char *object, const char *key, hid_t disk,
                            hid_t memory, const void *value) {
    htri_t old = H5Aexists_by_name(file, object, key, H5P_DEFAULT);
    if (old < 0 || (old > 0 && H5Adelete_by_name(file, object, key, H5P_DEFAULT) < 0)) return -1;
    hid_t space = H5Screate(H5S_SCALAR);
    hid_t id =
        H5Acreate_by_name(file, object, key, disk, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    herr_t rc = id < 0 ? -1 : H5Awrite(id, memory, value);
    if (id >= 0 && H5Aclose(id) < 0) rc = -1;
    H5Sclose(space);
    return rc;
}

static hid_t text_type(size_t size) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, size);
    H5Tset_cset(type, H5T_CSET_UTF8);
    H5Tset_strpad(type, H5T_STR_NULLPAD);
    return type;
}

Err h5_set_text(int64_t file, const char *path, const char *object, const char *key,
                const char *value) {
    size_t n = strlen(value);
    hid_t type = text_type(n > 0 ? n : 1);
    herr_t rc = attribute_put(file, object, key, type, type, value);
    H5Tclose(type);
    CHECK(rc >= 0, E_OUTPUT, "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    return OK;
}

Err h5_set_int(int64_t file, const char *path, const char *object, const char *key, int64_t value) {
    CHECK(attribute_put(file, object, key, H5T_STD_I64LE, H5T_NATIVE_INT64, &value) >= 0, E_OUTPUT,
          "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    return OK;
}

Err h5_set_double(int64_t file, const char *path, const char *object, const char *key,
                  double value) {
    CHECK(attribute_put(file, object, key, H5T_IEEE_F64LE, H5T_NATIVE_DOUBLE, &value) >= 0,
          E_OUTPUT, "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    return OK;
}

Err h5_has_attribute(int64_t file, const char *path, const char *object, const char *key,
                     bool *there) {
    htri_t found = H5Aexists_by_name(file, object, key, H5P_DEFAULT);
    CHECK(found >= 0, E_INPUT, "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    *there = found > 0;
    return OK;
}

// Open an attribute and check that it is one value of the wanted class.
static Err attribute_open(hid_t *out, hid_t file, const char *path, const char *object,
                          const char *key, H5T_class_t want) {
    static const char *names[] = {
        [H5T_INTEGER] = "an integer", [H5T_FLOAT] = "a number", [H5T_STRING] = "a string"};
    bool there = false;
    TRY(h5_has_attribute(file, path, object, key, &there));
    CHECK(there, E_INPUT, "%s: %s has no attribute '%s'", path, object, key);
    hid_t id = H5Aopen_by_name(file, object, key, H5P_DEFAULT, H5P_DEFAULT);
    CHECK(id >= 0, E_INPUT, "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    hid_t space = H5Aget_space(id), type = H5Aget_type(id);
    bool is_good = space >= 0 && type >= 0 && H5Sget_simple_extent_npoints(space) == 1 &&
                   H5Tget_class(type) == want && H5Tis_variable_str(type) <= 0;
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    if (!is_good) {
        H5Aclose(id);
        FAIL(E_INPUT, "%s: attribute %s of %s: expected %s of fixed size", path, key, object,
             names[want]);
    }
    *out = id;
    return OK;
}

Err h5_get_text(int64_t file, const char *path, const char *object, const char *key, char *value,
                size_t cap) {
    hid_t id;
    TRY(attribute_open(&id, file, path, object, key, H5T_STRING));
    hid_t disk = H5Aget_type(id);
    size_t size = disk >= 0 ? H5Tget_size(disk) : 0;
    H5T_cset_t charset = H5Tget_cset(disk);
    H5Tclose(disk);
    if (size == 0 || size > cap - 1) {
        H5Aclose(id);
        FAIL(E_INPUT, "%s: attribute %s of %s: %zu bytes, at most %zu expected", path, key, object,
             size, cap - 1);
    }
    hid_t type = text_type(size);
    H5Tset_cset(type, charset); // HDF5 does not convert between character sets
    memset(value, 0, cap);
    herr_t rc = H5Aread(id, type, value);
    H5Tclose(type);
    H5Aclose(id);
    CHECK(rc >= 0, E_INPUT, "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    return OK;
}

static Err number_get(hid_t file, const char *path, const char *object, const char *key,
                      H5T_class_t want, hid_t memory, void *value) {
    hid_t id;
    TRY(attribute_open(&id, file, path, object, key, want));
    herr_t rc = H5Aread(id, memory, value);
    H5Aclose(id);
    CHECK(rc >= 0, E_INPUT, "%s: attribute %s of %s: %s", path, key, object, h5_error_text());
    return OK;
}

Err h5_get_int(int64_t file, const char *path, const char *object, const char *key,
               int64_t *value) {
    TRY(number_get(file, path, object, key, H5T_INTEGER, H5T_NATIVE_INT64, value));
    return OK;
}

Err h5_get_double(int64_t file, const char *path, const char *object, const char *key,
                  double *value) {
    TRY(number_get(file, path, object, key, H5T_FLOAT, H5T_NATIVE_DOUBLE, value));
    return OK;
}
