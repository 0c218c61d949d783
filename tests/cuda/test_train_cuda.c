// test_train_cuda.c - the trainer on the CUDA backend, whose kernels run as fibers: whole steps, an evaluation and a
// checkpoint beside the same ones on the CPU, in every mode, alone and on real ranks. Arenas are memory of the device,
// which host code cannot touch here (runtime_on_cpu.cpp): a place of the trainer that follows such a pointer ends the
// program.
#include <math.h>
#include <unistd.h>

#include "blas_cuda.h"
#include "checkpoint.h"
#include "gemm_cuda.h"
#include "gemm_cuda_mma.h"
#include "gemm_cuda_sm90.h"
#include "head.h"
#include "run.h"
#include "train_rig.h"

// Products of BF16 and FP8 codes have the same bits here as on the CPU; FP32 products and all REDUCE operations add in
// another order. Every rounding of a sum is off by up to 2^-24 of it, evenly spread, so a sum of n terms differs by
// sqrt(2/3 n) 2^-24 of itself, and what follows from sums in series by as much of all their terms: some 1000, 283 in
// each block (36 + 36 + 12 + 12 + 36 + 8 + 8, 8 + 7 + 8 of attention, 36 + 36 + 40) and 144 around them. Of that EPS a
// loss (6.2, from logits of rms 0.6, the mean of 14 tokens or more) is off by 0.6 / 6.2 / sqrt(14) times as much, a
// gradient (forward, backward, their product) by sqrt(3), its norm by that over the root of 28 tokens. Four times that
// is allowed.
#define EPS 1.54e-6
static double loss_tolerance = 4 * 0.6 / 6.2 / 3.74 * EPS, norm_tolerance = 4 * 1.73 / 5.29 * EPS;
static double gradient_tolerance = 4 * 1.73 * EPS;
static double loss_ratio, norm_ratio, gradient_ratio; // the largest differences, as a part of what is allowed

static bool is_near(double a, double b, double tolerance, double *ratio) {
    double allowed = tolerance * fabs(b), d = fabs(a - b);
    if (d > *ratio * allowed) *ratio = d / allowed;
    return isfinite(a) && d <= allowed;
}
static bool is_loss(double a, double b) {
    return is_near(a, b, loss_tolerance, &loss_ratio);
}
static bool is_norm(double a, double b) {
    return is_near(a, b, norm_tolerance, &norm_ratio);
}

// gradients_agree: the gradients of own rows, entry by entry: sums of the last step, and the last pass on top.
static void gradients_agree(const Rig *a, const Rig *b) {
    const Params *p = model_params(a->model), *q = model_params(b->model);
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        int64_t n = e->own.nrows * e->cols;
        float *x = zeroed(n * 4), *y = zeroed(n * 4);
        MUST(a->cx.dev->to_host(x, mat_at(e->grad, e->own.row0, 0), (size_t)n * 4));
        MUST(b->cx.dev->to_host(y, mat_at(q->p[i].grad, e->own.row0, 0), (size_t)n * 4));
        double difference = 0.0, norm = 0.0;
        for (int64_t j = 0; j < n; j++) {
            difference += ((double)x[j] - (double)y[j]) * ((double)x[j] - (double)y[j]);
            norm += (double)y[j] * (double)y[j];
        }
        double ratio = norm > 0.0 ? sqrt(difference / norm) / gradient_tolerance : 0.0;
        if (ratio > gradient_ratio) gradient_ratio = ratio;
        if (!(sqrt(difference) <= gradient_tolerance * sqrt(norm)) && failures++ < 5)
            fprintf(stderr, "rank %d: gradient of %s differs by %g of %g\n", boot.rank, e->name, sqrt(difference),
                    sqrt(norm));
        free(x);
        free(y);
    }
}

// What the steps of both backends have in common.
static void agree(const Rig *r, const Seen *cuda, const Seen *cpu) {
    for (int64_t i = 0; i < cuda->steps; i++) {
        const StepMetrics *a = &cuda->m[i], *b = &cpu->m[i];
        EXPECT(is_loss(a->lm_loss, b->lm_loss));
        EXPECT(is_loss(a->mtp_loss, b->mtp_loss));
        EXPECT(is_norm(a->balance_loss, b->balance_loss));
        EXPECT(is_norm(a->grad_norm, b->grad_norm));
        EXPECT(a->samples == b->samples && a->a2a_dispatch_bytes == b->a2a_dispatch_bytes);
        EXPECT(memcmp(&cuda->fp8[i], &cpu->fp8[i], sizeof cpu->fp8[i]) == 0);
        EXPECT(a->maxvio == b->maxvio && a->dead_experts == b->dead_experts);
    }
    EXPECT(cuda->eval.tokens == cpu->eval.tokens && is_loss(cuda->eval.loss, cpu->eval.loss));
    int64_t all = 0;
    for (int64_t e = 0; e < r->shape.E; e++) all += cuda->load[e];
    EXPECT(all == r->shape.S * r->shape.K);
    EXPECT(memcmp(cuda->load, cpu->load, sizeof cpu->load) == 0);
}

// checkpoint: what the device saves, the CPU loads, to the bit.
static void checkpoint(Rig *from, const Seen *seen, const char *const *sets) {
    char dir[128] = "/tmp/test_train_cuda_XXXXXX", step[160];
    CheckpointInfo info = {.step = STEPS, .samples = 8, .tokens = 56};
    if (boot.rank == 0 && !mkdtemp(dir)) MUST(fail_at(E_OUTPUT, __FILE__, __LINE__, "no temporary folder"));
    MUST(boot.world->broadcast(boot.world, dir, sizeof dir, 0));
    MUST(checkpoint_save(dir, model_params(from->model), &from->cx, &info, from->config, 1, 0));
    snprintf(step, sizeof step, "%s/step_%08d", dir, STEPS);
    Rig to;
    uint64_t hash = 0;
    for (int i = 0; i < 2; i++) {
        rig_open(&to, i == 0 ? "cpu" : "cuda", sets);
        MUST(checkpoint_load(step, model_params(to.model), &to.cx, true));
        MUST(optimizer_hash(model_params(to.model), &to.cx, &hash));
        EXPECT(hash == seen->hash);
        rig_close(&to);
    }
    char command[200];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    if (boot.rank == 0) EXPECT(system(command) == 0);
}

// check: the same run on both backends; ep: ranks that share the experts.
static void check(const char *const *sets, int64_t steps, int ep, bool with_checkpoint) {
    Rig cuda, cpu;
    Seen on_cuda = {.steps = steps}, on_cpu = {.steps = steps};
    groups(ep);
    rig_open(&cuda, "cuda", sets);
    rig_open(&cpu, "cpu", sets);
    uint64_t launches = simt_launches();
    int64_t products = blas_products();
    train(&cuda, &on_cuda);
    EXPECT(simt_launches() > launches && blas_products() > products);
    launches = simt_launches();
    train(&cpu, &on_cpu);
    EXPECT(simt_launches() == launches);
    agree(&cuda, &on_cuda, &on_cpu);
    for (int64_t i = 0; i < steps; i++) { // a block with experts, and the module's
        EXPECT(boot.nranks > 1 || on_cuda.waits[i] == waits_of_step(2, 4 / cuda.config->train.micro_batch));
        EXPECT(on_cuda.blocking[i] == on_cuda.waits[i] && on_cpu.waits[i] == 0);
    }
    gradients_agree(&cuda, &cpu);
    if (boot.rank == 0)
        printf("largest differences, as parts of what is allowed: losses %.3g of %.3g, norms %.3g of %.3g, gradients "
               "%.3g of %.3g\n",
               loss_ratio, loss_tolerance, norm_ratio, norm_tolerance, gradient_ratio, gradient_tolerance);
    loss_ratio = norm_ratio = gradient_ratio = 0.0;
    if (with_checkpoint) checkpoint(&cuda, &on_cuda, sets);
    rig_close(&cuda);
    rig_close(&cpu);
}

static void trains_fp32(void) {
    static const char *const sets[] = {"precision.mode=fp32", NULL};
    check(sets, STEPS, boot.nranks, true);
}

static void trains_bf16(void) {
    static const char *const sets[] = {"precision.mode=bf16", NULL};
    check(sets, STEPS, 1, false);
}

// Attention as GPUs do it, on the tensor cores, two blocks of keys. There p and ds are rounded to BF16, 2^-9 of each,
// and the CPU's are not; so outputs come out on the other side of their own rounding (2^-8) here and there. A gradient
// is off by a few such errors, those of the queries by several times more: dp - delta is what is left of two numbers
// that the same rounding of o moves apart. Losses, means over tokens, are off by less. All tokens go to all experts, as
// one that takes another is more than all that.
void attn_mma_choose(int which);
static void trains_on_tensor_cores(void) {
    static const char *const sets[] = {"precision.mode=bf16", "model.qk_nope_head_dim=16", "model.qk_rope_head_dim=8",
                                       "model.v_head_dim=16", "train.seq_len=70", "model.max_position_embeddings=128",
                                       "train.micro_batch=2", "model.n_routed_experts=2", NULL};
    double loss = loss_tolerance, norm = norm_tolerance, gradient = gradient_tolerance;
    loss_tolerance = norm_tolerance = 0x1p-10, gradient_tolerance = 0x1p-4;
    attn_mma_choose(1);
    check(sets, 1, 1, false);
    attn_mma_choose(-1);
    loss_tolerance = loss, norm_tolerance = norm, gradient_tolerance = gradient;
}

static void trains_fp8(void) {
    static const char *const sets[] = {"precision.mode=fp8", NULL};
    check(sets, STEPS, boot.nranks, true);
}

// Every FP8 product of training runs on tensor cores: on Hopper's kernels, which find all operands where they can read
// them (once rows of codes are 16 bytes apart), or on those of any GPU. The widths are multiples of 16, the numbers of
// tokens and pairs are not. The emulated tensor cores add in FP32, in another order than the CPU inside each 128; a
// code that falls to the other side of a rounding for that moves a value by 2^-4 of itself, one of the some 10^4 that a
// loss of this model depends on.
static void reaches_tensor_cores(void) {
    static const char *const sets[] = {"precision.mode=fp8", "model.hidden_size=48", "model.intermediate_size=64",
                                       "model.moe_intermediate_size=32", "model.q_lora_rank=16",
                                       "model.kv_lora_rank=16", "model.qk_nope_head_dim=16",
                                       "model.qk_rope_head_dim=16", "model.v_head_dim=16", NULL};
    Rig cpu;
    Seen on_cpu = {.steps = 1};
    groups(boot.nranks);
    rig_open(&cpu, "cpu", sets);
    train(&cpu, &on_cpu);
    rig_close(&cpu);
    for (int is_hopper = 0; is_hopper < 2; is_hopper++) {
        Rig cuda;
        Seen on_cuda = {.steps = 1};
        int64_t plain = gemm_cuda_plain_codes(), mma = gemm_mma_products(), hopper[2], copies[2];
        rig_open(&cuda, "cuda", sets);
        gemm_sm90_choose(is_hopper);
        gemm_mma_choose(1);
        gemm_sm90_counts(&hopper[0], &copies[0]);
        train(&cuda, &on_cuda);
        gemm_sm90_counts(&hopper[1], &copies[1]);
        gemm_sm90_choose(-1);
        gemm_mma_choose(0);
        EXPECT(gemm_cuda_plain_codes() == plain);
        EXPECT((hopper[1] > hopper[0]) == is_hopper && (gemm_mma_products() > mma) == !is_hopper);
        if (matq_row_bytes(SCALE_E8M0, TILE) % 16 == 0) EXPECT(copies[1] == copies[0]);
        EXPECT(fabs(on_cuda.m[0].loss - on_cpu.m[0].loss) <= 1e-4 * on_cpu.m[0].loss);
        rig_close(&cuda);
    }
}

// The head in chunks of rows, of which the last is not full; and what they take of a device, which is bounded.
static void trains_head_in_chunks(void) {
    static const char *const sets[] = {"precision.mode=bf16", NULL};
    Shape s = {.V = 129280, .B = 8, .S = 4096, .act = DT_BF16};
    EXPECT(head_device_bytes(&s) == (size_t)2048 * 129280 * 6); // 1.06e9 bytes of logits, half as much of gradients
    s.V = 32768;
    EXPECT(head_device_bytes(&s) == (size_t)4096 * 32768 * 6);
    s.B = 1, s.S = 100;
    EXPECT(head_device_bytes(&s) == (size_t)100 * 32768 * 6);
    head_choose_rows(3);
    check(sets, 1, 1, false);
    head_choose_rows(0);
}

// FP8 products whose sums stay in FP32, term by term, as on the CPU.
static void trains_fp32_sums(void) {
    static const char *const sets[] = {"precision.mode=fp8", "fp8.accumulate=fp32", NULL};
    check(sets, STEPS, boot.nranks, false);
}

// Everything the other way round: operations one by one, nothing made again, everything kept as it is. One step: with
// FP32 scales the last bit of a weight soon decides a code.
static void trains_fp8_plain(void) {
    static const char *const sets[] = {"precision.mode=fp8", "debug.unfused=true", "fp8.cache_attn_out=codes",
                                       "fp8.cache_swiglu=bf16", "recompute.norm=false", "recompute.mla_up=false",
                                       "recompute.swiglu=false", "model.tie_word_embeddings=true",
                                       "fp8.scale_format=fp32", "model.n_shared_experts=0", "train.micro_batch=2",
                                       NULL};
    check(sets, 1, boot.nranks, false);
}

// A value that is not finite is found where it first shows, and nothing is updated.
static void finds_what_is_not_finite(void) {
    static const char *const sets[] = {"precision.mode=bf16", NULL};
    Rig r;
    uint64_t before = 0, after = 0;
    groups(boot.nranks);
    rig_open(&r, "cuda", sets);
    const Param *o = params_find(model_params(r.model), P_O, 1);
    size_t bytes = (size_t)(o->w.rows * o->w.cols) * sizeof(uint16_t);
    uint16_t *bad = zeroed((int64_t)bytes);
    for (size_t i = 0; i < bytes / sizeof *bad; i++) bad[i] = 0x7F80; // infinity
    MUST(r.cx.dev->to_device(o->w.p, bad, bytes));
    free(bad);
    MUST(optimizer_hash(model_params(r.model), &r.cx, &before));
    StepInput in = {.config = r.config, .loader = r.train, .step = 1, .tokens = r.tokens, .doc_start = r.doc_start};
    StepOutput out;
    EXPECT(step_train(r.model, &r.cx, &in, &out) == E_NUMERIC);
    EXPECT(strstr(fail_message(), "layer 1") != NULL);
    fail_clear();
    MUST(optimizer_hash(model_params(r.model), &r.cx, &after));
    EXPECT(before == after);
    rig_close(&r);
}

// last_of: the last text of a file that stands behind `key`, up to the next quote; "" if there is none.
static void last_of(char *out, size_t n, const char *dir, const char *file, const char *key) {
    char path[200], line[4096];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    out[0] = '\0';
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f)) {
        const char *at = strstr(line, key);
        if (at) snprintf(out, n, "%.*s", (int)strcspn(at + strlen(key), "\"\n"), at + strlen(key));
    }
    if (f) fclose(f);
}

// run: `tessera train` up to a step, in dir, with one more setting.
static void run(const char *dir, const char *device, const char *more, int64_t steps) {
    const char *sets[SETS_MAX];
    int n = (int)(sizeof base_sets / sizeof *base_sets);
    memcpy(sets, base_sets, sizeof base_sets);
    sets[n++] = "precision.mode=fp8";
    sets[n++] = "debug.state_hash=true";
    sets[n++] = "data.eval=data/samples/tiny.heldout.h5";
    sets[n++] = "eval.every=2";
    sets[n++] = more;
    sets[n++] = "eval.max_sequences=2";
    TrainOptions o = {.config_path = "configs/tiny.yaml", .run_dir = dir, .resume = "auto", .sets = sets, .nsets = n,
                      .steps = steps, .device = device, .threads = 1};
    MUST(run_train(&o));
}

// A whole run, alone: "auto" takes the GPU unless it cannot compute what is asked for, and a run that was interrupted
// goes on as if it had not been.
static void runs(void) {
    if (boot.is_mpi) return; // which starts once a process
    static const char plain[] = "fp8.shadow_every=null";
    char dirs[2][128], hash[2][64], says[256];
    for (int i = 0; i < 2; i++) {
        snprintf(dirs[i], sizeof dirs[i], "/tmp/test_train_cuda_XXXXXX");
        if (!mkdtemp(dirs[i])) MUST(fail_at(E_OUTPUT, __FILE__, __LINE__, "no temporary folder"));
        if (i == 1) run(dirs[i], "auto", plain, 2);
        run(dirs[i], "cuda", plain, 3);
        last_of(hash[i], sizeof hash[i], dirs[i], "metrics.jsonl", "\"state_hash\":\"");
        last_of(says, sizeof says, dirs[i], "train.log", "kernels ");
        EXPECT(strstr(says, "cuda") != NULL);
        last_of(says, sizeof says, dirs[i], "train.log", "device     ");
        EXPECT(strstr(says, "fibers on the CPU") != NULL);
        last_of(says, sizeof says, dirs[i], "metrics.jsonl", "\"mfu\":");
        EXPECT(strtod(says, NULL) > 0.0 && strtod(says, NULL) < 1e3); // of a peak that fibers have
    }
    EXPECT(hash[0][0] && strcmp(hash[0], hash[1]) == 0);
    // "auto" and a setting that only the CPU has; the newest line of the log counts.
    run(dirs[0], "auto", "fp8.shadow_every=7", 4);
    last_of(says, sizeof says, dirs[0], "train.log", "kernels ");
    EXPECT(strstr(says, "cpu") != NULL);
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s %s", dirs[0], dirs[1]);
    EXPECT(system(command) == 0);
}

// What the backend does not have is refused before a step.
static void refuses(void) {
    static const char *const sets[][3] = {{"precision.mode=fp8", "fp8.shadow_every=2", NULL},
                                          {"precision.mode=fp8", "fp8.scaling=row", NULL}};
    static const char *const words[] = {"fp8.shadow_every 2", "fp8.scaling row"};
    groups(boot.nranks);
    for (int i = 0; i < 2; i++) {
        Rig r;
        Backend on;
        MemoryPlan plan;
        rig_config(&r, sets[i]);
        MUST(backend_choose(&on, "cuda", 0));
        MUST(memory_measure(&plan, &r.shape, &r.mesh, true, true));
        EXPECT(cx_create_on(&r.cx, &on, &boot, &r.mesh, &r.shape, &plan, 1) == E_CONFIG);
        EXPECT(strstr(fail_message(), words[i]) != NULL);
        fail_clear();
        cx_destroy(&r.cx);
        config_free(r.config);
    }
}

int main(void) {
    const RankTest tests[] = {
        {"trains_fp32", trains_fp32},
        {"trains_bf16", trains_bf16},
        {"trains_on_tensor_cores", trains_on_tensor_cores},
        {"trains_fp8", trains_fp8},
        {"trains_head_in_chunks", trains_head_in_chunks},
        {"trains_fp32_sums", trains_fp32_sums},
        {"reaches_tensor_cores", reaches_tensor_cores},
        {"trains_fp8_plain", trains_fp8_plain},
        {"finds_what_is_not_finite", finds_what_is_not_finite},
        {"runs", runs},
        {"refuses", refuses},
    };
    MUST(boot_init(&boot));
    MUST(ops_isa_select("portable")); // its products add in the order of the plain kernels
    gemm_mma_choose(0);
    int failed = rank_tests_run(tests, (int)(sizeof tests / sizeof *tests));
    boot_finish(&boot);
    return failed;
}
