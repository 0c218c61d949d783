// test_ledger.c - what a rank remembers of its operations, its file, what a damaged one is told, and the sentence about
// a run that stands still, for every way of standing still.
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "log.h"
#include "must.h"
#include "scratch_dir.h"
#include "verdict.h"

// ---- the ring and its file ----------------------------------------------------------------------

static LedgerHead head;
static LedgerEntry ring[LEDGER_RING];

// A group of two without a library: its operations do nothing.
static Err make_pair(Ledger *l, Comm **c) {
    TRY(comm_null(c, "ep", 1, 2));
    (*c)->is_null = false;
    return ledger_watch(l, *c, 4, 1);
}

static void test_ring(void **state) {
    (void)state;
    Ledger *l = NULL;
    Comm *c = NULL, *alone = NULL;
    LedgerState s;
    char dst[16];
    int64_t v = 3;
    MUST_OK(ledger_create(&l, 5, 8, "host7"));
    MUST_OK(make_pair(l, &c));
    MUST_OK(comm_self(&alone, "edp"));
    MUST_OK(ledger_watch(l, alone, 5, 8));
    ledger_step(l, 12);
    ledger_block(l, 3, LEDGER_BACKWARD);
    c->what = "counts";
    MUST_OK(c->all_to_all(c, dst, dst, 8));
    MUST_OK(c->barrier(c));
    MUST_OK(alone->barrier(alone)); // nobody to wait for: not recorded
    const LedgerHead *h = ledger_head(l);
    assert_int_equal(h->count, 2);
    assert_int_equal(h->ngroups, 1);
    assert_int_equal(h->group[0].entered, 2);
    assert_int_equal(h->inside, -1);
    const LedgerEntry *e = ledger_ring(l);
    assert_int_equal(e[0].seq, 1);
    assert_int_equal(e[0].op, LEDGER_ALL_TO_ALL);
    assert_int_equal(e[0].bytes, 8);
    assert_int_equal(e[0].step, 12);
    assert_int_equal(e[0].layer, 3);
    assert_string_equal(e[0].what, "counts");
    assert_string_equal(e[1].what, ""); // the word is for one operation
    assert_true(e[1].left >= e[1].entered && e[1].entered >= e[0].left && e[0].entered > 0.0);
    ledger_state(&s, h, e, now_seconds(), 0.0);
    assert_false(s.is_inside);
    assert_true(s.has_last && s.last.op == LEDGER_BARRIER);
    // Waiting: for as long as the rank has waited, or as its process has run since it was stopped.
    int64_t number = ledger_begin(l, 0, LEDGER_BROADCAST, 100, "error text");
    double t0 = now_seconds(), waited = ledger_waited(l);
    ledger_wait(l, number);
    ledger_state(&s, h, e, t0 + 30.0, 0.0);
    assert_true(s.is_inside && s.inside.op == LEDGER_BROADCAST && s.inside_age > 29.9 && s.inside_age < 30.1);
    ledger_state(&s, h, e, t0 + 30.0, t0 + 28.0);
    assert_true(s.inside_age < 2.1 && s.idle < 2.1);
    usleep(20000);
    ledger_end(l, number);
    assert_true(ledger_waited(l) - waited >= 0.02);
    // More operations than there is room for; one under way all the time.
    int64_t slow = ledger_begin(l, 0, LEDGER_ALL_TO_ALL, 1, "slow");
    for (int i = 0; i < 3 * LEDGER_RING; i++) MUST_OK(comm_sum_i64(c, &v, 1));
    ledger_wait(l, slow);
    ledger_end(l, slow); // its entry was taken: must not touch the new one
    for (int i = 0; i < LEDGER_RING; i++) assert_true(e[i].left > 0.0 && strcmp(e[i].what, "slow") != 0);
    assert_int_equal(h->count, 4 + 3 * LEDGER_RING);
    comm_destroy(&alone);
    comm_destroy(&c);
    ledger_close(&l);
}

// A phase and its age; without a ledger nothing happens.
static void test_phases(void **state) {
    (void)state;
    Ledger *l = NULL;
    LedgerState s;
    assert_int_equal(ledger_phase(NULL, PHASE_SAVE), PHASE_START);
    ledger_step(NULL, 1);
    ledger_block(NULL, 1, LEDGER_FORWARD);
    ledger_alive(NULL);
    assert_true(ledger_waited(NULL) == 0.0);
    MUST_OK(ledger_create(&l, 0, 1, "h"));
    assert_int_equal(ledger_phase(l, PHASE_SAVE), PHASE_START);
    assert_int_equal(ledger_phase(l, PHASE_SAVE), PHASE_SAVE);
    ledger_state(&s, ledger_head(l), ledger_ring(l), now_seconds() + 5.0, 0.0);
    assert_int_equal(s.phase, PHASE_SAVE);
    assert_true(s.idle > 4.9 && s.phase_age > 4.9 && s.idle <= s.phase_age);
    assert_string_equal(ledger_phase_name(PHASE_SAVE), "save");
    ledger_close(&l);
}

// Killed in an operation, the file says so; the one of the start before is kept.
static void test_survives(void **state) {
    (void)state;
    const char *dir = at("ledger");
    for (int start = 1; start <= 2; start++) {
        pid_t child = fork();
        if (child == 0) {
            Ledger *l = NULL;
            Comm *c = NULL;
            if (ledger_create(&l, 5, 8, "host7") != OK || make_pair(l, &c) != OK) _exit(1);
            for (int i = 0; i < start; i++)
                if (c->barrier(c) != OK) _exit(1);
            if (ledger_open(l, dir) != OK || c->barrier(c) != OK) _exit(1); // some before the file, some after
            ledger_wait(l, ledger_begin(l, 0, LEDGER_ALL_GATHER, 7, "agreement"));
            raise(SIGKILL);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        MUST_OK(ledger_read(at("ledger/rank_00005.bin"), &head, ring));
        assert_int_equal(head.pid, child);
        assert_int_equal(head.is_closed, 0);
        assert_int_equal(head.count, start + 2);
        assert_int_equal(head.inside, start + 1);
        assert_int_equal(ring[start + 1].op, LEDGER_ALL_GATHER);
        assert_string_equal(ring[start + 1].what, "agreement");
        assert_true(ring[0].left > 0.0 && ring[start].left > 0.0);
    }
    MUST_OK(ledger_read(at("ledger/rank_00005.old.bin"), &head, ring));
    assert_int_equal(head.count, 3);
}

static void test_damaged_file(void **state) {
    (void)state;
    Ledger *l = NULL;
    char *bytes = NULL;
    const char *path = at("made/rank_00002.bin");
    MUST_FAIL(ledger_read(path, &head, ring), E_INPUT, "cannot read");
    MUST_OK(ledger_create(&l, 2, 4, "h"));
    MUST_OK(ledger_open(l, at("made")));
    ledger_end(l, ledger_begin(l, 0, LEDGER_BARRIER, 0, NULL));
    ledger_close(&l);
    MUST_OK(ledger_read(path, &head, ring));
    assert_int_equal(head.is_closed, 1);
    size_t n = sizeof head + sizeof ring;
    bytes = malloc(n);
    assert_non_null(bytes);
    memcpy(bytes, &head, sizeof head);
    memcpy(bytes + sizeof head, ring, sizeof ring);
    MUST_FAIL(ledger_read(scratch_write(at("cut"), bytes, n - 1), &head, ring), E_INPUT, "was cut");
    MUST_FAIL(ledger_read(scratch_write(at("junk"), "junk", 4), &head, ring), E_INPUT, "no ledger");
    bytes[8] = 99;
    MUST_FAIL(ledger_read(scratch_write(at("version"), bytes, n), &head, ring), E_INPUT, "version 99");
    bytes[8] = LEDGER_VERSION;
    // Whatever the bytes are: refused, or nothing of it leads outside of its arrays.
    uint64_t x = 1;
    for (int i = 0; i < 500; i++) {
        LedgerState s;
        Verdict v;
        bool marks[4];
        double limit[LEDGER_PHASES] = {1, 1, 1, 1, 1};
        char text[200];
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        size_t where = 16 + (size_t)(x >> 33) % (sizeof head + 200);
        char was = bytes[where];
        bytes[where] = (char)(x >> 24);
        if (ledger_read(scratch_write(at("bad"), bytes, n), &head, ring) == OK) {
            ledger_state(&s, &head, ring, 1e9, 0.0);
            if (s.has_last) ledger_describe(text, sizeof text, &s.last, s.group);
            s.rank = 0;
            LedgerState two[2] = {s, s};
            two[1].rank = 1;
            verdict_find(&v, two, 2, limit, marks);
        }
        bytes[where] = was;
    }
    free(bytes);
    fail_clear();
}

// ---- verdicts -----------------------------------------------------------------------------------

enum { N = 8 };
static LedgerState ranks[N];
static const double limits[LEDGER_PHASES] = {100, 20, 10, 50, 30};

// Eight ranks in two expert groups of four; all have done 100 operations of the world, 40 of ep and 7 of edp, and
// compute.
static void all_compute(void) {
    memset(ranks, 0, sizeof ranks);
    for (int i = 0; i < N; i++) {
        LedgerState *s = &ranks[i];
        LedgerGroup world = {"world", 0, 1, N, 0, 100}, ep = {"ep", i / 4 * 4, 1, 4, 0, 40};
        LedgerGroup edp = {"edp", i % 4, 4, 2, 0, 7};
        s->is_known = true;
        s->rank = i;
        s->pid = 1000 + i;
        s->ngroups = 3;
        s->step = 30;
        s->phase = PHASE_STEP;
        s->layer = 11;
        s->idle = 0.5;
        s->group[0] = world;
        s->group[1] = ep;
        s->group[2] = edp;
        snprintf(s->host, sizeof s->host, "node%d", i / 4);
    }
}

// waits: rank i waits in the next operation of its group g for so many seconds.
static void waits(int i, int g, LedgerOp op, const char *what, double seconds) {
    LedgerState *s = &ranks[i];
    LedgerEntry e = {.seq = ++s->group[g].entered, .op = (uint8_t)op, .group = (uint8_t)g, .layer = 12,
                     .pass = LEDGER_FORWARD};
    snprintf(e.what, sizeof e.what, "%s", what);
    s->is_inside = true;
    s->inside = e;
    s->inside_age = s->idle = seconds;
}

static Verdict find(void) {
    static bool marks[2 * N];
    Verdict v;
    verdict_find(&v, ranks, N, limits, marks);
    return v;
}

static void expect(VerdictKind kind, int culprit, const char *says) {
    Verdict v = find();
    if (v.kind != kind || v.culprit != culprit || (says && !strstr(v.text, says)))
        fail_msg("kind %d culprit %d: \"%s\", not kind %d culprit %d \"%s\"", v.kind, v.culprit, v.text, kind, culprit,
                 says ? says : "");
}

static void test_none(void **state) {
    (void)state;
    all_compute();
    expect(VERDICT_NONE, -1, NULL);
    for (int i = 0; i < N; i++)
        if (i != 2) waits(i, 0, LEDGER_REDUCE, "sum", 9.9); // within the limit
    expect(VERDICT_NONE, -1, NULL);
}

// One rank never came: the whole sentence.
static void test_never_entered(void **state) {
    (void)state;
    all_compute();
    LedgerEntry last = {.seq = 40, .op = LEDGER_ALL_TO_ALL, .group = 1, .layer = 11, .pass = LEDGER_FORWARD,
                        .what = "combine"};
    ranks[2].last = last;
    ranks[2].has_last = true;
    ranks[2].last_age = 33.0;
    ranks[2].idle = 33.0;
    for (int i = 0; i < 4; i++)
        if (i != 2) waits(i, 1, LEDGER_ALL_TO_ALL, "dispatch", 30.0 + i);
    expect(VERDICT_HANG, 2,
           "rank 2 (node0) never entered all-to-all of block 12 (dispatch, forward, sequence 41 of ep), that ranks "
           "0, 1, 3 wait in since 33s; its last: left all-to-all of block 11 (combine, forward, sequence 40 of ep) "
           "33s ago, phase step, step 30, in block 11; no sign of life since 33s");
    // The others of the world wait for that expert group, in something else.
    for (int i = 4; i < N; i++) waits(i, 0, LEDGER_ALL_TO_ALL, "gradients", 34.0);
    expect(VERDICT_HANG, 2, "rank 2 (node0) never entered");
    Verdict v = find();
    assert_non_null(strstr(v.text, "(4 more wait elsewhere)"));
    // Two of them, one of which does not answer.
    ranks[1].is_inside = false;
    ranks[1].group[1].entered = 40;
    ranks[1].is_silent = true;
    expect(VERDICT_HANG, 1, "ranks 1, 2 (node0 and others) never entered");
    v = find();
    assert_non_null(strstr(v.text, "process 1001 is stopped, or its host is lost"));
}

// Stopped inside of the operation, or after having begun one that it was to finish later.
static void test_entered(void **state) {
    (void)state;
    all_compute();
    for (int i = 0; i < N; i++) waits(i, 0, LEDGER_ALL_GATHER, "agreement", 40.0);
    ranks[5].is_silent = true;
    expect(VERDICT_HANG, 5,
           "rank 5 (node1) stopped in all-gather (agreement, sequence 101 of world), that ranks 0-4, 6, 7 wait in");
    ranks[5].is_gone = true;
    expect(VERDICT_HANG, 5, "its process 1005 is gone");
    ranks[5].is_silent = ranks[5].is_gone = false;
    expect(VERDICT_HANG, -1, "ranks 0-7 are all in all-gather (agreement, sequence 101 of world) since 40s");
    ranks[5].is_inside = false;
    ranks[5].idle = 45.0;
    expect(VERDICT_HANG, 5, "rank 5 (node1) began but never came to finish all-gather");
    ranks[5].idle = 2.0; // it computes
    expect(VERDICT_WAIT, 5, NULL);
}

// Some are still in an operation that the others have left: the message to them is lost, or they were stopped and are
// not any more.
static void test_left_behind(void **state) {
    (void)state;
    all_compute();
    for (int i = 0; i < 4; i++) waits(i, 1, LEDGER_ALL_TO_ALL, "combine", 31.0);
    for (int i = 1; i < 4; i++) waits(i, 1, LEDGER_ALL_TO_ALL, "counts", 30.0);
    expect(VERDICT_HANG, 0,
           "rank 0 (node0) never entered all-to-all of block 12 (counts, forward, sequence 42 of ep), that ranks 1-3 "
           "wait in since 30s; its last: in all-to-all of block 12 (combine, forward, sequence 41 of ep) since 31s");
    all_compute();
    for (int i = 0; i < 4; i++) waits(i, 1, LEDGER_ALL_TO_ALL, "combine", 31.0);
    for (int i = 0; i < 3; i += 2) waits(i, 1, LEDGER_ALL_TO_ALL, "counts", 9.0);
    expect(VERDICT_WAIT, 1, "ranks 1, 3 (node0 and others) never entered");
    Verdict v = find();
    assert_true(v.left == 1.0);
    // In another group, or begun to be finished later: that says nothing about the one that they are in.
    all_compute();
    for (int i = 0; i < N; i++) waits(i, 0, LEDGER_REDUCE, "sum", 40.0);
    for (int i = 0; i < 4; i++) ranks[i].group[1].entered = 50;
    expect(VERDICT_HANG, -1, "ranks 0-7 are all in reduction (sum, sequence 101 of world) since 40s");
    for (int i = 1; i < N; i++) ranks[i].inside.seq++;
    for (int i = 0; i < N; i++) ranks[i].group[0].entered = 102;
    expect(VERDICT_HANG, -1, "are all in reduction (sum, sequence 101 of world) since 40s");
}

// The last one came only now: the operation has its time from then on.
static void test_came_late(void **state) {
    (void)state;
    all_compute();
    for (int i = 0; i < N; i++) waits(i, 0, LEDGER_REDUCE, "sum", i == 6 ? 2.0 : 40.0);
    expect(VERDICT_WAIT, 6,
           "rank 6 (node1) came to reduction (sum, sequence 101 of world) 38s after rank 0 (node0), and is in it since "
           "2s");
    Verdict v = find();
    assert_true(v.left == 8.0);
    ranks[6].inside_age = 10.0;
    expect(VERDICT_HANG, -1, "ranks 0-7 are all in reduction (sum, sequence 101 of world) since 40s");
}

// A rank that saves, or reads, for as long as that may take.
static void test_phases_allow(void **state) {
    (void)state;
    all_compute();
    for (int i = 1; i < N; i++) waits(i, 0, LEDGER_ALL_GATHER, "agreement", 40.0);
    ranks[0].phase = PHASE_SAVE;
    ranks[0].idle = 40.0;
    expect(VERDICT_WAIT, 0, "rank 0 (node0) never entered");
    Verdict v = find();
    assert_true(v.left == 10.0);
    assert_non_null(strstr(v.text, "phase save"));
    ranks[0].idle = 51.0;
    expect(VERDICT_HANG, 0, "phase save");
    // The others are in a phase without a limit.
    for (int i = 1; i < N; i++) ranks[i].phase = PHASE_EVAL;
    ranks[0].idle = 29.0;
    for (int i = 1; i < N; i++) ranks[i].inside_age = 29.0;
    expect(VERDICT_NONE, -1, NULL);
}

static void test_chains(void **state) {
    (void)state;
    // 0 waits for 4 (edp), 4 waits for 6 (ep), 6 stands still.
    all_compute();
    waits(0, 2, LEDGER_ALL_TO_ALL, "gradients", 50.0);
    waits(4, 1, LEDGER_ALL_TO_ALL, "dispatch", 40.0);
    waits(5, 1, LEDGER_ALL_TO_ALL, "dispatch", 40.0);
    waits(7, 1, LEDGER_ALL_TO_ALL, "dispatch", 40.0);
    ranks[6].idle = 41.0;
    expect(VERDICT_HANG, 6, "that ranks 4, 5, 7 wait in since 40s (1 more wait elsewhere)");
    // 0 and 4 wait for each other.
    all_compute();
    waits(0, 2, LEDGER_ALL_TO_ALL, "gradients", 50.0);
    for (int i = 1; i < N; i++) waits(i, 0, LEDGER_REDUCE, "sum", 40.0);
    expect(VERDICT_HANG, -1, "ranks wait for each other: rank ");
    expect(VERDICT_HANG, -1, "rank 0 (node0) in all-to-all (gradients, sequence 8 of edp) since 50s");
    expect(VERDICT_HANG, -1, "rank 4 (node1) in reduction (sum, sequence 101 of world) since 40s");
    // One sums where the others agree: what a bug looks like.
    all_compute();
    for (int i = 0; i < N; i++) waits(i, 0, i == 3 ? LEDGER_REDUCE : LEDGER_ALL_GATHER, "x", 40.0);
    expect(VERDICT_HANG, -1, "ranks are in different operations: rank 0 (node0) in all-gather");
    // Nobody waits, but one stands still.
    all_compute();
    ranks[3].idle = 12.0;
    expect(VERDICT_HANG, 3, "rank 3 (node0) stands still and nobody waits for it");
    ranks[3].is_closed = true;
    expect(VERDICT_NONE, -1, NULL);
    // All stand still, waiting for their devices: the one that has not issued its part, or that does not answer.
    all_compute();
    for (int i = 0; i < N; i++) ranks[i].idle = 12.0;
    expect(VERDICT_HANG, 0, "rank 0 (node0) stands still and nobody waits for it");
    for (int i = 4; i < N; i++) ranks[i].group[1].entered += i != 6;
    expect(VERDICT_HANG, 6, "rank 6 (node1) never began operation 41 of ep, while rank 0 (node0) stands still;");
    ranks[5].is_silent = true;
    expect(VERDICT_HANG, 5, "rank 5 (node1) is lost, while rank 0 (node0) stands still");
    // Nothing is known of the others.
    all_compute();
    waits(2, 0, LEDGER_REDUCE, "sum", 40.0);
    for (int i = 0; i < N; i++) ranks[i].is_known = i == 2;
    expect(VERDICT_HANG, -1, "rank 2 (node0) waits in reduction (sum, sequence 101 of world) since 40s, and nothing");
}

static void test_rank_lists(void **state) {
    (void)state;
    bool in[64] = {false};
    char text[200];
    in[3] = true;
    verdict_ranks(text, sizeof text, in, 64);
    assert_string_equal(text, "rank 3");
    in[4] = in[7] = in[8] = in[9] = true;
    verdict_ranks(text, sizeof text, in, 64);
    assert_string_equal(text, "ranks 3, 4, 7-9");
    for (int i = 0; i < 64; i++) in[i] = i % 2 == 0;
    verdict_ranks(text, sizeof text, in, 64);
    assert_string_equal(text, "ranks 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22 and 20 more");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring),          cmocka_unit_test(test_phases),
        cmocka_unit_test(test_survives),      cmocka_unit_test(test_damaged_file),
        cmocka_unit_test(test_none),          cmocka_unit_test(test_never_entered),
        cmocka_unit_test(test_entered),       cmocka_unit_test(test_left_behind),
        cmocka_unit_test(test_came_late),     cmocka_unit_test(test_phases_allow),
        cmocka_unit_test(test_chains),        cmocka_unit_test(test_rank_lists),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
