#include "train/run_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string_view>
#include <system_error>

#include "io/atomic_file.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "runtime/error.h"

namespace tapernorm::train {

namespace {

using nlohmann::json;

std::string json_text(const RunLog::Value& value) {
    if (const auto* text = std::get_if<std::string>(&value))
        return json(*text).dump(-1, ' ', false, json::error_handler_t::replace);
    if (const auto* whole = std::get_if<int64_t>(&value)) return std::to_string(*whole);
    if (const auto* whole = std::get_if<uint64_t>(&value)) return std::to_string(*whole);
    const double number = std::get<double>(value);
    if (!std::isfinite(number)) return "null";
    char digits[32];
    return std::string(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

constexpr size_t kLongestLine = 1 << 20;  // many times what a record has

struct Line {
    std::string text;    // without its end; "" where it is longer than any record
    size_t bytes = 0;    // in the file
    bool ended = false;  // by a line feed
};

// Every line of a log, which may be of any size and hold anything.
template <class F>
void for_each_line(const std::string& path, F&& f) {
    const int fd = open_regular(path, O_RDONLY);
    if (fd < 0) fail("%s", errno == EEXIST ? "something else has its name" : std::strerror(errno));
    const std::unique_ptr<FILE, int (*)(FILE*)> file(fdopen(fd, "rb"), std::fclose);
    Line line;
    std::vector<char> block(1 << 16);
    while (const size_t got = std::fread(block.data(), 1, block.size(), file.get()))
        for (const char *at = block.data(), *end = at + got; at < end;) {
            const char* feed = static_cast<const char*>(std::memchr(at, '\n', size_t(end - at)));
            const char* next = feed ? feed + 1 : end;
            line.bytes += size_t(next - at), line.ended = feed;
            line.bytes <= kLongestLine ? void(line.text.append(at, feed ? feed : end)) : line.text.clear();
            if (feed) f(std::as_const(line)), line = {};
            at = next;
        }
    if (std::ferror(file.get())) fail("%s", std::strerror(errno));
    if (line.bytes > 0) f(std::as_const(line));
}

std::optional<size_t> step_of(const Line& line) {
    const json record = parse_json(line.text);
    const auto step = record.is_object() ? record.find("step") : record.end();
    if (!record.is_object() || step == record.end() || !step->is_number_unsigned()) return {};
    return step->get<size_t>();
}

bool is_end(const Line& line) {
    const json record = parse_json(line.text);
    return record.is_object() && record.contains("end");
}

std::string run_in(std::string_view line) {
    const json record = parse_json(line);
    if (!record.is_object() || !record.contains("run") || !record["run"].is_string()) return "";
    return record["run"];
}

// Which lines of a log a run goes on with that resumes behind `resume_step`: one per update, in their order.
struct Filter {
    size_t resume_step, last = 0;           // the last update that stays
    size_t lines = 0, dropped = 0;          // dropped: all that is no part of the run's log
    size_t missing = 0, first_missing = 0;  // updates

    bool stays(const Line& line) {
        if (lines++ == 0 && line.ended && !run_in(line.text).empty()) return true;
        const std::optional<size_t> step = step_of(line);
        if (!step && !line.ended && line.text.starts_with('{')) return false;  // torn by a crash
        if (!step && is_end(line)) return false;
        if (step && *step > resume_step) return false;
        if (!step || *step <= last) return dropped++, false;
        if (last > 0) expect(*step);
        last = *step;
        return true;
    }
    void expect(size_t next) {
        if (next > last + 1 && missing == 0) first_missing = last + 1;
        missing += next - last - 1;
    }
};

// The log as it was, under a free name beside it: "a.log.jsonl" -> "a.log.1.jsonl".
std::string keep_old_log(const std::string& path) {
    for (size_t number = 1;; number++) {
        const std::string aside = numbered(path, number);
        if (rename_to_free(path, aside) == 0) return aside;
        if (errno != EEXIST) fail("cannot rename it to %s: %s", in_quotes(aside).c_str(), std::strerror(errno));
    }
}

void warn_of_repair(const std::string& path, const Filter& found, const std::string& aside) {
    std::string what;
    if (found.dropped)
        what +=
            strprintf("; lines left out because they are no records or repeat an update: %zu (as it was, it is now %s)",
                      found.dropped, in_quotes(aside).c_str());
    if (found.missing)
        what += strprintf("; updates of which it has no record: %zu, the first of them %zu", found.missing,
                          found.first_missing);
    if (!what.empty())
        std::fprintf(stderr, "warning: the log %s: %s\n", in_quotes(path).c_str(), what.substr(2).c_str());
}

// Takes from a log what a run that resumes does not go on with. One that is not there, or begins later (for it was not there
// once), lacks nothing: somebody took the rest away.
void repair(const std::string& path, size_t resume_step) {
    std::error_code ignored;
    const std::filesystem::path target = std::filesystem::canonical(path, ignored);
    if (target.empty()) return;
    const std::string file = std::filesystem::is_symlink(path, ignored) ? target.string() : path;  // a link stays
    Filter found{resume_step};
    size_t begin = 0, bytes = 0;  // those that stay at the file's begin; all
    bool rewrite = false;
    for_each_line(file, [&](const Line& line) {
        if (found.stays(line)) {
            rewrite |= begin < bytes || !line.ended;
            begin += line.bytes;
        }
        bytes += line.bytes;
    });
    found.expect(resume_step + 1);
    std::string aside;
    if (rewrite || found.dropped) {
        AtomicFile out(file);
        Filter again{resume_step};
        for_each_line(file, [&](const Line& line) {
            if (again.stays(line)) out.write((line.text + "\n").data(), line.text.size() + 1);
        });
        if (found.dropped) aside = keep_old_log(file);
        out.commit();
    } else if (begin < bytes && truncate(file.c_str(), off_t(begin)) != 0) {
        fail("could not shorten it: %s", std::strerror(errno));
    }
    warn_of_repair(path, found, aside);
}

}  // namespace

RunLog::RunLog(const std::string& path, std::optional<size_t> resume_step, const std::string& run)
    : file_(path, "log") {
    try {
        if (resume_step) repair(path, *resume_step);
    } catch (const Error& e) {
        file_.warn(e.what());
        return;
    }
    file_.open(!resume_step);
    if (!run.empty() && file_.empty()) file_.append("{\"run\": " + json_text(run) + "}\n");
}

size_t updates_in_log(const std::string& path) {
    size_t updates = 0;
    for_each_line(path, [&](const Line& line) { updates += step_of(line).has_value(); });
    return updates;
}

std::string run_of_log(const std::string& path) {
    if (access(path.c_str(), F_OK) != 0) return "";
    const MappedFile file(path, FileUse::own);
    const std::string_view start(reinterpret_cast<const char*>(file.data()), std::min<size_t>(file.size(), 256));
    return run_in(start.substr(0, start.find('\n')));
}

static std::string with_fields(std::string line, const RunLog::Fields& fields) {
    for (const auto& [name, value] : fields) line += ", " + json_text(RunLog::Value(name)) + ": " + json_text(value);
    return line + "}\n";
}

void RunLog::write(size_t step, const Fields& fields) {
    file_.append(with_fields("{\"step\": " + std::to_string(step), fields));
}

void RunLog::write_end(const std::string& how, const Fields& fields) {
    file_.append(with_fields("{\"end\": " + json_text(how), fields));
}

}  // namespace tapernorm::train
