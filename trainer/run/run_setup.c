// run_setup.c - from options to a run that can take its next step.
//
// Nothing is created on disk before the config is accepted and, on a resume, the checkpoint is
// found and fits, but for the lock of a folder that exists: it is taken before anything in there is
// looked at, so that no other run changes what this one chooses from.
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "checkpoint_dir.h"
#include "device_peak.h"
#include "log.h"
#include "machine.h"
#include "run.h"
#include "schedule.h"
#include "tokenizer.h"

// More parameters than this take a while, of which the run says what it is at.
#define SLOW_START 1000000000

static Err load_config(Run *r) {
    const TrainOptions *o = &r->opt;
    TRY(config_load(&r->config, o->config_path, o->sets, o->nsets));
    return OK;
}

static Err check_config(Run *r) {
    TRY(config_check_train(r->config));
    TRY(config_check_world(r->config, r->boot.nranks));
    r->inject = r->opt.inject;
    TRY(inject_check(&r->inject, r->boot.nranks,
                     r->config->model.num_hidden_layers + r->config->model.num_nextn_predict_layers));
    return mesh_build(&r->mesh, r->boot.nranks, r->boot.rank, (int)r->config->parallel.ep);
}

static bool is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

// same_folder: do two paths name one existing folder?
static bool same_folder(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool run_resume_has_path(const char *resume) {
    return resume && strcmp(resume, "auto") != 0 && strcmp(resume, "never") != 0;
}

Err run_resume_split(const char *resume, char *path, size_t n, int64_t *step) {
    const char *at = strrchr(resume, '@');
    char *end = NULL;
    *step = -1;
    if (at && at[1]) *step = strtoll(at + 1, &end, 10);
    bool is_step = at && at[1] && *end == '\0';
    if (!is_step) *step = -1;
    snprintf(path, n, "%.*s", is_step ? (int)(at - resume) : (int)strlen(resume), resume);
    CHECK(strlen(resume) < n, E_USAGE, "--resume: the path is too long");
    return OK;
}

// run_of: the run directory that a run or checkpoint directory belongs to, "" for a checkpoint that
// stands alone.
static void run_of(char *out, size_t n, const char *path) {
    char inside[1100], *real = NULL;
    snprintf(inside, sizeof inside, "%s/checkpoints", path);
    out[0] = '\0';
    if (is_dir(inside)) {
        snprintf(out, n, "%s", path);
    } else if ((real =
                    realpath(path, NULL))) { // RUN/checkpoints/step_00000100, or `latest` beside it
        char *name = strrchr(real, '/');
        if (name) *name = '\0';
        char *folder = strrchr(real, '/');
        if (folder && strcmp(folder, "/checkpoints") == 0) {
            *folder = '\0';
            snprintf(out, n, "%s", real[0] ? real : "/");
        }
    }
    free(real);
}

// pick_dir: where this run writes. A resumed run is continued in its directory (resume_run) unless
// another one is named.
static Err pick_dir(Run *r, const char *resume_run) {
    const TrainOptions *o = &r->opt;
    char stem[256];
    if (o->run_dir) {
        CHECK(o->run_dir[0], E_USAGE, "--run-dir: the path is empty");
        CHECK(strlen(o->run_dir) < sizeof r->dir, E_USAGE, "--run-dir: the path is too long");
        snprintf(r->dir, sizeof r->dir, "%s", o->run_dir);
    } else {
        CHECK(strlen(resume_run) < sizeof r->dir, E_USAGE, "--resume: the path is too long");
        snprintf(r->dir, sizeof r->dir, "%s", resume_run);
    }
    if (!r->dir[0]) {
        config_name(stem, sizeof stem, o->config_path);
        snprintf(r->dir, sizeof r->dir, "runs/%s", stem);
    }
    snprintf(r->checkpoints, sizeof r->checkpoints, "%s/checkpoints", r->dir);
    return OK;
}

// choose: run directory, and whether it may be used. Rank 0's view counts; nothing is created.
static Err choose_dir(Run *r, char *resume_path, size_t n, int64_t *resume_step) {
    const char *resume = r->opt.resume;
    bool has_path = run_resume_has_path(resume);
    *resume_step = -1;
    resume_path[0] = '\0';
    if (has_path) {
        TRY(run_resume_split(resume, resume_path, n, resume_step));
        CHECK(is_dir(resume_path), E_INPUT, "--resume %s: no such run or checkpoint directory",
              resume_path);
    }
    char resume_run[1100] = "";
    if (has_path) run_of(resume_run, sizeof resume_run, resume_path);
    TRY(pick_dir(r, resume_run));
    bool is_continued = resume && strcmp(resume, "auto") == 0;
    if (has_path) {
        const char *from = resume_run[0] ? resume_run : resume_path;
        bool is_own = resume_run[0] && same_folder(resume_run, r->dir);
        snprintf(r->origin, sizeof r->origin, "%s", is_own ? "" : from);
        is_continued = is_own || run_dir_is_begun_from(r->dir, from);
    }
    if (!is_continued && run_dir_is_occupied(r->dir)) return run_dir_refuse(r->dir);
    if (r->boot.rank != 0 || !is_dir(r->dir)) return OK;
    TRY(run_lock_take(&r->lock, r->dir));
    ckdir_clean(r->checkpoints); // nobody else writes here any more
    return OK;
}

// find_start: the checkpoint to continue from. Collective over world.
static Err find_start(Run *r, const char *resume_path, int64_t resume_step) {
    const char *resume = r->opt.resume;
    bool found = false;
    if (resume_path[0])
        return checkpoint_need(r->resume_from, sizeof r->resume_from, "--resume", resume_path, resume_step, &r->cx);
    if (!resume || strcmp(resume, "auto") != 0) return OK;
    Err e = checkpoint_find(r->resume_from, sizeof r->resume_from, &found, r->dir, -1, &r->cx);
    TRY(comm_agree(r->boot.world, e));
    if (!found) r->resume_from[0] = '\0';
    return OK;
}

static void log_changed(const char *key, const char *was, const char *is) {
    log_line("resume     %s changed: %s -> %s", key, was, is);
}

// check_resume: the stored config and data against ours. Local.
static Err check_resume(Run *r) {
    Config *stored = NULL;
    TRY(checkpoint_read_info(r->resume_from, &r->at));
    TRY(checkpoint_read_config(r->resume_from, &stored));
    Err err = config_compare_resume(stored, r->config, log_changed);
    config_free(stored);
    TRY(err);
    HashText now = loader_fingerprint(r->loader);
    CHECK(!r->at.data_fingerprint[0] || strcmp(r->at.data_fingerprint, now.s) == 0, E_INPUT,
          "%s was trained on other data: its fingerprint is %s, data.train now has %s; give the "
          "same shards, order, "
          "weights and sequence length, or start a new run with --init-from",
          r->resume_from, r->at.data_fingerprint, now.s);
    return OK;
}

// check_read: the samples that the checkpoint's run has read are the first ones of this run's data order, each
// once: what they added up to is computed again from the order alone. Collective over world.
static Err check_read(Run *r) {
    CheckpointInfo *at = &r->at;
    if (at->read.samples < 0) {
        log_line("consumed   [0, %lld) by count: the checkpoint does not say what was read", (long long)at->samples);
        return OK;
    }
    int64_t world = r->boot.nranks, from = at->samples / world * r->boot.rank;
    int64_t to = r->boot.rank == world - 1 ? at->samples : from + at->samples / world;
    ReadProof part = loader_proof(r->loader, from, to - from);
    int64_t want[2] = {part.samples, (int64_t)part.hash};
    TRY(comm_sum_i64(r->boot.world, want, 2));
    CHECK(at->read.samples == want[0] && at->read.hash == (uint64_t)want[1], E_INPUT,
          "%s: what was read is not the samples [0, %lld) of this data order: expected %lld samples with hash %016llx, "
          "found %lld with %016llx: samples were left out or repeated, or data, weights or seed are others",
          r->resume_from, (long long)at->samples, (long long)want[0], (unsigned long long)want[1],
          (long long)at->read.samples, (unsigned long long)at->read.hash);
    log_line("consumed   [0, %lld) gap-free: %lld samples were read, each once and where this data order has it (hash "
             "%016llx); sample %lld is next",
             (long long)at->samples, (long long)at->read.samples, (unsigned long long)at->read.hash,
             (long long)at->samples);
    return OK;
}

static Err open_loader(const Config *c, const PathList *paths, const RealList *weights,
                       bool is_eval, Loader **out) {
    LoaderCorpus *corpora = NULL;
    MEM_NEW(corpora, paths->n);
    for (int i = 0; i < paths->n; i++) {
        corpora[i].path = paths->v[i];
        corpora[i].weight = weights && weights->n ? weights->v[i] : 0.0;
    }
    LoaderSpec spec = {.corpora = corpora,
                       .ncorpora = paths->n,
                       .seq_len = c->train.seq_len,
                       .mtp_depth = c->model.num_nextn_predict_layers,
                       .vocab_size = c->model.vocab_size,
                       .seed = (uint64_t)c->train.seed,
                       .is_eval = is_eval};
    Err err = loader_open(out, &spec);
    mem_free(corpora);
    if (err != E_INPUT) return err;
    return fail_at(err, __FILE__, __LINE__, "data.%s: %s", is_eval ? "eval" : "train", fail_message());
}

// check_tokenizer: data.tokenizer is the one that made the shards, those held out too.
static Err check_tokenizer(Run *r) {
    const Config *c = r->config;
    const char *want = loader_tokenizer_hash(r->loader), *held_out = r->eval ? loader_tokenizer_hash(r->eval) : want;
    CHECK(!want[0] || !held_out[0] || strcmp(want, held_out) == 0, E_INPUT,
          "data.eval %s was made with a tokenizer of hash %s, data.train %s with one of hash %s: make both with one "
          "tokenizer",
          c->data.eval.v[0], held_out, c->data.train.v[0], want);
    snprintf(r->at.tokenizer_hash, sizeof r->at.tokenizer_hash, "%s", want);
    if (!c->data.tokenizer) return OK;
    Tokenizer *t = NULL;
    Err err = tokenizer_load(&t, c->data.tokenizer);
    if (err == E_INPUT) return fail_at(err, __FILE__, __LINE__, "data.tokenizer: %s", fail_message());
    TRY(err);
    char have[sizeof r->at.tokenizer_hash];
    snprintf(have, sizeof have, "%s", tokenizer_hash(t));
    int size = tokenizer_vocab_size(t);
    tokenizer_free(&t);
    CHECK(!want[0] || strcmp(want, have) == 0, E_INPUT,
          "data.tokenizer %s has hash %s, but the shards were made with a tokenizer of hash %s",
          c->data.tokenizer, have, want);
    CHECK(size <= c->model.vocab_size, E_CONFIG,
          "model.vocab_size (%lld) is smaller than the %d tokens of %s",
          (long long)c->model.vocab_size, size, c->data.tokenizer);
    snprintf(r->at.tokenizer_hash, sizeof r->at.tokenizer_hash, "%s", have);
    return OK;
}

static Err open_data(Run *r) {
    const Config *c = r->config;
    TRY(open_loader(c, &c->data.train, &c->data.weights, false, &r->loader));
    if (c->data.eval.n > 0) {
        TRY(open_loader(c, &c->data.eval, NULL, true, &r->eval));
        r->eval_corpora = c->data.eval.n;
    }
    TRY(check_tokenizer(r));
    snprintf(r->at.data_fingerprint, sizeof r->at.data_fingerprint, "%s",
             loader_fingerprint(r->loader).s);
    return OK;
}

// measure_peak: of a device, while its memory is still free. The processor's is measured when the run begins.
static Err measure_peak(Run *r) {
    if (!r->backend.dev->alloc) return OK;
    DevicePeak peak;
    TRY(device_peak(&peak, &r->backend, r->shape.mode == MODE_FP32 ? DT_F32 : DT_BF16));
    r->peak_flops = peak.flops;
    return OK;
}

static Err make_model(Run *r) {
    const Config *c = r->config;
    TRY(shape_from_config(&r->shape, c, &r->mesh));
    TRY(measure_peak(r));
    TRY(memory_measure(&r->memory, &r->shape, &r->mesh, true, true));
    r->memory_free = machine_memory().available;
    TRY(cx_create_on(&r->cx, &r->backend, &r->boot, &r->mesh, &r->shape, &r->memory,
                  boot_threads(&r->boot, r->opt.threads)));
    TRY(model_create(&r->model, &r->shape, &r->cx, true, true));
    TRY(health_create(&r->health, &r->cx));
    if (r->shape.shadow_every > 0) TRY(shadow_create(&r->shadow, model_params(r->model)));
    MEM_NEW(r->tokens, r->shape.B * (r->shape.S + 1 + r->shape.nmtp));
    if (c->train.document_mask) MEM_NEW(r->doc_start, r->shape.B * r->shape.S);
    return OK;
}

Err run_fill(Run *r) {
    Params *p = model_params(r->model);
    if (r->resume_from[0]) {
        TRY(comm_agree(r->boot.world, checkpoint_load(r->resume_from, p, &r->cx, true)));
        uint64_t hash = 0;
        if (r->config->debug.state_hash) {
            TRY(run_state_hash(r, &hash));
            log_line("           state hash %016llx: that of step %lld in metrics.jsonl", (unsigned long long)hash,
                     (long long)r->at.step);
        }
    } else {
        if (r->opt.init_from)
            TRY(checkpoint_need(r->init_from, sizeof r->init_from, "--init-from", r->opt.init_from, -1, &r->cx));
        ParamCount n = params_count(&r->shape);
        if (n.total + n.mtp > SLOW_START)
            log_line("start      the first values of %s parameters are made from seed %lld",
                     text_count((double)(n.total + n.mtp)).s, (long long)r->config->train.seed);
        TRY(params_init(p, &r->shape, &r->cx));
        if (r->opt.init_from) {
            TRY(comm_agree(r->boot.world, checkpoint_load(r->init_from, p, &r->cx, false)));
            if (r->cx.calibration) calibration_reset(r->cx.calibration); // a new run has its own
        }
    }
    TRY(params_publish(p, &r->shape, &r->cx));
    if (!r->cx.health) return OK;
    return r->cx.dev->zero(r->cx.health, (size_t)(r->cx.nblocks * SITE_COUNT) * sizeof *r->cx.health);
}

// owes_eval: the last evaluation of the resumed step was given up, and this run evaluates. Collective over world.
static Err owes_eval(Run *r) {
    int64_t owes = 0;
    if (r->boot.rank == 0 && r->resume_from[0] && r->eval && r->config->eval.every)
        owes = metrics_eval_is_stopped(r->dir, r->at.step);
    TRY(comm_max_i64(r->boot.world, &owes, 1));
    r->owes_eval = owes != 0;
    return OK;
}

static void log_origin(const Run *r) {
    if (r->resume_from[0]) {
        log_line("resume     %s: step %lld, samples [0, %lld), written by %d rank%s with ep %d",
                 r->resume_from, (long long)r->at.step, (long long)r->at.samples, r->at.world,
                 r->at.world == 1 ? "" : "s", r->at.ep);
        if (r->at.skipped > 0)
            log_line("           %lld of them left no trace, their batches were not finite: %s",
                     (long long)r->at.skipped, r->at.skipped_ranges);
        if (r->cx.calibration && !(r->cx.calibration->steps > 0))
            log_line("           it holds no calibration of static scales: the next %lld steps calibrate",
                     (long long)r->shape.recipe.static_steps);
    } else if (r->init_from[0]) {
        log_line("init       weights of %s", r->init_from);
    }
}

// claim_dir: now that everything fits, make the run directory, lock it, start its files. Rank 0.
static Err claim_dir(Run *r) {
    if (r->boot.rank != 0) return OK;
    char path[1200];
    TRY(run_dir_make(r->dir));
    if (!r->lock) { // the folder was not there when this run looked for a checkpoint in it
        TRY(run_lock_take(&r->lock, r->dir));
        if (run_dir_is_occupied(r->dir)) return run_dir_refuse(r->dir);
    }
    TRY(run_dir_make(r->checkpoints));
    if (r->origin[0]) TRY(run_dir_set_origin(r->dir, r->origin));
    snprintf(path, sizeof path, "%s/train.log", r->dir);
    TRY(log_open(path));
    char *text = NULL;
    TRY(config_dump(r->config, &text));
    snprintf(path, sizeof path, "%s/config.yaml", r->dir);
    FILE *f = fopen(path, "we");
    bool ok = f && fputs(text, f) >= 0;
    if (f) ok = fclose(f) == 0 && ok;
    free(text);
    CHECK(ok, E_OUTPUT, "cannot write %s: disk full or no permission", path);
    return metrics_open(&r->metrics, r->dir, r->at.step, r->boot.rank);
}

static Err make_saver(Run *r) {
    char here[1200]; // a fork starts with no checkpoint of its own
    snprintf(here, sizeof here, "%s/step_%08lld", r->checkpoints, (long long)r->at.step);
    bool is_here = r->resume_from[0] && same_folder(r->resume_from, here);
    SaverSpec spec = {.dir = r->checkpoints,
                      .config = r->config,
                      .metrics = r->metrics,
                      .inject = r->inject.n > 0 ? &r->inject : NULL,
                      .stop = &r->stop,
                      .saved_step = is_here ? r->at.step : -1};
    return saver_create(&r->saver, &spec, model_params(r->model), &r->cx);
}

// pick_backend: of this rank. Where it is left to the program, a GPU that is not there, or has not what the config asks
// for, is the CPU.
static Err pick_backend(Run *r) {
    bool is_open = !r->opt.device || strcmp(r->opt.device, "auto") == 0;
    Shape s;
    TRY(backend_choose(&r->backend, is_open ? "auto" : r->opt.device, r->boot.local_rank));
    if (!is_open || !r->backend.dev->alloc) return OK;
    TRY(shape_from_config(&s, r->config, &r->mesh));
    Backend gpu = r->backend;
    if (cx_check_backend(&gpu, &s) == OK) return OK;
    r->backend = backend_cpu();
    snprintf(r->backend.why, sizeof r->backend.why, "%s", fail_message());
    fail_clear();
    return OK;
}

// choose_backend: where to compute, before anything is opened: on all ranks the same. Collective over world.
static Err choose_backend(Run *r) {
    TRY(comm_agree(r->boot.world, pick_backend(r)));
    int64_t is_cpu = !r->backend.dev->alloc, any_cpu = is_cpu;
    TRY(comm_max_i64(r->boot.world, &any_cpu, 1));
    if (any_cpu && !is_cpu) {
        r->backend = backend_cpu();
        snprintf(r->backend.why, sizeof r->backend.why, "not every rank has a CUDA device");
    }
    if (r->backend.why[0]) log_line("device     cpu: %s", r->backend.why);
    return OK;
}

static const char *comm_kind(const Run *r) {
    static const char *const names[] = {"auto", "self", "mpi", "nccl"};
    return names[r->config->parallel.comm];
}

// connect_devices: whether GPUs exchange memory directly. Collective over world.
static Err connect_devices(Run *r) {
    char why[256] = "";
    TRY(boot_devices(&r->boot, comm_kind(r), r->config->parallel.nccl_timeout, why, sizeof why));
    if (why[0]) log_line("ranks      rows and gradients travel through memory of the host: %s", why);
    return OK;
}

// place_ranks: where everybody is. Collective over world.
static Err place_ranks(Run *r) {
    char gpu[64];
    RankPlace mine;
    device_cuda_id(gpu, sizeof gpu);
    rank_place(&mine, r->boot.host, r->backend.dev->alloc ? gpu : "");
    MEM_NEW(r->places, r->boot.nranks);
    return rank_map_gather(r->places, &mine, r->boot.world);
}

// part: a part of the start is done: an error of one rank ends all, and so does a request to stop, with nothing made or
// saved. Collective over world.
static Err part(Run *r, Err mine) {
    TRY(stop_agree(&r->stop, r->boot.world, mine));
    if (!stop_is_due(&r->stop)) return OK;
    log_line("stopped by %s during the start: nothing was trained or saved", stop_reason(&r->stop));
    return E_STOPPED;
}

Err run_setup(Run *r, bool *is_done) {
    char resume_path[1024];
    int64_t resume_step = -1;
    *is_done = false;
    TRY(stop_settle(&r->stop, r->boot.world));
    TRY(part(r, load_config(r)));
    TRY(part(r, check_config(r)));
    TRY(part(r, boot_groups(&r->boot, &r->mesh, comm_kind(r))));
    TRY(run_watch_start(r));
    TRY(choose_backend(r));
    TRY(part(r, connect_devices(r)));
    TRY(run_watch_devices(r));
    TRY(place_ranks(r));
    TRY(part(r, choose_dir(r, resume_path, sizeof resume_path, &resume_step)));
    TRY(part(r, open_data(r)));
    TRY(part(r, make_model(r)));
    r->crowded = r->cx.op.nthreads > r->boot.cores + 1e-6;
    TRY(comm_sum_i64(r->boot.world, &r->crowded, 1));
    TRY(find_start(r, resume_path, resume_step));
    if (r->resume_from[0]) {
        TRY(part(r, check_resume(r)));
        TRY(check_read(r));
    }
    r->at.seed = r->config->train.seed;
    r->last_step = r->opt.steps > 0 ? r->opt.steps : r->config->train.steps;
    TRY(owes_eval(r));
    if (r->resume_from[0] && (r->last_step < r->at.step || (r->last_step == r->at.step && !r->owes_eval))) {
        log_line("nothing to do: %s is at step %lld, asked for %lld", r->resume_from,
                 (long long)r->at.step, (long long)r->last_step);
        *is_done = true;
        return OK;
    }
    TRY(run_fill(r)); // before the folder is made: weights that do not fit leave nothing behind
    TRY(part(r, OK));
    TRY(comm_agree(r->boot.world, claim_dir(r))); // a signal from here on: the first step sees it
    TRY(comm_agree(r->boot.world, make_saver(r)));
    TRY(run_watch_files(r));
    TRY(run_pace_start(r));
    log_origin(r);
    run_banner(r);
    TRY(inject_start(&r->inject, r->dir, r->boot.world));
    return OK;
}

void run_close(Run *r) {
    saver_free(&r->saver);
    run_watch_stop(r);
    run_pace_stop(r);
    metrics_close(&r->metrics);
    log_close();
    run_lock_drop(&r->lock);
    loader_close(&r->loader);
    loader_close(&r->eval);
    health_free(&r->health);
    shadow_free(&r->shadow);
    model_free(&r->model);
    cx_destroy(&r->cx);
    mem_free(r->places);
    mem_free(r->tokens);
    mem_free(r->doc_start);
    config_free(r->config);
    boot_devices_finish(&r->boot);
    device_cuda_close();
}
