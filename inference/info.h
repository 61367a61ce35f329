// What `infer MODEL --info` says of a model, from its file alone.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "model/model_file.h"

namespace tapernorm {

// One object: what the model is under the names that its metadata has for it, and "provenance", a list (model/provenance.h).
nlohmann::ordered_json info_json(const ModelFile& file);

// The same for people.
std::string info_text(const ModelFile& file);

}  // namespace tapernorm
