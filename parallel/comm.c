// comm.c - what every group can do with its function table alone: the table of requests, sums in
// rank order, a maximum, and agreeing on one result so that all ranks stop together.
#include "comm.h"

#include <string.h>

// ---- requests ---------------------------------------------------------------------------------

Err comm_start_all_to_all_v(Comm *c, int *request, void *dst, const int64_t *rcount,
                            const int64_t *roff, const void *src, const int64_t *scount,
                            const int64_t *soff, size_t row_bytes) {
    int r = 0;
    while (r < COMM_REQUESTS && c->is_started[r]) r++;
    CHECK(r < COMM_REQUESTS, E_INTERNAL,
          "comm %s: %d all-to-alls are under way, no more can be started", c->name, COMM_REQUESTS);
    if (c->start)
        TRY(c->start(c, r, dst, rcount, roff, src, scount, soff, row_bytes));
    else
        TRY(c->all_to_all_v(c, dst, rcount, roff, src, scount, soff, row_bytes));
    c->is_started[r] = true;
    *request = r;
    return OK;
}

static Err check_started(const Comm *c, int request) {
    CHECK(request >= 0 && request < COMM_REQUESTS && c->is_started[request], E_INTERNAL,
          "comm %s: request %d was not started", c->name, request);
    return OK;
}

Err comm_wait(Comm *c, int *request) {
    int r = *request;
    TRY(check_started(c, r));
    c->is_started[r] = false;
    *request = -1;
    if (c->finish) TRY(c->finish(c, r));
    return OK;
}

Err comm_test(Comm *c, int request, bool *is_complete) {
    TRY(check_started(c, request));
    *is_complete = true;
    if (c->advance) TRY(c->advance(c, request, is_complete));
    return OK;
}

Err comm_progress(Comm *c) {
    bool is_complete = false;
    for (int r = 0; r < COMM_REQUESTS; r++) {
        if (c->is_started[r]) TRY(comm_test(c, r, &is_complete));
    }
    return OK;
}

// ---- sums -------------------------------------------------------------------------------------

// For each piece of x that fits a chunk: gather it from all ranks into scratch, then fold in rank
// order. Integers do without where the backend adds them itself.
typedef enum Fold { FOLD_SUM_F64, FOLD_SUM_I64, FOLD_MAX_I64 } Fold;

static void fold_piece(Fold how, void *x, const void *all, int n, int nranks) {
    const double *f = all;
    const int64_t *v = all;
    for (int i = 0; i < n; i++) {
        double sum = 0.0;
        uint64_t isum = 0; // hashes wrap around
        int64_t top = INT64_MIN;
        for (int r = 0; r < nranks; r++) {
            int64_t at = (int64_t)r * n + i;
            if (how == FOLD_SUM_F64) sum = r == 0 ? f[at] : sum + f[at];
            if (how == FOLD_SUM_I64) isum += (uint64_t)v[at];
            if (how == FOLD_MAX_I64) top = max_i64(top, v[at]);
        }
        if (how == FOLD_SUM_F64) ((double *)x)[i] = sum;
        if (how == FOLD_SUM_I64) ((int64_t *)x)[i] = (int64_t)isum;
        if (how == FOLD_MAX_I64) ((int64_t *)x)[i] = top;
    }
}

static Err fold(Comm *c, Fold how, void *x, int n) {
    CHECK(n >= 0 && n <= 65536, E_INTERNAL, "comm %s: a sum of %d numbers; the most is 65536",
          c->name, n);
    CHECK(!c->is_device, E_INTERNAL, "comm %s: sums are for numbers of the host", c->name);
    if (c->is_null || c->nranks == 1) return OK;
    c->what = how == FOLD_MAX_I64 ? "maximum" : "sum";
    if (how != FOLD_SUM_F64 && c->reduce_i64) return c->reduce_i64(c, x, n, how == FOLD_MAX_I64);
    const int step = COMM_CHUNK / 8; // numbers are 8 bytes
    for (int i = 0; i < n; i += step) {
        int m = n - i < step ? n - i : step;
        char *piece = (char *)x + (size_t)i * 8;
        c->what = "sum";
        TRY(c->all_gather(c, c->scratch, piece, (size_t)m * 8));
        fold_piece(how, piece, c->scratch, m, c->nranks);
    }
    return OK;
}

Err comm_sum(Comm *c, double *x, int n) {
    TRY(fold(c, FOLD_SUM_F64, x, n));
    return OK;
}

Err comm_sum_list(Comm *c, double *x, int n, double *list) {
    CHECK(n >= 1 && n <= COMM_CHUNK / 8, E_INTERNAL, "comm %s: a list with a sum of %d numbers", c->name, n);
    list[0] = x[n - 1];
    TRY(fold(c, FOLD_SUM_F64, x, n));
    if (c->is_null || c->nranks == 1) return OK;
    const double *all = c->scratch; // of the one piece
    for (int r = 0; r < c->nranks; r++) list[r] = all[(int64_t)r * n + n - 1];
    return OK;
}

Err comm_sum_i64(Comm *c, int64_t *x, int n) {
    TRY(fold(c, FOLD_SUM_I64, x, n));
    return OK;
}

Err comm_max_i64(Comm *c, int64_t *x, int n) {
    TRY(fold(c, FOLD_MAX_I64, x, n));
    return OK;
}

// ---- agreement --------------------------------------------------------------------------------

#define AGREE_TEXT 1024

// has_rank: the message already names its rank, from an earlier agreement in a smaller group.
static bool has_rank(const char *text) {
    if (strncmp(text, "rank ", 5) != 0) return false;
    size_t digits = strspn(text + 5, "0123456789");
    return digits > 0 && text[5 + digits] == ':';
}

static _Thread_local bool is_agreed; // the current error is known to the whole group

bool comm_is_agreed(void) {
    return is_agreed;
}

Err comm_agree(Comm *c, Err mine) {
    if (c->is_null || c->nranks == 1) return mine == OK ? OK : fail_frame(mine, __FILE__, __LINE__);
    char text[AGREE_TEXT] = "";
    if (mine != OK) {
        fail_frame(mine, __FILE__, __LINE__);
        const char *message = fail_message();
        if (has_rank(message)) {
            snprintf(text, sizeof text, "%s", message);
        } else {
            snprintf(text, sizeof text, "rank %d: %s", c->world_rank, message);
        }
    }
    int32_t code = (int32_t)mine;
    int32_t *codes = c->scratch;
    c->what = "agreement";
    Err err = c->all_gather(c, codes, &code, sizeof code);
    if (err != OK && mine != OK)
        FAIL(mine, "%s", text); // the own error explains more than the lost group
    TRY(err);
    int worst = 0;
    for (int r = 1; r < c->nranks; r++) {
        if (codes[r] > codes[worst]) worst = r;
    }
    is_agreed = codes[worst] != OK;
    if (!is_agreed) return OK;
    Err agreed = (Err)codes[worst];
    c->what = "error text";
    TRY(c->broadcast(c, text, sizeof text, worst));
    text[sizeof text - 1] = '\0';
    if (c->rank == worst) return agreed;
    FAIL(agreed, "%s", text);
}
