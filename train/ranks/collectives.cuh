// Sums and copies over all ranks of buffers in device memory, beside the work of the device: a call queues, order() lets
// later ops come after it, wait() waits, within the ranks' time limit.
// Calls happen in the same order on every rank. A buffer of n elements, a multiple of the number of ranks, has one slice
// for each rank: slice r is [n r / size, n (r + 1) / size).
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/cpu.h"
#include "train/ranks/ranks.h"
#ifdef TN_CUDA
#include "runtime/cuda.cuh"
#endif
#if defined(TN_CUDA) && defined(HAVE_NCCL)
#include <nccl.h>
#endif

namespace tapernorm::train {

template <class Device>
class Collectives;

// ---------------------------------------------------------------------------------------------------------------------
// CPU: a thread of its own exchanges slices through the link. Every element is added in the order of ranks, whatever the
// buffer, so that all ways to cut and to call give the same bits.
template <>
class Collectives<Cpu> {
  public:
    Collectives(Cpu&, Ranks& ranks) : rank_(size_t(ranks.rank)), size_(size_t(ranks.size)), link_(ranks.link()) {
        if (size_ > 1) thread_ = std::thread([this] { work(); });
    }
    Collectives(const Collectives&) = delete;
    Collectives& operator=(const Collectives&) = delete;
    ~Collectives() {
        if (!thread_.joinable()) return;
        if (pending()) link_->cancel();  // an error is on its way out
        submit(nullptr);
        thread_.join();
    }

    // This rank's slice = the sum over ranks; the rest of `data` stays.
    template <class Real>
    void reduce_scatter(Real* data, size_t n) {
        submit([=, this] { add_slices(data, n); });
    }
    // All of `data` = the sum over ranks.
    template <class Real>
    void all_reduce(Real* data, size_t n) {
        submit([=, this] { add_slices(data, n), copy_slices(data, n); });
    }
    // Every slice = that of its rank.
    template <class Real>
    void all_gather(Real* data, size_t n) {
        submit([=, this] { copy_slices(data, n); });
    }

    // Returns when all is done, or throws what went wrong.
    void order() { wait(); }
    void wait() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return queue_.empty() || error_; });
        if (error_) std::rethrow_exception(error_);
    }

  private:
    bool pending() {
        std::lock_guard lock(mutex_);
        return !queue_.empty();
    }
    void submit(std::function<void()> task) {
        std::lock_guard lock(mutex_);
        queue_.push_back(std::move(task));
        changed_.notify_all();
    }
    // The front of the queue stays there until it is done.
    void work() {
        std::unique_lock lock(mutex_);
        for (;;) {
            changed_.wait(lock, [&] { return !queue_.empty(); });
            const std::function<void()> task = queue_.front();
            if (!task) return;
            lock.unlock();
            std::exception_ptr error;
            try {
                if (!error_) task();
            } catch (...) {
                error = std::current_exception();
            }
            lock.lock();
            if (error) error_ = error;
            queue_.pop_front();
            changed_.notify_all();
        }
    }

    template <class Real>
    void add_slices(Real* data, size_t n) {
        const size_t slice = n / size_, bytes = slice * sizeof(Real);
        incoming_.resize((size_ - 1) * bytes);
        std::vector<Message> out, in;
        std::vector<const Real*> parts(size_);
        for (size_t r = 0; r < size_; r++) {
            if (r == rank_) {
                parts[r] = data + rank_ * slice;
                continue;
            }
            char* place = incoming_.data() + in.size() * bytes;
            out.push_back({int(r), data + r * slice, bytes}), in.push_back({int(r), place, bytes});
            parts[r] = reinterpret_cast<const Real*>(place);
        }
        link_->exchange(out, in, "the sum of gradients");
        constexpr size_t kBlock = 1024;  // stays in the cache while the ranks are added
        Real total[kBlock];
        for (size_t at = 0; at < slice; at += kBlock) {
            const size_t count = std::min(kBlock, slice - at);
            std::copy_n(parts[0] + at, count, total);
            for (size_t r = 1; r < size_; r++)
                for (size_t i = 0; i < count; i++) total[i] += parts[r][at + i];
            std::copy_n(total, count, data + rank_ * slice + at);
        }
    }

    template <class Real>
    void copy_slices(Real* data, size_t n) {
        const size_t slice = n / size_, bytes = slice * sizeof(Real);
        std::vector<Message> out, in;
        for (size_t r = 0; r < size_; r++) {
            if (r == rank_) continue;
            out.push_back({int(r), data + rank_ * slice, bytes}), in.push_back({int(r), data + r * slice, bytes});
        }
        link_->exchange(out, in, "the exchange of slices");
    }

    size_t rank_, size_;
    Link* link_;
    std::vector<char> incoming_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> queue_;  // null: the end
    std::exception_ptr error_;
    std::thread thread_;  // last: it uses all of the above
};

// ---------------------------------------------------------------------------------------------------------------------
// CUDA: NCCL on a stream of its own, which waits for the ops issued before the call.
#ifdef TN_CUDA
#ifdef HAVE_NCCL

#define NCCL_CHECK(call)                                                              \
    do {                                                                              \
        const ncclResult_t nccl_check_result = (call);                                \
        if (nccl_check_result != ncclSuccess)                                         \
            fail("NCCL: %s: %s; run again with NCCL_DEBUG=WARN to learn more", #call, \
                 ncclGetErrorString(nccl_check_result));                              \
    } while (0)

// While it lives, a call that cannot be interrupted: where it takes longer than the ranks' time limit, this ends all ranks.
class Deadline {
  public:
    Deadline(Ranks& ranks, const char* what) : thread_([this, &ranks, what] { watch(ranks, what); }) {}
    Deadline(const Deadline&) = delete;
    Deadline& operator=(const Deadline&) = delete;
    ~Deadline() {
        {
            std::lock_guard lock(mutex_);
            met_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

  private:
    void watch(Ranks& ranks, const char* what) {
        const double limit = ranks.link()->time_limit;
        std::unique_lock lock(mutex_);
        if (changed_.wait_for(lock, std::chrono::duration<double>(limit), [&] { return met_; })) return;
        const Error error(
            strprintf("%s was not done within %g s: a GPU or the network hangs; run again with NCCL_DEBUG=WARN, "
                      "or with a longer --rank-timeout",
                      what, limit));
        std::_Exit(ranks.fail_all("train_gpt", error));
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    bool met_ = false;
    std::thread thread_;  // last: it uses all of the above
};

template <>
class Collectives<Cuda> {
  public:
    Collectives(Cuda& dev, Ranks& ranks) : dev_(dev), ranks_(ranks) {
        if (ranks.size == 1) return;
        ncclUniqueId id{};
        if (ranks.first()) NCCL_CHECK(ncclGetUniqueId(&id));
        ranks.broadcast(&id, sizeof id, "the start of NCCL");
        {
            const Deadline deadline(ranks, "the start of NCCL");
            NCCL_CHECK(ncclCommInitRank(&comm_, ranks.size, id, ranks.rank));
        }
        CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    }
    Collectives(const Collectives&) = delete;
    Collectives& operator=(const Collectives&) = delete;
    // After an error nobody may wait for ranks that are gone.
    ~Collectives() {
        if (!comm_) return;
        if (std::uncaught_exceptions() > 0)
            ncclCommAbort(comm_);
        else
            cudaStreamSynchronize(stream_), ncclCommDestroy(comm_);
        cudaStreamDestroy(stream_);
    }

    template <class Real>
    void reduce_scatter(Real* data, size_t n) {
        follow_ops();
        NCCL_CHECK(ncclReduceScatter(data, own_slice(data, n), n / size(), type<Real>(), ncclSum, comm_, stream_));
    }
    template <class Real>
    void all_reduce(Real* data, size_t n) {
        follow_ops();
        NCCL_CHECK(ncclAllReduce(data, data, n, type<Real>(), ncclSum, comm_, stream_));
    }
    template <class Real>
    void all_gather(Real* data, size_t n) {
        follow_ops();
        NCCL_CHECK(ncclAllGather(own_slice(data, n), data, n / size(), type<Real>(), comm_, stream_));
    }

    // Ops that are issued from now on come after the collectives.
    void order() {
        done_.record(stream_);
        done_.block(dev_.stream);
    }

    // The host waits too, for ranks that are late and for NCCL's errors, within the time limit.
    void wait() {
        order();
        std::vector<double> nothing = {0};
        ranks_.sum(nothing, "the sum of gradients");  // every rank has issued its part
        const auto start = std::chrono::steady_clock::now();
        while (!done_.passed()) {
            ncclResult_t error = ncclSuccess;
            NCCL_CHECK(ncclCommGetAsyncError(comm_, &error));
            if (error != ncclSuccess && error != ncclInProgress)
                fail("NCCL: %s; run again with NCCL_DEBUG=WARN to learn more", ncclGetErrorString(error));
            const double limit = ranks_.link()->time_limit;
            if (std::chrono::steady_clock::now() - start > std::chrono::duration<double>(limit))
                fail(
                    "NCCL: the sum of gradients was not done within %g s, though every rank has begun it: a GPU or the "
                    "network hangs; run again with NCCL_DEBUG=WARN",
                    limit);
            std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    }

  private:
    template <class Real>
    static ncclDataType_t type() {
        return std::is_same_v<Real, bf16> ? ncclBfloat16 : std::is_same_v<Real, float> ? ncclFloat32 : ncclFloat64;
    }
    size_t size() const { return size_t(ranks_.size); }
    template <class Real>
    Real* own_slice(Real* data, size_t n) const {
        return data + n / size() * size_t(ranks_.rank);
    }
    void follow_ops() {
        ready_.record(dev_.stream);
        ready_.block(stream_);
    }

    Cuda& dev_;
    Ranks& ranks_;
    ncclComm_t comm_ = nullptr;
    cudaStream_t stream_ = nullptr;
    CudaEvent ready_, done_;
};
#else
template <>
class Collectives<Cuda> {
  public:
    Collectives(Cuda&, Ranks& ranks) {
        if (ranks.size > 1)
            fail(
                "%d ranks on GPUs: this program was built without NCCL; install it (nccl.h beside CUDA's headers, or "
                "libnccl-dev) and run make again",
                ranks.size);
    }
    template <class Real>
    void reduce_scatter(Real*, size_t) {}
    template <class Real>
    void all_reduce(Real*, size_t) {}
    template <class Real>
    void all_gather(Real*, size_t) {}
    void order() {}
    void wait() {}
};
#endif  // HAVE_NCCL
#endif  // TN_CUDA

}  // namespace tapernorm::train
