// A Hugging Face GPT-2: config.json, then model.safetensors, cut at a byte 0xff; or a checkpoint of llm.c, by its magic number.
#include <filesystem>

#include "model/model_file.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/safetensors_mutator.h"

namespace tapernorm {

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    const size_t config = as_text(data, size).find('\xff');
    return mutate_safetensors(data, size, max_size, seed, config == std::string_view::npos ? size : config + 1);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    std::string path;
    if (input.starts_with("\xc6\xd7\x34\x01")) {  // 20240326
        path = file_with(input, "llmc.bin");
    } else {
        const auto part = parts(input, 2);
        file_with(part[0], "config.json");
        path = std::filesystem::path(file_with(safetensors_bytes(part[1]), "model.safetensors")).parent_path().string();
    }
    return expect_clean([&] {
        Cpu dev(1, Isa::base);
        describe(load_model(dev, path)->info);
    });
}

}  // namespace tapernorm
