#include "io/tensor_file.h"

#include <cstring>
#include <type_traits>

#include "runtime/error.h"

namespace tapernorm {

static_assert(std::endian::native == std::endian::little, "the file's numbers are used in place");

namespace {

struct DtypeInfo {
    Dtype dtype;
    const char* name;
    size_t bytes;
};

constexpr DtypeInfo kDtypes[] = {
    {Dtype::F64, "F64", 8},   {Dtype::F32, "F32", 4}, {Dtype::F16, "F16", 2}, {Dtype::BF16, "BF16", 2},
    {Dtype::I64, "I64", 8},   {Dtype::I32, "I32", 4}, {Dtype::I16, "I16", 2}, {Dtype::I8, "I8", 1},
    {Dtype::U64, "U64", 8},   {Dtype::U32, "U32", 4}, {Dtype::U16, "U16", 2}, {Dtype::U8, "U8", 1},
    {Dtype::BOOL, "BOOL", 1},
};

const DtypeInfo& info(Dtype dtype) {
    for (const DtypeInfo& d : kDtypes)
        if (d.dtype == dtype) return d;
    fail("dtype number %d is unknown", int(dtype));
}

template <class Real, class Stored, class Convert>
void convert(const unsigned char* src, size_t n, Real* dst, Convert&& f) {
    for (size_t i = 0; i < n; i++) {
        Stored x;
        std::memcpy(&x, src + i * sizeof x, sizeof x);
        dst[i] = Real(f(x));
    }
}

}  // namespace

size_t dtype_bytes(Dtype dtype) { return info(dtype).bytes; }

const char* dtype_name(Dtype dtype) { return info(dtype).name; }

std::optional<Dtype> dtype_named(std::string_view name) {
    for (const DtypeInfo& d : kDtypes)
        if (name == d.name) return d.dtype;
    return {};
}

bool tensor_bytes(Dtype dtype, const std::vector<size_t>& shape, size_t* bytes) {
    *bytes = dtype_bytes(dtype);
    for (const size_t n : shape)
        if (__builtin_mul_overflow(*bytes, n, bytes)) return false;
    return true;
}

std::string shape_text(const std::vector<size_t>& shape) {
    std::string text = "[";
    for (const size_t n : shape) {
        if (text.size() > 1) text += ", ";
        text += std::to_string(n);
    }
    return text + "]";
}

void TensorFile::index() {
    for (size_t i = 0; i < entries_.size(); i++) index_.emplace(entries_[i].name, i);
}

void TensorFile::rename(const std::function<std::string(const std::string&)>& new_name) {
    for (TensorEntry& e : entries_) e.name = new_name(e.name);
    index_.clear();
    index();
}

const TensorEntry* TensorFile::find(std::string_view name) const {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &entries_[found->second];
}

template <class Real>
void TensorFile::read(const TensorEntry& entry, Real* dst) const {
    const unsigned char* src = data(entry);
    const size_t n = entry.count();
    const auto same = [](auto x) { return x; };
    switch (entry.dtype) {
        case Dtype::F32:
            if (std::is_same_v<Real, float> && n > 0) return void(std::memcpy(dst, src, n * sizeof(float)));
            return convert<Real, float>(src, n, dst, same);
        case Dtype::F64:
            return convert<Real, double>(src, n, dst, same);
        case Dtype::BF16:
            return convert<Real, uint16_t>(src, n, dst, float_from_bf16);
        case Dtype::F16:
            return convert<Real, uint16_t>(src, n, dst, float_from_f16);
        default:
            fail("%s: tensor %s has dtype %s; expected F32, BF16, F16 or F64", in_quotes(path_).c_str(),
                 in_quotes(entry.name).c_str(), dtype_name(entry.dtype));
    }
}

template void TensorFile::read<float>(const TensorEntry&, float*) const;
template void TensorFile::read<double>(const TensorEntry&, double*) const;

const float* TensorFile::in_place(const TensorEntry& entry) const {
    const unsigned char* bytes = data(entry);
    const bool usable = entry.dtype == Dtype::F32 && reinterpret_cast<uintptr_t>(bytes) % alignof(float) == 0;
    return usable ? reinterpret_cast<const float*>(bytes) : nullptr;
}

float float_from_f16(uint16_t x) {
    const uint32_t sign = uint32_t(x & 0x8000u) << 16, exponent = x >> 10 & 31u, mantissa = x & 1023u;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float subnormal = float(mantissa) * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

}  // namespace tapernorm
