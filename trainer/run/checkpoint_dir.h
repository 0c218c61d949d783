// checkpoint_dir.h - the folder of checkpoints as a file system sees it: names, order, renames,
// removal.
//
//     step_00000500/          complete, appeared by one rename
//     step_00001000.partial/  being written or being removed: never looked at, removed when a run starts
//     latest -> step_00000500
// For checkpoint*.c, the run directory, and commands that look into one. Local: one rank calls.
#pragma once
#include "fail.h"

#define CKDIR_PATH 4096

typedef struct CkEntry {
    int64_t step;
    int64_t serial; // from the head of its manifest: rises with every save; -1 = unreadable
    char name[32];  // "step_00000500"
} CkEntry;

// ckdir_list: the complete checkpoints of `dir`, the last written first; none if there is no such
// folder. *list from malloc. Errors: E_INPUT if it cannot be read.
Err ckdir_list(const char *dir, CkEntry **list, int *n) MUST_CHECK;
// ckdir_expect_step: a folder that is named after a step holds that step, as its manifest says. Errors: E_INPUT.
Err ckdir_expect_step(const char *path, int64_t step) MUST_CHECK;
// ckdir_make: `dir` and the folders above it. Errors: E_OUTPUT.
Err ckdir_make(const char *dir) MUST_CHECK;
// ckdir_clean: remove what earlier runs left unfinished, with a line for each. Failures are only warned of.
void ckdir_clean(const char *dir);
// ckdir_commit: dir/name.partial becomes dir/name (one that is there already is replaced,
// atomically where the kernel can exchange names), all synced to disk; then `latest` points at it
// (that it cannot is only warned of). Errors: E_OUTPUT.
Err ckdir_commit(const char *dir, const char *name) MUST_CHECK;
// ckdir_prune: remove all but the keep_last last written ones and those at multiples of keep_every
// (0 = none). Those whose manifest cannot be read stay. Failures are only warned of.
void ckdir_prune(const char *dir, int64_t keep_last, int64_t keep_every);
// ckdir_remove: a folder and everything in it; a missing one is fine. Errors: E_OUTPUT.
Err ckdir_remove(const char *path) MUST_CHECK;
