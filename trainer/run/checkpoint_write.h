// checkpoint_write.h - one save in parts, so that it can go on beside the training: what calls other
// ranks is apart from what only computes and writes.
//
//     ckwrite_begin    all ranks   the partial folder; the snapshot
//     ckwrite_shard    a thread    this rank's shard, hashed in memory, synced
//     ckwrite_share    all ranks   hashes and sizes go round
//     ckwrite_check    a thread    the next rank's shard is read back; rank 0 also describes everything
//     ckwrite_commit   a thread    rank 0: rename, `latest`, older checkpoints beyond keep_* are removed
//
// Between two parts the ranks agree (comm_agree) that all came through; after an error that they agreed
// on, ckwrite_abandon. Private to checkpoint*.c and save.c.
#pragma once
#include "checkpoint.h"
#include "inject.h"

typedef struct CkWrite CkWrite;

// ckwrite_create: tables for saving p into `dir` again and again; with has_snapshot also memory for a copy of
// all own rows, in which the save goes on while the parameters change (without one, ckwrite_shard reads them
// where they are). p, cx, config and dir are borrowed. keep_*: see checkpoint_save. Whatever it returns,
// ckwrite_free. Local.
Err ckwrite_create(CkWrite **out, const char *dir, const Params *p, Cx *cx, const Config *config, int64_t keep_last,
                   int64_t keep_every, bool has_snapshot) MUST_CHECK;
// ckwrite_free: *w = NULL; accepts NULL. Local.
void ckwrite_free(CkWrite **w);

// ckwrite_begin: a save of the parameters as they are now. fault: what is to go wrong on this rank. Errors:
// E_OUTPUT. Collective over world.
Err ckwrite_begin(CkWrite *w, const CheckpointInfo *info, InjectSave fault) MUST_CHECK;
// ckwrite_shard, ckwrite_check, ckwrite_commit: Local; on any one thread at a time. Errors: E_OUTPUT, E_INPUT
// (what was written reads back otherwise), naming the file.
Err ckwrite_shard(CkWrite *w) MUST_CHECK;
Err ckwrite_check(CkWrite *w) MUST_CHECK;
Err ckwrite_commit(CkWrite *w) MUST_CHECK;
// ckwrite_share: Collective over world.
Err ckwrite_share(CkWrite *w) MUST_CHECK;
// ckwrite_abandon: the current error ends the save: rank 0 removes the partial folder. Returns the error, E_INPUT
// as E_OUTPUT, with what is left on the disk if that is little. Local.
Err ckwrite_abandon(CkWrite *w, Err err);
// ckwrite_bytes: of all files but the manifest, after ckwrite_check on rank 0. ckwrite_snapshot_bytes: memory of
// this rank's snapshot, 0 without one. Local.
int64_t ckwrite_bytes(const CkWrite *w);
int64_t ckwrite_snapshot_bytes(const CkWrite *w);
