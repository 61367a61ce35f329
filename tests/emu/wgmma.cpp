// Products of warpgroups: see warpgroup.h.
#include "wgmma.h"

#include <algorithm>
#include <cstring>

#include "block.h"
#include "runtime.h"
#include "sanitizer.h"
#include "text.h"
#include "warpgroup.h"

namespace emu {
namespace {

// What accumulators hold until they are waited for. A signaling NaN: whatever computes with it makes another one of it.
constexpr uint32_t pending_bits = 0xffbfffff;

constexpr size_t left_bytes = 4 * sizeof(uint32_t);  // a thread's registers
size_t sums_bytes(int n) { return size_t(n) / 2 * sizeof(float); }

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
    const auto x = reinterpret_cast<uintptr_t>(a), y = reinterpret_cast<uintptr_t>(b);
    return x < y + b_bytes && y < x + a_bytes;
}

// Whether all bytes of a range are in others.
bool covers(const Registers* named, int count, const void* p, size_t bytes) {
    auto at = reinterpret_cast<uintptr_t>(p), end = at + bytes;
    for (bool more = true; more && at < end;) {
        more = false;
        for (int i = 0; i < count; i++) {
            const auto first = reinterpret_cast<uintptr_t>(named[i].p), last = first + named[i].bytes;
            if (first <= at && at < last) at = last, more = true;
        }
    }
    return at >= end;
}

float from_bf16(uint32_t bits) { return __builtin_bit_cast(float, bits << 16); }

// Element i of a thread's accumulators, as in mma_m16n8k16: lane = 4 group + t.
struct Place {
    unsigned row, column;
};
Place place_of_sum(unsigned lane, unsigned i) {
    return {lane / 32 * 16 + lane % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2};
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Registers

// A part of a range that is known already stays in it; what the new one overlaps otherwise is forgotten.
void KnownRegisters::remember(const void* p, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(p), end = begin + bytes;
    for (Range& range : known_)
        if (range.begin <= begin && end <= range.end) {
            std::memcpy(&range.contents[begin - range.begin], p, bytes);
            return;
        }
    std::erase_if(known_, [&](const Range& range) { return range.begin < end && begin < range.end; });
    const char* contents = static_cast<const char*>(p);
    known_.push_back({begin, end, {contents, contents + bytes}});
}

KnownRegisters::State KnownRegisters::check(const void* p, size_t bytes) const {
    for (auto at = reinterpret_cast<uintptr_t>(p), end = at + bytes; at < end;) {
        auto range =
            std::find_if(known_.begin(), known_.end(), [at](const Range& r) { return r.begin <= at && at < r.end; });
        if (range == known_.end()) return State::unknown;
        const size_t common = std::min(range->end, end) - at;
        if (std::memcmp(&range->contents[at - range->begin], reinterpret_cast<const char*>(at), common) != 0)
            return State::changed;
        at += common;
    }
    return State::same;
}

// ---------------------------------------------------------------------------------------------------------------------
// Operands in shared memory

void check_wgmma(const char* name, Site site) {
    Engine& engine = Engine::of_this_host_thread();
    if (!engine.current()) misuse("%s", name);
    if (settings().sm != 90)
        misuse("%s at %s:%d: it needs sm_90a, this device is sm_%d (EMU_SM)", name, site.file, site.line,
               settings().sm);
    if (engine.block().thread_count % group_threads)
        misuse("%s at %s:%d: a block of %u threads does not consist of warpgroups, which have %d", name, site.file,
               site.line, engine.block().thread_count, group_threads);
}

Operand decode_operand(uint64_t descriptor, int extent, bool columns, const char* name, Site site) {
    auto bits = [descriptor](int first, int count) { return uint32_t(descriptor >> first & ((1u << count) - 1)); };
    const Operand operand{bits(0, 14) * 16, bits(16, 14) * 16, bits(32, 14) * 16, extent, columns, name};
    const char* wrong = nullptr;
    if (bits(62, 2) != 1)
        wrong = "its descriptor's bits 62-63 do not say 128-byte swizzle, which is 1";
    else if (bits(49, 3))
        wrong = "its descriptor has a base offset, which the stand-in does not know";
    else if (bits(14, 2) || bits(30, 2) || bits(46, 3) || bits(52, 10))
        wrong = "its descriptor has bits where none may be";
    else if (columns && operand.start % 1024)
        wrong = "it does not begin with its panel, at a multiple of 1024 bytes";
    else if (operand.start % 1024 >= 128)
        wrong = "it does not begin at a multiple of 8 rows, which is one of 1024 bytes";
    else if (operand.start % 32)
        wrong = "it does not begin at a multiple of 16 channels, which is one of 32 bytes";
    else if (operand.stride == 0 || operand.stride % 1024)
        wrong = "the next 8 rows are not a multiple of 1024 bytes away";
    else if (columns && extent > 64 && (operand.leading == 0 || operand.leading % 1024))
        wrong = "its panels are not a multiple of 1024 bytes apart (wgmma_operand's second argument)";
    else if (reinterpret_cast<uintptr_t>(dynamic_shared()) % 1024)
        wrong =
            "dynamic shared memory does not begin at a multiple of 1024 bytes: launch with a multiple of 1024 bytes of it";
    if (wrong)
        misuse("wgmma at %s:%d: its %s, descriptor %016llx: %s", site.file, site.line, name,
               static_cast<unsigned long long>(descriptor), wrong);
    return operand;
}

size_t unit_offset(const Operand& operand, int unit) {
    uint32_t address = operand.start;
    if (operand.columns) {
        const uint32_t row = uint32_t(unit) / uint32_t(operand.extent / 8),
                       c = uint32_t(unit) % uint32_t(operand.extent / 8);
        address += row % 8 * 128 + row / 8 * operand.stride + c / 8 * operand.leading + c % 8 * 16;
    } else {
        const uint32_t row = uint32_t(unit) / 2, half = uint32_t(unit) % 2;
        address += row % 8 * 128 + row / 8 * operand.stride + half * 16;
    }
    return address ^ (address >> 3 & 0x70);
}

const void* operand_unit(const Operand& operand, int unit, Site site) {
    const size_t offset = unit_offset(operand, unit), bytes = Engine::of_this_host_thread().launch().smem;
    if (offset + 16 > bytes)
        misuse("wgmma at %s:%d: its %s reads %zu bytes past the end of the %zu bytes of dynamic shared memory",
               site.file, site.line, operand.name, offset + 16 - bytes, bytes);
    return static_cast<const char*>(dynamic_shared()) + offset;
}

// ---------------------------------------------------------------------------------------------------------------------
// A product is issued

void Warpgroup::begin(unsigned first_warp) {
    first_warp_ = first_warp;
    arrived_ = 0;
    issued_ = 0;
    std::fill_n(finished_, 4, 0), std::fill_n(finished_before_, 4, 0), std::fill_n(committed_, 4, 0),
        std::fill_n(fenced_, 4, false);
    for (KnownRegisters& known : known_) known.clear();
    for (auto& sums : sums_) sums->end = 0;
}

bool Warpgroup::arrive(unsigned lane, const WgmmaLane& mine, Site site) {
    if (arrived_ == 0) {
        site_ = site;
        first_ = mine;
    } else if (site.line != site_.line || std::strcmp(site.file, site_.file) != 0) {
        misuse(
            "threads of one warpgroup meet in two different products: this one in wgmma at %s:%d, others in wgmma at %s:%d",
            site.file, site.line, site_.file, site_.line);
    } else {
        const char* differs = nullptr;
        if (mine.n != first_.n || !mine.a != !first_.a || mine.add != first_.add) differs = "forms of it, or `add`";
        if (mine.a_bits != first_.a_bits || mine.a_operand.columns != first_.a_operand.columns)
            differs = "left operands";
        if (mine.b_bits != first_.b_bits || mine.b_operand.columns != first_.b_operand.columns)
            differs = "right operands";
        if (differs)
            misuse("wgmma at %s:%d: threads of one warpgroup bring different %s", site.file, site.line, differs);
    }
    d_[lane] = mine.d, a_[lane] = mine.a;
    return ++arrived_ == group_threads;
}

// The warps must be equally far.
void Warpgroup::check_warps() const {
    for (unsigned w = 0; w < 4; w++) {
        const unsigned number = first_warp_ + w;
        if (!fenced_[w])
            misuse("wgmma at %s:%d: no wgmma_fence() before the first product of the block's warp %u", site_.file,
                   site_.line, number);
        if (committed_[w] != committed_[0])
            misuse("wgmma at %s:%d: the block's warp %u has committed %d groups, warp %u of the same warpgroup %d",
                   site_.file, site_.line, first_warp_, int(committed_[0]), number, int(committed_[w]));
        if (finished_[w] != finished_[0])
            misuse(
                "wgmma at %s:%d: the block's warp %u has waited for %d products, warp %u of the same warpgroup for %d",
                site_.file, site_.line, first_warp_, int(finished_[0]), number, int(finished_[w]));
    }
    if (issued_ - finished_[0] == max_products)
        misuse("wgmma at %s:%d: %d products are pending, more than the stand-in holds", site_.file, site_.line,
               max_products);
}

template <class T>
void Warpgroup::check_registers(T* const* registers, size_t bytes, const char* what) const {
    for (unsigned lane = 0; lane < group_threads; lane++) {
        const auto state = known_[lane].check(registers[lane], bytes);
        if (state == KnownRegisters::State::same) continue;
        misuse("wgmma at %s:%d: %s of thread %u %s", site_.file, site_.line, what, first_warp_ * 32 + lane,
               state == KnownRegisters::State::changed ? "changed after the last wgmma_fence() that named them"
                                                       : "were never named by a wgmma_fence()");
    }
}

// Those of products that are pending must still be what the first of these left there.
void Warpgroup::check_untouched(const Sums& sums, unsigned first_lane, unsigned lanes) const {
    for (unsigned lane = first_lane; lane < first_lane + lanes; lane++)
        for (int i = 0; i < sums.n / 2; i++) {
            if (__builtin_bit_cast(uint32_t, sums.d[lane][i]) == pending_bits) continue;
            const Site site = product(sums.end - 1).site;
            misuse("wgmma at %s:%d: its accumulators (element %d of thread %u) were written before the wait for it",
                   site.file, site.line, i, first_warp_ * 32 + lane);
        }
}

// Where products that add to these accumulators are pending.
Sums* Warpgroup::find_sums() const {
    for (const auto& sums : sums_) {
        if (sums->end <= finished_[0]) continue;
        bool same = sums->n == first_.n, some = false;
        for (unsigned lane = 0; lane < group_threads; lane++) {
            same &= sums->d[lane] == d_[lane];
            some |= overlap(sums->d[lane], sums_bytes(sums->n), d_[lane], sums_bytes(first_.n));
        }
        if (same) return sums.get();
        const Site site = product(sums->end - 1).site;
        if (some)
            misuse("wgmma at %s:%d: its accumulators are in part those of the pending product at %s:%d", site_.file,
                   site_.line, site.file, site.line);
    }
    return nullptr;
}

Sums* Warpgroup::new_sums() {
    check_registers(d_, sums_bytes(first_.n), "the accumulators");
    auto free = std::find_if(sums_.begin(), sums_.end(), [&](const auto& sums) { return sums->end <= finished_[0]; });
    if (free == sums_.end()) free = sums_.insert(free, std::make_unique<Sums>());
    Sums& sums = **free;
    sums.n = first_.n;
    std::copy_n(d_, group_threads, sums.d);
    for (unsigned lane = 0; lane < group_threads; lane++)
        for (unsigned i = 0; i < unsigned(sums.n) / 2; i++) {
            const Place place = place_of_sum(lane, i);
            sums.values[place.row][place.column] = d_[lane][i];
            std::memcpy(&d_[lane][i], &pending_bits, 4);
        }
    return &sums;
}

// Copies an operand, for later comparison and as numbers: set(row or column, k, value).
template <class F>
void Warpgroup::take_operand(Unit* units, const Operand& operand, const AsyncProxy& proxy, F&& set) {
    const char* shared = static_cast<const char*>(dynamic_shared());
    for (int u = 0; u < operand.units(); u++) {
        const size_t offset = unit_offset(operand, u);
        proxy.check(offset, first_warp_, operand.name, site_);
        std::memcpy(&units[u], shared + offset, sizeof(Unit));
        uint16_t values[8];
        std::memcpy(values, &units[u], sizeof values);
        const int per_row = operand.extent / 8;
        for (int i = 0; i < 8; i++)
            if (operand.columns)
                set(u % per_row * 8 + i, u / per_row, from_bf16(values[i]));
            else
                set(u / 2, u % 2 * 8 + i, from_bf16(values[i]));
    }
}

void Warpgroup::issue(const AsyncProxy& proxy) {
    const Unseen unseen;
    arrived_ = 0;
    check_warps();
    if (!products_) products_.reset(new Product[max_products]);
    Product& p = product(issued_);
    p.site = site_, p.n = first_.n, p.add = first_.add, p.registers = first_.a;
    p.group = committed_[0];
    p.a_operand = first_.a_operand, p.b_operand = first_.b_operand;
    if (p.registers) {
        check_registers(a_, sizeof *p.a_values, "the left operand's registers");
        for (unsigned lane = 0; lane < group_threads; lane++)
            for (unsigned i = 0; i < 4; i++) {
                const uint32_t pair = p.a_values[lane][i] = a_[lane][i];
                const unsigned row = lane / 32 * 16 + lane % 32 / 4 + i % 2 * 8, k = i / 2 * 8 + lane % 4 * 2;
                p.a[row][k] = from_bf16(pair & 0xffff), p.a[row][k + 1] = from_bf16(pair >> 16);
            }
        std::copy_n(a_, group_threads, p.a_registers);
    } else {
        take_operand(p.a_units, p.a_operand, proxy, [&p](int row, int k, float x) { p.a[row][k] = x; });
    }
    take_operand(p.b_units, p.b_operand, proxy, [&p](int column, int k, float x) { p.b[k][column] = x; });
    p.sums = find_sums();
    if (p.sums)
        check_untouched(*p.sums, 0, group_threads);
    else
        p.sums = new_sums();
    p.sums->end = ++issued_;
}

void Warpgroup::fence(unsigned lane, const Registers* named, int count) {
    const Unseen unseen;
    for (int i = 0; i < count; i++) known_[lane].remember(named[i].p, named[i].bytes);
    fenced_[lane / 32] = true;
}

// ---------------------------------------------------------------------------------------------------------------------
// A warp waits

void Warpgroup::check_unchanged(const Product& p, unsigned warp) const {
    const char* shared = static_cast<const char*>(dynamic_shared());
    auto check_operand = [&](const Operand& operand, const Unit* units) {
        for (int u = 0; u < operand.units(); u++)
            if (std::memcmp(shared + unit_offset(operand, u), &units[u], sizeof(Unit)) != 0)
                misuse("wgmma at %s:%d: its %s in shared memory (16 bytes at %zu) changed before the wait for it",
                       p.site.file, p.site.line, operand.name, unit_offset(operand, u));
    };
    check_operand(p.b_operand, p.b_units);
    if (!p.registers) check_operand(p.a_operand, p.a_units);
    for (unsigned lane = warp * 32; p.registers && lane < warp * 32 + 32; lane++)
        if (std::memcmp(p.a_registers[lane], p.a_values[lane], sizeof *p.a_values) != 0)
            misuse("wgmma at %s:%d: its left operand's registers (thread %u) changed before the wait for it",
                   p.site.file, p.site.line, first_warp_ * 32 + lane);
    check_untouched(*p.sums, warp * 32, 32);
}

// A warp's rows. Each product of two bf16 is exact, each sum is rounded, in the order of k.
void Warpgroup::multiply(const Product& p, unsigned warp) {
    using Vector [[gnu::vector_size(32)]] = float;
    constexpr unsigned rows = 4;  // at a time: independent sums
    using Warpgroups = Settings::Warpgroups;
    const bool as_set = Engine::of_this_host_thread().launch().kernel.find(settings().warpgroups_of) != std::string::npos;
    const unsigned wrong = as_set && settings().warpgroups == Warpgroups::wrong ? 8 : 0;
    if (as_set && settings().warpgroups == Warpgroups::misused)
        misuse("wgmma at %s:%d: the settings make it one", p.site.file, p.site.line);
    for (unsigned row = warp * 16; row < warp * 16 + 16; row += rows)
        for (unsigned column = 0; column < unsigned(p.n); column += 8) {
            Vector sums[rows] = {};
            for (unsigned r = 0; p.add && r < rows; r++)
                std::memcpy(&sums[r], p.sums->values[row + r] + column, sizeof(Vector));
            for (unsigned k = 0; k < 16; k++) {
                Vector b;
                std::memcpy(&b, p.b[k] + column, sizeof b);
                for (unsigned r = 0; r < rows; r++) sums[r] += p.a[(row + r) ^ wrong][k] * b;
            }
            for (unsigned r = 0; r < rows; r++) std::memcpy(p.sums->values[row + r] + column, &sums[r], sizeof(Vector));
        }
}

void Warpgroup::deliver(const Sums& sums, unsigned warp) {
    for (unsigned lane = warp * 32; lane < warp * 32 + 32; lane++) {
        for (unsigned i = 0; i < unsigned(sums.n) / 2; i++) {
            const Place place = place_of_sum(lane, i);
            sums.d[lane][i] = sums.values[place.row][place.column];
        }
        known_[lane].remember(sums.d[lane], sums_bytes(sums.n));
    }
}

void Warpgroup::finish(unsigned warp, uint64_t pending_groups) {
    const Unseen unseen;
    uint64_t& number = finished_[warp];
    finished_before_[warp] = number;
    for (; number < issued_ && product(number).group + pending_groups < committed_[warp]; number++) {
        const Product& p = product(number);
        check_unchanged(p, warp);
        multiply(p, warp);
        if (p.sums->end == number + 1) deliver(*p.sums, warp);
    }
}

const Product* Warpgroup::unfinished(unsigned lane, const Registers* registers) const {
    for (uint64_t number = finished_[lane / 32]; number < issued_; number++) {
        const Product& p = product(number);
        if (!registers || overlap(registers->p, registers->bytes, p.sums->d[lane], sums_bytes(p.n)) ||
            (p.registers && overlap(registers->p, registers->bytes, p.a_registers[lane], sizeof *p.a_values)))
            return &p;
    }
    return nullptr;
}

const Product* Warpgroup::unnamed(unsigned lane, const Registers* named, int count) const {
    for (uint64_t number = finished_before_[lane / 32]; number < finished_[lane / 32]; number++) {
        const Product& p = product(number);
        if (p.sums->end == number + 1 && !covers(named, count, p.sums->d[lane], sums_bytes(p.n))) return &p;
    }
    return nullptr;
}

// ---------------------------------------------------------------------------------------------------------------------
// Interface of kernels

namespace {

Engine& engine() { return Engine::of_this_host_thread(); }

// The calling thread's.
unsigned group_lane() { return engine().current()->id % group_threads; }
Warpgroup& warpgroup() { return engine().block().warpgroup(engine().current()->id); }

void run_commit(void* const*) { warpgroup().commit(group_lane() / 32); }

void run_wait(void* const* lanes) { warpgroup().finish(group_lane() / 32, *static_cast<const uint64_t*>(lanes[0])); }

}  // namespace

void wgmma(const WgmmaLane& mine, Site site) { engine().wgmma(mine, site); }

void wgmma_fence(const Registers* named, int count, Site site) {
    check_wgmma("wgmma_fence", site);
    warpgroup().fence(group_lane(), named, count);
    static constexpr WarpOp op{"wgmma_fence", nullptr, false};
    warp_operation(op, ~0u, nullptr, site);
}

void wgmma_wait(int pending, const Registers* named, int count, Site site) {
    check_wgmma("wgmma_wait", site);
    uint64_t groups = uint64_t(pending);
    static constexpr WarpOp op{"wgmma_wait", run_wait, false};
    warp_operation(op, ~0u, &groups, site);
    for (int i = 0; i < count; i++) {
        const Product* p = warpgroup().unfinished(group_lane(), &named[i]);
        if (p)
            misuse("wgmma_wait<%d> at %s:%d names registers of the product at %s:%d, which %s", pending, site.file,
                   site.line, p->site.file, p->site.line,
                   warpgroup().is_committed(*p, group_lane() / 32) ? "is still pending" : "was not committed");
    }
    if (const Product* p = warpgroup().unnamed(group_lane(), named, count))
        misuse(
            "wgmma_wait<%d> at %s:%d finishes the product at %s:%d without naming its accumulators: what uses them "
            "may come before the wait",
            pending, site.file, site.line, p->site.file, p->site.line);
}

uint64_t wgmma_operand_bits(const void* start, uint32_t panel, Site site) {
    const size_t bytes = engine().launch().smem;
    const auto offset = static_cast<const char*>(start) - static_cast<const char*>(dynamic_shared());
    if (offset < 0 || size_t(offset) >= bytes)
        misuse("wgmma_operand at %s:%d: it begins %td bytes %s the %zu bytes of dynamic shared memory", site.file,
               site.line, offset < 0 ? -offset : offset - std::ptrdiff_t(bytes),
               offset < 0 ? "before" : "past the end of", bytes);
    if (offset % 16 || panel % 16 || panel >= 1 << 18)
        misuse(
            "wgmma_operand at %s:%d: it begins at byte %td, with panels %u bytes apart: not multiples of 16 below 2^18",
            site.file, site.line, offset, panel);
    constexpr uint64_t eight_rows = 1024, swizzle_128 = 1;
    return uint64_t(offset) >> 4 | uint64_t(panel) >> 4 << 16 | eight_rows >> 4 << 32 | swizzle_128 << 62;
}

}  // namespace emu

bool wgmma_loaded() { return emu::settings().warpgroups != emu::Settings::Warpgroups::none; }

void wgmma_commit(const char* file, int line) {
    emu::check_wgmma("wgmma_commit", {file, line});
    static constexpr emu::WarpOp op{"wgmma_commit", emu::run_commit, false};
    emu::warp_operation(op, ~0u, nullptr, {file, line});
}

void fence_async_proxy(const char* file, int line) {
    emu::check_wgmma("fence_async_proxy", {file, line});
    emu::engine().block().proxy().fence(emu::engine().current()->id);
}

uint64_t wgmma_operand(const void* start, uint32_t panel, const char* file, int line) {
    emu::check_wgmma("wgmma_operand", {file, line});
    return emu::wgmma_operand_bits(start, panel, {file, line});
}
