// Values of settings as text and back to the same bits: numbers, the ranges they are from, lengths, yes or no.
#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/error.h"

namespace tapernorm {

// A number of updates: absolute (100) or a fraction of the run (5%).
struct Length {
    double value = 0;  // updates, or a fraction in [0, 1]
    bool is_fraction = false;

    // In updates. A fraction is rounded to the nearest, but one above 0% is at least 1.
    size_t resolve(size_t total) const {
        if (!is_fraction) return size_t(value);
        return value > 0 ? std::max<size_t>(1, size_t(std::llround(value * double(total)))) : 0;
    }
    std::string text() const;  // "100", "5%"
};

inline Length updates(size_t count) { return {double(count), false}; }
inline Length fraction_of_run(double fraction) { return {fraction, true}; }

// Each from_text says whether the whole text is such a value. Numbers are decimal, without blanks or a plus sign.
inline bool from_text(std::string_view text, auto& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
}
inline bool from_text(std::string_view text, std::string& value) { return value = text, !text.empty(); }
inline bool from_text(std::string_view text, bool& value) { return value = text == "true", value || text == "false"; }
inline bool from_text(std::string_view text, Length& length) {
    size_t count = 0;
    double percent = -1;
    length.is_fraction = text.ends_with('%');
    if (length.is_fraction && !from_text(text.substr(0, text.size() - 1), percent)) return false;
    if (!length.is_fraction && !from_text(text, count)) return false;
    length.value = length.is_fraction ? percent / 100 : double(count);
    return !length.is_fraction || (percent >= 0 && percent <= 100);
}

inline std::string to_text(const std::string& value) { return value; }
inline std::string to_text(bool value) { return value ? "yes" : "no"; }
inline std::string to_text(const Length& value) { return value.text(); }
inline std::string to_text(auto whole) { return std::to_string(whole); }
inline std::string to_text(double x) {
    const std::string shortened = strprintf("%g", x);
    return std::strtod(shortened.c_str(), nullptr) == x ? shortened : strprintf("%.17g", x);
}

inline std::string Length::text() const {
    std::string text = strprintf("%.0f", value);
    Length read;
    for (int digits = 6; is_fraction && digits <= 17; digits++) {  // the fewest that read back to the same fraction
        text = strprintf("%.*g%%", digits, value * 100);
        if (from_text(text, read) && read.value == value) break;
    }
    return text;
}

struct Range {
    double low = -std::numeric_limits<double>::infinity(), high = std::numeric_limits<double>::infinity();
    bool low_open = false, high_open = false;  // whether the border itself is excluded

    bool contains(const std::string&) const { return true; }
    bool contains(const Length& x) const { return x.is_fraction || contains(x.value); }
    bool contains(auto number) const {
        const double x = double(number);
        return std::isfinite(x) && (low_open ? x > low : x >= low) && (high_open ? x < high : x <= high);
    }
    std::string text() const {  // " from 0 to 2", " of at least 0 and below 1"
        std::string text;
        if (std::isfinite(low) && std::isfinite(high) && !low_open && !high_open)
            return " from " + to_text(low) + " to " + to_text(high);
        if (std::isfinite(low)) text += (low_open ? " above " : " of at least ") + to_text(low);
        if (std::isfinite(low) && std::isfinite(high)) text += " and";
        if (std::isfinite(high)) text += (high_open ? " below " : " of at most ") + to_text(high);
        return text;
    }
};

inline std::string joined(const std::vector<std::string>& items, const char* between) {
    std::string text;
    for (const std::string& item : items) text += (text.empty() ? "" : between) + item;
    return text;
}

// "; did you mean X?" for the name that is nearest to the one found, at its beginning or as a whole; "" where none is near.
inline std::string suggestion(std::string_view found, const std::vector<std::string>& names) {
    const auto distance = [&](std::string_view name) {  // between what the two begin with and what they end with
        std::string_view rest = found;
        while (!rest.empty() && !name.empty() && rest.front() == name.front())
            rest.remove_prefix(1), name.remove_prefix(1);
        while (!rest.empty() && !name.empty() && rest.back() == name.back())
            rest.remove_suffix(1), name.remove_suffix(1);
        return std::max(rest.size(), name.size());
    };
    const size_t letters = found.size() - std::min(found.size(), found.find_first_not_of('-'));
    size_t limit = std::min<size_t>(2, letters / 2) + 1;
    std::string nearest;
    for (const std::string& name : names)
        for (const size_t length : {name.size(), found.size()})
            if (const size_t d = distance(std::string_view(name).substr(0, length)); d < limit)
                limit = d, nearest = "; did you mean " + name + "?";
    return nearest;
}

}  // namespace tapernorm
