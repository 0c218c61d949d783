// comm_nccl.h - groups of ranks whose GPUs exchange memory directly. Included in parallel/ only, like mpi_try.h.
//
// comm_nccl.c is there where NCCL is (meson.build); comm_nccl_absent.c stands in its place elsewhere.
#pragma once
#include "comm.h"

// comm_nccl_attach: c->on_device for a group of several ranks, each with an open CUDA device of its own. A rank that
// does not answer for limit_s seconds, when a message is made or while the host waits for one, ends all groups' work
// with E_PEER. Collective over c, under MPI. Errors: E_PEER.
Err comm_nccl_attach(Comm *c, double limit_s) MUST_CHECK;
// comm_nccl_version: of the library this program runs with, as 10000 * major + 100 * minor + patch; 0: not built in.
// Local.
int comm_nccl_version(void);
