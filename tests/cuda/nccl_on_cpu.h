// nccl_on_cpu.h - what tests ask of the NCCL on the CPU (nccl_on_cpu.cpp) beside its own functions.
#pragma once
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

// nccl_on_cpu_mistakes: how often this process has used NCCL wrongly so far: sizes that differ, messages that nobody
// fetched, memory that is not the device's, work that is not ordered behind the device's stream, several communicators
// without an order. Each is also an error
// of the communicator, or ends the program.
int64_t nccl_on_cpu_mistakes(void);
// nccl_on_cpu_late: from now on every operation begins up to so many microseconds after it could.
void nccl_on_cpu_late(int microseconds);
// nccl_on_cpu_fail: the operation that this process begins after so many more finds an error, as with a link that
// breaks; or, silently, stands still for ever, as with one that only stops.
void nccl_on_cpu_fail(int64_t after, int is_silent);
// nccl_on_cpu_is_blind: true: a lost partner is not noticed, and messages for it stand still; false, the default: it is
// an error of the communicator, as with partners across the network.
void nccl_on_cpu_is_blind(int is_blind);
// nccl_on_cpu_refuse: true: this process never gets through the making of a communicator.
void nccl_on_cpu_refuse(int is_refusing);
// nccl_on_cpu_version: what ncclGetVersion says; 0: what it said at the start.
void nccl_on_cpu_version(int code);
// nccl_on_cpu_operations: groups of sends and receives, and collectives, issued so far by this process.
int64_t nccl_on_cpu_operations(void);

#ifdef __cplusplus
}
#endif
