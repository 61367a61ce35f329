#include "train/checkpoints.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "io/atomic_file.h"
#include "runtime/error.h"
#include "runtime/exit_status.h"
#include "train/stop.h"

namespace tapernorm::train {

std::unique_ptr<SafetensorsFile> Checkpoints::open_newest(std::string& note, const Check& check) {
    std::string problem, others;  // with the newest state; the older ones that cannot be used either
    for (const size_t number : existing_numbers(path_, kMost - 1)) {
        const std::string path = numbered(path_, number);
        std::error_code ignored;
        if (!std::filesystem::exists(path, ignored)) continue;  // a link that leads nowhere
        try {
            auto file = std::make_unique<SafetensorsFile>(path, FileUse::own);
            file->verify();
            if (check) check(*file);
            if (number > 0)
                note = (problem.empty() ? in_quotes(path_) + " is missing" : problem) +
                       (others.empty() ? "; resuming from the checkpoint before it, "
                                       : others + " be used; resuming from the checkpoint before them, ") +
                       in_quotes(path);
            resumed_ = true, whole_ = number == 0;
            return file;
        } catch (const Error& e) {
            others += problem.empty() ? "" : (others.empty() ? "; nor can " : ", ") + in_quotes(path);
            if (problem.empty()) problem = e.what();
        }
    }
    if (!others.empty()) others += " be used";
    if (!problem.empty()) fail("%s%s; without a whole state, start afresh without -y", problem.c_str(), others.c_str());
    return nullptr;
}

void Checkpoints::write(const std::map<std::string, std::string>& metadata, const std::vector<TensorOut>& tensors,
                        size_t keep, const std::function<void()>& ready) {
    // A damaged newest one is replaced; it must not push out a whole one.
    write_safetensors(path_, metadata, tensors, {.checksum = true, .keep = whole_ ? keep : 1, .ready = ready});
    // What is left of a larger K or of an older run; a crash between two renames leaves one number free.
    for (size_t number = resumed_ ? keep : 1, missing = 0; missing < 2; number++)
        missing = unlink(numbered(path_, number).c_str()) == 0 ? 0 : missing + 1;
    resumed_ = whole_ = true;
}

std::string escaped(const std::string& bytes) {
    std::string line;
    for (const char c : bytes) {
        const unsigned char byte = static_cast<unsigned char>(c);
        line += byte < 0x20 || byte >= 0x7f || c == '%' ? strprintf("%%%02X", byte) : std::string(1, c);
    }
    return line;
}

std::string unescaped(const std::string& line) {
    std::string bytes;
    for (size_t i = 0; i < line.size(); i++) {
        unsigned byte = 0;
        const bool code = line[i] == '%' && i + 2 < line.size() && std::sscanf(line.c_str() + i + 1, "%2x", &byte) == 1;
        bytes += code ? char(byte) : line[i];
        i += code ? 2 : 0;
    }
    return bytes;
}

bool Checkpoints::give_up_older() {
    bool any = false;
    if (!resumed_) return false;
    for (const size_t number : existing_numbers(path_, kMost - 1))
        if (number > 0) any |= unlink(numbered(path_, number).c_str()) == 0;
    return any;
}

void write_last(Checkpoints& checkpoints, const std::function<void()>& state, const std::function<void()>& model) {
    bool has_state = false, has_model = false, waited = false, removed = false;
    std::string said;
    for (int wait = 100;; wait = std::min(wait + wait / 10, 60000)) {  // ms
        std::string problem;                                           // the first
        const auto attempt = [&](bool& done, const std::function<void()>& write) {
            while (!done) {
                std::string text;
                try {
                    write();
                    done = true;
                } catch (const DiskFull& e) {
                    text = e.what();
                    if (checkpoints.give_up_older()) {
                        if (!std::exchange(removed, true))
                            std::fprintf(stderr, "warning: %s; the older checkpoints of this run are removed\n",
                                         e.what());
                        continue;
                    }
                } catch (const std::exception& e) {
                    text = error_text(e);
                }
                if (problem.empty()) problem = text;
                return;
            }
        };
        attempt(has_state, state), attempt(has_model, model);
        if (has_state && has_model) break;
        if (!std::exchange(waited, true))
            stop_signal = 0, watch_stop_signals();  // before anyone is told that they give up
        if (problem != said)
            std::fprintf(stderr, "warning: %s; %s; trying again until it can be written (Ctrl-C gives up)\n",
                         problem.c_str(),
                         has_model   ? "the model alone is written"
                         : has_state ? "the state alone is written"
                                     : "neither state nor model is written");
        said = problem;
        if (!stop_signal) poll(nullptr, 0, wait);  // ends early where a signal comes
        if (stop_signal) fail("%s", problem.c_str());
    }
    if (waited) std::printf("\nstate and model are written now\n");
}

static std::string size_text(double bytes) {
    return bytes < 1 << 20 ? strprintf("%.0f KiB", bytes / 1024) : strprintf("%.1f MiB", bytes / 1048576);
}

std::string space_warning(const std::string& path, const DiskNeeds& needs) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        double(limit.rlim_cur) < needs.largest_file)
        return strprintf(
            "warning: the shell's limit (ulimit -f) allows files of %s, and the checkpoints of this run need %s; "
            "raise it",
            size_text(double(limit.rlim_cur)).c_str(), size_text(needs.largest_file).c_str());
    const std::string parent = std::filesystem::path(path).parent_path().string();
    struct statvfs disk;
    if (statvfs(parent.empty() ? "." : parent.c_str(), &disk) != 0) return "";
    const double free = double(disk.f_bavail) * double(disk.f_frsize);
    if (free >= needs.bytes) return "";
    return strprintf(
        "warning: the disk of %s has %s free, and this run may need %s more for its model and its checkpoints; free "
        "some space, or keep fewer checkpoints (--keep)",
        in_quotes(path).c_str(), size_text(free).c_str(), size_text(needs.bytes).c_str());
}

const std::string& state_metadata(const SafetensorsFile& file, const char* key) {
    auto it = file.metadata().find(key);
    if (it == file.metadata().end() || it->second.size() > 1 << 20)
        fail("%s: not a state file of this program: no \"%s\" in its metadata; start afresh without -y",
             file.path().c_str(), key);
    return it->second;
}

uint64_t state_number(const SafetensorsFile& file, const char* key) {
    const std::string& text = state_metadata(file, key);
    char* end = nullptr;
    const uint64_t value = std::strtoull(text.c_str(), &end, 10);
    if (text.empty() || text[0] < '0' || text[0] > '9' || *end)
        fail("%s: metadata \"%s\": expected a whole number, found %s; the file is damaged", file.path().c_str(), key,
             in_quotes(text).c_str());
    return value;
}

}  // namespace tapernorm::train
