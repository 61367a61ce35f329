// What all ranks of a run must have in common, so that they compute one update: every setting that is not marked as a
// rank's own in the table of flags, what is in the files, and the parameters.
#pragma once
#include <vector>

#include "train/ranks/ranks.h"
#include "train/start.h"

namespace tapernorm::train {

// Defined by the trainer (train_gpt.cu), whose members the functions below read.
template <class Device, class Real>
struct Trainer;

// Known before any corpus is opened.
std::vector<Fact> common_settings(const Settings& s, const Start& start);

std::vector<Fact> common_data(const Run& run);

// Stops all ranks unless they have the same parameters. Before a checkpoint that replaces a good one, too: ranks whose numbers
// drift apart, by a fault of a machine or between two kinds of them, would print the loss of other models than the saved one.
template <class Device, class Real>
void check_parameters(Trainer<Device, Real>& t, std::vector<Fact> facts, const char* hint) {
    if (t.model.ranks.size == 1) return;
    const double squares = sum_of_squares(t.model.dev, static_cast<const Real*>(t.model.param_memory.data()),
                                          t.model.param_memory.bytes() / sizeof(Real));
    facts.push_back({"updates done", std::to_string(t.step)});
    facts.push_back(
        {strprintf("sum of the squares of the parameters after update %zu", t.step), strprintf("%.17g", squares)});
    t.model.ranks.agree(facts, hint);
}

template <class Device, class Real>
void check_drift(Trainer<Device, Real>& t) {
    check_parameters(t, {},
                     "the ranks have drifted apart, by a faulty device or network or unlike devices; nothing was "
                     "saved since the last checkpoint, from which -y resumes");
}

}  // namespace tapernorm::train
