// A small model with random weights, of any state, for tests of inference.
#pragma once
#include <cmath>

#include "model/config.h"
#include "runtime/arena.h"
#include "runtime/random.h"

namespace tapernorm {

inline Config small_config(Fold fold, GateMode mode = GateMode::taper) {
    Config c;
    c.V = 37, c.T = 140, c.L = 2, c.NH = 3, c.C = 24;
    c.mode = mode, c.fold = fold;
    return c;
}

template <class Real>
struct RandomModel {
    Config config;
    GptTensors<Real> tensors{};
    std::vector<TaperScale> scales;

    // Matrices of deviation 1 / sqrt(C), vectors of 0.3 around their initial value: every term counts. Uniform, because a fuzz
    // target draws a model per input and normal numbers would take most of its time.
    RandomModel(Cpu& dev, const Config& c) : config(c), memory_(dev, "a random model") {
        visit_tensors(config, tensors, [&](const TensorSpec& t, Real*& slot) { memory_.add(slot, t.count()); });
        memory_.allocate(false);
        uint64_t stream = 0;
        for (const Tensor<Real>& t : tensor_list(config, tensors)) {
            const double width = std::sqrt(12.0) * (t.spec.shape.size() == 1 ? 0.3 : 1 / std::sqrt(double(config.C)));
            for (size_t i = 0; i < t.spec.count(); i++)
                t.data[i] = Real(t.spec.init.constant + width * (random_uniform(5, stream, i) - 0.5));
            stream++;
        }
        for (size_t i = 0; i < config.tapering_sites(); i++)
            scales.push_back({0.6f + 0.2f * float(i % 3), config.first_apart ? 0.25f + 0.1f * float(i % 2) : 1});
    }

  private:
    Arena<Cpu> memory_;
};

template <class Real>
double max_difference(const Real* a, const Real* b, size_t n) {
    double largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double difference = std::abs(double(a[i]) - double(b[i]));
        if (!(difference <= largest)) largest = difference;  // NaN too
    }
    return largest;
}

}  // namespace tapernorm
