// Checksums: 64 bits at the speed of memory for checkpoints, and CRC-32C, which TensorBoard's records need.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "runtime/error.h"
#include "runtime/random.h"

namespace tapernorm {

// A 64-bit checksum of all bytes added, however they were divided among the calls. Four lanes take one 8-byte word each in
// turn. A lane is a polynomial of an odd number over the words, which are mixed first, so that a change in one cannot be
// undone by a similar change in the next. A change within one word is always noticed, any other with probability 1 - 2^-64.
// It finds accidents, not forgeries.
class Checksum {
  public:
    void add(const void* data, size_t bytes) {
        const unsigned char* p = static_cast<const unsigned char*>(data);
        total_ += bytes;
        while (bytes > 0) {
            const size_t n = std::min(bytes, sizeof block_ - filled_);
            if (n == sizeof block_) {
                absorb(p);
            } else {
                std::memcpy(block_ + filled_, p, n);
                if ((filled_ += n) == sizeof block_) absorb(block_), filled_ = 0;
            }
            p += n, bytes -= n;
        }
    }

    uint64_t value() const {
        Checksum last = *this;
        std::memset(last.block_ + filled_, 0, sizeof block_ - filled_);
        last.absorb(last.block_);
        uint64_t h = mix64(total_);
        for (uint64_t lane : last.lanes_) h = mix64(h ^ lane);
        return h;
    }

  private:
    void absorb(const unsigned char* p) {
        uint64_t words[4];
        std::memcpy(words, p, sizeof words);
        for (int i = 0; i < 4; i++) lanes_[i] = lanes_[i] * 0x9e3779b97f4a7c15u + mix64(words[i]);
    }

    uint64_t lanes_[4] = {1, 2, 3, 4}, total_ = 0;
    unsigned char block_[32];
    size_t filled_ = 0;
};

// "5f2c90aa01234567"
inline std::string checksum_text(uint64_t value) {
    return strprintf("%016llx", static_cast<unsigned long long>(value));
}

// CRC-32C (Castagnoli), as used by iSCSI and TFRecord: polynomial 0x1edc6f41, bits reversed.
inline uint32_t crc32c(const void* data, size_t bytes) {
    uint32_t crc = ~uint32_t(0);
    for (const unsigned char *p = static_cast<const unsigned char*>(data), *end = p + bytes; p < end; p++) {
        crc ^= *p;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    }
    return ~crc;
}

}  // namespace tapernorm
