// attn_cuda_mma.cu - starts the attention kernels on the tensor cores. Contract: attn.h, attn_cuda.h.
//
// A call runs with the smallest of four sizes of tiles that holds its heads; columns beyond them are zeros in shared
// memory.
#include "attn_cuda_bwd.h"
#include "attn_cuda_fwd.h"

static int chosen = -1;

extern "C" void attn_mma_choose(int which) {
    chosen = which;
}

static bool is_regular(Mat m) {
    return !m.p || (m.t == DT_BF16 && (uintptr_t)m.p % 16 == 0 && (m.ld % 8 == 0 || m.rows <= 1));
}
bool attn_mma_takes(const AttnCall *c) {
    if (chosen < 0) {
        int major = device_major();
        chosen = major < 8 ? 0 : is_hopper(major) ? 2 : 1;
    }
    AttnShape a = c->a;
    bool is_size = a.Dn % 8 == 0 && a.Dr % 8 == 0 && a.Dv % 8 == 0 && a.Dn + a.Dr <= 192 && a.Dv <= 128;
    bool is_grid = a.nseq * a.S < ((int64_t)1 << 31) - 64 && a.H <= 65535 && a.nseq <= 65535;
    return chosen > 0 && is_size && is_grid && is_regular(c->q) && is_regular(c->kv) && is_regular(c->kr) &&
           is_regular(c->o) && is_regular(c->dout) && is_regular(c->dq) && is_regular(c->dkv);
}

// More shared memory than 48 KB has to be asked for, once per kernel.
#define START(kernel, grid, bytes, ...)                                                            \
    do {                                                                                           \
        static bool is_ready;                                                                      \
        if (!is_ready)                                                                             \
            TRY_CUDA(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)); \
        is_ready = true;                                                                           \
        LAUNCH((kernel), grid, dim3(attn::THREADS), (size_t)(bytes), STREAM, __VA_ARGS__);         \
    } while (0)
// BY_SIZE(f, ...): f<DK, DV> for the heads of c.
#define BY_SIZE(f, ...)                                                                            \
    (c.a.Dn + c.a.Dr <= 64 && c.a.Dv <= 64    ? f<64, 64>(__VA_ARGS__)                             \
     : c.a.Dn + c.a.Dr <= 128 && c.a.Dv <= 64 ? f<128, 64>(__VA_ARGS__)                            \
     : c.a.Dn + c.a.Dr <= 128                 ? f<128, 128>(__VA_ARGS__)                           \
                                              : f<192, 128>(__VA_ARGS__))

template <int DK, int DV> static Err start_fwd(AttnCall c) {
    dim3 grid((unsigned)ceil_div(c.a.S, attn::ROWS), (unsigned)c.a.H, (unsigned)c.a.nseq);
    START((attn::attn_fwd_mma<DK, DV>), grid, (attn::Forward<DK, DV>::BYTES), c);
    CHECK_LAUNCH("attn_fwd");
    return OK;
}
Err attn_mma_fwd(AttnCall c) {
    if (chosen == 2 && attn_sm90_takes(&c)) return attn_sm90_fwd(c);
    return BY_SIZE(start_fwd, c);
}

template <int DK, int DV> static Err start_dq(AttnCall c) {
    dim3 grid((unsigned)ceil_div(c.a.S, attn::ROWS), (unsigned)c.a.H, (unsigned)c.a.nseq);
    START((attn::attn_dq_mma<DK, DV>), grid, (attn::QueryGradient<DK, DV>::BYTES), c);
    return OK;
}
template <int DK, int DV>
static Err start_dkv(AttnCall c, const attn::Span *span, float *part, int64_t s0, int64_t n) {
    dim3 grid((unsigned)ceil_div(c.a.S, attn::ROWS), (unsigned)c.a.H, (unsigned)n);
    START((attn::attn_dkv_mma<DK, DV>), grid, (attn::KeyGradient<DK, DV>::BYTES), c, span, part, (int)s0);
    return OK;
}
Err attn_mma_bwd(OpCx *cx, AttnCall c) {
    AttnShape a = c.a;
    int64_t blocks = ceil_div(a.S, attn::PASSING), most = ceil_div(a.S, attn::ROWS) * a.H;
    // As many sequences at a time as fill the device some times over, so that the heads' parts stay small.
    int64_t round = max_i64(1, min_i64(a.nseq, ceil_div(4096, most)));
    attn::Span *span = NULL;
    float *part = NULL;
    TRY(BY_SIZE(start_dq, c));
    if (c.doc_start) {
        ARENA_NEW(cx->scratch, span, a.nseq * blocks);
        LAUNCH(attn::attn_spans, dim3((unsigned)blocks, (unsigned)a.nseq), dim3(32), 0, STREAM, c, span);
    }
    if (a.Dr) ARENA_NEW(cx->scratch, part, round * a.H * a.S * a.Dr);
    for (int64_t s0 = 0; s0 < a.nseq; s0 += round) {
        int64_t n = min_i64(round, a.nseq - s0);
        TRY(BY_SIZE(start_dkv, c, span, part, s0, n));
        if (a.Dr) LAUNCH(attn::attn_sum_heads, blocks_for(n * a.S * a.Dr, 256), dim3(256), 0, STREAM, c, part, s0, n);
    }
    CHECK_LAUNCH("attn_bwd");
    return OK;
}
