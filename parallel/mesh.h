// mesh.h - pure arithmetic: which rank is what. world = dp * ep; neighbouring ranks form an expert
// group.
//
//   ep_rank = rank % ep          which experts this rank holds: [ep_rank*E/ep, (ep_rank+1)*E/ep)
//   dp_rank = rank / ep          which copy of the experts
// Samples are data-parallel over the whole world.
#pragma once
#include "view.h"

typedef struct Mesh {
    int world, rank; // all ranks, this one
    int ep, ep_rank; // expert group size, position in it
    int dp, dp_rank; // copies of the experts, which one
} Mesh;

// mesh_build: E_CONFIG with the whole equation if ep does not divide world. Local, pure.
Err mesh_build(Mesh *m, int world, int rank, int ep) MUST_CHECK;
// mesh_experts: E_CONFIG if ep does not divide nexperts; *first = first expert here, *n = experts
// here. Local.
Err mesh_experts(const Mesh *m, int64_t nexperts, int64_t *first, int64_t *n) MUST_CHECK;
