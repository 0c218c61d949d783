// run_report.c - what a run says about itself before it starts.
#include <math.h>
#include <unistd.h>

#include "log.h"
#include "run.h"
#include "schedule.h"
#include "staging.h"

static const char *const mode_names[] = {"fp32", "bf16", "fp8"};

static void report_model(const Shape *s) {
    ParamCount n = params_count(s);
    log_line("model      %lld layers (%lld dense), width %lld, %lld heads, %lld experts top-%lld + "
             "shared %lld, vocabulary %lld, MTP %lld, %s",
             (long long)s->nlayers, (long long)s->ndense, (long long)s->D, (long long)s->H,
             (long long)s->E, (long long)s->K, (long long)s->Fs, (long long)s->V,
             (long long)s->nmtp, mode_names[s->mode]);
    log_line("parameters %lld total (%s), %lld active (%s), %lld active without the input "
             "embedding, MTP %lld (%s)",
             (long long)n.total, text_count((double)n.total).s, (long long)n.active,
             text_count((double)n.active).s, (long long)n.active_no_embed, (long long)n.mtp,
             text_count((double)n.mtp).s);
    log_line("flops      %.4g per token in training, %lld tokens per sequence",
             model_flops_per_token(s), (long long)s->S);
}

static void report_memory(const MemoryPlan *m, const Config *c) {
    // A snapshot holds what saves write: the state without the counts of experts.
    double snapshot = c->checkpoint.async ? (double)m->state : 0.0;
    double fixed = (double)m->params + (double)m->state + snapshot;
    log_line("memory     per rank: parameters and gradients %s, masters and moments %s",
             text_bytes((double)m->params).s, text_bytes((double)m->state).s);
    log_line(
        "           activations %s balanced, %s worst case; scratch %s balanced, %s worst case",
        text_bytes((double)m->acts_balanced).s, text_bytes((double)m->acts).s,
        text_bytes((double)m->scratch_balanced).s, text_bytes((double)m->scratch).s);
    if (snapshot > 0.0)
        log_line("           copy for saves beside the training (checkpoint.async) %s", text_bytes(snapshot).s);
    log_line("           in all %s balanced, %s worst case",
             text_bytes(fixed + (double)m->acts_balanced + (double)m->scratch_balanced).s,
             text_bytes(fixed + (double)m->acts + (double)m->scratch).s);
}

// warn_memory: what the ranks of this machine will take was not free before the first of it was taken.
static void warn_memory(const Run *r) {
    const MemoryPlan *m = &r->memory;
    double own = (double)m->params + (double)m->acts_balanced + (double)m->scratch_balanced +
                 (double)m->state * (r->config->checkpoint.async ? 2.0 : 1.0);
    double all = own * r->boot.local_nranks;
    if (!staging_is_host(&r->cx) || r->memory_free < 0 || all <= r->memory_free) return;
    log_warn("%d rank%s on this machine will take %s, %s of its memory were free: the kernel may kill the run",
             r->boot.local_nranks, r->boot.local_nranks == 1 ? "" : "s", text_bytes(all).s,
             text_bytes(r->memory_free).s);
}

// What a token leaves for the backward in a block, and what that would be with BF16 and nothing recomputed.
static Err report_saved(const MemoryPlan *m, const Shape *s, const Mesh *mesh) {
    static const char *const kinds[SAVED_KINDS] = {
        [SAVED_RESIDUAL] = "residual stream",  [SAVED_NORM] = "norms",
        [SAVED_ATTN_IN] = "attention inputs",  [SAVED_LATENT] = "latents",
        [SAVED_ATTN_OUT] = "attention output", [SAVED_FFN_IN] = "FFN and expert inputs",
        [SAVED_SWIGLU] = "SwiGLU",             [SAVED_ROUTING] = "routing",
    };
    double all = 0.0, bf16 = 0.0;
    for (int k = 0; k < SAVED_KINDS; k++) all += m->saved[k];
    TRY(memory_saved_bf16(&bf16, s, mesh));
    log_line("saved      %.0f bytes per token and layer for the backward (mean over layers, balanced): %.3f of "
             "the %.0f of BF16 with nothing recomputed",
             all, all / bf16, bf16);
    for (int k = 0; k < SAVED_KINDS; k++)
        log_line("           %-22s %8.0f  %5.1f %%", kinds[k], m->saved[k], 100.0 * m->saved[k] / all);
    return OK;
}

static void report_fp8(const Config *c) {
    if (c->precision.mode != MODE_FP8) return;
    RecipeText t = recipe_text(c);
    log_line("fp8        %s", t.classes);
    log_line("           kept for the backward: %s", t.kept);
}

Err run_dry(const Config *c, int world) {
    Mesh mesh;
    Shape s;
    MemoryPlan plan;
    TRY(mesh_build(&mesh, world, 0, (int)c->parallel.ep));
    TRY(shape_from_config(&s, c, &mesh));
    report_model(&s);
    report_fp8(c);
    log_line("ranks      %d = %d expert-parallel x %d data-parallel, %lld experts per rank", world,
             mesh.ep, mesh.dp, (long long)s.L);
    log_line("batch      %lld sequences per step (%lld tokens), %lld per rank and pass, %lld steps",
             (long long)c->train.global_batch, (long long)(c->train.global_batch * s.S),
             (long long)s.B, (long long)c->train.steps);
    TRY(memory_measure(&plan, &s, &mesh, true, true));
    report_memory(&plan, c);
    return report_saved(&plan, &s, &mesh);
}

// report_map: hosts with their ranks, cores and GPUs; what looks wrong about it, host by host.
static void report_map(const Run *r) {
    enum { HOSTS = 32 };
    char text[4096];
    int hosts = 0;
    for (int at = 0; at < r->boot.nranks; hosts++) {
        at = rank_map_line(r->places, r->boot.nranks, at, text, sizeof text);
        if (hosts < HOSTS) log_line("%-10s %s", hosts == 0 ? "map" : "", text);
    }
    if (hosts > HOSTS) log_line("           and %d hosts more", hosts - HOSTS);
    for (int at = 0; at < r->boot.nranks;) {
        at = rank_map_warning(r->places, r->boot.nranks, at, text, sizeof text);
        if (text[0]) log_warn("%s: slow, or short of memory; see the launcher's options for binding and GPUs", text);
    }
}

// report_cores: of the first rank; and of how many ranks the threads must take turns.
static void report_cores(const Run *r) {
    const Boot *b = &r->boot;
    log_line("cores      %.3g of the node's %ld for this rank and its %d thread%s, %d rank%s here", b->cores,
             sysconf(_SC_NPROCESSORS_ONLN), r->cx.op.nthreads, r->cx.op.nthreads == 1 ? "" : "s", b->local_nranks,
             b->local_nranks == 1 ? "" : "s");
    if (r->crowded > 0)
        log_warn("%lld of %d ranks have more threads than cores of their own: slow. --threads says how many; mpirun "
                 "--map-by slot:PE=N --bind-to core gives each rank N cores, --bind-to none leaves all to all",
                 (long long)r->crowded, b->nranks);
}

// report_device: what this rank has taken of its GPU's memory, and what it may take at most: activations and scratch
// get it as they need it.
static void report_device(const Cx *cx) {
    if (staging_is_host(cx)) return;
    DeviceInfo d;
    device_cuda_info(&d);
    const Arena *arenas[] = {cx->params, cx->state, cx->acts, cx->scratch};
    double mib[4], most = 0.0, held = 0.0;
    for (int i = 0; i < 4; i++) {
        most += mib[i] = (double)arena_size(arenas[i]) / 1048576.0;
        held += (double)arena_held(arenas[i]) / 1048576.0;
    }
    log_line("device     %s, %.1f MiB of %.1f taken, at most %.1f: params %.1f, state %.1f, acts %.1f, scratch %.1f",
             d.name, held, (double)d.memory / 1048576.0, most, mib[0], mib[1], mib[2], mib[3]);
}

void run_banner(const Run *r) {
    const Mesh *m = &r->mesh;
    report_model(&r->shape);
    report_fp8(r->config);
    log_line(
        "ranks      %d = %d expert-parallel x %d data-parallel, %d thread%s each, kernels %s (%s)",
        m->world, m->ep, m->dp, r->cx.op.nthreads, r->cx.op.nthreads == 1 ? "" : "s",
        r->cx.ops->backend, r->cx.ops->isa);
    report_map(r);
    report_cores(r);
    report_memory(&r->memory, r->config);
    warn_memory(r);
    report_device(&r->cx);
    int64_t windows = loader_windows(r->loader);
    log_line("data       %lld tokens, %lld windows; the schedule reads %.2f passes",
             (long long)loader_tokens(r->loader), (long long)windows,
             (double)schedule_samples(r->config, r->config->train.steps) /
                 (double)max_i64(1, windows));
    if (r->owes_eval) log_line("held-out   step %lld: was given up, is made now", (long long)r->at.step);
    if (r->at.step < r->last_step)
        log_line("run        %s, steps %lld to %lld of %lld", r->dir, (long long)r->at.step + 1,
                 (long long)r->last_step, (long long)r->config->train.steps);
    if (r->last_step > r->config->train.steps)
        log_warn("--steps %lld is behind the schedule's end (train.steps %lld): from there on the learning rate stays "
                 "at its last value",
                 (long long)r->last_step, (long long)r->config->train.steps);
}

double run_rss(void) {
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f) return NAN;
    long size = 0, resident = 0;
    int n = fscanf(f, "%ld %ld", &size, &resident);
    fclose(f);
    return n == 2 ? (double)resident * (double)sysconf(_SC_PAGESIZE) : NAN;
}
