// measure_cuda.h - time on the device, and what it has to be compared with: copies and free memory.
//
// A mark is an event in the stream that all operations of the backend use: two marks around what is measured, read
// later, cost no wait in between. Without the CUDA backend every function is E_PEER. All Local.
#pragma once
#include "fail.h"

enum { MEASURE_MARKS = 512 };

// measure_mark: remember the moment at which all work issued so far has ended; i < MEASURE_MARKS.
Err measure_mark(int i) MUST_CHECK;
// measure_between: *seconds from mark `from` to mark `to`, which it waits for.
Err measure_between(double *seconds, int from, int to) MUST_CHECK;
// measure_copy: copy bytes within the device's memory. Issued to the stream.
Err measure_copy(void *to, const void *from, size_t bytes) MUST_CHECK;
// measure_free: bytes of the device's memory that nobody has.
Err measure_free(size_t *bytes) MUST_CHECK;
// measure_l2: bytes of the device's L2 cache.
Err measure_l2(size_t *bytes) MUST_CHECK;
