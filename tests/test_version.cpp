#include <doctest/doctest.h>

#include "io/version.h"

namespace tapernorm {

TEST_CASE("version: the commit, the compiler, what was built in") {
    const std::string text = version_text();
    CHECK_MESSAGE(text.starts_with("commit "), text);
    CHECK(text.find("commit ,") == std::string::npos);
    CHECK(text.find('\n') == std::string::npos);
    for (const char* part : {__VERSION__, "built with", "CUDA", "MPI", "NCCL"})
        CHECK_MESSAGE(text.find(part) != std::string::npos, text, " / ", part);
#ifdef HAVE_PCRE2
    CHECK_MESSAGE(text.ends_with(", with PCRE2"), text);
#else
    CHECK_MESSAGE(text.ends_with(", without PCRE2"), text);
#endif
}

}  // namespace tapernorm
