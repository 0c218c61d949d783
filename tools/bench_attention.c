// bench_attention.c - how fast causal attention is here, forward and backward.
//
// Operations are those of the products alone, half of the square counted: forward scores and sums
// of values, backward the scores again and four gradients.
#include "attn.h"
#include "bench.h"
#include "log.h"

typedef struct AttnCase {
    AttnShape a;
    bool is_bwd;
    const Ops *ops;
    OpCx cx;
    Mat q, kv, kr, o, dout, dq, dkv, dkr;
    float *lse;
} AttnCase;

static Err run_attention(void *user) {
    AttnCase *c = user;
    if (c->is_bwd)
        return c->ops->attn_bwd(&c->cx, c->dq, c->dkv, c->dkr, c->dout, c->o, c->lse, c->q, c->kv,
                            c->kr, c->a, NULL);
    return c->ops->attn_fwd(&c->cx, c->o, c->lse, c->q, c->kv, c->kr, c->a, NULL);
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
        TRY(bench_fill(b, *all[i].m, false));
    }
    ARENA_NEW(b->arena, c->lse, a.H * T);
    TRY(b->on.ops->attn_fwd(&c->cx, c->o, c->lse, c->q, c->kv, c->kr, a, NULL)); // what backward reads
    return OK;
}

static Err measure(Bench *b, const char *name, AttnShape a, bool is_bwd) {
    a.scale = 0.1f;
    AttnCase c = {.a = a, .is_bwd = is_bwd, .ops = b->on.ops, .cx = {b->scratch, b->threads}};
    size_t mark = arena_mark(b->arena);
    BenchTime t;
    TRY(make_case(b, &c));
    PeakYard peak = {0};
    if (!b->is_device) peak = bench_peak_yard(b, true);
    TRY(bench_time(b, &t, run_attention, &c, b->is_device ? NULL : bench_run_peak, &peak));
    arena_release(b->arena, mark);
    double Dk = (double)(a.Dn + a.Dr), Dv = (double)a.Dv, S = (double)a.S;
    double flops = (double)(a.nseq * a.H) * S * S * (is_bwd ? 3 * Dk + 2 * Dv : Dk + Dv);
    double row = (double)a.H * (Dk + (double)a.Dn + 2 * Dv) + (double)a.Dr; // q, kv, o, kr
    double bytes = 2 * row * (double)(a.nseq * a.S) * (is_bwd ? 2 : 1);
    double rate = flops / t.median, top = b->is_device ? b->peak.half : peak.flops / t.best_yard;
    double best = flops / t.best / top;
    const char *op = is_bwd ? "attn_bwd" : "attn_fwd";
    log_line("%-9s %5lld %6lld %5lld %5lld %5lld %9.3f %8.1f %7.3f %7.3f %8.1f %6.1f%%", op,
             (long long)a.nseq, (long long)a.S, (long long)a.H, (long long)(a.Dn + a.Dr),
             (long long)a.Dv, t.median * 1e3, rate * 1e-9, rate / top, best, top * 1e-9,
             t.spread * 100);
    bench_json(b, op);
    if (b->json)
        fprintf(b->json,
                ",\"shape\":\"%s\",\"sequences\":%lld,\"seq_len\":%lld,"
                "\"heads\":%lld,\"qk_dim\":%lld,\"v_dim\":%lld,"
                "\"ms\":%.5f,\"spread\":%.4f,\"gflops\":%.2f,\"peak_gflops\":%.2f,"
                "\"fraction_of_peak\":%.4f,\"best_fraction\":%.4f}\n",
                name, (long long)a.nseq, (long long)a.S, (long long)a.H,
                (long long)(a.Dn + a.Dr), (long long)a.Dv, t.median * 1e3,
                t.spread, rate * 1e-9, top * 1e-9, rate / top, best);
    char label[40];
    snprintf(label, sizeof label, "%s %s", name, is_bwd ? "bwd" : "fwd");
    bench_point(b, SERIES_ATTENTION, label, flops, bytes, t.median);
    return OK;
}

typedef struct Named {
    const char *name;
    AttnShape a;
} Named;

Err bench_attention(Bench *b) {
    static const Named processor_shapes[] = {
        {"base", {8, 512, 8, 64, 32, 64, 0}},  // configs/bench_base.yaml
        {"v3", {1, 2048, 8, 128, 64, 128, 0}}, // heads of DeepSeek-V3
        {"big", {4, 1024, 16, 64, 32, 64, 0}}, // configs/bench_big.yaml
        {"fine", {4, 256, 4, 64, 32, 64, 0}},  // configs/bench_fine.yaml
        {"v3-long", {1, 4096, 4, 128, 64, 128, 0}},
    };
    static const Named device_shapes[] = {
        {"v3-2k", {1, 2048, 128, 128, 64, 128, 0}},  {"v3", {1, 4096, 128, 128, 64, 128, 0}},
        {"h200", {2, 4096, 16, 128, 64, 128, 0}}, // configs/h200.yaml
        {"v3-8k", {1, 8192, 128, 128, 64, 128, 0}},  {"narrow", {8, 1024, 16, 64, 32, 64, 0}},
    };
    enum { FEW = 2, DEVICE_FEW = 3, COUNT = sizeof processor_shapes / sizeof processor_shapes[0] };
    _Static_assert(COUNT == sizeof device_shapes / sizeof device_shapes[0], "as many of each");
    const Named *shapes = b->is_device ? device_shapes : processor_shapes;
    int n = b->nshapes ? b->nshapes : b->is_all ? COUNT : b->is_device ? DEVICE_FEW : FEW;
    log_line("attention, causal, bf16, %s, %d thread%s", b->on.ops->isa, b->threads, b->threads == 1 ? "" : "s");
    TRY(bench_peak(b));
    log_line("%-9s %5s %6s %5s %5s %5s %9s %8s %7s %7s %8s %7s", "op", "seqs", "len", "heads", "qk",
             "v", "ms", "GFLOP/s", "of peak", "best", "peak", "spread");
    for (int i = 0; i < n; i++) {
        const int64_t *s = b->shapes[i]; // sequences, positions, heads; heads of DeepSeek-V3
        Named given = {"given", {s[0], s[1], s[2], 128, 64, 128, 0}};
        for (int bwd = 0; bwd < 2; bwd++)
            TRY(measure(b, b->nshapes ? given.name : shapes[i].name, b->nshapes ? given.a : shapes[i].a, bwd));
    }
    return OK;
}
