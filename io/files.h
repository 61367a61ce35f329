// Files as texts, and the files that a pattern names.
#pragma once
#include <string>
#include <vector>

namespace tapernorm {

// One file, or all that match a pattern with * ? or [ ] (or a ~ for the home directory), in the order of their names. A name
// that is no pattern is returned as it is, whether or not the file exists; a pattern that matches nothing is an error.
std::vector<std::string> matching_files(const std::string& pattern);

std::string read_text(const std::string& path);
void write_text(const std::string& path, const std::string& text);  // replaces the file as a whole, see AtomicFile

}  // namespace tapernorm
