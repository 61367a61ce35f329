#include "model/provenance.h"

#include <algorithm>
#include <ctime>
#include <filesystem>

#include "io/json.h"
#include "io/version.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr size_t kLongest = 1 << 20;  // hundreds of steps

std::string dumped(const ordered_json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// "2026-11-28T18:05:00Z"
std::string utc_now() {
    const std::time_t now = std::time(nullptr);
    std::tm utc{};
    gmtime_r(&now, &utc);
    char text[32];
    return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc)};
}

ordered_json as_json(const Source& source) {
    ordered_json j = {{"name", source.name}};
    if (source.tokens) j["tokens"] = source.tokens;
    if (!source.checksum.empty()) j["checksum"] = source.checksum;
    return j;
}

ordered_json as_json(const Session& s) {
    return {{"after_update", s.after_update}, {"version", s.version}, {"device", s.device}, {"ranks", s.ranks}};
}

ordered_json as_json(const ProvenanceStep& step) {
    ordered_json j = {{"program", step.program}, {"version", version_text()}, {"date", utc_now()}};
    if (step.updates) j["updates"] = step.updates, j["tokens"] = step.tokens;
    if (const auto& v = step.validation)
        j["validation"] = {{"loss", v->loss}, {"update", v->update}, {"tokens", v->tokens}};
    if (step.model) j["model"] = as_json(*step.model);
    if (step.train) j["train"] = as_json(*step.train);
    if (step.val) j["val"] = as_json(*step.val);
    // Objects and lists are made as such: a null one that becomes one when something is put into it ends the program where memory
    // ends just then (nlohmann 3.11).
    ordered_json settings = ordered_json::object(), sessions = ordered_json::array();
    for (const auto& [name, value] : step.settings) settings[name] = value;
    for (const Session& session : step.sessions) sessions.push_back(as_json(session));
    if (!settings.empty()) j["settings"] = std::move(settings);
    if (!sessions.empty()) j["sessions"] = std::move(sessions);
    return j;
}

// Discarded where it cannot be read.
ordered_json parsed_steps(const std::string& provenance) {
    if (provenance.size() > kLongest || parse_json(provenance).is_discarded())
        return ordered_json(ordered_json::value_t::discarded);
    const ordered_json steps = ordered_json::parse(provenance, nullptr, false);
    const bool good = steps.is_array() && std::all_of(steps.begin(), steps.end(), [](const ordered_json& step) {
                          return step.is_object() && step.contains("program") && step["program"].is_string();
                      });
    return good ? steps : ordered_json(ordered_json::value_t::discarded);
}

ordered_json steps_of(const std::string& provenance) {
    const ordered_json steps = parsed_steps(provenance);
    return steps.is_discarded() ? ordered_json::array() : steps;
}

std::string text_in(const ordered_json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

size_t count_in(const ordered_json& object, const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_unsigned() ? found->get<size_t>() : 0;
}

// {"a": 1, "b": "c"} -> "a 1, b c"
std::string flat(const ordered_json& value) {
    if (value.is_string()) return printable(value.get<std::string>());
    if (!value.is_structured()) return printable(dumped(value));
    std::string text;
    for (const auto& [key, item] : value.items())
        text += (text.empty() ? "" : ", ") + (value.is_object() ? printable(key) + " " : "") + flat(item);
    return text;
}

// A fact as lines of at most about 120 columns, its name in a column of its own.
std::string fact(const std::string& name, const std::string& text) {
    constexpr size_t kColumn = 12, kWidth = 108;
    std::string lines = "  " + printable(name);
    lines.resize(std::max(lines.size() + 1, kColumn), ' ');
    size_t begin = 0;
    while (text.size() - begin > kWidth) {
        const size_t comma = text.rfind(", ", begin + kWidth);
        if (comma == text.npos || comma <= begin) break;
        lines += text.substr(begin, comma + 1 - begin) + "\n" + std::string(kColumn, ' ');
        begin = comma + 2;
    }
    return lines + text.substr(begin) + "\n";
}

}  // namespace

void ProvenanceStep::add_session(const Session& s) {
    const bool same = !sessions.empty() && sessions.back().version == s.version && sessions.back().device == s.device &&
                      sessions.back().ranks == s.ranks;
    if (!same) sessions.push_back(s);
}

std::string add_step(const std::string& earlier, const ProvenanceStep& step) {
    ordered_json steps = steps_of(earlier);
    steps.push_back(as_json(step));
    // What would be too long for a reader loses its oldest steps.
    while (steps.size() > 1 && dumped(steps).size() > kLongest) steps.erase(0);
    return dumped(steps);
}

std::string read_provenance(const std::map<std::string, std::string>& metadata, bool* refused) {
    const auto found = metadata.find("provenance");
    const bool none = found == metadata.end() || found->second.empty();
    const ordered_json steps = none ? ordered_json::array() : parsed_steps(found->second);
    if (refused) *refused = steps.is_discarded();
    return steps.is_discarded() || steps.empty() ? "" : found->second;
}

std::string without_last_step(const std::string& provenance, ProvenanceStep& last) {
    ordered_json steps = steps_of(provenance);
    if (steps.empty()) return "";
    const ordered_json step = steps.back();
    steps.erase(steps.size() - 1);
    if (step.contains("model") && step["model"].is_object())
        last.model = {text_in(step["model"], "name"), text_in(step["model"], "checksum")};
    if (step.contains("sessions") && step["sessions"].is_array())
        for (const ordered_json& s : step["sessions"])
            if (s.is_object())
                last.add_session({count_in(s, "after_update"), text_in(s, "version"), text_in(s, "device"),
                                  int(std::min<size_t>(count_in(s, "ranks"), 1 << 20))});
    return steps.empty() ? "" : dumped(steps);
}

size_t validated_update(const std::string& provenance) {
    const ordered_json steps = steps_of(provenance);
    if (steps.empty() || !steps.back().contains("validation")) return 0;
    const ordered_json& validation = steps.back()["validation"];
    return validation.is_object() ? count_in(validation, "update") : 0;
}

std::string provenance_text(const std::string& provenance) {
    std::string text;
    for (const ordered_json& step : steps_of(provenance)) {
        text += printable(text_in(step, "program") + ", " + text_in(step, "date") + ", " + text_in(step, "version"));
        text += "\n";
        for (const auto& [key, value] : step.items()) {
            if (key == "program" || key == "date" || key == "version") continue;
            if (value.is_array())
                for (const ordered_json& item : value) text += fact(key, flat(item));
            else
                text += fact(key, flat(value));
        }
    }
    return text;
}

std::string name_without_folder(const std::string& path) {
    const std::filesystem::path p(path);
    return (p.has_filename() ? p : p.parent_path()).filename().string();
}

}  // namespace tapernorm
