// tc_runtime.cpp - what host code asks of the driver before it starts a Hopper kernel, for the fibers of tc.h: tensor
// maps, encoded with all of cuTensorMapEncodeTiled's rules, and the number of multiprocessors.
#include "tc.h"

namespace tc {

static uint32_t bytes_of(CUtensorMapDataType t) {
    switch (t) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
    default: return 0;
    }
}
static uint32_t span_of(CUtensorMapSwizzle s) {
    switch (s) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B: return 128;
    default: return 1;
    }
}

CUresult encode(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base, const cuuint64_t *dim,
                const cuuint64_t *stride, const cuuint32_t *box, const cuuint32_t *step,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle_mode, CUtensorMapL2promotion,
                CUtensorMapFloatOOBfill fill) {
    Map m = {};
    m.magic = MAP_MAGIC;
    m.base = (unsigned char *)base;
    m.elem = bytes_of(type);
    m.span = span_of(swizzle_mode);
    m.is_float = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    bool is_ok = (uintptr_t)map % 64 == 0 && m.elem && rank == 3 && base && (uintptr_t)base % 16 == 0 &&
                 m.span != 1 && interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
                 fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
    for (int d = 0; is_ok && d < 3; d++) {
        m.dim[d] = dim[d];
        m.stride[d] = d ? stride[d - 1] : m.elem;
        m.box[d] = box[d];
        is_ok = dim[d] >= 1 && dim[d] <= (1ull << 32) && box[d] >= 1 && box[d] <= 256 && step[d] == 1;
        if (d) is_ok = is_ok && m.stride[d] % 16 == 0 && m.stride[d] < (1ull << 40);
    }
    // The rows of a box must fill the swizzle here, so that rows of shared memory lie `span` bytes apart.
    is_ok = is_ok && m.box[0] * m.elem % 16 == 0 && (!m.span || m.box[0] * m.elem == m.span);
    if (!is_ok) return CUDA_ERROR_INVALID_VALUE;
    memcpy(map, &m, sizeof m);
    return CUDA_SUCCESS;
}

} // namespace tc

static int multiprocessors = 4;

extern "C" void *runtime_driver(const char *name); // runtime_on_cpu.cpp

extern "C" {
void tc_multiprocessors(int n) {
    multiprocessors = n;
}
void tc_finish(void) {
    tc::finish();
    tc::async_finish();
}
void tc_sum_bits(int bits) {
    tc::sum_bits = bits;
}
// tc_half_bits: bits of the sums of mma_bf16. tc_conflicts: matrices that ldmatrix has read, and of them those that
// lost a cycle (or several) to shared banks, since the last call.
void tc_half_bits(int bits) {
    tc::half_bits = bits;
}
void tc_conflicts(uint64_t *matrices, uint64_t *conflicts) {
    *matrices = tc::matrices;
    *conflicts = tc::conflicts;
    tc::matrices = tc::conflicts = 0;
}
// tc_sites: from now on sites are noted. tc_site: the i-th, or 0. tc_cut: leave out the calls of one (what NULL:
// none).
void tc_sites(void) {
    static std::vector<tc::Site> noted;
    noted.clear();
    tc::record = &noted;
}
int tc_site(int i, const char **what) {
    if (!tc::record || i >= (int)tc::record->size()) return 0;
    *what = (*tc::record)[(size_t)i].what;
    return (*tc::record)[(size_t)i].line;
}
void tc_cut(const char *what, int line) {
    tc::record = nullptr;
    tc::cut_what = what;
    tc::cut_line = line;
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
// The compute capability is not told, so that the portable kernels are used unless a test chooses.
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int) {
    if (what != cudaDevAttrMultiProcessorCount && what != cudaDevAttrMaxSharedMemoryPerBlockOptin)
        return cudaErrorInvalidValue;
    *value = what == cudaDevAttrMultiProcessorCount ? multiprocessors : (int)simt::most_shared;
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **fn, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
    *fn = !strcmp(symbol, "cuTensorMapEncodeTiled") ? (void *)tc::encode : runtime_driver(symbol);
    bool is_known = *fn != nullptr;
    if (found) *found = is_known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
}
