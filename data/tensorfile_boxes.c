// tensorfile_boxes.c - flat row ranges to boxes, by recursion over the leading dimensions.
#include "tensorfile_boxes.h"

// Boxes of [first, first+n) inside dimensions dim..lead-1; `outer` holds the fixed indices before
// dim.
static int split(Box *box, int dim, int lead, const int64_t *shape, const Box *outer, int64_t first,
                 int64_t n) {
    if (n == 0) return 0;
    Box b = *outer;
    if (dim == lead - 1) {
        b.start[dim] = first;
        b.count[dim] = n;
        *box = b;
        return 1;
    }
    int64_t inner = 1; // rows of one index of this dimension
    for (int i = dim + 1; i < lead; i++) inner *= shape[i];
    int used = 0;
    int64_t index = first / inner, offset = first % inner;
    b.count[dim] = 1;
    if (offset > 0 || n < inner) { // a part of one plane
        int64_t head = min_i64(n, inner - offset);
        b.start[dim] = index;
        used += split(box, dim + 1, lead, shape, &b, offset, head);
        n -= head;
        index++;
    }
    if (n >= inner) { // whole planes
        b.start[dim] = index;
        b.count[dim] = n / inner;
        for (int i = dim + 1; i < lead; i++) {
            b.start[i] = 0;
            b.count[i] = shape[i];
        }
        box[used++] = b;
        index += n / inner;
        n %= inner;
    }
    b.start[dim] = index;
    b.count[dim] = 1;
    return used + split(box + used, dim + 1, lead, shape, &b, 0, n);
}

int boxes_of_rows(Box *box, int lead, const int64_t *shape, int64_t first, int64_t n) {
    Box outer = {{0}, {1, 1, 1, 1}};
    return split(box, 0, lead, shape, &outer, first, n);
}
