// Choosing tokens: the distribution against the exact softmax, the cuts, and that a seed is a text.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "inference/sampler.h"

namespace tapernorm {

namespace {

std::vector<float> some_logits(size_t V) {
    std::vector<float> z(V);
    for (size_t i = 0; i < V; i++) z[i] = float(2.5 * random_normal(9, V, i));
    return z;
}

// softmax(z / temperature), cut to the `top_k` largest, then to the fewest that reach top_p: in double, by sorting.
std::vector<double> exact_distribution(const std::vector<float>& z, const Sampling& s) {
    std::vector<size_t> order(z.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return z[a] > z[b]; });
    std::vector<double> p(z.size(), 0.0);
    const size_t keep = s.top_k ? std::min(s.top_k, z.size()) : z.size();
    double sum = 0, kept = 0;
    for (size_t i = 0; i < keep; i++) sum += std::exp((double(z[order[i]]) - double(z[order[0]])) / s.temperature);
    for (size_t i = 0; i < keep && (i == 0 || kept < s.top_p); i++) {
        p[order[i]] = std::exp((double(z[order[i]]) - double(z[order[0]])) / s.temperature) / sum;
        kept += p[order[i]];
    }
    for (double& x : p) x /= kept;
    return p;
}

}  // namespace

TEST_CASE("sampler: draws follow the exact distribution (chi-square)") {
    const std::vector<float> z = some_logits(40);
    constexpr size_t kDraws = 40000;
    for (const Sampling& s :
         {Sampling{1, 0, 1, 1}, Sampling{0.7, 0, 1, 2}, Sampling{1.5, 7, 1, 3}, Sampling{1, 0, 0.8, 4},
          Sampling{2, 12, 0.6, 5}, Sampling{1, 40, 1, 6}, Sampling{1, 1000, 0.999, 7}}) {
        CAPTURE(s.temperature);
        CAPTURE(s.top_k);
        CAPTURE(s.top_p);
        const std::vector<double> p = exact_distribution(z, s);
        std::vector<double> count(z.size(), 0.0);
        for (size_t i = 0; i < kDraws; i++) count[size_t(sample(z.data(), z.size(), s, i))]++;
        // Tokens expected less than 10 times count as one.
        double chi2 = 0, rare_expected = 0, rare_count = 0, terms = -1;
        for (size_t i = 0; i < z.size(); i++) {
            const double expected = p[i] * kDraws;
            if (expected == 0) CHECK(count[i] == 0);
            if (expected < 10)
                rare_expected += expected, rare_count += count[i];
            else
                chi2 += (count[i] - expected) * (count[i] - expected) / expected, terms++;
        }
        if (rare_expected >= 10) chi2 += std::pow(rare_count - rare_expected, 2) / rare_expected, terms++;
        // Mean `terms`, deviation sqrt(2 terms): four deviations, for a seed that is fixed.
        CHECK(chi2 <= terms + 4 * std::sqrt(2 * terms));
        CHECK(chi2 >= terms / 10);  // nor are the draws too even to be random
    }
}

TEST_CASE("sampler: a large vocabulary, whose sums go by blocks") {
    const size_t V = 50257;
    const std::vector<float> z = some_logits(V);
    const std::vector<double> p = exact_distribution(z, {1, 0, 1, 1});
    // How often a draw falls into each of 20 ranges of ids.
    std::vector<double> expected(20, 0.0), count(20, 0.0);
    for (size_t i = 0; i < V; i++) expected[i * 20 / V] += 2000 * p[i];
    for (size_t i = 0; i < 2000; i++) count[size_t(sample(z.data(), V, {1, 0, 1, 3}, i)) * 20 / V]++;
    double chi2 = 0;
    for (size_t i = 0; i < 20; i++) chi2 += (count[i] - expected[i]) * (count[i] - expected[i]) / expected[i];
    CHECK(chi2 <= 19 + 4 * std::sqrt(2 * 19.0));
    const auto cut = candidates(z.data(), V, {1, 300, 0.9, 1});
    const std::vector<double> q = exact_distribution(z, {1, 300, 0.9, 1});
    CHECK(cut.size() == size_t(std::count_if(q.begin(), q.end(), [](double x) { return x > 0; })));
    for (size_t i = 0; i < cut.size(); i++) {
        CHECK(cut[i].probability == doctest::Approx(q[size_t(cut[i].token)]).epsilon(1e-5));
        if (i) CHECK(cut[i].probability <= cut[i - 1].probability);
    }
}

TEST_CASE("sampler: edges of the cuts") {
    // exp: 4, 2, 2, 1 of 9 in the order 1, 0, 3, 2.
    const std::vector<float> z = {float(std::log(2.0)), float(std::log(4.0)), 0.0f, float(std::log(2.0))};
    auto tokens = [&](const Sampling& s) {
        std::vector<int> list;
        for (const auto& c : candidates(z.data(), z.size(), s)) list.push_back(c.token);
        return list;
    };
    CHECK(tokens({1, 0, 1, 1}) == std::vector<int>{1, 0, 3, 2});  // equals by id
    CHECK(tokens({0, 3, 0.5, 1}) == std::vector<int>{1});         // greedy, whatever the cuts
    CHECK(tokens({1, 1, 1, 1}) == std::vector<int>{1});
    CHECK(tokens({1, 2, 1, 1}) == std::vector<int>{1, 0});
    CHECK(tokens({1, 4, 1, 1}).size() == 4);
    CHECK(tokens({1, 99, 1, 1}).size() == 4);
    CHECK(tokens({1, 0, 0, 1}) == std::vector<int>{1});  // one always stays
    CHECK(tokens({1, 0, 0.4, 1}) == std::vector<int>{1});
    CHECK(tokens({1, 0, 0.5, 1}) == std::vector<int>{1, 0});
    CHECK(tokens({1, 0, 0.7, 1}) == std::vector<int>{1, 0, 3});
    CHECK(tokens({1, 2, 0.6, 1}) == std::vector<int>{1});  // top_p counts what top_k left: 4 of 6
    CHECK(candidates(z.data(), 4, {1, 2, 1, 1})[0].probability == doctest::Approx(4.0 / 6));
    CHECK(tokens({100, 0, 1, 1}).size() == 4);
    CHECK(candidates(z.data(), 4, {1e-3, 0, 1, 1})[0].probability == doctest::Approx(1));
    // A token that cannot be drawn: its weight is 0.
    const std::vector<float> apart = {0, 200, -std::numeric_limits<float>::infinity()};
    for (uint64_t i = 0; i < 1000; i++) CHECK(sample(apart.data(), 3, {1, 0, 1, 1}, i) == 1);
    // Logits that are not numbers give some token: the callers check them.
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
        for (const double top_p : {1.0, 0.5})
            for (size_t at = 0; at < 3; at++) {
                std::vector<float> broken(3, 1.0f);
                broken[at] = bad;
                const int token = sample(broken.data(), 3, {1, 0, top_p, 1}, 1);
                CHECK(token >= 0);
                CHECK(token < 3);
            }
    const std::vector<float> equal(5, 1.0f);
    CHECK(argmax(equal.data(), 5) == 0);
    CHECK(sample(equal.data(), 5, {0, 0, 1, 1}, 3) == 0);
    CHECK(sample(equal.data(), 1, {1, 0, 1, 1}, 3) == 0);
}

TEST_CASE("sampler: a temperature too small to divide by is greedy; one above it divides") {
    std::vector<float> z = {1, 3, 3.4e38f, -3.4e38f, 3.4e38f};  // the token is 2, the first of the largest
    for (const double temperature : {0.0, 5e-324, 1e-39, 1e-38, 9.9e-7, -1.0, std::nan(""), 1e-6, 1e-3})
        for (const size_t V : {3, 4})
            for (const size_t top_k : {0, 2}) {
                CAPTURE(temperature);
                CHECK(sample(z.data(), V, {temperature, top_k, 1, 1}, 0) == 2);
                CHECK(candidates(z.data(), V, {temperature, top_k, 1, 1})[0].probability == 1);
            }
    std::vector<int> both;
    for (uint64_t i = 0; i < 20; i++) both.push_back(sample(z.data(), 5, {1e-6, 0, 1, 1}, i));
    CHECK(*std::min_element(both.begin(), both.end()) == 2);
    CHECK(*std::max_element(both.begin(), both.end()) == 4);
}

TEST_CASE("sampler: the same seed, the same tokens; another seed, others") {
    const std::vector<float> z = some_logits(100);
    auto text = [&](uint64_t seed) {
        std::vector<int> tokens;
        for (uint64_t i = 0; i < 50; i++) tokens.push_back(sample(z.data(), z.size(), {1, 0, 1, seed}, i));
        return tokens;
    };
    CHECK(text(1) == text(1));
    CHECK(text(1) != text(2));
}

TEST_CASE("sampler: streams of a seed differ, and their numbers never change") {
    const std::vector<float> equal(1000, 1.0f);
    for (const uint64_t stream : {1, 2, 77})
        for (uint64_t i = 0; i < 20; i++) {
            const int token = sample(equal.data(), equal.size(), {.temperature = 1, .seed = 9, .stream = stream}, i);
            CHECK(token == int(1000 * random_uniform(9, 0x5a3b1d + stream, i)));
            if (stream == 1) CHECK(token == sample(equal.data(), equal.size(), {.temperature = 1, .seed = 9}, i));
        }
}

}  // namespace tapernorm
