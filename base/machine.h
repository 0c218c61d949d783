// machine.h - how much memory this machine has for this process.
#pragma once

typedef struct MachineMemory {
    double total, swap; // of the machine, bytes; -1 where it does not say
    double available;   // of `total`, without what others hold now; -1
    double group;       // the limit of the control groups this process is in; -1: none
} MachineMemory;

// machine_memory: as Linux says it (/proc/meminfo, control groups of version 2 or 1). Local.
MachineMemory machine_memory(void);
// machine_memory_most: what all processes here, or of this control group, can have at most; -1: nothing says. Local.
double machine_memory_most(const MachineMemory *m);
// machine_field: the value after ':' of the first line of `path` that starts with `name`; "" if there is none. Local.
void machine_field(char *out, unsigned long n, const char *path, const char *name);
