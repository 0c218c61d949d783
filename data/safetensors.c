// safetensors.c - reading safetensors: header checks, memory maps, directories with an index.
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fp8.h"
#include "view.h"

#define HEADER_MAX 100000000u // of the reference implementation

static const struct {
    const char *name;
    size_t bytes;
} types[ST_TYPES] = {
    [ST_BOOL] = {"BOOL", 1},       [ST_U8] = {"U8", 1},           [ST_I8] = {"I8", 1},
    [ST_F8_E5M2] = {"F8_E5M2", 1}, [ST_F8_E4M3] = {"F8_E4M3", 1}, [ST_I16] = {"I16", 2},
    [ST_U16] = {"U16", 2},         [ST_F16] = {"F16", 2},         [ST_BF16] = {"BF16", 2},
    [ST_I32] = {"I32", 4},         [ST_U32] = {"U32", 4},         [ST_F32] = {"F32", 4},
    [ST_F64] = {"F64", 8},         [ST_I64] = {"I64", 8},         [ST_U64] = {"U64", 8},
};

const char *st_type_name(StType t) {
    return types[t].name;
}

size_t st_type_bytes(StType t) {
    return types[t].bytes;
}

typedef struct Map {
    char *path;
    const uint8_t *p;
    size_t size;
} Map;

struct Safetensors {
    Map *map;
    int64_t nmap;
    StTensor *tensor; // by name
    int64_t n, cap;
};

// ---- one file ----------------------------------------------------------------------------------

static Err map_file(Map *m, const char *path) {
    m->path = strdup(path);
    CHECK(m->path, E_INTERNAL, "%s: out of memory", path);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0, E_INPUT, "%s: cannot open: %s", path, strerror(errno));
    struct stat s;
    void *p = MAP_FAILED;
    const char *why = "not a regular file of at least 8 bytes";
    if (fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && s.st_size >= 8) {
        p = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) why = strerror(errno);
    }
    close(fd);
    CHECK(p != MAP_FAILED, E_INPUT, "%s: cannot read as safetensors: %s", path, why);
    m->p = p;
    m->size = (size_t)s.st_size;
    return OK;
}

// One entry of the header -> a tensor whose bytes lie inside the data.
static Err entry_parse(const char *path, const char *name, const json_t *entry, size_t data_size,
                       StTensor *t, size_t *begin) {
    const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
    const json_t *range = json_object_get(entry, "data_offsets");
    CHECK(json_is_string(dtype) && json_is_array(shape) && json_is_array(range) &&
              json_array_size(range) == 2,
          E_INPUT, "%s: tensor '%s': expected dtype, shape and data_offsets [begin, end]", path,
          name);
    memset(t, 0, sizeof *t);
    int type = 0;
    while (type < ST_TYPES && strcmp(types[type].name, json_string_value(dtype)) != 0) type++;
    CHECK(type < ST_TYPES, E_INPUT, "%s: tensor '%s': unknown dtype '%s'", path, name,
          json_string_value(dtype));
    t->dtype = (StType)type;
    CHECK(json_array_size(shape) <= ST_DIMS, E_INPUT, "%s: tensor '%s': %zu dimensions, at most %d",
          path, name, json_array_size(shape), ST_DIMS);
    t->ndim = (int)json_array_size(shape);
    int64_t elements = 1;
    for (int i = 0; i < t->ndim; i++) {
        const json_t *dim = json_array_get(shape, (size_t)i);
        CHECK(json_is_integer(dim) && json_integer_value(dim) >= 0, E_INPUT,
              "%s: tensor '%s': dimension %d is not a count", path, name, i);
        t->shape[i] = json_integer_value(dim);
        CHECK(!__builtin_mul_overflow(elements, t->shape[i], &elements), E_INPUT,
              "%s: tensor '%s': too many elements", path, name);
    }
    const json_t *lo = json_array_get(range, 0), *hi = json_array_get(range, 1);
    CHECK(json_is_integer(lo) && json_is_integer(hi), E_INPUT,
          "%s: tensor '%s': data_offsets are not integers", path, name);
    json_int_t b = json_integer_value(lo), e = json_integer_value(hi);
    CHECK(b >= 0 && e >= b && (uint64_t)e <= data_size, E_INPUT,
          "%s: tensor '%s': data_offsets [%lld, %lld] outside of the %zu bytes of data (file cut "
          "short?)",
          path, name, (long long)b, (long long)e, data_size);
    int64_t bytes;
    CHECK(!__builtin_mul_overflow(elements, (int64_t)types[type].bytes, &bytes) && bytes == e - b,
          E_INPUT, "%s: tensor '%s': %lld elements of %s do not make the %lld bytes of its offsets",
          path, name, (long long)elements, types[type].name, (long long)(e - b));
    t->rows = 1;
    for (int i = 0; i < (t->ndim > 1 ? t->ndim - 1 : t->ndim); i++) t->rows *= t->shape[i];
    t->cols = t->ndim > 1 ? t->shape[t->ndim - 1] : 1;
    t->bytes = (size_t)bytes;
    *begin = (size_t)b;
    return OK;
}

static int by_address(const void *a, const void *b) {
    const StTensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty tensors first
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const StTensor *)a)->name, ((const StTensor *)b)->name);
}

static Err room(Safetensors *st, int64_t more) {
    if (st->n + more <= st->cap) return OK;
    int64_t cap = max_i64(st->n + more, 2 * st->cap);
    StTensor *p = realloc(st->tensor, (size_t)cap * sizeof *p);
    CHECK(p, E_INTERNAL, "safetensors: out of memory");
    st->tensor = p;
    st->cap = cap;
    return OK;
}

// Add the tensors of one parsed header and check that they tile the data without gap or overlap.
static Err header_add(Safetensors *st, const Map *m, const json_t *header, const uint8_t *data,
                      size_t data_size) {
    const char *name;
    json_t *entry;
    int64_t from = st->n;
    TRY(room(st, (int64_t)json_object_size(header)));
    json_object_foreach((json_t *)header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) continue;
        StTensor *t = &st->tensor[st->n];
        size_t begin = 0;
        TRY(entry_parse(m->path, name, entry, data_size, t, &begin));
        t->file = m->path;
        t->data = data + begin;
        t->name = strdup(name);
        CHECK(t->name, E_INTERNAL, "%s: out of memory", m->path);
        st->n++;
    }
    if (st->n > from) {
        qsort(st->tensor + from, (size_t)(st->n - from), sizeof *st->tensor, by_address);
    }
    const uint8_t *next = data;
    for (int64_t i = from; i < st->n; i++) {
        const StTensor *t = &st->tensor[i];
        CHECK((const uint8_t *)t->data == next, E_INPUT,
              "%s: tensor '%s' begins at byte %lld of the data, expected %lld (%s)", m->path,
              t->name, (long long)((const uint8_t *)t->data - data), (long long)(next - data),
              (const uint8_t *)t->data > next ? "gap" : "overlap");
        next += t->bytes;
    }
    CHECK(next == data + data_size, E_INPUT, "%s: %lld bytes of data after the last tensor",
          m->path, (long long)(data + data_size - next));
    return OK;
}

static Err file_add(Safetensors *st, const char *path) {
    Map *maps = realloc(st->map, (size_t)(st->nmap + 1) * sizeof *maps);
    CHECK(maps, E_INTERNAL, "%s: out of memory", path);
    st->map = maps;
    Map *m = &st->map[st->nmap++];
    memset(m, 0, sizeof *m);
    TRY(map_file(m, path));
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | m->p[i];
    CHECK(n <= HEADER_MAX && n <= m->size - 8, E_INPUT,
          "%s: header of %llu bytes in a file of %zu (not safetensors, or cut short)", path,
          (unsigned long long)n, m->size);
    CHECK(n > 0 && m->p[8] == '{', E_INPUT, "%s: the header does not begin with '{'", path);
    json_error_t where;
    json_t *header = json_loadb((const char *)m->p + 8, (size_t)n, JSON_REJECT_DUPLICATES, &where);
    CHECK(header, E_INPUT, "%s: header: %s (byte %d)", path, where.text, where.position);
    Err err = OK;
    if (json_is_object(header))
        err = header_add(st, m, header, m->p + 8 + n, m->size - 8 - n);
    else
        err = fail_at(E_INPUT, __FILE__, __LINE__, "%s: the header is no JSON object", path);
    json_decref(header);
    TRY(err);
    return OK;
}

// ---- directories -------------------------------------------------------------------------------

static Err index_files(Safetensors *st, const char *dir, const char *index, const json_t *weights) {
    const char *name;
    json_t *file;
    json_object_foreach((json_t *)weights, name, file) {
        const char *base = json_string_value(file);
        CHECK(base && *base && !strchr(base, '/'), E_INPUT,
              "%s: tensor '%s': expected the name of a file beside the index", index, name);
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/%s", dir, base);
        bool is_known = false;
        for (int64_t i = st->nmap - 1; i >= 0 && !is_known; i--) {
            is_known = strcmp(st->map[i].path, path) == 0;
        }
        if (!is_known) TRY(file_add(st, path));
    }
    return OK;
}

static Err index_check(const Safetensors *st, const char *index, const json_t *weights) {
    const char *name;
    json_t *file;
    json_object_foreach((json_t *)weights, name, file) {
        const StTensor *t = safetensors_find(st, name);
        CHECK(t, E_INPUT, "%s: tensor '%s' is not in '%s'", index, name, json_string_value(file));
        const char *base = strrchr(t->file, '/') + 1;
        CHECK(strcmp(base, json_string_value(file)) == 0, E_INPUT,
              "%s: tensor '%s' should be in '%s' but is in '%s'", index, name,
              json_string_value(file), base);
    }
    return OK;
}

static Err sort_check(Safetensors *st, const char *path) {
    if (st->n > 0) qsort(st->tensor, (size_t)st->n, sizeof *st->tensor, by_name);
    for (int64_t i = 1; i < st->n; i++) {
        CHECK(strcmp(st->tensor[i].name, st->tensor[i - 1].name) != 0, E_INPUT,
              "%s: tensor '%s' is in '%s' and in '%s'", path, st->tensor[i].name,
              st->tensor[i - 1].file, st->tensor[i].file);
    }
    return OK;
}

static Err directory_add(Safetensors *st, const char *dir) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", dir);
    if (access(path, F_OK) != 0) {
        snprintf(path, sizeof path, "%s/model.safetensors", dir);
        CHECK(access(path, F_OK) == 0, E_INPUT,
              "%s: neither model.safetensors nor model.safetensors.index.json in this directory",
              dir);
        TRY(file_add(st, path));
        TRY(sort_check(st, path));
        return OK;
    }
    json_error_t where;
    json_t *index = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    CHECK(index, E_INPUT, "%s: %s (line %d)", path, where.text, where.line);
    const json_t *weights = json_object_get(index, "weight_map");
    Err err = OK;
    CHECK_OR(json_is_object(weights), done, E_INPUT, "%s: no \"weight_map\" object", path);
    TRY_OR(index_files(st, dir, path, weights), done);
    TRY_OR(sort_check(st, path), done);
    TRY_OR(index_check(st, path, weights), done);
done:
    json_decref(index);
    return err;
}

Err safetensors_open(Safetensors **st, const char *path) {
    *st = NULL;
    struct stat s;
    CHECK(stat(path, &s) == 0, E_INPUT, "%s: %s", path, strerror(errno));
    Safetensors *new = calloc(1, sizeof *new);
    CHECK(new, E_INTERNAL, "%s: out of memory", path);
    Err err = OK;
    if (S_ISDIR(s.st_mode)) {
        TRY_OR(directory_add(new, path), done);
    } else {
        TRY_OR(file_add(new, path), done);
        TRY_OR(sort_check(new, path), done);
    }
    *st = new;
    new = NULL;
done:
    safetensors_close(&new);
    return err;
}

void safetensors_close(Safetensors **st) {
    if (!*st) return;
    for (int64_t i = 0; i < (*st)->n; i++) free((char *)(*st)->tensor[i].name);
    for (int64_t i = 0; i < (*st)->nmap; i++) {
        if ((*st)->map[i].p) munmap((void *)(*st)->map[i].p, (*st)->map[i].size);
        free((*st)->map[i].path);
    }
    free((*st)->tensor);
    free((*st)->map);
    free(*st);
    *st = NULL;
}

// ---- reading -----------------------------------------------------------------------------------

int64_t safetensors_count(const Safetensors *st) {
    return st->n;
}

const StTensor *safetensors_at(const Safetensors *st, int64_t i) {
    return &st->tensor[i];
}

const StTensor *safetensors_find(const Safetensors *st, const char *name) {
    StTensor key = {.name = name};
    return st->n ? bsearch(&key, st->tensor, (size_t)st->n, sizeof key, by_name) : NULL;
}

Err safetensors_get(const Safetensors *st, const char *name, const StTensor **out) {
    *out = safetensors_find(st, name);
    CHECK(*out, E_INPUT, "%s: no tensor '%s' (of %lld)", st->nmap ? st->map[0].path : "safetensors",
          name, (long long)st->n);
    return OK;
}

static float f32_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7FFFu;
    if (mag >= 0x7C00u) return f32_from_bits(sign | 0x7F800000u | (mag & 0x3FFu) << 13);
    float v = f32_from_bits(mag << 13) * 0x1p112f; // rebias; exact, subnormals included
    return f32_from_bits(f32_bits(v) | sign);
}

// What was read once is most often not read again: its whole pages no longer count as this process's memory (they stay
// in the system's cache as long as there is room).
static void give_back(const uint8_t *p, size_t bytes) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)p + page - 1) / page * page, to = ((uintptr_t)p + bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
}

// n numbers at p as float.
static Err decode(const StTensor *t, const uint8_t *p, int64_t count, float *out) {
    uint16_t h;
    double d;
    switch (t->dtype) {
    case ST_F32:
        if (count > 0) memcpy(out, p, (size_t)count * 4);
        return OK;
    case ST_F64:
        for (int64_t i = 0; i < count; i++) out[i] = (float)(memcpy(&d, p + 8 * i, 8), d);
        return OK;
    case ST_BF16:
        for (int64_t i = 0; i < count; i++) out[i] = f32_from_bf16((memcpy(&h, p + 2 * i, 2), h));
        return OK;
    case ST_F16:
        for (int64_t i = 0; i < count; i++) out[i] = f32_from_f16((memcpy(&h, p + 2 * i, 2), h));
        return OK;
    case ST_F8_E4M3:
        for (int64_t i = 0; i < count; i++) out[i] = f32_from_e4m3(p[i]);
        return OK;
    case ST_F8_E5M2: // the upper byte of an F16
        for (int64_t i = 0; i < count; i++) out[i] = f32_from_f16((uint16_t)(p[i] << 8));
        return OK;
    default:
        FAIL(E_INPUT, "%s: tensor '%s' is %s, expected a floating-point type", t->file, t->name,
             types[t->dtype].name);
    }
}

Err safetensors_read_f32(const Safetensors *st, const char *name, int64_t first, int64_t n,
                         float *out) {
    const StTensor *t;
    TRY(safetensors_get(st, name, &t));
    CHECK(first >= 0 && n >= 0 && first <= t->rows - n, E_INPUT,
          "%s: tensor '%s': rows %lld to %lld wanted, it has %lld", t->file, name, (long long)first,
          (long long)(first + n), (long long)t->rows);
    int64_t count = n * t->cols;
    const uint8_t *p = t->data;
    if (count > 0) p += (size_t)(first * t->cols) * types[t->dtype].bytes;
    TRY(decode(t, p, count, out));
    give_back(p, (size_t)count * types[t->dtype].bytes);
    return OK;
}
