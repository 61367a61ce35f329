// A file with named tensors in it: what safetensors files and PyTorch's have in common, once their headers are read.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "io/mapped_file.h"

namespace tapernorm {

enum class Dtype { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };

size_t dtype_bytes(Dtype dtype);
const char* dtype_name(Dtype dtype);
std::optional<Dtype> dtype_named(std::string_view name);

// "[2, 3]", for messages.
std::string shape_text(const std::vector<size_t>& shape);

// The bytes of a tensor; false if the product does not fit.
bool tensor_bytes(Dtype dtype, const std::vector<size_t>& shape, size_t* bytes);

struct TensorEntry {
    std::string name;
    Dtype dtype;
    std::vector<size_t> shape;
    size_t begin, end;  // bytes from the start of the file's data

    size_t count() const { return (end - begin) / dtype_bytes(dtype); }
};

// The numbers are in the mapped file. A derived class fills in the table and checks it: no access leaves the file.
class TensorFile {
  public:
    const std::string& path() const { return path_; }
    const std::map<std::string, std::string>& metadata() const { return metadata_; }  // a safetensors file's alone
    const std::vector<TensorEntry>& entries() const { return entries_; }              // in the order of their data

    const TensorEntry* find(std::string_view name) const;  // nullptr: no such tensor

    // Gives every tensor the name that new_name makes of its own. Of several with one name, find knows the first.
    void rename(const std::function<std::string(const std::string&)>& new_name);

    // The tensor's bytes in the file's dtype; other programs' files may not align them.
    const unsigned char* data(const TensorEntry& entry) const { return file_.data() + data_begin_ + entry.begin; }

    // Reads entry.count() numbers, converted from F64, F32, F16 or BF16; any other dtype is an error. Real: float or double.
    template <class Real>
    void read(const TensorEntry& entry, Real* dst) const;

    // Where a tensor's F32 numbers are mapped, if they are aligned; else null.
    const float* in_place(const TensorEntry& entry) const;

  protected:
    TensorFile(const std::string& path, FileUse use) : path_(path), file_(path, use) {}
    void index();  // once entries_ is complete

    std::string path_;
    MappedFile file_;
    size_t data_begin_ = 0;
    std::map<std::string, std::string> metadata_;
    std::vector<TensorEntry> entries_;

  private:
    std::map<std::string, size_t, std::less<>> index_;  // name -> place in entries_
};

// Rounds to nearest, ties to even; a NaN stays a (quiet) NaN with its sign.
inline uint16_t bf16_from_float(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float float_from_bf16(uint16_t x) { return std::bit_cast<float>(uint32_t(x) << 16); }

float float_from_f16(uint16_t x);  // exact

}  // namespace tapernorm
