// machine.c - see machine.h.
#include "machine.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

void machine_field(char *out, unsigned long n, const char *path, const char *name) {
    out[0] = '\0';
    FILE *f = fopen(path, "re");
    if (!f) return;
    char line[512];
    while (fgets(line, sizeof line, f)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, name, strlen(name)) != 0 || !colon) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(out, n, "%s", colon);
        break;
    }
    fclose(f);
}

// A line of /proc/meminfo in bytes, -1 if it is not there.
static double meminfo(const char *name) {
    char text[64];
    double kib = -1;
    machine_field(text, sizeof text, "/proc/meminfo", name);
    return sscanf(text, "%lf", &kib) == 1 ? kib * 1024 : -1;
}

// The number in a file, -1 if there is none, or one that means no limit.
static double limit_in(const char *path) {
    FILE *f = fopen(path, "re");
    if (!f) return -1;
    double bytes = -1;
    bool is_number = fscanf(f, "%lf", &bytes) == 1;
    fclose(f);
    return is_number && bytes < 1e18 ? bytes : -1;
}

// The smallest limit of this process's control group (version 2) and those around it: a Slurm job's is far down, a
// container sees its own as the top one. Version 1: the top one only.
static double group_limit(void) {
    char group[512], path[600];
    double least = limit_in("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    machine_field(group, sizeof group, "/proc/self/cgroup", "0::");
    // The line is "0::/a/b": what is behind its first colon begins with the second.
    for (char *g = group[0] == ':' ? group + 1 : group;;) {
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", strcmp(g, "/") == 0 ? "" : g);
        double limit = limit_in(path);
        if (limit > 0 && (least < 0 || limit < least)) least = limit;
        char *slash = strrchr(g, '/');
        if (!slash) return least;
        *slash = '\0';
    }
}

MachineMemory machine_memory(void) {
    return (MachineMemory){.total = meminfo("MemTotal"),
                           .swap = meminfo("SwapTotal"),
                           .available = meminfo("MemAvailable"),
                           .group = group_limit()};
}

double machine_memory_most(const MachineMemory *m) {
    double most = m->total > 0 && m->swap > 0 ? m->total + m->swap : m->total;
    return m->group > 0 && (most < 0 || m->group < most) ? m->group : most;
}
