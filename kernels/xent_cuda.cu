// xent_cuda.cu - cross-entropy and its gradient on the GPU, one block per row. Contract: xent.h.
//
// A target outside the logits is reported as a fault of the device (device.h); its loss is NaN.
#include "rows_cuda.h"

#include "xent_core.h"

#define XENT_THREADS 512

// The largest of what a thread has seen and the sum of exp(l - largest): logits come in any order, the sum is rescaled
// when a larger one comes.
typedef struct Online {
    float most;
    double sum;
} Online;
DEV void online_add(Online *o, const float *l, int n) {
    float most = o->most;
    UNROLL
    for (int i = 0; i < 16; i++)
        if (i < n) most = l[i] > most ? l[i] : most;
    if (most > o->most) {
        o->sum *= (double)exp_f32(o->most - most); // 0 at the start, where the largest is -infinity
        o->most = most;
    }
    UNROLL
    for (int i = 0; i < 16; i++) // -infinity where there is nothing larger yet adds nothing; NaN makes the sum NaN
        if (i < n && !(l[i] == -INFINITY)) o->sum += (double)exp_f32(l[i] - most);
}

// The row is read once for largest and sum, once more, partly from the cache, for its gradient.
static __global__ void __launch_bounds__(XENT_THREADS)
    xent_kernel(float *loss, int32_t *correct, Mat dlogits, Mat logits, const int32_t *target, float scale,
                DeviceFault *fault) {
    SMEM(float, room, [XENT_THREADS / 32]);
    SMEM(double, wide, [XENT_THREADS / 32]);
    const int64_t t = blockIdx.x, V = logits.cols, step = XENT_THREADS * 16;
    int32_t want = target[t];
    bool is_there = want >= 0 && want < V;
    if (!is_there) {
        float none[16] = {};
        for (int64_t c = threadIdx.x * 16; dlogits.p && c < V; c += step)
            put16(dlogits, t, c, (int)(V - c < 16 ? V - c : 16), none);
        if (threadIdx.x != 0) return;
        loss[t] = want < 0 ? 0.0f : f32_from_bits(0x7FC00000u);
        if (correct) correct[t] = 0;
        if (want >= V) fault_report(fault, FAULT_TARGET, want, t, V);
        return;
    }
    float at_target = ((const float *)logits.p)[t * logits.ld + want], earlier = 0.0f, l[16];
    Online o = {-INFINITY, 0.0};
    for (int64_t c = threadIdx.x * 16; c < V; c += step) {
        int n = (int)(V - c < 16 ? V - c : 16);
        rows16(l, logits, t, c, n);
        online_add(&o, l, n);
        UNROLL
        for (int i = 0; i < 16; i++)
            if (c + i < want && l[i] == at_target) earlier = 1.0f;
    }
    float most = block_max(o.most, room);
    earlier = block_max(earlier, room);
    // Barriers are behind: everybody has read the target's logit, whose place may soon hold its gradient.
    double part = o.most > -INFINITY ? o.sum * (double)exp_f32(o.most - most) : o.sum;
    double sum = block_sum(part, wide);
    if (!(most > -INFINITY)) sum = NAN; // all are -infinity or NaN
    if (threadIdx.x == 0) {
        loss[t] = xent_loss(most, sum, at_target);
        if (correct) correct[t] = at_target == most && earlier == 0.0f;
    }
    if (!dlogits.p) return;
    float inv = (float)((double)scale / sum);
    for (int64_t c = threadIdx.x * 16; c < V; c += step) {
        int n = (int)(V - c < 16 ? V - c : 16);
        rows16(l, logits, t, c, n);
        UNROLL
        for (int i = 0; i < 16; i++) {
            l[i] = xent_grad(l[i], most, inv);
            if (c + i == want) l[i] -= scale;
        }
        put16(dlogits, t, c, n, l);
    }
}

extern "C" Err xent_fwd_bwd_cuda(OpCx *cx, float *loss, int32_t *correct, Mat dlogits, Mat logits,
                                 const int32_t *target, float scale) {
    (void)cx;
    int64_t T = logits.rows, V = logits.cols;
    CUDA_MAT(logits, T, V);
    CHECK(logits.t == DT_F32, E_INTERNAL, "xent: logits are %s, not f32", dtype_name(logits.t));
    if (dlogits.p) {
        CUDA_MAT(dlogits, T, V);
        CHECK(dlogits.p != logits.p || (dlogits.t == DT_F32 && dlogits.ld == logits.ld), E_INTERNAL,
              "xent: dlogits shares the memory of logits in another layout");
    }
    if (T == 0) return OK;
    DeviceFault *fault = device_cuda_fault();
    LAUNCH(xent_kernel, dim3((unsigned)T), dim3(XENT_THREADS), 0, STREAM, loss, correct, dlogits, logits, target, scale,
           fault);
    CHECK_LAUNCH("xent_fwd_bwd");
    return OK;
}
