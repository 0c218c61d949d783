// latent_cache.c - memory of a text's latents.
#include "latent_cache.h"

#include "arena.h"

static Err allocate(LatentCache *c, const Shape *s) {
    MEM_NEW(c->row, c->nlayers);
    for (int64_t i = 0; i < c->nlayers; i++) {
        c->row[i] = mat(NULL, s->act, c->capacity, s->Rkv + s->Dr);
        size_t bytes = (size_t)(c->row[i].rows * c->row[i].cols) * dtype_bytes(s->act);
        TRY(mem_alloc(&c->row[i].p, bytes, "latent cache"));
    }
    MEM_NEW(c->rope, c->capacity * s->Dr);
    rope_table(c->rope, c->capacity, s->Dr, s->rope_theta, s->yarn);
    return OK;
}

Err latent_cache_create(LatentCache **out, const Shape *s, int64_t capacity) {
    LatentCache *c = NULL;
    MEM_NEW(c, 1);
    c->capacity = capacity;
    c->nlayers = s->nlayers;
    Err err = allocate(c, s);
    if (err != OK) latent_cache_free(&c);
    *out = c;
    return err;
}

void latent_cache_free(LatentCache **cp) {
    LatentCache *c = *cp;
    if (!c) return;
    for (int64_t i = 0; c->row && i < c->nlayers; i++) mem_free(c->row[i].p);
    mem_free(c->row);
    mem_free(c->rope);
    mem_free(c);
    *cp = NULL;
}

int64_t latent_cache_position_bytes(const Shape *s) {
    return s->nlayers * (s->Rkv + s->Dr) * (int64_t)dtype_bytes(s->act);
}

int64_t kv_position_bytes(const Shape *s) {
    return s->nlayers * s->H * (s->Dn + s->Dr + s->Dv) * (int64_t)dtype_bytes(s->act);
}
