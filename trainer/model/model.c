// model.c - one micro-batch through the network and back.
//
// A stage is a head with what feeds it: stage 0 the main model, stage k the MTP module of depth k. Forward runs the
// stages in order, each ending in its head, which at once makes the gradient of its own input; backward runs them
// in reverse. Memory of `acts` is released in exactly the reverse order of its use.
#include "model.h"

#include "block.h"
#include "head.h"
#include "mtp.h"
#include "prof.h"
#include "staging.h"

typedef struct Stage {
    CxMark mark;         // of acts, before the stage
    int64_t S, T;        // positions per sequence, tokens
    int32_t *token;      // [T] device: input tokens
    int32_t *target;     // [T] device
    int32_t *doc_start;  // [T] device or NULL
    Mat x;               // [T,D] residual stream before the final norm
    Mat n;               // [T,D] after it
    float *rstd;
    Mat dn;              // [T,D] gradient of n
    int64_t targets;     // that exist
    float *loss;         // [T] host
    int32_t *correct;    // [T] host
    const Param *norm;
    BlockRun run;
} Stage;

struct Model {
    Shape s;
    Params *params;
    Block *block;           // [nlayers]
    MtpParams *mtp;         // [nmtp]
    BlockSaved *saved;      // [nlayers]
    MtpSaved *mtp_saved;    // [nmtp]
    Stage *stage;           // [nmtp+1]
    Param *embed, *head, *norm;
    float *rope;            // [S, Dr/2, 2]
    int64_t **count;        // [nblocks]
    double *balance;        // device: where the pass adds the balance loss
    int64_t host_rows;      // capacity of the host arrays
    int32_t *host_tokens;   // [host_rows]
    int32_t *host_correct;  // [nmtp+1, host_rows]
    float *host_loss;       // the same
};

// host_reserve: staging for T rows. Grows only when a larger batch comes.
static Err host_reserve(Model *m, int64_t T) {
    if (T <= m->host_rows) return OK;
    mem_free(m->host_tokens);
    mem_free(m->host_correct);
    mem_free(m->host_loss);
    m->host_tokens = m->host_correct = NULL;
    m->host_loss = NULL;
    MEM_NEW(m->host_tokens, T);
    MEM_NEW(m->host_correct, T * (m->s.nmtp + 1));
    MEM_NEW(m->host_loss, T * (m->s.nmtp + 1));
    m->host_rows = T;
    return OK;
}

static Err make_tables(Model *m, Cx *cx) {
    const Shape *s = &m->s;
    int64_t values = s->S * s->Dr;
    ARENA_NEW(cx->params, m->rope, values);
    if (!cx->is_measure) {
        float *host = NULL;
        MEM_NEW(host, values);
        rope_table(host, s->S, s->Dr, s->rope_theta, s->yarn);
        TRY(cx->dev->to_device(m->rope, host, (size_t)values * sizeof(float)));
        mem_free(host);
    }
    for (int64_t b = 0; b < s->nlayers + s->nmtp; b++) {
        if (!shape_is_moe(s, b)) continue;
        ARENA_NEW(cx->state, m->count[b], s->E);
        TRY(cx->dev->zero(m->count[b], (size_t)s->E * sizeof(int64_t)));
    }
    return OK;
}

Err model_create(Model **out, const Shape *s, Cx *cx, bool with_grad, bool with_state) {
    Model *m = NULL;
    MEM_NEW(m, 1);
    *out = m;
    m->s = *s;
    TRY(params_create(&m->params, s, cx, with_grad, with_state));
    MEM_NEW(m->block, s->nlayers);
    MEM_NEW(m->saved, s->nlayers);
    MEM_NEW(m->mtp, s->nmtp);
    MEM_NEW(m->mtp_saved, s->nmtp);
    MEM_NEW(m->stage, s->nmtp + 1);
    MEM_NEW(m->count, s->nlayers + s->nmtp);
    TRY(make_tables(m, cx));
    for (int64_t i = 0; i < s->nlayers; i++) m->block[i] = block_make(m->params, s, i, m->count[i]);
    for (int64_t k = 1; k <= s->nmtp; k++) {
        m->mtp[k - 1] = mtp_params(m->params, s, k, m->count[s->nlayers + k - 1]);
    }
    m->embed = params_find(m->params, P_EMBED, -1);
    m->head = s->is_tied ? m->embed : params_find(m->params, P_HEAD, -1);
    m->norm = params_find(m->params, P_FINAL_NORM, -1);
    return OK;
}

void model_free(Model **mp) {
    Model *m = *mp;
    if (!m) return;
    params_free(&m->params);
    mem_free(m->block);
    mem_free(m->saved);
    mem_free(m->mtp);
    mem_free(m->mtp_saved);
    mem_free(m->stage);
    mem_free(m->count);
    mem_free(m->host_tokens);
    mem_free(m->host_correct);
    mem_free(m->host_loss);
    mem_free(m);
    *mp = NULL;
}

Params *model_params(Model *m) {
    return m->params;
}

const Shape *model_shape(const Model *m) {
    return &m->s;
}

int64_t **model_counts(Model *m) {
    return m->count;
}

Err model_zero_counts(Model *m, Cx *cx) {
    for (int64_t b = 0; b < m->s.nlayers + m->s.nmtp; b++) {
        if (m->count[b]) TRY(cx->dev->zero(m->count[b], (size_t)m->s.E * sizeof(int64_t)));
    }
    return OK;
}

// Token of row b, position i of the batch, or -1 past its end.
static int32_t token_at(const Batch *b, int64_t row, int64_t i) {
    int64_t have = b->is_complete ? b->ld : b->S;
    return i < have ? b->tokens[row * b->ld + i] : -1;
}

// stage_begin: token, target and document arrays of stage k on acts.
static Err stage_begin(Model *m, Cx *cx, Stage *g, const Batch *b, int64_t k) {
    g->mark = cx_mark_acts(cx);
    g->S = b->is_complete ? b->S : b->S - k;
    g->T = b->nseq * g->S;
    g->norm = k == 0 ? m->norm : m->mtp[k - 1].norm;
    size_t bytes = (size_t)g->T * sizeof(int32_t);
    ARENA_NEW(cx->acts, g->token, g->T);
    ARENA_NEW(cx->acts, g->target, g->T);
    g->doc_start = NULL;
    if (b->doc_start) ARENA_NEW(cx->acts, g->doc_start, g->T);
    g->loss = m->host_loss + k * m->host_rows;
    g->correct = m->host_correct + k * m->host_rows;
    g->targets = 0;
    if (cx->is_measure) return OK;
    for (int64_t t = 0; t < g->T; t++) m->host_tokens[t] = token_at(b, t / g->S, t % g->S + k);
    TRY(cx->dev->to_device(g->token, m->host_tokens, bytes));
    if (b->doc_start) {
        for (int64_t t = 0; t < g->T; t++) {
            m->host_tokens[t] = b->doc_start[t / g->S * b->S + t % g->S];
        }
        TRY(cx->dev->to_device(g->doc_start, m->host_tokens, bytes));
    }
    for (int64_t t = 0; t < g->T; t++) {
        m->host_tokens[t] = k == 0 && b->targets ? b->targets[t] : token_at(b, t / g->S, t % g->S + k + 1);
        g->targets += m->host_tokens[t] >= 0;
    }
    return cx->dev->to_device(g->target, m->host_tokens, bytes);
}

// stage_end: final norm, head, losses (on their way to the host); with a scale also the gradient of n.
static Err stage_end(Model *m, Cx *cx, Stage *g, int64_t k, const LossScale *scale, const Taps *taps) {
    const Shape *s = &m->s;
    ARENA_NEW(cx->acts, g->rstd, g->T);
    TRY(arena_mat(cx->acts, &g->n, s->act, g->T, s->D, "stage.n"));
    g->dn = mat_none();
    if (scale) TRY(arena_mat(cx->acts, &g->dn, s->act, g->T, s->D, "stage.dn"));
    TRY(cx->ops->norm_rms_fwd(&cx->op, g->n, g->rstd, g->x, g->norm->w.p, s->eps));
    double factor = !scale ? 0.0 : k == 0 ? scale->lm : scale->mtp;
    // Means are over the targets that exist: incomplete rows have fewer for the modules.
    if (g->S != m->stage[0].S) factor *= (double)(m->stage[0].S - 1) / (double)(g->S - 1);
    return head_loss(s, cx, m->head, g->dn, g->n, g->target, factor, (int)k, taps, g->loss, g->correct);
}

// stage_losses: what the head of stage k said, once the host has it.
static Err stage_losses(const Stage *g, int64_t k, LossSums *sums, const Taps *taps) {
    double loss = 0.0;
    int64_t correct = 0;
    for (int64_t t = 0; t < g->T; t++) {
        loss += g->loss[t];
        correct += g->correct[t];
    }
    if (taps && taps->loss) TRY(taps->loss(taps->user, (int)k, 0, g->T, g->loss, g->correct));
    if (k == 0) {
        sums->lm += loss;
        sums->lm_targets += g->targets;
        sums->lm_correct += correct;
    } else {
        sums->mtp[k - 1] += loss;
        sums->mtp_targets[k - 1] += g->targets;
    }
    return OK;
}

static Err tap_hidden(const Taps *taps, int64_t layer, Mat x) {
    return taps && taps->hidden ? taps->hidden(taps->user, layer, x) : OK;
}

// grads_final: nothing more is added to the gradients of blocks >= layer in this pass.
static Err grads_final(Model *m, Cx *cx, const Taps *taps, int64_t layer) {
    TRY(params_settle_grad(m->params, cx, layer));
    return taps && taps->grads ? taps->grads(taps->user, layer) : OK;
}

// main_fwd: embedding and blocks. Without a backward only the last block's output is kept.
static Err main_fwd(Model *m, Cx *cx, Stage *g, bool keep, const Taps *taps) {
    const Shape *s = &m->s;
    Mat x;
    TRY(arena_mat(cx->acts, &x, s->act, g->T, s->D, "embedded"));
    prof_enter(PROF_EMBED);
    TRY(cx->ops->embed_fwd(&cx->op, x, m->embed->w, g->token));
    prof_leave();
    for (int64_t i = 0; i < s->nlayers; i++) {
        TRY(block_fwd(s, cx, &m->block[i], &m->saved[i], x, &g->run, m->balance));
        TRY(tap_hidden(taps, i, m->saved[i].y));
        if (keep) {
            x = m->saved[i].y;
        } else {
            TRY(cx->ops->cast(&cx->op, x, m->saved[i].y));
            cx_release_acts(cx, m->saved[i].mark);
        }
    }
    g->x = x;
    return OK;
}

// shorter: rows of the previous stage that exist in this one (all of them for complete windows).
static Err shorter(const Shape *s, Cx *cx, Mat *h, const Stage *prev, const Stage *g) {
    *h = prev->n;
    if (g->S == prev->S) return OK;
    int32_t *idx = NULL;
    void *on_device = NULL;
    ARENA_NEW(cx->host_acts, idx, g->T);
    TRY(arena_mat(cx->acts, h, s->act, g->T, s->D, "mtp.h"));
    if (cx->is_measure) return OK;
    for (int64_t t = 0; t < g->T; t++) idx[t] = (int32_t)(t / g->S * prev->S + t % g->S);
    TRY(staging_push(cx, cx->acts, &on_device, idx, (size_t)g->T * sizeof *idx, "mtp.idx"));
    return cx->ops->rows_gather(&cx->op, h->p, prev->n.p, on_device, g->T, s->D * (int64_t)dtype_bytes(s->act));
}

static Err pass_fwd(Model *m, Cx *cx, const Batch *b, const LossScale *scale, const Taps *taps, int64_t nstages) {
    const Shape *s = &m->s;
    for (int64_t k = 0; k < nstages; k++) {
        Stage *g = &m->stage[k];
        TRY(stage_begin(m, cx, g, b, k));
        BlockRun run = {b->nseq, g->S, m->rope, g->doc_start, true, scale ? scale->balance : 0.0};
        g->run = run;
        if (k == 0) {
            TRY(main_fwd(m, cx, g, scale != NULL, taps));
        } else {
            MtpSaved *a = &m->mtp_saved[k - 1];
            Mat h;
            TRY(shorter(s, cx, &h, &m->stage[k - 1], g));
            TRY(mtp_fwd(s, cx, &m->mtp[k - 1], a, h, g->token, &g->run, m->balance));
            TRY(tap_hidden(taps, s->nlayers + k - 1, a->block.y));
            g->x = a->block.y;
        }
        TRY(stage_end(m, cx, g, k, scale, taps));
    }
    return OK;
}

// add_longer: prev->dn += dsel, whose rows are the first S of each sequence of prev.
static Err add_longer(const Shape *s, Cx *cx, const Stage *prev, const Stage *g, Mat dsel) {
    CxMark mark = cx_mark_scratch(cx);
    int32_t *idx = NULL;
    void *on_device = NULL;
    Mat full;
    ARENA_NEW(cx->host_scratch, idx, prev->T);
    TRY(arena_mat(cx->scratch, &full, s->act, prev->T, s->D, "mtp.dfull"));
    for (int64_t t = 0; !cx->is_measure && t < prev->T; t++) {
        int64_t i = t % prev->S;
        idx[t] = i < g->S ? (int32_t)(t / prev->S * g->S + i) : -1;
    }
    TRY(staging_push(cx, cx->scratch, &on_device, idx, (size_t)prev->T * sizeof *idx, "mtp.idx"));
    TRY(cx->ops->rows_gather(&cx->op, full.p, dsel.p, on_device, prev->T, s->D * (int64_t)dtype_bytes(s->act)));
    TRY(cx->ops->add(&cx->op, prev->dn, prev->dn, full));
    cx_release_scratch(cx, mark);
    return OK;
}

// stage_norm_bwd: gradient of the residual stream from the gradient of its normalised form.
static Err stage_norm_bwd(Cx *cx, Stage *g, Param *norm, Mat dx) {
    return cx->ops->norm_rms_bwd(&cx->op, dx, norm->grad.p, g->dn, g->x, norm->w.p, g->rstd, mat_none());
}

// pass_bwd: ga, gb [T,D] are the two gradient buffers of the residual stream.
static Err pass_bwd(Model *m, Cx *cx, int64_t nstages, Mat ga, Mat gb, const Taps *taps) {
    const Shape *s = &m->s;
    if (!s->is_tied) TRY(grads_final(m, cx, taps, s->nlayers + s->nmtp)); // heads had their backward in forward
    for (int64_t k = nstages - 1; k >= 1; k--) {
        Stage *g = &m->stage[k], *prev = &m->stage[k - 1];
        Mat dy = mat_rows(ga, 0, g->T), tmp = mat_rows(gb, 0, g->T);
        TRY(stage_norm_bwd(cx, g, m->mtp[k - 1].norm, dy));
        if (g->S == prev->S) {
            TRY(mtp_bwd(s, cx, &m->mtp[k - 1], &m->mtp_saved[k - 1], prev->dn, tmp, dy, prev->dn, &g->run));
        } else {
            TRY(mtp_bwd(s, cx, &m->mtp[k - 1], &m->mtp_saved[k - 1], dy, tmp, dy, mat_none(), &g->run));
            TRY(add_longer(s, cx, prev, g, dy));
        }
        cx_release_acts(cx, g->mark);
        TRY(grads_final(m, cx, taps, s->nlayers + k - 1));
    }
    Stage *g = &m->stage[0];
    Mat dy = ga, dx = gb;
    TRY(stage_norm_bwd(cx, g, m->norm, dy));
    for (int64_t i = s->nlayers - 1; i >= 0; i--) {
        TRY(block_bwd(s, cx, &m->block[i], &m->saved[i], dx, dy, &g->run));
        TRY(grads_final(m, cx, taps, i));
        Mat swap = dx;
        dx = dy;
        dy = swap;
    }
    prof_enter(PROF_EMBED);
    TRY(cx->ops->embed_bwd(&cx->op, m->embed->grad, dy, g->token));
    prof_leave();
    return grads_final(m, cx, taps, -1);
}

static Err check_batch(const Model *m, const Batch *b, int64_t nstages) {
    CHECK(b->S >= 1 && b->S <= m->s.S, E_INTERNAL, "batch: %lld positions, the model was made for %lld",
          (long long)b->S, (long long)m->s.S);
    CHECK(b->is_complete || b->S > nstages - 1, E_INPUT,
          "a sequence of %lld tokens is too short for %lld MTP modules", (long long)b->S, (long long)(nstages - 1));
    CHECK(!b->is_complete || b->ld >= b->S + nstages, E_INTERNAL, "batch: rows of %lld tokens are not complete",
          (long long)b->ld);
    return OK;
}

static Err pass(Model *m, Cx *cx, const Batch *b, const LossScale *scale, LossSums *sums, const Taps *taps) {
    int64_t nstages = b->is_main_only ? 1 : m->s.nmtp + 1;
    TRY(check_batch(m, b, nstages));
    TRY(host_reserve(m, b->nseq * b->S));
    CxMark mark = cx_mark_acts(cx);
    Mat ga, gb;
    if (scale) {
        TRY(arena_mat(cx->acts, &ga, m->s.act, b->nseq * b->S, m->s.D, "grad a"));
        TRY(arena_mat(cx->acts, &gb, m->s.act, b->nseq * b->S, m->s.D, "grad b"));
    }
    TRY(staging_push(cx, cx->acts, (void **)&m->balance, &sums->balance, sizeof sums->balance, "balance loss"));
    TRY(pass_fwd(m, cx, b, scale, taps, nstages));
    if (m->balance != &sums->balance) TRY(cx->dev->read(&sums->balance, m->balance, sizeof sums->balance));
    if (scale) TRY(pass_bwd(m, cx, nstages, ga, gb, taps));
    cx_note_block(cx, -1, LEDGER_NO_PASS);
    cx_release_acts(cx, mark);
    TRY(cx->dev->sync()); // the one wait of a pass, beside those of the plans
    for (int64_t k = 0; k < nstages && !cx->is_measure; k++) TRY(stage_losses(&m->stage[k], k, sums, taps));
    return OK;
}

Err model_fwd(Model *m, Cx *cx, const Batch *b, LossSums *sums, const Taps *taps) {
    return pass(m, cx, b, NULL, sums, taps);
}

Err model_fwd_bwd(Model *m, Cx *cx, const Batch *b, const LossScale *scale, LossSums *sums, const Taps *taps) {
    return pass(m, cx, b, scale, sums, taps);
}

// extend: embedding and blocks of the tokens, then norm and head of the last rows.
static Err extend(Model *m, Cx *cx, LatentCache *c, const int32_t *token, int64_t n, Mat logits) {
    const Shape *s = &m->s;
    Stage g = {.S = n, .T = n, .run = {.nseq = 1, .S = n, .cache = c}};
    Mat last, normed;
    ARENA_NEW(cx->acts, g.token, n);
    TRY(cx->dev->to_device(g.token, token, (size_t)n * sizeof *token));
    TRY(main_fwd(m, cx, &g, false, NULL));
    c->n += n;
    if (!logits.p) return OK;
    last = mat_rows(g.x, n - logits.rows, logits.rows);
    TRY(arena_mat(cx->acts, &normed, s->act, last.rows, s->D, "extend.n"));
    TRY(cx->ops->norm_rms_fwd(&cx->op, normed, NULL, last, m->norm->w.p, s->eps));
    prof_enter(PROF_HEAD);
    TRY(cx->ops->gemm_nt(&cx->op, logits, normed, m->head->w, false));
    prof_leave();
    return OK;
}

Err model_extend(Model *m, Cx *cx, LatentCache *c, const int32_t *token, int64_t n, Mat logits) {
    CHECK(n >= 1 && n <= m->s.B * m->s.S && logits.rows <= n, E_INTERNAL,
          "extend: %lld tokens and %lld rows of logits, the model was made for %lld tokens", (long long)n,
          (long long)logits.rows, (long long)(m->s.B * m->s.S));
    CHECK(c->n + n <= c->capacity, E_INTERNAL, "extend: %lld tokens behind %lld, the cache has room for %lld",
          (long long)n, (long long)c->n, (long long)c->capacity);
    CHECK(staging_is_host(cx) && cx->ep->nranks == 1, E_INTERNAL, "extend: on the host, on one rank");
    CxMark mark = cx_mark_acts(cx);
    Err err = extend(m, cx, c, token, n, logits);
    cx_release_acts(cx, mark);
    return err;
}
