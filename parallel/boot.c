// boot.c - the start and the end of a process: launcher, MPI, groups, signals, cores.
//
// The one C file that reads environment variables, and only the launchers': a process that no
// launcher started must not call MPI_Init, which would look for daemons, devices and temporary
// directories it does not need. It sets one, NCCL's, for which NCCL has no other way.
#include "boot.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arena.h"
#include "comm_nccl.h"
#include "device.h"
#include "mpi_try.h"

// ---- launchers --------------------------------------------------------------------------------

// env_int: the variable as a whole number, or -1.
static long env_int(const char *name) {
    const char *text = getenv(name);
    if (!text || !*text) return -1;
    char *end = NULL;
    errno = 0;
    long v = strtol(text, &end, 10);
    return errno == 0 && *end == '\0' && v >= 0 ? v : -1;
}

// slurm_tasks: tasks of the Slurm step that started this process, 0 outside of steps (a batch
// script is none).
static long slurm_tasks(void) {
    if (env_int("SLURM_STEP_ID") < 0 || env_int("SLURM_PROCID") < 0) return 0;
    long n = env_int("SLURM_STEP_NUM_TASKS");
    if (n < 0) n = env_int("SLURM_NTASKS");
    return n > 0 ? n : 0;
}

static bool has_pmi(void) {
    return getenv("PMI_FD") || getenv("PMIX_NAMESPACE") || getenv("PMI_JOBID") ||
           getenv("PMI_CONTROL_PORT");
}

// launched_size: ranks that the launcher promised; 0 if none was there, 1 if it does not say how
// many.
static long launched_size(void) {
    long n = env_int("OMPI_COMM_WORLD_SIZE");
    if (n > 0) return n;
    n = env_int("PMI_SIZE");
    if (n > 0 && env_int("PMI_RANK") >= 0) return n;
    if (slurm_tasks() > 0 && has_pmi()) return slurm_tasks();
    return env_int("PMIX_RANK") >= 0 ? 1 : 0;
}

bool boot_is_launched(void) {
    return launched_size() > 0;
}

// ---- cores ------------------------------------------------------------------------------------

int boot_cores(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
    long n = sysconf(_SC_NPROCESSORS_ONLN); // more CPUs than a cpu_set_t holds
    return n > 0 ? (int)n : 1;
}

// share_cores: b->cores, from what every rank of this node may use. A launcher may have given each
// rank cores of its own (mpirun --bind-to core) or left all of them to all: both are told from the
// affinity masks. Collective over node.
static Err share_cores(Boot *b, MPI_Comm node) {
    cpu_set_t mine, *all = NULL;
    CPU_ZERO(&mine);
    b->cores = (double)boot_cores() / b->local_nranks;
    int is_known = sched_getaffinity(0, sizeof mine, &mine) == 0, known = 0;
    TRY_MPI(MPI_Allreduce(&is_known, &known, 1, MPI_INT, MPI_MIN, node));
    if (!known) return OK;
    MEM_NEW(all, b->local_nranks);
    int rc =
        MPI_Allgather(&mine, (int)sizeof mine, MPI_BYTE, all, (int)sizeof mine, MPI_BYTE, node);
    b->cores = 0.0;
    for (int i = 0; i < CPU_SETSIZE && rc == MPI_SUCCESS; i++) {
        int sharers = 0;
        for (int r = 0; r < b->local_nranks; r++) sharers += CPU_ISSET(i, &all[r]) != 0;
        if (CPU_ISSET(i, &mine)) b->cores += 1.0 / sharers;
    }
    mem_free(all);
    TRY_MPI(rc);
    return OK;
}

// ---- MPI --------------------------------------------------------------------------------------

static Err start_mpi(Boot *b) {
    int have = 0;
    TRY_MPI(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &have));
    b->is_mpi = true;
    TRY_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    CHECK(have >= MPI_THREAD_SERIALIZED, E_PEER,
          "this MPI library offers thread level %d; %d (serialized) is needed", have,
          (int)MPI_THREAD_SERIALIZED);
    MPI_Comm world = MPI_COMM_NULL;
    TRY_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &b->rank));
    TRY_MPI(MPI_Comm_size(MPI_COMM_WORLD, &b->nranks));
    CHECK(launched_size() <= b->nranks, E_PEER,
          "the launcher started %ld ranks, but MPI sees %d: mpirun or srun does not belong to the "
          "MPI library that "
          "this program was built with (Slurm: try srun --mpi=pmix)",
          launched_size(), b->nranks);
    MPI_Comm node = MPI_COMM_NULL;
    TRY_MPI(
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, b->rank, MPI_INFO_NULL, &node));
    TRY_MPI(MPI_Comm_rank(node, &b->local_rank));
    TRY_MPI(MPI_Comm_size(node, &b->local_nranks));
    TRY(share_cores(b, node));
    TRY_MPI(MPI_Comm_free(&node));
    TRY_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &world));
    TRY(comm_mpi(&b->world, "world", world, b->rank));
    return OK;
}

// order_groups: NCCL lets the operations of all groups begin in the order in which they were issued, which is the same
// on all ranks. Of itself it does not (NCCL's guide, "Using multiple NCCL communicators concurrently"): on one rank the
// kernel of one group could hold the multiprocessors that another's needs, on the next rank the other way round. What
// the user has set stays. Before there are threads, who may read the environment.
static void order_groups(void) {
    setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", 0);
}
enum { NCCL_WITH_ORDER = 22600 }; // the first version that knows it

Err boot_init(Boot *b) {
    order_groups();
    memset(b, 0, sizeof *b);
    b->nranks = b->local_nranks = 1;
    b->cores = boot_cores();
    if (gethostname(b->host, sizeof b->host) != 0) snprintf(b->host, sizeof b->host, "unknown");
    b->host[sizeof b->host - 1] = '\0';
    if (boot_is_launched()) {
        TRY(start_mpi(b));
        return OK;
    }
    CHECK(slurm_tasks() <= 1, E_PEER,
          "srun started %ld tasks without MPI support, so each would train on its own: use srun "
          "--mpi=pmix, or "
          "srun -n 1 for a single rank",
          slurm_tasks());
    TRY(comm_self(&b->world, "world"));
    return OK;
}

// make_group: the ranks with the same colour, as a Comm. Collective over the world.
static Err make_group(Boot *b, Comm **out, const char *name, int colour) {
    comm_destroy(out);
    if (b->nranks > 1) {
        MPI_Comm group = MPI_COMM_NULL;
        int n = 0;
        TRY_MPI(MPI_Comm_split(MPI_COMM_WORLD, colour, b->rank, &group));
        TRY_MPI(MPI_Comm_size(group, &n));
        if (n > 1) {
            TRY(comm_mpi(out, name, group, b->rank));
            return OK;
        }
        TRY_MPI(MPI_Comm_free(&group)); // alone: no need for a library
    }
    TRY(comm_self(out, name));
    (*out)->world_rank = b->rank;
    return OK;
}

Err boot_groups(Boot *b, const Mesh *m, const char *kind) {
    bool is_self = strcmp(kind, "self") == 0;
    bool is_mpi = strcmp(kind, "mpi") == 0 || strcmp(kind, "nccl") == 0;
    CHECK(is_self || is_mpi || strcmp(kind, "auto") == 0, E_CONFIG,
          "parallel.comm is \"%s\"; it can be auto, self, mpi or nccl", kind);
    CHECK(!is_self || b->nranks == 1, E_CONFIG,
          "parallel.comm is self, which is one rank, but %d ranks were started: use auto or mpi, "
          "or start one rank",
          b->nranks);
    CHECK(!is_mpi || b->is_mpi, E_CONFIG,
          "parallel.comm is %s, but no launcher started this program: use mpirun or srun, or "
          "parallel.comm=auto",
          kind);
    CHECK(m->world == b->nranks && m->rank == b->rank, E_INTERNAL,
          "mesh of rank %d of %d on rank %d of %d", m->rank, m->world, b->rank, b->nranks);
    TRY(make_group(b, &b->ep, "ep", m->dp_rank));
    TRY(make_group(b, &b->edp, "edp", m->ep_rank));
    return OK;
}

// ---- GPUs that exchange memory -----------------------------------------------------------------

// Where a rank computes.
typedef struct Seat {
    char host[64], gpu[64]; // "" without an open device
    int32_t nccl;           // version, 0: not built in
} Seat;

// find_obstacle: why these ranks cannot use NCCL; "" if they can.
static void find_obstacle(char *why, size_t n, const Seat *seat, int nranks) {
    why[0] = '\0';
    for (int r = 0; r < nranks && !why[0]; r++) {
        if (!seat[r].gpu[0]) snprintf(why, n, "rank %d has no CUDA device", r);
        else if (!seat[r].nccl) snprintf(why, n, "this program was built without NCCL");
        else if (seat[r].nccl != seat[0].nccl)
            snprintf(why, n, "rank 0 has NCCL %d, rank %d has %d", seat[0].nccl, r, seat[r].nccl);
        else if (seat[r].nccl < NCCL_WITH_ORDER)
            snprintf(why, n, "NCCL is %d: before 2.26 messages of several groups could wait for each other for ever",
                     seat[r].nccl);
        for (int q = 0; q < r && !why[0]; q++) {
            if (strcmp(seat[q].host, seat[r].host) == 0 && strcmp(seat[q].gpu, seat[r].gpu) == 0)
                snprintf(why, n, "ranks %d and %d share one GPU (%s on %s)", q, r, seat[r].gpu, seat[r].host);
        }
    }
}

// attach: all ranks of the world agree after each kind of group, so that none goes on to a group that another gave up.
static Err attach(Boot *b, Comm *c, double limit_s) {
    TRY(comm_agree(b->world, c->nranks > 1 ? comm_nccl_attach(c, limit_s) : OK));
    return OK;
}

Err boot_devices(Boot *b, const char *kind, double limit_s, char *why, size_t n) {
    Seat mine = {.nccl = comm_nccl_version()}, *all = NULL;
    bool is_asked = strcmp(kind, "nccl") == 0;
    why[0] = '\0';
    boot_devices_finish(b);
    if (b->nranks == 1 || (!is_asked && strcmp(kind, "auto") != 0)) return OK;
    snprintf(mine.host, sizeof mine.host, "%s", b->host);
    device_cuda_place(mine.gpu, sizeof mine.gpu);
    MEM_NEW(all, b->nranks);
    Err err = b->world->all_gather(b->world, all, &mine, sizeof mine);
    bool any = false;
    for (int r = 0; r < b->nranks; r++) any = any || all[r].gpu[0];
    if (err == OK) find_obstacle(why, n, all, b->nranks);
    mem_free(all);
    TRY(err);
    CHECK(!is_asked || !why[0], E_CONFIG,
          "parallel.comm is nccl, which needs a GPU of its own for every rank, but %s: use parallel.comm=auto or mpi",
          why);
    if (!any) why[0] = '\0'; // nobody computes on a GPU
    if (why[0] || !any) return OK;
    TRY(attach(b, b->world, limit_s));
    TRY(attach(b, b->ep, limit_s));
    TRY(attach(b, b->edp, limit_s));
    return OK;
}

void boot_devices_finish(Boot *b) {
    if (b->edp) comm_destroy(&b->edp->on_device);
    if (b->ep) comm_destroy(&b->ep->on_device);
    if (b->world) comm_destroy(&b->world->on_device);
}

const char *boot_nccl_version(void) {
    static char text[32];
    int v = comm_nccl_version();
    if (v) snprintf(text, sizeof text, "%d.%d.%d", v / 10000, v / 100 % 100, v % 100);
    return text;
}

void boot_finish(Boot *b) {
    comm_destroy(&b->edp);
    comm_destroy(&b->ep);
    comm_destroy(&b->world);
    if (b->is_mpi) MPI_Finalize();
    b->is_mpi = false;
}

void boot_abort(Boot *b, int code) {
    if (b->is_mpi) MPI_Abort(MPI_COMM_WORLD, code);
}

void boot_end(int code) {
    _exit(code);
}

// ---- signals ----------------------------------------------------------------------------------

static volatile sig_atomic_t signalled;
static const int stop_signals[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP};
static const char *const signal_names[] = {"SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT", "SIGHUP"};
enum { STOP_SIGNALS = sizeof stop_signals / sizeof stop_signals[0] };
static volatile sig_atomic_t seen[STOP_SIGNALS];
static volatile sig_atomic_t is_term_repeated; // the batch system repeats SIGTERM

static void on_signal(int sig) {
    for (int i = 0; i < STOP_SIGNALS; i++) {
        if (stop_signals[i] != sig) continue;
        if (seen[i] && !(sig == SIGTERM && is_term_repeated)) _exit(128 + sig);
        seen[i] = 1;
    }
    if (!signalled) signalled = sig;
}

void boot_signals(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    is_term_repeated = env_int("SLURM_JOB_ID") >= 0;
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART; // system calls of a step go on; the flag is looked at between
                                  // micro-batches
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < STOP_SIGNALS; i++) sigaddset(&action.sa_mask, stop_signals[i]);
    for (int i = 0; i < STOP_SIGNALS; i++) {
        struct sigaction was;
        bool is_kept = stop_signals[i] == SIGHUP && sigaction(SIGHUP, NULL, &was) == 0 && was.sa_handler == SIG_IGN;
        if (!is_kept) sigaction(stop_signals[i], &action, NULL); // else nohup: the run outlives its terminal
    }
    signal(SIGPIPE, SIG_IGN); // who reads the log may end (Ctrl-C takes `tee`, too): its lines are lost, not the save
}

const char *boot_signal_name(int sig) {
    for (int i = 0; i < STOP_SIGNALS; i++)
        if (stop_signals[i] == sig) return signal_names[i];
    return "signal";
}

int64_t boot_end_time(void) {
    long t = env_int("SLURM_JOB_END_TIME");
    return t > 0 ? t : 0;
}

int boot_signalled(void) {
    return (int)signalled;
}

const char *boot_mpi_version(void) {
    static char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n = 0;
    if (MPI_Get_library_version(text, &n) != MPI_SUCCESS) return "unknown";
    text[strcspn(text, ",\n")] = '\0'; // the rest is who packaged it
    return text;
}

int boot_threads(const Boot *b, int asked) {
    if (asked > 0) return asked;
    const char *set = getenv("OMP_NUM_THREADS");
    int n = set ? atoi(set) : 0;
    if (n <= 0) n = (int)(b->cores + 1e-6); // thirds may add up to a little less than one
    return n > 0 ? n : 1;
}
