// What a model's file holds but its provenance (model/provenance.h), which says when and where it was made: two runs that end
// with the same bits differ there alone.
#pragma once
#include <string>

#include "io/safetensors.h"

namespace tapernorm {

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

}  // namespace tapernorm
