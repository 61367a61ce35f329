// Barriers and warp operations: what CUDA threads do together.
#include <cstring>

#include "block.h"
#include "ptx.h"
#include "runtime.h"
#include "sanitizer.h"
#include "text.h"

namespace emu {
namespace {

bool same(const Site& a, const Site& b) {
    return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------
// Block barrier

BarrierResult Engine::barrier(const char* name, bool predicate, Site site) {
    if (!current_) misuse("%s", name);
    Thread* self = current_;
    const unsigned turn = turn_;
    if (at_barrier_ == 0) {
        first_at_barrier_ = self;
        count_[turn] = 0;
    } else if (!same(first_at_barrier_->site, site)) {
        const Thread& first = *first_at_barrier_;
        misuse(
            "threads of one block meet in two different barriers: this one in %s at %s:%d, thread %u in %s "
            "at %s:%d",
            name, site.file, site.line, first.id, first.waits_in, first.site.file, first.site.line);
    }
    at_barrier_++;
    count_[turn] += predicate;
    happens_release(&sync_[turn]);
    if (at_barrier_ == thread_count_) release_barrier();
    wait_here(at_barrier_ ? Thread::State::at_barrier : Thread::State::ready, name, site);
    happens_acquire(&sync_[turn]);
    return {int(thread_count_), count_[turn]};
}

void Engine::release_barrier() {
    for (unsigned i = 0; i < thread_count_; i++) {
        Thread& t = threads_[settings().order == Order::backward ? thread_count_ - 1 - i : i];
        t.state = Thread::State::ready;
        ready_.push_back(&t);
    }
    at_barrier_ = 0;
    turn_ ^= 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Warp operations

void Engine::check_mask(const WarpOp& op, unsigned mask, Site site) {
    const unsigned lane = current_->id % 32, lanes = thread_count_ - current_->id / 32 * 32;
    if (!(mask >> lane & 1))
        misuse("%s at %s:%d: lane %u is not in its own mask %08x", op.name, site.file, site.line, lane, mask);
    if (lanes < 32 && mask >> lanes)
        misuse(
            "%s at %s:%d: the mask %08x names lanes that do not exist, the block has %u threads, not a "
            "multiple of 32",
            op.name, site.file, site.line, mask, thread_count_);
}

// The operation with this mask that waits for this lane, or a new one.
OpenOp& Engine::open_op(Warp& warp, const WarpOp& op, unsigned mask, Site site) {
    for (int i = 0; i < warp.open_count; i++) {
        OpenOp& open = warp.open[i];
        if (open.mask != mask) continue;
        if (open.op != &op || !same(open.site, site))
            misuse(
                "lanes of one warp meet in two different operations: this one in %s at %s:%d, others in %s "
                "at %s:%d",
                op.name, site.file, site.line, open.op->name, open.site.file, open.site.line);
        return open;
    }
    if (warp.open_count == 32) misuse("%s at %s:%d: lanes wait with 32 different masks", op.name, site.file, site.line);
    OpenOp& open = warp.open[warp.open_count++];
    open = {&op, mask, 0, site, {}};
    return open;
}

void Engine::warp_operation(const WarpOp& op, unsigned mask, void* mine, Site site) {
    if (!current_) misuse("%s", op.name);
    check_mask(op, mask, site);
    Thread* self = current_;
    const unsigned lane = self->id % 32, leader = unsigned(__builtin_ctz(mask));
    Warp& warp = warps_[self->id / 32];
    OpenOp& open = open_op(warp, op, mask, site);
    open.lanes[lane] = mine;
    open.arrived |= 1u << lane;
    void* sync = &warp.sync[leader][warp.turn[leader]];
    if (op.orders_memory) happens_release(sync);

    if (open.arrived == mask) {
        if (op.run) op.run(open.lanes);
        warp.turn[leader] ^= 1;
        open = warp.open[--warp.open_count];
        // The last lane continues first, without a switch, except when any order must be possible.
        if (settings().order == Order::random) {
            release_lanes(self->id / 32, mask);
            wait_here(Thread::State::ready, op.name, site);
        } else {
            release_lanes(self->id / 32, mask & ~(1u << lane));
        }
    } else {
        wait_here(Thread::State::at_warp_op, op.name, site);
    }
    if (op.orders_memory) happens_acquire(sync);
}

void Engine::release_lanes(unsigned warp, unsigned lanes) {
    for (unsigned i = 0; i < 32; i++) {
        const unsigned lane = settings().order == Order::backward ? i : 31 - i;
        if (!(lanes >> lane & 1)) continue;
        Thread& t = threads_[warp * 32 + lane];
        t.state = Thread::State::ready;
        ready_.push_front(&t);
    }
}

BarrierResult block_barrier(const char* name, bool predicate, Site site) {
    return Engine::of_this_host_thread().barrier(name, predicate, site);
}

void warp_operation(const WarpOp& op, unsigned mask, void* mine, Site site) {
    Engine::of_this_host_thread().warp_operation(op, mask, mine, site);
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix instructions. lane = 4 group + t.

namespace {

float bf16_half(uint32_t pair, int half) {
    const uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
    return __builtin_bit_cast(float, bits);
}

}  // namespace

void run_mma_m16n8k16(void* const* lanes) {
    float a[16][16], b[16][8], sums[16][8];
    // Element i of lane's fragment of D.
    auto sum = [&sums](int lane, int i) -> float& { return sums[lane / 4 + (i >> 1) * 8][2 * (lane % 4) + (i & 1)]; };
    for (int lane = 0; lane < 32; lane++) {
        const auto* mine = static_cast<MmaLane*>(lanes[lane]);
        const int group = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 4; i++)
                a[group + (i & 1) * 8][2 * t + half + (i >> 1) * 8] = bf16_half(mine->a[i], half);
            for (int i = 0; i < 2; i++) b[2 * t + half + i * 8][group] = bf16_half(mine->b[i], half);
        }
        for (int i = 0; i < 4; i++) sum(lane, i) = mine->d[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) sums[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++) static_cast<MmaLane*>(lanes[lane])->d[i] = sum(lane, i);
}

void run_ldmatrix(void* const* lanes, int matrices, bool transposed) {
    for (int lane = 0; lane < 32; lane++) {
        uint32_t* registers = static_cast<MatrixLane*>(lanes[lane])->registers;
        const int group = lane / 4, t = lane % 4;
        for (int m = 0; m < matrices; m++) {
            auto element = [&](int row, int column) -> uint32_t {
                return static_cast<MatrixLane*>(lanes[8 * m + row])->row[column];
            };
            registers[m] = transposed ? element(2 * t, group) | element(2 * t + 1, group) << 16
                                      : element(group, 2 * t) | element(group, 2 * t + 1) << 16;
        }
    }
}

}  // namespace emu
