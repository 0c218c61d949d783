// manifest_check.c - whether the files beside a manifest are what it says.
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "arena.h"
#include "manifest.h"

#define STAGE_BYTES ((int64_t)8 << 20)

static void file_path(char out[4096], const char *dir, const char *name) {
    snprintf(out, 4096, "%s/%s", dir, name);
}

Err manifest_sizes(const Manifest *m, const char *dir) {
    for (int64_t i = 0; i < m->nfiles; i++) {
        char path[4096];
        struct stat st;
        file_path(path, dir, m->files[i].name);
        CHECK(stat(path, &st) == 0, E_INPUT, "%s: file of the checkpoint missing: %s", path,
              strerror(errno));
        CHECK(st.st_size == m->files[i].bytes, E_INPUT,
              "%s is damaged: expected %lld bytes, found %lld", path, (long long)m->files[i].bytes,
              (long long)st.st_size);
    }
    return OK;
}

Err manifest_check_file(const Manifest *m, const char *dir, int64_t i) {
    char path[4096];
    Hash128 found;
    int64_t bytes;
    file_path(path, dir, m->files[i].name);
    TRY(hash_file(path, &found, &bytes));
    CHECK(bytes == m->files[i].bytes, E_INPUT, "%s is damaged: expected %lld bytes, found %lld",
          path, (long long)m->files[i].bytes, (long long)bytes);
    CHECK(hash_equal(found, m->files[i].hash), E_INPUT, "%s is damaged: expected hash %s, found %s",
          path, hash_text(m->files[i].hash).s, hash_text(found).s);
    return OK;
}

Err manifest_check_files(const Manifest *m, const char *dir, int part, int nparts) {
    for (int64_t i = part; i < m->nfiles; i += nparts) TRY(manifest_check_file(m, dir, i));
    return OK;
}

Err manifest_piece_expect(const Manifest *m, const char *dir, int64_t i, Hash128 found) {
    const ManifestPiece *p = &m->pieces[i];
    CHECK(hash_equal(found, p->hash), E_INPUT,
          "%s/%s is damaged: tensor %s, rows %lld to %lld: expected hash %s, found %s", dir,
          m->files[p->file].name, m->tensors[p->tensor].name, (long long)p->first,
          (long long)(p->first + p->rows - 1), hash_text(p->hash).s, hash_text(found).s);
    return OK;
}

// The hash of a piece, read through a buffer of STAGE_BYTES (or of one row).
static Err piece_hash(const Manifest *m, TensorFile *f, int64_t i, HashStream *stream,
                      Hash128 *out) {
    const ManifestPiece *p = &m->pieces[i];
    const ManifestTensor *t = &m->tensors[p->tensor];
    int64_t row_bytes = manifest_cols(m, p->tensor) * (int64_t)dtype_bytes(t->dtype);
    int64_t step = max_i64(STAGE_BYTES / row_bytes, 1);
    TensorInfo info;
    TRY(tensorfile_info(f, t->name, &info));
    CHECK(info.dtype == t->dtype && info.rows == p->rows &&
              info.cols == manifest_cols(m, p->tensor),
          E_INPUT, "%s is damaged: tensor %s: expected %s [%lld, %lld], found %s [%lld, %lld]",
          m->files[p->file].name, t->name, dtype_name(t->dtype), (long long)p->rows,
          (long long)manifest_cols(m, p->tensor), dtype_name(info.dtype), (long long)info.rows,
          (long long)info.cols);
    void *stage = NULL;
    TRY(mem_alloc(&stage, (size_t)(min_i64(step, p->rows) * row_bytes), "staging buffer"));
    Err err = OK;
    for (int64_t at = 0; at < p->rows && err == OK; at += step) {
        int64_t n = min_i64(step, p->rows - at);
        err = tensorfile_read_rows(f, t->name, t->dtype, at, n, stage);
        if (err == OK) hash_stream_add(stream, stage, (size_t)(n * row_bytes));
    }
    mem_free(stage);
    TRY(err);
    *out = hash_stream_end(stream);
    return OK;
}

static Err check_piece(const Manifest *m, const char *dir, TensorFile *f, int64_t i) {
    HashStream *stream = NULL;
    Hash128 found = {0, 0};
    TRY(hash_stream_new(&stream));
    Err err = piece_hash(m, f, i, stream, &found);
    hash_stream_free(&stream);
    TRY(err);
    TRY(manifest_piece_expect(m, dir, i, found));
    return OK;
}

// The wanted pieces of one file that fall into the share.
static Err check_shard(const Manifest *m, const char *dir, int64_t file, const bool *want, int part,
                       int nparts) {
    TensorFile *f = NULL;
    Err err = OK;
    for (int64_t i = 0; i < m->npieces; i++) {
        if (m->pieces[i].file != file || i % nparts != part || (want && !want[i])) continue;
        if (!f) {
            char path[4096];
            file_path(path, dir, m->files[file].name);
            TRY_OR(tensorfile_open(&f, path), done);
        }
        TRY_OR(check_piece(m, dir, f, i), done);
    }
done:
    tensorfile_drop(&f);
    return err;
}

// Where there are at least as many files as shares a file is one share's alone, so that it is
// opened once.
Err manifest_check_pieces(const Manifest *m, const char *dir, const bool *want, int part,
                          int nparts) {
    for (int64_t file = 0; file < m->nfiles; file++) {
        if (m->nfiles >= nparts) {
            if (file % nparts == part) TRY(check_shard(m, dir, file, want, 0, 1));
        } else {
            TRY(check_shard(m, dir, file, want, part, nparts));
        }
    }
    return OK;
}
