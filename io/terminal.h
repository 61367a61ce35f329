// What a program says to the person at a terminal: a progress line that is overwritten in place, times, commands to paste.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <mutex>
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

// A path as one word of a command, to be pasted into a shell.
inline std::string shell_word(const std::string& path) {
    auto plain = [](unsigned char c) { return std::isalnum(c) || std::strchr("/._-+,=@%:", c); };
    if (std::all_of(path.begin(), path.end(), plain)) return path;
    std::string word = "'";
    for (char c : path) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return word + "'";
}

// The last line of a stream, overwritten in place on a terminal. Elsewhere only lines to keep are printed.
class LiveLine {
  public:
    // terminal: false where the stream looks like a terminal and is none (mpirun's always does).
    explicit LiveLine(bool terminal = true, std::FILE* stream = stdout)
        : stream_(stream), terminal_(terminal && isatty(fileno(stream))) {}
    LiveLine(const LiveLine&) = delete;
    LiveLine& operator=(const LiveLine&) = delete;
    ~LiveLine() {
        if (open_) std::fprintf(stream_, "\n");
    }

    bool terminal() const { return terminal_; }
    double seconds() const {
        return std::chrono::duration<double>(Clock::now() - start_).count();
    }  // since it was made

    // keep: the next line goes below this one, not over it.
    void show(const std::string& text, bool keep) {
        if (!keep && !terminal_) return;
        std::fprintf(stream_, "%s%s%s", terminal_ ? "\r\033[K" : "", text.c_str(), keep ? "\n" : "");
        std::fflush(stream_);
        open_ = !keep;
    }

    // Shows the text that make_text returns, at most ten times per second; may be called by several threads.
    template <class MakeText>
    void update(MakeText&& make_text) {
        if (!terminal_) return;
        const std::lock_guard lock(mutex_);
        if (seconds() < shown_ + 0.1) return;
        shown_ = seconds();
        show(make_text(), false);
    }

  private:
    using Clock = std::chrono::steady_clock;
    std::FILE* stream_;
    bool terminal_, open_ = false;
    Clock::time_point start_ = Clock::now();
    double shown_ = -1;
    std::mutex mutex_;
};

}  // namespace tapernorm
