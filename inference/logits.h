// A model's logits: whether they are numbers, how probable a token is, and the file that --dump writes.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "runtime/error.h"

namespace tapernorm {

inline bool all_finite(const float* x, size_t n) {
    float sum = 0;  // x - x is NaN unless x is finite
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += x[i] - x[i];
    return sum == 0;
}

// Weights are finite (load_model checks it), but intermediate results may still overflow. model: its file.
[[noreturn]] inline void fail_not_finite(const std::string& model) {
    fail("%s: its logits are not finite (NaN or Inf); the file is damaged or its training diverged", model.c_str());
}
inline void require_finite(const std::string& model, const std::vector<float>& logits) {
    if (!all_finite(logits.data(), logits.size())) fail_not_finite(model);
}

// log sum exp of logits [V]
template <class Number>
double log_sum(const Number* logits, size_t V) {
    const double top = double(*std::max_element(logits, logits + V));
    double sum = 0;
    for (size_t i = 0; i < V; i++) sum += std::exp(double(logits[i]) - top);
    return top + std::log(sum);
}

// log softmax(logits [V])[token], in nats.
template <class Number>
double log_probability(const Number* logits, size_t V, int token) {
    return double(logits[token]) - log_sum(logits, V);
}

// KL(softmax(a) || softmax(b)) of logits [V], in nats; by rounding, it may be a little below 0.
template <class Number>
double divergence(const Number* a, const Number* b, size_t V) {
    const double sum_a = log_sum(a, V), sum_b = log_sum(b, V);
    double kl = 0;
    for (size_t i = 0; i < V; i++) {
        const double log_p = double(a[i]) - sum_a;
        kl += std::exp(log_p) * (log_p - (double(b[i]) - sum_b));
    }
    return kl;
}

// Writes logits [rows, V] to a safetensors file, and says so.
inline void dump_logits(const std::string& path, const std::vector<float>& logits, size_t V) {
    write_safetensors(path, {}, {{"logits", Dtype::F32, {logits.size() / V, V}, logits.data()}});
    std::printf("logits    %s: [%zu, %zu]\n", printable(path).c_str(), logits.size() / V, V);
}

}  // namespace tapernorm
