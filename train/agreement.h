// What all ranks of a run must have in common, so that they compute one update: every setting that is not marked as a
// rank's own in the table of flags, what is in the files, and the parameters.
#pragma once
#include <type_traits>
#include <vector>

#include "io/checksum.h"
#include "train/ranks/ranks.h"
#include "train/start.h"
#include "train/trainer.h"

namespace tapernorm::train {

// Known before any corpus is opened.
std::vector<Fact> common_settings(const Settings& s, const Start& start);

std::vector<Fact> common_data(const Run& run);

// Of every bit of the parameters, in the order of the table.
template <class Model>
uint64_t parameter_checksum(Model& model) {
    Checksum sum;
    for (const auto& t : tensor_list(model.config, model.params)) {
        std::vector<std::remove_const_t<std::remove_pointer_t<decltype(t.data)>>> values(t.spec.count());
        const size_t bytes = values.size() * sizeof(values[0]);
        device_copy_out(model.dev, values.data(), t.data, bytes);
        sum.add(values.data(), bytes);
    }
    return sum.value();
}

// Stops all ranks unless they have the same parameters: at the start, at every validation and before a checkpoint replaces a good
// one. Ranks that drift apart, by a faulty machine or by unlike ones, would print the loss of other models than the saved one.
template <class Device, class Real>
void check_parameters(Trainer<Device, Real>& t, std::vector<Fact> facts, const char* hint) {
    if (t.model.ranks.size == 1) return;
    facts.push_back({"updates done", std::to_string(t.step)});
    facts.push_back({strprintf("a checksum of the parameters after update %zu", t.step), checksum_text(parameter_checksum(t.model))});
    t.model.ranks.agree(facts, hint);
}

template <class Device, class Real>
void check_drift(Trainer<Device, Real>& t) {
    check_parameters(t, {},
                     "the ranks have drifted apart, by a faulty device or network or unlike devices; nothing was "
                     "saved since the last checkpoint, from which -y resumes");
}

}  // namespace tapernorm::train
