// row_select.c - which of the loops of row_lanes.h run on this processor.
#include <string.h>

#include "cpu_has.h"
#include "row_lanes.h"

static const RowLanes *chosen;

bool row_select(const char *name) {
    static const RowLanes *const all[] = {&row_lanes_avx512bf16, &row_lanes_avx512, &row_lanes_avx2,
                                          &row_lanes_portable};
    const bool is_usable[] = {cpu_has_avx512bf16() && cpu_has_avx512vbmi(), cpu_has_avx512(), cpu_has_avx2(), true};
    for (int i = 0; i < 4; i++) {
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
