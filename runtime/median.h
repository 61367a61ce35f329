// The median of some measurements.
#pragma once
#include <algorithm>
#include <cstddef>
#include <vector>

namespace tapernorm {

// Of an even number of values the upper one of the two in the middle. values: at least one, none of them NaN.
inline double median(std::vector<double> values) {
    const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

}  // namespace tapernorm
