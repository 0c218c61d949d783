// manifest.h - manifest.json: what a checkpoint directory holds and what its bytes must hash to.
//
//     files     every other file of the directory with its size and the XXH3-128 of its bytes
//     tensors   the logical tensors: name, type, shape
//     pieces    runs of flat rows of a tensor, the shard that holds them (dataset of the tensor's
//     name),
//               and the XXH3-128 of the values in memory before they were written; for longer ones
//               also the hash of a table of hashes, one per block of block_rows rows, that lies in
//               the shard as MANIFEST_BLOCKS + name: whoever wants a part of a piece reads and
//               checks only the blocks it touches
// The last member of the JSON, "manifest_hash", is the hash of everything before it, so damage to
// the manifest itself is seen too. Local.
#pragma once
#include "hash.h"
#include "tensorfile.h"

#define MANIFEST_NAME "manifest.json"
#define MANIFEST_BLOCKS "hashes/" // before a tensor's name: its table of hashes, u64 [blocks, 2] (lo, hi)

typedef struct ManifestFile {
    char name[64];
    int64_t bytes;
    Hash128 hash;
} ManifestFile;

typedef struct ManifestTensor {
    char name[TENSOR_NAME];
    DType dtype;
    int ndim; // 1, 2 or 3
    int64_t shape[TENSOR_DIMS];
} ManifestTensor;

typedef struct ManifestPiece {
    int64_t tensor; // index in tensors
    int64_t file;   // index in files
    int64_t first, rows;
    Hash128 hash;
    int64_t block_rows; // 0: no table of hashes
    Hash128 blocks;     // of the table's bytes
} ManifestPiece;

typedef struct Manifest {
    int64_t step, samples, tokens;
    int64_t skipped;          // samples of batches that were dropped because they were not finite
    char skipped_ranges[256]; // the last of their ranges, as text
    int64_t serial; // 1 + the largest serial beside it: which of two checkpoints was written later
    int64_t seed;         // of the data order, -1: not known
    int64_t read_samples; // read in all (loader.h, ReadProof), -1: not recorded
    uint64_t read_hash;
    int world, ep;
    char data_fingerprint[40], tokenizer_hash[40]; // "" if none
    char created[32];                              // UTC, 2026-01-31T12:00:00Z
    ManifestFile *files;                           // [nfiles]
    int64_t nfiles;
    ManifestTensor *tensors; // [ntensors]
    int64_t ntensors;
    ManifestPiece *pieces; // [npieces] ordered by tensor, then first
    int64_t npieces;
} Manifest;

// manifest_new: an empty one with room for so many entries. manifest_free accepts NULL inside, sets
// *m = NULL.
Err manifest_new(Manifest **m, int64_t nfiles, int64_t ntensors, int64_t npieces) MUST_CHECK;
void manifest_free(Manifest **m);
// manifest_write: to `path`, with fsync. Errors: E_OUTPUT.
Err manifest_write(const char *path, const Manifest *m) MUST_CHECK;
// manifest_read: from dir/manifest.json; free with manifest_free. Everything is checked: types,
// ranges, indices, that the pieces of each tensor cover its rows once, and the hash. Errors:
// E_INPUT naming file and reason.
Err manifest_read(Manifest **m, const char *dir) MUST_CHECK;
// manifest_peek_serial: the serial of dir/manifest.json from its first lines, without checking
// anything else; -1 if it is not there, not ours or not of this step.
int64_t manifest_peek_serial(const char *dir, int64_t step);
// manifest_tensor: index of the tensor of this name, -1 if there is none. Local, pure.
int64_t manifest_tensor(const Manifest *m, const char *name);
// manifest_cols / manifest_rows: of the flat view of tensor i. Pure.
int64_t manifest_cols(const Manifest *m, int64_t i);
int64_t manifest_rows(const Manifest *m, int64_t i);

// manifest_sizes: every file is there with its size. Errors: E_INPUT naming file, expected and
// found.
Err manifest_sizes(const Manifest *m, const char *dir) MUST_CHECK;
// manifest_check_file: the bytes of file i are what was written. Errors: E_INPUT naming file and
// hashes.
Err manifest_check_file(const Manifest *m, const char *dir, int64_t i) MUST_CHECK;
// manifest_check_files: the same for the part-th of nparts shares of all files.
Err manifest_check_files(const Manifest *m, const char *dir, int part, int nparts) MUST_CHECK;
// manifest_check_pieces: the values of every piece in the part-th of nparts shares, read from the
// shards, are what was in memory. Errors: E_INPUT naming file, tensor, rows, both hashes.
Err manifest_check_pieces(const Manifest *m, const char *dir, int part, int nparts) MUST_CHECK;
// manifest_read_piece: those of the flat rows [first, first + rows) that piece i holds, read from
// its open shard `f` to `out`, dense, each checked against the hash it had in memory: the blocks that
// are touched if the piece has a table, else all of it. rows = 0: the whole piece is checked. Errors:
// E_INPUT naming file, tensor, rows, both hashes.
Err manifest_read_piece(const Manifest *m, const char *dir, TensorFile *f, int64_t i, int64_t first,
                        int64_t rows, void *out) MUST_CHECK;
