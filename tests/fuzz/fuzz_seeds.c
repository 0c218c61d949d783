// fuzz_seeds.c - writes small files of every kind that our own writers make: what the fuzzers start from.
//
//     fuzz_seeds DIR      DIR/manifest/0, DIR/safetensors/0, DIR/shard_file/0, DIR/shard/0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "manifest.h"
#include "safetensors.h"
#include "tokens.h"

static char path[4096];

static const char *in(const char *dir, const char *kind, const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, kind);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s", dir, kind, name);
    return path;
}

static Err seed_manifest(const char *dir) {
    Manifest *m;
    TRY(manifest_new(&m, 2, 2, 3));
    m->step = 7;
    m->samples = 56;
    m->tokens = 7168;
    m->serial = 3;
    m->world = 2;
    m->ep = 1;
    snprintf(m->created, sizeof m->created, "2026-01-31T12:00:00Z");
    const char *const files[] = {"shard_00000.h5", "shard_00001.h5"};
    for (int i = 0; i < 2; i++) {
        snprintf(m->files[i].name, sizeof m->files[i].name, "%s", files[i]);
        m->files[i].bytes = 100 + i;
        ManifestTensor t = {.dtype = i ? DT_BF16 : DT_F32, .ndim = 2, .shape = {4, 3}};
        snprintf(t.name, sizeof t.name, "layer.%d.w", i);
        m->tensors[i] = t;
    }
    m->pieces[0] = (ManifestPiece){.tensor = 0, .file = 0, .first = 0, .rows = 2};
    m->pieces[1] = (ManifestPiece){.tensor = 0, .file = 1, .first = 2, .rows = 2};
    m->pieces[2] = (ManifestPiece){.tensor = 1, .file = 1, .first = 0, .rows = 4};
    Err err = manifest_write(in(dir, "manifest", "0"), m);
    manifest_free(&m);
    return err;
}

static Err seed_safetensors(const char *dir) {
    const StDecl decl[] = {{.name = "a", .dtype = ST_F32, .ndim = 2, .shape = {2, 3}},
                           {.name = "b", .dtype = ST_BF16, .ndim = 1, .shape = {4}},
                           {.name = "c", .dtype = ST_F8_E4M3, .ndim = 3, .shape = {1, 2, 2}}};
    const size_t bytes[] = {24, 8, 4};
    static const char zeros[24];
    SafetensorsWriter *w;
    TRY(safetensors_create(&w, in(dir, "safetensors", "0"), decl, 3));
    for (int i = 0; i < 3; i++) TRY(safetensors_put(w, decl[i].name, zeros, bytes[i]));
    return safetensors_finish(&w, false);
}

static Err seed_shard(const char *dir) {
    const TokenMeta meta = {.vocab_size = 512,
                            .bos_id = 0,
                            .eos_id = 1,
                            .pad_id = -1,
                            .tokenizer_hash = "0123456789abcdef0123456789abcdef",
                            .source_name = "a",
                            .split = "train"};
    const int32_t ids[] = {5, 6, 7, 8, 9, 10, 11, 1};
    TokenWriter *w;
    TRY(token_writer_open(&w, in(dir, "shard_file", "0"), &meta, 0));
    for (int i = 0; i < 3; i++) TRY(token_writer_add(w, ids, 8, 30, 1234));
    TRY(token_writer_finish(&w, 1));
    // An input of fuzz_shard.c: 40 tokens, 3 documents, everything as it should be.
    const char plan[] = {40, 3};
    FILE *f = fopen(in(dir, "shard", "0"), "we");
    CHECK(f, E_OUTPUT, "%s", path);
    fwrite(plan, 1, sizeof plan, f);
    fclose(f);
    return OK;
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: fuzz_seeds DIR\n");
        return 64;
    }
    mkdir(argv[1], 0777);
    if (seed_manifest(argv[1]) != OK || seed_safetensors(argv[1]) != OK || seed_shard(argv[1]) != OK) {
        fprintf(stderr, "fuzz_seeds: cannot write %s\n", path);
        return 74;
    }
    return 0;
}
