// params.c - the table of parameters, generated from params.def, and what happens to all of them at once.
#include "params.h"

#include <stdlib.h>
#include <string.h>

#include "prof.h"
#include "rng.h"
#include "staging.h"
#include "zero.h"

enum { LEVEL_MODEL, LEVEL_BLOCK, LEVEL_MTP };
enum { INIT_NORMAL, INIT_ONE };

// What params.def says about one family for one block.
typedef struct FamilySpec {
    const char *name;
    int level;
    bool exists;
    int64_t nmat, rows, cols;
    int init, kind;
} FamilySpec;

#define MODEL LEVEL_MODEL
#define BLOCK LEVEL_BLOCK
#define MTP LEVEL_MTP
#define NORMAL INIT_NORMAL
#define ONE INIT_ONE
#define FP8 KIND_FP8
#define PLAIN KIND_PLAIN
#define EXACT KIND_EXACT
static FamilySpec family_spec(Family f, const Shape *s, bool moe) {
    switch (f) {
#define FAMILY(id, hf, lvl, cond, nmat_, rows_, cols_, init_, kind_)                               \
    case P_##id: {                                                                                 \
        FamilySpec r = {hf, lvl, cond, nmat_, rows_, cols_, init_, kind_};                         \
        return r;                                                                                  \
    }
#include "params.def"
#undef FAMILY
    case P_COUNT: break;
    }
    FamilySpec none = {0};
    return none;
}
#undef MODEL
#undef BLOCK
#undef MTP
#undef NORMAL
#undef ONE
#undef FP8
#undef PLAIN
#undef EXACT

static void param_name(Param *p, const char *suffix) {
    char stem[64]; // the suffix without the expert number
    const char *number = strstr(suffix, ".%d");
    if (number) {
        snprintf(stem, sizeof stem, "%.*s%s", (int)(number - suffix), suffix, number + 3);
    } else {
        snprintf(stem, sizeof stem, "%s", suffix);
    }
    if (p->layer < 0) {
        snprintf(p->name, sizeof p->name, "%s", stem);
    } else {
        snprintf(p->name, sizeof p->name, "model.layers.%lld.%s", (long long)p->layer, stem);
    }
}

void params_hf_name(char *out, size_t n, const Param *p, int64_t mat) {
    const char *expert = strstr(p->name, ".mlp.experts.");
    if (!expert) {
        snprintf(out, n, "%s", p->name);
        return;
    }
    size_t head = (size_t)(expert - p->name) + strlen(".mlp.experts");
    snprintf(out, n, "%.*s.%lld%s", (int)head, p->name, (long long)mat, p->name + head);
}

static void table_add(Params *t, const Shape *s, Family f, int64_t layer) {
    FamilySpec d = family_spec(f, s, layer >= 0 && shape_is_moe(s, layer));
    bool is_mtp = layer >= s->nlayers;
    if (!d.exists || (d.level == LEVEL_MODEL) != (layer < 0) || (d.level == LEVEL_MTP && !is_mtp)) return;
    Param *p = &t->p[t->n++];
    memset(p, 0, sizeof *p);
    p->family = f;
    p->layer = layer;
    p->is_expert = f == P_EXPERT_GATE || f == P_EXPERT_UP || f == P_EXPERT_DOWN;
    p->nmat_all = d.nmat;
    p->nmat = p->is_expert ? s->L : 1;
    p->mat0 = p->is_expert ? s->expert0 : 0;
    p->rows = d.rows;
    p->cols = d.cols;
    p->is_init_one = d.init == INIT_ONE;
    p->has_decay = d.init == INIT_NORMAL;
    p->kind = (ParamKind)d.kind;
    param_name(p, d.name);
}

// table_build: every entry in model order: embedding, blocks, MTP modules, final norm, head.
static Err table_build(Params *t, const Shape *s) {
    t->nblocks = s->nlayers + s->nmtp;
    t->E = s->E;
    MEM_NEW(t->p, P_COUNT * (t->nblocks + 1));
    table_add(t, s, P_EMBED, -1);
    for (int64_t layer = 0; layer < t->nblocks; layer++) {
        for (int f = 0; f < P_COUNT; f++) table_add(t, s, (Family)f, layer);
    }
    for (int f = P_EMBED + 1; f < P_COUNT; f++) table_add(t, s, (Family)f, -1);
    return OK;
}

// table_shards: who owns which rows, for the entries of one group. The ranges live in one block of memory.
static Err table_shards(Params *t, bool is_expert, int nranks, int rank) {
    int64_t *rows = NULL, *cols = NULL, n = 0;
    ShardRange *ranges = NULL;
    MEM_NEW(rows, t->n);
    MEM_NEW(cols, t->n);
    for (int i = 0; i < t->n; i++) {
        if (t->p[i].is_expert != is_expert) continue;
        rows[n] = t->p[i].nmat * t->p[i].rows;
        cols[n++] = t->p[i].cols;
    }
    if (n > 0) MEM_NEW(ranges, n * nranks);
    if (n > 0) plan_shards(ranges, rows, cols, n, nranks);
    n = 0;
    for (int i = 0; i < t->n; i++) {
        if (t->p[i].is_expert != is_expert) continue;
        t->p[i].ranges = ranges + n++ * nranks;
        t->p[i].own = t->p[i].ranges[rank];
    }
    mem_free(rows);
    mem_free(cols);
    return OK;
}

// param_memory: the memory of one entry, in the arenas of its kind.
static Err param_memory(Param *p, const Shape *s, Cx *cx, bool with_grad, bool with_state) {
    int64_t flat = p->nmat * p->rows;
    DType t = p->kind == KIND_EXACT ? DT_F32 : s->act;
    TRY(arena_mat(cx->params, &p->w, t, flat, p->cols, p->name));
    if (p->kind == KIND_FP8 && s->mode == MODE_FP8) {
        void *mem = NULL;
        ScaleType scale = s->recipe.row[CLASS_WEIGHT].scale;
        TRY(arena_push(cx->params, &mem, weight_bytes(p->nmat, p->rows, p->cols, scale), p->name));
        p->q = weight_view(mem, p->nmat, p->rows, p->cols, scale);
    }
    if (with_grad) TRY(arena_mat(cx->params, &p->grad, DT_F32, flat, p->cols, p->name));
    TRY(arena_mat(cx->state, &p->master, DT_F32, p->own.nrows, p->cols, p->name));
    if (with_state) {
        TRY(arena_mat(cx->state, &p->m, s->act, p->own.nrows, p->cols, p->name));
        TRY(arena_mat(cx->state, &p->v, s->act, p->own.nrows, p->cols, p->name));
    }
    return OK;
}

Err params_create(Params **out, const Shape *s, Cx *cx, bool with_grad, bool with_state) {
    Params *t = NULL;
    MEM_NEW(t, 1);
    *out = t;
    TRY(table_build(t, s));
    TRY(table_shards(t, false, cx->world->nranks, cx->world->rank));
    TRY(table_shards(t, true, cx->edp->nranks, cx->edp->rank));
    for (int i = 0; i < t->n; i++) TRY(param_memory(&t->p[i], s, cx, with_grad, with_state));
    MEM_NEW(t->bias, t->nblocks);
    for (int64_t b = 0; b < t->nblocks; b++) {
        if (!shape_is_moe(s, b) || !s->has_bias) continue;
        ARENA_NEW(cx->state, t->bias[b], s->E);
        TRY(cx->dev->zero(t->bias[b], (size_t)s->E * sizeof(float)));
    }
    return OK;
}

void params_free(Params **p) {
    if (!*p) return;
    const ShardRange *dense = NULL, *expert = NULL; // the two blocks made by table_shards
    for (int i = (*p)->n - 1; i >= 0; i--) {
        if ((*p)->p[i].is_expert) expert = (*p)->p[i].ranges;
        else dense = (*p)->p[i].ranges;
    }
    mem_free((void *)dense);
    mem_free((void *)expert);
    mem_free((*p)->bias);
    mem_free((*p)->p);
    mem_free(*p);
    *p = NULL;
}

Param *params_find(const Params *p, Family family, int64_t layer) {
    for (int i = 0; i < p->n; i++) {
        if (p->p[i].family == family && p->p[i].layer == layer) return &p->p[i];
    }
    return NULL;
}

// The stream of a parameter's random numbers: FNV-1a of its name, so that no layout changes it.
static uint64_t name_stream(const char *name) {
    uint64_t h = 14695981039346656037ull;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 1099511628211ull;
    return h;
}

// init_master: own rows of one entry, by way of `stage` where there is one.
static Err init_master(const Param *p, const Shape *s, const Cx *cx, float *stage) {
    uint64_t stream = name_stream(p->name);
    float *w = stage ? stage : p->master.p;
    int64_t first = (p->mat0 * p->rows + p->own.row0) * p->cols, n = p->own.nrows * p->cols;
#pragma omp parallel for num_threads(cx->op.nthreads)
    for (int64_t j = 0; j < n; j++) {
        double x = p->is_init_one ? 1.0 : s->init_std * rng_normal(s->seed, stream, (uint64_t)(first + j));
        w[j] = (float)x;
    }
    TRY(staging_write(cx, p->master.p, w, (size_t)n * sizeof *w));
    if (p->m.p) TRY(cx->dev->zero(p->m.p, (size_t)n * dtype_bytes(p->m.t)));
    if (p->v.p) TRY(cx->dev->zero(p->v.p, (size_t)n * dtype_bytes(p->v.t)));
    return OK;
}

Err params_init(Params *t, const Shape *s, const Cx *cx) {
    if (cx->is_measure) return OK;
    float *stage = NULL;
    int64_t largest = 0;
    for (int i = 0; i < t->n; i++) largest = max_i64(largest, t->p[i].own.nrows * t->p[i].cols);
    if (!staging_is_host(cx)) MEM_NEW(stage, largest);
    Err err = OK;
    for (int i = 0; i < t->n && err == OK; i++) err = init_master(&t->p[i], s, cx, stage);
    mem_free(stage);
    TRY(err);
    for (int64_t b = 0; b < t->nblocks; b++) {
        if (t->bias[b]) TRY(cx->dev->zero(t->bias[b], (size_t)t->E * sizeof(float)));
    }
    return OK;
}

// gather_group: own rows of the compute copies to all ranks of the group.
static Err gather_group(Params *t, Cx *cx, bool is_expert, Comm *group) {
    size_t mark = arena_mark(cx->host_scratch);
    ZeroTensor *z = NULL;
    int64_t n = 0;
    TRY(arena_push(cx->host_scratch, (void **)&z, (size_t)t->n * sizeof *z, "zero tensors"));
    if (cx->is_measure) {
        arena_release(cx->host_scratch, mark);
        return OK;
    }
    for (int i = 0; i < t->n; i++) {
        Param *p = &t->p[i];
        if (p->is_expert != is_expert) continue;
        ZeroTensor e = {.rows = p->w.rows, .cols = p->cols, .range = p->ranges, .param = p->w.p};
        e.param_bytes = (int)dtype_bytes(p->w.t);
        z[n++] = e;
    }
    ZeroRows rows = cx_zero_rows(cx);
    TRY(zero_gather(group, cx->dev, z, n, cx->host_scratch, cx_bucket_bytes(group), &rows));
    arena_release(cx->host_scratch, mark);
    return OK;
}

// weight_site: where a family of FP8 linears is counted; the shared expert is its block's FFN.
static Site weight_site(Family f) {
    switch (f) {
    case P_Q: return SITE_Q_W;
    case P_Q_A: return SITE_Q_A_W;
    case P_Q_B: return SITE_Q_B_W;
    case P_KV_A: return SITE_KV_A_W;
    case P_KV_B: return SITE_KV_B_W;
    case P_O: return SITE_O_W;
    case P_GATE:
    case P_SHARED_GATE: return SITE_FFN_GATE_W;
    case P_UP:
    case P_SHARED_UP: return SITE_FFN_UP_W;
    case P_DOWN:
    case P_SHARED_DOWN: return SITE_FFN_DOWN_W;
    case P_EXPERT_GATE: return SITE_EXPERT_GATE_W;
    case P_EXPERT_UP: return SITE_EXPERT_UP_W;
    case P_EXPERT_DOWN: return SITE_EXPERT_DOWN_W;
    default: return SITE_COUNT; // no FP8 linear
    }
}

static bool is_prepared(const Param *p, const Shape *s) {
    return s->mode == MODE_FP8 && p->kind == KIND_FP8;
}

// prepare: the FP8 weights q of a part w of an entry, if it has any.
static Err prepare_part(const Param *p, const Shape *s, Cx *cx, MatQ q, Mat w) {
    if (!is_prepared(p, s)) return OK;
    prof_enter(PROF_QUANT);
    Site site = weight_site(p->family);
    cx->layer = p->layer;
    QuantRule rule = calibration_rule(cx->calibration, &s->recipe, p->layer, site);
    TRY(cx->ops->weight_prepare(&cx->op, q, w, rule, cx_count(cx, site)));
    prof_leave();
    return OK;
}
static Err prepare(Param *p, const Shape *s, Cx *cx) {
    return prepare_part(p, s, cx, p->q, p->w);
}

Err params_prepare(Params *t, const Shape *s, Cx *cx) {
    for (int i = 0; i < t->n; i++) TRY(prepare(&t->p[i], s, cx));
    return OK;
}

// is_alone: whether nobody else owns rows of the entry.
static bool is_alone(const Param *p, const Cx *cx) {
    return (p->is_expert ? cx->edp : cx->world)->nranks == 1;
}

// Weights of a thread that the second-level cache keeps, with all that their update reads and writes.
enum { PIECE_WEIGHTS = 1 << 15 };

int64_t params_piece(const Param *p, const Shape *s, const Cx *cx, int64_t r0) {
    int64_t left = p->own.nrows - r0, weights = PIECE_WEIGHTS * max_i64(cx->op.nthreads, 1);
    // Scales that more than a block shares need the whole matrix, and a device's operations a launch each.
    QuantScope scope = s->recipe.row[CLASS_WEIGHT].scope;
    bool is_blocks = scope == SCOPE_TILE || scope == SCOPE_BLOCK;
    if (!is_prepared(p, s) || !is_alone(p, cx) || !is_blocks || !staging_is_host(cx)) return left;
    int64_t matrices = weights / (p->rows * p->cols);
    if (matrices > 0) return min_i64(matrices * p->rows, left);
    int64_t rows = max_i64(weights / p->cols / TILE, 1) * TILE;
    return min_i64(rows, p->rows - r0 % p->rows);
}

Err params_prepare_piece(Param *p, const Shape *s, Cx *cx, int64_t r0, int64_t n) {
    if (!is_alone(p, cx) || !is_prepared(p, s)) return OK;
    if (n == p->w.rows) return prepare(p, s, cx);
    MatQ q = matq_mat(p->q, r0 / p->rows);
    int64_t at = r0 % p->rows;
    q.nmat = max_i64(n / p->rows, 1);
    if (n < p->rows) {
        q.q += at * q.ld;
        q.s = (char *)q.s + (size_t)(at / TILE * q.srow) * (q.st == SCALE_F32 ? 4 : 1);
        q.rows = n;
    }
    return prepare_part(p, s, cx, q, mat_rows(p->w, r0, n));
}

Err params_publish(Params *t, const Shape *s, Cx *cx) {
    prof_enter(PROF_OPTIMIZER);
    for (int i = 0; i < t->n; i++) {
        Param *p = &t->p[i];
        if (p->own.nrows == 0) continue;
        TRY(cx->ops->cast(&cx->op, mat_rows(p->w, p->own.row0, p->own.nrows), p->master));
    }
    prof_leave();
    for (int i = 0; i < t->n; i++) TRY(params_prepare_piece(&t->p[i], s, cx, 0, t->p[i].w.rows));
    return params_share(t, s, cx);
}

Err params_share(Params *t, const Shape *s, Cx *cx) {
    prof_enter(PROF_REDUCE);
    TRY(gather_group(t, cx, false, cx->world));
    TRY(gather_group(t, cx, true, cx->edp));
    prof_leave();
    for (int i = 0; i < t->n; i++) {
        if (!is_alone(&t->p[i], cx)) TRY(prepare(&t->p[i], s, cx));
    }
    return OK;
}

static Err zero_grad(Cx *cx, Param *e) {
    e->is_clear = false;
    return cx->dev->zero(e->grad.p, (size_t)(e->grad.rows * e->grad.cols) * sizeof(float));
}

Err params_zero_grad(Params *t, Cx *cx) {
    for (int i = 0; i < t->n; i++) {
        Param *e = &t->p[i];
        e->is_clear = e->kind == KIND_FP8 || e->family == P_HEAD;
        if (!e->is_clear) TRY(zero_grad(cx, e));
    }
    return OK;
}

Err params_settle_grad(Params *t, Cx *cx, int64_t layer) {
    for (int i = 0; i < t->n; i++)
        if (t->p[i].is_clear && t->p[i].layer >= layer) TRY(zero_grad(cx, &t->p[i]));
    return OK;
}

ParamCount params_count(const Shape *s) {
    ParamCount c = {0};
    for (int64_t layer = -1; layer < s->nlayers + s->nmtp; layer++) {
        bool moe = layer >= 0 && shape_is_moe(s, layer);
        for (int f = 0; f < P_COUNT; f++) {
            FamilySpec d = family_spec((Family)f, s, moe);
            if (!d.exists || (d.level == LEVEL_MODEL) != (layer < 0)) continue;
            if (d.level == LEVEL_MTP && layer < s->nlayers) continue;
            int64_t n = d.nmat * d.rows * d.cols;
            if (layer >= s->nlayers) {
                c.mtp += n;
                continue;
            }
            int64_t used = d.nmat > 1 || f == P_EXPERT_GATE || f == P_EXPERT_UP || f == P_EXPERT_DOWN
                               ? s->K * d.rows * d.cols
                               : n;
            c.total += n;
            c.active += used;
            if (f != P_EMBED || s->is_tied) c.active_no_embed += used;
        }
    }
    return c;
}
