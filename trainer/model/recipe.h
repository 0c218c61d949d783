// recipe.h - how each class of tensors is put into FP8 codes: what shares a scale, the scale's type, the code's.
//
// The default is DeepSeek-V3's (report 3.3): 1x128 tiles and 128x128 weight blocks. The others are baselines from the
// literature to compare with, on the cpu backend only: a scale per row or per tensor, a static one from calibration,
// 128x128 blocks for gradients (the variant that diverged, report appendix B.2), E5M2 gradients. A coarser scope
// writes its scale into every tile it covers, so products, views and the wire do not change.
#pragma once
#include "config.h"
#include "gemm.h"
#include "quant.h"
#include "site.h"
#include "view.h"

typedef struct RecipeRow {
    QuantScope scope;
    ScaleType scale;
    CodeType code;
} RecipeRow;

typedef struct Recipe {
    RecipeRow row[CLASS_COUNT];
    GemmAccumulate accumulate;
    int64_t static_steps; // SCOPE_STATIC: steps of calibration, with a scale per tensor
    float static_margin;  // SCOPE_STATIC: factor of the largest magnitude that calibration saw
} Recipe;

// recipe_from_config: the table that section fp8 describes. CLASS_CACHE is 1x128, power-of-two, E4M3 whatever the
// other classes do. Weights have one scale per matrix where activations have one per row: the same codes serve Fprop
// and Dgrad, so no scale per output channel could be taken out of both sums. Local, pure.
Recipe recipe_from_config(const Config *c);
// recipe_check: E_CONFIG for settings that contradict each other, naming both and what goes together. Local.
Err recipe_check(const Config *c) MUST_CHECK;
// recipe_check_backend: E_CONFIG if `backend` (Ops.backend) cannot compute the recipe, naming the setting and what it
// supports. Local.
Err recipe_check_backend(const Recipe *r, const char *backend) MUST_CHECK;
// recipe_is_static: do scales come from calibration? Local, pure.
bool recipe_is_static(const Recipe *r);

// recipe_text: the resolved recipe for people; `classes` also stands in checkpoints. Without FP8 `classes` is the mode
// and `kept` empty. Local, pure.
typedef struct RecipeText {
    char classes[320]; // "activations 1x128 pow2 e4m3, weights 128x128 fp32 e4m3, gradients ...; accumulate promote128"
    char kept[160];    // what the backward gets: "attention output e5m6, SwiGLU inputs 1x128 pow2 e4m3"
} RecipeText;
RecipeText recipe_text(const Config *c);
