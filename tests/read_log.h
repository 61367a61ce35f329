// Reads the logs of runs: the lines of their updates, behind the one that says which run it is.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/run_program.h"

namespace tapernorm {

inline std::vector<nlohmann::json> read_log(const std::string& path) {
    std::vector<nlohmann::json> lines;
    std::istringstream in(read_file(path));
    for (std::string line; std::getline(in, line);) {
        nlohmann::json record = nlohmann::json::parse(line);
        if (record.contains("step")) lines.push_back(std::move(record));
    }
    return lines;
}

// What is the same in every run.
inline std::vector<nlohmann::json> log_without_times(const Workplace& w) {
    auto log = read_log(w.at("model.log.jsonl"));
    for (auto& line : log) line.erase("tokens_per_second");
    return log;
}

}  // namespace tapernorm
