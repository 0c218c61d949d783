// rank_map.h - where the ranks are: host, cores, GPU; and what looks wrong about it.
#pragma once
#include "comm.h"

#define RANK_MAP_CORES 1024

// One rank's place.
typedef struct RankPlace {
    char host[64];
    char gpu[64];                        // its GPU's name, the same for every process of the host; "" none
    uint64_t cores[RANK_MAP_CORES / 64]; // bit i: it may run on core i of its host
} RankPlace;

// rank_place: of this process (sched_getaffinity). Local.
void rank_place(RankPlace *out, const char *host, const char *gpu);
// rank_map_gather: all [nranks] = every rank's place. Collective over world.
Err rank_map_gather(RankPlace *all, const RankPlace *mine, Comm *world) MUST_CHECK;
// rank_map_line: text of the host of rank `first`, which is the first of its host: "node01: ranks 0-1, cores 0-7 |
// 8-15" (", cores 0-15 for all" where none is bound, ", gpu A | B | ..." with GPUs). Returns the next rank that is the
// first of its host, n if there is none. Local.
int rank_map_line(const RankPlace *all, int n, int first, char *text, size_t size);
// rank_map_warning: the same walk over hosts: what is wrong on the host of `first`, "" for nothing: ranks with the same
// GPU; ranks bound to cores that others are bound to as well (all of them free to use the same cores is no binding, as
// long as there is a core for each). Returns the next host's first rank. Local.
int rank_map_warning(const RankPlace *all, int n, int first, char *text, size_t size);
