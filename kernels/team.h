// team.h - work that threads share out, for operations that are also called block by block inside of others. Private to
// the CPU backend.
//
// An OpenMP region costs half a microsecond to a whole one even with one thread: its team is allocated, and a system
// call ends it. That is a quarter of the time of a small call, so one thread does without.
#pragma once
#include <omp.h>
#include <stdint.h>

// One thread's share: part `at` of `n` parts.
typedef struct TeamPart {
    int64_t at, n;
} TeamPart;
typedef void (*TeamFn)(const void *job, TeamPart part);

// team_run: fn once on each of nthreads.
static inline void team_run(int nthreads, TeamFn fn, const void *job) {
    if (nthreads <= 1) {
        fn(job, (TeamPart){0, 1});
        return;
    }
#pragma omp parallel num_threads(nthreads)
    fn(job, (TeamPart){omp_get_thread_num(), omp_get_num_threads()});
}

// team_first: the first of `items` that belong to this part; they end where those of the next one begin.
static inline int64_t team_first(TeamPart part, int64_t items) {
    int64_t more = items % part.n;
    return items / part.n * part.at + (part.at < more ? part.at : more);
}
static inline int64_t team_end(TeamPart part, int64_t items) {
    return team_first((TeamPart){part.at + 1, part.n}, items);
}
