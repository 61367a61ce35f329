// How many threads steps with barriers are given while other programs run, too.
#pragma once
#include <algorithm>
#include <cstddef>

namespace tapernorm {

// At a barrier all wait for the last. Beside another program that is a thread which shares its core, at every barrier for a time slice of
// the scheduler, and fewer threads, each with a core of its own, are faster. How many are is found by trying, a window of steps at a
// time: where they waited for kHeldUp of a window, fewer and fewer until they do not; else one more, up to all. A try that was not
// faster is taken back, and comes again later and later. On a machine that does nothing else there is none.
class StepThreads {
  public:
    explicit StepThreads(size_t most) : most_(std::max<size_t>(most, 1)), count_(most_) {}

    // For the next step.
    size_t count() const { return count_; }

    // After a step: how long it took, and how long its threads waited, on average of all but one.
    void took(double seconds, double waited) {
        steps_++, seconds_ += seconds, waited_ += waited;
        if (seconds_ < kWindow) return;
        const double step = seconds_ / double(steps_);
        const bool held_up = waited_ > kHeldUp * seconds_;
        steps_ = 0, seconds_ = waited_ = 0;
        if (tried_ && held_up && count_ > 1 && count_ < tried_from_) {
            count_ -= fewer();
        } else if (tried_) {
            const bool better = step < before_;
            pause_ = better ? kFirst : std::min(2 * pause_, kLatest);
            if (!better) count_ = tried_from_;
            tried_ = false, windows_ = 0;
        } else if (++windows_ >= pause_ && (held_up ? count_ > 1 : count_ < most_)) {
            before_ = step, tried_from_ = count_, tried_ = true;
            held_up ? count_ -= fewer() : count_++;
        }
    }

  private:
    // A window has some time slices of the scheduler, a few milliseconds each, so that it does not miss what they cost.
    static constexpr double kWindow = 0.02, kHeldUp = 0.25;
    static constexpr size_t kFirst = 4, kLatest = 64;  // windows between tries

    size_t fewer() const { return std::max<size_t>(count_ / 8, 1); }

    size_t most_, count_, tried_from_ = 0, steps_ = 0, windows_ = kFirst, pause_ = kFirst;
    double seconds_ = 0, waited_ = 0, before_ = 0;
    bool tried_ = false;
};

}  // namespace tapernorm
