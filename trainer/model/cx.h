// cx.h - what every layer gets: the backend, the ranks, the memory. Passed, never global.
#pragma once
#include "comm.h"
#include "device.h"
#include "exchange.h"
#include "mesh.h"
#include "ops.h"

// Row arenas: `params` and `state` live as long as the model; `acts` holds what one micro-batch saves for its
// backward and is released per block; `scratch` is released by the function that marked it.
typedef struct Cx {
    const Ops *ops;
    const Device *dev;
    OpCx op;                // op.scratch == scratch
    Comm *world, *ep, *edp; // all ranks; the expert group; the ranks with the same experts
    Mesh mesh;
    Arena *params, *state, *acts, *scratch;
    QuantCount quant; // FP8 health of this rank since the last step; added to
    ExBytes bytes;    // payload of the exchange since the last step; added to
    bool is_measure;  // sizes only: nothing may be read or written through views
} Cx;
