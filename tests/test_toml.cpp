// Files of settings: the part of TOML that they need.
#include <doctest/doctest.h>

#include "io/toml.h"
#include "runtime/error.h"

namespace tapernorm {

namespace {

std::string value_of(const std::string& text) {
    const std::vector<TomlEntry> entries = read_toml("key = " + text);
    REQUIRE(entries.size() == 1);
    CHECK(entries[0].key == "key");
    return entries[0].value;
}

std::string error_of(const std::string& text) {
    try {
        read_toml(text);
    } catch (const Error& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("toml: keys, values, comments") {
    const auto entries =
        read_toml("# comment\n\n lr=0.5\r\n\tgate-mode = 'taper' # why\n_2 = \"a # b\"#c\nflag = true");
    REQUIRE(entries.size() == 4);
    CHECK((entries[0].key == "lr" && entries[0].value == "0.5" && entries[0].line == 3));
    CHECK((entries[1].key == "gate-mode" && entries[1].value == "taper" && entries[1].line == 4));
    CHECK((entries[2].key == "_2" && entries[2].value == "a # b" && entries[2].line == 5));
    CHECK((entries[3].key == "flag" && entries[3].value == "true" && entries[3].line == 6));
    CHECK(read_toml("").empty());
    CHECK(value_of("-1e-3") == "-1e-3");
    CHECK(value_of("''") == "");
    CHECK(value_of(R"('C:\new "x"')") == R"(C:\new "x")");
    CHECK(value_of(R"("a\"b\\c\td\n\u0041\u00e9\u20ac\U0001F600")") == "a\"b\\c\td\nA\u00e9\u20ac\U0001F600");
}

TEST_CASE("toml: strings read back as they were written") {
    for (const std::string text : {"", "plain", "a b", "a = b # c", "\"q\" and 'q'", "back\\slash\\n", "[x, y]", "100%",
                                   "tab\tline\nend\r", "\x01\x1f\x7f", "\u00e9\u20ac", "\xff\xfe"})
        CHECK(value_of(toml_string(text)) == text);
    CHECK(toml_string("a\"\\\n\x01") == R"("a\"\\\n\u0001")");
}

TEST_CASE("toml: errors name the line") {
    CHECK(error_of("a = 1\nb") == "line 2: expected KEY = VALUE, found 'b'");
    CHECK(error_of("[section]") == "line 1: expected KEY = VALUE, found '[section]'");
    CHECK(error_of("a.b = 1") == "line 1: expected KEY = VALUE, found 'a.b = 1'");
    CHECK(error_of("a b = 1") != "");
    CHECK(error_of("= 1") != "");
    CHECK(error_of("a = 1\n# c\na = 2") == "line 3: a: expected one value, found another in line 1");
    for (const std::string bad :
         {"", "# c", "\"open", "'open", "\"open\\\"", "[1, 2]", "{}", "1 2", "\"a\" b", "\"a\"\"b\"", "\"\\x\"",
          "\"\\u12\"", "\"\\u12zz\"", "\"\\u0000\"", "\"\\U00110000\"", "\"\\", "5'"}) {
        INFO(bad);
        CHECK(error_of("k = " + bad).starts_with("line 1: k: expected a number, true, false or a string in quotes"));
    }
}

}  // namespace tapernorm
