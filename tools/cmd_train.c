// cmd_train.c - `tessera train`: flags to TrainOptions.
#include <string.h>

#include "args.h"
#include "cmd_train_sbatch.h"
#include "commands.h"
#include "run.h"

static const Flag flags[] = {
    {"config", "FILE", NULL, FLAG_REQUIRED, "the run's YAML file"},
    {"run-dir", "DIR", NULL, 0, "where the run writes (default: runs/<config's name>)"},
    {"resume", "auto|never|PATH[@STEP]", NULL, 0,
     "auto: continue from the newest checkpoint that verifies, or start; never: start, as without it; PATH: a run or "
     "checkpoint directory"},
    {"init-from", "PATH", NULL, 0,
     "start a new run from a checkpoint's weights (with --resume auto: only if there is nothing to "
     "resume)"},
    {"steps", "N", NULL, 0, "stop at step N (the schedule's length stays train.steps)"},
    {"time-limit", "TIME", NULL, 0,
     "stop early enough to save before so much time has passed, with code 75: 3600, 90m, 1:30:00 (in a Slurm job its "
     "end counts too: SLURM_JOB_END_TIME)"},
    {"grace", "SECONDS", NULL, 0,
     "what the batch system leaves between a signal and the end: warn if a save takes longer"},
    {"set", "SECTION.KEY=VALUE", NULL, FLAG_REPEAT, "override one setting"},
    {"inject", "FAULT", NULL, FLAG_REPEAT,
     "fail on purpose: kill|hang@step=N,rank=R[,layer=L], nan@step=N[-M],rank=R[,layer=L][,in=output|gradient], "
     "slow@step=N[-M],rank=R,factor=F|seconds=S[,in=pass|data], diskfull|corrupt@save=N[,rank=R]"},
    {"device", "auto|cpu|cuda", "auto", 0, "where to compute; auto: cuda where it can be used, else cpu"},
    {"threads", "N", NULL, 0,
     "threads per rank (default: OMP_NUM_THREADS, or cores / local ranks)"},
    {"print-config", NULL, NULL, 0, "print the resolved settings and stop"},
    {"print-sbatch", NULL, NULL, 0,
     "print a Slurm script for this run, from launch/slurm.sbatch, and stop; lead of the signal from --grace (120 s), "
     "job time from --time-limit (a day), cores per rank from --threads"},
    {"nodes", "N", "1", 0, "of --print-sbatch"},
    {"ranks-per-node", "N", NULL, 0, "of --print-sbatch (default: parallel.ep / nodes)"},
    {"dry-run", NULL, NULL, 0,
     "print parameter counts and memory per rank and stop; opens no data"},
};

static const Command command = {"tessera train",
                                "",
                                "Trains a model. Under mpirun or srun on all ranks, else on one.",
                                flags,
                                COUNT_OF(flags),
                                0,
                                0};

Err cmd_train(int argc, char **argv) {
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) {
        printf("\nsettings (section.key); * = fixed for a run, the others may change on resume:\n");
        config_help(stdout);
        return OK;
    }
    int64_t threads = 0;
    const char *sets[256], *injects[INJECT_MAX];
    TrainOptions o = {0};
    o.config_path = args_get(&a, "config");
    o.run_dir = args_get(&a, "run-dir");
    o.resume = args_get(&a, "resume");
    o.device = args_get(&a, "device");
    o.init_from = args_get(&a, "init-from");
    TRY(args_int(&a, "steps", 1, INT64_MAX, &o.steps));
    TRY(args_int(&a, "threads", 1, 4096, &threads));
    TRY(args_seconds(&a, "time-limit", 1, 366.0 * 86400.0, &o.time_limit));
    TRY(args_seconds(&a, "grace", 1, 366.0 * 86400.0, &o.grace));
    o.threads = (int)threads;
    TRY(args_all(&a, "set", sets, COUNT_OF(sets), &o.nsets));
    o.sets = sets;
    int ninjects = 0;
    TRY(args_all(&a, "inject", injects, COUNT_OF(injects), &ninjects));
    TRY(inject_parse(&o.inject, injects, ninjects));
    o.is_print_config = args_has(&a, "print-config");
    o.is_dry_run = args_has(&a, "dry-run");
    CHECK(!o.init_from || !run_resume_has_path(o.resume), E_USAGE,
          "--init-from starts a new run, --resume %s continues one: give one of them, or --resume "
          "auto",
          o.resume);
    SbatchShape shape = {.injects = injects, .ninjects = ninjects};
    TRY(args_int(&a, "nodes", 1, 65536, &shape.nodes));
    TRY(args_int(&a, "ranks-per-node", 1, 4096, &shape.ranks_per_node));
    Err err = args_has(&a, "print-sbatch") ? train_print_sbatch(&o, &shape) : run_train(&o);
    args_free(&a);
    return err;
}
