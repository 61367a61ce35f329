// What products see of shared memory: who wrote it, and whether a fence and a barrier lie between.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "block.h"
#include "sanitizer.h"
#include "warpgroup.h"

namespace emu {

void AsyncProxy::begin(char* shared, size_t bytes, unsigned threads) {
    bytes = bytes / 4 * 4;  // operands end at a multiple of 1024
    shared_ = shared;
    threads_ = threads, warps_ = threads / 32;
    now_ = 1;
    contents_.assign(shared, shared + bytes);
    written_.assign(bytes / 4, {});
    sites_.clear();
    fence_.assign(threads_, 0);
    fenced_.assign(warps_, 0);
    before_.assign(warps_, std::vector<Time>(warps_, 0));
    covered_ = before_;
    fences_.assign(warps_, std::vector<Time>(threads_, 0));
    warp_fence_.assign(warps_, 0);
    newest_fence_ = warp_fence_;
}

void AsyncProxy::write(const AsyncCopy& copy, unsigned thread, Time time, const void* contents) {
    const Unseen unseen;
    const size_t offset = size_t(static_cast<char*>(copy.shared) - shared_);
    if (offset >= contents_.size()) return;  // a __shared__ variable
    size_t site = 0;
    while (site < sites_.size() && (sites_[site].line != copy.site.line || sites_[site].file != copy.site.file)) site++;
    if (site == sites_.size()) sites_.push_back(copy.site);
    std::memcpy(&contents_[offset], contents, size_t(copy.bytes));
    for (int i = 0; i < copy.bytes / 4; i++)
        written_[offset / 4 + size_t(i)] = {time, uint16_t(thread), uint16_t(site)};
}

void AsyncProxy::copy_begins(unsigned thread, const AsyncCopy& copy) {
    static constexpr uint32_t poison[4] = {~0u, ~0u, ~0u, ~0u};
    write(copy, thread, in_flight, poison);
}

void AsyncProxy::copy_ends(unsigned thread, const AsyncCopy& copy) {
    static constexpr uint32_t zeros[4] = {};
    write(copy, thread, now_++, copy.valid ? copy.global : zeros);
}

// Takes the words that have changed for written by this thread.
void AsyncProxy::find_stores(unsigned thread, Time time) {
    constexpr size_t chunk = 256;
    for (size_t at = 0; at < contents_.size(); at += chunk) {
        const size_t end = std::min(at + chunk, contents_.size());
        if (std::memcmp(shared_ + at, &contents_[at], end - at) == 0) continue;
        for (size_t i = at; i < end; i += 4) {
            if (std::memcmp(shared_ + i, &contents_[i], 4) == 0) continue;
            std::memcpy(&contents_[i], shared_ + i, 4);
            written_[i / 4] = {time, uint16_t(thread), by_store};
        }
    }
}

void AsyncProxy::fence(unsigned thread) {
    const Unseen unseen;
    const unsigned warp = thread / 32;
    const bool first = fenced_[warp] == 0;
    fenced_[warp] |= 1u << thread % 32;
    const bool last = fenced_[warp] == ~0u;
    if (first || last) find_stores(thread, now_++);
    if (last) fenced_[warp] = 0;
    fence_[thread] = warp_fence_[warp] = now_++;
    for (unsigned v = 0; v < warps_; v++) covered_[warp][v] = std::max(covered_[warp][v], before_[warp][v]);
}

void AsyncProxy::barrier(unsigned warps) {
    const Unseen unseen;
    auto takes_part = [warps](unsigned w) { return warps >> w & 1; };
    for (unsigned w = 0; w < warps_; w++)
        if (takes_part(w) && fenced_[w]) {
            // Fences of some of its threads, but more than one: for stores they count as called now.
            if (fenced_[w] & (fenced_[w] - 1)) find_stores(w * 32, now_++), warp_fence_[w] = now_++;
            fenced_[w] = 0;
        }
    find_stores(unsigned(__builtin_ctz(warps)) * 32, now_++);
    auto join = [&](std::vector<std::vector<Time>>& known, auto&& own) {
        std::vector<Time>* first = nullptr;
        for (unsigned w = 0; w < warps_; w++) {
            if (!takes_part(w)) continue;
            own(w);
            if (!first)
                first = &known[w];
            else
                for (size_t i = 0; i < first->size(); i++) (*first)[i] = std::max((*first)[i], known[w][i]);
        }
        for (unsigned w = 0; w < warps_; w++)
            if (takes_part(w) && &known[w] != first) known[w] = *first;
    };
    const Time now = now_++;
    join(before_, [&](unsigned w) { before_[w][w] = now; });
    join(covered_, [](unsigned) {});
    join(fences_, [&](unsigned w) { std::copy_n(&fence_[w * 32], 32, &fences_[w][w * 32]); });
    Time newest = 0;
    for (unsigned w = 0; w < warps_; w++)
        if (takes_part(w)) newest = std::max({newest, warp_fence_[w], newest_fence_[w]});
    for (unsigned w = 0; w < warps_; w++)
        if (takes_part(w)) newest_fence_[w] = newest;
}

// By all four warps. The fence after a store may be any thread's, since the store may be.
bool AsyncProxy::seen(const Written& written, unsigned first_warp) const {
    for (unsigned w = first_warp; w < first_warp + 4; w++) {
        const Time fence = written.site == by_store ? newest_fence_[w] : fences_[w][written.thread];
        if (std::max(fence, covered_[w][written.thread / 32]) <= written.time) return false;
    }
    return true;
}

void AsyncProxy::check(size_t offset, unsigned first_warp, const char* operand, Site product) const {
    const Written* last = nullptr;
    for (size_t i = offset / 4; i < offset / 4 + 4; i++) {
        const bool new_store = std::memcmp(shared_ + i * 4, &contents_[i * 4], 4) != 0;
        const Written& written = written_[i];
        if (!new_store) {
            if (written.time == 0 || (last && written.time == last->time && written.thread == last->thread)) continue;
            last = &written;
            if (written.time != in_flight && seen(written, first_warp)) continue;
        }
        const bool store = new_store || written.site == by_store;
        const Site copy = store ? Site{} : sites_[written.site];
        const Time fence = store ? *std::max_element(warp_fence_.begin(), warp_fence_.end()) : fence_[written.thread];
        char by[300];
        if (store)
            std::snprintf(by, sizeof by, "a store");
        else
            std::snprintf(by, sizeof by, "thread %u's cp_async at %s:%d", written.thread, copy.file, copy.line);
        misuse("wgmma at %s:%d: byte %zu of shared memory, in its %s, was written by %s%s", product.file, product.line,
               i * 4, operand, by,
               !store && written.time == in_flight ? ", which is not waited for"
               : !new_store && fence > written.time
                   ? ": no barrier lies between fence_async_proxy() and the product"
                   : ": the thread must call fence_async_proxy() after it, and then a barrier must follow");
    }
}

}  // namespace emu
