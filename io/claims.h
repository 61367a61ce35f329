// No file may be both read and written: what a program opens for reading and what it is going to write are compared by device and
// inode, so that a link, or another spelling of a path, is seen. Programs claim their outputs before they begin; MappedFile
// claims what it opens. Which of the two comes first does not matter.
#pragma once
#include <string>

namespace tapernorm {

// The file open as `fd`. Fails if it is a claimed output.
void claim_input(const std::string& path, int fd);

// The file that `path` names, if there is one, or a link leads to. Fails if it is a claimed input. flag: where the name comes
// from, such as "--out".
void claim_output(const std::string& flag, const std::string& path);

// Fails where the file that `path` names is a claimed input, for a file that will not keep its name. what: "cannot write 'FILE'".
void check_no_input(const std::string& what, const std::string& path);

// For programs that are no run of train_gpt. Fails where `path` is the name of a state or log of a run, which would replace it one
// day, and where it is any file of a run that is going on: by the lock that a run holds as long as it lasts (train/run_files.h).
void check_no_run(const std::string& flag, const std::string& path);
// The process in the lock that is open as `fd`: its number, "unknown" where it has not said it yet.
std::string lock_owner(int fd);

// The endings of files in use: of a lock, behind a run's name, and of what is being written, behind the file's.
constexpr const char *kLockEnding = ".tapernorm-lock", *kTemporaryEnding = ".tapernorm-tmp";

}  // namespace tapernorm
