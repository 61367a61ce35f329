#include "inference/info.h"

#include <cstdlib>

#include "io/json.h"

namespace tapernorm {

nlohmann::ordered_json info_json(const ModelFile& file) {
    const ModelInfo& info = file.info();
    const Config& c = info.config;
    nlohmann::ordered_json j = {{"model", file.path()},
                                {"foreign", file.foreign()},
                                {"n_layer", c.L},
                                {"n_head", c.NH},
                                {"n_embd", c.C},
                                {"n_positions", c.T},
                                {"vocab_size", c.V},
                                {"parameters", parameter_count(c)},
                                {"tokenizer", info.tokenizer.at("tokenizer")},
                                {"norm", norm_name(c.norm)},
                                {"norm_eps", c.eps},
                                {"gate_mode", gate_mode_name(c.mode)},
                                {"gate", info.gate},
                                {"folded", fold_name(c.fold)},
                                {"dtype", info.dtype}};
    if (!file.foreign()) j["step"] = info.step;
    if (c.bound > 0) j["bound"] = c.bound;
    if (c.bound > 0 && c.final_bound > 0) j["final_bound"] = c.final_bound;
    if (c.first_apart) j["first_positions"] = "apart";
    if (!info.content.empty()) j["content"] = info.content;
    j["provenance"] = nlohmann::ordered_json::array();
    if (!info.provenance.empty()) j["provenance"] = nlohmann::ordered_json::parse(info.provenance);
    if (info.provenance_refused) j["provenance_problem"] = kProvenanceRefused;
    return j;
}

std::string info_text(const ModelFile& file) {
    const ModelInfo& info = file.info();
    std::string text;
    const auto row = [&](const char* name, const std::string& value) {
        text += strprintf("%-10s%s\n", name, value.c_str());
    };
    row("file", printable(file.path()) + (file.foreign() ? ", in another program's format" : ""));
    row("model", describe(info));
    row("norms", strprintf("%s, epsilon %g; gate %.6g, folded: %s", norm_name(info.config.norm), info.config.eps,
                           info.gate, fold_name(info.config.fold)));
    row("numbers", strprintf("%zu, as %s", parameter_count(info.config), info.dtype.c_str()));
    if (!info.content.empty()) row("content", "checksum " + printable(info.content));
    if (!info.vocabulary_problem.empty()) row("note", printable(info.vocabulary_problem));
    if (info.provenance_refused) row("note", kProvenanceRefused);
    const std::string provenance = provenance_text(info.provenance);
    return text + (provenance.empty() ? "\nIts file does not say where it comes from.\n" : "\n" + provenance);
}

}  // namespace tapernorm
