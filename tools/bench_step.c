// bench_step.c - the whole training step, on one rank or on all that a launcher started, on random
// tokens, and where its time goes.
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench.h"
#include "gemm.h"
#include "log.h"
#include "model_memory.h"
#include "optimizer.h"
#include "prof.h"
#include "reduce.h"
#include "rng.h"

enum { WARM = 1, MOST = 25 };

typedef struct StepBench {
    Config *config;
    Boot boot;
    int threads; // of this rank
    Mesh mesh;
    Shape shape;
    Cx cx;
    Model *model;
    int32_t *tokens; // [B, S+1+nmtp]
    double saved;    // bytes that forward saves for a token, all blocks
} StepBench;

// What the steps after the first one did.
typedef struct Steps {
    int n;
    double seconds[MOST], median; // in ascending order
    double cpu;                   // processor time of one, all threads of all ranks
    double peak;                  // operations per second, all ranks
    int64_t allocations;          // arenas and blocks made, all steps together
    int64_t faults[MOST];         // minor page faults of each
    double regions[PROF_COUNT];   // seconds in each, all steps together
    int64_t calls[PROF_COUNT];
} Steps;

static Err step_open(StepBench *t, const Bench *b, const char *path) {
    MemoryPlan plan;
    TRY(config_load(&t->config, path, b->sets, b->nsets));
    int ep = t->boot.nranks > 1 ? (int)t->config->parallel.ep : 1; // alone: all experts are here
    if (t->boot.nranks > 1) TRY(config_check_world(t->config, t->boot.nranks));
    t->threads = t->boot.is_mpi ? boot_threads(&t->boot, b->asked) : b->threads;
    TRY(mesh_build(&t->mesh, t->boot.nranks, t->boot.rank, ep));
    TRY(boot_groups(&t->boot, &t->mesh, "auto"));
    TRY(shape_from_config(&t->shape, t->config, &t->mesh));
    TRY(memory_measure(&plan, &t->shape, &t->mesh, true, true));
    for (int k = 0; k < SAVED_KINDS; k++)
        t->saved += plan.saved[k] * (double)(t->shape.nlayers + t->shape.nmtp);
    TRY(cx_create_on(&t->cx, &b->on, &t->boot, &t->mesh, &t->shape, &plan, t->threads));
    TRY(model_create(&t->model, &t->shape, &t->cx, true, true));
    TRY(params_init(model_params(t->model), &t->shape, &t->cx));
    int64_t n = t->shape.B * (t->shape.S + 1 + t->shape.nmtp);
    MEM_NEW(t->tokens, n);
    for (int64_t i = 0; i < n; i++) {
        t->tokens[i] = (int32_t)(philox(1, 2 + (uint64_t)t->boot.rank, (uint64_t)i).v[0] %
                                 (uint64_t)t->shape.V);
    }
    return OK;
}

static void step_close(StepBench *t) {
    mem_free(t->tokens);
    model_free(&t->model);
    cx_destroy(&t->cx);
    config_free(t->config);
    comm_destroy(&t->boot.ep);
    comm_destroy(&t->boot.edp);
}

// step_passes: what one rank makes of the config's global batch.
static int64_t step_passes(const StepBench *t) {
    return max_i64(1, t->config->train.global_batch / t->shape.B / t->boot.nranks);
}

static double step_tokens(const StepBench *t) {
    return (double)(step_passes(t) * t->shape.B * t->shape.S * t->boot.nranks);
}

// cpu_seconds: what this process has used of its processors, all threads together.
static double cpu_seconds(void) {
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u) != 0) return 0.0;
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

// page_faults: pages that this process got from the system without reading a disk.
static int64_t page_faults(void) {
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (int64_t)u.ru_minflt : 0;
}

// one_step: the passes of a step, then the optimizer. Collective over world.
static Err one_step(StepBench *t, int64_t step) {
    const Shape *s = &t->shape;
    const Config *c = t->config;
    Params *p = model_params(t->model);
    int64_t passes = step_passes(t);
    double targets = step_tokens(t);
    LossScale scale = {.lm = 1.0 / targets,
                       .balance = c->balance.seq_alpha * (double)s->S / targets};
    if (s->nmtp) scale.mtp = c->mtp.loss_weight / (double)s->nmtp / targets;
    LossSums sums = {0};
    Batch batch = {.nseq = s->B,
                   .S = s->S,
                   .ld = s->S + 1 + s->nmtp,
                   .tokens = t->tokens,
                   .is_complete = true};
    TRY(params_zero_grad(p, &t->cx));
    Reduce reduce;
    Taps last = {.user = &reduce, .grads = reduce_block};
    for (int64_t i = 0; i < passes; i++) {
        if (i == passes - 1) TRY(reduce_start(&reduce, p, &t->cx));
        TRY(model_fwd_bwd(t->model, &t->cx, &batch, &scale, &sums, i == passes - 1 ? &last : NULL));
    }
    TRY(reduce_end(&reduce));
    OptStep o = {step,           1e-4,         c->train.beta1,
                 c->train.beta2, c->train.eps, c->train.weight_decay,
                 c->train.clip};
    OptResult r;
    return optimizer_step(p, s, &t->cx, &o, &r);
}

// least_bytes: what a step must move at least: for a parameter its gradient (written as zero, added
// to, read), master and moments (read and written), compute copy and codes (written; read in three
// products); for a token what forward saves, written and read.
static double least_bytes(const StepBench *t) {
    ParamCount c = params_count(&t->shape);
    double moments = t->shape.mode == MODE_FP32 ? 16 : 8, copy = t->shape.mode == MODE_FP32 ? 4 : 2;
    double parameter = 4 + 8 + 4 + 8 + moments + copy + 3 * (t->shape.mode == MODE_FP8 ? 1 : copy);
    return parameter * (double)(c.total + c.mtp) + 2 * t->saved * step_tokens(t);
}

static void print_regions(const Steps *s) {
    const double *regions = s->regions;
    double sum = 0.0;
    for (int i = 0; i < PROF_COUNT; i++) sum += regions[i];
    log_line("  %-12s %9s %7s %7s", "region", "ms a step", "share", "calls");
    for (int i = 0; i < PROF_COUNT; i++) {
        if (regions[i] > 0.0)
            log_line("  %-12s %9.2f %6.1f%% %7lld", prof_name((ProfRegion)i),
                     regions[i] / s->n * 1e3, 100.0 * regions[i] / sum,
                     (long long)(s->calls[i] / s->n));
    }
    log_line("  %-12s %9.2f %6.1f%%  (the mean step)", "all", sum / s->n * 1e3, 100.0);
}

static void write_json(const StepBench *t, const Bench *b, const Steps *s, const char *path,
                       const char *mode, int64_t faults) {
    double tokens = step_tokens(t), flops = tokens * model_flops_per_token(&t->shape);
    bench_json(b, "step");
    fprintf(
        b->json,
        ",\"config\":\"%s\",\"mode\":\"%s\",\"ranks\":%d,\"ep\":%d,"
        "\"ms\":%.4f,\"spread\":%.4f,\"cpu_ms\":%.4f,\"tokens_per_s\":%.2f,"
        "\"gflops\":%.3f,\"peak_gflops\":%.2f,\"fraction_of_peak\":%.5f,"
        "\"allocations\":%lld,\"page_faults\":%lld",
        path, mode, t->boot.nranks, t->mesh.ep, s->median * 1e3,
        (s->seconds[s->n * 3 / 4] - s->seconds[s->n / 4]) / s->median, s->cpu * 1e3,
        tokens / s->median, flops / s->median * 1e-9, s->peak * 1e-9, flops / s->median / s->peak,
        (long long)s->allocations, (long long)faults);
    for (int i = 0; i < PROF_COUNT; i++)
        fprintf(b->json, ",\"%s_ms\":%.4f", prof_name((ProfRegion)i), s->regions[i] / s->n * 1e3);
    fprintf(b->json, ",\"calls\":{");
    for (int i = 0; i < PROF_COUNT; i++)
        fprintf(b->json, "%s\"%s\":%lld", i ? "," : "", prof_name((ProfRegion)i),
                (long long)(s->calls[i] / s->n));
    fprintf(b->json, "}}\n");
}

// report: a step as a row of the table, an object and a point. Of the first rank.
static void report(const StepBench *t, Bench *b, Steps *s, const char *path) {
    static const char *const modes[] = {"fp32", "bf16", "fp8"};
    const char *mode = modes[t->shape.mode];
    double tokens = step_tokens(t), flops = tokens * model_flops_per_token(&t->shape);
    double faults[MOST];
    int64_t most = 0;
    for (int i = 0; i < s->n; i++) {
        faults[i] = (double)s->faults[i];
        most = max_i64(most, s->faults[i]);
    }
    int64_t usual = (int64_t)bench_median(faults, s->n);
    log_line("%s, %s, %d rank%s (ep %d) of %d thread%s, kernels %s, peak %.1f GFLOP/s", path, mode,
             t->boot.nranks, t->boot.nranks == 1 ? "" : "s", t->mesh.ep, t->threads,
             t->threads == 1 ? "" : "s", t->cx.ops->isa, s->peak * 1e-9);
    log_line("step %.1f ms (median of %d, %.1f to %.1f), %.0f tokens/s, %.1f GFLOP/s, %.3f of peak",
             s->median * 1e3, s->n, s->seconds[0] * 1e3, s->seconds[s->n - 1] * 1e3,
             tokens / s->median, flops / s->median * 1e-9, flops / s->median / s->peak);
    log_line("processor time of a step %.1f ms, all threads of all ranks", s->cpu * 1e3);
    log_line(
        "after the first step: %lld allocations in all, %lld page faults a step (at most %lld)",
        (long long)s->allocations, (long long)usual, (long long)most);
    if (b->is_profile) print_regions(s);
    if (b->json) write_json(t, b, s, path, mode, usual);
    const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    char label[40];
    snprintf(label, sizeof label, "%.*s", (int)strcspn(name, "."), name);
    bench_point(b, SERIES_STEP, label, flops, least_bytes(t), s->median);
}

// is_enough: after n steps of `total` seconds; the first rank's clock decides for all.
static Err is_enough(StepBench *t, const Bench *b, int n, double total, bool *enough) {
    int64_t stop = t->boot.rank == 0 && n >= 3 && (n == MOST || total >= (b->is_all ? 30.0 : 6.0));
    TRY(comm_max_i64(t->boot.world, &stop, 1));
    *enough = stop > 0;
    return OK;
}

static Err measure(StepBench *t, Bench *b, const char *path) {
    Steps s = {0};
    double total = 0.0;
    bool enough = false;
    TRY(params_publish(model_params(t->model), &t->shape, &t->cx));
    for (int i = 0; i < WARM; i++) TRY(one_step(t, 1));
    int64_t blocks = mem_count();
    prof_reset();
    double cpu = cpu_seconds();
    while (!enough) {
        double start = now_seconds();
        int64_t faults = page_faults();
        TRY(one_step(t, s.n + 2));
        s.faults[s.n] = page_faults() - faults;
        s.seconds[s.n] = now_seconds() - start;
        total += s.seconds[s.n++];
        TRY(is_enough(t, b, s.n, total, &enough));
    }
    s.allocations = mem_count() - blocks;
    prof_get(s.regions); // before the peak is measured, whose time is no part of a step
    prof_calls(s.calls);
    cpu = (cpu_seconds() - cpu) / s.n;
    b->threads = t->threads;
    TRY(bench_peak(b));
    double sums[2] = {cpu, t->shape.mode == MODE_FP32 ? b->peak.f32 : b->peak.half};
    TRY(comm_sum(t->boot.world, sums, 2));
    s.cpu = sums[0];
    s.peak = sums[1];
    s.median = bench_median(s.seconds, s.n);
    report(t, b, &s, path);
    return OK;
}

// bench_one: a step of one config. Collective over the world.
static Err bench_one(Bench *b, Boot *boot, const char *path) {
    StepBench t;
    memset(&t, 0, sizeof t);
    t.boot = *boot;
    // A device's peak before the model takes its memory.
    Err err = comm_agree(t.boot.world, b->is_device ? bench_peak(b) : OK);
    if (err == OK) err = comm_agree(t.boot.world, step_open(&t, b, path));
    if (err == OK) {
        err = measure(&t, b, path);
        if (err != OK && t.boot.nranks > 1)
            boot_abort(&t.boot, (int)err); // the others wait in a collective
    }
    step_close(&t);
    return err;
}

Err bench_step(Bench *b) {
    CHECK(b->nconfigs > 0, E_USAGE,
          "tessera bench step needs --config FILE, for example configs/quickstart.yaml");
    Boot boot = {0};
    TRY(boot_init(&boot));
    log_init(boot.rank, boot.nranks);
    bench_rank(b, boot.rank);
    if (b->is_device) bench_device_close(b); // the model needs its memory
    Err err = b->wants_device ? comm_agree(boot.world, bench_device_open(b, boot.local_rank, true)) : OK;
    for (int i = 0; i < b->nconfigs && err == OK; i++) err = bench_one(b, &boot, b->configs[i]);
    boot_finish(&boot);
    return err;
}
