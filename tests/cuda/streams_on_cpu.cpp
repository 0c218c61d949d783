// streams_on_cpu.cpp - see streams_on_cpu.h.
#include "streams_on_cpu.h"

#include <deque>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace streams {

uint64_t blocking_calls;

namespace {

struct Stream {
    size_t number;
    uint64_t issued = 0;        // pieces of work so far
    std::vector<uint64_t> seen; // of the streams, by number: pieces of work that this one is ordered behind
    std::deque<Task *> queue;
};
double now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
struct Event {
    uint64_t recorded = 0, done = 0; // how often, and how many of these have come
    double seconds = 0.0;            // when the last of these came
    std::vector<uint64_t> seen;
    bool is_there() const {
        return done == recorded;
    }
};

// Never destroyed: the worker may outlive main. Made when first asked for: constructors of C open the device before
// those of this file have run.
std::recursive_mutex &the_lock() {
    static std::recursive_mutex &made = *new std::recursive_mutex;
    return made;
}
std::vector<Stream *> &all_streams() {
    static std::vector<Stream *> &made = *new std::vector<Stream *>;
    return made;
}
bool is_started;

void merge(std::vector<uint64_t> &to, const std::vector<uint64_t> &from) {
    if (to.size() < from.size()) to.resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        if (to[i] < from[i]) to[i] = from[i];
}

// The device. It ends with the process.
void work() {
    for (;;) {
        bool has_moved = false;
        {
            std::lock_guard<std::recursive_mutex> hold(the_lock());
            for (size_t i = 0; i < all_streams().size(); i++) {
                if (all_streams()[i]->queue.empty()) continue;
                Task *t = all_streams()[i]->queue.front();
                if (!t->advance()) continue;
                all_streams()[i]->queue.pop_front();
                delete t;
                has_moved = true;
            }
        }
        if (!has_moved) usleep(50);
    }
}

Stream *of(cudaStream_t s) {
    if (!s) {
        fprintf(stderr, "streams: work on the default stream, which waits for everything\n");
        abort();
    }
    return (Stream *)s;
}

void push(Stream *s, Task *t) {
    if (!is_started) {
        is_started = true;
        std::thread(work).detach();
    }
    s->queue.push_back(t);
}

struct Call : Task {
    std::function<void()> f;
    bool advance() override {
        f();
        return true;
    }
};
struct Record : Task {
    Event *e;
    bool advance() override {
        e->done++;
        e->seconds = now();
        return true;
    }
};
struct Wait : Task {
    Event *e;
    uint64_t until; // the record it stands for: later ones are none of its business
    bool advance() override {
        return e->done >= until;
    }
};

void wait_until(const std::function<bool()> &is_over) {
    for (;;) {
        {
            std::lock_guard<std::recursive_mutex> hold(the_lock());
            if (is_over()) return;
        }
        usleep(20);
    }
}

} // namespace

Lock::Lock() {
    the_lock().lock();
}
Lock::~Lock() {
    the_lock().unlock();
}

void run(cudaStream_t stream, const std::function<void()> &f) {
    Lock hold;
    Stream *s = of(stream);
    s->issued++;
    if (s->queue.empty()) {
        f();
        return;
    }
    Call *c = new Call;
    c->f = f;
    push(s, c);
}

void add(cudaStream_t stream, Task *t) {
    Lock hold;
    Stream *s = of(stream);
    s->issued++;
    push(s, t);
}

bool is_behind(cudaStream_t stream) {
    Lock hold;
    Stream *s = of(stream);
    if (s->number == 0) return true;
    return !s->seen.empty() && s->seen[0] >= all_streams()[0]->issued;
}

bool has_pending() {
    Lock hold;
    for (Stream *s : all_streams())
        if (!s->queue.empty()) return true;
    return false;
}

void finish_all() {
    wait_until([] { return !has_pending(); });
}

} // namespace streams

using namespace streams;

extern "C" {
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    Lock hold;
    Stream *n = new Stream;
    n->number = all_streams().size();
    all_streams().push_back(n);
    *s = (cudaStream_t)n;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    wait_until([=] { return of(s)->queue.empty(); });
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    blocking_calls++;
    wait_until([=] { return of(s)->queue.empty(); });
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t s) {
    Lock hold;
    return of(s)->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Lock hold;
    Stream *s = of(stream);
    Event *e = (Event *)event;
    merge(s->seen, e->seen);
    if (e->is_there()) return cudaSuccess;
    Wait *w = new Wait;
    w->e = e;
    w->until = e->recorded;
    push(s, w);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = (cudaEvent_t) new Event;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    (void)e; // a stream may still wait for it
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Lock hold;
    Stream *s = of(stream);
    Event *e = (Event *)event;
    e->seen = s->seen;
    if (e->seen.size() <= s->number) e->seen.resize(s->number + 1);
    e->seen[s->number] = s->issued;
    e->recorded++;
    if (s->queue.empty()) {
        e->done++;
        e->seconds = now();
        return cudaSuccess;
    }
    Record *r = new Record;
    r->e = e;
    push(s, r);
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    Lock hold;
    *ms = (float)((((Event *)to)->seconds - ((Event *)from)->seconds) * 1e3);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e) {
    Lock hold;
    return ((Event *)e)->is_there() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    blocking_calls++;
    wait_until([=] { return ((Event *)e)->is_there(); });
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    blocking_calls++;
    finish_all();
    return cudaSuccess;
}
}
