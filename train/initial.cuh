// What models begin with: random numbers, or those of a file; and --distill's teacher, which keeps the file's.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "runtime/random.h"
#include "train/trainer.h"

namespace tapernorm::train {

// GPT-2's initial values. Each number depends on the seed, the tensor's name and its place alone: models that share a
// tensor start with the same values in it.
template <class Device, class Real>
void initialize(Gpt<Device, Real>& model, uint64_t seed) {
    using Scalar = Acc<Real>;
    model.set_parameters([&](const TensorSpec& t, std::vector<Scalar>& values) {
        uint64_t stream = 0;
        for (char c : t.name) stream = mix64(stream ^ uint64_t(static_cast<unsigned char>(c)));
        std::fill(values.begin(), values.end(), Scalar(t.init.constant));
        if (t.init.std > 0) {
            auto fill = [&](size_t i, size_t end, int) {
                for (; i < end; i++) values[i] = Scalar(t.init.std * random_normal(seed, stream, i));
            };
            if constexpr (std::is_same_v<Device, Cpu>)
                parallel_ranges(model.dev, values.size(), 4096, fill);
            else
                parallel_ranges(Cpu(), values.size(), 4096, fill);
        }
        return true;
    });
}

// --init: every tensor that a model with all its norms has, by read(row of the table, numbers); sites that will taper get
// their scaling branch at the taper start.
template <class Device, class Real, class Read>
void initialize_from(Gpt<Device, Real>& model, Read&& read) {
    model.set_parameters([&](const TensorSpec& t, std::vector<Acc<Real>>& values) {
        if (t.name.find(".taper_") != std::string::npos) return false;
        read(t, values.data());
        return true;
    });
}

// Gives the trainer a teacher: a model of its sizes with all norms, by read(row of the table, numbers).
template <class Device, class Real, class Read>
void hire_teacher(Trainer<Device, Real>& t, Read&& read) {
    const Gpt<Device, Real>& model = t.model;
    Config config = model.config;
    config.mode = GateMode::norm;
    t.teacher = std::make_unique<Gpt<Device, Real>>(model.dev, config, model.B, model.T, 2, false, single_rank(), false,
                                                    t.settings.logits_rows);
    initialize_from(*t.teacher, read);
    t.teacher->begin_sums();  // its forward pass adds to them, and nobody reads them
}

// Lets it see the batch that the model uses.
template <class Device, class Real>
void ask_teacher(Trainer<Device, Real>& t) {
    t.teacher->use_batch({t.model.act.tokens, t.model.act.targets});
    t.teacher->forward({}, 0);
}

}  // namespace tapernorm::train
