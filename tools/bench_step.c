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
} StepBench;

static Err step_open(StepBench *t, const Bench *b) {
    MemoryPlan plan;
    TRY(config_load(&t->config, b->config, b->sets, b->nsets));
    int ep = t->boot.nranks > 1 ? (int)t->config->parallel.ep : 1; // alone: all experts are here
    if (t->boot.nranks > 1) TRY(config_check_world(t->config, t->boot.nranks));
    t->threads = t->boot.is_mpi ? boot_threads(&t->boot, b->asked) : b->threads;
    TRY(mesh_build(&t->mesh, t->boot.nranks, t->boot.rank, ep));
    TRY(boot_groups(&t->boot, &t->mesh, "auto"));
    TRY(shape_from_config(&t->shape, t->config, &t->mesh));
    TRY(memory_measure(&plan, &t->shape, &t->mesh, true, true));
    TRY(cx_create(&t->cx, &t->boot, &t->mesh, &t->shape, &plan, t->threads));
    TRY(model_create(&t->model, &t->shape, &t->cx, true, true));
    params_init(model_params(t->model), &t->shape, &t->cx);
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
    boot_finish(&t->boot);
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

// report: n times in ascending order, their median, and the processor time of one step, all ranks
// together.
static void report(const StepBench *t, const Bench *b, const double *seconds, int n, double median,
                   double cpu, double best) {
    double tokens = step_tokens(t);
    double flops = tokens * model_flops_per_token(&t->shape), regions[PROF_COUNT], sum = 0.0;
    static const char *const modes[] = {"fp32", "bf16", "fp8"};
    prof_get(regions);
    for (int i = 0; i < PROF_COUNT; i++) sum += regions[i];
    log_line("%s, %s, %d rank%s (ep %d) of %d thread%s, kernels %s, peak %.1f GFLOP/s", b->config,
             modes[t->shape.mode], t->boot.nranks, t->boot.nranks == 1 ? "" : "s", t->mesh.ep,
             t->threads, t->threads == 1 ? "" : "s", t->cx.ops->isa, best * 1e-9);
    log_line("step %.1f ms (median of %d, %.1f to %.1f), %.0f tokens/s, %.1f GFLOP/s, %.3f of peak",
             median * 1e3, n, seconds[0] * 1e3, seconds[n - 1] * 1e3, tokens / median,
             flops / median * 1e-9, flops / median / best);
    log_line("processor time of a step %.1f ms, all threads of all ranks", cpu * 1e3);
    for (int i = 0; i < PROF_COUNT; i++) {
        if (regions[i] > 0.0)
            log_line("  %-12s %8.2f ms  %5.1f %%", prof_name((ProfRegion)i), regions[i] / n * 1e3,
                     100.0 * regions[i] / sum);
    }
    if (!b->json || t->boot.rank != 0) return;
    fprintf(
        b->json,
        "{\"op\":\"step\",\"config\":\"%s\",\"mode\":\"%s\",\"isa\":\"%s\",\"ranks\":%d,\"ep\":%d,"
        "\"threads\":%d,\"ms\":%.4f,\"cpu_ms\":%.4f,"
        "\"tokens_per_s\":%.2f,\"gflops\":%.3f,\"fraction_of_peak\":%.5f",
        b->config, modes[t->shape.mode], t->cx.ops->isa, t->boot.nranks, t->mesh.ep, t->threads,
        median * 1e3, cpu * 1e3, tokens / median, flops / median * 1e-9, flops / median / best);
    for (int i = 0; i < PROF_COUNT; i++)
        fprintf(b->json, ",\"%s_ms\":%.4f", prof_name((ProfRegion)i), regions[i] / n * 1e3);
    fprintf(b->json, "}\n");
}

// is_enough: after n steps of `total` seconds; the first rank's clock decides for all.
static Err is_enough(StepBench *t, const Bench *b, int n, double total, bool *enough) {
    int64_t stop = t->boot.rank == 0 && n >= 3 && (n == MOST || total >= (b->is_all ? 30.0 : 6.0));
    TRY(comm_max_i64(t->boot.world, &stop, 1));
    *enough = stop > 0;
    return OK;
}

static Err measure(StepBench *t, const Bench *b) {
    double seconds[MOST], total = 0.0;
    int n = 0;
    bool enough = false;
    TRY(params_publish(model_params(t->model), &t->shape, &t->cx));
    for (int i = 0; i < WARM; i++) TRY(one_step(t, 1));
    prof_reset();
    double cpu = cpu_seconds();
    while (!enough) {
        double start = now_seconds();
        TRY(one_step(t, n + 2));
        seconds[n] = now_seconds() - start;
        total += seconds[n++];
        TRY(is_enough(t, b, n, total, &enough));
    }
    cpu = (cpu_seconds() - cpu) / n;
    GemmPeak peak = gemm_peak(t->threads);
    double sums[2] = {cpu, t->shape.mode == MODE_FP32 ? peak.f32 : peak.half};
    TRY(comm_sum(t->boot.world, sums, 2));
    double median = bench_median(seconds, n);
    report(t, b, seconds, n, median, sums[0], sums[1]);
    return OK;
}

Err bench_step(Bench *b) {
    CHECK(b->config, E_USAGE,
          "tessera bench step needs --config FILE, for example configs/quickstart.yaml");
    StepBench t;
    memset(&t, 0, sizeof t);
    TRY(boot_init(&t.boot));
    log_init(t.boot.rank, t.boot.nranks);
    Err err = comm_agree(t.boot.world, step_open(&t, b));
    if (err == OK) {
        err = measure(&t, b);
        if (err != OK && t.boot.nranks > 1)
            boot_abort(&t.boot, (int)err); // the others wait in a collective
    }
    step_close(&t);
    return err;
}
