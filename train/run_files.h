// The files of a run and whose they are. A run has one name, "runs/a" of -o runs/a.bin or -o runs/a, and its files are
// runs/a.bin (the model), .state.bin, .state.1.bin ... (older states), .log.jsonl, .toml (its settings) and, while it runs,
// .tapernorm-lock and .tapernorm-log: two names never share a file.
#pragma once
#include <string>
#include <vector>

namespace tapernorm::train {

// -o's text -> the model's path, with .bin at its end. Fails for what names no file, or a state of another run.
std::string model_path(const std::string& out);

// The files beside the model: "a.bin" -> "a.log.jsonl". (state_path is in model/model_file.h.)
std::string log_path(const std::string& model);
std::string settings_path(const std::string& model);
// The log of a run before its first checkpoint, where the files of an earlier run are still in place.
std::string new_log_path(const std::string& model);

std::string lock_path(const std::string& model);

// Logs that were kept as they were when their run resumed: "a.log.1.jsonl".
std::vector<std::string> kept_logs(const std::string& model);

// Which of a run's files exist, oldest states first and the log, which says whose they are, last; the lock and the new log are
// left out.
std::vector<std::string> existing_files(const std::string& model);

// Gives the log that a run left at new_log_path, which ended before its first checkpoint, the name that the log of a run of
// its own would have, "a.old.log.jsonl", and returns it; "" where there is none.
std::string set_aside_new_log(const std::string& model);

// The run under one of these names to which -y can go, best the one whose log is still in place; "" where there is none.
std::string run_set_aside(const std::string& model);

// Metadata of a safetensors file; "" where there is no such file or it does not say.
std::string metadata_of(const std::string& path, const std::string& key);
std::string content_of(const std::string& path);  // content_checksum

// The first of "a.old.bin", "a.old2.bin" ... of which no file exists and which no run has.
std::string aside_path(const std::string& model);

// Where the program was killed while it set a run aside: the rest of its files follow its newest state, or, where that is still
// in place, the older ones come back.
void finish_set_aside(const std::string& model);

// The new log becomes the run's log, once the first state or model is there.
void name_new_log(const std::string& model);
// The same where the program was killed between the two.
void finish_new_log(const std::string& model);

// Gives `files`, in this order, of the run `model` the names of the run `to`. None is replaced. The newest state moves after the
// older ones, so that whenever this ends early -y finds the newest one under one of the two names.
void set_aside(const std::string& model, const std::string& to, const std::vector<std::string>& files);

// Held as long as the run lasts. The system lets go of it when the process ends, however it ends.
class RunLock {
  public:
    // Fails where another process has it, with that process's number. Behind a symbolic link the run that it leads to is locked too.
    explicit RunLock(const std::string& model);
    ~RunLock();
    // Where the run's folder was moved and there is another under its name, takes the lock there; whether it had to. Fails where
    // another process has it.
    bool retake();
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

  private:
    void lock(const std::string& model);

    struct Held {
        std::string model, path;
        int fd;
    };
    std::vector<Held> held_;
};

}  // namespace tapernorm::train
