// What tests of CUDA code share. Includes nothing of doctest's implementation.
#pragma once
#ifdef TN_CUDA
#include <cmath>
#include <vector>

#include "runtime/cuda.cuh"
#include "runtime/random.h"
#include "tests/environment.h"
#ifdef CUDA_EMU
#include "tests/emu/emu.h"
#endif

namespace tapernorm {

// Decorates test cases: without a GPU they are reported as skipped, never as passed.
inline bool no_gpu() {
    static const bool missing = !probe_cuda().usable;
    return missing;
}
#define CUDA_TEST(name) TEST_CASE(name* doctest::skip(no_gpu()))

// Subcases for both number types of a GPU: check<float>(...), check<bf16>(...).
#define FOR_BOTH_TYPES(check, ...)                     \
    do {                                               \
        SUBCASE("fp32") { check<float>(__VA_ARGS__); } \
        SUBCASE("bf16") { check<bf16>(__VA_ARGS__); }  \
    } while (0)

// A device array: the way in and out for test data.
template <class T>
class DeviceArray {
  public:
    DeviceArray(Cuda& dev, size_t count) : dev_(dev), count_(count) {
        data_ = static_cast<T*>(device_allocate(dev, count * sizeof(T), "a test array"));
    }
    DeviceArray(Cuda& dev, const std::vector<T>& values) : DeviceArray(dev, values.size()) {
        device_copy_in(dev, data_, values.data(), count_ * sizeof(T));
    }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;
    ~DeviceArray() { device_free(dev_, data_); }

    T* data() const { return data_; }
    size_t size() const { return count_; }
    std::vector<T> values() const {
        std::vector<T> result(count_);
        device_copy_out(dev_, result.data(), data_, count_ * sizeof(T));
        return result;
    }

  private:
    Cuda& dev_;
    T* data_ = nullptr;
    size_t count_;
};

// Random values that Real holds exactly, on the device and in double.
template <class Real>
struct Input {
    std::vector<double> exact;
    DeviceArray<Real> device;

    Input(Cuda& dev, size_t n, uint64_t seed, double scale = 1) : exact(n), device(dev, n) {
        std::vector<Real> values(n);
        for (size_t i = 0; i < n; i++) {
            values[i] = Real(float(scale * random_normal(7, seed, i)));
            exact[i] = double(float(values[i]));
        }
        device_copy_in(dev, device.data(), values.data(), n * sizeof(Real));
    }
    Real* data() const { return device.data(); }
};

// What storing a result of this type adds to its error, relative.
template <class Real>
constexpr double kStore = std::is_same_v<Real, float> ? 0x1p-24 : 0x1p-8;

// Standard normal values, as T can hold them.
template <class T>
std::vector<T> random_values(size_t n, uint64_t seed) {
    std::vector<T> result(n);
    for (size_t i = 0; i < n; i++) result[i] = T(float(random_normal(seed, 0, i)));
    return result;
}

// bf16 values, as float.
inline std::vector<float> as_floats(const std::vector<bf16>& values) {
    return std::vector<float>(values.begin(), values.end());
}

// The largest |a - b|; NaN if any value is.
template <class A, class B>
double max_difference(const std::vector<A>& a, const std::vector<B>& b) {
    double worst = 0;
    for (size_t i = 0; i < a.size(); i++) {
        const double difference = std::abs(double(float(a[i])) - double(float(b[i])));
        if (!(difference <= worst)) worst = difference;
        if (std::isnan(worst)) return worst;
    }
    return worst;
}

// While it lives, the stand-in is a Hopper GPU, and a GPU is what it is; the environment asks for no kernels.
struct OnHopper {
    Environment environment{std::map<std::string, std::string>()};
#ifdef CUDA_EMU
    emu::Settings before = emu::settings();
    OnHopper() { emu::settings().sm = 90; }
    ~OnHopper() { emu::settings() = before; }
#else
    OnHopper() {}
#endif
    OnHopper(const OnHopper&) = delete;
    OnHopper& operator=(const OnHopper&) = delete;
};

}  // namespace tapernorm
#endif
