// embed.h - the embedding table.
//
// embed_fwd: x_t = table[token_t].        x [T,D] out;  table [V,D];  token [T] i32 (checked: E_INPUT)
// embed_bwd: dtable[token_t] += dx_t, in the order of t.   dtable [V,D] f32 adds to;  dx [T,D]
//   A negative token is skipped in both (fwd writes zeros).
#pragma once
#include "view.h"
