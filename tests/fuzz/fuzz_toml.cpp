// A file of settings. What is read comes back the same from what would be written.
#include "io/toml.h"
#include "tests/fuzz/fuzz.h"

namespace tapernorm {

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    return expect_clean([&] {
        std::string again;
        const std::vector<TomlEntry> entries = read_toml(as_text(data, size));
        for (const TomlEntry& e : entries) again += e.key + " = " + toml_string(e.value) + "\n";
        const std::vector<TomlEntry> read = read_toml(again);
        require(read.size() == entries.size(), "another number of entries");
        for (size_t i = 0; i < read.size(); i++)
            require(read[i].key == entries[i].key && read[i].value == entries[i].value, "another entry");
    });
}

}  // namespace tapernorm
