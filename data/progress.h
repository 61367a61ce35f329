// Progress on stderr: a line that renews itself on a terminal, the last one alone elsewhere.
#pragma once
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <mutex>
#include <string>

namespace tapernorm::prepare {

class Progress {
  public:
    double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

    // From any thread; shown at most ten times a second.
    template <class MakeText>
    void update(MakeText&& make_text) {
        if (!terminal_) return;
        const std::lock_guard lock(mutex_);
        if (seconds() < shown_ + 0.1) return;
        shown_ = seconds();
        std::fprintf(stderr, "\r%s\033[K", std::string(make_text()).c_str());
    }

    void finish(const std::string& text) const {
        std::fprintf(stderr, "%s%s%s\n", terminal_ ? "\r" : "", text.c_str(), terminal_ ? "\033[K" : "");
    }

  private:
    using Clock = std::chrono::steady_clock;
    Clock::time_point start_ = Clock::now();
    double shown_ = -1;
    bool terminal_ = isatty(STDERR_FILENO);
    std::mutex mutex_;
};

}  // namespace tapernorm::prepare
