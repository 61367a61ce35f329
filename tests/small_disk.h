// A disk for tests, to be filled.
#pragma once
#include <doctest/doctest.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>

namespace tapernorm {

// A small disk of its own in a folder, for as long as this lives.
struct Disk {
    std::string path;
    bool mounted;

    explicit Disk(const std::string& path_) : path(path_) {
        std::filesystem::create_directory(path);
        mounted = mount("tapernorm-test", path.c_str(), "tmpfs", 0, "size=2m") == 0;
        if (!mounted) MESSAGE("skipped: this process may not mount a file system (", std::strerror(errno), ")");
    }
    ~Disk() {
        if (mounted) umount2(path.c_str(), MNT_DETACH);
    }
    bool make_read_only() const { return mount(nullptr, path.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) == 0; }
};

}  // namespace tapernorm
