// h5_zstd.c - the zstd filter of HDF5, in-process and as a plugin (see h5_zstd.h).
#include "h5_zstd.h"

#include <H5PLextern.h>
#include <stdlib.h>
#include <zstd.h>

static size_t decompress(size_t nbytes, size_t *buf_size, void **buf) {
    unsigned long long content = ZSTD_getFrameContentSize(*buf, nbytes);
    // HDF5 chunks are smaller than 4 GiB; unknown and error are larger than that.
    if (content >= (1ull << 32)) return 0;
    void *out = malloc(content ? (size_t)content : 1);
    if (!out) return 0;
    size_t n = ZSTD_decompress(out, (size_t)content, *buf, nbytes);
    if (ZSTD_isError(n) || n != content) {
        free(out);
        return 0;
    }
    free(*buf);
    *buf = out;
    *buf_size = (size_t)content;
    return n;
}

static size_t compress(int level, size_t nbytes, size_t *buf_size, void **buf) {
    size_t bound = ZSTD_compressBound(nbytes), n = 0;
    ZSTD_CCtx *ctx = ZSTD_createCCtx();
    void *out = malloc(bound);
    if (ctx && out && !ZSTD_isError(ZSTD_CCtx_setParameter(ctx, ZSTD_c_compressionLevel, level)) &&
        !ZSTD_isError(ZSTD_CCtx_setParameter(ctx, ZSTD_c_checksumFlag, 1))) {
        n = ZSTD_compress2(ctx, out, bound, *buf, nbytes);
    }
    ZSTD_freeCCtx(ctx);
    if (n == 0 || ZSTD_isError(n)) {
        free(out);
        return 0;
    }
    free(*buf);
    *buf = out;
    *buf_size = bound;
    return n;
}

static size_t filter(unsigned flags, size_t ncd, const unsigned *cd, size_t nbytes,
                     size_t *buf_size, void **buf) {
    if (flags & H5Z_FLAG_REVERSE) return decompress(nbytes, buf_size, buf);
    return compress(ncd > 0 ? (int)cd[0] : 1, nbytes, buf_size, buf);
}

static const H5Z_class2_t zstd_class = {
    H5Z_CLASS_T_VERS, (H5Z_filter_t)H5_ZSTD_FILTER, 1, 1, "zstd", NULL, NULL, filter,
};

const void *h5_zstd_class(void) {
    return &zstd_class;
}

H5PL_type_t H5PLget_plugin_type(void) {
    return H5PL_TYPE_FILTER;
}

const void *H5PLget_plugin_info(void) {
    return &zstd_class;
}
