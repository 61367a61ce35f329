// Changes of safetensors files in which the header and the data stay in step, which no change of single bytes does: a shape, a
// type or the whole model becomes another, and the data follow. To be included by the targets that read such files.
#pragma once
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>

#include "io/safetensors.h"
#include "model/model_file.h"
#include "tests/fuzz/fuzz.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace tapernorm {

class SafetensorsMutator {
  public:
    explicit SafetensorsMutator(unsigned seed) : random_(seed) {}

    // The changed input, in the form of safetensors_bytes; none where the input is no safetensors file.
    std::optional<std::string> change(std::string_view input) {
        if (!parse(safetensors_bytes(input))) return {};
        switch (below(8)) {
            case 0:
                another_model();
                break;
            case 1:
                another_dtype();
                break;
            case 2:
                another_shape();
                break;
            case 3:
                another_list();
                break;
            case 4:
                another_number();
                break;
            case 5:
                another_value();
                break;
            case 6:
                if (!tensors_.empty()) mutate(any_tensor().bytes);
                break;
            case 7:
                if (!metadata_.empty()) mutate(any_metadata()->second);
                break;
        }
        return text();
    }

  private:
    struct Part {
        std::string name, dtype;
        std::vector<size_t> shape;
        std::string bytes;
    };

    size_t below(size_t limit) { return limit ? random_() % limit : 0; }
    Part& any_tensor() { return tensors_[below(tensors_.size())]; }
    std::map<std::string, std::string>::iterator any_metadata() {
        return std::next(metadata_.begin(), std::ptrdiff_t(below(metadata_.size())));
    }

    bool parse(const std::string& bytes) {
        uint64_t length = 0;
        if (bytes.size() < sizeof length) return false;
        std::memcpy(&length, bytes.data(), sizeof length);
        if (length > bytes.size() - sizeof length) return false;
        const std::string_view data = std::string_view(bytes).substr(sizeof length + length);
        std::vector<std::pair<size_t, Part>> parts;  // and where their data begin, in whose order they stand
        try {
            const auto header = nlohmann::json::parse(std::string_view(bytes).substr(sizeof length, length));
            for (const auto& [name, value] : header.items()) {
                if (name == "__metadata__") {
                    metadata_ = value.get<std::map<std::string, std::string>>();
                    continue;
                }
                for (const char* list : {"data_offsets", "shape"})
                    for (const auto& n : value.at(list))
                        if (!n.is_number_unsigned()) return false;
                const size_t begin = value.at("data_offsets").at(0), end = value.at("data_offsets").at(1);
                if (begin > end || end > data.size()) return false;
                parts.push_back(
                    {begin,
                     {name, value.at("dtype"), value.at("shape"), std::string(data.substr(begin, end - begin))}});
            }
        } catch (const nlohmann::json::exception&) {
            return false;
        }
        std::stable_sort(parts.begin(), parts.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
        for (auto& [begin, part] : parts) tensors_.push_back(std::move(part));
        return true;
    }

    static std::string json(const nlohmann::json& value) {
        return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }

    // The header is put together by hand: a tree of it took longer than to read what it says.
    std::string text() const {
        std::string header, data;
        if (!metadata_.empty()) header = ",\"__metadata__\":" + json(metadata_);
        for (const Part& t : tensors_) {
            header += "," + json(t.name) + ":{\"dtype\":" + json(t.dtype) + ",\"shape\":" + json(t.shape) +
                      ",\"data_offsets\":[" + std::to_string(data.size()) + "," +
                      std::to_string(data.size() + t.bytes.size()) + "]}";
            data += t.bytes;
        }
        return "{" + (header.empty() ? header : header.substr(1)) + "}\xff" + data;
    }

    static void mutate(std::string& bytes) {
        const size_t size = bytes.size(), room = size + size / 4 + 8;
        bytes.resize(room);
        bytes.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(bytes.data()), size, room));
    }

    static size_t bytes_of(const std::string& dtype) {
        for (int i = 0; i <= int(Dtype::BOOL); i++)
            if (dtype == dtype_name(Dtype(i))) return dtype_bytes(Dtype(i));
        return 4;
    }

    // As many bytes as the shape and the type ask for; what is missing repeats what is there.
    static void fit(Part& t) {
        size_t wanted = bytes_of(t.dtype);
        for (const size_t n : t.shape)
            if (__builtin_mul_overflow(wanted, n, &wanted)) return;
        if (wanted > size_t(1) << 20) return;
        std::string bytes = t.bytes.empty() ? std::string(4, '\0') : t.bytes;
        while (bytes.size() < wanted) bytes += bytes;
        t.bytes = bytes.substr(0, wanted);
    }

    void another_dtype() {
        const std::string dtype = dtype_name(Dtype(below(size_t(Dtype::BOOL) + 1)));
        const bool all = below(2);
        const size_t one = below(tensors_.size());
        for (size_t i = 0; i < tensors_.size(); i++)
            if (all || i == one) tensors_[i].dtype = dtype, fit(tensors_[i]);
    }

    void another_shape() {
        if (tensors_.empty()) return;
        Part& t = any_tensor();
        const size_t at = below(t.shape.size());
        switch (below(4)) {
            case 0:
                t.shape.insert(t.shape.begin() + std::ptrdiff_t(at), below(4));
                break;
            case 1:
                if (!t.shape.empty()) t.shape.erase(t.shape.begin() + std::ptrdiff_t(at));
                break;
            case 2:
                std::reverse(t.shape.begin(), t.shape.end());
                break;
            case 3:
                if (!t.shape.empty()) t.shape[at] = below(2) ? t.shape[at] * 2 : t.shape[at] + 1 - 2 * below(2);
                break;
        }
        fit(t);
    }

    void another_list() {
        if (tensors_.empty()) return;
        const size_t at = below(tensors_.size());
        switch (below(4)) {
            case 0:
                tensors_.erase(tensors_.begin() + std::ptrdiff_t(at));
                break;
            case 1:
                tensors_.push_back(tensors_[at]);
                tensors_.back().name += below(2) ? ".x" : "_";
                break;
            case 2:
                std::swap(tensors_[at], any_tensor());
                break;
            case 3:
                mutate(tensors_[at].name);
                break;
        }
    }

    // In one place of a tensor, a number that arithmetic does not like.
    void another_number() {
        if (tensors_.empty()) return;
        constexpr double kNumbers[] = {0,
                                       -0.0,
                                       1,
                                       -1,
                                       1e-40,
                                       1e-30,
                                       3e38,
                                       -3e38,
                                       1e-320,
                                       1e308,
                                       0.5,
                                       1e9,
                                       std::numeric_limits<double>::infinity(),
                                       std::numeric_limits<double>::quiet_NaN()};
        const double number = kNumbers[below(std::size(kNumbers))];
        Part& t = any_tensor();
        const float single = float(number);
        uint64_t bits = 0;
        if (t.dtype == "F64") std::memcpy(&bits, &number, sizeof number);
        if (t.dtype == "F32") std::memcpy(&bits, &single, sizeof single);
        if (t.dtype == "BF16" || t.dtype == "F16") bits = below(1 << 16);
        const size_t size = bytes_of(t.dtype), count = t.bytes.size() / size;
        if (count) std::memcpy(t.bytes.data() + size * below(count), &bits, size);
    }

    void another_value() {
        static const char* const kValues[] = {"",           "0",
                                              "1",          "2",
                                              "3",          "7",
                                              "255",        "256",
                                              "4294967296", "-1",
                                              "1e-5",       "1e30",
                                              "nan",        "bytes",
                                              "gpt2",       "unknown",
                                              "layernorm",  "rmsnorm",
                                              "norm",       "taper",
                                              "taper-all",  "none",
                                              "affine",     "internal",
                                              "all",        "18446744073709551615",
                                              "0.3"};
        if (metadata_.empty()) return;
        auto value = any_metadata();
        if (below(8) == 0)
            metadata_.erase(value);
        else
            value->second = kValues[below(std::size(kValues))];
    }

    size_t size_in_metadata(const char* key, size_t most) {
        const auto value = metadata_.find(key);
        const size_t n = value == metadata_.end() ? 1 : std::strtoull(value->second.c_str(), nullptr, 10);
        return std::clamp<size_t>(n, 1, most);
    }

    // Other sizes, another norm, other gates, folded or not, bounded or not: with all its tensors, and its moments where it
    // is a state.
    void another_model() {
        static const char *const kNorms[] = {"layernorm", "rmsnorm"}, *const kModes[] = {"norm", "taper", "taper-all"},
                                 *const kFolds[] = {"none", "affine", "internal", "all"};
        Config c;
        c.L = size_in_metadata("n_layer", 3), c.NH = size_in_metadata("n_head", 4),
        c.C = size_in_metadata("n_embd", 16);
        c.T = size_in_metadata("n_positions", 40), c.V = size_in_metadata("vocab_size", 300);
        auto pick = [&](const auto& names, const char* key) {
            size_t i = 0;
            while (i + 1 < std::size(names) && metadata_[key] != names[i]) i++;
            return below(4) ? i : below(std::size(names));
        };
        size_t* const sizes[] = {&c.L, &c.NH, &c.C, &c.T, &c.V};
        if (below(2)) *sizes[below(3)] = 1 + below(4);
        if (below(4) == 0) *sizes[3 + below(2)] = 1 + below(280);
        if (c.C % c.NH) c.C = c.NH * (1 + below(4));
        c.norm = NormKind(pick(kNorms, "norm")), c.mode = GateMode(pick(kModes, "gate_mode"));
        c.fold = Fold(pick(kFolds, "folded"));
        const bool bounded = metadata_.erase("bound") > 0;
        if (below(4) ? bounded : !bounded) c.bound = 0.3;
        const bool apart = metadata_.erase("first_positions") > 0;
        c.first_apart = c.bound > 0 && (below(4) ? apart : !apart);
        for (const auto& [key, value] : config_metadata(c)) metadata_[key] = value;

        std::map<std::string, Part> old;
        for (Part& t : tensors_) old[t.name] = std::move(t);
        tensors_.clear();
        auto add = [&](const std::string& name, const std::vector<size_t>& shape, const char* dtype) {
            const auto found = old.find(name);
            Part t = found == old.end()
                         ? Part{name, dtype, {}, std::string(std::string_view("\xcd\xcc\xcc\x3d\x0a\xd7\x23\xbc", 8))}
                         : std::move(found->second);
            t.shape = shape;
            fit(t);
            tensors_.push_back(std::move(t));
            if (found != old.end()) old.erase(found);
        };
        const bool state = metadata_.count("state_version") > 0;
        GptTensors<float> none{};
        for (const char* prefix : {"", "m.", "v."})
            if (state || !*prefix)
                visit_tensors(c, none,
                              [&](const TensorSpec& spec, float*&) { add(prefix + spec.name, spec.shape, "F32"); });
        const std::vector<std::string> sites = taper_site_names(c);
        if (state && !sites.empty()) add("state.calibration", {3 * sites.size()}, "F64");
        if (state && !sites.empty()) add("state.taper_scale", {sites.size()}, "F32");
        if (state && !sites.empty() && c.first_apart) add("state.first_scale", {sites.size()}, "F32");
        if (!state)
            for (const std::string& site : sites) {
                add(site + ".taper_scale", {1}, "F32");
                if (c.first_apart) add(site + ".first_scale", {1}, "F32");
            }
        for (auto& [name, t] : old)
            if (name.starts_with("state.")) tensors_.push_back(std::move(t));
    }

    std::minstd_rand random_;
    std::map<std::string, std::string> metadata_;
    std::vector<Part> tensors_;
};

// Half of the changes are of this kind, half of libFuzzer's; the bytes before `begin` stay.
inline size_t mutate_safetensors(uint8_t* data, size_t size, size_t max_size, unsigned seed, size_t begin = 0) {
    if (seed % 2) {
        const auto changed = SafetensorsMutator(seed).change(as_text(data + begin, size - begin));
        if (changed && !changed->empty() && begin + changed->size() <= max_size) {
            std::memcpy(data + begin, changed->data(), changed->size());
            return begin + changed->size();
        }
    }
    return LLVMFuzzerMutate(data, size, max_size);
}

}  // namespace tapernorm
