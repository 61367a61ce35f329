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
    Block& block = *block_;
    const unsigned turn = block.turn;
    if (block.at_barrier == 0) {
        block.first_at_barrier = current_;
        block.count[turn] = 0;
    } else if (!same(block.first_at_barrier->site, site)) {
        const Thread& first = *block.first_at_barrier;
        misuse(
            "threads of one block meet in two different barriers: this one in %s at %s:%d, thread %u in %s "
            "at %s:%d",
            name, site.file, site.line, first.id, first.waits_in, first.site.file, first.site.line);
    }
    block.at_barrier++;
    block.count[turn] += predicate;
    happens_release(&block.sync[turn]);
    if (block.at_barrier == block.thread_count) release_barrier();
    wait_here(block.at_barrier ? Thread::State::at_barrier : Thread::State::ready, name, site);
    happens_acquire(&block.sync[turn]);
    return {int(block.thread_count), block.count[turn]};
}

void Engine::release_barrier() {
    if (block_->has_warpgroups) block_->async_proxy->barrier(~0u);
    make_all_ready(*block_);
    block_->at_barrier = 0;
    block_->turn ^= 1;
}

void Engine::make_all_ready(Block& block) {
    for (unsigned i = 0; i < block.thread_count; i++) {
        Thread& t = block.threads[settings().order == Order::backward ? block.thread_count - 1 - i : i];
        t.state = Thread::State::ready;
        block.ready.push_back(&t);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Named barriers: of whole warps, which need not meet on one source line

void Engine::named_barrier(int id, int threads, Site site) {
    if (!current_) misuse("named_barrier");
    auto wrong = [&](const char* what) {
        misuse("named_barrier(%d, %d) at %s:%d: %s", id, threads, site.file, site.line, what);
    };
    if (id == 0) wrong("barrier 0 is the one of __syncthreads()");
    if (id < 0 || id > 15) wrong("there are barriers 1 to 15");
    if (threads <= 0 || threads % 32) wrong("the threads are not a multiple of 32");
    if (unsigned(threads) > block_->thread_count) wrong("the block has fewer threads");
    NamedBarrier& barrier = block_->named[id];
    if (barrier.arrived == 0) {
        barrier.expected = unsigned(threads), barrier.first = site;
        barrier.lanes.assign(max_warps, 0);
    } else if (barrier.expected != unsigned(threads)) {
        misuse("named_barrier(%d, %d) at %s:%d: at %s:%d it is for %u threads", id, threads, site.file, site.line,
               barrier.first.file, barrier.first.line, barrier.expected);
    }
    barrier.lanes[current_->id / 32] |= 1u << current_->id % 32;
    void* sync = &barrier.sync[barrier.turn];
    happens_release(sync);
    const bool last = ++barrier.arrived == barrier.expected;
    if (last) release_named_barrier(barrier, id, site);
    static constexpr const char* names[] = {"",
                                            "named_barrier 1",
                                            "named_barrier 2",
                                            "named_barrier 3",
                                            "named_barrier 4",
                                            "named_barrier 5",
                                            "named_barrier 6",
                                            "named_barrier 7",
                                            "named_barrier 8",
                                            "named_barrier 9",
                                            "named_barrier 10",
                                            "named_barrier 11",
                                            "named_barrier 12",
                                            "named_barrier 13",
                                            "named_barrier 14",
                                            "named_barrier 15"};
    wait_here(last ? Thread::State::ready : Thread::State::at_named_barrier, names[id], site);
    happens_acquire(sync);
}

void Engine::release_named_barrier(NamedBarrier& barrier, int id, Site site) {
    unsigned warps = 0;
    for (unsigned w = 0; w < max_warps; w++) {
        if (barrier.lanes[w] == 0) continue;
        warps |= 1u << w;
        if (barrier.lanes[w] != ~0u)
            misuse(
                "named_barrier(%d, %u) at %s:%d: of warp %u only lanes %08x are among its threads: others come too, or some do not",
                id, barrier.expected, site.file, site.line, w, barrier.lanes[w]);
    }
    if (block_->has_warpgroups) block_->async_proxy->barrier(warps);
    for (unsigned i = 0; i < block_->thread_count; i++) {
        Thread& t = block_->threads[settings().order == Order::backward ? block_->thread_count - 1 - i : i];
        if (!(warps >> t.id / 32 & 1)) continue;
        t.state = Thread::State::ready;
        block_->ready.push_back(&t);
    }
    barrier.arrived = 0;
    barrier.turn ^= 1;
}

// ---------------------------------------------------------------------------------------------------------------------
// Grid barrier

void Engine::grid_barrier(const char* name, Site site) {
    if (!current_) misuse("%s", name);
    if (!launch_->cooperative)
        misuse("%s at %s:%d in a kernel that was not launched cooperatively", name, site.file, site.line);
    if (!first_at_grid_barrier_) {
        first_at_grid_barrier_ = current_;
        first_block_at_grid_barrier_ = block_;
    } else if (!same(first_at_grid_barrier_->site, site)) {
        const Thread& first = *first_at_grid_barrier_;
        const Dim& block = first_block_at_grid_barrier_->index;
        misuse(
            "threads of one grid meet in two different grid barriers: this one in %s at %s:%d, thread %u of block "
            "(%u, %u, %u) in %s at %s:%d",
            name, site.file, site.line, first.id, block.x, block.y, block.z, first.waits_in, first.site.file,
            first.site.line);
    }
    block_->at_grid_barrier++;
    void* sync = &grid_sync_[grid_turn_];
    happens_release(sync);
    wait_here(Thread::State::at_grid_barrier, name, site);
    happens_acquire(sync);
}

// Atomics are relaxed, so ThreadSanitizer takes no order from them. (In an ordinary launch the blocks have one
// anyway, and a fence must not hide that threads of a block have none.)
void Engine::fence() {
    if (!launch_ || !launch_->cooperative) return;
    happens_acquire(&fence_sync_);
    happens_release(&fence_sync_);
}

// When no block can continue: false if all have returned, true if all of them wait in the barrier, which they
// may now leave. Else it is a deadlock.
bool Engine::release_grid_barrier(size_t blocks) {
    size_t returned = 0;
    for (size_t i = 0; i < blocks; i++) returned += blocks_[i]->at_grid_barrier == 0;
    if (returned > 0) {
        if (returned < blocks) diagnose_grid_deadlock(blocks);
        return false;
    }
    for (size_t i = 0; i < blocks; i++) {
        blocks_[i]->at_grid_barrier = 0;
        if (blocks_[i]->has_warpgroups) blocks_[i]->async_proxy->barrier(~0u);
        make_all_ready(*blocks_[i]);
    }
    first_at_grid_barrier_ = nullptr;
    grid_turn_ ^= 1;
    grid_barriers_++;
    return true;
}

// ---------------------------------------------------------------------------------------------------------------------
// Warp operations

void Engine::check_mask(const WarpOp& op, unsigned mask, Site site) {
    const unsigned lane = current_->id % 32, lanes = block_->thread_count - current_->id / 32 * 32;
    if (!(mask >> lane & 1))
        misuse("%s at %s:%d: lane %u is not in its own mask %08x", op.name, site.file, site.line, lane, mask);
    if (lanes < 32 && mask >> lanes)
        misuse(
            "%s at %s:%d: the mask %08x names lanes that do not exist, the block has %u threads, not a "
            "multiple of 32",
            op.name, site.file, site.line, mask, block_->thread_count);
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
    Warp& warp = block_->warps[self->id / 32];
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
        Thread& t = block_->threads[warp * 32 + lane];
        t.state = Thread::State::ready;
        block_->ready.push_front(&t);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Products of warpgroups

void Engine::wgmma(const WgmmaLane& mine, Site site) {
    Thread* self = current_;
    Warpgroup& group = block_->warpgroup(self->id);
    if (!group.arrive(self->id % group_threads, mine, site)) return wait_here(Thread::State::at_product, "wgmma", site);
    const unsigned first_warp = self->id / group_threads * 4;
    group.issue(*block_->async_proxy);
    // As in a warp operation.
    const bool switches = settings().order == Order::random;
    for (unsigned i = 0; i < 4; i++) {
        const unsigned warp = first_warp + (settings().order == Order::backward ? i : 3 - i);
        release_lanes(warp, warp == self->id / 32 && !switches ? ~(1u << self->id % 32) : ~0u);
    }
    if (switches) wait_here(Thread::State::ready, "wgmma", site);
}

BarrierResult block_barrier(const char* name, bool predicate, Site site) {
    return Engine::of_this_host_thread().barrier(name, predicate, site);
}

void named_barrier(int id, int threads, Site site) { Engine::of_this_host_thread().named_barrier(id, threads, site); }

void fence() { Engine::of_this_host_thread().fence(); }

void grid_barrier(const char* name, Site site) { Engine::of_this_host_thread().grid_barrier(name, site); }

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
