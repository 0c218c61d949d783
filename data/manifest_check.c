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

// ---- the values of pieces ----------------------------------------------------------------------

// One reading of a piece: what is wanted of it, and where that goes.
typedef struct PieceRead {
    const Manifest *m;
    const char *dir;
    TensorFile *f;
    const ManifestPiece *p;
    const ManifestTensor *t;
    int64_t row_bytes;
    int64_t begin, end; // rows of the piece that are wanted
    char *out;          // the first of them
    void *stage;        // [max(STAGE_BYTES, one block)]
    int64_t stage_rows;
} PieceRead;

// Rows [at, at + n) of the piece are what was in memory?
static Err expect(const PieceRead *r, int64_t at, int64_t n, Hash128 want, Hash128 found) {
    CHECK(hash_equal(found, want), E_INPUT,
          "%s/%s is damaged: tensor %s, rows %lld to %lld: expected hash %s, found %s", r->dir,
          r->m->files[r->p->file].name, r->t->name, (long long)(r->p->first + at),
          (long long)(r->p->first + at + n - 1), hash_text(want).s, hash_text(found).s);
    return OK;
}

// Rows [at, at + n) of the piece into the stage, and what is wanted of them to its place.
static Err read_stretch(PieceRead *r, int64_t at, int64_t n) {
    TRY(tensorfile_read_rows(r->f, r->t->name, r->t->dtype, at, n, r->stage));
    int64_t from = max_i64(at, r->begin), to = min_i64(at + n, r->end);
    if (from < to)
        memcpy(r->out + (from - r->begin) * r->row_bytes,
               (const char *)r->stage + (from - at) * r->row_bytes,
               (size_t)((to - from) * r->row_bytes));
    return OK;
}

static Err read_whole(PieceRead *r) {
    HashStream *stream = NULL;
    Err err = OK;
    TRY(hash_stream_new(&stream));
    for (int64_t at = 0; at < r->p->rows; at += r->stage_rows) {
        int64_t n = min_i64(r->stage_rows, r->p->rows - at);
        TRY_OR(read_stretch(r, at, n), done);
        hash_stream_add(stream, r->stage, (size_t)(n * r->row_bytes));
    }
    TRY_OR(expect(r, 0, r->p->rows, r->p->hash, hash_stream_end(stream)), done);
done:
    hash_stream_free(&stream);
    return err;
}

// The table of hashes of a piece, checked itself.
static Err read_table(const PieceRead *r, Hash128 **table) {
    char name[TENSOR_NAME + 16];
    const char *file = r->m->files[r->p->file].name;
    int64_t n = ceil_div(r->p->rows, r->p->block_rows);
    snprintf(name, sizeof name, "%s%s", MANIFEST_BLOCKS, r->t->name);
    MEM_NEW(*table, n);
    TRY(tensorfile_read(r->f, name, DT_U64, 2 * n, *table));
    Hash128 found = hash128(*table, (size_t)n * sizeof **table);
    CHECK(hash_equal(found, r->p->blocks), E_INPUT,
          "%s/%s is damaged: hashes of tensor %s: expected hash %s, found %s", r->dir, file,
          r->t->name, hash_text(r->p->blocks).s, hash_text(found).s);
    return OK;
}

static Err read_blocks(PieceRead *r) {
    Hash128 *table = NULL;
    Err err = OK;
    int64_t step = r->p->block_rows;
    TRY_OR(read_table(r, &table), done);
    for (int64_t b = r->begin / step; b * step < r->end; b++) {
        int64_t at = b * step, n = min_i64(step, r->p->rows - at);
        TRY_OR(read_stretch(r, at, n), done);
        TRY_OR(expect(r, at, n, table[b], hash128(r->stage, (size_t)(n * r->row_bytes))), done);
    }
done:
    mem_free(table);
    return err;
}

static Err check_shape(const PieceRead *r, int64_t cols) {
    TensorInfo info;
    TRY(tensorfile_info(r->f, r->t->name, &info));
    CHECK(info.dtype == r->t->dtype && info.rows == r->p->rows && info.cols == cols, E_INPUT,
          "%s/%s is damaged: tensor %s: expected %s [%lld, %lld], found %s [%lld, %lld]", r->dir,
          r->m->files[r->p->file].name, r->t->name, dtype_name(r->t->dtype), (long long)r->p->rows,
          (long long)cols, dtype_name(info.dtype), (long long)info.rows, (long long)info.cols);
    return OK;
}

Err manifest_read_piece(const Manifest *m, const char *dir, TensorFile *f, int64_t i, int64_t first,
                        int64_t rows, void *out) {
    const ManifestPiece *p = &m->pieces[i];
    const ManifestTensor *t = &m->tensors[p->tensor];
    int64_t cols = manifest_cols(m, p->tensor), row_bytes = cols * (int64_t)dtype_bytes(t->dtype);
    int64_t begin = min_i64(max_i64(first - p->first, 0), p->rows);
    int64_t end = max_i64(min_i64(first + rows - p->first, p->rows), begin);
    PieceRead r = {m, dir, f, p, t, row_bytes, begin, end, out, NULL, 0};
    TRY(check_shape(&r, cols));
    bool is_part = begin < end && end - begin < p->rows && p->block_rows > 0;
    r.stage_rows = min_i64(is_part ? p->block_rows : max_i64(STAGE_BYTES / row_bytes, 1), p->rows);
    TRY(mem_alloc(&r.stage, (size_t)(r.stage_rows * row_bytes), "staging buffer"));
    Err err = is_part ? read_blocks(&r) : read_whole(&r);
    mem_free(r.stage);
    TRY(err);
    return OK;
}

// The pieces of one file that fall into the share.
static Err check_shard(const Manifest *m, const char *dir, int64_t file, int part, int nparts) {
    TensorFile *f = NULL;
    Err err = OK;
    for (int64_t i = 0; i < m->npieces; i++) {
        if (m->pieces[i].file != file || i % nparts != part) continue;
        if (!f) {
            char path[4096];
            file_path(path, dir, m->files[file].name);
            TRY_OR(tensorfile_open(&f, path), done);
        }
        TRY_OR(manifest_read_piece(m, dir, f, i, 0, 0, NULL), done);
    }
done:
    tensorfile_drop(&f);
    return err;
}

// Where there are at least as many files as shares a file is one share's alone, so that it is
// opened once.
Err manifest_check_pieces(const Manifest *m, const char *dir, int part, int nparts) {
    for (int64_t file = 0; file < m->nfiles; file++) {
        if (m->nfiles >= nparts) {
            if (file % nparts == part) TRY(check_shard(m, dir, file, 0, 1));
        } else {
            TRY(check_shard(m, dir, file, part, nparts));
        }
    }
    return OK;
}
