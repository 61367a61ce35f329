// One allocation per lifetime class (parameters, gradients, moments, activations), divided by a list of requests.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cpu.h"

namespace tapernorm {

inline void* device_allocate(Cpu& dev, size_t bytes, const char* what) {
    return cpu_allocate(bytes, what, dev.memory_hint);
}
inline void device_free(Cpu&, void* p) { std::free(p); }
// By all threads: where a machine has several memories (NUMA), a page lies with who touches it first.
inline void device_zero(Cpu& dev, void* p, size_t bytes) {
    parallel_ranges(dev, bytes, 1 << 20, [&](size_t begin, size_t end, int) {
        std::fill(static_cast<char*>(p) + begin, static_cast<char*>(p) + end, char(0));
    });
}
inline void device_copy_in(Cpu&, void* to, const void* from, size_t bytes) {
    std::copy_n(static_cast<const char*>(from), bytes, static_cast<char*>(to));
}
inline void device_copy_out(Cpu&, void* to, const void* from, size_t bytes) {
    std::copy_n(static_cast<const char*>(from), bytes, static_cast<char*>(to));
}

inline void device_copy(Cpu&, void* to, const void* from, size_t bytes) {
    std::copy_n(static_cast<const char*>(from), bytes, static_cast<char*>(to));
}

template <class Device>
class Arena {
  public:
    Arena(Device& dev, std::string what) : dev_(dev), what_(std::move(what)) {}
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { device_free(dev_, data_); }

    // Asks for `count` elements; `slot` points to them after allocate(), 256-byte aligned. A count of 0 gives null.
    template <class T>
    void add(T*& slot, size_t count) {
        requests_.push_back({reinterpret_cast<void**>(&slot), count ? bytes_ : SIZE_MAX});
        bytes_ += (count * sizeof(T) + 255) / 256 * 256;
    }

    // The next request starts at a multiple of `units` x 256 bytes.
    void pad(size_t units) { bytes_ = (bytes_ + 256 * units - 1) / (256 * units) * (256 * units); }

    void allocate(bool zero) {
        data_ = device_allocate(dev_, bytes_, what_.c_str());
        if (zero) device_zero(dev_, data_, bytes_);
        for (auto& [slot, offset] : requests_)
            *slot = offset == SIZE_MAX ? nullptr : static_cast<char*>(data_) + offset;
    }

    void* data() const { return data_; }
    size_t bytes() const { return bytes_; }
    const std::string& what() const { return what_; }

  private:
    Device& dev_;
    std::string what_;
    void* data_ = nullptr;
    size_t bytes_ = 0;
    std::vector<std::pair<void**, size_t>> requests_;
};

}  // namespace tapernorm
