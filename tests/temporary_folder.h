#pragma once
#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>

namespace tapernorm {

// A folder under the system's temporary directory, removed with all that is in it.
struct TemporaryFolder {
    std::string path;

    TemporaryFolder() : path((std::filesystem::temp_directory_path() / "tapernorm.XXXXXX").string()) {
        if (!mkdtemp(path.data())) throw std::runtime_error("mkdtemp failed");
    }
    ~TemporaryFolder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
    std::string operator/(const std::string& name) const { return path + "/" + name; }
    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;
};

}  // namespace tapernorm
