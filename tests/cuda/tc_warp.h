// tc_warp.h - the rest of tc.h: matrix products of one warp, ldmatrix and cp.async, for threads that run as fibers.
//
// A product or an ldmatrix happens when the last lane of the warp has come to it; lanes that come to different ones,
// or not at all, end the program. A cp.async fills its place with NaN when it is issued and with its data when its
// thread waits for its group, never before: who reads too early, or writes over what others still read, gets NaN.
// Bytes that it brings are stored by its thread, so that TMA and wgmma ask for proxy_fence here too.
//   cp.async     misaligned addresses, a block that ends before a copy was waited for
//   ldmatrix     misaligned rows; counted: rows of one 8x8 matrix that share banks (tc::conflicts)
//   mma          a warp that is not full or not together
// Bounds of shared memory are checked in all of them.
#pragma once

namespace tc {

inline int half_bits;            // significant bits of an mma_bf16 sum: 0 = FP32; 24 = cut toward zero, as hardware may
inline uint64_t warp_products;   // mma executed, all warps
inline uint64_t matrices, conflicts; // 8x8 matrices that ldmatrix read; cycles lost to banks that rows share

// What a lane brings to an instruction of the warp.
struct Lane {
    int line;
    float *d;
    const uint32_t *a;
    uint32_t b[2], at, *r;
};
template <class F> void warp_run(Lane *mine, const char *where, F &&run) {
    if (simt::lanes_of(simt::cur->lin >> 5) != ~0u) simt::die("a warp that is not full in an instruction of the warp");
    simt::meet_with(~0u, (uint64_t)(uintptr_t)mine, where, [&](const uint64_t *posted) {
        Lane *lane[32];
        for (int l = 0; l < 32; l++) {
            lane[l] = (Lane *)(uintptr_t)posted[l];
            if (lane[l]->line != mine->line) simt::die("lanes of a warp are at different instructions of one kind");
        }
        run(lane);
    });
}

// d [16][8] of all lanes from a [16][K], b [K][8]: sums in ascending k, or cut to `bits` bits per instruction.
template <int K> void multiply_warp(Lane *const *lane, const float (*a)[K], const float (*b)[8], int bits) {
    for (int r = 0; r < 16; r++) {
        float row[8];
        for (int n = 0; n < 8; n++) row[n] = lane[r % 8 * 4 + n / 2]->d[r / 8 * 2 + n % 2];
        if (bits) {
            for (int n = 0; n < 8; n++) {
                float v[32] = {0};
                for (int k = 0; k < K; k++) v[k] = a[r][k] * b[k][n];
                row[n] = cut_sum(row[n], v, bits);
            }
        } else {
            Lane8 sum, w;
            memcpy(&sum, row, sizeof sum);
            for (int k = 0; k < K; k++) {
                memcpy(&w, b[k], sizeof w);
                sum += w * a[r][k];
            }
            memcpy(row, &sum, sizeof sum);
        }
        for (int n = 0; n < 8; n++) lane[r % 8 * 4 + n / 2]->d[r / 8 * 2 + n % 2] = row[n];
    }
    warp_products++;
}
// Fragments (PTX ISA, mma.m16n8k16 and .m16n8k32): a register holds E elements side by side along k.
template <int K, int E, class F> void run_mma(Lane *const *lane, int bits, F &&element) {
    float a[16][K], b[K][8];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 4; i++)
            for (int e = 0; e < E; e++) a[l / 4 + i % 2 * 8][i / 2 * 4 * E + l % 4 * E + e] = element(lane[l]->a[i], e);
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 2; i++)
            for (int e = 0; e < E; e++) b[i * 4 * E + l % 4 * E + e][l / 4] = element(lane[l]->b[i], e);
    multiply_warp<K>(lane, a, b, bits);
}

// ldmatrix: lane l gives the row l%8 of matrix l/8; register m of lane l gets elements 2(l%4), +1 of row l/4 of matrix
// m, or, turned, of column l/4.
inline void run_ldmatrix(Lane *const *lane, int count, bool is_turned) {
    for (int m = 0; m < count; m++) {
        int used[8] = {0}, most = 0;
        for (int r = 0; r < 8; r++) {
            uint32_t at = lane[m * 8 + r]->at;
            if (at % 16) simt::die("ldmatrix: a misaligned row");
            if ((size_t)at + 16 > simt::blk.dyn_bytes) simt::die("ldmatrix: a row past the end of shared memory");
            int n = ++used[at / 16 % 8];
            most = n > most ? n : most;
        }
        matrices++;
        conflicts += (uint64_t)(most - 1);
        for (int l = 0; l < 32; l++) {
            uint16_t pair[2];
            for (int e = 0; e < 2; e++) {
                int row = is_turned ? l % 4 * 2 + e : l / 4, column = is_turned ? l / 4 : l % 4 * 2 + e;
                memcpy(&pair[e], simt::blk.dyn + lane[m * 8 + row]->at + column * 2, 2);
            }
            lane[l]->r[m] = pair[0] | (uint32_t)pair[1] << 16;
        }
    }
}
inline void load_matrices(uint32_t *r, const void *row, int count, bool is_turned, int line) {
    // Only the lanes whose rows are read need an address.
    Lane mine = {line, nullptr, nullptr, {0, 0}, simt::lane() < count * 8 ? offset(row) : 0, r};
    static const char *const name[2][3] = {{"ldmatrix1", "ldmatrix2", "ldmatrix4"},
                                           {"ldmatrix1_turned", "ldmatrix2_turned", "ldmatrix4_turned"}};
    warp_run(&mine, name[is_turned][count / 2], [&](Lane *const *lane) { run_ldmatrix(lane, count, is_turned); });
}

// cp.async of one thread: in order of issue, each with the number of its group.
struct AsyncCopy {
    uint32_t at, bytes;
    const void *src; // NULL: zeros
    int group;
};
struct AsyncThread {
    std::vector<AsyncCopy> copies;
    int group; // the one that is being filled
};
struct AsyncState {
    uint64_t serial = 0;
    AsyncThread thread[simt::MAX_THREADS];
};
inline AsyncState async_block;

// async_finish: the last block has waited for all its copies.
inline void async_finish() {
    if (async_block.serial)
        for (AsyncThread &t : async_block.thread) {
            if (!t.copies.empty()) simt::die("a block ended before a cp.async was waited for");
            t.group = 0;
        }
    async_block.serial = 0;
}
inline AsyncThread &my_async() {
    if (async_block.serial != simt::blk.serial) {
        async_finish();
        async_block.serial = simt::blk.serial;
    }
    return async_block.thread[simt::cur->lin];
}
inline void add_async(void *dst, const void *src, uint32_t bytes, bool is_there) {
    uint32_t at = offset(dst);
    if (at % bytes || (is_there && (uintptr_t)src % bytes)) simt::die("cp.async: a misaligned address");
    if ((size_t)at + bytes > simt::blk.dyn_bytes) simt::die("cp.async past the end of shared memory");
    AsyncThread &t = my_async();
    t.copies.push_back(AsyncCopy{at, bytes, is_there ? src : nullptr, t.group});
    memset(simt::blk.dyn + at, 0xFF, bytes);
}
// All groups of the thread but the last `left` are there.
inline void wait_async(int left) {
    AsyncThread &t = my_async();
    size_t n = 0;
    while (n < t.copies.size() && t.copies[n].group < t.group - left) {
        const AsyncCopy &c = t.copies[n++];
        if (c.src)
            memcpy(simt::blk.dyn + c.at, c.src, c.bytes);
        else
            memset(simt::blk.dyn + c.at, 0, c.bytes);
        touch(c.at, c.bytes);
    }
    t.copies.erase(t.copies.begin(), t.copies.begin() + (ptrdiff_t)n);
}

// wgmma of BF16. The right side of LEFT is turned (MN-major): element (n, k) lies in panel n/64, row k, of 128 bytes.
inline uint32_t turned_at(uint64_t desc, int n, int k) {
    uint32_t start = (uint32_t)(desc & 0x3FFF) << 4, lbo = (uint32_t)(desc >> 16 & 0x3FFF) << 4,
             sbo = (uint32_t)(desc >> 32 & 0x3FFF) << 4;
    return swizzle(start + (uint32_t)(n / 64) * lbo + (uint32_t)(k / 8) * sbo + (uint32_t)(k % 8) * 128 +
                       (uint32_t)(n % 64) * 2,
                   128);
}
inline void check_turned(uint64_t desc, int n) {
    if (desc >> 62 != 1 || desc >> 49 & 7) simt::die("wgmma: the descriptor is not for the 128-byte swizzle");
    if (desc & 0x3F) simt::die("wgmma: a turned tile does not start at a multiple of 1024 bytes");
    if (n % 64) simt::die("wgmma: a turned tile has panels of 64 columns");
    for (int c = 0; c < n; c += 8)
        for (int k = 0; k < 16; k++) {
            uint32_t at = turned_at(desc, c, k);
            if (at >= simt::blk.dyn_bytes) simt::die("wgmma: operand past the end of shared memory");
            if (state().dirty[at / 16]) simt::die("wgmma reads what was stored without proxy_fence");
        }
}
inline uint64_t hash_turned(uint64_t h, uint64_t desc, int n) {
    for (int c = 0; c < n; c += 4)
        for (int k = 0; k < 16; k++) {
            uint64_t w;
            memcpy(&w, simt::blk.dyn + turned_at(desc, c, k), 8);
            h = (h ^ w) * 0x9E3779B97F4A7C15ull;
            h ^= h >> 29;
        }
    return h;
}
inline float half_at(uint32_t at) {
    uint16_t v;
    memcpy(&v, simt::blk.dyn + at, 2);
    return f32_from_bf16(v);
}
inline void multiply_half(const Product &p, float *d) {
    static float b[16][256];
    for (int n = 0; n < p.n; n++)
        for (int k = 0; k < 16; k++)
            b[k][n] = half_at(p.kind == LEFT ? turned_at(p.b, n, k) : operand_at(p.b, n, 2 * k));
    for (int r = 0; r < 64; r++) {
        float *row = d + r * p.n, a[16];
        for (int k = 0; k < 16; k++)
            a[k] = p.kind == LEFT ? f32_from_bf16(p.left[(size_t)(r * 16 + k)]) : half_at(operand_at(p.a, r, 2 * k));
        if (!p.is_added) memset(row, 0, (size_t)p.n * sizeof *row);
        for (int n = 0; n < p.n; n += 8) {
            Lane8 sum, w;
            memcpy(&sum, row + n, sizeof sum);
            for (int k = 0; k < 16; k++) {
                memcpy(&w, &b[k][n], sizeof w);
                sum += w * a[k];
            }
            memcpy(row + n, &sum, sizeof sum);
        }
    }
    products++;
}

} // namespace tc

// wgmma of BF16: see ptx.h.
enum { WGMMA_ROWS_16 = 16 * 128 >> 4 };
inline uint64_t wgmma_desc_turned(const void *tile, uint32_t panel) {
    return ((uint64_t)(tc::offset(tile) & 0x3FFFF) >> 4) | (uint64_t)(panel >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}
template <int R> inline void wgmma_bf16(float (&d)[R], uint64_t a, uint64_t b, bool is_added, TC_LINE) {
    if (TC_CUT("wgmma_bf16")) return;
    if (TC_CUT("wgmma_clear")) is_added = true;
    tc::issue(d, 2 * R, a, b, is_added, tc::HALF, nullptr);
}
template <int R>
inline void wgmma_bf16_left(float (&d)[R], const uint32_t (&a)[4], uint64_t b, bool is_added, TC_LINE) {
    if (!TC_CUT("wgmma_bf16_left")) tc::issue(d, 2 * R, 0, b, is_added, tc::LEFT, a);
}

inline void copy_async16(void *dst, const void *src, bool is_there, TC_LINE) {
    if (!TC_CUT("copy_async16")) tc::add_async(dst, src, 16, is_there);
}
inline void copy_async4(void *dst, const void *src, bool is_there, TC_LINE) {
    if (!TC_CUT("copy_async4")) tc::add_async(dst, src, 4, is_there);
}
inline void copy_async_commit(TC_LINE) {
    if (!TC_CUT("copy_async_commit")) tc::my_async().group++;
}
template <int LEFT> inline void copy_async_wait(TC_LINE) {
    if (!TC_CUT("copy_async_wait")) tc::wait_async(LEFT);
}

#define TC_LDMATRIX(N, R)                                                                                            \
    inline void ldmatrix##N(R, const void *row, TC_LINE) {                                                           \
        if (!TC_CUT("ldmatrix" #N)) tc::load_matrices(TC_FIRST_##N(r), row, N, false, line);                         \
    }                                                                                                                \
    inline void ldmatrix##N##_turned(R, const void *row, TC_LINE) {                                                  \
        if (!TC_CUT("ldmatrix" #N "_turned")) tc::load_matrices(TC_FIRST_##N(r), row, N, true, line);                \
    }
#define TC_FIRST_1(r) &r
#define TC_FIRST_2(r) r
#define TC_FIRST_4(r) r
TC_LDMATRIX(1, uint32_t &r)
TC_LDMATRIX(2, uint32_t (&r)[2])
TC_LDMATRIX(4, uint32_t (&r)[4])
#undef TC_LDMATRIX

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, TC_LINE) {
    if (TC_CUT("mma_bf16")) return;
    tc::Lane mine = {line, d, a, {b0, b1}, 0, nullptr};
    tc::warp_run(&mine, "mma_bf16", [](tc::Lane *const *lane) {
        tc::run_mma<16, 2>(lane, tc::half_bits,
                           [](uint32_t r, int e) { return f32_from_bf16((uint16_t)(r >> 16 * e)); });
    });
}
inline void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, TC_LINE) {
    if (TC_CUT("mma_e4m3")) return;
    tc::Lane mine = {line, d, a, {b0, b1}, 0, nullptr};
    tc::warp_run(&mine, "mma_e4m3", [](tc::Lane *const *lane) {
        tc::run_mma<32, 4>(lane, tc::sum_bits,
                           [](uint32_t r, int e) { return f32_from_e4m3((uint8_t)(r >> 8 * e)); });
    });
}
inline float exp2_fast(float x) {
    return exp2f(x);
}
