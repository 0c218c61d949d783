// test_health.c - FP8 health counters: every site counts its values once, whatever is made again in the backward;
// what goes wrong is named where it goes wrong; the sums over ranks and the numbers made of them.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "fp8.h"
#include "health.h"
#include "log.h"
#include "must.h"
#include "rng.h"
#include "solo.h"

static const char *const base_sets[] = {
    "model.vocab_size=64",          "model.hidden_size=136",        "model.intermediate_size=140",
    "model.moe_intermediate_size=132", "model.num_hidden_layers=2", "model.num_attention_heads=3",
    "model.n_routed_experts=4",     "model.num_experts_per_tok=2",  "model.first_k_dense_replace=1",
    "model.kv_lora_rank=64",        "model.qk_nope_head_dim=20",    "model.qk_rope_head_dim=8",
    "model.v_head_dim=48",          "model.initializer_range=0.08", "model.num_nextn_predict_layers=1",
    "train.steps=1",                "train.seq_len=50",             "train.global_batch=2",
    "train.micro_batch=2",          "balance.seq_alpha=0.01",       "precision.mode=fp8",
};
enum { BASE = sizeof base_sets / sizeof base_sets[0], MORE = 12, BLOCKS = 3, T = 100 };

typedef struct Rig {
    Config *config;
    Solo solo;
    int32_t tokens[2 * 52];
} Rig;

// open: the model with these settings, one list after the other (each ends in NULL).
static void open_rig(Rig *r, const char *const *more, const char *const *and_more) {
    const char *sets[BASE + 2 * MORE];
    int n = BASE;
    memcpy(sets, base_sets, sizeof base_sets);
    for (; *more; more++) sets[n++] = *more;
    for (; *and_more; and_more++) sets[n++] = *and_more;
    MUST_OK(config_load(&r->config, NULL, sets, n));
    MUST_OK(solo_open(&r->solo, r->config, true, 1));
    Params *p = model_params(r->solo.model);
    MUST_OK(params_init(p, &r->solo.shape, &r->solo.cx));
    MUST_OK(solo_publish(&r->solo));
    MUST_OK(params_zero_grad(p, &r->solo.cx));
    for (int i = 0; i < 2 * 52; i++) r->tokens[i] = (int32_t)(philox(11, 0, (uint64_t)i).v[0] % 64);
    assert_int_equal(r->solo.cx.nblocks, BLOCKS);
}

static void close_rig(Rig *r) {
    solo_close(&r->solo);
    config_free(r->config);
}

static void pass(Rig *r, bool with_backward) {
    Batch b = {.nseq = 2, .S = 50, .ld = 52, .tokens = r->tokens, .is_complete = true};
    LossScale scale = {.lm = 0.01, .mtp = 0.003, .balance = 0.005};
    LossSums sums = {0};
    if (with_backward) MUST_OK(model_fwd_bwd(r->solo.model, &r->solo.cx, &b, &scale, &sums, NULL));
    else MUST_OK(model_fwd(r->solo.model, &r->solo.cx, &b, &sums, NULL));
}

static const char *const no_sets[] = {NULL};
typedef QuantCount Counts[BLOCKS * SITE_COUNT];

static const QuantCount *at(const QuantCount *c, int layer, Site site) {
    return &c[layer * SITE_COUNT + site];
}

// ---- once -----------------------------------------------------------------------------------------

static void counts_of(Counts out, const char *const *more, const char *const *and_more) {
    Rig r;
    open_rig(&r, more, and_more);
    pass(&r, true);
    memcpy(out, r.solo.cx.health, sizeof(Counts));
    close_rig(&r);
}

// All eight ways of making things again, for every way of keeping: the same counters, of all sites.
static void made_again_is_not_counted_again(void **state) {
    (void)state;
    static const char *const formats[][MORE] = {
        {"model.q_lora_rank=132"},
        {"fp8.scale_format=fp32"},
        {"model.q_lora_rank=132", "fp8.cache_attn_out=codes", "fp8.cache_swiglu=bf16"},
        {"model.q_lora_rank=132", "fp8.cache_swiglu=bf16", "model.n_shared_experts=0"},
        {"fp8.cache_attn_out=codes"},
    };
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++) {
        static Counts first, other;
        for (int bits = 0; bits < 8; bits++) {
            const char *again[MORE] = {bits & 1 ? "recompute.norm=true" : "recompute.norm=false",
                                       bits & 2 ? "recompute.mla_up=true" : "recompute.mla_up=false",
                                       bits & 4 ? "recompute.swiglu=true" : "recompute.swiglu=false"};
            counts_of(bits == 0 ? first : other, formats[f], again);
            for (int i = 0; bits > 0 && i < BLOCKS * SITE_COUNT; i++) {
                if (memcmp(&first[i], &other[i], sizeof first[i]) != 0)
                    fail_msg("format %d, recompute %d: %s differs", (int)f, bits,
                             site_label(i / SITE_COUNT, (Site)(i % SITE_COUNT)).s);
            }
        }
    }
}

static void expect_values(const QuantCount *c, int layer, Site site, int64_t want) {
    if (at(c, layer, site)->values != want)
        fail_msg("%s: %lld values, expected %lld", site_label(layer, site).s, (long long)at(c, layer, site)->values,
                 (long long)want);
}

// Every site by hand: weights (published once), one forward and one backward.
static void every_value_once(void **state) {
    (void)state;
    static const char *const sets[] = {"model.q_lora_rank=132", NULL};
    static Counts c;
    counts_of(c, sets, no_sets);
    enum { D = 136, RQ = 132, RKV = 64, H = 3, QK = 28, KV = 68, DV = 48, F0 = 140, F1 = 132, E = 4, K = 2 };
    for (int b = 0; b < BLOCKS; b++) {
        int64_t f = b == 0 ? F0 : F1, rows[SITE_COUNT] = {0}, cols[SITE_COUNT] = {0};
#define SIZE(id, r, c) (rows[SITE_##id] = (r), cols[SITE_##id] = (c))
        SIZE(ATTN_IN_X, T, D), SIZE(ATTN_IN_X_T, T, D);
        SIZE(Q_A_W, RQ, D), SIZE(Q_A_DY, T, RQ), SIZE(Q_A_DY_T, T, RQ);
        SIZE(Q_B_X, T, RQ), SIZE(Q_B_X_T, T, RQ), SIZE(Q_B_W, H * QK, RQ);
        SIZE(Q_B_DY, T, H * QK), SIZE(Q_B_DY_T, T, H * QK);
        SIZE(KV_A_W, RKV + 8, D), SIZE(KV_A_DY, T, RKV + 8), SIZE(KV_A_DY_T, T, RKV + 8);
        SIZE(KV_B_X, T, RKV), SIZE(KV_B_X_T, T, RKV), SIZE(KV_B_W, H * KV, RKV);
        SIZE(KV_B_DY, T, H * KV), SIZE(KV_B_DY_T, T, H * KV);
        SIZE(O_X, T, H * DV), SIZE(O_X_T, T, H * DV), SIZE(O_W, D, H * DV), SIZE(O_DY, T, D), SIZE(O_DY_T, T, D);
        SIZE(FFN_IN_X, T, D), SIZE(FFN_IN_X_T, T, D), SIZE(FFN_OUT_DY, T, D);
        SIZE(FFN_GATE_W, f, D), SIZE(FFN_GATE_KEPT, T, f), SIZE(FFN_GATE_DY, T, f), SIZE(FFN_GATE_DY_T, T, f);
        SIZE(FFN_UP_W, f, D), SIZE(FFN_UP_KEPT, T, f), SIZE(FFN_UP_DY, T, f), SIZE(FFN_UP_DY_T, T, f);
        SIZE(FFN_DOWN_X, T, f), SIZE(FFN_DOWN_X_T, T, f), SIZE(FFN_DOWN_W, D, f), SIZE(FFN_DOWN_DY_T, T, D);
        if (b > 0) {
            SIZE(EXPERT_IN_X_T, T * K, D), SIZE(EXPERT_DOWN_DY_T, T * K, D);
            SIZE(EXPERT_GATE_W, E * F1, D), SIZE(EXPERT_GATE_KEPT, T * K, F1);
            SIZE(EXPERT_GATE_DY, T * K, F1), SIZE(EXPERT_GATE_DY_T, T * K, F1);
            SIZE(EXPERT_UP_W, E * F1, D), SIZE(EXPERT_UP_KEPT, T * K, F1);
            SIZE(EXPERT_UP_DY, T * K, F1), SIZE(EXPERT_UP_DY_T, T * K, F1);
            SIZE(EXPERT_DOWN_X, T * K, F1), SIZE(EXPERT_DOWN_X_T, T * K, F1), SIZE(EXPERT_DOWN_W, E * D, F1);
        }
        for (int i = 0; i < SITE_COUNT; i++) {
            expect_values(c, b, (Site)i, rows[i] * cols[i]);
            int64_t tiles = 0;
            for (int k = 0; k < SCALE_BINS; k++) tiles += at(c, b, (Site)i)->scales[k];
            assert_true(tiles <= at(c, b, (Site)i)->tiles);
            assert_true(cols[i] == 0 || (tiles > 0 && at(c, b, (Site)i)->amax_bits > 0));
        }
    }
}

// ---- named ----------------------------------------------------------------------------------------

static Health *health_of(Rig *r) {
    Health *h = NULL;
    HealthTotals t;
    MUST_OK(health_create(&h, &r->solo.cx));
    MUST_OK(health_step(h, &r->solo.cx, &t));
    MUST_OK(health_rows(h, &r->solo.cx));
    return h;
}

static const HealthRow *row_named(const Health *h, const char *name) {
    for (int64_t i = 0; i < h->nrows; i++) {
        if (strcmp(h->row[i].site.s, name) == 0) return &h->row[i];
    }
    return NULL;
}

// A NaN in a weight shows at that weight, then in everything after it, and nowhere before.
static void nan_is_named(void **state) {
    (void)state;
    Rig r;
    open_rig(&r, no_sets, no_sets);
    Health *h = health_of(&r); // the weights as they were made
    assert_int_equal(health_worst_nonfinite(h)->nonfinite_tiles, 0);
    assert_null(row_named(h, "L0.attn_in.x"));
    health_free(&h);
    Params *p = model_params(r.solo.model);
    Param *w = params_find(p, P_O, 1);
    ((uint16_t *)w->w.p)[130] = 0x7FC0;
    MUST_OK(params_prepare(p, &r.solo.shape, &r.solo.cx));
    h = health_of(&r);
    assert_string_equal(health_worst_nonfinite(h)->site.s, "L1.o.w");
    assert_int_equal(health_worst_nonfinite(h)->nonfinite_tiles, 1);
    health_free(&h);
    pass(&r, false);
    h = health_of(&r);
    static const char *const clean[] = {"L0.attn_in.x", "L0.o.x",       "L0.ffn_in.x", "L0.ffn.down.x",
                                        "L1.attn_in.x", "L1.kv_b.x",    "L1.q.w",      "L1.o.x"};
    static const char *const bad[] = {"L1.ffn_in.x", "L1.expert.down.x", "L1.ffn.down.x", "L2.attn_in.x"};
    for (int i = 0; i < 8; i++) {
        const HealthRow *row = row_named(h, clean[i]);
        assert_true(!row == !strcmp(clean[i], "L1.q.w")); // weights were counted above
        assert_true(!row || row->nonfinite_tiles == 0);
    }
    for (int i = 0; i < 4; i++) {
        if (row_named(h, bad[i])->nonfinite_tiles <= 0) fail_msg("%s: no tile that is not finite", bad[i]);
    }
    assert_int_equal(row_named(h, "L1.ffn_in.x")->nonfinite_tiles, 2 * T); // one value in each row's first tile,
    health_free(&h);                                                       // which the norm spreads over two
    close_rig(&r);
}

// An operation on values made up, into the counters of a site.
static void quantise(Rig *r, int layer, Site site, const float *v, int64_t rows, int64_t cols, QuantRule rule) {
    Cx *cx = &r->solo.cx;
    size_t mark = arena_mark(cx->scratch);
    MatQ q;
    MUST_OK(arena_matq_rows(cx->scratch, &q, SCALE_F32, CODE_E4M3, rows, cols, "codes"));
    cx->layer = layer;
    MUST_OK(cx->ops->quant_tile(&cx->op, q, mat((void *)v, DT_F32, rows, cols), rule, cx_count(cx, site)));
    arena_release(cx->scratch, mark);
}

static void tiles_are_named(void **state) {
    (void)state;
    Rig r;
    open_rig(&r, no_sets, no_sets);
    memset(r.solo.cx.health, 0, sizeof(Counts));
    static float v[4 * 256];
    QuantRule tile = {0}, fixed = {SCOPE_STATIC, 8.0f};
    quantise(&r, 0, SITE_Q_DY, v, 4, 256, tile); // nothing but zeros
    for (int i = 0; i < 4 * 256; i++) v[i] = 1.0f;
    quantise(&r, 1, SITE_O_X, v, 4, 256, tile);
    v[0] = v[5] = -9.0f; // beyond the fixed scale's 8; the rest is not
    v[600] = 1e30f;
    quantise(&r, 1, SITE_O_DY, v, 4, 256, fixed);
    for (int i = 0; i < 4 * 256; i++) v[i] = i % 256 == 3 ? 448.0f : i % 256 == 77 ? 0x1p-11f : 0.0f;
    quantise(&r, 2, SITE_FFN_UP_DY, v, 4, 256, tile); // 1/4 of the smallest code's value beside 448: zero
    v[0] = INFINITY;
    v[300] = v[301] = NAN;
    quantise(&r, 2, SITE_EXPERT_DOWN_X, v, 4, 256, tile);
    Health *h = health_of(&r);
    assert_int_equal(h->nrows, 5);
    const HealthRow *zero = row_named(h, "L0.q.dy"), *one = row_named(h, "L1.o.x"), *sat = row_named(h, "L1.o.dy"),
                    *uf = row_named(h, "L2.ffn.up.dy"), *bad = row_named(h, "L2.expert.down.x");
    assert_ptr_equal(health_worst_saturated(h), sat);
    assert_ptr_equal(health_worst_underflow(h), uf);
    assert_ptr_equal(health_worst_nonfinite(h), bad);
    assert_true(zero->saturated == 0 && zero->underflow == 0 && zero->amax == 0);
    assert_true(isnan(zero->scale_min) && isnan(zero->scale_median) && isnan(zero->scale_max));
    assert_true(one->amax == 1 && one->scale_min == 0x1p-9 && one->scale_max == 0x1p-9); // 1/448
    assert_true(sat->saturated == 3.0 / 1024 && sat->underflow == 0);
    assert_true(fabs(sat->amax / 1e30 - 1) < 0x1p-8 && sat->scale_median == 0x1p-6); // 8/448
    assert_true(uf->underflow == 4.0 / 1024 && uf->saturated == 0 && uf->scale_max == 1);
    assert_true(uf->nonfinite_tiles == 0 && bad->nonfinite_tiles == 2 && bad->amax == 448);
    // Two tiles of every row: one of zeros, but for what is not finite, which has no scale either.
    assert_true(isfinite(bad->scale_min));
    health_free(&h);
    close_rig(&r);
}

// ---- sums -----------------------------------------------------------------------------------------

static QuantCount random_count(uint64_t stream) {
    QuantCount c = {0};
    uint32_t v[8];
    for (int i = 0; i < 8; i++) v[i] = philox(21, stream, (uint64_t)i).v[0];
    if (v[0] % 3 == 0) return c; // a site that does not exist in this block
    c.values = (int64_t)v[1] << 8 | 1;
    c.saturated = v[2] % 1000;
    c.underflow = v[3] % 100000;
    c.tiles = c.values / 128;
    c.nonfinite_tiles = v[4] % 7;
    c.amax_bits = (int32_t)(v[5] % 0x7F800000);
    for (int i = 0; i < SCALE_BINS; i++) c.scales[i] = philox(22, stream, (uint64_t)i).v[0] % 50;
    return c;
}

// The other rank's numbers, as its own run handed them over, one after the other.
static int64_t *taped;
static int64_t tape_at, tape_size;
static bool is_recording;

static Err taped_reduce(Comm *c, int64_t *x, int n, bool is_max) {
    (void)c;
    assert_true(tape_at + n <= tape_size);
    for (int i = 0; i < n; i++) {
        int64_t *other = &taped[tape_at++];
        if (is_recording) *other = x[i];
        else x[i] = is_max ? max_i64(x[i], *other) : x[i] + *other;
    }
    return OK;
}

// share_of: rank r's part of what all ranks count; weights that both hold are the same on both.
static QuantCount share_of(int64_t i, int step, int rank, bool is_whole) {
    Site site = (Site)(i % SITE_COUNT);
    bool is_shared = site_class(site) == CLASS_WEIGHT;
    QuantCount a = random_count((uint64_t)(i * 64 + step)), b = random_count((uint64_t)(i * 64 + step + 32));
    if (is_shared || (!is_whole && rank == 0)) return a;
    if (is_whole) quant_count_add(&a, &b);
    return is_whole ? a : b;
}

// run_rank: three steps and the rows of one rank of `nranks`, through the tape.
static Health *run_rank(int rank, int nranks, HealthTotals *totals) {
    enum { NB = 5 };
    Comm *world = NULL, *edp = NULL;
    MUST_OK(comm_self(&world, "world"));
    MUST_OK(comm_self(&edp, "edp"));
    world->rank = edp->rank = rank;
    world->nranks = nranks;
    world->reduce_i64 = taped_reduce;
    static QuantCount counts[NB * SITE_COUNT];
    Cx cx = {.dev = device_cpu(), .world = world, .edp = edp, .nblocks = NB, .health = counts};
    Health *h = NULL;
    MUST_OK(health_create(&h, &cx));
    tape_at = 0;
    for (int step = 0; step < 3; step++) {
        for (int64_t i = 0; i < NB * SITE_COUNT; i++) counts[i] = share_of(i, step, rank, nranks == 1);
        MUST_OK(health_step(h, &cx, &totals[step]));
        for (int64_t i = 0; i < NB * SITE_COUNT; i++) assert_int_equal(counts[i].values, 0);
    }
    MUST_OK(health_rows(h, &cx));
    world->nranks = 1;
    comm_destroy(&world);
    comm_destroy(&edp);
    return h;
}

// Two ranks that share the work give what one rank gives alone, to the bit; the second line starts anew.
static void ranks_do_not_matter(void **state) {
    (void)state;
    tape_size = 1 << 20;
    taped = calloc((size_t)tape_size, sizeof *taped);
    HealthTotals one[3], two[3];
    Health *alone = run_rank(0, 1, one), *second, *first;
    is_recording = true;
    second = run_rank(1, 2, two);
    is_recording = false;
    first = run_rank(0, 2, two);
    assert_memory_equal(one, two, sizeof one);
    assert_true(alone->nrows == first->nrows && alone->nrows > 100 && alone->nrows < 5 * SITE_COUNT);
    for (int64_t i = 0; i < alone->nrows; i++) {
        const HealthRow *a = &alone->row[i], *b = &first->row[i];
        assert_string_equal(a->site.s, b->site.s);
        assert_int_equal(a->nonfinite_tiles, b->nonfinite_tiles);
        assert_true(a->saturated == b->saturated && a->underflow == b->underflow && a->amax == b->amax);
        assert_memory_equal(&a->scale_min, &b->scale_min, sizeof a->scale_min); // NAN too
        assert_memory_equal(&a->scale_median, &b->scale_median, sizeof a->scale_median);
        assert_memory_equal(&a->scale_max, &b->scale_max, sizeof a->scale_max);
    }
    // The shares by hand, and that sites which quantised nothing are left out.
    int64_t at_row = 0, sum[4] = {0};
    for (int64_t i = 0; i < 5 * SITE_COUNT; i++) {
        QuantCount c = {0};
        for (int step = 0; step < 3; step++) {
            QuantCount part = share_of(i, step, 0, true);
            quant_count_add(&c, &part);
            if (step > 0) continue;
            sum[0] += part.values;
            sum[1] += part.saturated;
            sum[2] += part.underflow;
            sum[3] += part.nonfinite_tiles;
        }
        if (c.values == 0) continue;
        const HealthRow *r = &alone->row[at_row++];
        assert_string_equal(r->site.s, site_label(i / SITE_COUNT, (Site)(i % SITE_COUNT)).s);
        assert_true(r->saturated == (double)c.saturated / (double)c.values);
        assert_true(r->underflow == (double)c.underflow / (double)c.values);
        assert_true(r->nonfinite_tiles == c.nonfinite_tiles);
        assert_true(r->amax == (double)f32_from_bits((uint32_t)c.amax_bits));
    }
    assert_int_equal(at_row, alone->nrows);
    assert_true(one[0].saturated == (double)sum[1] / (double)sum[0]);
    assert_true(one[0].underflow == (double)sum[2] / (double)sum[0]);
    assert_int_equal(one[0].nonfinite_tiles, sum[3]);
    Cx cx = {0};
    MUST_OK(comm_self(&cx.world, "world"));
    MUST_OK(health_rows(alone, &cx));
    assert_int_equal(alone->nrows, 0);
    assert_null(health_worst_saturated(alone));
    comm_destroy(&cx.world);
    health_free(&alone);
    health_free(&first);
    health_free(&second);
    health_free(&second);
    free(taped);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// Smallest, median and largest scale against the sorted list of all scales, rounded down to powers of two.
static void scales_against_a_sorted_list(void **state) {
    (void)state;
    Comm *self = NULL;
    MUST_OK(comm_self(&self, "world"));
    static QuantCount counts[SITE_COUNT];
    Cx cx = {.dev = device_cpu(), .world = self, .edp = self, .nblocks = 1, .health = counts};
    Health *h = NULL;
    HealthTotals t;
    MUST_OK(health_create(&h, &cx));
    for (int n = 1; n < 300; n = n * 3 / 2 + 1) {
        float s[512];
        QuantCount *c = &counts[SITE_O_X];
        memset(counts, 0, sizeof counts);
        for (int i = 0; i < n; i++) {
            s[i] = ldexpf(1.0f + (float)(philox(31, (uint64_t)n, (uint64_t)i).v[0] % 1024) / 1024.0f,
                          (int)(philox(32, (uint64_t)n, (uint64_t)i).v[0] % 40) - 45);
            c->scales[ilogbf(s[i]) - SCALE_BIN_LOW]++; // quant.h: bin i begins at 2^(SCALE_BIN_LOW + i)
        }
        c->values = n;
        MUST_OK(health_step(h, &cx, &t));
        MUST_OK(health_rows(h, &cx));
        qsort(s, (size_t)n, sizeof *s, by_value);
        assert_int_equal(h->nrows, 1);
        assert_true(h->row->scale_min == ldexp(1.0, ilogbf(s[0])));
        assert_true(h->row->scale_median == ldexp(1.0, ilogbf(s[(n - 1) / 2])));
        assert_true(h->row->scale_max == ldexp(1.0, ilogbf(s[n - 1])));
    }
    health_free(&h);
    comm_destroy(&self);
}

int main(void) {
    log_init(1, 2); // no lines
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_again_is_not_counted_again), cmocka_unit_test(every_value_once),
        cmocka_unit_test(nan_is_named),                    cmocka_unit_test(tiles_are_named),
        cmocka_unit_test(ranks_do_not_matter),             cmocka_unit_test(scales_against_a_sorted_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
