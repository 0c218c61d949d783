// device_cuda_space.c - address space of the GPU that gets its memory as it is used, as the host's has.
//
// Arenas are reserved for the worst case, which hardly ever comes: a range of addresses is taken for all of it, and
// memory is put behind it from the front, some 64 MiB at a time, when a block is pushed that needs it. That happens in
// the first steps and then no more; the device is not waited for. The driver's calls are found at run time, because
// libcuda is never linked; where it has them not, the whole range is allocated at once.
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>
#include <string.h>

#include "device_cuda_space.h"

#define CHUNK ((size_t)64 << 20)

enum { SPACES = 32 };

static struct {
    PFN_cuMemAddressReserve_v10020 reserve;
    PFN_cuMemAddressFree_v10020 give_back;
    PFN_cuMemCreate_v10020 create;
    PFN_cuMemRelease_v10020 release;
    PFN_cuMemMap_v10020 map;
    PFN_cuMemUnmap_v10020 unmap;
    PFN_cuMemSetAccess_v10020 set_access;
    PFN_cuMemGetAllocationGranularity_v10020 granularity;
} driver;
static struct {
    CUdeviceptr at;
    size_t bytes, have; // reserved; with memory behind them
} space[SPACES];
static size_t page; // 0: not asked yet, or the driver cannot

// find: one of the driver's functions, NULL if it has it not.
static void *find(const char *name) {
    void *fn = NULL;
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cudaError_t e = cudaGetDriverEntryPointByVersion(name, &fn, 12000, cudaEnableDefault, &found);
    if (e != cudaSuccess) cudaGetLastError();
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? fn : NULL;
}

static CUmemAllocationProp memory_of(int device) {
    CUmemAllocationProp p;
    memset(&p, 0, sizeof p);
    p.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    p.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    p.location.id = device;
    return p;
}

bool space_open(int device) {
    CUmemAllocationProp p = memory_of(device);
    page = 0;
    driver.reserve = (PFN_cuMemAddressReserve_v10020)find("cuMemAddressReserve");
    driver.give_back = (PFN_cuMemAddressFree_v10020)find("cuMemAddressFree");
    driver.create = (PFN_cuMemCreate_v10020)find("cuMemCreate");
    driver.release = (PFN_cuMemRelease_v10020)find("cuMemRelease");
    driver.map = (PFN_cuMemMap_v10020)find("cuMemMap");
    driver.unmap = (PFN_cuMemUnmap_v10020)find("cuMemUnmap");
    driver.set_access = (PFN_cuMemSetAccess_v10020)find("cuMemSetAccess");
    driver.granularity = (PFN_cuMemGetAllocationGranularity_v10020)find("cuMemGetAllocationGranularity");
    if (!driver.reserve || !driver.give_back || !driver.create || !driver.release || !driver.map || !driver.unmap ||
        !driver.set_access || !driver.granularity)
        return false;
    if (driver.granularity(&page, &p, CU_MEM_ALLOC_GRANULARITY_MINIMUM) != CUDA_SUCCESS) page = 0;
    return page > 0;
}

static int find_space(CUdeviceptr at) {
    int i = 0;
    while (i < SPACES && space[i].at != at) i++;
    return i;
}

bool space_reserve(void **out, size_t bytes) {
    int i = find_space(0);
    if (!page || i == SPACES) return false;
    size_t all = (bytes + page - 1) / page * page;
    if (driver.reserve(&space[i].at, all, 0, 0, 0) != CUDA_SUCCESS) {
        space[i].at = 0;
        return false;
    }
    space[i].bytes = all;
    space[i].have = 0;
    *out = (void *)space[i].at;
    return true;
}

Err space_grow(int device, void *p, size_t *have, size_t want, const char *what) {
    int i = find_space((CUdeviceptr)p);
    CHECK(p && i < SPACES && want <= space[i].bytes, E_INTERNAL, "%s: %zu bytes of no reserved space", what, want);
    CUmemAllocationProp prop = memory_of(device);
    CUmemAccessDesc access = {.location = prop.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    CUmemGenericAllocationHandle handle;
    size_t to = (want + CHUNK - 1) / CHUNK * CHUNK, left = 0, total = 0;
    if (to > space[i].bytes) to = space[i].bytes;
    size_t more = to - space[i].have;
    CUresult rc = driver.create(&handle, more, &prop, 0);
    if (rc != CUDA_SUCCESS) {
        cudaMemGetInfo(&left, &total);
        FAIL(E_INTERNAL,
             "%s: %.1f MiB of the GPU's memory are not enough and %.1f more are not there (%.1f of %.1f MiB are free, "
             "error %d): fewer tokens in a pass (train.micro_batch, train.seq_len) or more ranks",
             what, (double)space[i].have / 1048576.0, (double)more / 1048576.0, (double)left / 1048576.0,
             (double)total / 1048576.0, (int)rc);
    }
    rc = driver.map(space[i].at + space[i].have, more, 0, handle, 0);
    driver.release(handle); // what is mapped stays
    CHECK(rc == CUDA_SUCCESS, E_PEER, "%s: cuMemMap of %zu bytes: error %d", what, more, (int)rc);
    rc = driver.set_access(space[i].at + space[i].have, more, &access, 1);
    CHECK(rc == CUDA_SUCCESS, E_PEER, "%s: cuMemSetAccess of %zu bytes: error %d", what, more, (int)rc);
    *have = space[i].have = to;
    return OK;
}

bool space_release(void *p) {
    int i = find_space((CUdeviceptr)p);
    if (!p || i == SPACES) return false;
    if (space[i].have > 0) driver.unmap(space[i].at, space[i].have);
    driver.give_back(space[i].at, space[i].bytes);
    memset(&space[i], 0, sizeof space[i]);
    return true;
}
