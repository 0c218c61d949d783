// gemm_permit.c - may this process use the tile registers of AMX?
//
// Three must agree: the processor (CPUID), the kernel, which has to save 8 KiB more per thread
// (XGETBV), and the permission that a process asks for once (arch_prctl), all of its threads
// included.
#include "gemm_engine.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    REQ_XCOMP_PERM = 0x1023, // ARCH_REQ_XCOMP_PERM, Linux 5.16
    XTILE_DATA = 18,         // the state component
    XTILE_STATE = 3 << 17,   // both components of the tile state in XCR0
};

static bool ask(void) {
    unsigned a = 0, b = 0, c = 0, d = 0, high = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    bool has_vbmi = c & 1u << 1, has_bf16 = d & 1u << 22, has_tile = d & 1u << 24;
    if (!has_vbmi || !has_bf16 || !has_tile) return false;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(high) : "c"(0));
    if ((a & XTILE_STATE) != XTILE_STATE) return false;
    return syscall(SYS_arch_prctl, REQ_XCOMP_PERM, XTILE_DATA) == 0;
}

bool gemm_amx_permit(void) {
    static int answer = -1;
    if (answer < 0) answer = gemm_amx_is_built() && ask();
    return answer;
}
#else
bool gemm_amx_permit(void) {
    return false;
}
#endif
