// run_dir.h - the folder of a run: making it, not overwriting another run, and the lock.
//
// Two runs in one folder would destroy each other. The lock is the operating system's (flock on
// run_dir/lock) and dies with the process however it ends; the file says who holds it. One rank
// calls.
#pragma once
#include "fail.h"

typedef struct RunLock RunLock;

// run_dir_make: the folder and those above it. Errors: E_OUTPUT: cannot be made, or not writable.
// Local.
Err run_dir_make(const char *path) MUST_CHECK;
// run_dir_is_occupied: the folder holds a run: a resolved config, metrics, or a complete
// checkpoint. Local.
bool run_dir_is_occupied(const char *path);
// run_dir_set_origin: note in the folder that its run begins with a checkpoint of `from`, a run or a
// checkpoint elsewhere. Errors: E_OUTPUT. Local.
Err run_dir_set_origin(const char *path, const char *from) MUST_CHECK;
// run_dir_is_begun_from: the folder's run began so and has no checkpoint of its own yet: what
// started it may start it again. Local.
bool run_dir_is_begun_from(const char *path, const char *from);
// run_dir_refuse: the error for an occupied folder without --resume: E_USAGE that says what to type; E_OUTPUT for one
// that cannot be looked into.
Err run_dir_refuse(const char *path);
// run_lock_take: lock an existing folder. Errors: E_PEER naming the holder if another process has it (a rank of the
// start before, say, that is slow to die: starting again later may help); E_OUTPUT. Local.
Err run_lock_take(RunLock **lock, const char *path) MUST_CHECK;
// run_lock_drop: give it back; *lock = NULL; accepts NULL.
void run_lock_drop(RunLock **lock);
