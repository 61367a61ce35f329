// Any safetensors file: header, layout, all data, checksum.
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string path = file_with(safetensors_bytes(as_text(data, size)));
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
