// on_device.c - what the cuda-on-cpu tests ask of the fibers, for the same tests on a real device: there is nothing to
// choose, and nothing to count.
#include "on_cpu.h"

void tc_multiprocessors(int n);
void tc_finish(void);
void tc_sum_bits(int bits);

void simt_schedule(int order, uint64_t seed) {
    (void)order, (void)seed;
}
void tc_multiprocessors(int n) {
    (void)n;
}
void runtime_on_cpu_shared(size_t bytes) {
    (void)bytes;
}
void tc_finish(void) {}
void tc_sum_bits(int bits) {
    (void)bits;
}
