// fuzz_safetensors.c - any bytes as a tensor file of Hugging Face. Whatever is accepted must lie inside the file and
// can be read.
#include "fuzz_file.h"

#include "safetensors.h"

#define READ_MAX 65536 // elements

// sum: every byte of a tensor is touched, so that a range outside of the file is seen.
static unsigned sum(const StTensor *t) {
    unsigned s = 0;
    for (size_t i = 0; i < t->bytes; i++) s += ((const uint8_t *)t->data)[i];
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static float out[READ_MAX];
    Safetensors *st = NULL;
    size_t all = 8 + 2; // the length of the header and the shortest header
    Err err = safetensors_open(&st, fuzz_path(data, n));
    if (err != OK && (err != E_INPUT || st)) abort();
    for (int64_t i = 0; err == OK && i < safetensors_count(st); i++) {
        const StTensor *t = safetensors_at(st, i);
        all += t->bytes; // tensors do not overlap: together they are no longer than the file
        if (all > n || t->rows < 0 || t->cols < 0) abort();
        if (sum(t) == UINT32_MAX) abort(); // no file is that long: the sum is used, so it is made
        if (safetensors_find(st, t->name) != t) abort();
        if (t->rows == 0 || t->cols == 0 || t->cols > READ_MAX) continue;
        int64_t rows = READ_MAX / t->cols < t->rows ? READ_MAX / t->cols : t->rows;
        if (safetensors_read_f32(st, t->name, t->rows - rows, rows, out) != OK) fail_clear();
        if (safetensors_read_f32(st, t->name, t->rows, 1, out) == OK) abort();
        fail_clear();
    }
    safetensors_close(&st);
    fail_clear();
    return 0;
}
