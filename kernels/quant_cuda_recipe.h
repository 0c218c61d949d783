// quant_cuda_recipe.h - what the CUDA quantisers accept. Private to kernels/*_cuda*.cu.
#pragma once
#include "quant.h"

// quant_cuda_recipe: E_INTERNAL with the names of what is not there, unless rule and y are the framework's own: 1x128
// tiles or 128x128 blocks, E4M3. quant_cuda_source: the same for codes that are read.
Err quant_cuda_recipe(const char *op, MatQ y, QuantRule rule) MUST_CHECK;
Err quant_cuda_source(const char *op, MatQ x) MUST_CHECK;
