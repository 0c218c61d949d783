// ops.c - the tables that ops.def generates.
#include "ops.h"

#include "gemm.h"

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
    if (!table.isa) table.isa = gemm_isa();
    return &table;
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
