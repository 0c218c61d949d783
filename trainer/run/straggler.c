// straggler.c - see straggler.h.
#include "straggler.h"

#include <stdlib.h>
#include <string.h>

#include "arena.h"

typedef struct RankPace {
    bool is_slow, has_news;
    int64_t streak; // steps in a row that say the opposite of is_slow
    double sum;     // of the factors of those steps
    double seconds;
} RankPace;

struct Straggler {
    int nranks, next;
    double factor, median;
    int64_t steps;
    RankPace *rank; // [nranks]
    double *sorted; // [nranks]
};

Err straggler_create(Straggler **out, int nranks, double factor, int64_t steps) {
    Straggler *s = NULL;
    MEM_NEW(s, 1);
    *out = s;
    s->nranks = nranks;
    s->factor = factor;
    s->steps = steps;
    MEM_NEW(s->rank, nranks);
    MEM_NEW(s->sorted, nranks);
    return OK;
}

void straggler_free(Straggler **s) {
    if (!*s) return;
    mem_free((*s)->rank);
    mem_free((*s)->sorted);
    mem_free(*s);
    *s = NULL;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void note(Straggler *s, RankPace *r, double factor) {
    double middle = 1.0 + (s->factor - 1.0) / 2.0;
    bool is_other = r->is_slow ? factor < middle : factor >= s->factor;
    r->sum = is_other ? r->sum + factor : 0.0;
    r->streak = is_other ? r->streak + 1 : 0;
    if (r->streak < s->steps) return;
    r->is_slow = !r->is_slow;
    r->has_news = true;
}

void straggler_step(Straggler *s, const double *seconds, int *slowest, double *slowest_factor) {
    *slowest = 0;
    memcpy(s->sorted, seconds, (size_t)s->nranks * sizeof *seconds);
    qsort(s->sorted, (size_t)s->nranks, sizeof *s->sorted, by_size);
    s->median = s->sorted[(s->nranks - 1) / 2];
    s->next = 0;
    for (int i = 0; i < s->nranks; i++) {
        RankPace *r = &s->rank[i];
        r->seconds = seconds[i];
        if (seconds[i] > seconds[*slowest]) *slowest = i;
        if (s->steps > 0 && s->median > 0.0) note(s, r, seconds[i] / s->median);
    }
    *slowest_factor = s->median > 0.0 ? seconds[*slowest] / s->median : 1.0;
}

StragglerNews straggler_news(Straggler *s) {
    StragglerNews news = {.rank = -1};
    for (; s->next < s->nranks; s->next++) {
        RankPace *r = &s->rank[s->next];
        if (!r->has_news) continue;
        news.rank = s->next;
        news.is_over = !r->is_slow;
        news.factor = r->sum / (double)r->streak;
        news.seconds = r->seconds;
        news.median = s->median;
        r->has_news = false;
        r->streak = 0;
        r->sum = 0.0;
        break;
    }
    return news;
}
