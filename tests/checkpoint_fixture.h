// checkpoint_fixture.h - a small model's parameters on the ranks of a test, filled with values that
// are a function of tensor and global element, so that any layout can tell whether it holds the
// right ones.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint.h"
#include "fp8.h"
#include "model_memory.h"

typedef struct Fixture {
    Boot boot; // groups belong to the fixture, the world does not
    Mesh mesh;
    Shape shape;
    Config *config;
    Cx cx;
    Params *params;
} Fixture;

static int64_t fixture_experts = 4;
static const char *fixture_more; // one more setting, section.key=value

static inline Err fixture_config(Config **c, const char *mode, int64_t hidden,
                                 const char *tokenizer) {
    char sets[4][300];
    snprintf(sets[3], sizeof sets[3], "model.n_routed_experts=%lld", (long long)fixture_experts);
    snprintf(sets[0], sizeof sets[0], "precision.mode=%s", mode);
    snprintf(sets[1], sizeof sets[1], "model.hidden_size=%lld", (long long)hidden);
    snprintf(sets[2], sizeof sets[2], "data.tokenizer=%s", tokenizer);
    const char *all[] = {"model.vocab_size=900",
                         "model.intermediate_size=136",
                         "model.moe_intermediate_size=160",
                         "model.num_hidden_layers=2",
                         "model.num_nextn_predict_layers=1",
                         "model.num_attention_heads=2",
                         sets[3],
                         fixture_more ? fixture_more : sets[3],
                         "model.num_experts_per_tok=2",
                         "model.kv_lora_rank=32",
                         "model.q_lora_rank=24",
                         "model.qk_nope_head_dim=16",
                         "model.qk_rope_head_dim=8",
                         "model.v_head_dim=16",
                         "train.steps=10",
                         "train.seq_len=8",
                         "train.global_batch=8",
                         sets[0],
                         sets[1],
                         sets[2]};
    return config_load(c, NULL, all, (int)(sizeof all / sizeof *all) - (tokenizer ? 0 : 1));
}

// Parameters with state for these ranks; boot->world is given, ep and edp are made here.
static inline Err fixture_open(Fixture *f, const Boot *boot, int ep, const char *mode,
                               int64_t hidden, const char *tokenizer) {
    memset(f, 0, sizeof *f);
    f->boot = *boot;
    f->boot.ep = f->boot.edp = NULL;
    TRY(fixture_config(&f->config, mode, hidden, tokenizer));
    TRY(mesh_build(&f->mesh, boot->nranks, boot->rank, ep));
    TRY(boot_groups(&f->boot, &f->mesh, "auto"));
    TRY(shape_from_config(&f->shape, f->config, &f->mesh));
    MemoryPlan plan;
    TRY(memory_measure(&plan, &f->shape, &f->mesh, false, true));
    TRY(cx_create(&f->cx, &f->boot, &f->mesh, &f->shape, &plan, 1));
    return params_create(&f->params, &f->shape, &f->cx, false, true);
}

static inline void fixture_close(Fixture *f) {
    params_free(&f->params);
    cx_destroy(&f->cx);
    comm_destroy(&f->boot.ep);
    comm_destroy(&f->boot.edp);
    config_free(f->config);
}

static inline float fixture_value(const char *name, int part, int64_t element) {
    uint64_t h = 14695981039346656037ull + (uint64_t)part * 977;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 1099511628211ull;
    h = (h + (uint64_t)element) * 0x9E3779B97F4A7C15ull;
    return (float)((int64_t)(h >> 40) - (1 << 23)) / 4194304.0f;
}

// Visits one shard: fills it, or counts elements that are not what they should be. `stored` is the
// type the values went through on disk.
static inline int64_t fixture_visit(const Param *p, int part, Mat a, DType stored, bool is_fill) {
    int64_t wrong = 0, first = (p->mat0 * p->rows + p->own.row0) * p->cols;
    for (int64_t i = 0; i < a.rows * a.cols; i++) {
        float want = fixture_value(p->name, part, first + i);
        if (stored == DT_BF16 || a.t == DT_BF16) want = bf16_round(want);
        if (is_fill) {
            if (a.t == DT_BF16)
                ((uint16_t *)a.p)[i] = bf16_from_f32(want);
            else
                ((float *)a.p)[i] = want;
        } else {
            float have = a.t == DT_BF16 ? f32_from_bf16(((uint16_t *)a.p)[i]) : ((float *)a.p)[i];
            wrong += have != want;
        }
    }
    return wrong;
}

// fixture_all: fill or check everything this rank owns; returns the number of wrong elements.
static inline int64_t fixture_all(Fixture *f, bool is_fill, DType stored_moments, bool with_state) {
    int64_t wrong = 0;
    for (int i = 0; i < f->params->n; i++) {
        const Param *p = &f->params->p[i];
        wrong += fixture_visit(p, 0, p->master, DT_F32, is_fill);
        if (with_state) wrong += fixture_visit(p, 1, p->m, stored_moments, is_fill);
        if (with_state) wrong += fixture_visit(p, 2, p->v, stored_moments, is_fill);
    }
    for (int64_t b = 0; b < f->params->nblocks; b++) {
        for (int64_t e = 0; f->params->bias[b] && e < f->params->E; e++) {
            float want = fixture_value("bias", (int)b, e);
            if (is_fill) f->params->bias[b][e] = want;
            wrong += f->params->bias[b][e] != want;
        }
    }
    return wrong;
}

// fixture_spoil: NaN everywhere, so that what a load leaves out is seen.
static inline void fixture_spoil(Fixture *f) {
    for (int i = 0; i < f->params->n; i++) {
        const Param *p = &f->params->p[i];
        const Mat all[] = {p->master, p->m, p->v};
        for (int k = 0; k < 3; k++)
            memset(all[k].p, 0xFF, (size_t)(all[k].rows * all[k].cols) * dtype_bytes(all[k].t));
    }
    for (int64_t b = 0; b < f->params->nblocks; b++) {
        if (f->params->bias[b])
            memset(f->params->bias[b], 0xFF, (size_t)f->params->E * sizeof(float));
    }
}

static inline CheckpointInfo fixture_info(int64_t step) {
    CheckpointInfo i = {.step = step, .samples = step * 8, .tokens = step * 64 + (1ll << 54) + 1};
    snprintf(i.data_fingerprint, sizeof i.data_fingerprint, "0123456789abcdef0123456789abcdef");
    snprintf(i.tokenizer_hash, sizeof i.tokenizer_hash, "fedcba9876543210fedcba9876543210");
    return i;
}
