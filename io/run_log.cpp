#include "io/run_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "io/atomic_file.h"
#include "runtime/error.h"

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

bool belongs_before(std::string_view line, size_t resume_step) {
    const json record = json::parse(line.begin(), line.end(), nullptr, false);
    if (!record.is_object()) return false;
    const auto step = record.find("step");
    return step != record.end() && step->is_number_unsigned() && step->get<uint64_t>() <= resume_step;
}

// Keeps the lines of up to `resume_step`; the old file stays whole until the new one is.
void drop_later_lines(const std::string& path, size_t resume_step) {
    if (access(path.c_str(), F_OK) != 0) return;
    const MappedFile old(path);
    const std::string_view text(reinterpret_cast<const char*>(old.data()), old.size());
    AtomicFile kept(path);
    for (size_t begin = 0; begin < text.size();) {
        const size_t end = text.find('\n', begin);
        if (end == std::string_view::npos) break;  // torn
        const std::string_view line = text.substr(begin, end + 1 - begin);
        if (belongs_before(line, resume_step)) kept.write(line.data(), line.size());
        begin = end + 1;
    }
    kept.commit();
}

}  // namespace

RunLog::RunLog(const std::string& path, std::optional<size_t> resume_step) : path_(path) {
    try {
        if (resume_step) drop_later_lines(path, *resume_step);
    } catch (const Error& e) {
        warn(e.what());
        return;
    }
    const int fresh = resume_step ? 0 : O_TRUNC;
    fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | fresh, 0666);
    if (fd_ < 0) warn(std::strerror(errno));
}

RunLog::~RunLog() {
    if (fd_ >= 0) close(fd_);
}

void RunLog::warn(const std::string& problem) {
    if (!warned_)
        std::fprintf(stderr, "warning: cannot write the log %s: %s; the run goes on without it\n",
                     in_quotes(path_).c_str(), problem.c_str());
    warned_ = true;
}

void RunLog::write(size_t step, const Fields& fields) {
    if (fd_ < 0) return;
    std::string line = "{\"step\": " + std::to_string(step);
    for (const auto& [name, value] : fields) line += ", " + json_text(Value(name)) + ": " + json_text(value);
    line += "}\n";
    const off_t before = lseek(fd_, 0, SEEK_END);
    const ssize_t done = ::write(fd_, line.data(), line.size());
    if (done == ssize_t(line.size())) return;
    const int error = done < 0 ? errno : ENOSPC;
    // A half-written line would spoil the next one, should there be space again.
    if (done > 0 && before >= 0) (void)!ftruncate(fd_, before);
    warn(std::strerror(error));
}
