#include "train/run_log.h"

#include <unistd.h>

#include <charconv>
#include <cmath>
#include <string_view>

#include "io/atomic_file.h"
#include "io/json.h"
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

bool belongs_before(std::string_view line, size_t resume_step) {
    const json record = parse_json(line);
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

RunLog::RunLog(const std::string& path, std::optional<size_t> resume_step) : file_(path, "log") {
    try {
        if (resume_step) drop_later_lines(path, *resume_step);
    } catch (const Error& e) {
        file_.warn(e.what());
        return;
    }
    file_.open(!resume_step);
}

void RunLog::write(size_t step, const Fields& fields) {
    std::string line = "{\"step\": " + std::to_string(step);
    for (const auto& [name, value] : fields) line += ", " + json_text(Value(name)) + ": " + json_text(value);
    file_.append(line + "}\n");
}

}  // namespace tapernorm::train
