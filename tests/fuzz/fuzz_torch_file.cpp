// A file that torch.save wrote: a whole zip archive, or the pickle of one whose storages 0, 1 ... have 64, 16, 8, 4 and 0 bytes.
#include "io/torch_file.h"

#include "tests/fuzz/fuzz.h"
#include "tests/torch_archive.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    const std::string_view input = as_text(data, size);
    std::string archive(input);
    if (!input.starts_with("PK")) {
        std::vector<ZipEntry> entries = {{"m/data.pkl", archive}};
        for (const size_t bytes : {64, 16, 8, 4, 0})
            entries.push_back({"m/data/" + std::to_string(entries.size() - 1), std::string(bytes, '\1')});
        archive = zip_archive(entries);
    }
    const std::string path = file_with(archive);
    return expect_clean([&] {
        if (!is_torch_file(path)) return;
        const TorchFile file(path);
        for (const TensorEntry& e : file.entries()) {
            require(e.begin <= e.end && e.end <= archive.size(), "a tensor outside the file");
            if (e.dtype != Dtype::F64 && e.dtype != Dtype::F32 && e.dtype != Dtype::F16 && e.dtype != Dtype::BF16)
                continue;
            std::vector<float> numbers(e.count());
            file.read(e, numbers.data());
        }
    });
}

}  // namespace tapernorm
