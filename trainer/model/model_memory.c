// model_memory.c - the measuring pass, and contexts.
#include "model_memory.h"

#include <string.h>

#include "head.h"
#include "log.h"
#include "machine.h"
#include "shadow_gemm.h"
#include "staging.h"

// What lies on scratch below or outside a pass: zero.h's buckets, optimizer temporaries; address space only.
#define SCRATCH_SLACK ((size_t)256 << 20)
// What a device needs on acts beside what the CPU needs: a few single numbers.
#define DEVICE_SLACK ((size_t)64 << 10)

// What operations push on scratch themselves, which measure mode does not see: upper bounds, in address space only.
// Attention keeps keys, values, their gradients and a block of queries per thread, and the heads' parts of the shared
// key's gradient; GEMMs and the router keep small panels per thread; norms and the balance loss 128-row partial sums.
static void measure_ops(MemoryPlan *out, const Shape *s) {
    size_t S = (size_t)s->S + 1024, width = (size_t)(s->Dn + s->Dr + s->Dv) + 64, rope = (size_t)(s->S * s->Dr);
    size_t blocks = (size_t)ceil_div(s->S, TILE) * (size_t)s->B;
    int64_t widest = max_i64(max_i64(s->Fd, s->Fs), max_i64(s->F, s->D));
    out->op_thread = sizeof(float) * (S * (3 * width + 128) + 4 * rope) + ((size_t)4 << 20);
    out->op_thread += fused_scratch_bytes(1, widest);
    out->op_shared = sizeof(float) * ((size_t)s->H * rope + blocks * (size_t)(s->D + 8 * s->E + 4 * s->K + 256));
    out->op_thread += sizeof(float) * ((size_t)s->V + 16); // the terms of one row's loss
}

// What cuBLASLt may use beside its operands (blas_cuda.h), for two alignments.
#define LIBRARY_SPACE (((size_t)32 << 20) + 512)

// measure_device_ops: the same for the CUDA backend: the router's input in FP32, the parts of the gates' gradients,
// codes with rows of a multiple of 16 bytes, codes of a weight turned for Dgrad, partial sums of norms (one row of FP32
// for 16 tokens) and balance losses, or, when these are over, the head's chunk; and the workspace of its library.
static void measure_device_ops(MemoryPlan *out, const Shape *s, const Mesh *mesh) {
    int64_t T = s->B * s->S, pairs = T * mesh->ep * min_i64(s->K, s->L), blocks = (ceil_div(s->S, TILE) + 1) * s->B;
    int64_t wide = max_i64(s->Fd, s->Fs), latent = max_i64(s->Rq, s->Rkv);
    int64_t heads = s->H * (s->Dn + max_i64(s->Dr, s->Dv));
    int64_t fused = 4 * max_i64(max_i64(pairs * ceil_div(s->F, TILE), T * ceil_div(wide, TILE)), T * s->D);
    int64_t weight = max_i64((wide + 16) * (s->D + 16), s->L * (s->F + 16) * (s->D + 16));
    weight = max_i64(weight, (heads + 16) * (max_i64(latent, s->D) + 16));
    int64_t rows = pairs * (max_i64(s->D, s->F) + 16) + T * (max_i64(max_i64(s->D, wide), heads) + 16);
    int64_t parts = blocks * (32 * s->D + 16 * s->E) + 4 * (s->H + s->K + 2) * T;
    // The heads' parts of the shared key's gradient: of all sequences, or as many as 4096 blocks of 64 rows and one.
    parts += 4 * min_i64(s->H * T, ((int64_t)4096 << 6) + s->H * s->S) * s->Dr + T + 8 * s->B;
    size_t layers = (size_t)(fused + weight + rows + parts), head = head_device_bytes(s);
    out->op_device = (layers > head ? layers : head) + LIBRARY_SPACE + DEVICE_SLACK;
}

static Err measure_cx(Cx *cx, const Mesh *mesh, bool is_balanced) {
    memset(cx, 0, sizeof *cx);
    cx->ops = ops_null();
    cx->dev = device_null();
    cx->mesh = *mesh;
    cx->is_measure = true;
    TRY(comm_null(&cx->world, "world", mesh->rank, mesh->world));
    TRY(comm_null(&cx->ep, "ep", mesh->ep_rank, mesh->ep));
    TRY(comm_null(&cx->edp, "edp", mesh->dp_rank, mesh->dp));
    cx->ep->is_balanced = is_balanced;
    TRY(arena_create(&cx->params, "params", 0, true));
    TRY(arena_create(&cx->state, "state", 0, true));
    TRY(arena_create(&cx->acts, "acts", 0, true));
    TRY(arena_create(&cx->scratch, "scratch", 0, true));
    cx->host_acts = cx->acts;
    cx->host_scratch = cx->scratch;
    cx->op.scratch = cx->scratch;
    cx->op.nthreads = 1;
    return OK;
}

static Err measure_pass(const Shape *s, Cx *cx, Model **m, bool with_grad, bool with_state) {
    TRY(model_create(m, s, cx, with_grad, with_state));
    Batch b = {.nseq = s->B, .S = s->S, .ld = s->S + 1 + s->nmtp, .is_complete = true};
    static const int32_t no_documents;
    if (s->document_mask) b.doc_start = &no_documents; // only its presence counts in measure mode
    LossSums sums = {0};
    LossScale scale = {.lm = 1, .balance = 1};
    if (with_grad) return model_fwd_bwd(*m, cx, &b, &scale, &sums, NULL);
    return model_fwd(*m, cx, &b, &sums, NULL);
}

Err memory_measure(MemoryPlan *out, const Shape *s, const Mesh *mesh, bool with_grad, bool with_state) {
    memset(out, 0, sizeof *out);
    measure_ops(out, s);
    measure_device_ops(out, s, mesh);
    // Steps with and without comparison keep different things.
    int kinds = s->shadow_every > 0 && with_grad ? 4 : 2;
    for (int kind = 0; kind < kinds; kind++) {
        Cx cx;
        Model *m = NULL;
        bool balanced = kind % 2 == 1;
        TRY(measure_cx(&cx, mesh, balanced));
        Shadow samples = {0}; // only its presence counts in measure mode
        if (kind >= 2) cx.shadow = &samples;
        Err err = measure_pass(s, &cx, &m, with_grad, with_state);
        out->params = arena_high(cx.params);
        out->state = arena_high(cx.state);
        size_t *acts = balanced ? &out->acts_balanced : &out->acts;
        size_t *scratch = balanced ? &out->scratch_balanced : &out->scratch;
        *acts = arena_high(cx.acts) > *acts ? arena_high(cx.acts) : *acts;
        *scratch = arena_high(cx.scratch) > *scratch ? arena_high(cx.scratch) : *scratch;
        for (int k = 0; k < SAVED_KINDS; k++)
            out->saved[k] = (double)cx.saved.bytes[k] / (double)max_i64(cx.saved.tokens, 1);
        model_free(&m);
        comm_destroy(&cx.world);
        comm_destroy(&cx.ep);
        comm_destroy(&cx.edp);
        cx_destroy(&cx);
        TRY(err);
    }
    return OK;
}

Err memory_saved_bf16(double *out, const Shape *s, const Mesh *mesh) {
    Shape all = *s;
    MemoryPlan plan;
    all.mode = MODE_BF16;
    all.act = DT_BF16;
    all.cache_o_e5m6 = all.cache_swiglu_fp8 = false;
    all.recompute_norm = all.recompute_up = all.recompute_swiglu = false;
    TRY(memory_measure(&plan, &all, mesh, true, true));
    *out = 0.0;
    for (int k = 0; k < SAVED_KINDS; k++) *out += plan.saved[k];
    return OK;
}

Err cx_create(Cx *cx, const Boot *boot, const Mesh *mesh, const Shape *s, const MemoryPlan *plan, int nthreads) {
    Backend cpu = backend_cpu();
    TRY(cx_create_on(cx, &cpu, boot, mesh, s, plan, nthreads));
    return OK;
}

Err cx_check_backend(const Backend *on, const Shape *s) {
    if (s->mode == MODE_FP8) TRY(recipe_check_backend(&s->recipe, on->ops->backend));
    CHECK(!on->dev->alloc || s->shadow_every == 0, E_CONFIG,
          "fp8.shadow_every %lld is not supported by the %s backend: products are compared with BF16 ones on the cpu "
          "backend only",
          (long long)s->shadow_every, on->ops->backend);
    return OK;
}

// bucket_room: what the buckets of zero.h take of the device's scratch, of both groups at once.
static size_t bucket_room(const Cx *cx, const Shape *s) {
    int64_t heads = s->H * (s->Dn + max_i64(s->Dr, s->Dv));
    int64_t widest = max_i64(max_i64(s->Fd, s->Fs), max_i64(s->F, s->D));
    widest = max_i64(max_i64(widest, heads), max_i64(s->Rq, s->Rkv + s->Dr));
    const Comm *groups[] = {cx->world, cx->edp};
    size_t room = 0;
    for (int i = 0; i < 2; i++) {
        const Comm *g = groups[i];
        if (g->on_device) room += zero_rows_bytes(g->nranks, widest * (int64_t)sizeof(float), cx_bucket_bytes(g));
    }
    return room;
}

static Err make_arenas(Cx *cx, const MemoryPlan *plan, const Shape *s, int nthreads) {
    const Device *dev = cx->dev;
    size_t ops = plan->op_shared + plan->op_thread * (size_t)(nthreads > 1 ? nthreads : 1);
    size_t scratch = plan->scratch + ops + SCRATCH_SLACK;
    TRY(arena_create_on(&cx->params, dev, "params", plan->params, false));
    TRY(arena_create_on(&cx->state, dev, "state", plan->state, false));
    if (staging_is_host(cx)) {
        TRY(arena_create(&cx->acts, "acts", plan->acts, false));
        TRY(arena_create(&cx->scratch, "scratch", scratch, false));
        cx->host_acts = cx->acts;
        cx->host_scratch = cx->scratch;
        return OK;
    }
    // What the plan counts once is there twice at most: where the host writes it, and where operations read it.
    TRY(arena_create_on(&cx->acts, dev, "acts", plan->acts + DEVICE_SLACK, false));
    TRY(arena_create_on(&cx->scratch, dev, "scratch", plan->scratch + plan->op_device + bucket_room(cx, s), false));
    TRY(arena_create(&cx->host_acts, "host acts", plan->acts + DEVICE_SLACK, false));
    TRY(arena_create(&cx->host_scratch, "host scratch", 2 * scratch, false));
    return OK;
}

// make_health: the counters of FP8 health, all zero.
static Err make_health(Cx *cx) {
    int64_t n = cx->nblocks * SITE_COUNT;
    if (staging_is_host(cx)) {
        MEM_NEW(cx->health, n);
        return OK;
    }
    TRY(cx->dev->alloc((void **)&cx->health, (size_t)n * sizeof *cx->health, "FP8 health"));
    return cx->dev->zero(cx->health, (size_t)n * sizeof *cx->health);
}

// check_room: what a pass touches for certain is no more than the machine has, for all ranks on it: else the kernel
// would kill them in the middle of the start, without a word. On a device its own allocations say so.
static Err check_room(const MemoryPlan *p, const Backend *on, int local_nranks) {
    MachineMemory has = machine_memory();
    double most = machine_memory_most(&has), fixed = (double)(p->params + p->state);
    double all = fixed + (double)p->acts_balanced + (double)p->scratch_balanced;
    if (on->dev->alloc || most < 0) return OK;
    CHECK(all * local_nranks <= most, E_INTERNAL,
          "not enough memory: %d rank%s here need%s %s%s (parameters, gradients, masters and moments %s, activations "
          "and scratch %s), %s has %s: spread the model over more machines, with a larger parallel.ep, or make it, "
          "train.micro_batch or train.seq_len smaller",
          local_nranks, local_nranks == 1 ? "" : "s", local_nranks == 1 ? "s" : "", text_bytes(all).s,
          local_nranks == 1 ? "" : " each", text_bytes(fixed).s, text_bytes(all - fixed).s,
          most == has.group ? "the control group" : "this machine", text_bytes(most).s);
    return OK;
}

Err cx_create_on(Cx *cx, const Backend *on, const Boot *boot, const Mesh *mesh, const Shape *s, const MemoryPlan *plan,
                 int nthreads) {
    memset(cx, 0, sizeof *cx);
    cx->ops = on->ops;
    cx->dev = on->dev;
    cx->world = boot->world;
    cx->ep = boot->ep;
    cx->edp = boot->edp;
    cx->mesh = *mesh;
    TRY(cx_check_backend(on, s));
    TRY(check_room(plan, on, boot->local_nranks));
    TRY(make_arenas(cx, plan, s, nthreads));
    cx->op.scratch = cx->scratch;
    cx->op.nthreads = nthreads;
    cx->op.accumulate = s->recipe.accumulate;
    cx->nblocks = s->nlayers + s->nmtp;
    if (s->mode != MODE_FP8) return OK;
    TRY(make_health(cx));
    if (recipe_is_static(&s->recipe)) TRY(calibration_create(&cx->calibration, cx->nblocks));
    return OK;
}

void cx_destroy(Cx *cx) {
    calibration_free(&cx->calibration);
    bool is_host = !cx->dev || staging_is_host(cx); // no device: nothing was created
    if (is_host) mem_free(cx->health);
    else cx->dev->release(cx->health);
    cx->health = NULL;
    if (!is_host) {
        arena_destroy(&cx->host_acts);
        arena_destroy(&cx->host_scratch);
    }
    cx->host_acts = cx->host_scratch = NULL;
    arena_destroy(&cx->params);
    arena_destroy(&cx->state);
    arena_destroy(&cx->acts);
    arena_destroy(&cx->scratch);
}

double model_flops_per_token(const Shape *s) {
    ParamCount c = params_count(s);
    double active = (double)c.active_no_embed;
    double head = (double)s->V * (double)s->D;
    for (int64_t k = 0; k < s->nmtp; k++) {
        // A module uses all its parameters but the experts not chosen, and the shared head once more.
        double all = (double)c.mtp / (double)s->nmtp;
        double idle = (double)(s->E - s->K) * 3.0 * (double)s->F * (double)s->D;
        active += all - (shape_is_moe(s, s->nlayers + k) ? idle : 0.0) + head;
    }
    double attention = (double)(s->nlayers + s->nmtp) * (double)s->H * (double)s->S * (double)(s->Dn + s->Dr + s->Dv);
    return 6.0 * active + 3.0 * attention;
}
