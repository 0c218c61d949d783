// hf_export.c - masters and biases as a Hugging Face directory, a strip of rows at a time.
//
// The directory is written beside its final place and renamed when it is complete. Tensors go to files in model
// order, a new file before one would exceed the limit; inside a file wide types stand first, so that all stay
// aligned. FP8 matrices are quantised as training does it (weight_prepare); their scales are tensors of their own.
#include "hf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fp8.h"
#include "log.h"

#define SHARD_BYTES ((int64_t)4 << 30)

// One tensor to write.
typedef struct Piece {
    char name[128];
    const Param *p; // matrix `mat` of p; NULL: the bias of `block`, or a scale
    int64_t mat, block;
    int64_t rows, cols;
    bool is_vector;
    bool is_scale; // of the piece before it: the same file, written with it
    StType type;
    int file; // from 0
} Piece;

typedef struct Exporter {
    Piece *pieces;
    int64_t n, room;
    int nfiles;
    int64_t total; // bytes of all tensors
    const Weights *from;
    const Shape *s;
    const Cx *cx;
    const HfExport *how;
    Carried carried;
    float *numbers; // a strip of rows
    void *coded;    // the same as it goes into the file
} Exporter;

static int64_t piece_bytes(const Piece *x) {
    return x->rows * x->cols * (int64_t)st_type_bytes(x->type);
}

static Piece *piece_new(Exporter *ex) {
    Piece *x = &ex->pieces[ex->n++];
    memset(x, 0, sizeof *x);
    return x;
}

static StType piece_type(const Exporter *ex, const Param *p) {
    if (ex->how->dtype == HF_F32) return ST_F32;
    return ex->how->dtype == HF_FP8 && p->kind == KIND_FP8 ? ST_F8_E4M3 : ST_BF16;
}

static Piece *piece_add(Exporter *ex, const Param *p, int64_t mat) {
    Piece *x = piece_new(ex);
    x->p = p;
    x->mat = mat;
    x->rows = p->rows;
    x->cols = p->cols;
    x->is_vector = p->is_init_one;
    x->type = piece_type(ex, p);
    params_hf_name(x->name, sizeof x->name, p, mat);
    return x;
}

static void piece_add_scale(Exporter *ex, const Piece *of) {
    Piece *x = piece_new(ex);
    x->is_scale = true;
    x->rows = ceil_div(of->rows, TILE);
    x->cols = ceil_div(of->cols, TILE);
    x->type = ST_F32;
    snprintf(x->name, sizeof x->name, "%.*s_scale_inv", (int)sizeof x->name - 16, of->name);
}

static void piece_add_copy(Exporter *ex, const Param *p, int64_t layer, const char *suffix) {
    Piece *x = piece_add(ex, p, 0);
    snprintf(x->name, sizeof x->name, "model.layers.%lld.%s", (long long)layer, suffix);
}

// The biases and table copies of a block, after the last of its parameters.
static void block_done(Exporter *ex, const Params *p, int64_t layer) {
    if (p->bias[layer]) {
        Piece *x = piece_new(ex);
        x->block = layer;
        x->rows = 1;
        x->cols = p->E;
        x->is_vector = true;
        x->type = ST_F32;
        snprintf(x->name, sizeof x->name, "model.layers.%lld.mlp.gate.e_score_correction_bias", (long long)layer);
    }
    if (layer < ex->s->nlayers) return;
    const Param *embed = params_find(p, P_EMBED, -1), *head = params_find(p, P_HEAD, -1);
    piece_add_copy(ex, embed, layer, "embed_tokens.weight");
    piece_add_copy(ex, head ? head : embed, layer, "shared_head.head.weight");
}

// Which file holds which tensor, and what all take.
static void assign_files(Exporter *ex) {
    int64_t limit = ex->how->shard_bytes ? ex->how->shard_bytes : SHARD_BYTES, used = 0;
    for (int64_t i = 0; i < ex->n; i++) {
        Piece *x = &ex->pieces[i];
        bool has_scale = i + 1 < ex->n && x[1].is_scale;
        int64_t bytes = piece_bytes(x), together = bytes + (has_scale ? piece_bytes(x + 1) : 0);
        if (used > 0 && used + together > limit && !x->is_scale) {
            ex->nfiles++;
            used = 0;
        }
        x->file = ex->nfiles;
        used += bytes;
        ex->total += bytes;
    }
    ex->nfiles++;
}

// All tensors in model order.
static Err list_pieces(Exporter *ex, const Params *p) {
    for (int i = 0; i < p->n; i++) ex->room += 2 * p->p[i].nmat_all;
    ex->room += p->nblocks * 3;
    MEM_NEW(ex->pieces, ex->room);
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        if (ex->how->without_mtp && e->layer >= ex->s->nlayers) continue;
        for (int64_t mat = 0; mat < e->nmat_all; mat++) {
            const Piece *x = piece_add(ex, e, mat);
            if (x->type == ST_F8_E4M3) piece_add_scale(ex, x);
        }
        bool is_last = i + 1 == p->n || p->p[i + 1].layer != e->layer;
        if (e->layer >= 0 && is_last) block_done(ex, p, e->layer);
    }
    assign_files(ex);
    return OK;
}

// Memory for the largest strip of rows.
static Err make_buffers(Exporter *ex) {
    int64_t numbers = 0;
    size_t coded = 0;
    for (int64_t i = 0; i < ex->n; i++) {
        const Piece *x = &ex->pieces[i];
        int64_t rows = strip_rows(x->rows, x->cols, TILE), n = rows * x->cols;
        size_t bytes = x->type == ST_F8_E4M3 ? weight_bytes(1, rows, x->cols, SCALE_F32) : (size_t)n * sizeof(uint16_t);
        numbers = max_i64(numbers, n);
        coded = bytes > coded ? bytes : coded;
    }
    MEM_NEW(ex->numbers, numbers);
    return mem_alloc(&ex->coded, coded, "export buffer");
}

static void file_name(char *out, size_t n, int file, int nfiles) {
    if (nfiles == 1)
        snprintf(out, n, "model.safetensors");
    else
        snprintf(out, n, "model-%05d-of-%05d.safetensors", file + 1, nfiles);
}

// n rows of an FP8 matrix, whole blocks or its last ones: codes, then scales.
static Err put_codes(Exporter *ex, SafetensorsWriter *w, const Piece *x, int64_t n) {
    OpCx op = ex->cx->op;
    MatQ q = weight_view(ex->coded, 1, n, x->cols, SCALE_F32);
    TRY(ex->cx->ops->weight_prepare(&op, q, mat(ex->numbers, DT_F32, n, x->cols), (QuantRule){0}, NULL));
    for (int64_t r = 1; r < n && q.ld != q.cols; r++) memmove(q.q + r * q.cols, q.q + r * q.ld, (size_t)q.cols);
    TRY(safetensors_put(w, x->name, q.q, (size_t)(n * q.cols)));
    return safetensors_put(w, x[1].name, q.s, (size_t)(ceil_div(n, TILE) * q.srow) * sizeof(float));
}

// n rows in ex->numbers, converted to the piece's type.
static Err put_numbers(Exporter *ex, SafetensorsWriter *w, const Piece *x, int64_t n) {
    if (x->type == ST_F8_E4M3) return put_codes(ex, w, x, n);
    int64_t count = n * x->cols;
    if (x->type == ST_F32) return safetensors_put(w, x->name, ex->numbers, (size_t)count * sizeof(float));
    uint16_t *halves = ex->coded;
    for (int64_t i = 0; i < count; i++) halves[i] = bf16_from_f32(ex->numbers[i]);
    return safetensors_put(w, x->name, halves, (size_t)count * sizeof *halves);
}

static Err put_piece(Exporter *ex, SafetensorsWriter *w, const Piece *x) {
    if (x->is_scale) return OK; // written with its matrix
    int64_t step = strip_rows(x->rows, x->cols, TILE); // rows that are converted together
    for (int64_t row = 0; row < x->rows; row += step) {
        int64_t n = min_i64(step, x->rows - row);
        if (x->p)
            TRY(ex->from->rows(ex->from->of, x->p, x->mat * x->p->rows + row, n, ex->numbers));
        else
            TRY(ex->from->bias(ex->from->of, x->block, ex->numbers));
        TRY(put_numbers(ex, w, x, n));
        carried_add(&ex->carried, (double)(n * x->cols) * (double)st_type_bytes(x->type));
    }
    return OK;
}

// The pieces of one file in their order there: the widest types first.
static Err write_file(Exporter *ex, const char *dir, int file) {
    char path[PATH_MAX], name[64];
    file_name(name, sizeof name, file, ex->nfiles);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    StDecl *decl = NULL;
    const Piece **order = NULL;
    SafetensorsWriter *w = NULL;
    int64_t n = 0;
    Err err = OK;
    TRY_OR(mem_alloc((void **)&decl, (size_t)ex->n * sizeof *decl, "declarations"), done);
    TRY_OR(mem_alloc((void **)&order, (size_t)ex->n * sizeof *order, "order"), done);
    for (size_t width = 4; width > 0; width /= 2) {
        for (int64_t i = 0; i < ex->n; i++) {
            const Piece *x = &ex->pieces[i];
            if (x->file != file || st_type_bytes(x->type) != width) continue;
            StDecl d = {.name = x->name, .dtype = x->type, .ndim = x->is_vector ? 1 : 2};
            d.shape[0] = x->is_vector ? x->cols : x->rows;
            d.shape[1] = x->is_vector ? 0 : x->cols;
            order[n] = x;
            decl[n++] = d;
        }
    }
    TRY_OR(safetensors_create(&w, path, decl, n), done);
    for (int64_t i = 0; i < n; i++) TRY_OR(put_piece(ex, w, order[i]), done);
    TRY_OR(safetensors_finish(&w, true), done);
done:
    safetensors_drop(&w);
    mem_free(decl);
    mem_free(order);
    return err;
}

static Err write_index(Exporter *ex, const char *dir) {
    if (ex->nfiles == 1) return OK;
    char path[PATH_MAX];
    const char **names = NULL, **files = NULL;
    char(*text)[64] = NULL;
    Err err = OK;
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    TRY_OR(mem_alloc((void **)&names, (size_t)ex->n * sizeof *names, "index"), done);
    TRY_OR(mem_alloc((void **)&files, (size_t)ex->n * sizeof *files, "index"), done);
    TRY_OR(mem_alloc((void **)&text, (size_t)ex->nfiles * sizeof *text, "index"), done);
    for (int i = 0; i < ex->nfiles; i++) file_name(text[i], sizeof text[i], i, ex->nfiles);
    for (int64_t i = 0; i < ex->n; i++) {
        names[i] = ex->pieces[i].name;
        files[i] = text[ex->pieces[i].file];
    }
    TRY_OR(safetensors_write_index(path, names, files, ex->n, ex->total), done);
done:
    mem_free(names);
    mem_free(files);
    mem_free(text);
    return err;
}

// E_USAGE if `dir` holds anything.
static Err check_free(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) {
        CHECK(errno == ENOENT, errno == ENOTDIR ? E_USAGE : E_OUTPUT, "cannot export to %s: %s", dir,
              strerror(errno));
        return OK;
    }
    bool is_empty = true;
    for (struct dirent *e; (e = readdir(d)) && is_empty;)
        is_empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
    closedir(d);
    CHECK(is_empty, E_USAGE, "%s is not empty: nothing is overwritten; choose another folder or empty it", dir);
    return OK;
}

// Remove a folder of plain files that we made; what cannot be removed is left.
static void remove_folder(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) unlinkat(dirfd(d), e->d_name, 0);
    }
    closedir(d);
    rmdir(dir);
}

static Err write_all(Exporter *ex, const char *partial, const Params *p, const Config *c) {
    TRY(list_pieces(ex, p));
    TRY(make_buffers(ex));
    ex->carried = carried_begin("exported", (double)ex->total);
    for (int i = 0; i < ex->nfiles; i++) TRY(write_file(ex, partial, i));
    TRY(write_index(ex, partial));
    return hf_write_config(partial, c, ex->s, ex->how);
}

Err hf_export(const char *dir, const Params *p, const Weights *from, const Shape *s, const Config *c, const Cx *cx,
              const HfExport *how) {
    char clean[PATH_MAX - 64], partial[PATH_MAX];
    CHECK(dir[0] && strlen(dir) < sizeof clean, E_USAGE, "cannot export to '%.100s'", dir);
    snprintf(clean, sizeof clean, "%s", dir);
    for (size_t n = strlen(clean); n > 1 && clean[n - 1] == '/'; n--) clean[n - 1] = '\0';
    TRY(check_free(clean));
    struct stat st; // a link keeps pointing at the folder that is written
    if (lstat(clean, &st) == 0 && S_ISLNK(st.st_mode)) {
        char *target = realpath(clean, NULL);
        bool is_usable = target && strlen(target) < sizeof clean;
        if (is_usable) snprintf(clean, sizeof clean, "%s", target);
        free(target);
        CHECK(is_usable, E_OUTPUT, "cannot export to %s: a link to nowhere", dir);
    }
    snprintf(partial, sizeof partial, "%s.partial-%ld", clean, (long)getpid());
    CHECK(mkdir(partial, 0777) == 0, E_OUTPUT, "cannot create %s: %s", partial, strerror(errno));
    Exporter ex = {.from = from, .s = s, .cx = cx, .how = how};
    Err err = write_all(&ex, partial, p, c);
    if (err == OK && rename(partial, clean) != 0) {
        err = fail_at(E_OUTPUT, __FILE__, __LINE__, "cannot rename %s to %s: %s", partial, clean, strerror(errno));
    }
    if (err != OK)
        remove_folder(partial);
    else
        log_line("exported %lld tensors (%s) in %d file%s to %s", (long long)ex.n, text_bytes((double)ex.total).s,
                 ex.nfiles, ex.nfiles == 1 ? "" : "s", clean);
    mem_free(ex.pieces);
    mem_free(ex.numbers);
    mem_free(ex.coded);
    return err;
}
