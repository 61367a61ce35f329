#include "train/agreement.h"

#include <algorithm>

#include "io/version.h"

namespace tapernorm::train {

std::vector<Fact> common_settings(const Settings& s, const Start& start) {
    std::vector<Fact> facts = {{"the program", version_text()}};
    Settings shown = s;
    for (const auto& [name, value] : make_options(shown).common()) facts.push_back({name, value});
    // What follows from others comes last: the first difference is named.
    const std::vector<std::string> dependent = flags_with_dependent_defaults();
    std::stable_partition(facts.begin(), facts.end(), [&](const Fact& fact) {
        const std::string& name = fact.name;
        return std::ranges::count(dependent, name.substr(0, name.find(' '))) == 0;
    });
    facts.push_back({"--val (-j)", s.val.empty() ? "none" : "a file"});
    std::string checksum;
    if (start.state) checksum = state_metadata(*start.state, "checksum");
    facts.push_back({"the checksum of the state to resume", checksum});
    return facts;
}

std::vector<Fact> common_data(const Run& run) {
    std::vector<Fact> facts = {{"tokens in the vocabulary", std::to_string(run.config.V)},
                               {"epsilon of the norms", strprintf("%.9g", double(run.config.eps))}};
    facts.push_back({"--train (-i), its tokens", corpus_text(run.corpus)});
    facts.push_back({"--val (-j), its tokens", corpus_text(run.val_corpus)});
    facts.push_back({"a checksum of --distill's teacher", run.teacher_sum});
    return facts;
}

}  // namespace tapernorm::train
