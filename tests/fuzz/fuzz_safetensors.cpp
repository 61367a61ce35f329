// Any safetensors file: header, layout, all data, checksum.
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/safetensors_mutator.h"

namespace tapernorm {

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
    return mutate_safetensors(data, size, max_size, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string bytes = safetensors_bytes(as_text(data, size)),
                      path = file_with(size % 2 ? with_checksum(bytes) : bytes);
    return expect_clean([&] {
        const SafetensorsFile file(path);
        for (const TensorEntry& entry : file.entries()) {
            require(file.find(entry.name), "an entry is not found by its name");
            const std::string bytes(reinterpret_cast<const char*>(file.data(entry)), entry.end - entry.begin);
            std::vector<double> values(entry.count());
            try {
                file.read(entry, values.data());
            } catch (const Error&) {  // integers
            }
        }
        file.verify();
    });
}

}  // namespace tapernorm
