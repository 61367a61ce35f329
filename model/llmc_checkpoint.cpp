// Reads GPT-2 checkpoints of llm.c.
#include <cstdint>
#include <cstring>

#include "io/mapped_file.h"
#include "model/foreign_model.h"

namespace tapernorm {

namespace {

constexpr int32_t kMagic = 20240326;
constexpr size_t kHeaderInts = 256, kHeaderBytes = kHeaderInts * sizeof(int32_t);

class LlmcCheckpoint : public ModelFile {
  public:
    explicit LlmcCheckpoint(const std::string& path) : ModelFile(path, true), file_(path) {
        read_header();
        place_tensors();
        info_.dtype = dtype_name(dtype_);
        find_tokenizer_beside(path, info_);
    }

  private:
    struct Place {
        size_t first;  // index of its first number, counted from the end of the header
        bool transposed;
    };

    void read_header() {
        int32_t header[kHeaderInts] = {};
        if (file_.size() < kHeaderBytes)
            fail("%s: llm.c's header has %zu bytes, but the file only %zu; its copy is incomplete", path_.c_str(),
                 kHeaderBytes, file_.size());
        std::memcpy(header, file_.data(), kHeaderBytes);
        const int32_t version = header[1];
        if (version != 3 && version != 5)
            fail("%s: llm.c checkpoint: expected version 3 (fp32) or 5 (bf16), found %d", path_.c_str(), version);
        dtype_ = version == 3 ? Dtype::F32 : Dtype::BF16;
        auto size = [&](int at, const char* what, size_t low, size_t high) {
            if (header[at] < 0 || size_t(header[at]) < low || size_t(header[at]) > high)
                fail("%s: llm.c's header: %s: expected %zu to %zu, found %d; the file is damaged", path_.c_str(), what,
                     low, high, header[at]);
            return size_t(header[at]);
        };
        Config& c = info_.config;
        c.T = size(2, "positions", 1, 1 << 24);
        c.V = size(3, "vocabulary", 2, 1 << 24);
        c.L = size(4, "layers", 1, 100000);
        c.C = size(6, "channels", 1, 1 << 20);
        c.NH = size(5, "heads", 1, c.C);
        padded_V_ = size(7, "padded vocabulary", c.V, 1 << 25);
        if (c.C % c.NH)
            fail(
                "%s: llm.c's header: expected the channels to be a multiple of the heads (%zu), found %zu; the file is damaged",
                path_.c_str(), c.NH, c.C);
        c.norm = NormKind::layernorm, c.mode = GateMode::norm;
        const size_t numbers = (padded_V_ + c.T) * c.C + c.L * (12 * c.C + 13) * c.C + 2 * c.C;  // fits 64 bits
        const size_t bytes = kHeaderBytes + numbers * dtype_bytes(dtype_);
        if (file_.size() != bytes)
            fail(
                "%s: an llm.c checkpoint of %s, %s and a padded vocabulary of %zu has %zu bytes, but the "
                "file has %zu; it is damaged or its copy is incomplete",
                path_.c_str(), counted(c.L, "layer").c_str(), counted(c.C, "channel").c_str(), padded_V_, bytes,
                file_.size());
    }

    // The file holds one kind of tensor for all layers, then the next kind, in the order of visit_tensors.
    void place_tensors() {
        const Config& c = info_.config;
        GptTensors<float> none{};
        std::vector<TensorSpec> table;
        visit_tensors(c, none, [&](const TensorSpec& t, float*&) { table.push_back(t); });
        const size_t kinds = (table.size() - 4) / c.L;  // tensors per block: all but wte, wpe and the final norm's two
        size_t at = padded_V_ * c.C;
        places_["transformer.wte.weight"] = {0, false};
        auto place = [&](const TensorSpec& t) {
            places_[t.name] = {at, t.shape.size() == 2 && t.name.find(".h.") != t.name.npos};
            at += t.count();
        };
        place(table[1]);
        for (size_t kind = 0; kind < kinds; kind++)
            for (size_t l = 0; l < c.L; l++) place(table[2 + l * kinds + kind]);
        for (size_t i = table.size() - 2; i < table.size(); i++) place(table[i]);
    }

    template <class Real>
    void read_from(const TensorSpec& t, Real* dst) const {
        const Place place = places_.at(t.name);
        const unsigned char* data = file_.data() + kHeaderBytes + place.first * dtype_bytes(dtype_);
        auto number = [&](size_t i) {
            uint32_t bits = 0;
            std::memcpy(&bits, data + i * dtype_bytes(dtype_), dtype_bytes(dtype_));
            return Real(dtype_ == Dtype::F32 ? std::bit_cast<float>(bits) : float_from_bf16(uint16_t(bits)));
        };
        if (!place.transposed) {
            for (size_t i = 0; i < t.count(); i++) dst[i] = number(i);
            return;
        }
        const size_t in = t.shape[0], out = t.shape[1];
        for (size_t o = 0; o < out; o++)
            for (size_t i = 0; i < in; i++) dst[i * out + o] = number(o * in + i);
    }
    void convert(const TensorSpec& t, float* dst) const override { read_from(t, dst); }
    void convert(const TensorSpec& t, double* dst) const override { read_from(t, dst); }

    MappedFile file_;
    Dtype dtype_ = Dtype::F32;
    size_t padded_V_ = 0;
    std::map<std::string, Place> places_;
};

}  // namespace

bool is_llmc_checkpoint(const std::string& path) {
    int32_t magic = 0;
    const MappedFile file(path);
    if (file.size() >= sizeof magic) std::memcpy(&magic, file.data(), sizeof magic);
    return magic == kMagic;
}

std::unique_ptr<ModelFile> open_llmc_checkpoint(const std::string& path) {
    return std::make_unique<LlmcCheckpoint>(path);
}

}  // namespace tapernorm
