// embed_core.h - which table row a token names. Host and device.
#pragma once
#include "fp8.h"

// embed_is_known: a negative token is "none" and allowed; others must be rows of the table.
static HD inline int embed_is_known(int32_t token, int64_t vocab) {
    return token < 0 || token < vocab;
}
