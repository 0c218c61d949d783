// test_train_nccl.c - the trainer on devices that exchange their memory (parallel.comm nccl), over the NCCL on the CPU,
// on real ranks: every step, evaluation, gradient and weight has the bits it has with memory that goes through the
// host, and the host waits for the device as often as the plans of the expert layers need, no more.
//
// With --break or --stop as its argument: a run whose second rank loses its link, noticed by NCCL or not.
#include "hash.h"
#include "nccl_on_cpu.h"
#include "run.h"
#include "train_rig.h"

// hash_gradients: of this rank's rows.
static uint64_t hash_gradients(const Rig *r) {
    const Params *p = model_params(r->model);
    uint64_t hash = 0;
    for (int i = 0; i < p->n; i++) {
        const Param *e = &p->p[i];
        int64_t bytes = e->own.nrows * e->cols * 4;
        float *x = zeroed(bytes);
        MUST(r->cx.dev->to_host(x, mat_at(e->grad, e->own.row0, 0), (size_t)bytes));
        hash = hash64_seeded(x, (size_t)bytes, hash + 1);
        free(x);
    }
    return hash;
}

// run_with: the steps of train_rig.h over one kind of groups; returns the hash of the gradients.
static uint64_t run_with(const char *kind, const char *const *sets, int ep, Seen *seen, int64_t *blocks) {
    Rig r;
    char why[256];
    boot_devices_finish(&boot);
    groups(ep);
    MUST(boot_devices(&boot, kind, 60, why, sizeof why));
    rig_open(&r, "cuda", sets);
    int64_t operations = nccl_on_cpu_operations();
    train(&r, seen);
    EXPECT((nccl_on_cpu_operations() > operations) == (strcmp(kind, "nccl") == 0));
    *blocks = 0;
    for (int64_t b = 0; b < r.shape.nlayers + r.shape.nmtp; b++) *blocks += shape_is_moe(&r.shape, b);
    uint64_t hash = hash_gradients(&r);
    rig_close(&r);
    return hash;
}

// check: both ways, to the bit. micros: passes of a rank in a step.
static void check(const char *const *sets, int ep, int64_t micros) {
    static Seen a, b;
    int64_t blocks = 0;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    a.steps = b.steps = STEPS;
    uint64_t device = run_with("nccl", sets, ep, &a, &blocks), host = run_with("mpi", sets, ep, &b, &blocks);
    EXPECT(device == host && a.hash == b.hash);
    EXPECT(memcmp(a.m, b.m, sizeof a.m) == 0);
    EXPECT(memcmp(a.fp8, b.fp8, sizeof a.fp8) == 0);
    EXPECT(memcmp(&a.eval, &b.eval, sizeof a.eval) == 0 && memcmp(a.load, b.load, sizeof a.load) == 0);
    for (int i = 0; i < STEPS; i++) {
        EXPECT(a.m[i].loss > 0 && (ep == 1 || a.m[i].a2a_dispatch_bytes > 0));
        EXPECT(a.waits[i] == waits_of_step(blocks, micros) && a.blocking[i] == a.waits[i]);
        EXPECT(b.waits[i] >= a.waits[i] && b.blocking[i] == b.waits[i]);
    }
    EXPECT(nccl_on_cpu_mistakes() == 0);
}

static void trains_fp32(void) {
    static const char *const sets[] = {"precision.mode=fp32", NULL};
    check(sets, boot.nranks, 4 / boot.nranks);
}

static void trains_bf16(void) {
    static const char *const sets[] = {"precision.mode=bf16", "train.global_batch=8", NULL};
    check(sets, 1, 8 / boot.nranks); // no experts elsewhere: only gradients and weights travel
}

static void trains_fp8(void) {
    static const char *const sets[] = {"precision.mode=fp8", "model.num_hidden_layers=3", NULL};
    check(sets, 2, 4 / boot.nranks); // on four ranks: two expert groups, and two owners of every expert
}

// A whole run, whose second rank's link fails in the middle of a step; it ends in boot_abort.
static int run_broken(bool is_silent, const char *dir) {
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    const char *sets[SETS_MAX];
    int n = (int)(sizeof base_sets / sizeof *base_sets);
    memcpy(sets, base_sets, sizeof base_sets);
    sets[n++] = "precision.mode=bf16";
    sets[n++] = "parallel.comm=nccl";
    sets[n++] = "parallel.nccl_timeout=2";
    sets[n++] = "parallel.ep=2";
    sets[n++] = "train.global_batch=8";
    if (rank && rank[0] == '1') nccl_on_cpu_fail(75, is_silent);
    TrainOptions o = {.config_path = "configs/tiny.yaml", .run_dir = dir, .resume = "never", .sets = sets, .nsets = n,
                      .steps = 9, .device = "cuda", .threads = 1};
    return (int)run_train(&o);
}

int main(int argc, char **argv) {
    const RankTest tests[] = {
        {"trains_fp32", trains_fp32},
        {"trains_bf16", trains_bf16},
        {"trains_fp8", trains_fp8},
    };
    if (argc == 3) return run_broken(strcmp(argv[1], "--stop") == 0, argv[2]);
    MUST(boot_init(&boot));
    const Device *dev = NULL;
    MUST(device_cuda_open(&dev, 0));
    int failed = rank_tests_run(tests, (int)(sizeof tests / sizeof *tests));
    boot_devices_finish(&boot);
    boot_finish(&boot);
    return failed;
}
