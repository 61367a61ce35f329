// Whether two forms of a model are the same one: what fold and export find out before they write.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "inference/decoder.cuh"
#include "model/model_file.h"
#include "runtime/arena.h"
#include "runtime/random.h"

namespace tapernorm {

// Both have the same rows.
template <class From, class To>
void copy_tensors(const std::vector<Tensor<From>>& from, const std::vector<Tensor<To>>& to) {
    for (size_t i = 0; i < to.size(); i++)
        for (size_t j = 0; j < to[i].spec.count(); j++) to[i].data[j] = To(from[i].data[j]);
}

// The tensors of one configuration, in double.
struct Model64 {
    Config config;
    GptTensors<double> tensors{};
    Arena<Cpu> arena;

    Model64(Cpu& dev, const Config& c) : config(c), arena(dev, "the parameters in double") {
        visit_tensors(config, tensors, [&](const TensorSpec& t, double*& slot) { arena.add(slot, t.count()); });
        arena.allocate(true);
    }
    Model64(Cpu& dev, const HostModel& model) : Model64(dev, model.info.config) {
        GptTensors<float> own = model.tensors;
        copy_tensors(tensor_list(config, own), tensor_list(config, tensors));
    }
};

// Fixed pseudo-random sequences, the same for all models with the same vocabulary and context.
struct Probe {
    static constexpr size_t kSequences = 4, kLength = 64;
    size_t length;
    std::vector<std::vector<int>> tokens;

    explicit Probe(const Config& c) : length(std::min<size_t>(c.T, kLength)), tokens(kSequences) {
        for (size_t i = 0; i < kSequences; i++)
            for (size_t t = 0; t < length; t++) tokens[i].push_back(int(random_bits(7, i, t) % c.V));
    }
};

// All logits [sequences, length, V] of weights whose scales and gate are info's.
template <class Real>
std::vector<double> probe_logits(Cpu& dev, const Probe& probe, const Config& c, const GptTensors<Real>& weights,
                                 const ModelInfo& info) {
    std::vector<double> all;
    std::vector<Real> logits(probe.length * c.V);
    Decoder<Cpu, Real> decoder(dev, c, weights, info.scales, info.gate);
    for (const std::vector<int>& tokens : probe.tokens) {
        decoder.rewind(0);
        decoder.feed(tokens.data(), tokens.size(), Logits::all, logits.data());
        all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
}

inline double max_magnitude(const std::vector<double>& a) {
    double largest = 0;
    for (const double z : a) largest = std::max(largest, std::abs(z));
    return largest;
}

inline double max_difference(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double difference = std::abs(a[i] - b[i]);
        if (std::isnan(difference)) return difference;
        largest = std::max(largest, difference);
    }
    return largest;
}

// How far from the exact logits another form of a model may be in fp32, where the model itself is at most `own` away: 8 times
// as far, because it does the same number of fp32 operations on numbers of the same size, but rounds its weights once more; and never
// less than 8 half-units in the last place of the largest logit. unit: that of the numbers which were rounded, if not fp32's.
inline double allowed_by_rounding(double own, double largest_logit, double unit = 0x1p-24) {
    constexpr double kRounding = 8;
    return kRounding * std::max(own, largest_logit * unit);
}

}  // namespace tapernorm
