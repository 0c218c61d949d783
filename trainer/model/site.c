// site.c - names and classes of the places where tensors are put into FP8 codes; generated from site.def.
#include "site.h"

static const struct {
    const char *name;
    TensorClass cls;
} sites[SITE_COUNT] = {
#define SITE(id, name, cls) [SITE_##id] = {name, CLASS_##cls},
#include "site.def"
#undef SITE
};

const char *site_name(Site site) {
    return sites[site].name;
}

TensorClass site_class(Site site) {
    return sites[site].cls;
}

const char *class_name(TensorClass c) {
    static const char *const names[CLASS_COUNT] = {
        [CLASS_ACTIVATION] = "activations",
        [CLASS_WEIGHT] = "weights",
        [CLASS_GRADIENT] = "gradients",
        [CLASS_CACHE] = "SwiGLU cache",
    };
    return names[c];
}

SiteLabel site_label(int64_t layer, Site site) {
    SiteLabel r;
    snprintf(r.s, sizeof r.s, "L%lld.%s", (long long)layer, sites[site].name);
    return r;
}
