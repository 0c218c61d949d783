// on_cpu.h - what the cuda-on-cpu tests share: thread orders, and matrices with random values.
//
// Every kernel is run under FOR_SCHEDULES: the four thread orders of simt.h, the random ones with several seeds.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fp8.h"
#include "must.h"
#include "ops.h"
#include "rng.h"

void simt_schedule(int order, uint64_t seed);
uint64_t simt_launches(void);
void runtime_on_cpu_devices(int n);
void runtime_on_cpu_shared(size_t bytes);

// On a device (ON_DEVICE, on_device.c) threads run as they will: everything twice, with the same bits.
#ifdef ON_DEVICE
enum { SCHEDULES = 2 };
#else
enum { SCHEDULES = 8 };
#endif
// schedule_at: the i-th of SCHEDULES: forward, reverse, then shuffled and starved with three seeds each.
static inline void schedule_at(int i) {
    if (i < 2)
        simt_schedule(i, 0);
    else
        simt_schedule(2 + i % 2, (uint64_t)i);
}
#define FOR_SCHEDULES(i) for (int i = 0; i < SCHEDULES && (schedule_at(i), 1); i++)
