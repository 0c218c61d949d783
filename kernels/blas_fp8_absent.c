// blas_fp8_absent.c - blas_cuda_fp8.h where the library is not there: it offers no product.
#include "blas_cuda_fp8.h"

size_t blas_fp8_workspace_bytes(void) {
    return 1;
}
int64_t blas_fp8_scales(int64_t rows, int64_t k, bool is_block) {
    return is_block ? ceil_div(rows, TILE) * ceil_div(k, TILE) : rows * ceil_div(k, TILE);
}
Err blas_fp8_open(BlasFp8 *p, bool *is_there) {
    p->plan = NULL;
    *is_there = false;
    return OK;
}
void blas_fp8_close(BlasFp8 *p) {
    (void)p;
}
Err blas_fp8_run(BlasFp8 *p) {
    (void)p;
    FAIL(E_PEER, "cuBLASLt is not built in");
}
