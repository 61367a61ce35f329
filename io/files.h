// Files as texts, and the files that a pattern names.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/mapped_file.h"

namespace tapernorm {

// One file, or all that match a pattern with * ? or [ ] (or a ~ for the home directory), in the order of their names. A name
// that is no pattern is returned as it is, whether or not the file exists; a pattern that matches nothing is an error.
std::vector<std::string> matching_files(const std::string& pattern);

// Whether a pattern would match the file `path`, if it were there. A name that is no pattern matches nothing.
bool pattern_names(const std::string& pattern, const std::string& path);

// Fails unless what begins like this is text: a packed file, a model, token ids, UTF-16 and the like would all "work" as text,
// and give results about noise. The error says what it is and what to do. name: the file's, as the
// message shows it. Returns the text without UTF-8's byte order mark.
std::string_view check_text(const std::string& name, std::string_view text);

// What a file is by its first bytes: "packed by gzip", "a text that begins with '<!DOCTYPE html>'"; "" where that is unknown, and
// for a safetensors file.
std::string kind_of_file(std::string_view bytes);

// Says once per process that a text is in another encoding. It is no error: bytes are tokens, too.
void warn_unless_utf8(const std::string& name, std::string_view text);

// A file that must be text, mapped into memory.
class TextFile {
  public:
    explicit TextFile(const std::string& path)
        : file_(path), text_(check_text(in_quotes(path), {reinterpret_cast<const char*>(file_.data()), file_.size()})) {
    }
    std::string_view text() const { return text_; }
    void check() const { file_.check(); }  // see MappedFile

  private:
    MappedFile file_;
    std::string_view text_;
};

// The same as a string; a file of more than `limit` bytes is an error, before any of it is read.
std::string read_text(const std::string& path, size_t limit = SIZE_MAX);
void write_text(const std::string& path, const std::string& text);  // replaces the file as a whole, see AtomicFile

}  // namespace tapernorm
