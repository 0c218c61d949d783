// balance.h - exact expert loads of the global batch, and the bias that evens them out.
//
// After every optimizer step, per MoE layer (MTP modules too): c_e = tokens routed to expert e in the whole global
// batch, as integers; b_e += gamma * sign(mean(c) - c_e). DeepSeek-V3 report 2.1.2; Wang et al. 2408.15664 Alg. 1.
#pragma once
#include "model.h"

typedef struct BalanceStats {
    double maxvio; // mean over layers of (max load - mean load) / mean load
    double dead;   // share of experts, all layers, without a token
    uint64_t hash; // of all loads: the same for every layout that routes every token alike
} BalanceStats;

// balance_update: sums the model's counts over the world, updates the biases (gamma 0: not), zeroes the counts.
// Every rank computes the same biases from the same integers. Collective over world.
Err balance_update(Model *m, Cx *cx, double gamma, BalanceStats *out) MUST_CHECK;
