// What the ranks of a run do together in an update: the sum of gradients, started while the backward pass still computes
// those of earlier blocks, and the exchange of updated parameters under ZeRO-1. With one rank, none of it does anything.
#pragma once
#include "ops/adamw.cuh"
#include "train/ranks/collectives.cuh"
#include "train/ranks/shards.h"

namespace tapernorm::train {

template <class Device, class Real>
class DataParallel {
  public:
    // params, grads: the arenas that the shards are of.
    DataParallel(Device& dev, Ranks& ranks, const Shards& shards, void* params, void* grads)
        : dev_(dev), ranks_(ranks), shards_(shards), collectives_(dev, ranks), params_(static_cast<Real*>(params)),
          grads_(static_cast<Real*>(grads)) {}

    // The gradients of `region` and of those behind it are final on this rank: their buckets are on their way from here
    // on. Afterwards, after the last region 0, a new update begins.
    void gradients_ready(size_t region) {
        if (ranks_.size == 1) return;
        for (; next_ < shards_.buckets().size() && shards_.first_region(next_) >= region; next_++) {
            const ElementRange& b = shards_.buckets()[next_];
            if (shards_.sharded())
                collectives_.reduce_scatter(grads_ + b.begin, b.size());
            else
                collectives_.all_reduce(grads_ + b.begin, b.size());
        }
    }

    // Waits for the sums. The gradients are then whole: all of them, or with sharded state those of this rank's slices.
    void finish_gradients() {
        if (ranks_.size > 1) collectives_.wait();
        next_ = 0;
    }

    // *sum (on the device) += this rank's part of the squared norm of the gradient, to be added over ranks. It is taken over its
    // slices also where it has all gradients, so that ZeRO changes no bit.
    void add_gradient_squares(double* sum, size_t elements) {
        if (ranks_.size == 1) return add_sum_of_squares(dev_, sum, grads_, elements);
        for (const ElementRange& bucket : shards_.buckets()) {
            const ElementRange mine = shards_.own_slice(bucket);
            add_sum_of_squares(dev_, sum, grads_ + mine.begin, mine.size());
        }
    }

    // After this rank has updated the parameters of its slices.
    void gather_parameters() {
        if (!shards_.sharded()) return;
        for (const ElementRange& b : shards_.buckets()) collectives_.all_gather(params_ + b.begin, b.size());
        collectives_.order();
    }

  private:
    Device& dev_;
    Ranks& ranks_;
    const Shards& shards_;
    Collectives<Device> collectives_;
    Real *params_, *grads_;
    size_t next_ = 0;  // bucket to start
};

}  // namespace tapernorm::train
