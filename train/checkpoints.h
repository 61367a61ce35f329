// The newest checkpoints of a run: PATH, the one before it under the number 1 (model.state.1.bin), and so on. Each is a
// safetensors file with a checksum, so that a damaged one is noticed and the one before can be used.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "io/safetensors.h"

namespace tapernorm::train {

class Checkpoints {
  public:
    static constexpr size_t kMost = 100;  // numbers go up to here

    explicit Checkpoints(std::string path) : path_(std::move(path)) {}

    // The newest one that is whole and that `check` does not fail for. Where that is not PATH itself, `note` says in one line
    // why not and which it is. Null where there is none at all; fails where there are some and none is good. Later writes
    // continue this series.
    using Check = std::function<void(const SafetensorsFile&)>;
    std::unique_ptr<SafetensorsFile> open_newest(std::string& note, const Check& check = {});

    // Adds one; `keep` of them stay. Without open_newest before, those of an older run under this name go. ready: called when
    // all is on the disk but the new name.
    void write(const std::map<std::string, std::string>& metadata, const std::vector<TensorOut>& tensors, size_t keep,
               const std::function<void()>& ready = {});

    // Removes all but the newest, where they are this run's. Whether there were any.
    bool give_up_older();

  private:
    std::string path_;
    bool resumed_ = false;  // the numbered ones are of this run
    bool whole_ = false;    // PATH is whole and of this run: it takes the number 1 when the next one comes
};

// Any bytes as one line of UTF-8, for flags in a state's metadata: control characters, bytes from 0x80 on and % become %XX.
std::string escaped(const std::string& bytes);
std::string unescaped(const std::string& line);

// Writes the state and the model at the end of a run, which may have taken days, whatever prevents it: on a full disk older
// checkpoints are given up; then each is written where it can be, and what cannot is tried again until it can. What it
// does, it says on the standard error. Fails where a signal tells it to give up.
void write_last(Checkpoints& checkpoints, const std::function<void()>& state, const std::function<void()>& model);

// A warning where the disk of `path` has too little room, or the shell's limit too little for one file; "" where there is enough.
struct DiskNeeds {
    double bytes = 0, largest_file = 0;
};
std::string space_warning(const std::string& path, const DiskNeeds& needs);

// An entry of a state file's metadata; fails if it is missing, or is not a whole number.
const std::string& state_metadata(const SafetensorsFile& file, const char* key);
uint64_t state_number(const SafetensorsFile& file, const char* key);

}  // namespace tapernorm::train
