// test_gemm_sm90.c - Hopper's FP8 products, run on the CPU under tc.h: all forms, against double precision and, with
// the 14-bit sums of the tensor cores, bit for bit against the CPU backend; ragged and empty shapes, every layout of
// scales; thread orders and the number of multiprocessors change no bit. The other half is test_gemm_mutants.c.
#include "gemm_sm90_cases.h"

static int case_number;

// Dense: the shape under two schedules, each form; layout, types and accumulation take turns.
static void check_dense(Form form, Shape3 s) {
    for (int turn = 0; turn < 4; turn++) {
        int i = case_number++;
        Options o = {.form = form,
                     .layout = (Layout)(i % LAYOUTS),
                     .st = i / 3 % 2 ? SCALE_F32 : SCALE_E8M0,
                     .out = turn % 2 ? DT_F32 : DT_BF16,
                     .acc = turn == 3,
                     .seed = i};
        Case c = case_dense(o, s);
        schedule_at(i % SCHEDULES);
        case_run(&c);
        if (!case_is_right(&c)) fail_msg("form %d, %d x %d x %d, turn %d: %s", form, s.m, s.n, s.k, turn, case_wrong);
        case_free(&c);
    }
}

static void test_dense(void **state) {
    (void)state;
    static const Shape3 shapes[] = {{128, 128, 128}, {1, 1, 1},       {63, 8, 16},    {129, 136, 144}, {64, 64, 129},
                                    {257, 130, 300}, {200, 260, 128}, {65, 392, 257}, {3, 5, 700}};
    for (int i = 0; i < (int)(sizeof shapes / sizeof shapes[0]); i++)
        for (Form f = FPROP; f <= WGRAD; f++) check_dense(f, shapes[i]);
}

// An empty contraction gives 0, or leaves what is added to; an empty output is nothing.
static void test_empty(void **state) {
    (void)state;
    static const Shape3 shapes[] = {{130, 70, 0}, {0, 70, 130}, {130, 0, 70}};
    for (int i = 0; i < 3; i++)
        for (Form f = FPROP; f <= WGRAD; f++) check_dense(f, shapes[i]);
}

static void test_grouped(void **state) {
    (void)state;
    static const int counts[][4] = {{5, 0, 300, 1}, {0, 0, 77, 0}, {0, 0, 0, 0}, {128, 130, 3, 64}, {1, 2, 3, 256}};
    for (int i = 0; i < 5; i++)
        for (Form f = FPROP; f <= WGRAD; f++)
            for (int turn = 0; turn < 4; turn++) {
                int k = case_number++;
                Options o = {.form = f,
                             .layout = (Layout)(k % LAYOUTS),
                             .st = k / 3 % 2 ? SCALE_F32 : SCALE_E8M0,
                             .out = turn % 2 ? DT_F32 : DT_BF16,
                             .acc = turn == 3,
                             .gap = turn < 2 ? 0 : 7,
                             .seed = k};
                Case c = case_grouped(o, counts[i], turn < 2 ? 70 : 144, turn < 2 ? 160 : 133);
                schedule_at(k % SCHEDULES);
                case_run(&c);
                if (!case_is_right(&c)) fail_msg("form %d, counts %d, turn %d: %s", f, i, turn, case_wrong);
                case_free(&c);
            }
}

// Tiles of 160 columns: their 128x128 blocks change inside a tile.
static void test_wide(void **state) {
    (void)state;
    static const Shape3 shapes[] = {{130, 650, 140}, {70, 161, 300}, {128, 320, 128}, {5, 96, 64}};
    static const int counts[4] = {130, 0, 3, 64};
    gemm_sm90_width(160);
    for (int i = 0; i < 4; i++)
        for (Form f = FPROP; f <= DGRAD; f++) check_dense(f, shapes[i]);
    for (Form f = FPROP; f <= DGRAD; f++) {
        int k = case_number++;
        Options o = {.form = f, .layout = (Layout)(k % LAYOUTS), .st = SCALE_E8M0, .out = DT_BF16, .gap = 2, .seed = k};
        Case c = case_grouped(o, counts, 330, 350);
        schedule_at(k % SCHEDULES);
        case_run(&c);
        if (!case_is_right(&c)) fail_msg("form %d: %s", f, case_wrong);
        case_free(&c);
    }
    gemm_sm90_width(0);
}

// Thread orders, seeds and how many blocks share the tiles.
static void test_schedules(void **state) {
    (void)state;
    static const int counts[4] = {130, 0, 70, 257};
    for (Form f = FPROP; f <= WGRAD; f++)
        for (int is_grouped = 0; is_grouped < 2; is_grouped++) {
            Options o = {.form = f,
                         .layout = WIRE,
                         .st = SCALE_E8M0,
                         .out = f == WGRAD ? DT_F32 : DT_BF16,
                         .gap = 3,
                         .acc = f == WGRAD,
                         .seed = 77};
            Shape3 s = {300, 150, 260};
            uint64_t first = 0;
            FOR_SCHEDULES(i) {
                tc_multiprocessors(1 + i % 5);
                Case c = is_grouped ? case_grouped(o, counts, 150, 200) : case_dense(o, s);
                case_run(&c);
                uint64_t h = case_hash(&c);
                if (i == 0) {
                    if (!case_is_right(&c)) fail_msg("form %d: %s", f, case_wrong);
                    first = h;
                }
                assert_true(h == first);
                case_free(&c);
            }
            tc_multiprocessors(4);
        }
}

// With scales that are powers of two a promotion is one rounding on both sides.
static void test_hopper14(void **state) {
    (void)state;
    static const int counts[4] = {5, 0, 131, 64};
    tc_sum_bits(14);
    for (Form f = FPROP; f <= WGRAD; f++)
        for (int turn = 0; turn < 4; turn++) {
            Options o = {.form = f,
                         .layout = (Layout)((f + turn) % LAYOUTS),
                         .st = SCALE_E8M0,
                         .is_power = true,
                         .out = turn % 2 ? DT_F32 : DT_BF16,
                         .gap = 1,
                         .seed = turn};
            Shape3 s = {70 + 61 * turn, 100, 300};
            Case c = turn < 2 ? case_dense(o, s) : case_grouped(o, counts, 72, 200);
            schedule_at(2 + turn);
            case_run(&c);
            if (!case_equals_cpu(&c)) fail_msg("form %d, turn %d: %s", f, turn, case_wrong);
            case_free(&c);
        }
    tc_sum_bits(0);
}

// A group outside of the matrix is read by nobody, and reported by the device.
#ifndef ON_DEVICE
static void test_bad_group(void **state) {
    (void)state;
    static const int counts[4] = {5, 0, 130, 1};
    const Device *dev = NULL;
    MUST_OK(device_cuda_open(&dev, 0));
    for (Form f = FPROP; f <= WGRAD; f++) {
        Options o = {.form = f, .layout = ALIGNED, .st = SCALE_E8M0, .out = DT_F32, .seed = 9};
        Case c = case_grouped(o, counts, 40, 48);
        c.count[2] += f == DGRAD ? -131 : 2;
        case_run(&c);
        MUST_FAIL(dev->sync(), E_INTERNAL, "group");
        case_free(&c);
    }
    device_cuda_close();
}
#endif

// The operations of the backend: these kernels where they are chosen and scratch has room, else the plain ones.
static void test_choice(void **state) {
    (void)state;
    Options o = {.form = FPROP, .layout = ODD, .st = SCALE_E8M0, .is_power = true, .out = DT_F32, .seed = 5};
    Shape3 s = {70, 40, 200};
    Arena *none = NULL;
    MUST_OK(arena_create(&none, "scratch", 64, false));
    tc_sum_bits(14); // the plain kernels sum in FP32: other bits
    uint64_t hash[4];
#ifdef ON_DEVICE
    const int turns = 3; // scratch is the mirrors' own, and has room
#else
    const int turns = 4;
#endif
    hash[3] = 0;
    for (int i = 0; i < turns; i++) { // 0: by hand, 1: chosen, 2: not chosen, 3: chosen, no room
        OpCx cx = {.scratch = i == 3 ? none : case_scratch()};
        Case c = case_dense(o, s);
        gemm_sm90_choose(i != 2);
        if (i == 0) MUST_OK(gemm_fp8_fprop_sm90(&cx, c.y, c.a, c.b, false));
        else MUST_OK(gemm_fp8_fprop_cuda(&cx, c.y, c.a, c.b, false));
        hash[i] = case_hash(&c);
        case_free(&c);
    }
    assert_true(hash[0] == hash[1] && (turns == 3 || hash[2] == hash[3]) && hash[0] != hash[2]);
    tc_sum_bits(0);
    gemm_sm90_choose(-1);
    arena_destroy(&none);
}

static void test_refused(void **state) {
    (void)state;
    Options o = {.form = FPROP, .layout = ALIGNED, .st = SCALE_E8M0, .out = DT_BF16};
    Case c = case_dense(o, (Shape3){8, 16, 32});
    OpCx cx = {.scratch = case_scratch()};
    cx.accumulate = GEMM_FP32;
    MUST_FAIL(gemm_fp8_fprop_sm90(&cx, c.y, c.a, c.b, false), E_INTERNAL, "sum with promotion");
    cx.accumulate = GEMM_PROMOTE128;
    cx.promote_every = 64;
    MUST_FAIL(gemm_fp8_fprop_sm90(&cx, c.y, c.a, c.b, false), E_INTERNAL, "promotion every 128, not 64");
    cx.promote_every = 0;
    MUST_FAIL(gemm_fp8_fprop_sm90(&cx, c.y, c.a, c.b, true), E_INTERNAL, "only f32 is added to");
    MUST_FAIL(gemm_fp8_dgrad_sm90(&cx, c.y, c.a, c.b, false), E_INTERNAL, "shapes disagree");
    MUST_FAIL(gemm_fp8_wgrad_sm90(&cx, c.y, c.a, c.b, false), E_INTERNAL, "shapes disagree");
    int64_t start[2] = {0, 4}, count[2] = {4, 4};
    Groups g = {start, count, 2};
    MUST_FAIL(ggemm_fp8_fprop_sm90(&cx, c.y, c.a, c.b, g, false), E_INTERNAL, "shapes disagree");
    assert_int_equal(arena_mark(cx.scratch), 0);
    case_free(&c);
}

int main(void) {
#ifdef ON_DEVICE
    DeviceInfo info;
    device_cuda_info(&info);
    if (info.major != 9) {
        printf("SKIP: these kernels are Hopper's, %s is not one\n", info.name);
        return 77;
    }
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dense),     cmocka_unit_test(test_empty),    cmocka_unit_test(test_grouped),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_schedules), cmocka_unit_test(test_hopper14), cmocka_unit_test(test_choice),
        cmocka_unit_test(test_refused),
#ifndef ON_DEVICE // a mirror returns the fault itself, and copies nothing back
        cmocka_unit_test(test_bad_group),
#endif
    };
    return cmocka_run_group_tests(tests, case_setup, case_teardown);
}
