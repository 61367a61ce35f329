// Warpgroups, and shared memory as their products see it. Inside of the stand-in only.
//
// A product takes its operands when it is issued, and its accumulators become NaN. Each warp gets the results when it waits for
// the product's group; if by then operands or registers have changed, a GPU might have seen either, which is reported.
#pragma once
#include <memory>
#include <vector>

#include "wgmma.h"

namespace emu {

constexpr int group_threads = 128, max_products = 64, max_columns = 256;

// The registers of one thread as fences found them and products left them: a product may take them if they are still the same.
class KnownRegisters {
  public:
    void clear() { known_.clear(); }
    void remember(const void* p, size_t bytes);
    enum class State { same, changed, unknown };
    State check(const void* p, size_t bytes) const;

  private:
    struct Range {
        uintptr_t begin, end;
        std::vector<char> contents;
    };
    std::vector<Range> known_;  // disjoint, the oldest first
};

// The accumulators of products that are not finished for all warps.
struct Sums {
    float* d[group_threads];
    int n;
    uint64_t end;  // the number of the last product, plus 1
    alignas(32) float values[64][max_columns];
};

struct Unit {
    char bytes[16];
};

struct Product {
    Site site;
    int n;
    bool add, registers;
    uint64_t group;
    Sums* sums;
    Operand a_operand, b_operand;
    // As they were issued: the left operand's registers, operands in shared memory, both as numbers.
    const uint32_t* a_registers[group_threads];
    uint32_t a_values[group_threads][4];
    Unit a_units[2 * 64], b_units[2 * max_columns];
    alignas(32) float a[64][16], b[16][max_columns];
};

class AsyncProxy;

// Products are numbered as they are issued. Each warp waits for itself, and so may have finished more of them than another. Lanes and
// warps are numbered within the group; reports have the block's numbers.
class Warpgroup {
  public:
    void begin(unsigned first_warp);
    // The next product: what the first thread brings, the others must bring, too. True: this was the last of them.
    bool arrive(unsigned lane, const WgmmaLane& mine, Site site);
    // What all have brought.
    void issue(const AsyncProxy& proxy);
    void fence(unsigned lane, const Registers* named, int count);
    void commit(unsigned warp) { committed_[warp]++; }
    void finish(unsigned warp, uint64_t pending_groups);
    // Of this warp, one that uses the registers; any at all if there are none. Null if there is none.
    const Product* unfinished(unsigned lane, const Registers* registers) const;
    // What the wait that has just finished them should have named, and does not: the accumulators of products that are the last ones on
    // these. A compiler may move what uses them before the wait. Null if there are none.
    const Product* unnamed(unsigned lane, const Registers* named, int count) const;
    bool is_committed(const Product& product, unsigned warp) const { return product.group < committed_[warp]; }

  private:
    Product& product(uint64_t number) const { return products_[number % max_products]; }
    void check_warps() const;
    template <class T>
    void check_registers(T* const* registers, size_t bytes, const char* what) const;
    void check_untouched(const Sums& sums, unsigned first_lane, unsigned lanes) const;
    void check_unchanged(const Product& product, unsigned warp) const;
    Sums* find_sums() const;
    Sums* new_sums();
    template <class F>
    void take_operand(Unit* units, const Operand& operand, const AsyncProxy& proxy, F&& set);
    static void multiply(const Product& product, unsigned warp);
    void deliver(const Sums& sums, unsigned warp);

    unsigned first_warp_ = 0;  // of the block's

    // The product that is about to be issued: what the first thread brought, where that differs for each.
    unsigned arrived_ = 0;
    Site site_;
    WgmmaLane first_;
    float* d_[group_threads];
    const uint32_t* a_[group_threads];

    uint64_t issued_ = 0, finished_[4] = {}, committed_[4] = {};
    uint64_t finished_before_[4] = {};  // before the last wait
    bool fenced_[4] = {};
    std::unique_ptr<Product[]> products_;
    std::vector<std::unique_ptr<Sums>> sums_;
    KnownRegisters known_[group_threads];
};

// Which bytes of dynamic shared memory the asynchronous proxy is sure to see as they are. For each word it is known when it was
// last written. cp.async is exact, thread by thread. Stores are found by comparison with what was there, at every barrier and
// when the first and the last thread of a warp call fence_async_proxy(); whose they are is not known, so that a fence of any thread
// counts for them. (Where several threads of a warp call it, but not all, their fences count at the barrier.) Barriers pass on, from warp to warp, what happened before.
class AsyncProxy {
  public:
    void begin(char* shared, size_t bytes, unsigned threads);
    void copy_begins(unsigned thread, const AsyncCopy& copy);
    void copy_ends(unsigned thread, const AsyncCopy& copy);
    void fence(unsigned thread);
    // When the last of these warps has arrived.
    void barrier(unsigned warps);
    // Reports a unit that a product of these four warps may see as it was.
    void check(size_t offset, unsigned first_warp, const char* operand, Site product) const;

  private:
    using Time = uint32_t;
    static constexpr Time in_flight = ~Time(0);
    struct Written {
        Time time;  // 0: never
        uint16_t thread, site;
    };
    static constexpr uint16_t by_store = 0xffff;
    void write(const AsyncCopy& copy, unsigned thread, Time time, const void* contents);
    void find_stores(unsigned thread, Time time);
    bool seen(const Written& written, unsigned first_warp) const;

    char* shared_ = nullptr;
    unsigned threads_ = 0, warps_ = 0;
    Time now_ = 0;
    std::vector<char> contents_;  // as last looked at
    std::vector<Written> written_;
    std::vector<Site> sites_;
    // The last fence of each thread, and of each warp; the threads of a warp that have fenced since stores were last looked for.
    std::vector<Time> fence_, warp_fence_;
    std::vector<uint32_t> fenced_;
    // What warp w knows: [w][v]: what warp v did before this time happened before; what warp v wrote before this time
    // another's fence covers. [w][thread]: the last fence of the thread that happened before.
    std::vector<std::vector<Time>> before_, covered_, fences_;
    std::vector<Time> newest_fence_;  // [w]: any warp's that happened before
};

}  // namespace emu
