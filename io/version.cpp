#include "io/version.h"

namespace tapernorm {

std::string version_text() { return "unknown"; }

}  // namespace tapernorm
