// Batches on their way from the loader to the device.
//
// On CUDA a batch is read into page-locked memory and copied on a stream of its own while the ops of the batch before
// it run: the device never waits for the disk or the bus, as long as one batch takes longer to compute than to read.
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "io/tokens.h"
#include "ops/embedding.cuh"
#include "runtime/cpu.h"
#ifdef TN_CUDA
#include "runtime/arena.h"
#include "runtime/cuda.cuh"
#endif

namespace tapernorm::train {

struct Batch {
    const int *tokens, *targets;  // [N], in memory of the device
    TokenRows rows = {};          // of the tokens, where the device needs them
};

template <class Device>
class Batches;

template <>
class Batches<Cpu> {
  public:
    Batches(Cpu&, Loader loader, size_t N, bool = true) : loader_(std::move(loader)), tokens_(N), targets_(N) {}

    // The next batch, valid until the next call.
    Batch next() {
        loader_.next(tokens_.data(), targets_.data());
        return {tokens_.data(), targets_.data(), {}};
    }
    // To be called after the ops that read the batch were issued.
    void prefetch() {}

    uint64_t position() const { return loader_.position(); }  // the next batch's, see Loader
    void seek(uint64_t position) { loader_.seek(position); }

  private:
    Loader loader_;
    std::vector<int> tokens_, targets_;
};

#ifdef TN_CUDA
template <>
class Batches<Cuda> {
  public:
    // by_token: for a backward pass, which needs Batch::rows.
    Batches(Cuda& dev, Loader loader, size_t N, bool by_token = true)
        : dev_(dev), loader_(std::move(loader)), N_(N), by_token_(by_token), memory_(dev, "batches of tokens") {
        for (Slot& slot : slots_) memory_.add(slot.device, numbers());
        memory_.allocate(false);
    }
    Batches(const Batches&) = delete;
    Batches& operator=(const Batches&) = delete;
    ~Batches() { cudaStreamSynchronize(dev_.copy_stream); }

    Batch next() {
        if (!ready_) fill();
        ready_ = false;
        Slot& slot = slots_[at_];
        slot.copied.block(dev_.stream);
        return {slot.device, slot.device + N_, slot.rows};
    }
    void prefetch() {
        slots_[at_].used.record(dev_.stream);
        at_ = 1 - at_;
        try {
            fill();
        } catch (const Error&) {  // next() meets it again, if there is one
        }
    }

    const Arena<Cuda>& memory() const { return memory_; }

    uint64_t position() const { return ready_ ? position_ : loader_.position(); }
    void seek(uint64_t position) {
        loader_.seek(position);
        ready_ = false;
    }

  private:
    struct Slot {
        std::unique_ptr<Pinned<int>> host;  // tokens [N], targets [N] and the rows by token
        int* device = nullptr;
        TokenRows rows;          // on the device
        CudaEvent copied, used;  // the copy into `device`, and the ops that read it
    };

    // Reads a batch into slot at_. The host waits for the slot's last copy, the copy for the last ops on the slot.
    void fill() {
        Slot& slot = slots_[at_];
        if (!slot.host) slot.host = std::make_unique<Pinned<int>>(numbers());
        slot.copied.synchronize();
        position_ = loader_.position();
        int* tokens = slot.host->data();
        loader_.next(tokens, tokens + N_);
        size_t used = 2 * N_;
        if (by_token_) {
            slot.rows = sort_rows_by_token(reinterpret_cast<unsigned*>(tokens + 2 * N_), tokens, N_, counts_);
            slot.rows.data = reinterpret_cast<unsigned*>(slot.device + 2 * N_);
            used += slot.rows.size(N_);
        }
        slot.used.block(dev_.copy_stream);
        CUDA_CHECK(cudaMemcpyAsync(slot.device, tokens, used * sizeof(int), cudaMemcpyHostToDevice, dev_.copy_stream));
        slot.copied.record(dev_.copy_stream);
        ready_ = true;
    }

    size_t numbers() const { return 2 * N_ + (by_token_ ? TokenRows::most(N_) : 0); }  // of a slot

    Cuda& dev_;
    Loader loader_;
    size_t N_;
    bool by_token_;
    Slot slots_[2];
    std::vector<unsigned> counts_;  // scratch
    Arena<Cuda> memory_;
    int at_ = 0;
    bool ready_ = false;  // slot at_ holds the batch of position_
    uint64_t position_ = 0;
};
#endif

}  // namespace tapernorm::train
