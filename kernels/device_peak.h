// device_peak.h - what a device reaches at best with matrix products, measured with the backend's own operations.
#pragma once
#include "backend.h"
#include "gemm.h"

typedef struct DevicePeak {
    double flops; // operations per second of y = a b^T, the fastest of its runs
    int64_t n;    // rows and columns of a and b
} DevicePeak;

// device_peak: dense products [n,n] [n,n]^T of random numbers of type t (BF16 or FP32), as gemm_nt computes them there
// (cuBLASLt on a GPU). n doubles from 128 until a product takes a millisecond, up to 8192; memory for it is taken and
// given back. Takes some 0.2 s on a GPU. Errors: E_PEER without a device. Local.
Err device_peak(DevicePeak *out, const Backend *on, DType t) MUST_CHECK;
