// boot.h - how ranks come to be: MPI where a launcher started us, else one rank without touching
// MPI.
#pragma once
#include "comm.h"
#include "mesh.h"

typedef struct Boot {
    int rank, nranks;             // of the world
    int local_rank, local_nranks; // on this node
    char host[64];
    double cores; // this rank's part of the cores that its process may use: a core that k ranks of
                  // this node may use counts as 1/k
    bool is_mpi;
    Comm *world;
    Comm *ep;  // expert group; NULL before boot_groups
    Comm *edp; // ranks with the same experts
} Boot;

// boot_is_launched: true if mpirun or srun (PMI/PMIx/Open MPI variables with a size above 0)
// started this process. Local.
bool boot_is_launched(void);
// boot_init: start MPI if launched (MPI_THREAD_SERIALIZED, MPI_ERRORS_RETURN), fill everything but
// the groups. Collective over the world. Errors: E_PEER.
Err boot_init(Boot *b) MUST_CHECK;
// boot_groups: split the world into expert groups and their copies. kind "auto"/"self"/"mpi"/"nccl":
// E_CONFIG if it does not fit the launch (self with several ranks, mpi and nccl without launcher).
// Collective over the world.
Err boot_groups(Boot *b, const Mesh *m, const char *kind) MUST_CHECK;
// boot_devices: after boot_groups and after each rank has opened its CUDA device, if it has one: groups of
// several ranks get their table for memory of devices (Comm.on_device, with limit_s of comm_nccl.h) where kind
// is "nccl", or "auto" and it is possible: NCCL is built in, and every rank has a GPU that no other rank has.
// why, for people: why not; "" where there is one or nobody could want it. Errors: E_CONFIG if kind is "nccl"
// and it is not possible; E_PEER. Collective over the world.
Err boot_devices(Boot *b, const char *kind, double limit_s, char *why, size_t n) MUST_CHECK;
// boot_devices_finish: these tables go; before the device is closed. Collective over the world.
void boot_devices_finish(Boot *b);
// boot_nccl_version: the NCCL this program runs with ("2.28.9"), "" if it is not built in. Local.
const char *boot_nccl_version(void);
// boot_finish: finalise; every rank calls it with its result. Collective over the world.
void boot_finish(Boot *b);
// boot_abort: a one-sided error: end the whole job with this exit code. Local; does not return
// under MPI.
void boot_abort(Boot *b, int code);

// boot_end: end this process at once with this code, from any thread: nothing is flushed or finalised. Local; does not
// return.
void boot_end(int code);

// boot_signals: from now on SIGUSR1, SIGUSR2, SIGTERM, SIGINT and (unless it was ignored: nohup) SIGHUP
// only raise a flag, and SIGPIPE is ignored: output that nobody reads any more ends no run. The same signal
// once more ends this process at once with 128 + its number, unsaved: 75 would promise a save. Other
// signals may follow the first (Slurm: the early warning, then SIGTERM at the end). Inside a Slurm job
// a second SIGTERM changes nothing: Slurm repeats it before SIGKILL, and a save may still get done.
// boot_signalled: the flag (the first signal's number, 0 if none) of this process. Local.
void boot_signals(void);
int boot_signalled(void);
// boot_signal_name: "SIGUSR1" and so on; "signal" for others. Local.
const char *boot_signal_name(int sig);
// boot_end_time: when the batch job ends as its system says (SLURM_JOB_END_TIME), in seconds since
// 1970; 0 if it does not say. Local.
int64_t boot_end_time(void);
// boot_cores: cores of this node that this process may use (sched_getaffinity). Local.
int boot_cores(void);
// boot_threads: threads of this rank: `asked` if above 0, else OMP_NUM_THREADS, else one for each
// of its own cores (b->cores, at least 1), whether the launcher bound ranks to cores or not. Local.
int boot_threads(const Boot *b, int asked);
// boot_mpi_version: the MPI library this program runs with ("Open MPI v4.1.4"); needs no boot_init.
// Local.
const char *boot_mpi_version(void);
