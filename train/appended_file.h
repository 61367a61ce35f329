// A file that a run appends text to (logs). It never ends the run: what cannot be written is one warning on stderr.
#pragma once
#include <string>

namespace tapernorm::train {

class AppendedFile {
  public:
    // what: "log", for the warning. Nothing is opened yet.
    AppendedFile(std::string path, std::string what) : path_(std::move(path)), what_(std::move(what)) {}
    ~AppendedFile();
    AppendedFile(const AppendedFile&) = delete;
    AppendedFile& operator=(const AppendedFile&) = delete;

    // fresh: a new file, in place of nothing that is there; else the end of the one that is there, if there is one.
    void open(bool fresh);
    void append(const std::string& text);  // at once, and as a whole or not at all; nothing before open()

    void flush() const;  // to the disk: after a power cut the log must not end before the checkpoint
    bool empty() const;  // that is, open and without a byte

    void warn(const std::string& problem);

  private:
    std::string path_, what_;
    int fd_ = -1;
    bool warned_ = false;
};

}  // namespace tapernorm::train
