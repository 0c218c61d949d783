// mpi_try.h - private to the MPI backend: how a failing MPI call becomes an Err, and the
// constructor that boot uses.
#pragma once
#include <mpi.h>

#include "comm.h"

// mpi_fail: E_PEER with MPI's own words. `call` is the text of the call; its name is kept. Local.
Err mpi_fail(int rc, const char *call, const char *file, int line);

#define TRY_MPI(call)                                                                              \
    do {                                                                                           \
        int mpi_rc_ = (call);                                                                      \
        if (mpi_rc_ != MPI_SUCCESS) return mpi_fail(mpi_rc_, #call, __FILE__, __LINE__);           \
    } while (0)

// comm_mpi: the ranks of `group`, which this Comm then owns (freed with it; on failure too). Local.
Err comm_mpi(Comm **out, const char *name, MPI_Comm group, int world_rank) MUST_CHECK;
