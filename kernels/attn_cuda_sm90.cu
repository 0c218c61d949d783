// attn_cuda_sm90.cu - starts Hopper's attention forward: tensor maps and launch. Contract: attn.h, attn_cuda.h.
#include "attn_cuda_fwd_sm90.h"
#include "tma_cuda.h"

bool attn_sm90_takes(const AttnCall *c) {
    AttnShape a = c->a;
    return a.Dn % 64 == 0 && a.Dr % 64 == 0 && (a.Dn + a.Dr == 192 || a.Dn + a.Dr == 128) && a.Dn > 0 && a.Dv == 128;
}

// Rows of a sequence lie S apart from those of the next, so that boxes end where a sequence ends.
static Err map_rows(TMap *map, Mat m, AttnShape a, int rows) {
    Stack s = {m.p, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, m.cols, a.S, a.nseq, m.ld, a.S * m.ld};
    return map_stack(map, s, 128, rows);
}

template <int DK> static Err start(AttnCall c) {
    TMap q = {}, kv = {}, kr = {};
    TRY(map_rows(&q, c.q, c.a, attn::QUERIES_90));
    TRY(map_rows(&kv, c.kv, c.a, attn::KEYS_90));
    if (c.a.Dr) TRY(map_rows(&kr, c.kr, c.a, attn::KEYS_90));
    typedef attn::Smem90<DK> S;
    static_assert(sizeof(S) <= 232448, "what a block of Hopper may have");
    static bool is_ready;
    if (!is_ready)
        TRY_CUDA(cudaFuncSetAttribute((const void *)attn::attn_fwd_sm90<DK>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(S)));
    is_ready = true;
    dim3 grid((unsigned)ceil_div(c.a.S, attn::QUERIES_90), (unsigned)c.a.H, (unsigned)c.a.nseq);
    LAUNCH((attn::attn_fwd_sm90<DK>), grid, dim3(384), sizeof(S), STREAM, q, kv, kr, c);
    CHECK_LAUNCH("attn_fwd");
    return OK;
}
Err attn_sm90_fwd(AttnCall c) {
    return c.a.Dn + c.a.Dr == 192 ? start<192>(c) : start<128>(c);
}
