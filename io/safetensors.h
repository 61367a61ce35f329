// Model and state files in the safetensors format, so that any safetensors reader opens them.
//
//     8 bytes   n, the length of the header, little endian
//     n bytes   JSON: {"__metadata__": {string: string, ...}, "name": {"dtype": "F32", "shape": [2, 3],
//               "data_offsets": [begin, end]}, ...}, padded with spaces
//     the rest  the tensors, row major, little endian; offsets count from here and leave no gap
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/mapped_file.h"

namespace tapernorm {

enum class Dtype { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };

size_t dtype_bytes(Dtype dtype);
const char* dtype_name(Dtype dtype);

// "[2, 3]", for messages.
std::string shape_text(const std::vector<size_t>& shape);

struct TensorEntry {
    std::string name;
    Dtype dtype;
    std::vector<size_t> shape;
    size_t begin, end;  // bytes from the start of the data section

    size_t count() const { return (end - begin) / dtype_bytes(dtype); }
};

class SafetensorsFile {
  public:
    // Maps the file and checks its whole header; no later access can leave the file.
    explicit SafetensorsFile(const std::string& path, FileUse use = FileUse::input);

    const std::string& path() const { return path_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }
    const std::vector<TensorEntry>& entries() const { return entries_; }  // in the order of their data

    // Reads the whole file and fails unless its bytes are those that were written. The file must have a checksum.
    void verify() const;

    const TensorEntry* find(std::string_view name) const;  // nullptr: no such tensor

    // The tensor's bytes in the file's dtype; other programs' files may not align them.
    const unsigned char* data(const TensorEntry& entry) const { return file_.data() + data_begin_ + entry.begin; }

    // Reads entry.count() numbers, converted from F64, F32, F16 or BF16; any other dtype is an error. Real: float or double.
    template <class Real>
    void read(const TensorEntry& entry, Real* dst) const;

  private:
    std::string path_;
    MappedFile file_;
    size_t data_begin_ = 0;
    std::map<std::string, std::string> metadata_;
    std::vector<TensorEntry> entries_;
    std::map<std::string, size_t, std::less<>> index_;  // name -> place in entries_
};

struct TensorOut {
    std::string name;
    Dtype dtype;
    std::vector<size_t> shape;
    const void* data;  // row major, in `dtype`
};

// A file in memory that is complete but for its writing.
class SafetensorsImage {
  public:
    // checksum: adds the metadata "checksum", that of the whole file with its own digits as zeros. `path` is for messages;
    // the tensors' data must outlive the image.
    SafetensorsImage(const std::string& path, const std::map<std::string, std::string>& metadata,
                     std::vector<TensorOut> tensors, bool checksum);
    const std::string& checksum() const { return checksum_; }  // "" without

    // Replaces `path` as a whole, or fails and leaves it as it was. keep: how many versions of the file stay, with the new
    // one (AtomicFile::commit).
    // ready: called when all is on the disk but the new name.
    void write(const std::string& path, size_t keep = 1, const std::function<void()>& ready = {}) const;

  private:
    std::vector<TensorOut> tensors_;
    std::vector<size_t> bytes_;
    std::string header_, checksum_;
};

struct WriteOptions {
    bool checksum = false;
    size_t keep = 1;
    std::function<void()> ready = {};
};

// Both in one. Tensors keep their order; the data section is 64-byte aligned, and so is every tensor whose predecessors all
// have multiples of 64 bytes.
void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata,
                       const std::vector<TensorOut>& tensors, const WriteOptions& options = {});

// Fails where `path` exists and is not a safetensors file that `ours` knows as what this program writes there: a wrong name
// must not cost a user's file. flag: where the name comes from; what: "a folded model".
void check_replaceable(const char* flag, const std::string& path, const char* what,
                       const std::function<bool(const SafetensorsFile&)>& ours);

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN with its sign.
inline uint16_t bf16_from_float(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float float_from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }

float float_from_f16(uint16_t x);  // exact

}  // namespace tapernorm
