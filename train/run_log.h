// The log beside the model: one JSON object per line, {"step": 10, "loss": 3.25, ...}, flushed line by line. The first says
// whose it is: {"run": "5f2c90aa01234567"}. The last, of a run that has ended, how: {"end": "complete", "updates": 2700,
// "tokens": 2764800, "val_loss": 0.2745, ...}; a run that goes on takes it away.
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

    // A fresh run needs a free name. A resumed one cuts off what was logged after `resume_step` (those updates will run
    // again) and a last line torn by a crash. Where it finds other lines than records in their order, the log as it was
    // is kept under another name; that, and updates that are missing, is one warning. run: the run's id, "" for none.
    explicit RunLog(const std::string& path, std::optional<size_t> resume_step = std::nullopt,
                    const std::string& run = "");

    // Numbers in the shortest form that reads back to the same bits; NaN and infinities as null. A log that
    // cannot be written (disk full) is one warning on stderr, and the run continues.
    void write(size_t step, const Fields& fields);
    void write_end(const std::string& how, const Fields& fields);  // how: "complete" or "interrupted"

    void flush() const { file_.flush(); }

  private:
    AppendedFile file_;
};

// How many updates a log has.
size_t updates_in_log(const std::string& path);

// The id of the run that a log belongs to; "" where it does not say.
std::string run_of_log(const std::string& path);

}  // namespace tapernorm::train
