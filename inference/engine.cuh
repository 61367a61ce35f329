// A finished model on the device that runs it, and the options that say which device and how.
#pragma once
#include <string>

#include "inference/decoder.cuh"
#include "inference/packed_model.h"
#include "io/options.h"
#include "model/model_file.h"
#include "runtime/device.h"

namespace tapernorm {

template <class Device, class Real>
struct Engine {
    Device& dev;
    Cpu& cpu;
    const std::string& name;  // the model's file, for messages
    const ModelInfo& info;
    const GptTensors<Real>& weights;
    const PackedModel* packed;  // the matrices as the CPU reads them; null on a GPU

    Decoder<Device, Real> decoder(size_t sequences = 1) const {
        return {dev, info.config, weights, info.scales, info.gate, sequences, packed};
    }
};

struct EngineSettings {
    std::string device = "auto", precision = "bf16", weights = "fp32";
    bool persistent = false;
    size_t threads = 0;
};

inline void add_engine_options(Options& o, EngineSettings& s) {
    // clang-format off
    o.section("Run");
    o.add({.long_name = "--weights", .to = &s.weights, .choices = {"fp32", "bf16", "int8"},
           .help = "data type of the weight matrices on the CPU, converted while loading (int8: one quantization step per "
                   "output channel; what they are multiplied with is rounded to int8, too, in groups of 128)"});
    o.add({.long_name = "--device", .to = &s.device, .choices = {"auto", "cpu", "cuda"},
           .help = "where to run; auto: on the GPU if there is one"});
    o.add({.long_name = "--precision", .to = &s.precision, .choices = {"bf16", "fp32"},
           .help = "precision of weights and activations on a GPU; the CPU computes in fp32"});
    o.add({.long_name = "--persistent", .to = &s.persistent,
           .help = "generate on a GPU with one kernel per token, for up to 4 texts at a time of heads of up to 64 numbers; their "
                   "logits differ by rounding (off until a GPU has shown that it is faster)"});
    o.add({.long_name = "--threads", .to = &s.threads, .range = {.high = kMostThreads}, .default_text = "the cores it may use",
           .help = "number of CPU threads"});
    // clang-format on
}

// The device that --device chooses; fails where the other options do not fit it.
inline DeviceChoice choose_device(const EngineSettings& s, const Options& o) {
    const DeviceChoice choice = choose_device("--device", s.device);
    if (choice.cuda && o.given("--weights"))
        fail(
            "--weights %s: sets the data type on the CPU; expected --device cpu with it, found a GPU (which has "
            "--precision)",
            s.weights.c_str());
    if (!choice.cuda && s.persistent)
        fail("--persistent: expected a GPU, found none (%s); leave it out", choice.why.c_str());
    return choice;
}

// "cuda: NVIDIA H100, bf16", "cpu: 8 threads, AVX-512; built without CUDA; int8 weights"
inline std::string describe(const EngineSettings& s, const Cpu& cpu, const DeviceChoice& choice) {
    if (choice.cuda) return strprintf("cuda: %s, %s", choice.why.c_str(), s.precision.c_str());
    return strprintf("%s; %s weights", describe(cpu, choice).c_str(), s.weights.c_str());
}

#ifdef TN_CUDA
template <class Real, class Use>
void with_gpu_engine(Cpu& cpu, const std::string& name, HostModel& model, Use&& use) {
    Cuda cuda(0, "use fewer sequences at a time, --precision bf16 or --device cpu");
    const DeviceWeights<Cuda, Real> weights(cuda, model.info.config, model.tensors);
    use(Engine<Cuda, Real>{cuda, cpu, name, model.info, weights.tensors, nullptr});
}
#endif

// Calls use(Engine) with the model on the chosen device, in the number type that the settings ask for.
template <class Use>
void with_engine(const EngineSettings& s, [[maybe_unused]] const DeviceChoice& choice, Cpu& cpu,
                 const std::string& name, HostModel& model, Use&& use) {
#ifdef TN_CUDA
    if (choice.cuda)
        return s.precision == "fp32" ? with_gpu_engine<float>(cpu, name, model, use)
                                     : with_gpu_engine<bf16>(cpu, name, model, use);
#endif
    with_team(cpu, [&] {
        const PackedModel packed(cpu, model.info.config, model.tensors, weight_type_from(s.weights));
        use(Engine<Cpu, float>{cpu, cpu, name, model.info, model.tensors, &packed});
    });
}

}  // namespace tapernorm
