// What a program says to the person at a terminal: a line that is overwritten in place, times, commands to paste.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "runtime/error.h"

namespace tapernorm {

// "7s", "3m05s", "2h10m".
inline std::string duration(double seconds) {
    const long s = std::lround(seconds);
    if (s < 60) return strprintf("%lds", s);
    if (s < 3600) return strprintf("%ldm%02lds", s / 60, s % 60);
    return strprintf("%ldh%02ldm", s / 3600, s / 60 % 60);
}

// A path as one word of a command to paste into a shell.
inline std::string shell_word(const std::string& path) {
    auto plain = [](unsigned char c) { return std::isalnum(c) || std::strchr("/._-+,=@%:", c); };
    if (std::all_of(path.begin(), path.end(), plain)) return path;
    std::string word = "'";
    for (char c : path) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return word + "'";
}

// The last line of stdout, overwritten in place on a terminal. Elsewhere only lines to keep are printed.
class LiveLine {
  public:
    // terminal: false where stdout looks like a terminal and is none (mpirun's does, always).
    explicit LiveLine(bool terminal) : terminal_(terminal && isatty(STDOUT_FILENO)) {}
    LiveLine(const LiveLine&) = delete;
    LiveLine& operator=(const LiveLine&) = delete;
    ~LiveLine() {
        if (open_) std::printf("\n");
    }

    bool terminal() const { return terminal_; }

    // keep: the next line goes below this one, not over it.
    void show(const std::string& text, bool keep) {
        if (!keep && !terminal_) return;
        std::printf("%s%s%s", terminal_ ? "\r\033[K" : "", text.c_str(), keep ? "\n" : "");
        std::fflush(stdout);
        open_ = !keep;
    }

  private:
    bool terminal_, open_ = false;
};

}  // namespace tapernorm
