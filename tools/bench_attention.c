// bench_attention.c - how fast causal attention is here, forward and backward.
//
// Operations are those of the products alone, half of the square counted: forward scores and sums
// of values, backward the scores again and four gradients.
#include "attn.h"
#include "bench.h"
#include "gemm_engine.h"
#include "log.h"

typedef struct AttnCase {
    AttnShape a;
    bool is_bwd;
    OpCx cx;
    Mat q, kv, kr, o, dout, dq, dkv, dkr;
    float *lse;
} AttnCase;

static Err run_attention(void *user) {
    AttnCase *c = user;
    if (c->is_bwd)
        return attn_bwd_cpu(&c->cx, c->dq, c->dkv, c->dkr, c->dout, c->o, c->lse, c->q, c->kv,
                            c->kr, c->a, NULL);
    return attn_fwd_cpu(&c->cx, c->o, c->lse, c->q, c->kv, c->kr, c->a, NULL);
}

static Err make_case(Bench *b, AttnCase *c) {
    AttnShape a = c->a;
    int64_t T = a.nseq * a.S, Dq = a.H * (a.Dn + a.Dr), Dkv = a.H * (a.Dn + a.Dv), Do = a.H * a.Dv;
    struct {
        Mat *m;
        int64_t cols;
    } all[] = {{&c->q, Dq},    {&c->kv, Dkv}, {&c->kr, a.Dr}, {&c->o, Do},
               {&c->dout, Do}, {&c->dq, Dq},  {&c->dkv, Dkv}, {&c->dkr, a.Dr}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        TRY(arena_mat(b->arena, all[i].m, DT_BF16, T, all[i].cols, "bench attention"));
        bench_fill(*all[i].m);
    }
    ARENA_NEW(b->arena, c->lse, a.H * T);
    TRY(attn_fwd_cpu(&c->cx, c->o, c->lse, c->q, c->kv, c->kr, a, NULL)); // what backward reads
    return OK;
}

static Err measure(Bench *b, const char *name, AttnShape a, bool is_bwd) {
    a.scale = 0.1f;
    AttnCase c = {.a = a, .is_bwd = is_bwd, .cx = {b->scratch, b->threads}};
    size_t mark = arena_mark(b->arena);
    BenchTime t;
    TRY(make_case(b, &c));
    PeakYard peak = bench_peak_yard(b, true);
    TRY(bench_time(b, &t, run_attention, &c, bench_run_peak, &peak));
    arena_release(b->arena, mark);
    double Dk = (double)(a.Dn + a.Dr), Dv = (double)a.Dv, S = (double)a.S;
    double flops = (double)(a.nseq * a.H) * S * S * (is_bwd ? 3 * Dk + 2 * Dv : Dk + Dv);
    double row = (double)a.H * (Dk + (double)a.Dn + 2 * Dv) + (double)a.Dr; // q, kv, o, kr
    double bytes = 2 * row * (double)(a.nseq * a.S) * (is_bwd ? 2 : 1);
    double rate = flops / t.median, top = peak.flops / t.best_yard;
    double best = flops / t.best / top;
    const char *op = is_bwd ? "attn_bwd" : "attn_fwd";
    log_line("%-9s %5lld %6lld %5lld %5lld %5lld %9.3f %8.1f %7.3f %7.3f %8.1f %6.1f%%", op,
             (long long)a.nseq, (long long)a.S, (long long)a.H, (long long)(a.Dn + a.Dr),
             (long long)a.Dv, t.median * 1e3, rate * 1e-9, rate / top, best, top * 1e-9,
             t.spread * 100);
    if (b->json)
        fprintf(b->json,
                "{\"op\":\"%s\",\"shape\":\"%s\",\"sequences\":%lld,\"seq_len\":%lld,"
                "\"heads\":%lld,\"qk_dim\":%lld,\"v_dim\":%lld,\"isa\":\"%s\",\"threads\":%d,"
                "\"clock\":\"%s\","
                "\"ms\":%.5f,\"spread\":%.4f,\"gflops\":%.2f,\"peak_gflops\":%.2f,"
                "\"fraction_of_peak\":%.4f,\"best_fraction\":%.4f}\n",
                op, name, (long long)a.nseq, (long long)a.S, (long long)a.H,
                (long long)(a.Dn + a.Dr), (long long)a.Dv, gemm_isa(), b->threads, bench_clock(b),
                t.median * 1e3, t.spread, rate * 1e-9, top * 1e-9, rate / top, best);
    char label[40];
    snprintf(label, sizeof label, "%s %s", name, is_bwd ? "bwd" : "fwd");
    bench_point(b, SERIES_ATTENTION, label, flops, bytes, t.median);
    return OK;
}

Err bench_attention(Bench *b) {
    static const struct {
        const char *name;
        AttnShape a;
    } shapes[] = {
        {"base", {8, 512, 8, 64, 32, 64, 0}},  // configs/bench_base.yaml
        {"v3", {1, 2048, 8, 128, 64, 128, 0}}, // heads of DeepSeek-V3
        {"big", {4, 1024, 16, 64, 32, 64, 0}}, // configs/bench_big.yaml
        {"fine", {4, 256, 4, 64, 32, 64, 0}},  // configs/bench_fine.yaml
        {"v3-long", {1, 4096, 4, 128, 64, 128, 0}},
    };
    enum { FEW = 2, COUNT = sizeof shapes / sizeof shapes[0] };
    log_line("attention, causal, bf16, %s, %d thread%s", gemm_isa(), b->threads,
             b->threads == 1 ? "" : "s");
    TRY(bench_peak(b));
    log_line("%-9s %5s %6s %5s %5s %5s %9s %8s %7s %7s %8s %7s", "op", "seqs", "len", "heads", "qk",
             "v", "ms", "GFLOP/s", "of peak", "best", "peak", "spread");
    for (int i = 0; i < (b->is_all ? COUNT : FEW); i++)
        for (int bwd = 0; bwd < 2; bwd++) TRY(measure(b, shapes[i].name, shapes[i].a, bwd));
    return OK;
}
