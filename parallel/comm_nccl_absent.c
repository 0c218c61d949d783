// comm_nccl_absent.c - groups with memory of GPUs in a program that was built without NCCL.
#include "comm_nccl.h"

Err comm_nccl_attach(Comm *c, double limit_s) {
    (void)limit_s;
    FAIL(E_PEER, "comm %s: this program was built without NCCL", c->name);
}

int comm_nccl_version(void) {
    return 0;
}
