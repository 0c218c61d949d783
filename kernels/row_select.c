// row_select.c - which of the loops of row_lanes.h run on this processor.
#include <string.h>

#include "row_lanes.h"

static const RowLanes *chosen;

bool row_select(const char *name) {
    static const RowLanes *const all[] = {&row_lanes_avx512, &row_lanes_avx2, &row_lanes_portable};
    bool is_usable[3] = {false, false, true};
#if defined(__x86_64__)
    __builtin_cpu_init();
    is_usable[0] = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    is_usable[1] = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    for (int i = 0; i < 3; i++) {
        if (!is_usable[i] || (name && strcmp(name, all[i]->name) != 0)) continue;
        chosen = all[i];
        return true;
    }
    return false;
}

const RowLanes *row_lanes(void) {
    if (!chosen) row_select(NULL);
    return chosen;
}
