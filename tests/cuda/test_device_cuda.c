// test_device_cuda.c - the device table of the CUDA backend over the runtime on the CPU: copies, arenas, faults, and
// machines without a device.
#include "backend.h"
#include "child.h"

static const Device *dev;

static void test_copies(void **state) {
    (void)state;
    const size_t sizes[] = {0, 1, 3, 4096, ((size_t)4 << 20) + 5, ((size_t)13 << 20) - 7};
    for (int k = 0; k < 6; k++) {
        size_t n = sizes[k];
        void *on_device = NULL;
        MUST_OK(dev->alloc(&on_device, n, "test"));
        uint8_t *a = malloc(n + 1), *b = malloc(n + 1);
        assert_true(a && b);
        for (size_t i = 0; i < n; i++) a[i] = (uint8_t)(i * 2654435761u >> 13);
        memset(b, 0, n + 1);
        b[n] = 77;
        MUST_OK(dev->to_device(on_device, a, n));
        MUST_OK(dev->to_host(b, on_device, n));
        assert_memory_equal(a, b, n);
        assert_int_equal(b[n], 77);
        MUST_OK(dev->zero(on_device, n));
        MUST_OK(dev->to_host(b, on_device, n));
        for (size_t i = 0; i < n; i++) assert_int_equal(b[i], 0);
        dev->release(on_device);
        free(a);
        free(b);
    }
    dev->release(NULL);
    MUST_OK(dev->sync());
}

static void test_arena(void **state) {
    (void)state;
    Arena *a = NULL;
    float *x = NULL, *y = NULL;
    MUST_OK(arena_create_on(&a, dev, "scratch", 1000, false));
    MUST_OK(arena_push(a, (void **)&x, 100, "x"));
    MUST_OK(arena_push(a, (void **)&y, 100, "y"));
    assert_int_equal((uintptr_t)x % 256, 0);
    assert_int_equal((char *)y - (char *)x, 128);
    MUST_FAIL(arena_push(a, (void **)&y, 1000, "too much"), E_INTERNAL, "too much");
    arena_destroy(&a);
    MUST_OK(arena_create_on(&a, dev, "measure", 0, true)); // takes nothing of the device
    MUST_OK(arena_push(a, (void **)&x, (size_t)1 << 50, "x"));
    arena_destroy(&a);
    MUST_OK(arena_create_on(&a, device_cpu(), "host", 1000, false));
    arena_destroy(&a);
}

#ifndef ON_DEVICE // the fibers know how much there is
size_t runtime_on_cpu_memory(void);
void runtime_on_cpu_limit(size_t bytes, int spaces);

// An arena of more than the device has: memory comes with the blocks that need it, keeps its contents and its place,
// and goes with the arena. Where the device cannot do that, all of it is taken at once.
static void test_space(void **state) {
    (void)state;
    enum { MIB = 1 << 20 };
    size_t before = runtime_on_cpu_memory();
    Arena *a = NULL;
    uint8_t *x = NULL, *y = NULL, host[100], back[100];
    for (int i = 0; i < 100; i++) host[i] = (uint8_t)(i * 7);
    MUST_OK(arena_create_on(&a, dev, "acts", (size_t)100 << 30, false));
    assert_int_equal(runtime_on_cpu_memory(), before);
    assert_int_equal(arena_held(a), 0);
    MUST_OK(arena_push(a, (void **)&x, 5 * MIB, "x"));
    assert_int_equal(arena_held(a), 64 * MIB);
    MUST_OK(dev->to_device(x + 5 * MIB - 100, host, 100));
    size_t mark = arena_mark(a);
    MUST_OK(arena_push(a, (void **)&y, (size_t)300 * MIB, "y"));
    assert_ptr_equal(y, x + 5 * MIB);
    assert_int_equal(arena_held(a), 320 * MIB);
    assert_int_equal(runtime_on_cpu_memory(), before - 320 * (size_t)MIB);
    MUST_OK(dev->to_device(y + 300 * MIB - 100, host, 100));
    MUST_OK(dev->copy(y, x + 5 * MIB - 100, 100)); // across pieces
    MUST_OK(dev->copy(y + 100, y + 300 * MIB - 100, 100));
    for (int i = 0; i < 2; i++) {
        MUST_OK(dev->to_host(back, y + i * 100, 100));
        assert_memory_equal(back, host, 100);
    }
    arena_release(a, mark);
    MUST_OK(arena_push(a, (void **)&y, (size_t)310 * MIB, "again"));
    assert_int_equal(arena_held(a), 320 * MIB); // what was there is used again
    MUST_FAIL(arena_push(a, (void **)&y, (size_t)8 << 30, "too much"), E_INTERNAL,
              "acts: 320.0 MiB of the GPU's memory");
    arena_destroy(&a);
    assert_int_equal(runtime_on_cpu_memory(), before);
    MUST_FAIL(arena_create_on(&a, dev, "acts", (size_t)1 << 60, false), E_INTERNAL, "acts");
    runtime_on_cpu_limit(before, 0); // a driver without these calls
    device_cuda_close();
    MUST_OK(device_cuda_open(&dev, 0));
    before = runtime_on_cpu_memory();
    MUST_OK(arena_create_on(&a, dev, "acts", (size_t)100 * MIB, false));
    assert_int_equal(arena_held(a), 100 * MIB);
    assert_int_equal(runtime_on_cpu_memory(), before - 100 * (size_t)MIB);
    MUST_OK(arena_push(a, (void **)&x, 5 * MIB, "x"));
    arena_destroy(&a);
    assert_int_equal(runtime_on_cpu_memory(), before);
    MUST_FAIL(arena_create_on(&a, dev, "acts", (size_t)100 << 30, false), E_INTERNAL, "acts: 102400.0 MiB");
    runtime_on_cpu_limit(before, 1);
    device_cuda_close();
    MUST_OK(device_cuda_open(&dev, 0));
}

static void touch(const void *p) {
    _exit(((const volatile char *)p)[100] == 1 ? 1 : 2);
}
// Host code cannot touch the device's memory, as on a GPU: this is what later tests of the trainer rest on.
static void test_guard(void **state) {
    (void)state;
    char said[512];
    volatile char *p = NULL;
    MUST_OK(dev->alloc((void **)&p, 4096, "guarded"));
    assert_int_equal(child_ends(touch, (const void *)p, said, sizeof said), 256 + SIGSEGV);
    dev->release((void *)p);
}
#endif

// What a kernel finds wrong comes with the next call that waits, once.
static void test_faults(void **state) {
    (void)state;
    OpCx cx = {0};
    float table[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[6] = {0}, host[6];
    int32_t good[] = {3, -1, 0}, bad[] = {3, 9, 4};
    Mat t = mat(table, DT_F32, 4, 2), x = mat(out, DT_F32, 3, 2);
    FOR_SCHEDULES(i) {
        MUST_OK(embed_fwd_cuda(&cx, x, t, good));
        MUST_OK(dev->sync());
        assert_true(out[0] == 7 && out[2] == 0 && out[5] == 2);
        float loss[3];
        int32_t target[] = {0, 1, 2};
#ifdef ON_DEVICE // a mirror waits
        (void)host;
        MUST_FAIL(embed_fwd_cuda(&cx, x, t, bad), E_INPUT, "token 9 at position 1 of the micro-batch");
        MUST_FAIL(xent_fwd_bwd_cuda(&cx, loss, NULL, mat_none(), x, target, 1.0f), E_INTERNAL,
                  "target 2 of row 2 is outside 2 logits");
        MUST_OK(dev->sync());
#else
        MUST_OK(embed_fwd_cuda(&cx, x, t, bad));
        MUST_FAIL(dev->to_host(host, out, sizeof host), E_INPUT, "token 9 at position 1 of the micro-batch");
        MUST_OK(dev->sync());
        MUST_OK(xent_fwd_bwd_cuda(&cx, loss, NULL, mat_none(), x, target, 1.0f));
        MUST_FAIL(dev->sync(), E_INTERNAL, "target 2 of row 2 is outside 2 logits");
#endif
    }
}

#ifndef ON_DEVICE
static void test_without_device(void **state) {
    (void)state;
    Backend b;
    MUST_OK(backend_choose(&b, "auto", 0));
    assert_string_equal(b.ops->backend, "cuda");
    MUST_OK(backend_choose(&b, "cpu", 0));
    assert_string_equal(b.dev->name, "cpu");
    device_cuda_close();
    for (int devices = -1; devices <= 0; devices++) {
        DeviceInfo info;
        runtime_on_cpu_devices(devices);
        device_cuda_info(&info);
        assert_true(info.is_built && info.count == 0 && info.why[0]);
        MUST_FAIL(backend_choose(&b, "cuda", 0), E_PEER, devices < 0 ? "driver" : "no CUDA-capable device");
        MUST_OK(backend_choose(&b, "auto", 0));
        assert_string_equal(b.ops->backend, "cpu");
        assert_true(b.why[0] != '\0');
    }
    runtime_on_cpu_devices(2);
    MUST_OK(device_cuda_open(&dev, 5)); // rank 5 of the node shares device 1
    assert_string_equal(dev->name, "cuda");
    runtime_on_cpu_devices(1);
}
#endif

int main(void) {
    if (device_cuda_open(&dev, 0) != OK) return 70;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copies),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_faults),
#ifndef ON_DEVICE
        cmocka_unit_test(test_space),
        cmocka_unit_test(test_guard),
        cmocka_unit_test(test_without_device),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
