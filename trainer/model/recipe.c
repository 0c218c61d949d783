// recipe.c - from the settings of section fp8 to the table that quantisation reads. See recipe.h.
#include "recipe.h"

#include <string.h>

static ScaleType scale_of(int format) {
    return format == SCALE_FORMAT_POW2 ? SCALE_E8M0 : SCALE_F32;
}

Recipe recipe_from_config(const Config *c) {
    // In the order of config.def.
    static const QuantScope scopes[] = {
        [SCALING_TILE] = SCOPE_TILE,
        [SCALING_ROW] = SCOPE_ROW,
        [SCALING_TENSOR] = SCOPE_TENSOR,
        [SCALING_STATIC] = SCOPE_STATIC,
    };
    static const GemmAccumulate sums[] = {
        [ACCUMULATE_PROMOTE128] = GEMM_PROMOTE128,
        [ACCUMULATE_FP32] = GEMM_FP32,
        [ACCUMULATE_HOPPER14] = GEMM_HOPPER14,
        [ACCUMULATE_PROMOTE128_HOPPER14] = GEMM_PROMOTE128_HOPPER14,
    };
    QuantScope scope = scopes[c->fp8.scaling];
    ScaleType tiles = scale_of(c->fp8.scale_format);
    Recipe r = {.accumulate = sums[c->fp8.accumulate],
                .static_steps = c->fp8.static_steps,
                .static_margin = (float)c->fp8.static_margin};
    RecipeRow activation = {scope, tiles, CODE_E4M3};
    RecipeRow weight = {scope == SCOPE_ROW ? SCOPE_TENSOR : scope, SCALE_F32, CODE_E4M3};
    if (c->fp8.weight_scale_format == WEIGHT_SCALE_FORMAT_POW2) weight.scale = SCALE_E8M0;
    RecipeRow gradient = {c->fp8.grad_tile == GRAD_TILE_128X128 ? SCOPE_BLOCK : scope, tiles,
                          c->fp8.grad_format == GRAD_FORMAT_E5M2 ? CODE_E5M2 : CODE_E4M3};
    if (c->fp8.grad_scale_format != GRAD_SCALE_FORMAT_SAME)
        gradient.scale = c->fp8.grad_scale_format == GRAD_SCALE_FORMAT_POW2 ? SCALE_E8M0 : SCALE_F32;
    RecipeRow cache = {SCOPE_TILE, SCALE_E8M0, CODE_E4M3};
    r.row[CLASS_ACTIVATION] = activation;
    r.row[CLASS_WEIGHT] = weight;
    r.row[CLASS_GRADIENT] = gradient;
    r.row[CLASS_CACHE] = cache;
    return r;
}

Err recipe_check(const Config *c) {
    if (c->precision.mode != MODE_FP8) return OK;
    CHECK(c->fp8.grad_tile == GRAD_TILE_1X128 || c->fp8.scaling == SCALING_TILE, E_CONFIG,
          "fp8.grad_tile 128x128 needs fp8.scaling tile: with fp8.scaling %s gradients share their scales as "
          "activations do; leave fp8.grad_tile at 1x128, or set fp8.scaling to tile",
          config_choice(c, "fp8", "scaling").s);
    return OK;
}

bool recipe_is_static(const Recipe *r) {
    return r->row[CLASS_ACTIVATION].scope == SCOPE_STATIC;
}

static const char *scope_name(TensorClass c, QuantScope scope) {
    switch (scope) {
    case SCOPE_TILE: return c == CLASS_WEIGHT ? "128x128" : "1x128";
    case SCOPE_BLOCK: return "128x128";
    case SCOPE_ROW: return "row";
    case SCOPE_TENSOR: return "tensor";
    case SCOPE_STATIC: return "static";
    }
    return "";
}

static const char *accumulate_name(GemmAccumulate a) {
    switch (a) {
    case GEMM_PROMOTE128: return "promote128";
    case GEMM_FP32: return "fp32";
    case GEMM_HOPPER14: return "hopper14";
    case GEMM_PROMOTE128_HOPPER14: return "promote128_hopper14";
    }
    return "";
}

Err recipe_check_backend(const Recipe *r, const char *backend) {
    if (strcmp(backend, "cpu") == 0 || strcmp(backend, "null") == 0) return OK;
    static const char supported[] = "it supports fp8.scaling tile, fp8.grad_tile 1x128, fp8.grad_format e4m3 and "
                                    "fp8.accumulate promote128 (on Hopper, whose tensor cores keep 14 bits, that is "
                                    "promote128_hopper14) or fp32; the rest are baselines of the cpu backend";
    for (int c = 0; c < CLASS_COUNT; c++) {
        const RecipeRow *row = &r->row[c];
        bool is_grad_tile = row->scope == SCOPE_BLOCK;
        CHECK(row->scope == SCOPE_TILE, E_CONFIG, "%s %s is not supported by the %s backend: %s",
              is_grad_tile ? "fp8.grad_tile" : "fp8.scaling", scope_name((TensorClass)c, row->scope), backend,
              supported);
        CHECK(row->code == CODE_E4M3, E_CONFIG, "fp8.grad_format e5m2 is not supported by the %s backend: %s", backend,
              supported);
    }
    CHECK(r->accumulate == GEMM_PROMOTE128 || r->accumulate == GEMM_FP32, E_CONFIG,
          "fp8.accumulate %s is not supported by the %s backend: %s", accumulate_name(r->accumulate), backend,
          supported);
    return OK;
}

// row_text: " 1x128 pow2 e4m3" behind the name of a class; returns the characters written.
static size_t row_text(char *out, size_t n, const char *name, TensorClass c, const RecipeRow *row) {
    return (size_t)snprintf(out, n, "%s %s %s %s", name, scope_name(c, row->scope),
                            row->scale == SCALE_E8M0 ? "pow2" : "fp32", row->code == CODE_E5M2 ? "e5m2" : "e4m3");
}

RecipeText recipe_text(const Config *c) {
    static const TensorClass shown[] = {CLASS_ACTIVATION, CLASS_WEIGHT, CLASS_GRADIENT};
    RecipeText t = {{0}, {0}};
    size_t n = 0, size = sizeof t.classes;
    if (c->precision.mode != MODE_FP8) {
        snprintf(t.classes, size, "%s", config_choice(c, "precision", "mode").s);
        return t;
    }
    Recipe r = recipe_from_config(c);
    for (int i = 0; i < 3; i++) {
        if (i > 0) n += (size_t)snprintf(t.classes + n, size - n, ", ");
        n += row_text(t.classes + n, size - n, class_name(shown[i]), shown[i], &r.row[shown[i]]);
    }
    if (recipe_is_static(&r))
        n += (size_t)snprintf(t.classes + n, size - n, "; calibrated in %lld steps per tensor, margin %g",
                              (long long)r.static_steps, (double)r.static_margin);
    snprintf(t.classes + n, size - n, "; accumulate %s", accumulate_name(r.accumulate));
    size = sizeof t.kept;
    n = (size_t)snprintf(t.kept, size, "attention output %s, SwiGLU inputs ",
                         config_choice(c, "fp8", "cache_attn_out").s);
    if (c->fp8.cache_swiglu == CACHE_SWIGLU_BF16) snprintf(t.kept + n, size - n, "bf16");
    else row_text(t.kept + n, size - n, "fp8", CLASS_CACHE, &r.row[CLASS_CACHE]);
    return t;
}
