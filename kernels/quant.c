// quant.c - the health counters of quantisation: merging, and the histogram of scales.
#include "quant.h"

#include <math.h>

void quant_count_add(QuantCount *to, const QuantCount *from) {
    to->values += from->values;
    to->saturated += from->saturated;
    to->underflow += from->underflow;
    to->tiles += from->tiles;
    to->nonfinite_tiles += from->nonfinite_tiles;
    for (int i = 0; i < SCALE_BINS; i++) to->scales[i] += from->scales[i];
    if (from->amax_bits > to->amax_bits) to->amax_bits = from->amax_bits;
}

double quant_count_scale_quantile(const QuantCount *count, double q) {
    int64_t all = 0, below = 0;
    for (int i = 0; i < SCALE_BINS; i++) all += count->scales[i];
    if (all == 0) return 0;
    int64_t wanted = (int64_t)ceil(q * (double)all);
    wanted = wanted < 1 ? 1 : wanted > all ? all : wanted;
    int bin = 0;
    while ((below += count->scales[bin]) < wanted) bin++;
    return ldexp(1.0, SCALE_BIN_LOW + bin);
}
