// bench_step.c - the whole training step on one rank, on random tokens, and where its time goes.
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "gemm.h"
#include "log.h"
#include "model_memory.h"
#include "optimizer.h"
#include "prof.h"
#include "rng.h"

enum { WARM = 1, MOST = 25 };

typedef struct StepBench {
    Config *config;
    Boot boot;
    Mesh mesh;
    Shape shape;
    Cx cx;
    Model *model;
    int32_t *tokens; // [B, S+1+nmtp]
} StepBench;

static Err step_open(StepBench *t, const Bench *b) {
    MemoryPlan plan;
    TRY(config_load(&t->config, b->config, b->sets, b->nsets));
    TRY(comm_self(&t->boot.world, "world"));
    TRY(comm_self(&t->boot.ep, "ep"));
    TRY(comm_self(&t->boot.edp, "edp"));
    TRY(mesh_build(&t->mesh, 1, 0, 1));
    TRY(shape_from_config(&t->shape, t->config, &t->mesh));
    TRY(memory_measure(&plan, &t->shape, &t->mesh, true, true));
    TRY(cx_create(&t->cx, &t->boot, &t->mesh, &t->shape, &plan, b->threads));
    TRY(model_create(&t->model, &t->shape, &t->cx, true, true));
    params_init(model_params(t->model), &t->shape, &t->cx);
    TRY(params_publish(model_params(t->model), &t->shape, &t->cx));
    int64_t n = t->shape.B * (t->shape.S + 1 + t->shape.nmtp);
    MEM_NEW(t->tokens, n);
    for (int64_t i = 0; i < n; i++) {
        t->tokens[i] = (int32_t)(philox(1, 2, (uint64_t)i).v[0] % (uint64_t)t->shape.V);
    }
    return OK;
}

static void step_close(StepBench *t) {
    mem_free(t->tokens);
    model_free(&t->model);
    cx_destroy(&t->cx);
    comm_destroy(&t->boot.world);
    comm_destroy(&t->boot.ep);
    comm_destroy(&t->boot.edp);
    config_free(t->config);
}

// one_step: as many passes as one rank makes in a step of the config, then the optimizer.
static Err one_step(StepBench *t, int64_t step) {
    const Shape *s = &t->shape;
    const Config *c = t->config;
    Params *p = model_params(t->model);
    int64_t passes = max_i64(1, c->train.global_batch / s->B);
    double targets = (double)(passes * s->B * s->S);
    LossScale scale = {.lm = 1.0 / targets,
                       .balance = c->balance.seq_alpha / (double)(passes * s->B)};
    if (s->nmtp) scale.mtp = c->mtp.loss_weight / (double)s->nmtp / targets;
    LossSums sums = {0};
    Batch batch = {.nseq = s->B,
                   .S = s->S,
                   .ld = s->S + 1 + s->nmtp,
                   .tokens = t->tokens,
                   .is_complete = true};
    TRY(params_zero_grad(p, &t->cx));
    for (int64_t i = 0; i < passes; i++)
        TRY(model_fwd_bwd(t->model, &t->cx, &batch, &scale, &sums, NULL));
    OptStep o = {step,           1e-4,         c->train.beta1,
                 c->train.beta2, c->train.eps, c->train.weight_decay,
                 c->train.clip};
    OptResult r;
    return optimizer_step(p, s, &t->cx, &o, &r);
}

// report: n times in ascending order, their median, and the tokens of one step.
static void report(const StepBench *t, const Bench *b, const double *seconds, int n, double median,
                   double tokens) {
    double regions[PROF_COUNT], sum = 0.0;
    prof_get(regions); // before the peak is measured, whose time is no part of a step
    GemmPeak peak = gemm_peak(b->threads);
    double best = t->shape.mode == MODE_FP32 ? peak.f32 : peak.half;
    double flops = tokens * model_flops_per_token(&t->shape);
    static const char *const modes[] = {"fp32", "bf16", "fp8"};
    for (int i = 0; i < PROF_COUNT; i++) sum += regions[i];
    log_line("%s, %s, %d thread%s, kernels %s, peak %.1f GFLOP/s", b->config, modes[t->shape.mode],
             b->threads, b->threads == 1 ? "" : "s", t->cx.ops->isa, best * 1e-9);
    log_line("step %.1f ms (median of %d, %.1f to %.1f), %.0f tokens/s, %.1f GFLOP/s, %.3f of peak",
             median * 1e3, n, seconds[0] * 1e3, seconds[n - 1] * 1e3, tokens / median,
             flops / median * 1e-9, flops / median / best);
    for (int i = 0; i < PROF_COUNT; i++) {
        if (regions[i] > 0.0)
            log_line("  %-12s %8.2f ms  %5.1f %%", prof_name((ProfRegion)i), regions[i] / n * 1e3,
                     100.0 * regions[i] / sum);
    }
    if (!b->json) return;
    fprintf(b->json,
            "{\"op\":\"step\",\"config\":\"%s\",\"mode\":\"%s\",\"isa\":\"%s\",\"threads\":%d,"
            "\"ms\":%.4f,"
            "\"tokens_per_s\":%.2f,\"gflops\":%.3f,\"fraction_of_peak\":%.5f",
            b->config, modes[t->shape.mode], t->cx.ops->isa, b->threads, median * 1e3,
            tokens / median, flops / median * 1e-9, flops / median / best);
    for (int i = 0; i < PROF_COUNT; i++)
        fprintf(b->json, ",\"%s_ms\":%.4f", prof_name((ProfRegion)i), regions[i] / n * 1e3);
    fprintf(b->json, "}\n");
}

static Err measure(StepBench *t, const Bench *b) {
    double seconds[MOST], total = 0.0;
    int n = 0;
    for (int i = 0; i < WARM; i++) TRY(one_step(t, 1));
    prof_reset();
    while (n < MOST && (n < 3 || total < (b->is_all ? 30.0 : 6.0))) {
        double start = now_seconds();
        TRY(one_step(t, n + 2));
        seconds[n] = now_seconds() - start;
        total += seconds[n++];
    }
    double median = bench_median(seconds, n);
    int64_t passes = max_i64(1, t->config->train.global_batch / t->shape.B);
    report(t, b, seconds, n, median, (double)(passes * t->shape.B * t->shape.S));
    return OK;
}

Err bench_step(Bench *b) {
    CHECK(b->config, E_USAGE,
          "tessera bench step needs --config FILE, for example configs/quickstart.yaml");
    StepBench t;
    memset(&t, 0, sizeof t);
    Err err = step_open(&t, b);
    if (err == OK) err = measure(&t, b);
    step_close(&t);
    return err;
}
