// xent_cuda.cu - cross-entropy and its gradient on the GPU, one block per row. Contract: xent.h.
//
// A target outside the logits is reported as a fault of the device (device.h); its loss is NaN.
#include "rows_cuda.h"

#include "xent_core.h"

static __global__ void xent_kernel(float *loss, int32_t *correct, Mat dlogits, Mat logits, const int32_t *target,
                                   float scale, DeviceFault *fault) {
    SMEM(float, room, [ROW_THREADS / 32]);
    SMEM(double, wide, [ROW_THREADS / 32]);
    int64_t t = blockIdx.x, V = logits.cols;
    int32_t want = target[t];
    if (want < 0 || want >= V) {
        for (int64_t c = threadIdx.x; dlogits.p && c < V; c += ROW_THREADS) row_store(dlogits, t, c, 0.0f);
        if (threadIdx.x != 0) return;
        loss[t] = want < 0 ? 0.0f : f32_from_bits(0x7FC00000u);
        if (correct) correct[t] = 0;
        if (want >= V) fault_report(fault, FAULT_TARGET, want, t, V);
        return;
    }
    const float *l = (const float *)logits.p + t * logits.ld;
    float most = -INFINITY;
    for (int64_t c = threadIdx.x; c < V; c += ROW_THREADS) most = l[c] > most ? l[c] : most;
    most = block_max(most, room);
    double part = 0.0;
    float earlier = 0.0f; // a largest logit before the target
    for (int64_t c = threadIdx.x; c < V; c += ROW_THREADS) {
        part += (double)exp_f32(l[c] - most);
        if (c < want && l[c] == most) earlier = 1.0f;
    }
    double sum = block_sum(part, wide);
    earlier = block_max(earlier, room);
    float at_target = l[want];
    __syncthreads(); // dlogits may be the memory of logits: everybody has read the target's
    if (threadIdx.x == 0) {
        loss[t] = xent_loss(most, sum, at_target);
        if (correct) correct[t] = at_target == most && earlier == 0.0f;
    }
    if (!dlogits.p) return;
    float inv = (float)((double)scale / sum);
    for (int64_t c = threadIdx.x; c < V; c += ROW_THREADS) {
        float d = xent_grad(l[c], most, inv);
        row_store(dlogits, t, c, c == want ? d - scale : d);
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
    LAUNCH(xent_kernel, dim3((unsigned)T), dim3(ROW_THREADS), 0, STREAM, loss, correct, dlogits, logits, target, scale,
           fault);
    CHECK_LAUNCH("xent_fwd_bwd");
    return OK;
}
