// The pages under dev/guides point to code by name: what they name must be there.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <regex>
#include <sstream>
#include <string>

namespace tapernorm {

namespace {

std::string contents(const std::filesystem::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("guides: every `file: name` and every link leads somewhere") {
    const std::filesystem::path root = std::filesystem::path(__FILE__).parent_path().parent_path();
    const std::regex named("`([a-z_/]+\\.[a-z]+): ([A-Za-z_:]+)`((, `[A-Za-z_:]+`)*)"), link("\\]\\(([^)#:]+)\\)");
    size_t seen = 0;
    for (const auto& page : std::filesystem::directory_iterator(root / "dev" / "guides")) {
        const std::string text = contents(page.path());
        INFO(page.path().string());
        for (std::sregex_iterator m(text.begin(), text.end(), named), end; m != end; ++m) {
            const std::string file = (*m)[1], more = (*m)[3], source = contents(root / file);
            INFO(file);
            CHECK_MESSAGE(!source.empty(), "no such file");
            std::string names = (*m)[2].str() + more;
            for (char& c : names)
                if (c == '`' || c == ',') c = ' ';
            std::istringstream words(names);
            for (std::string name; words >> name; seen++) {
                const size_t member = name.rfind(':');  // Struct::member: the member
                const std::string last = member == std::string::npos ? name : name.substr(member + 1);
                CHECK_MESSAGE(source.find(last) != std::string::npos, name, " is not there");
            }
        }
        for (std::sregex_iterator m(text.begin(), text.end(), link), end; m != end; ++m, seen++)
            CHECK_MESSAGE(std::filesystem::exists(page.path().parent_path() / (*m)[1].str()), (*m)[1].str(),
                          " is not there");
    }
    CHECK(seen > 20);
}

}  // namespace tapernorm
