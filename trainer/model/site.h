// site.h - where in a block tensors are put into FP8 codes, and of which class they are.
//
// site.def is the list. A site of a block is the unit of FP8 health counters (cx.h), of static calibration, and
// through its class of the recipe (recipe.h).
#pragma once
#include "fail.h"

// Tensor classes: the rows of the recipe.
typedef enum TensorClass {
    CLASS_ACTIVATION, // inputs of linears, both forms, and dispatched rows
    CLASS_WEIGHT,
    CLASS_GRADIENT, // output gradients, both forms, and dispatched rows
    CLASS_CACHE,    // what SwiGLU keeps for the backward; always 1x128, power-of-two scales, E4M3
    CLASS_COUNT
} TensorClass;

typedef enum Site {
#define SITE(id, name, cls) SITE_##id,
#include "site.def"
#undef SITE
    SITE_COUNT
} Site;

// site_name: "o.x". site_class: its row of the recipe. class_name: "activations", "weights", ... Local, pure.
const char *site_name(Site site);
TensorClass site_class(Site site);
const char *class_name(TensorClass c);
// site_label: "L3.o.x", the site in block 3 (MTP modules follow the main blocks). Local, pure.
typedef struct SiteLabel {
    char s[48];
} SiteLabel;
SiteLabel site_label(int64_t layer, Site site);
