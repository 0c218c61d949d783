// test_rank_map.c - where ranks are, in words; doubled GPUs and overlapping cores are named.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "rank_map.h"

static void put(RankPlace *p, const char *host, int first, int last, const char *gpu) {
    memset(p, 0, sizeof *p);
    strcpy(p->host, host);
    strcpy(p->gpu, gpu);
    for (int i = first; i <= last; i++) p->cores[i / 64] |= (uint64_t)1 << (i % 64);
}

static char text[512];

static void test_lines(void **state) {
    (void)state;
    RankPlace all[6];
    put(&all[0], "a", 0, 1, "");
    put(&all[1], "b", 0, 127, "");
    put(&all[2], "a", 62, 65, "");
    put(&all[3], "b", 0, 127, "");
    put(&all[4], "a", 5, 5, "");
    put(&all[5], "c", 0, 3, "01:00");
    all[4].cores[1] |= 2; // and core 65, which rank 2 has too
    assert_int_equal(rank_map_line(all, 6, 0, text, sizeof text), 1);
    assert_string_equal(text, "a: ranks 0,2,4, cores 0-1 | 62-65 | 5,65");
    assert_int_equal(rank_map_line(all, 6, 1, text, sizeof text), 5);
    assert_string_equal(text, "b: ranks 1,3, cores 0-127 for all");
    assert_int_equal(rank_map_line(all, 6, 5, text, sizeof text), 6);
    assert_string_equal(text, "c: rank 5, cores 0-3, gpu 01:00");
    assert_int_equal(rank_map_warning(all, 6, 0, text, sizeof text), 1);
    assert_string_equal(text, "ranks 2,4 on a are bound to cores that others of them are bound to as well");
    assert_int_equal(rank_map_warning(all, 6, 1, text, sizeof text), 5);
    assert_string_equal(text, "");
    char tiny[12]; // whatever the room, it is kept to
    rank_map_line(all, 6, 0, tiny, sizeof tiny);
    assert_string_equal(tiny, "a: ranks 0,");
}

static void test_gpus(void **state) {
    (void)state;
    RankPlace all[8];
    for (int i = 0; i < 8; i++) {
        char gpu[8] = {(char)('0' + i % 4), '\0'};
        put(&all[i], i < 4 ? "x" : "y", 4 * (i % 4), 4 * (i % 4) + 3, gpu);
    }
    for (int at = 0; at < 8; at = rank_map_warning(all, 8, at, text, sizeof text)) assert_string_equal(text, "");
    strcpy(all[6].gpu, "0"); // as rank 4; rank 0 has a GPU of that name on another host
    strcpy(all[7].gpu, "1");
    assert_int_equal(rank_map_warning(all, 8, 0, text, sizeof text), 4);
    assert_string_equal(text, "");
    assert_int_equal(rank_map_warning(all, 8, 4, text, sizeof text), 8);
    assert_string_equal(text, "ranks 4,6 on y have the same GPU 0; ranks 5,7 on y have the same GPU 1");
    assert_int_equal(rank_map_line(all, 8, 4, text, sizeof text), 8);
    assert_string_equal(text, "y: ranks 4-7, cores 0-3 | 4-7 | 8-11 | 12-15, gpu 0 | 1 | 0 | 1");
}

// All free to use the same cores is no binding; two ranks on one core is one too many.
static void test_crowded(void **state) {
    (void)state;
    RankPlace all[2];
    put(&all[0], "x", 0, 1, "");
    put(&all[1], "x", 0, 1, "");
    rank_map_warning(all, 2, 0, text, sizeof text);
    assert_string_equal(text, "");
    put(&all[0], "x", 3, 3, "");
    put(&all[1], "x", 3, 3, "");
    rank_map_warning(all, 2, 0, text, sizeof text);
    assert_string_equal(text, "ranks 0-1 on x share 1 core");
    put(&all[0], "x", 3, 3, "");
    put(&all[1], "y", 3, 3, "");
    assert_int_equal(rank_map_warning(all, 2, 0, text, sizeof text), 1);
    assert_string_equal(text, "");
}

static void test_own_place(void **state) {
    (void)state;
    Comm *world = NULL;
    RankPlace mine, all[1];
    rank_place(&mine, "here", "");
    assert_int_equal(comm_self(&world, "world"), OK);
    assert_int_equal(rank_map_gather(all, &mine, world), OK);
    assert_int_equal(rank_map_line(all, 1, 0, text, sizeof text), 1);
    assert_true(strncmp(text, "here: rank 0, cores ", 20) == 0 && text[20] >= '0' && text[20] <= '9');
    comm_destroy(&world);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_lines), cmocka_unit_test(test_gpus),
                                       cmocka_unit_test(test_crowded), cmocka_unit_test(test_own_place)};
    return cmocka_run_group_tests_name("rank_map", tests, NULL, NULL);
}
