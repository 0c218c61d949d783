// probe.h - what the probes of the first minutes on a GPU share: memory on both sides, notes, and a program that runs
// them one by one. Included by probe_*.cu, which nvcc makes a program of and g++ a part of test_probe_*.c.
#pragma once
#include <stdarg.h>
#if defined(__CUDACC__)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "cuda_launch.h"
#include "fp8.h"

static char note[400]; // what a probe has to say

static bool fails(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(note, sizeof note, format, args);
    va_end(args);
    return false;
}
#define NEED(call)                                                                                                   \
    do {                                                                                                             \
        cudaError_t error_ = (call);                                                                                 \
        if (error_ != cudaSuccess) return fails("%s: %s", #call, cudaGetErrorString(error_));                        \
    } while (0)

// Memory on both sides. A copy, which a launch under the fibers makes of what its arguments name, does not own it.
template <class T> struct Both {
    T *host, *device;
    size_t n;
    bool is_owner = true;
    explicit Both(size_t count) : host((T *)calloc(count, sizeof(T))), device(nullptr), n(count) {
        if (cudaMalloc((void **)&device, count * sizeof(T)) != cudaSuccess) device = nullptr;
    }
    ~Both() {
        if (!is_owner) return;
        free(host);
        cudaFree(device);
    }
    Both(const Both &b) : host(b.host), device(b.device), n(b.n), is_owner(false) {}
    bool copy(void *to, const void *from, enum cudaMemcpyKind kind) {
        static cudaStream_t stream; // of this process: the default one is not for copies
        if (!stream && cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) return false;
        return cudaMemcpyAsync(to, from, n * sizeof(T), kind, stream) == cudaSuccess &&
               cudaStreamSynchronize(stream) == cudaSuccess;
    }
    bool up() {
        return copy(device, host, cudaMemcpyHostToDevice);
    }
    bool down() {
        return cudaDeviceSynchronize() == cudaSuccess && cudaPeekAtLastError() == cudaSuccess &&
               copy(host, device, cudaMemcpyDeviceToHost);
    }
};
#define DOWN(x)                                                                                                      \
    if (!(x).down()) return fails("the kernel failed: %s", cudaGetErrorString(cudaPeekAtLastError()))

static uint32_t word_state = 1;
static inline int small_random(int n) {
    word_state = word_state * 1664525u + 1013904223u;
    return (int)((word_state >> 16) % (uint32_t)n);
}

typedef struct Probe {
    const char *name;
    bool (*run)();
} Probe;

// PROBES(function): function(i, &name, &note) runs the i-th of `probes`. 1: passed, 0: failed, -1: there is none. Under
// nvcc also the program: each probe in a process of its own, as a trap in one must leave the others a sound context.
#define PROBES(function)                                                                                             \
    extern "C" int function(int i, const char **name, const char **text) {                                          \
        if (i < 0 || i >= (int)(sizeof probes / sizeof probes[0])) return -1;                                        \
        note[0] = '\0';                                                                                              \
        *name = probes[i].name;                                                                                      \
        *text = note;                                                                                                \
        return probes[i].run();                                                                                      \
    }                                                                                                                \
    PROBES_MAIN(function)
#if defined(__CUDACC__)
#define PROBES_MAIN(function)                                                                                        \
    int main() {                                                                                                     \
        return probes_main(function);                                                                                \
    }
static int probes_main(int (*probe)(int, const char **, const char **)) {
    int failed = 0, n = 0;
    for (bool is_last = false; !is_last; n++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            const char *name, *text;
            alarm(30);
            int ok = probe(n, &name, &text);
            if (ok < 0) _exit(2);
            printf("%s %s%s%s\n", ok ? "PASS" : "FAIL", name, text[0] ? ": " : "", text);
            fflush(stdout);
            _exit(ok ? 0 : 1);
        }
        int status = 0;
        if (child < 0 || waitpid(child, &status, 0) < 0) return 1;
        if (!WIFEXITED(status)) printf("FAIL probe %d: ended by signal %d\n", n, WTERMSIG(status));
        is_last = WIFEXITED(status) && WEXITSTATUS(status) == 2;
        failed += !is_last && (!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    }
    printf("%d probes failed\n", failed);
    return failed ? 1 : 0;
}
#else
#define PROBES_MAIN(function)
#endif
