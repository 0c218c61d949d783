// measure_absent.c - measure_cuda.h in a program that was built without CUDA.
#include "measure_cuda.h"

#define ABSENT FAIL(E_PEER, "this program was built without CUDA (-Dcuda=enabled builds it in)")

Err measure_mark(int i) {
    (void)i;
    ABSENT;
}
Err measure_between(double *seconds, int from, int to) {
    (void)seconds, (void)from, (void)to;
    ABSENT;
}
Err measure_copy(void *to, const void *from, size_t bytes) {
    (void)to, (void)from, (void)bytes;
    ABSENT;
}
Err measure_free(size_t *bytes) {
    (void)bytes;
    ABSENT;
}
Err measure_l2(size_t *bytes) {
    (void)bytes;
    ABSENT;
}
