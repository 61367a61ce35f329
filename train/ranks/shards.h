// How the ranks of a run share out a model's numbers. Parameters and gradients lie in arenas of one layout: regions one
// behind the other (embeddings, each block, the final site), each as long as a multiple of the number of ranks. Gradients
// are summed over ranks by buckets of neighbouring regions; rank r takes slice r of every bucket where work or memory is
// shared out (ZeRO-1: optimizer moments and master weights).
#pragma once
#include <algorithm>
#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/arena.h"
#include "train/ranks/ranks.h"

namespace tapernorm::train {

// Elements [begin, end) of the arenas.
struct ElementRange {
    size_t begin, end;
    size_t size() const { return end - begin; }
};

// Elements [begin, begin + count) of tensor number `tensor` of the table.
struct ShardPart {
    size_t tensor, begin, count;
};

// 0: the embeddings, 1 + l: block l, L + 1: the final site.
inline size_t region_of(const Config& config, const std::string& tensor) {
    const std::string block = "transformer.h.";
    if (tensor.starts_with(block)) return 1 + std::stoul(tensor.substr(block.size()));
    return tensor.starts_with("transformer.w") ? 0 : config.L + 1;
}

// The number of every tensor in the table, by its name.
inline std::map<std::string, size_t> tensor_numbers(const Config& config) {
    std::map<std::string, size_t> numbers;
    GptTensors<float> none{};
    for (const auto& t : tensor_list(config, none)) numbers.emplace(t.spec.name, numbers.size());
    return numbers;
}

class Shards {
  public:
    static constexpr size_t kBucketBytes = size_t(16) << 20;  // enough to hide latency, small enough to start early

    Shards() = default;
    // regions: where each begins, and the end of the last. places: of the table's tensors. bucket: the least number of
    // elements of a bucket, except that the embeddings, whose gradients come last, are one of their own.
    Shards(const std::vector<size_t>& regions, const std::vector<ElementRange>& places, size_t rank, size_t ranks,
           bool zero, size_t bucket)
        : rank_(rank), ranks_(ranks), sharded_(zero && ranks > 1), places_(places) {
        size_t end = regions.size() - 1;  // where the growing bucket ends
        for (size_t r = regions.size() - 1; r-- > 0;)
            if (r <= 1 || regions[end] - regions[r] >= bucket) {
                buckets_.push_back({regions[r], regions[end]}), first_region_.push_back(r);
                end = r;
            }
        for (size_t t = 0; t < places.size(); t++)
            if (const ShardPart p = part(t, rank); p.count > 0) parts_.push_back(p);
    }

    // In the order in which the backward pass finishes them: the last region first.
    const std::vector<ElementRange>& buckets() const { return buckets_; }
    size_t first_region(size_t bucket) const { return first_region_[bucket]; }
    ElementRange slice(const ElementRange& bucket, size_t rank) const {
        const size_t n = bucket.size() / ranks_;
        return {bucket.begin + rank * n, bucket.begin + (rank + 1) * n};
    }
    ElementRange own_slice(const ElementRange& bucket) const { return slice(bucket, rank_); }

    // Whether each rank keeps optimizer state of its slices only.
    bool sharded() const { return sharded_; }
    // The part of a tensor whose state a rank keeps: all of it, or what lies in its slice.
    ShardPart part(size_t tensor, size_t rank) const {
        const ElementRange place = places_[tensor];
        if (!sharded_) return {tensor, 0, place.size()};
        for (const ElementRange& bucket : buckets_) {
            if (place.begin < bucket.begin) continue;
            const ElementRange mine = slice(bucket, rank);
            const size_t begin = std::max(mine.begin, place.begin), end = std::min(mine.end, place.end);
            return {tensor, begin - place.begin, begin < end ? end - begin : 0};
        }
        return {tensor, 0, 0};
    }
    // Everything that this rank keeps; its state is one array per part.
    const std::vector<ShardPart>& parts() const { return parts_; }

    size_t count(size_t tensor) const { return places_[tensor].size(); }

  private:
    size_t rank_ = 0, ranks_ = 1;
    bool sharded_ = false;
    std::vector<ElementRange> places_, buckets_;
    std::vector<size_t> first_region_;
    std::vector<ShardPart> parts_;
};

// Shards of the tensors that lie in an arena of `bytes` at `base`, in the order in which visit_tensors requested them.
template <class Real>
Shards make_shards(const Config& config, GptTensors<Real>& tensors, const void* base, size_t bytes, const Ranks& ranks,
                   bool zero) {
    std::vector<size_t> regions;
    std::vector<ElementRange> places;
    for (const Tensor<Real>& t : tensor_list(config, tensors)) {
        const size_t begin = size_t(t.data - static_cast<const Real*>(base));
        if (region_of(config, t.spec.name) == regions.size()) regions.push_back(begin);
        places.push_back({begin, begin + t.spec.count()});
    }
    regions.push_back(bytes / sizeof(Real));
    return {regions, places, size_t(ranks.rank), size_t(ranks.size), zero, Shards::kBucketBytes / sizeof(Real)};
}

// wanted: of each tensor of the table, whether memory is for it, too; the others' parts are null. Empty: of all.
template <class Device, class Scalar>
void add_parts(Arena<Device>& memory, const Shards& shards, std::vector<Scalar*>& data,
               const std::vector<bool>& wanted = {}) {
    data.resize(shards.parts().size());
    for (size_t i = 0; i < data.size(); i++)
        if (const ShardPart& p = shards.parts()[i]; wanted.empty() || wanted[p.tensor]) memory.add(data[i], p.count);
}

// From the values of a whole tensor, in host memory, the parts that this rank keeps.
template <class Device, class Scalar>
void set_parts(Device& dev, const Shards& shards, const std::vector<Scalar*>& data, size_t tensor,
               const Scalar* values) {
    for (size_t i = 0; i < data.size(); i++)
        if (const ShardPart& p = shards.parts()[i]; p.tensor == tensor)
            device_copy_in(dev, data[i], values + p.begin, p.count * sizeof(Scalar));
}

// A whole tensor from the parts that the ranks keep, which all call this, in rank 0's host memory. The others get what
// they keep, and zeros.
template <class Device, class Scalar>
std::vector<Scalar> gather_tensor(Device& dev, const Ranks& ranks, const Shards& shards,
                                  const std::vector<Scalar*>& data, size_t tensor) {
    std::vector<Scalar> whole(shards.count(tensor));
    for (size_t i = 0; i < data.size(); i++)
        if (const ShardPart& p = shards.parts()[i]; p.tensor == tensor)
            device_copy_out(dev, whole.data() + p.begin, data[i], p.count * sizeof(Scalar));
    if (!shards.sharded()) return whole;
    std::vector<Message> messages;
    for (int r = 1; r < ranks.size; r++) {
        const ShardPart p = shards.part(tensor, size_t(r));
        if (p.count == 0 || (!ranks.first() && r != ranks.rank)) continue;
        messages.push_back({ranks.first() ? r : 0, whole.data() + p.begin, p.count * sizeof(Scalar)});
    }
    if (ranks.first())
        ranks.link()->exchange({}, messages, "a checkpoint");
    else
        ranks.link()->exchange(messages, {}, "a checkpoint");
    return whole;
}

}  // namespace tapernorm::train
