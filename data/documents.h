// Corpora as documents: plain text, JSON lines, tar archives, read piece by piece in constant memory.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/download.h"
#include "io/tokenizer.h"
#include "io/words.h"

namespace tapernorm::prepare {

struct Piece {
    std::string text;          // for JSON lines: the line
    bool new_document = true;  // else it continues the one before
    std::string source;        // name of the file
    size_t line = 0;           // of a JSON-lines file, from 1
};

inline constexpr size_t piece_bytes = 1 << 20;  // longer documents come in pieces of about this size

class PieceReader {
  public:
    virtual ~PieceReader() = default;
    virtual bool next(Piece& piece) = 0;
};

inline bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// Plain text: one document, or several between <|endoftext|> markers; white space around a marker is dropped.
class TextReader : public PieceReader {
  public:
    explicit TextReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

    bool next(Piece& piece) override {
        size_t wanted = piece_bytes;
        for (;;) {
            fill(wanted);
            if (after_marker_) {
                while (at_ < buffer_.size() && is_space(buffer_[at_])) ++at_;
                if (at_ == buffer_.size() && !ended_) continue;
                after_marker_ = false;
            }
            const std::string_view rest = std::string_view(buffer_).substr(at_);
            if (rest.empty()) return false;
            const size_t marker = rest.find(end_of_text_marker);
            const bool whole = marker != rest.npos;
            size_t end = whole ? marker : ended_ ? rest.size() : word_safe_cut(rest, rest.size() / 2);
            if (!whole && !ended_ && end == rest.size()) {
                wanted = 2 * rest.size();  // no white space yet
                continue;
            }
            at_ += whole ? marker + end_of_text_marker.size() : end;
            saw_marker_ = saw_marker_ || whole;
            if (whole || (ended_ && saw_marker_))
                while (end > 0 && is_space(rest[end - 1])) --end;
            piece = {std::string(rest.substr(0, end)), new_document_, source_->name()};
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
        const size_t have = buffer_.size(), full = wanted + piece_bytes;
        buffer_.resize(full);
        buffer_.resize(have + source_->read(buffer_.data() + have, full - have));
        ended_ = buffer_.size() < full;
    }

    std::unique_ptr<ByteSource> source_;
    std::string buffer_;
    size_t at_ = 0;  // what is before has been handed out
    bool ended_ = false, new_document_ = true, after_marker_ = false, saw_marker_ = false;
};

// One JSON object a line; the text in it is taken out by the threads that tokenize.
class LineReader : public PieceReader {
  public:
    explicit LineReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

    bool next(Piece& piece) override {
        for (;;) {
            size_t end = buffer_.find('\n', at_);
            while (end == buffer_.npos && !ended_) {
                buffer_.erase(0, at_);
                at_ = 0;
                const size_t have = buffer_.size();
                buffer_.resize(have + piece_bytes);
                buffer_.resize(have + source_->read(buffer_.data() + have, piece_bytes));
                ended_ = buffer_.size() < have + piece_bytes;
                end = buffer_.find('\n', have);
            }
            if (at_ == buffer_.size()) return false;
            end = std::min(end, buffer_.size());
            piece = {buffer_.substr(at_, end - at_), true, source_->name(), ++line_};
            at_ = std::min(end + 1, buffer_.size());
            if (!std::all_of(piece.text.begin(), piece.text.end(), is_space)) return true;
        }
    }

  private:
    std::unique_ptr<ByteSource> source_;
    std::string buffer_;
    size_t at_ = 0, line_ = 0;
    bool ended_ = false;
};

// A tar archive of text files, each a document. Headers are 512 bytes: the size as octal digits at 124, the
// kind at 156; contents are padded to 512.
class TarReader : public PieceReader {
  public:
    explicit TarReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

    bool next(Piece& piece) override {
        char header[512];
        for (;;) {
            const size_t got = source_->read(header, sizeof header);
            if (got == 0) return false;
            if (got < sizeof header) fail("%s ends within a file; get it again", source_->name().c_str());
            if (std::all_of(header, header + sizeof header, [](char c) { return c == 0; })) continue;
            if (std::memcmp(header + 257, "ustar", 5) != 0)
                fail("%s is not a tar archive, or is damaged", source_->name().c_str());
            const size_t size = std::strtoull(std::string(header + 124, 12).c_str(), nullptr, 8);
            std::string content((size + 511) / 512 * 512, '\0');
            if (source_->read(content.data(), content.size()) < content.size())
                fail("%s ends within a file; get it again", source_->name().c_str());
            if (header[156] != '0' && header[156] != '\0') continue;  // directories, long names
            content.resize(size);
            piece = {tidy(content), true, source_->name()};
            if (!piece.text.empty()) return true;
        }
    }

  private:
    // As the published OpenWebText: no white space around a document, at most one blank line in it.
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
class NestedTarReader : public PieceReader {
  public:
    explicit NestedTarReader(const std::string& path) : path_(path) {
        const std::string list = ByteSource({"tar", "-tf", path}, in_quotes(path)).read_all();
        for (size_t at = 0, end; at < list.size(); at = end + 1) {
            end = std::min(list.find('\n', at), list.size());
            const std::string member = list.substr(at, end - at);
            if (member.ends_with(".xz")) members_.push_back(member);
        }
        if (members_.empty()) fail("%s holds no .xz archive", in_quotes(path).c_str());
    }

    bool next(Piece& piece) override {
        for (;;) {
            if (inner_ && inner_->next(piece)) return true;
            if (opened_ == members_.size()) return false;
            const std::string& member = members_[opened_++];
            // Of a pipe the shell reports only the last program's failure; xz notices a short input.
            inner_ = std::make_unique<TarReader>(
                std::make_unique<ByteSource>(std::vector<std::string>{"sh", "-c", "tar -xOf \"$1\" \"$2\" | xz -dc",
                                                                      "sh", path_, member},
                                             in_quotes(path_ + ":" + member)));
        }
    }

  private:
    std::string path_;
    std::vector<std::string> members_;
    size_t opened_ = 0;
    std::unique_ptr<TarReader> inner_;
};

inline std::unique_ptr<PieceReader> open_reader(const std::string& path, const std::string& format) {
    std::string plain = path;
    for (const char* packed : {".gz", ".xz", ".zst"})
        if (plain.ends_with(packed)) plain.resize(plain.size() - std::strlen(packed));
    if (format == "nested-tar") return std::make_unique<NestedTarReader>(path);
    auto source = std::make_unique<ByteSource>(path);
    if (format == "jsonl" || (format == "auto" && (plain.ends_with(".jsonl") || plain.ends_with(".json"))))
        return std::make_unique<LineReader>(std::move(source));
    if (format == "tar" || (format == "auto" && plain.ends_with(".tar")))
        return std::make_unique<TarReader>(std::move(source));
    if (plain.ends_with(".parquet"))
        fail(
            "%s is in Parquet's format, which prepare cannot read; data/README.md says how to turn it into "
            "JSON lines",
            in_quotes(path).c_str());
    return std::make_unique<TextReader>(std::move(source));
}

inline std::string text_of(const Piece& piece, const std::string& field) {
    if (piece.line == 0) return piece.text;
    const auto json = nlohmann::json::parse(piece.text, nullptr, false);
    if (!json.is_object())
        fail("%s, line %zu is no JSON object; expected one a line", piece.source.c_str(), piece.line);
    const auto found = json.find(field);
    if (found != json.end() && found->is_string()) return found->get<std::string>();
    std::string fields;
    for (const auto& [key, value] : json.items())
        if (value.is_string()) fields += (fields.empty() ? "" : ", ") + key;
    fail("%s, line %zu has no text named %s; choose by --field one of: %s", piece.source.c_str(), piece.line,
         in_quotes(field).c_str(), fields.empty() ? "(the line has no text at all)" : fields.c_str());
}

}  // namespace tapernorm::prepare
