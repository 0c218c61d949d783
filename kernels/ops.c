// ops.c - the tables that ops.def generates.
#include "ops.h"

#include <string.h>

#include "attn_engine.h"
#include "gemm.h"
#include "gemm_engine.h"
#include "quant_lanes.h"
#include "row_lanes.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define OP(name, tolerance, args)                                                                  \
    static Err name##_null args {                                                                  \
        return OK;                                                                                 \
    }
#include "ops.def"
#undef OP
#pragma GCC diagnostic pop

const Ops *ops_cpu(void) {
    static Ops table = {
        .backend = "cpu",
#define OP(name, tolerance, args) .name = name##_cpu,
#include "ops.def"
#undef OP
    };
    table.isa = gemm_isa();
    return &table;
}

void ops_isa_list(char *out, size_t n) {
    const char *usual = gemm_isa();
    size_t at = 0;
    for (int i = 0; gemm_isa_name(i) && at < n; i++) {
        const char *name = gemm_isa_name(i);
        bool is_usable = gemm_select(name);
        int more = snprintf(out + at, n - at, "%s%s%s", i ? ", " : "", name,
                            is_usable ? "" : " (not here)");
        at += more > 0 ? (size_t)more : 0;
    }
    gemm_select(usual);
}

Err ops_isa_select(const char *name) {
    char list[160];
    bool is_known = false;
    for (int i = 0; gemm_isa_name(i); i++) is_known = is_known || !strcmp(name, gemm_isa_name(i));
    ops_isa_list(list, sizeof list);
    CHECK(is_known, E_USAGE, "no instruction set is called '%.40s'; there are %s", name, list);
    CHECK(gemm_select(name), E_USAGE, "this processor or build lacks '%s'; there are %s", name,
          list);
    // Quantiser and row operations have no loops of its own for what only products need.
    bool is_bf16 = !strcmp(name, "amx") || !strcmp(name, "avx512-bf16");
    CHECK(quant_select(is_bf16 ? "avx512-bf16" : name) && row_select(is_bf16 ? "avx512bf16" : name),
          E_INTERNAL, "no loops for '%s'", name);
    CHECK(attn_select(name), E_INTERNAL, "no attention for '%s'", name);
    return OK;
}

const Ops *ops_null(void) {
    static const Ops table = {
        .backend = "null",
        .isa = "none",
#define OP(name, tolerance, args) .name = name##_null,
#include "ops.def"
#undef OP
    };
    return &table;
}

static const char *const names[] = {
#define OP(name, tolerance, args) #name,
#include "ops.def"
#undef OP
};
static const char *const classes[] = {
#define OP(name, tolerance, args) #tolerance,
#include "ops.def"
#undef OP
};

int ops_count(void) {
    return (int)(sizeof names / sizeof names[0]);
}

const char *ops_name(int i) {
    return names[i];
}

const char *ops_class(int i) {
    return classes[i];
}
