// streams_on_cpu.h - streams and events of the CUDA runtime on the CPU, asynchronous as far as the tests need it.
//
// Work on a stream with nothing pending runs at once, in the thread that issues it, so programs without messages
// between ranks are as if streams did not exist. A task that takes time (a message of nccl_on_cpu.cpp) is done by a
// worker thread, the device; what is issued behind it on its stream, or behind an event that waits for it, is done by
// the worker too, in order. The worker goes on whatever the host does, as a device would.
//
// Each stream knows how much of every other stream it is ordered behind (events carry that), so that a message whose
// memory is not protected by an event is found even if it happens to come out right.
#pragma once
#include <cuda_runtime_api.h>
#include <functional>
#include <stdint.h>

namespace streams {

// Task: work that the worker does piece by piece; advance returns true when it is done. Called with the lock held.
struct Task {
    virtual bool advance() = 0;
    virtual ~Task() {}
};

// run: do f now if nothing is pending on the stream, else leave it to the worker.
void run(cudaStream_t s, const std::function<void()> &f);
// add: a task of the worker's; the stream owns it.
void add(cudaStream_t s, Task *t);
// is_behind: is the stream ordered behind everything that was issued on the first stream of the process (the
// device's) so far?
bool is_behind(cudaStream_t s);
// finish_all: wait until nothing is pending on any stream.
void finish_all();
// has_pending: is anything?
bool has_pending();
// Lock: excludes the worker. Tasks and `run` hold it.
struct Lock {
    Lock();
    ~Lock();
};
// blocking_calls: calls so far in which the host waited for the device, however short.
extern uint64_t blocking_calls;

} // namespace streams

// runtime_alias: where the runtime itself reaches memory of the device; NULL if [p, p + bytes) is not in one block.
char *runtime_alias(const void *p, size_t bytes);
