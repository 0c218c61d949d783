// cmd_doctor.c - `tessera doctor`: what this machine and its ranks offer, and what to mend.
//
// Under mpirun or srun it also shows how the ranks are spread over nodes, which is the first thing
// to check when a hostfile is new. It changes nothing and ends with 0 whatever it finds.
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "arena.h"
#include "args.h"
#include "boot.h"
#include "commands.h"
#include "config.h"
#include "device.h"
#include "log.h"
#include "machine.h"
#include "ops.h"
#include "versions.h"

#define SHM_PER_RANK                                                                               \
    (16.0 * 1024 * 1024) // bytes; what Open MPI's shared memory transport takes at start, about

static void report_machine(void) {
    char cpu[128];
    machine_field(cpu, sizeof cpu, "/proc/cpuinfo", "model name");
    MachineMemory m = machine_memory();
    log_line("processor   %s", cpu[0] ? cpu : "unknown");
    log_line("cores       %d of %ld may be used here", boot_cores(), sysconf(_SC_NPROCESSORS_ONLN));
    char isas[160];
    ops_isa_list(isas, sizeof isas);
    log_line("backend     %s, instruction set %s (of %s)", ops_cpu()->backend, ops_cpu()->isa,
             isas);
    if (m.group > 0 && m.group < m.total) {
        log_line("memory      %s, %s available; limited to %s by the control group",
                 text_bytes(m.total).s, text_bytes(m.available).s, text_bytes(m.group).s);
    } else {
        log_line("memory      %s, %s available", text_bytes(m.total).s, text_bytes(m.available).s);
    }
}

// The GPU: what is built in, and what is there.
static void report_cuda(void) {
    DeviceInfo d;
    device_cuda_info(&d);
    const char *nccl = boot_nccl_version();
    log_line("NCCL        %s", nccl[0] ? nccl : "not built in (-Dcuda=enabled builds it in where nccl.h is found)");
    if (!d.is_built) {
        log_line("CUDA        not built in (-Dcuda=enabled builds it in)");
        return;
    }
    int runtime = d.runtime / 1000, minor = d.runtime % 1000 / 10;
    if (d.count == 0) {
        log_line("CUDA        %d.%d built in; no device can be used here: %s", runtime, minor, d.why);
        return;
    }
    log_line("CUDA        %d.%d built in, driver for %d.%d; %d device%s: %s, compute capability %d.%d, %d SMs, %s",
             runtime, minor, d.driver / 1000, d.driver % 1000 / 10, d.count, d.count == 1 ? "" : "s", d.name, d.major,
             d.minor, d.multiprocessors, text_bytes((double)d.memory).s);
}

static void report_libraries(void) {
    char data[256];
    data_versions(data, sizeof data);
    log_line("libraries   %s, libyaml %s", data, config_yaml_version());
}

// How many ranks run on which node, by one all-gather of the host names. Collective over the world.
static Err report_ranks(Boot *b) {
    log_line("MPI         %s; %s", boot_mpi_version(),
             b->is_mpi ? "started by a launcher"
                       : "not started by a launcher: one rank, MPI stays unused");
    char *hosts = NULL;
    Err err = OK;
    TRY_OR(mem_alloc((void **)&hosts, (size_t)b->nranks * sizeof b->host, "host names"), done);
    TRY_OR(b->world->all_gather(b->world, hosts, b->host, sizeof b->host), done);
    for (int r = 0; r < b->nranks; r++) {
        const char *host = hosts + (size_t)r * sizeof b->host;
        int nhere = 0;
        bool is_first = true;
        for (int q = 0; q < b->nranks; q++) {
            bool is_same = !strncmp(host, hosts + (size_t)q * sizeof b->host, sizeof b->host);
            nhere += is_same;
            is_first = is_first && !(is_same && q < r);
        }
        if (is_first) {
            log_line("node        %.*s: %d rank%s", (int)sizeof b->host, host, nhere,
                     nhere == 1 ? "" : "s");
        }
    }
done:
    mem_free(hosts);
    return err;
}

// What stands in the way of a run, in words that say what to do. Returns how many there are.
static int verdict(const Boot *b) {
    int nwarnings = 0;
    struct statvfs shm;
    if (statvfs("/dev/shm", &shm) == 0) {
        double bytes = (double)shm.f_bavail * (double)shm.f_frsize;
        log_line("/dev/shm    %s free", text_bytes(bytes).s);
        if (bytes < SHM_PER_RANK * b->local_nranks) {
            log_warn("/dev/shm is small for %d ranks on this node: enlarge it (docker run "
                     "--shm-size=1g), or remove "
                     "/dev/shm/vader_segment.* that killed runs left",
                     b->local_nranks);
            nwarnings++;
        }
    } else {
        log_warn("/dev/shm is missing: ranks on one node will talk over slower ways");
        nwarnings++;
    }
    if (b->cores < 1.0) {
        log_warn("%d ranks on this node, a rank has %.2g of a core: correct, but slow",
                 b->local_nranks, b->cores);
        nwarnings++;
    }
    if (!strcmp(ops_cpu()->isa, "portable")) {
        log_warn("neither AVX-512 nor AVX2 here: the portable code is many times slower");
        nwarnings++;
    }
    if (geteuid() == 0 && !b->is_mpi) {
        log_line("note        as root, mpirun wants OMPI_ALLOW_RUN_AS_ROOT=1 and "
                 "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; '. launch/mpi_env' sets them");
    }
    return nwarnings;
}

Err cmd_doctor(int argc, char **argv) {
    static const Command command = {
        "tessera doctor",
        "",
        "Describes this machine, the ranks (under mpirun or srun) and the libraries, and says what "
        "to mend.",
        NULL,
        0,
        0,
        0,
    };
    Args a;
    TRY(args_parse(&a, &command, argc, argv));
    if (a.is_help) return OK;
    args_free(&a);
    Boot b = {0};
    TRY(boot_init(&b));
    log_init(b.rank, b.nranks);
    log_line("%s", version_line());
    report_machine();
    report_cuda();
    report_libraries();
    Err err = report_ranks(&b);
    if (err == OK) {
        int nwarnings = verdict(&b);
        if (nwarnings == 0) log_line("verdict     ready to train");
        if (nwarnings > 0)
            log_line("verdict     %d warning%s above", nwarnings, nwarnings == 1 ? "" : "s");
    }
    boot_finish(&b);
    return err;
}
