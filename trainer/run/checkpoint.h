// checkpoint.h - saving and loading the whole training state, in any layout of ranks.
//
// A checkpoint is a directory that appears by one rename: manifest.json (file sizes, hashes taken
// in memory before the write, step, samples, tokens, fingerprints, versions), index.h5 (virtual
// datasets: every logical tensor whole), shard_%05d.h5 (this rank's rows of master, m, v; rank 0
// also biases), config.yaml, tokenizer.json (if given). Logical datasets: /<param name>/master f32,
// /<param name>/m, /<param name>/v, [rows, cols] or [E, rows, cols];
// /<block prefix>.mlp.gate.e_score_correction_bias f32 [E]. With fp8.scaling static also the calibration:
// /fp8.static_amax f32 [blocks, sites] and /fp8.static_steps f32 [1] (calibration.h, site.def). index.h5 has the
// resolved recipe as its text attribute `precision`.
#pragma once
#include "loader.h"
#include "weights.h"

typedef struct CheckpointInfo {
    int64_t step;              // finished optimizer steps
    int64_t samples, tokens;   // consumed
    int64_t skipped;           // of them: read, but dropped because they were not finite (run_recover.c)
    char skipped_ranges[256];  // "[16, 24) [80, 88)": the last of them
    ReadProof read;            // what all ranks have read for them (loader.h); samples -1: not recorded
    int64_t seed;              // of the data order
    char data_fingerprint[40]; // of the training shards, "" if none
    char tokenizer_hash[40];
    int world, ep; // of the writer
} CheckpointInfo;

// checkpoint_save: write `dir`/step_%08d.partial, fsync, read every value back and compare it with
// the hash it had in memory, then rename it to step_%08d, point dir/latest at it and delete
// checkpoints beyond keep_last (by order of saving) and keep_every (0 = none). Anything that fails:
// E_OUTPUT on all ranks, the partial folder is removed, the older ones stay valid. Without moments
// in p (an import) only weights are written. Collective over world.
Err checkpoint_save(const char *dir, const Params *p, Cx *cx, const CheckpointInfo *info,
                    const Config *config, int64_t keep_last, int64_t keep_every) MUST_CHECK;
// checkpoint_save_from: the same of weights that are in no memory: p is their table (solo_table), one rank. E_INPUT is
// the source's. Nothing older is kept. Local.
Err checkpoint_save_from(const char *dir, const Params *p, const Weights *from, Cx *cx, const CheckpointInfo *info,
                         const Config *config) MUST_CHECK;
// checkpoint_find: resolve a checkpoint directory, PATH@STEP, or a run directory (or its
// checkpoints/). step > 0 asks for that step, else the last saved one whose manifest, file sizes
// and file hashes verify; others are skipped with a warning that says why. A checkpoint that was
// named exactly is not skipped: E_INPUT. *found false if there is none. Rank 0 looks, all ranks
// share the hashing; the result is the same everywhere. Collective over world.
Err checkpoint_find(char *out, size_t n, bool *found, const char *path, int64_t step,
                    Cx *cx) MUST_CHECK;
// checkpoint_need: the same for one that the user named with the flag `what`: none is E_INPUT, and says what is there
// instead. Collective over world.
Err checkpoint_need(char *out, size_t n, const char *what, const char *path, int64_t step, Cx *cx) MUST_CHECK;
// checkpoint_read_info / checkpoint_read_config: from the manifest and config.yaml of a checkpoint
// directory. Local. E_INPUT.
Err checkpoint_read_info(const char *dir, CheckpointInfo *info) MUST_CHECK;
Err checkpoint_read_config(const char *dir, Config **out) MUST_CHECK;
// checkpoint_load: own rows of every master (and m, v if with_state), the biases, and with static scales the
// calibration (cx->calibration is empty afterwards if the checkpoint has none), checked by
// hash, for any layout. The caller publishes. A missing, extra or differently shaped tensor is
// E_INPUT naming it, expected and found shape. Collective over world.
Err checkpoint_load(const char *dir, Params *p, Cx *cx, bool with_state) MUST_CHECK;
// CkReader: the weights of a checkpoint, read and checked by hash where they are asked for.
typedef struct CkReader CkReader;
// checkpoint_open: for a table of parameters, which checkpoint_load's rules hold for; all are borrowed. *r must be
// closed, whatever it returns. checkpoint_weights: as a source, good until checkpoint_close. Local. E_INPUT.
Err checkpoint_open(CkReader **r, const char *dir, const Params *p, Cx *cx) MUST_CHECK;
Weights checkpoint_weights(CkReader *r);
// checkpoint_close: accepts NULL; *r = NULL.
void checkpoint_close(CkReader **r);
// checkpoint_verify: every hash of a checkpoint. Local (for `inspect`). E_INPUT names file and
// tensor.
Err checkpoint_verify(const char *dir) MUST_CHECK;
