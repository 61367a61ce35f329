#include "io/files.h"

#include <fnmatch.h>
#include <glob.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "io/atomic_file.h"
#include "io/mapped_file.h"
#include "io/words.h"
#include "runtime/error.h"

namespace tapernorm {

static bool is_pattern(const std::string& name) {
    std::error_code ec;
    const bool plain = name.find_first_of("*?[") == std::string::npos && !name.starts_with('~');
    return !plain && !std::filesystem::exists(name, ec);
}

std::vector<std::string> matching_files(const std::string& pattern) {
    if (!is_pattern(pattern)) return {pattern};
    glob_t found = {};
    const int rc = glob(pattern.c_str(), GLOB_TILDE, nullptr, &found);
    std::vector<std::string> names(found.gl_pathv, found.gl_pathv + (rc == 0 ? found.gl_pathc : 0));
    globfree(&found);
    if (names.empty()) fail("no file matches %s; check the path", in_quotes(pattern).c_str());
    std::sort(names.begin(), names.end());  // glob sorts by the locale
    return names;
}

bool pattern_names(const std::string& pattern, const std::string& path) {
    namespace fs = std::filesystem;
    const fs::path wanted(pattern), file(path);
    if (!is_pattern(pattern) || fnmatch(wanted.filename().c_str(), file.filename().c_str(), FNM_PERIOD) != 0)
        return false;
    const auto folder = [](const fs::path& p) { return p.has_parent_path() ? p.parent_path().string() : "."; };
    std::error_code ec;
    for (const std::string& match : matching_files(folder(wanted)))
        if (fs::equivalent(match, folder(file), ec)) return true;
    return pattern_names(folder(wanted), folder(file));  // a folder that is not there yet
}

namespace {

using namespace std::string_view_literals;

struct FileKind {
    size_t at;
    std::string_view magic;
    const char *name, *remedy;
};

constexpr size_t kChecked = 16 << 20;  // so many bytes of a text are looked at, which takes milliseconds
constexpr const char* kUnpack = "unpack it first";
constexpr const char* kConvert = "convert it to UTF-8 first: iconv -f UTF-16 -t UTF-8";
constexpr const char* kTexts = "name a text";
constexpr FileKind kKinds[] = {
    {0, "\x1f\x8b"sv, "packed by gzip", "unpack it first (gunzip)"},
    {0, "\x1f\x9d"sv, "packed by compress", "unpack it first (gunzip)"},
    {0, "\x28\xb5\x2f\xfd"sv, "packed by zstd", "unpack it first (zstd -d)"},
    {0, "\xfd\x37zXZ\0"sv, "packed by xz", "unpack it first (unxz)"},
    {4, "\x31\x41\x59\x26\x53\x59"sv, "packed by bzip2", "unpack it first (bunzip2)"},
    {0, "\x04\x22\x4d\x18"sv, "packed by lz4", "unpack it first (lz4 -d)"},
    {0, "7z\xbc\xaf\x27\x1c"sv, "a 7z archive", kUnpack},
    {0, "PK\3\4"sv, "a zip archive (or a model of PyTorch, which is one)", kUnpack},
    {0, "version https://git-lfs.github.com/spec/"sv,
     "a pointer of Git LFS in place of the file (git lfs pull fetches it)", kTexts},
    {257, "ustar"sv, "a tar archive", "unpack it first (tar -x), or give it to ./prepare"},
    {0, "PAR1\x15"sv, "a Parquet file", "./prepare FILE --format parquet reads it, not packed (data/README.md)"},
    {0, "ARROW1\0"sv, "an Arrow file", "turn it into JSON lines first"},
    {0, "%PDF-"sv, "a PDF", "extract its text first (pdftotext)"},
    {0, "\xff\xfe\0\0"sv, "text in UTF-32", "convert it to UTF-8 first: iconv -f UTF-32 -t UTF-8"},
    {0, "\0\0\xfe\xff"sv, "text in UTF-32", "convert it to UTF-8 first: iconv -f UTF-32 -t UTF-8"},
    {0, "\xff\xfe"sv, "text in UTF-16", kConvert},
    {0, "\xfe\xff"sv, "text in UTF-16", kConvert},
    {0, "GGUF\3\0\0\0"sv, "a GGUF model", kTexts},
    {0, "\x93NUMPY"sv, "an array of NumPy", kTexts},
    {0, "\x88\xd8\x34\x01"sv, "a token shard", "train_gpt and infer --eval take it as it is; here a text is needed"},
    {0, "\xa1\xd9\x34\x01"sv, "a token shard of Llama 3 (uint32 ids)",
     "name shards of uint16 ids, or the text they are made of"},
    {0, "\x8a\xd8\x34\x01"sv, "llm.c's evaluation file", "infer --hellaswag and train_gpt --hellaswag take it"},
    {0, "\xc6\xd7\x34\x01"sv, "a checkpoint of llm.c", kTexts},
    {0, "\xc7\xd7\x34\x01"sv, "a state of llm.c", kTexts},
    {0, "\xc8\xd7\x34\x01"sv, "a tokenizer of llm.c", kTexts},
};

// The length of a JSON header in 8 bytes, of which the last four are zero, then the header. It comes before the others, because
// a length may look like one of their magic numbers.
constexpr FileKind kSafetensors = {4, "\0\0\0\0{"sv, "a model, a state or another safetensors file", kTexts};

const FileKind* find_kind(std::string_view bytes) {
    const auto is = [&](const FileKind& kind) {
        return bytes.size() >= kind.at && bytes.substr(kind.at).starts_with(kind.magic);
    };
    if (is(kSafetensors)) return &kSafetensors;
    const FileKind* found = std::find_if(std::begin(kKinds), std::end(kKinds), is);
    return found == std::end(kKinds) ? nullptr : found;
}

}  // namespace

std::string kind_of_file(std::string_view bytes) {
    constexpr size_t kShown = 40;
    const FileKind* kind = find_kind(bytes);
    if (kind == &kSafetensors || bytes.empty()) return "";
    if (kind) return kind->name;
    const std::string_view start = bytes.substr(0, bytes.find('\n')).substr(0, kShown);
    return !start.empty() && printable(start, "\t\r") == start ? "a text that begins with " + in_quotes(start) : "";
}

std::string_view check_text(const std::string& name, std::string_view text) {
    if (const FileKind* kind = find_kind(text))
        fail("%s: expected text, found %s; %s", name.c_str(), kind->name, kind->remedy);
    const size_t zero = text.substr(0, kChecked).find('\0');
    if (zero != text.npos)
        fail(
            "%s: expected text, but byte %zu is zero; name a text in UTF-8 (iconv makes it of UTF-16), or token shards where "
            "tokens are read (./prepare and llm.c's data scripts make them)",
            name.c_str(), zero);
    constexpr std::string_view kMark = "\xef\xbb\xbf";
    return text.starts_with(kMark) ? text.substr(kMark.size()) : text;
}

void warn_unless_utf8(const std::string& name, std::string_view text) {
    static bool said = false;
    const std::string_view checked = text.substr(0, kChecked);
    const size_t invalid = find_invalid_utf8(checked, 0),
                 cut = checked.size() < text.size() ? 3 : 0;  // within a character
    if (said || invalid + cut >= checked.size()) return;
    said = true;
    std::fprintf(stderr,
                 "warning: %s: byte %zu is not UTF-8, and the bytes are taken as they are; a text in Latin-1: iconv -f "
                 "LATIN1 -t UTF-8\n",
                 name.c_str(), invalid);
}

std::string read_text(const std::string& path, size_t limit) {
    const TextFile file(path);
    if (file.text().size() > limit)
        fail("%s: expected at most %zu bytes, found %zu; it is not the file that its name says",
             in_quotes(path).c_str(), limit, file.text().size());
    return std::string(file.text());
}

void write_text(const std::string& path, const std::string& text) {
    AtomicFile file(path);
    file.write(text.data(), text.size());
    file.commit();
}

}  // namespace tapernorm
