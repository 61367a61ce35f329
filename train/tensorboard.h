// Scalars for TensorBoard: `tensorboard --logdir DIR`. An event file is a row of TFRecords,
//
//     8 bytes   n, little endian        4 bytes   masked CRC-32C of these 8
//     n bytes   a protobuf Event        4 bytes   masked CRC-32C of these n
//
// and an Event is wall_time = 1 (double), step = 2 (int64) and one of file_version = 3 (string, the first record),
// summary = 5, session_log = 7. A clock that jumps moves points on TensorBoard's "wall" axis and nothing else.
#pragma once
#include <optional>
#include <string>

#include "train/run_log.h"

namespace tapernorm::train {

// "DIR/events.out.tfevents.0000000002.train_gpt", its number behind that of every event file in DIR.
std::string next_event_file(const std::string& folder);

class TensorBoardLog {
  public:
    // Begins a new file in `folder`, which is created where it is missing; its name sorts behind those there, as
    // TensorBoard reads them in that order. It opens with a session start at the first update to come, at which TensorBoard
    // drops what an older file has from there on: a run that resumes replaces the updates that it repeats.
    // resume_step: updates done; none for a fresh run.
    TensorBoardLog(const std::string& folder, std::optional<size_t> resume_step);

    // The fields that are numbers, each under its name as its tag, as 32-bit floats. Flushed to the file at once. A file
    // that cannot be written is one warning on stderr, and the run continues.
    void write(size_t step, const RunLog::Fields& fields) { write_event(step, summary(fields)); }

    // The protobuf message Summary: for every field a Value with tag = 1 and simple_value = 2.
    static std::string summary(const RunLog::Fields& fields);  // an Event's field, its tag included
    static std::string event(double wall_time, size_t step, const std::string& what);
    static std::string record(const std::string& data);

  private:
    void write_event(size_t step, const std::string& what);

    AppendedFile file_;
};

}  // namespace tapernorm::train
