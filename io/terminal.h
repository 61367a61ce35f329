// What a program says to the person at a terminal: a progress line that is overwritten in place, times, commands to paste.
#pragma once
#include <sys/ioctl.h>
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
#include "runtime/exit_status.h"

namespace tapernorm {

// "7s", "3m05s", "2h10m".
inline std::string duration(double seconds) {
    const long s = std::lround(seconds);
    if (s < 60) return strprintf("%lds", s);
    if (s < 3600) return strprintf("%ldm%02lds", s / 60, s % 60);
    return strprintf("%ldh%02ldm", s / 3600, s / 60 % 60);
}

// A path as one word of a command, to be pasted into a shell. Where it holds what must not reach a terminal, in the quotes
// of bash, zsh and ksh that know \xNN.
inline std::string shell_word(const std::string& path) {
    auto plain = [](unsigned char c) { return c < 128 && (std::isalnum(c) || (c && std::strchr("/._-+,=@%:", c))); };
    if (path.starts_with('-')) return shell_word(std::string("./").append(path));  // else it would be a flag
    if (!path.empty() && std::all_of(path.begin(), path.end(), plain)) return path;
    const bool is_printable = printable(path) == path;
    std::string word;
    for (char c : path)
        if (is_printable)
            word += c == '\'' ? std::string("'\\''") : std::string(1, c);
        else
            word += plain(static_cast<unsigned char>(c)) ? std::string(1, c) : escaped_byte(c);
    return (is_printable ? "'" : "$'") + word + "'";
}

// What a model or a user wrote, on standard output: printable on a terminal (line feeds and tabs stay), and every byte as it is
// in a file or a pipe.
class TextOutput {
  public:
    void write(std::string_view piece) {
        if (terminal_)
            put(pieces_.add(piece));
        else
            put(piece);
        std::fflush(stdout);
    }
    void end() {
        put(pieces_.rest());
        line_is_open = false;
    }

  private:
    void put(std::string_view text) const {
        std::fwrite(text.data(), 1, text.size(), stdout);
        if (terminal_ && !text.empty()) line_is_open = text.back() != '\n';
    }

    const bool terminal_ = isatty(STDOUT_FILENO);
    PrintablePieces pieces_;
};

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
        const std::string shown = printable(text, "\n\t");
        std::fprintf(stream_, "%s%s%s", terminal_ ? "\r\033[K" : "",
                     keep ? shown.c_str() : shown.substr(0, bytes_that_fit(shown)).c_str(), keep ? "\n" : "");
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
    // How much of a line the terminal shows in one row: of a longer one, only the last row would be overwritten. It ends before a
    // " | ", where there is one: half a number would be another number.
    size_t bytes_that_fit(std::string_view text) const {
        struct winsize size{};
        if (ioctl(fileno(stream_), TIOCGWINSZ, &size) != 0 || size.ws_col < 2) return text.size();
        size_t columns = 0, at = 0;
        for (; at < text.size(); at++)
            if ((text[at] & 0xc0) != 0x80 && ++columns == size.ws_col) break;  // the last column stays free
        const size_t bar = at < text.size() ? text.rfind(" | ", at) : text.npos;
        return bar == text.npos ? at : bar;
    }

    using Clock = std::chrono::steady_clock;
    std::FILE* stream_;
    bool terminal_, open_ = false;
    Clock::time_point start_ = Clock::now();
    double shown_ = -1;
    std::mutex mutex_;
};

}  // namespace tapernorm
