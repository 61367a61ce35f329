// What is in files of models and of logits.
#pragma once
#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace tapernorm {

// All but the provenance (model/provenance.h), which says when and where a model was made: two runs that end with the same bits
// differ there alone.
inline std::string model_in(const std::string& path) {
    const SafetensorsFile file(path);
    file.verify();
    std::string all;
    for (const auto& [key, value] : file.metadata())
        if (key != "provenance" && key != "checksum") all += key + "\n" + value + "\n";
    for (const TensorEntry& t : file.entries()) {
        all += t.name + "\n" + dtype_name(t.dtype) + shape_text(t.shape) + "\n";
        all.append(reinterpret_cast<const char*>(file.data(t)), t.end - t.begin);
    }
    return all;
}

// A copy of a model with other metadata, and a checksum that is right.
inline void with_metadata(const std::string& from, const std::string& to,
                          const std::map<std::string, std::string>& changes) {
    const SafetensorsFile file(from);
    std::map<std::string, std::string> metadata = changes;
    metadata.insert(file.metadata().begin(), file.metadata().end());
    metadata.erase("checksum");
    std::vector<TensorOut> out;
    for (const TensorEntry& e : file.entries()) out.push_back({e.name, e.dtype, e.shape, file.data(e)});
    write_safetensors(to, metadata, out, {.checksum = true});
}

// What infer --dump writes.
struct Dump {
    size_t rows, V;
    std::vector<double> logits;
};

inline Dump read_dump(const std::string& path) {
    const SafetensorsFile file(path);
    const TensorEntry* entry = file.find("logits");
    REQUIRE(entry);
    REQUIRE(entry->shape.size() == 2);
    Dump dump{entry->shape[0], entry->shape[1], std::vector<double>(entry->count())};
    file.read(*entry, dump.logits.data());
    return dump;
}

}  // namespace tapernorm
