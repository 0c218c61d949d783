// dump.c - one pass over given tokens with everything watched.
#include "dump.h"

#include <math.h>
#include <string.h>

#include "fp8.h"

// What the taps need.
typedef struct Watch {
    Dump *d;
    const Shape *s;
    const Device *dev;
    int64_t B, S;
} Watch;

static Err dump_add(Dump *d, DumpTensor **out, const char *name, int ndim, int64_t a, int64_t b, int64_t c) {
    CHECK(d->n < d->room, E_INTERNAL, "dump: more than %lld tensors", (long long)d->room);
    DumpTensor *t = &d->t[d->n++];
    CHECK(snprintf(t->name, sizeof t->name, "%s", name) < (int)sizeof t->name, E_INTERNAL, "dump: name %s", name);
    t->ndim = ndim;
    t->shape[0] = a;
    t->shape[1] = b;
    t->shape[2] = c;
    t->n = (ndim > 0 ? a : 1) * (ndim > 1 ? b : 1) * (ndim > 2 ? c : 1);
    TRY(mem_alloc((void **)&t->data, (size_t)t->n * sizeof(float), t->name));
    *out = t;
    return OK;
}

static Err dump_scalar(Dump *d, const char *name, double v) {
    DumpTensor *t = NULL;
    TRY(dump_add(d, &t, name, 0, 0, 0, 0));
    t->data[0] = (float)v;
    return OK;
}

// Copy a dense or strided matrix of the device to floats.
static Err to_floats(const Device *dev, float *out, Mat x) {
    for (int64_t r = 0; r < x.rows; r++) {
        float *row = out + r * x.cols;
        if (x.t == DT_F32) {
            TRY(dev->to_host(row, mat_at(x, r, 0), (size_t)x.cols * sizeof(float)));
            continue;
        }
        CHECK(x.t == DT_BF16, E_INTERNAL, "dump: activations of type %s", dtype_name(x.t));
        uint16_t *half = (uint16_t *)row + x.cols; // the second half of the row; widened from the front
        TRY(dev->to_host(half, mat_at(x, r, 0), (size_t)x.cols * sizeof(uint16_t)));
        for (int64_t c = 0; c < x.cols; c++) {
            uint16_t bits;
            memcpy(&bits, half + c, sizeof bits);
            float value = f32_from_bf16(bits);
            memcpy(row + c, &value, sizeof value);
        }
    }
    return OK;
}

static Err watch_hidden(void *user, int64_t layer, Mat x) {
    Watch *w = user;
    char name[64];
    DumpTensor *t = NULL;
    snprintf(name, sizeof name, "hidden.%lld", (long long)layer);
    TRY(dump_add(w->d, &t, name, 3, w->B, x.rows / w->B, x.cols));
    return to_floats(w->dev, t->data, x);
}

static Err watch_logits(void *user, int mtp, int64_t row0, Mat logits) {
    Watch *w = user;
    char name[64] = "logits";
    if (mtp > 0) snprintf(name, sizeof name, "mtp_logits.%d", mtp);
    DumpTensor *t = (DumpTensor *)dump_find(w->d, name);
    if (!t) TRY(dump_add(w->d, &t, name, 3, w->B, w->S - mtp, w->s->V));
    return to_floats(w->dev, t->data + row0 * w->s->V, logits);
}

Err dump_config(Config **out, const char *path, const char *const *sets, int nsets, int64_t B, int64_t S) {
    char seq[64], batch[64], micro[64];
    snprintf(seq, sizeof seq, "train.seq_len=%lld", (long long)S);
    snprintf(batch, sizeof batch, "train.global_batch=%lld", (long long)B);
    snprintf(micro, sizeof micro, "train.micro_batch=%lld", (long long)B);
    const char *ours[] = {seq,
                          batch,
                          micro,
                          "parallel.ep=1",
                          "parallel.comm=self",
                          "train.batch_quantum=1",
                          "train.batch_start=null",
                          "train.batch_ramp_samples=0",
                          "train.document_mask=false"};
    int nours = (int)(sizeof ours / sizeof ours[0]);
    const char **all = NULL;
    MEM_NEW(all, 1 + nsets + nours);
    all[0] = "precision.mode=fp32";
    for (int i = 0; i < nsets; i++) all[1 + i] = sets[i];
    for (int i = 0; i < nours; i++) all[1 + nsets + i] = ours[i];
    Err err = config_load(out, path, all, 1 + nsets + nours);
    mem_free(all);
    return err;
}

static Err check_tokens(const Shape *s, const int32_t *tokens, int64_t B, int64_t S) {
    CHECK(S >= 2 + s->nmtp, E_INPUT,
          "sequences of %lld tokens are too short: a model with %lld MTP modules needs %lld", (long long)S,
          (long long)s->nmtp, (long long)(2 + s->nmtp));
    for (int64_t i = 0; i < B * S; i++) {
        CHECK(tokens[i] >= 0 && tokens[i] < s->V, E_INPUT,
              "token %d of sequence %lld, position %lld is outside the "
              "vocabulary of %lld",
              tokens[i], (long long)(i / S), (long long)(i % S), (long long)s->V);
    }
    return OK;
}

// Losses as means, from the sums of the pass.
static Err add_losses(Dump *d, const Shape *s, const Config *c, const LossSums *sums, int64_t B) {
    double lm = sums->lm / (double)sums->lm_targets, total = lm;
    TRY(dump_scalar(d, "lm_loss", lm));
    for (int64_t k = 0; k < s->nmtp; k++) {
        char name[64];
        double loss = sums->mtp[k] / (double)sums->mtp_targets[k];
        snprintf(name, sizeof name, "mtp_loss.%lld", (long long)(k + 1));
        TRY(dump_scalar(d, name, loss));
        total += c->mtp.loss_weight / (double)s->nmtp * loss;
    }
    double balance = c->balance.seq_alpha * sums->balance / (double)B;
    TRY(dump_scalar(d, "balance_loss", balance));
    TRY(dump_scalar(d, "loss", total + balance));
    CHECK(isfinite(total + balance), E_NUMERIC, "the loss is not finite: lm_loss %g, balance_loss %g, loss %g", lm,
          balance, total + balance);
    return OK;
}

static Err add_counts(Dump *d, Solo *s) {
    int64_t **count = model_counts(s->model), *host = NULL;
    MEM_NEW(host, s->shape.E);
    Err err = OK;
    for (int64_t b = 0; b < s->shape.nlayers + s->shape.nmtp; b++) {
        if (!shape_is_moe(&s->shape, b)) continue;
        char name[64];
        DumpTensor *t = NULL;
        snprintf(name, sizeof name, "counts.%lld", (long long)b);
        TRY_OR(dump_add(d, &t, name, 1, s->shape.E, 0, 0), done);
        TRY_OR(s->cx.dev->to_host(host, count[b], (size_t)s->shape.E * sizeof *host), done);
        for (int64_t e = 0; e < s->shape.E; e++) t->data[e] = (float)host[e];
    }
done:
    mem_free(host);
    return err;
}

static Err add_grads(Dump *d, Solo *s) {
    const Params *p = model_params(s->model);
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        for (int64_t mat = 0; mat < e->nmat; mat++) {
            char name[128] = "grad.";
            DumpTensor *t = NULL;
            params_hf_name(name + 5, sizeof name - 5, e, e->mat0 + mat);
            bool is_vector = e->is_init_one;
            TRY(dump_add(d, &t, name, is_vector ? 1 : 2, is_vector ? e->cols : e->rows, e->cols, 0));
            TRY(to_floats(s->cx.dev, t->data, mat_rows(e->grad, mat * e->rows, e->rows)));
        }
    }
    return OK;
}

// The factors that make the gradient that of the means.
static LossScale scale_of(const Shape *s, const Config *c, int64_t B, int64_t S, DumpGrads grads) {
    LossScale scale = {.lm = 1.0 / (double)(B * (S - 1))};
    if (grads != DUMP_TOTAL) return scale;
    scale.mtp = s->nmtp ? c->mtp.loss_weight / (double)s->nmtp / (double)(B * (S - 1)) : 0.0;
    scale.balance = c->balance.seq_alpha / (double)B;
    return scale;
}

static Err compute(Dump *d, Solo *s, const Config *c, const int32_t *tokens, int64_t B, int64_t S,
                   DumpGrads grads) {
    const Shape *shape = &s->shape;
    const Params *p = model_params(s->model);
    TRY(check_tokens(shape, tokens, B, S));
    d->room = 3 * (shape->nlayers + shape->nmtp + 1) + shape->nmtp * 2 + 8;
    for (int i = 0; i < p->n; i++) d->room += p->p[i].nmat;
    MEM_NEW(d->t, d->room);
    Watch watch = {d, shape, s->cx.dev, B, S};
    Taps taps = {.user = &watch, .hidden = watch_hidden, .logits = watch_logits};
    Batch batch = {.nseq = B, .S = S, .ld = S, .tokens = tokens};
    LossSums sums = {0};
    TRY(model_zero_counts(s->model, &s->cx));
    if (grads == DUMP_NO_GRADS) {
        TRY(model_fwd(s->model, &s->cx, &batch, &sums, &taps));
    } else {
        LossScale scale = scale_of(shape, c, B, S, grads);
        TRY(params_zero_grad(model_params(s->model), &s->cx));
        TRY(model_fwd_bwd(s->model, &s->cx, &batch, &scale, &sums, &taps));
    }
    TRY(add_losses(d, shape, c, &sums, B));
    TRY(add_counts(d, s));
    return grads == DUMP_NO_GRADS ? OK : add_grads(d, s);
}

Err dump_compute(Dump *out, Solo *s, const Config *c, const int32_t *tokens, int64_t B, int64_t S,
                 DumpGrads grads) {
    memset(out, 0, sizeof *out);
    Err err = compute(out, s, c, tokens, B, S, grads);
    if (err != OK) dump_free(out);
    return err;
}

const DumpTensor *dump_find(const Dump *d, const char *name) {
    for (int64_t i = 0; i < d->n; i++) {
        if (!strcmp(d->t[i].name, name)) return &d->t[i];
    }
    return NULL;
}

Err dump_write(const Dump *d, const char *path) {
    StDecl *decl = NULL;
    SafetensorsWriter *w = NULL;
    MEM_NEW(decl, d->n);
    for (int64_t i = 0; i < d->n; i++) {
        decl[i] = (StDecl){.name = d->t[i].name, .dtype = ST_F32, .ndim = d->t[i].ndim};
        for (int k = 0; k < d->t[i].ndim; k++) decl[i].shape[k] = d->t[i].shape[k];
    }
    Err err = OK;
    TRY_OR(safetensors_create(&w, path, decl, d->n), done);
    for (int64_t i = 0; i < d->n; i++) {
        TRY_OR(safetensors_put(w, d->t[i].name, d->t[i].data, (size_t)d->t[i].n * sizeof(float)), done);
    }
    TRY_OR(safetensors_finish(&w, false), done);
done:
    safetensors_drop(&w);
    mem_free(decl);
    return err;
}

void dump_free(Dump *d) {
    for (int64_t i = 0; i < d->n; i++) mem_free(d->t[i].data);
    mem_free(d->t);
    memset(d, 0, sizeof *d);
}

Err dump_read_tokens(const Safetensors *st, const char *path, int32_t **tokens, int64_t *B, int64_t *S) {
    const StTensor *t = safetensors_find(st, "tokens");
    CHECK(t, E_INPUT, "%s: no tensor named tokens", path);
    CHECK(t->ndim == 2 && (t->dtype == ST_I32 || t->dtype == ST_I64), E_INPUT,
          "%s: tokens must be I32 [sequences, positions], found %s with %d dimensions", path,
          st_type_name(t->dtype), t->ndim);
    CHECK(t->shape[0] > 0 && t->shape[1] > 1, E_INPUT,
          "%s: tokens is [%lld, %lld]: at least one sequence of 2 positions is needed", path,
          (long long)t->shape[0], (long long)t->shape[1]);
    *B = t->shape[0];
    *S = t->shape[1];
    MEM_NEW(*tokens, *B * *S);
    for (int64_t i = 0; i < *B * *S; i++) {
        int64_t wide = 0;
        if (t->dtype == ST_I32) {
            int32_t narrow;
            memcpy(&narrow, (const char *)t->data + i * 4, 4);
            wide = narrow;
        } else {
            memcpy(&wide, (const char *)t->data + i * 8, 8);
        }
        // checked against the vocabulary later
        (*tokens)[i] = (int32_t)max_i64(INT32_MIN, min_i64(INT32_MAX, wide));
    }
    return OK;
}
