// mesh.c - the arithmetic of the rank grid and its errors, which say what would fit.
#include "mesh.h"

// divisors: "1, 2, 4" for 4, cut off after a dozen.
static void divisors(char *out, size_t size, int64_t n) {
    size_t at = 0;
    int found = 0;
    out[0] = '\0';
    for (int64_t d = 1; d <= n && found < 12 && at < size; d++) {
        if (n % d != 0) continue;
        int w = snprintf(out + at, size - at, "%s%lld", found ? ", " : "", (long long)d);
        at += w > 0 ? (size_t)w : 0;
        found++;
    }
}

Err mesh_build(Mesh *m, int world, int rank, int ep) {
    CHECK(world >= 1 && rank >= 0 && rank < world, E_INTERNAL, "mesh: rank %d of a world of %d",
          rank, world);
    CHECK(ep >= 1, E_CONFIG, "parallel.ep (%d) must be at least 1", ep);
    if (world % ep != 0) {
        char fit[160];
        divisors(fit, sizeof fit, world);
        FAIL(E_CONFIG,
             "parallel.ep (%d) does not divide the world (%d): world = dp * ep; with %d ranks ep "
             "can be %s",
             ep, world, world, fit);
    }
    m->world = world;
    m->rank = rank;
    m->ep = ep;
    m->ep_rank = rank % ep;
    m->dp = world / ep;
    m->dp_rank = rank / ep;
    return OK;
}

Err mesh_experts(const Mesh *m, int64_t nexperts, int64_t *first, int64_t *n) {
    CHECK(nexperts >= 1 && nexperts % m->ep == 0, E_CONFIG,
          "parallel.ep (%d) does not divide model.n_routed_experts (%lld): every rank of an expert "
          "group holds "
          "n_routed_experts / ep experts",
          m->ep, (long long)nexperts);
    *n = nexperts / m->ep;
    *first = *n * m->ep_rank;
    return OK;
}
