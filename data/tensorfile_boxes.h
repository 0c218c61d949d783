// tensorfile_boxes.h - a run of flat rows as rectangular boxes. Private to data/.
//
// The rows of a tensor [d0, d1, d2, cols] are numbered row-major over the leading dimensions. A run
// of consecutive rows is at most 2*lead-1 boxes (a head, whole planes, a tail, recursively), and
// reading the boxes one after another gives the rows in order.
#pragma once
#include "view.h"

#define BOX_MAX 7

typedef struct Box {
    int64_t start[4], count[4];
} Box;

// boxes_of_rows: the boxes of rows [first, first+n) of leading dimensions shape[0..lead), in row
// order. Returns their number, 0 if n == 0. Requires 1 <= lead <= 4 and rows inside.
int boxes_of_rows(Box *box, int lead, const int64_t *shape, int64_t first, int64_t n);
