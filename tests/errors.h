// What tests of error messages share.
#pragma once
#include <string>
#include <string_view>

#include "runtime/error.h"

namespace tapernorm {

// The message of the Error that f throws; "" if it throws none.
template <class F>
std::string error_of(F&& f) {
    try {
        f();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

}  // namespace tapernorm
