// tc.h - what kernels/ptx.h means, for CUDA threads that run as fibers (simt.h): TMA, mbarriers, wgmma; tc_warp.h, at
// its end, has the instructions of one warp.
//
// A shared address is the offset in the block's dynamic shared memory, descriptors have their true bits, swizzles act
// on address bits. What is asynchronous on the GPU happens here at a random later moment: a copy when some thread
// next waits, a wgmma when its operands are there or only when it is waited for; until then its accumulators are NaN.
// The program ends with a report when the protocol is broken:
//   mbarriers    used before mbar_init, too many arrivals, a phase that ends while copies count on it
//   tma          misaligned tiles, boxes that do not fit the swizzle, a store that nobody waited for
//   wgmma        threads of a warpgroup that disagree, no wgmma_fence, no commit, operands that change under way,
//                bytes stored by threads without proxy_fence
//   setmaxnreg   more registers than the block was started with
// Every call knows its line (tc::Site). tc::cut leaves out the calls of one site, so that tests can show that the
// kernel does not work without it. Not modelled: clusters, timing, bank conflicts, weak memory order.
#pragma once
#include <cuda.h>
#include <vector>

#include "fp8.h"
#include "simt.h"

typedef CUtensorMap TMap;
#define UNROLL

namespace tc {

// A tensor map: our own fields in the 128 opaque bytes.
struct Map {
    uint64_t magic;
    unsigned char *base;
    uint64_t dim[3], stride[3];  // elements; bytes
    uint32_t box[3], elem, span; // span: bytes of the swizzle, 0 none
    bool is_float;
};
constexpr uint64_t MAP_MAGIC = 0x7465737365726131ull;
static_assert(sizeof(Map) <= sizeof(CUtensorMap), "a map has 128 bytes");

// Sites: one call in the text of a kernel. cut_line of cut_what is left out (cut_what NULL: none).
struct Site {
    const char *what;
    int line;
};
inline std::vector<Site> *record; // where sites are noted; NULL: they are not
inline const char *cut_what;
inline int cut_line;
inline int sum_bits;      // significant bits of a wgmma sum: 0 = FP32, 14 = as Hopper
inline int laziness = 3;  // a pending copy happens in one of this many looks
inline uint64_t products; // wgmma executed, all warpgroups

inline bool is_cut(const char *what, int line) {
    if (record) {
        bool is_known = false;
        for (const Site &s : *record) is_known = is_known || (s.line == line && !strcmp(s.what, what));
        if (!is_known) record->push_back(Site{what, line});
    }
    return cut_what && cut_line == line && !strcmp(cut_what, what);
}

struct Bar {
    uint32_t at, count, pending, phase;
    int64_t bytes; // still expected
    int copies;    // under way
};
struct Copy {
    enum Kind { LOAD, STORE, ADD } kind;
    const Map *map;
    uint32_t at; // shared memory
    int pos[3];
    int bar;    // LOAD: index of its barrier
    int thread; // who issued it
    bool is_committed;
};
struct Named {
    int expected, arrived;
    uint64_t gen;
};
// One wgmma of a warpgroup. HALF: BF16 in shared memory; LEFT: its left side in registers, its right side turned.
enum Kind { CODES, HALF, LEFT };
struct Product {
    uint64_t a, b, hash;
    bool is_added;
    int n, issued, sums; // sums: index of its accumulators
    bool is_done;
    Kind kind;
    std::vector<uint16_t> left; // [64][16]
};
void check_turned(uint64_t desc, int n);
uint64_t hash_turned(uint64_t h, uint64_t desc, int n);
void multiply_half(const Product &p, float *d);
// Accumulators of a warpgroup from the first product to the wait. d[t]: the registers of thread t in between.
struct Sums {
    float *d[128];
    int n;
    std::vector<float> v; // [64][n]
};
struct Group {
    std::vector<Product> queue;
    std::vector<Sums> sums;
    int issued[128], committed[128], finished[128]; // products, by thread
    bool is_fenced[128];
    uint64_t gen;
    int regs[4];
};

struct State {
    uint64_t serial = 0; // the block all this belongs to
    std::vector<Bar> bars;
    std::vector<Copy> copies;
    Named named[16];
    Group group[8];
    std::vector<int16_t> dirty; // per 16 bytes: 1 + the thread that stored and has not fenced
    uint64_t gen = 0;           // moves when a barrier or the list of copies changes
};
inline State block;

// finish: the last block must have left nothing behind. Call after a launch.
inline void finish() {
    for (const Copy &c : block.copies) {
        if (c.kind == Copy::LOAD) simt::die("a block ended before a copy into its shared memory");
        if (!c.is_committed) simt::die("tma_store without commit");
        simt::die("a block ended while tma_store was reading its shared memory");
    }
    for (const Group &g : block.group)
        for (const Product &p : g.queue)
            if (!p.is_done) simt::die("a block ended before its wgmma");
    block.serial = 0;
}
inline State &state() {
    if (block.serial == simt::blk.serial) return block;
    if (block.serial) finish();
    block.serial = simt::blk.serial;
    block.bars.clear();
    block.copies.clear();
    block.dirty.assign(simt::blk.dyn_bytes / 16 + 1, 0);
    for (Named &n : block.named) n = Named{0, 0, 0};
    for (Group &g : block.group) {
        g.queue.clear();
        g.sums.clear();
        g.gen = 0;
        memset(g.issued, 0, sizeof g.issued);
        memset(g.committed, 0, sizeof g.committed);
        memset(g.finished, 0, sizeof g.finished);
        memset(g.is_fenced, 0, sizeof g.is_fenced);
        memset(g.regs, 0, sizeof g.regs);
    }
    return block;
}
inline uint32_t offset(const void *p) {
    ptrdiff_t at = (const unsigned char *)p - simt::blk.dyn;
    if (!simt::blk.dyn || at < 0 || (size_t)at >= simt::blk.dyn_bytes)
        simt::die("an address outside of dynamic shared memory");
    return (uint32_t)at;
}
inline void yield() {
    simt::cur->where = "yield";
    simt::to_main(false);
    simt::cur->where = nullptr;
}

// Swizzle on address bits: chunks of 16 bytes change places within rows of `span` bytes, by address bits 7 and up.
inline uint32_t swizzle(uint32_t at, uint32_t span) {
    return span ? at ^ ((at >> 7 & (span / 16 - 1)) << 4) : at;
}
inline void touch(uint32_t at, uint32_t bytes) {
    if ((size_t)at + bytes > simt::blk.dyn_bytes) simt::die("a store past the end of shared memory");
    for (uint32_t i = at / 16; i <= (at + bytes - 1) / 16; i++) state().dirty[i] = (int16_t)(simt::cur->lin + 1);
}

inline int find_bar(const void *bar) {
    State &s = state();
    uint32_t at = offset(bar);
    for (size_t i = 0; i < s.bars.size(); i++)
        if (s.bars[i].at == at) return (int)i;
    simt::die("an mbarrier that nobody initialised");
}
inline void end_phase(Bar &b) {
    if (b.pending || b.bytes) return;
    if (b.copies) simt::die("an mbarrier phase ended while copies count on it");
    b.phase ^= 1;
    b.pending = b.count;
    block.gen++;
}
inline void arrive(Bar &b, uint32_t bytes) {
    if (!b.pending) simt::die("too many arrivals at an mbarrier");
    b.bytes += bytes;
    if (b.bytes >= 1 << 20) simt::die("2^20 bytes or more in one mbarrier phase");
    b.pending--;
    end_phase(b);
}

inline void run_copy(size_t i) {
    State &s = state();
    Copy c = s.copies[i];
    s.copies.erase(s.copies.begin() + (ptrdiff_t)i);
    const Map &m = *c.map;
    uint32_t row = m.box[0] * m.elem, total = row * m.box[1] * m.box[2];
    for (uint32_t z = 0; z < m.box[2]; z++)
        for (uint32_t y = 0; y < m.box[1]; y++)
            for (uint32_t x = 0; x < row; x += m.elem) {
                int64_t g[3] = {(int64_t)c.pos[0] + x / m.elem, (int64_t)c.pos[1] + y, (int64_t)c.pos[2] + z};
                bool is_inside = true;
                for (int d = 0; d < 3; d++) is_inside = is_inside && g[d] >= 0 && (uint64_t)g[d] < m.dim[d];
                uint32_t at = swizzle(c.at + (z * m.box[1] + y) * row + x, m.span);
                unsigned char *shared = simt::blk.dyn + at;
                unsigned char *global =
                    m.base + (uint64_t)g[0] * m.elem + (uint64_t)g[1] * m.stride[1] + (uint64_t)g[2] * m.stride[2];
                if (c.kind == Copy::LOAD) {
                    if (is_inside)
                        memcpy(shared, global, m.elem);
                    else
                        memset(shared, 0, m.elem);
                    s.dirty[at / 16] = 0;
                    continue;
                }
                if (s.dirty[at / 16]) simt::die("tma_store reads what was stored without proxy_fence");
                if (!is_inside) continue;
                if (c.kind == Copy::STORE) {
                    memcpy(global, shared, m.elem);
                } else {
                    float old, v;
                    memcpy(&old, global, 4);
                    memcpy(&v, shared, 4);
                    old += v;
                    memcpy(global, &old, 4);
                }
            }
    if (c.kind == Copy::LOAD) {
        Bar &b = s.bars[(size_t)c.bar];
        b.copies--;
        b.bytes -= total;
        end_phase(b);
    }
    s.gen++;
}
// Perhaps let one copy happen. Stores only once they are committed.
inline void pump() {
    State &s = state();
    if (s.copies.empty() || simt::random_below((uint64_t)laziness)) return;
    size_t i = simt::random_below(s.copies.size());
    if (s.copies[i].kind == Copy::LOAD || s.copies[i].is_committed) run_copy(i);
}
inline bool has_loads() {
    for (const Copy &c : state().copies)
        if (c.kind == Copy::LOAD) return true;
    return false;
}
inline void add_copy(Copy::Kind kind, const TMap *map, const void *shared, int bar, int x, int y, int z) {
    State &s = state();
    const Map *m = (const Map *)map;
    if (m->magic != MAP_MAGIC) simt::die("a tensor map that was never encoded");
    uint32_t at = offset(shared), align = m->span ? m->span * 8 : 128;
    if (at % align) simt::die("a tile of a tensor map is misaligned for its swizzle");
    if ((uint64_t)at + (uint64_t)m->box[0] * m->elem * m->box[1] * m->box[2] > simt::blk.dyn_bytes)
        simt::die("a box past the end of shared memory");
    if (kind == Copy::ADD && !m->is_float) simt::die("tma_store_add of a map that is not f32");
    s.copies.push_back(Copy{kind, m, at, {x, y, z}, bar, simt::cur->lin, false});
    s.gen++;
    pump();
}
inline void store_wait() {
    State &s = state();
    for (size_t i = 0; i < s.copies.size();)
        if (s.copies[i].kind != Copy::LOAD && s.copies[i].is_committed && s.copies[i].thread == simt::cur->lin)
            run_copy(i);
        else
            i++;
}

// Operands of wgmma, decoded from the descriptor.
inline uint32_t operand_at(uint64_t desc, int row, int k) {
    uint32_t start = (uint32_t)(desc & 0x3FFF) << 4, sbo = (uint32_t)(desc >> 32 & 0x3FFF) << 4;
    return swizzle(start + (uint32_t)(row / 8) * sbo + (uint32_t)(row % 8) * 128 + (uint32_t)k, 128);
}
inline void check_operand(uint64_t desc, int rows) {
    if (desc >> 62 != 1) simt::die("wgmma: the descriptor is not for the 128-byte swizzle");
    if (desc >> 49 & 7) simt::die("wgmma: the descriptor has a base offset");
    if ((desc & 0x3F) > 6 || (desc & 1)) simt::die("wgmma: the tile does not start at a multiple of 1024 bytes");
    if (operand_at(desc, rows - 1, 31) >= simt::blk.dyn_bytes)
        simt::die("wgmma: operand past the end of shared memory");
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < 32; k += 16)
            if (state().dirty[operand_at(desc, r, k) / 16])
                simt::die("wgmma reads what was stored without proxy_fence");
}
inline uint64_t hash_operand(uint64_t h, uint64_t desc, int rows) {
    for (int r = 0; r < rows; r++)
        for (int k = 0; k < 32; k += 8) {
            uint64_t w;
            memcpy(&w, simt::blk.dyn + operand_at(desc, r, k), 8);
            h = (h ^ w) * 0x9E3779B97F4A7C15ull;
            h ^= h >> 29;
        }
    return h;
}
inline uint64_t hash_product(const Product &p) {
    if (p.kind == LEFT) return hash_turned(1, p.b, p.n);
    return hash_operand(hash_operand(1, p.a, 64), p.b, p.n);
}

// The sum of Hopper's tensor cores: the largest exponent among the sum and the 32 products sets a unit of 2^(e-13),
// to which all are cut toward zero (gemm.h, GEMM_HOPPER14).
inline float cut_sum(float sum, const float *v, int bits) {
    int e = (int)(f32_bits(sum) >> 23 & 255);
    for (int k = 0; k < 32; k++) e = (int)(f32_bits(v[k]) >> 23 & 255) > e ? (int)(f32_bits(v[k]) >> 23 & 255) : e;
    if (e == 255) return NAN;
    e = e < 14 ? 14 : e;
    double unit = ldexp(1.0, e - 127 - (bits - 1));
    double q = trunc((double)sum / unit);
    for (int k = 0; k < 32; k++) q += trunc((double)v[k] / unit);
    return (float)(q * unit);
}
typedef float Lane8 __attribute__((vector_size(32)));
inline void multiply(const Product &p, float *d) {
    static float code[256], a[64][32], b[32][256], bt[256][32];
    if (code[1] == 0.0f)
        for (int i = 0; i < 256; i++) code[i] = f32_from_e4m3((uint8_t)i);
    for (int r = 0; r < 64; r++)
        for (int k = 0; k < 32; k++) a[r][k] = code[simt::blk.dyn[operand_at(p.a, r, k)]];
    for (int n = 0; n < p.n; n++)
        for (int k = 0; k < 32; k++) b[k][n] = bt[n][k] = code[simt::blk.dyn[operand_at(p.b, n, k)]];
    for (int r = 0; r < 64; r++) {
        float *row = d + r * p.n;
        if (!p.is_added) memset(row, 0, (size_t)p.n * sizeof *row);
        for (int n = 0; n < p.n; n += 8) {
            if (sum_bits) {
                for (int j = n; j < n + 8; j++) {
                    float v[32];
                    for (int k = 0; k < 32; k++) v[k] = a[r][k] * bt[j][k];
                    row[j] = cut_sum(row[j], v, sum_bits);
                }
                continue;
            }
            Lane8 sum = {0}, w;
            for (int k = 0; k < 32; k++) {
                memcpy(&w, &b[k][n], sizeof w);
                sum += w * a[r][k];
            }
            for (int j = 0; j < 8; j++) row[n + j] += sum[j];
        }
    }
    products++;
}
// Products happen in order, those that all threads have issued.
inline void run_products(Group &g, size_t until) {
    for (size_t i = 0; i < until; i++) {
        Product &p = g.queue[i];
        if (p.is_done || p.issued < 128) continue;
        if (hash_product(p) != p.hash) simt::die("operands of a wgmma changed under way");
        (p.kind == CODES ? multiply : multiply_half)(p, g.sums[(size_t)p.sums].v.data());
        p.is_done = true;
    }
}
inline Group &my_group() {
    return state().group[simt::cur->lin / 128];
}

// The registers of thread t that d holds, for accumulators of n columns.
inline int row_of(int t, int i) {
    return t / 32 * 16 + t % 32 / 4 + (i >> 1 & 1) * 8;
}
inline int column_of(int t, int i) {
    return i / 4 * 8 + t % 4 * 2 + (i & 1);
}

inline void issue(float *d, int n, uint64_t a, uint64_t b, bool is_added, Kind kind, const uint32_t *left) {
    Group &g = my_group();
    int t = simt::cur->lin % 128, i = g.issued[t]++;
    if (!g.is_fenced[t]) simt::die("wgmma without wgmma_fence");
    if (i == (int)g.queue.size()) {
        int at = -1;
        for (size_t k = 0; k < g.sums.size(); k++)
            if (g.sums[k].d[t] == d) at = (int)k;
        if (at < 0) {
            at = (int)g.sums.size();
            g.sums.push_back(Sums());
            g.sums[(size_t)at].n = n;
            g.sums[(size_t)at].v.assign((size_t)(64 * n), NAN);
            memset(g.sums[(size_t)at].d, 0, sizeof g.sums[0].d);
        }
        g.queue.push_back(Product{a, b, 0, is_added, n, 0, at, false, kind, {}});
        if (left) g.queue.back().left.assign(64 * 16, 0);
    }
    Product &p = g.queue[(size_t)i];
    if (p.a != a || p.b != b || p.n != n || p.is_added != is_added || p.kind != kind)
        simt::die("threads of a warpgroup disagree on a wgmma");
    for (int k = 0; left && k < 8; k++) {
        int at = row_of(t, k & 2) * 16 + k / 4 * 8 + t % 4 * 2 + (k & 1);
        p.left[(size_t)at] = (uint16_t)(left[k / 2] >> 16 * (k & 1));
    }
    Sums &s = g.sums[(size_t)p.sums];
    if (!s.d[t]) { // the first product on these registers since the last wait
        s.d[t] = d;
        for (int k = 0; k < n / 2; k++) s.v[(size_t)(row_of(t, k) * n + column_of(t, k))] = d[k];
        for (int k = 0; k < n / 2; k++) d[k] = NAN;
    } else if (s.d[t] != d) {
        simt::die("threads of a warpgroup disagree on the accumulators of a wgmma");
    }
    if (++p.issued < 128) return;
    if (kind == LEFT) {
        check_turned(b, n);
    } else {
        check_operand(a, 64);
        check_operand(b, n);
    }
    p.hash = hash_product(p);
    if (simt::random_below(2)) run_products(g, (size_t)i + 1);
    g.gen++;
}
inline void wait_products() {
    Group &g = my_group();
    int t = simt::cur->lin % 128;
    if (g.committed[t] != g.issued[t]) simt::die("wgmma_wait: products were not committed");
    for (int i = 0; i < g.issued[t]; i++)
        while (g.queue[(size_t)i].issued < 128) simt::wait(&g.gen, "wgmma_wait");
    run_products(g, (size_t)g.issued[t]);
    for (int i = g.finished[t]; i < g.issued[t] && t % 32 == 0; i++)
        if (hash_product(g.queue[(size_t)i]) != g.queue[(size_t)i].hash)
            simt::die("operands of a wgmma changed under way");
    for (Sums &s : g.sums) {
        if (!s.d[t]) continue;
        for (int k = 0; k < s.n / 2; k++) s.d[t][k] = s.v[(size_t)(row_of(t, k) * s.n + column_of(t, k))];
        s.d[t] = nullptr;
    }
    g.is_fenced[t] = false;
    g.finished[t] = g.issued[t];
    for (int u = 0; u < 128; u++)
        if (g.finished[u] != (int)g.queue.size()) return;
    g.queue.clear();
    g.sums.clear();
    memset(g.issued, 0, sizeof g.issued);
    memset(g.committed, 0, sizeof g.committed);
    memset(g.finished, 0, sizeof g.finished);
}
inline void set_registers(int n) {
    State &s = state();
    int threads = (int)(simt::blk.bdim.x * simt::blk.bdim.y * simt::blk.bdim.z), groups = threads / 128, sum = 0;
    if (n % 8 || n < 24 || n > 256) simt::die("setmaxnreg: a multiple of 8 from 24 to 256");
    s.group[simt::cur->lin / 128].regs[simt::cur->lin % 128 / 32] = n;
    for (int i = 0; i < groups; i++) {
        int most = 0;
        for (int r : s.group[i].regs) most = r > most ? r : most;
        sum += most;
    }
    if (sum > groups * (65536 / threads / 8 * 8)) simt::die("setmaxnreg: more registers than the block has");
}

// encode: cuTensorMapEncodeTiled with its rules, for three dimensions.
CUresult encode(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base, const cuuint64_t *dim,
                const cuuint64_t *stride, const cuuint32_t *box, const cuuint32_t *step,
                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle_mode, CUtensorMapL2promotion promotion,
                CUtensorMapFloatOOBfill fill);

} // namespace tc

#define TC_LINE int line = __builtin_LINE()
#define TC_CUT(what) tc::is_cut(what, line)

inline void mbar_init(uint64_t *bar, uint32_t arrivals, TC_LINE) {
    if (TC_CUT("mbar_init")) return;
    tc::State &s = tc::state();
    uint32_t at = tc::offset(bar);
    if (at % 8 || !arrivals) simt::die("mbar_init: misaligned, or no arrivals");
    for (const tc::Bar &b : s.bars)
        if (b.at == at) simt::die("an mbarrier initialised twice");
    s.bars.push_back(tc::Bar{at, arrivals, arrivals, 0, 0, 0});
}
inline void mbar_init_fence() {
}
inline void mbar_arrive(uint64_t *bar, TC_LINE) {
    if (TC_CUT("mbar_arrive")) return;
    tc::arrive(tc::state().bars[(size_t)tc::find_bar(bar)], 0);
}
inline void mbar_expect(uint64_t *bar, uint32_t bytes, TC_LINE) {
    if (TC_CUT("mbar_expect")) return;
    tc::arrive(tc::state().bars[(size_t)tc::find_bar(bar)], bytes);
}
inline void mbar_wait(uint64_t *bar, uint32_t parity, TC_LINE) {
    if (TC_CUT("mbar_wait")) return;
    if (TC_CUT("mbar_parity")) parity ^= 1;
    if (parity > 1) simt::die("mbar_wait: parity is 0 or 1");
    int i = tc::find_bar(bar);
    while (tc::state().bars[(size_t)i].phase == parity) {
        if (tc::has_loads()) {
            tc::pump();
            tc::yield();
        } else {
            simt::wait(&tc::block.gen, "mbar_wait");
        }
    }
}
inline void tma_prefetch(const TMap *m) {
    if (((const tc::Map *)m)->magic != tc::MAP_MAGIC) simt::die("tma_prefetch of a map that was never encoded");
}
inline void tma_load(void *dst, const TMap *m, uint64_t *bar, int x, int y, int z, TC_LINE) {
    if (TC_CUT("tma_load")) return;
    int i = tc::find_bar(bar);
    tc::state().bars[(size_t)i].copies++;
    tc::add_copy(tc::Copy::LOAD, m, dst, i, x, y, z);
}
inline void tma_store(const TMap *m, const void *src, int x, int y, int z, TC_LINE) {
    if (!TC_CUT("tma_store")) tc::add_copy(tc::Copy::STORE, m, src, -1, x, y, z);
}
inline void tma_store_add(const TMap *m, const void *src, int x, int y, int z, TC_LINE) {
    if (!TC_CUT("tma_store_add")) tc::add_copy(tc::Copy::ADD, m, src, -1, x, y, z);
}
inline void tma_store_commit(TC_LINE) {
    if (TC_CUT("tma_store_commit")) return;
    for (tc::Copy &c : tc::state().copies) c.is_committed = c.is_committed || c.thread == simt::cur->lin;
}
inline void tma_store_wait_read(TC_LINE) {
    if (!TC_CUT("tma_store_wait_read")) tc::store_wait();
}
inline void tma_store_wait(TC_LINE) {
    if (!TC_CUT("tma_store_wait")) tc::store_wait();
}
inline void proxy_fence(TC_LINE) {
    if (TC_CUT("proxy_fence")) return;
    for (int16_t &d : tc::state().dirty)
        if (d == simt::cur->lin + 1) d = 0;
}
inline void block_sync(TC_LINE) {
    if (!TC_CUT("block_sync")) __syncthreads();
}
inline void warp_sync(TC_LINE) {
    if (!TC_CUT("warp_sync")) __syncwarp();
}
template <int ID, int THREADS> inline void named_sync(TC_LINE) {
    static_assert(ID > 0 && ID < 16 && THREADS % 32 == 0, "a named barrier is shared by whole warps");
    if (TC_CUT("named_sync")) return;
    tc::Named &n = tc::state().named[ID];
    if (n.arrived && n.expected != THREADS) simt::die("a named barrier with two thread counts");
    n.expected = THREADS;
    if (++n.arrived < THREADS) {
        simt::wait(&n.gen, "named_sync");
    } else {
        n.arrived = 0;
        n.gen++;
    }
}
template <int N> inline void regs_drop() {
    tc::set_registers(N);
}
template <int N> inline void regs_take() {
    tc::set_registers(N);
}

enum { WGMMA_STEP = 32 >> 4 };
inline uint64_t wgmma_desc(const void *tile) {
    uint64_t at = (tc::offset(tile) & 0x3FFFF) >> 4;
    return at | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
template <int R> inline void wgmma_fence(float (&)[R], TC_LINE) {
    if (!TC_CUT("wgmma_fence")) tc::my_group().is_fenced[simt::cur->lin % 128] = true;
}
inline void wgmma_commit(TC_LINE) {
    if (TC_CUT("wgmma_commit")) return;
    tc::Group &g = tc::my_group();
    g.committed[simt::cur->lin % 128] = g.issued[simt::cur->lin % 128];
}
template <int R> inline void wgmma_wait(float (&)[R], TC_LINE) {
    if (!TC_CUT("wgmma_wait")) tc::wait_products();
}
template <int R> inline void wgmma_e4m3(float (&d)[R], uint64_t a, uint64_t b, bool is_added, TC_LINE) {
    if (TC_CUT("wgmma")) return;
    if (TC_CUT("wgmma_clear")) is_added = true;
    tc::issue(d, 2 * R, a, b, is_added, tc::CODES, nullptr);
}

inline void st_shared2(float *p, float x, float y) {
    tc::touch(tc::offset(p), 8);
    p[0] = x;
    p[1] = y;
}
inline void st_shared16(void *p, uint4 v) {
    if (tc::offset(p) % 16) simt::die("st_shared16: misaligned");
    tc::touch(tc::offset(p), 16);
    memcpy(p, &v, 16);
}
inline void stmatrix4(void *row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    uint32_t r[4] = {r0, r1, r2, r3}, at = tc::offset(row);
    if (at % 16) simt::die("stmatrix4: misaligned");
    for (int m = 0; m < 4; m++) {
        uint32_t to = simt::shuffle(~0u, at, 8 * m + simt::lane() / 4, "stmatrix4") + (uint32_t)simt::lane() % 4 * 4;
        tc::touch(to, 4);
        memcpy(simt::blk.dyn + to, &r[m], 4);
    }
}
inline uint32_t pack_bf16(float low, float high) {
    return bf16_from_f32(low) | (uint32_t)bf16_from_f32(high) << 16;
}
inline float fma_rn(float x, float y, float z, TC_LINE) {
    if ((tc::record || tc::cut_what) && TC_CUT("fma_rn")) return z;
    return fmaf(x, y, z);
}
#include "tc_warp.h"
