// The log beside the model: one JSON object per line, {"step": 10, "loss": 3.25, ...}, flushed line by line.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "train/appended_file.h"

namespace tapernorm::train {

class RunLog {
  public:
    using Value = std::variant<double, int64_t, uint64_t, std::string>;
    using Fields = std::vector<std::pair<std::string, Value>>;

    // A fresh run empties the file. A resumed one drops what was logged after `resume_step` (those updates
    // will run again) and a last line torn by a crash; the file is replaced as a whole.
    explicit RunLog(const std::string& path, std::optional<size_t> resume_step = std::nullopt);

    // Numbers in the shortest form that reads back to the same bits; NaN and infinities as null. A log that
    // cannot be written (disk full) is one warning on stderr, and the run continues.
    void write(size_t step, const Fields& fields);

  private:
    AppendedFile file_;
};

}  // namespace tapernorm::train
