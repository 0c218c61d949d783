// view.c - the few facts about views that need a table.
#include "view.h"

size_t dtype_bytes(DType t) {
    switch (t) {
    case DT_F32: return 4;
    case DT_BF16: return 2;
    case DT_F64: return 8;
    case DT_I32: return 4;
    case DT_I64: return 8;
    case DT_U8: return 1;
    case DT_U16: return 2;
    case DT_U32: return 4;
    case DT_U64: return 8;
    }
    return 0;
}

const char *dtype_name(DType t) {
    static const char *const names[] = {"f32", "bf16", "f64", "i32", "i64", "u8", "u16", "u32", "u64"};
    return names[t];
}

int64_t groups_tiles(Groups g, int64_t rows) {
    if (g.n == 0) return ceil_div(rows, TILE);
    int64_t n = 0;
    for (int64_t i = 0; i < g.n; i++) n += ceil_div(g.count[i], TILE);
    return n;
}
