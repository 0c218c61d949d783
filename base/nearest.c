// nearest.c - Levenshtein distance between short words.
#include "nearest.h"

#include <stddef.h>
#include <string.h>

static int word_distance(const char *a, const char *b) {
    int na = (int)strlen(a);
    int nb = (int)strlen(b);
    int row[NEAREST_MAX + 1];
    for (int j = 0; j <= nb; j++) row[j] = j;
    for (int i = 1; i <= na; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= nb; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

const char *word_nearest(const char *word, const char *const *candidates, int n) {
    size_t length = strlen(word);
    if (length == 0 || length > NEAREST_MAX) return NULL;
    int best = (int)length / 3 + 1;
    if (best > 3) best = 3;
    const char *found = NULL;
    for (int i = 0; i < n; i++) {
        if (strlen(candidates[i]) > NEAREST_MAX) continue;
        int d = word_distance(word, candidates[i]);
        if (d < best || (d == best && !found)) {
            best = d;
            found = candidates[i];
        }
    }
    return found;
}
