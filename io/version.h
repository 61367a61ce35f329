// What --version prints.
#pragma once
#include <string>

namespace tapernorm {

std::string version_text();

}  // namespace tapernorm
