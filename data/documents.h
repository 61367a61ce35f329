// Corpora as documents: plain text, JSON lines and tar archives, read passage by passage in constant memory.
#pragma once
#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "data/download.h"
#include "io/json.h"
#include "io/tokenizer.h"
#include "io/words.h"

namespace tapernorm::prepare {

// A document, or a part of a long one.
struct Passage {
    std::string text;          // for JSON lines: the line
    bool new_document = true;  // otherwise it continues the previous one
    std::string source;        // name of the file, in quotes
    size_t line = 0;           // in a JSON-lines file, counted from 1
};

inline constexpr size_t kPassageBytes = 1 << 20;  // longer documents come in passages of about this size
// Those that must be in memory whole: a line of JSON lines, a file of an archive. A small packed file can hold a huge one.
inline constexpr size_t kLargestDocument = 64 << 20;

class DocumentReader {
  public:
    virtual ~DocumentReader() = default;
    virtual bool next(Passage& passage) = 0;
};

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Plain text: one document, or several separated by <|endoftext|>; white space around a separator is dropped.
class TextReader : public DocumentReader {
  public:
    explicit TextReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

    bool next(Passage& passage) override {
        size_t wanted = kPassageBytes;
        for (;;) {
            fill(wanted);
            if (after_marker_) {
                while (at_ < buffer_.size() && is_space(buffer_[at_])) ++at_;
                if (at_ == buffer_.size() && !ended_) continue;
                after_marker_ = false;
            }
            const std::string_view rest = std::string_view(buffer_).substr(at_);
            if (rest.empty()) return false;
            const size_t marker = rest.find(kEndOfText);
            const bool whole = marker != rest.npos;
            size_t end = whole ? marker : ended_ ? rest.size() : word_safe_cut(rest, rest.size() / 2);
            if (!whole && !ended_ && end == rest.size()) {
                wanted = 2 * rest.size();  // no white space yet
                continue;
            }
            at_ += whole ? marker + kEndOfText.size() : end;
            saw_marker_ = saw_marker_ || whole;
            if (whole || (ended_ && saw_marker_))
                while (end > 0 && is_space(rest[end - 1])) --end;
            passage = {std::string(rest.substr(0, end)), new_document_, source_->name()};
            new_document_ = new_document_ && end == 0;
            if (whole) new_document_ = after_marker_ = true;
            if (end > 0) return true;
        }
    }

  private:
    void fill(size_t wanted) {
        if (ended_ || buffer_.size() - at_ >= wanted) return;
        buffer_.erase(0, at_);
        at_ = 0;
        const size_t have = buffer_.size(), full = wanted + kPassageBytes;
        buffer_.resize(full);
        buffer_.resize(have + source_->read(buffer_.data() + have, full - have));
        ended_ = buffer_.size() < full;
        if (!std::exchange(begun_, true)) at_ = buffer_.size() - check_text(source_->name(), buffer_).size();
    }

    std::unique_ptr<ByteSource> source_;
    std::string buffer_;
    size_t at_ = 0;  // what is before has been handed out
    bool begun_ = false, ended_ = false, new_document_ = true, after_marker_ = false, saw_marker_ = false;
};

// One JSON object per line; the threads that tokenize take the text out of it (text_of).
class LineReader : public DocumentReader {
  public:
    explicit LineReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

    bool next(Passage& passage) override {
        for (;;) {
            size_t end = buffer_.find('\n', at_);
            while (end == buffer_.npos && !ended_) {
                buffer_.erase(0, at_);
                at_ = 0;
                const size_t have = buffer_.size();
                if (have > kLargestDocument)
                    fail(
                        "%s, line %zu: expected at most %zu MiB in a line, found more; split it, or give it as plain text",
                        source_->name().c_str(), line_ + 1, kLargestDocument >> 20);
                buffer_.resize(have + kPassageBytes);
                buffer_.resize(have + source_->read(buffer_.data() + have, kPassageBytes));
                ended_ = buffer_.size() < have + kPassageBytes;
                if (!std::exchange(begun_, true)) at_ = buffer_.size() - check_text(source_->name(), buffer_).size();
                end = buffer_.find('\n', have);
            }
            if (at_ == buffer_.size()) return false;
            end = std::min(end, buffer_.size());
            passage = {buffer_.substr(at_, end - at_), true, source_->name(), ++line_};
            at_ = std::min(end + 1, buffer_.size());
            if (!std::all_of(passage.text.begin(), passage.text.end(), is_space)) return true;
        }
    }

  private:
    std::unique_ptr<ByteSource> source_;
    std::string buffer_;
    size_t at_ = 0, line_ = 0;
    bool begun_ = false, ended_ = false;
};

// The size in a tar header, in octal digits, or, behind a first byte of 128, as a big-endian number (GNU tar, from 8 GiB on); fails for
// anything else.
inline size_t tar_size(const char (&header)[512], const std::string& source) {
    const char *begin = header + 124, *end = std::find(begin, begin + 12, '\0');
    while (begin < end && *begin == ' ') begin++;
    while (begin < end && end[-1] == ' ') end--;
    size_t size = 0;
    if (header[124] == '\x80') {
        for (int i = 125; i < 136; i++)
            size = size >> 48 ? size : size << 8 | static_cast<unsigned char>(header[i]);  // far above any limit
        return size;
    }
    const auto [after, error] = std::from_chars(begin, end, size, 8);
    if (error != std::errc() || after != end)
        fail("%s is damaged: expected the size of a file in octal digits, found %s; get it again", source.c_str(),
             in_quotes({header + 124, 12}).c_str());
    return size;
}

// Whether a tar header's checksum is right: the sum of its bytes, the checksum's own 8 (at 148) taken for blanks.
inline bool tar_sum_matches(const char (&header)[512]) {
    size_t sum = 0, stored = 0;
    for (size_t i = 0; i < sizeof header; i++) sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(header[i]);
    const char *begin = std::find_if(header + 148, header + 156, [](char c) { return c != ' '; }), *end = header + 156;
    return std::from_chars(begin, end, stored, 8).ec == std::errc() && stored == sum;
}

// A tar archive of text files, each a document. Headers have 512 bytes, with the size in octal digits at 124 and the
// kind at 156; contents are padded to a multiple of 512.
class TarReader : public DocumentReader {
  public:
    explicit TarReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

    bool next(Passage& passage) override {
        char header[512];
        for (;;) {
            const size_t got = source_->read(header, sizeof header);
            if (got == 0) return false;
            if (got < sizeof header)
                fail("%s ends within a file; the copy is incomplete, get it again", source_->name().c_str());
            if (std::all_of(header, header + sizeof header, [](char c) { return c == 0; })) continue;
            if (std::memcmp(header + 257, "ustar", 5) != 0 || !tar_sum_matches(header))
                fail("%s is damaged or not a tar archive; get it again", source_->name().c_str());
            const size_t size = tar_size(header, source_->name()), padded = (size + 511) / 512 * 512;
            const std::string name = source_->name() + ": " + in_quotes(std::string(header, strnlen(header, 100)));
            if (size > kLargestDocument)
                fail("%s: expected at most %zu MiB in a file, found %zu bytes; split it, or give it as plain text",
                     name.c_str(), kLargestDocument >> 20, size);
            std::string content;
            while (content.size() < padded) {  // piece by piece: the archive must have what a header promises
                const size_t have = content.size(), more = std::min(padded - have, kPassageBytes);
                content.resize(have + more);
                if (source_->read(content.data() + have, more) < more)
                    fail("%s ends within a file; the copy is incomplete, get it again", source_->name().c_str());
            }
            if (header[156] != '0' && header[156] != '\0') continue;  // directories, long names
            content.resize(size);
            passage = {tidy(std::string(check_text(name, content))), true, source_->name()};
            if (!passage.text.empty()) return true;
        }
    }

  private:
    // As in the published OpenWebText: no white space around a document, at most one blank line at a time.
    static std::string tidy(const std::string& content) {
        std::string text;
        size_t newlines = 0;
        for (const char c : content) {
            newlines = c == '\n' ? newlines + 1 : 0;
            if (newlines <= 2 && !(text.empty() && is_space(c))) text += c;
        }
        while (!text.empty() && is_space(text.back())) text.pop_back();
        return text;
    }

    std::unique_ptr<ByteSource> source_;
};

// A tar archive of compressed tar archives (*.xz): OpenWebText.
class NestedTarReader : public DocumentReader {
  public:
    explicit NestedTarReader(const std::string& path) : path_(path), file_(path) {
        if (!path_.starts_with('/')) path_ = "./" + path_;  // tar takes -a for a flag and a:b for a file of the host a
        const std::string list = ByteSource({"tar", "-tf", path_}, in_quotes(path)).read_all();
        for (size_t at = 0, end; at < list.size(); at = end + 1) {
            end = std::min(list.find('\n', at), list.size());
            const std::string member = list.substr(at, end - at);
            if (member.ends_with(".xz")) members_.push_back(member);
        }
        if (members_.empty())
            fail("%s holds no .xz archive; expected OpenWebText's tar of tar.xz", in_quotes(path).c_str());
    }

    bool next(Passage& passage) override {
        for (;;) {
            file_.check();
            if (inner_ && inner_->next(passage)) return true;
            if (opened_ == members_.size()) return false;
            const std::string& member = members_[opened_++];
            // The shell reports only the failure of a pipe's last program; xz notices a short input.
            inner_ = std::make_unique<TarReader>(
                std::make_unique<ByteSource>(std::vector<std::string>{"sh", "-c", "tar -xOf \"$1\" -- \"$2\" | xz -dc",
                                                                      "sh", path_, member},
                                             in_quotes(path_ + ":" + member)));
        }
    }

  private:
    std::string path_;
    MappedFile file_;
    std::vector<std::string> members_;
    size_t opened_ = 0;
    std::unique_ptr<TarReader> inner_;
};

inline std::string text_of(const Passage& passage, const std::string& field) {
    if (passage.line == 0) return passage.text;
    const auto json = parse_json(passage.text);
    if (!json.is_object())
        fail("%s, line %zu is not a JSON object; expected one object per line, in UTF-8, nested at most %zu deep",
             passage.source.c_str(), passage.line, kDeepestJson);
    const auto found = json.find(field);
    if (found != json.end() && found->is_string()) return found->get<std::string>();
    std::string fields;
    for (const auto& [key, value] : json.items())
        if (value.is_string()) fields += (fields.empty() ? "" : ", ") + in_quotes(key);
    fail("%s, line %zu has no text named %s; name one of these with --field: %s", passage.source.c_str(), passage.line,
         in_quotes(field).c_str(), fields.empty() ? "(the line holds no text at all)" : fields.c_str());
}

}  // namespace tapernorm::prepare
