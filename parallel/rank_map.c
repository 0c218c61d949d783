// rank_map.c - see rank_map.h.
#include "rank_map.h"

#include <sched.h>
#include <stdarg.h>
#include <string.h>

enum { WORDS = RANK_MAP_CORES / 64 };

void rank_place(RankPlace *out, const char *host, const char *gpu) {
    cpu_set_t set;
    memset(out, 0, sizeof *out);
    snprintf(out->host, sizeof out->host, "%s", host);
    snprintf(out->gpu, sizeof out->gpu, "%s", gpu);
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0) return; // not known: no cores
    for (int i = 0; i < RANK_MAP_CORES && i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &set)) out->cores[i / 64] |= (uint64_t)1 << (i % 64);
}

Err rank_map_gather(RankPlace *all, const RankPlace *mine, Comm *world) {
    return world->all_gather(world, all, mine, sizeof *mine);
}

// ---- text -------------------------------------------------------------------------------------

static void append(char *text, size_t size, const char *fmt, ...) PRINTF_LIKE(3, 4);
static void append(char *text, size_t size, const char *fmt, ...) {
    size_t n = strlen(text);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + n, size - n, fmt, ap); // cut where there is no room
    va_end(ap);
}

typedef bool (*Member)(const void *set, int i);

// append_ranges: "0-3,8" of the members below n.
static void append_ranges(char *text, size_t size, const void *set, Member is_in, int n) {
    const char *comma = "";
    for (int i = 0; i < n; i++) {
        if (!is_in(set, i)) continue;
        int last = i;
        while (last + 1 < n && is_in(set, last + 1)) last++;
        append(text, size, last > i ? "%s%d-%d" : "%s%d", comma, i, last);
        comma = ",";
        i = last;
    }
}

static bool has_core(const void *set, int i) {
    return ((const uint64_t *)set)[i / 64] >> (i % 64) & 1;
}

// The ranks of one host, or some of them.
typedef struct Group {
    const RankPlace *all;
    int of;                    // the host's first rank
    const char *gpu;           // only ranks with this GPU, NULL = any
    bool is_overlapping;       // only ranks with a core that another rank of the host has too
    int n;
} Group;

static bool on_host(const Group *g, int r) {
    return strcmp(g->all[r].host, g->all[g->of].host) == 0;
}

static bool overlaps(const Group *g, int r) {
    for (int o = 0; o < g->n; o++) {
        if (o == r || !on_host(g, o)) continue;
        for (int w = 0; w < WORDS; w++)
            if (g->all[o].cores[w] & g->all[r].cores[w]) return true;
    }
    return false;
}

static bool in_group(const void *group, int r) {
    const Group *g = group;
    if (!on_host(g, r)) return false;
    if (g->gpu && strcmp(g->all[r].gpu, g->gpu) != 0) return false;
    return !g->is_overlapping || overlaps(g, r);
}

static int next_host(const RankPlace *all, int n, int first) {
    for (int r = first + 1; r < n; r++) {
        bool is_new = true;
        for (int o = r - 1; o >= 0 && is_new; o--) is_new = strcmp(all[o].host, all[r].host) != 0;
        if (is_new) return r;
    }
    return n;
}

// same_cores: may all ranks of the host run on the same cores? *members: how many they are.
static bool same_cores(const Group *g, int *members) {
    bool same = true;
    *members = 0;
    for (int r = 0; r < g->n; r++) {
        if (!on_host(g, r)) continue;
        ++*members;
        same = same && memcmp(g->all[r].cores, g->all[g->of].cores, sizeof g->all[r].cores) == 0;
    }
    return same;
}

int rank_map_line(const RankPlace *all, int n, int first, char *text, size_t size) {
    Group g = {.all = all, .of = first, .n = n};
    int members = 0;
    bool same = same_cores(&g, &members);
    snprintf(text, size, "%s: rank%s ", all[first].host, members > 1 ? "s" : "");
    append_ranges(text, size, &g, in_group, n);
    append(text, size, ", cores ");
    const char *bar = "";
    for (int r = first; r < n; r++) {
        if (!on_host(&g, r)) continue;
        append(text, size, "%s", bar);
        append_ranges(text, size, all[r].cores, has_core, RANK_MAP_CORES);
        bar = " | ";
        if (same) break;
    }
    if (same && members > 1) append(text, size, " for all");
    bar = ", gpu ";
    for (int r = first; r < n; r++) {
        if (!all[r].gpu[0] || !on_host(&g, r)) continue;
        append(text, size, "%s%s", bar, all[r].gpu);
        bar = " | ";
    }
    return next_host(all, n, first);
}

int rank_map_warning(const RankPlace *all, int n, int first, char *text, size_t size) {
    Group g = {.all = all, .of = first, .n = n};
    text[0] = '\0';
    for (int r = first; r < n; r++) {
        Group with = {.all = all, .of = first, .gpu = all[r].gpu, .n = n};
        int users = 0, lowest = r;
        if (!all[r].gpu[0] || !on_host(&g, r)) continue;
        for (int o = n - 1; o >= first; o--) {
            if (!in_group(&with, o)) continue;
            users++;
            lowest = o;
        }
        if (users < 2 || lowest != r) continue;
        append(text, size, "%sranks ", text[0] ? "; " : "");
        append_ranges(text, size, &with, in_group, n);
        append(text, size, " on %s have the same GPU %s", all[first].host, all[r].gpu);
    }
    int members = 0, cores = 0;
    bool same = same_cores(&g, &members);
    for (int i = 0; i < RANK_MAP_CORES; i++) cores += has_core(all[first].cores, i);
    if (same && cores >= members) return next_host(all, n, first);
    if (same && cores > 0) {
        append(text, size, "%sranks ", text[0] ? "; " : "");
        append_ranges(text, size, &g, in_group, n);
        append(text, size, " on %s share %d core%s", all[first].host, cores, cores == 1 ? "" : "s");
        return next_host(all, n, first);
    }
    Group hit = {.all = all, .of = first, .is_overlapping = true, .n = n};
    int hits = 0;
    for (int r = first; r < n; r++) hits += in_group(&hit, r);
    if (hits > 1) {
        append(text, size, "%sranks ", text[0] ? "; " : "");
        append_ranges(text, size, &hit, in_group, n);
        append(text, size, " on %s are bound to cores that others of them are bound to as well", all[first].host);
    }
    return next_host(all, n, first);
}
