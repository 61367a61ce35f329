#include "train/run_log.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <string_view>

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

// Whether a line says what was at `resume_step` or before. (The line that says whose the log is is written again where none stays.)
bool stays(std::string_view line, size_t resume_step) {
    const json record = parse_json(line);
    if (!record.is_object()) return false;
    const auto step = record.find("step");
    return step != record.end() && step->is_number_unsigned() && step->get<uint64_t>() <= resume_step;
}

// Cuts off the lines after the last one of `resume_step` or before, however long the log is.
void drop_later_lines(const std::string& path, size_t resume_step) {
    if (access(path.c_str(), F_OK) != 0) return;
    size_t end = 0;
    {
        const MappedFile file(path, FileUse::own);
        const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
        for (end = text.rfind('\n') + 1; end > 0;) {  // what follows the last line break is torn
            const size_t begin = end > 1 ? text.rfind('\n', end - 2) + 1 : 0;
            if (stays(text.substr(begin, end - begin), resume_step)) break;
            end = begin;
        }
        if (end == text.size()) return;
    }
    if (truncate(path.c_str(), off_t(end)) != 0) fail("could not shorten it: %s", std::strerror(errno));
}

}  // namespace

RunLog::RunLog(const std::string& path, std::optional<size_t> resume_step, const std::string& run)
    : file_(path, "log") {
    try {
        if (resume_step) drop_later_lines(path, *resume_step);
    } catch (const Error& e) {
        file_.warn(e.what());
        return;
    }
    file_.open(!resume_step);
    if (!run.empty() && file_.empty()) file_.append("{\"run\": " + json_text(run) + "}\n");
}

std::string run_of_log(const std::string& path) {
    if (access(path.c_str(), F_OK) != 0) return "";
    const MappedFile file(path, FileUse::own);
    const std::string_view start(reinterpret_cast<const char*>(file.data()), std::min<size_t>(file.size(), 256));
    const json record = parse_json(start.substr(0, start.find('\n')));
    const auto run = record.is_object() ? record.find("run") : record.end();
    return run != record.end() && run->is_string() ? run->get<std::string>() : "";
}

void RunLog::write(size_t step, const Fields& fields) {
    std::string line = "{\"step\": " + std::to_string(step);
    for (const auto& [name, value] : fields) line += ", " + json_text(Value(name)) + ": " + json_text(value);
    file_.append(line + "}\n");
}

}  // namespace tapernorm::train
