// How fast a model runs: last-token logits and decoding, in every state that its gate allows, as one table. What is measured
// and how: dev/bench_infer.cuh.
//
//   make bench_infer
//   ./bench_infer folded.bin                      a model's own weights
//   ./bench_infer --model d12 --weights int8      random weights of any size, all five states
#include "dev/bench_infer.cuh"

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>

#include "dev/bench_shape.h"
#include "io/options.h"
#include "runtime/exit_status.h"
#include "train/shape.h"

namespace tapernorm::bench {

struct Settings {
    std::string model, shape, protocol = "all";
    size_t L = 12, NH = 12, C = 768, V = 50257, seed = 1;  // for random weights
    double seconds = 2;
    EngineSettings engine;
};

static Options make_options(Settings& s) {
    Options o("bench_infer",
              "Compares the speed of a model's states (normalized, tapered, folded): last-token logits and decoding.");
    // clang-format off
    o.section("Model");
    o.add({.long_name = "file", .to = &s.model, .metavar = "MODEL",
           .help = "time the states that this model's gate allows; without it, all five states of a model with random "
                   "weights, of the size that these flags set", .optional = true});
    add_shape_options(o, s.shape, s.L, s.NH, s.C, s.V);
    o.add({.long_name = "--seed", .to = &s.seed, .help = "seed of the random weights"});
    o.section("Measurement");
    o.add({.long_name = "--protocol", .to = &s.protocol, .choices = {"all", "last-token", "decoding"},
           .help = "which rows of the table to measure"});
    o.add({.long_name = "--seconds", .to = &s.seconds, .metavar = "X", .range = {.low = 0, .high = 3600},
           .help = "repeat each measurement up to 50 times, for at most this long"});
    add_engine_options(o, s.engine);
    // clang-format on
    return o;
}

static void check_flags(const Settings& s, const Options& o) {
    for (const char* flag : {"--model", "--n-layer", "--n-head", "--n-embd", "--vocab", "--seed"}) {
        if (o.given(flag) && !s.model.empty())
            fail("%s: applies to random weights only; expected no MODEL with it, found %s", flag, s.model.c_str());
    }
}

// Random weights of the sizes that the flags say, as a model whose taper has just begun: with the vectors of all states.
static std::unique_ptr<HostModel> random_model(Cpu& cpu, const Settings& s) {
    if (s.C % s.NH) fail("--n-embd: expected a multiple of --n-head (%zu), found %zu", s.NH, s.C);
    ModelInfo info;
    info.tokenizer = {{"tokenizer", "none"}};
    info.config.V = s.V, info.config.T = 1024, info.config.L = s.L, info.config.NH = s.NH, info.config.C = s.C;
    auto model = std::make_unique<HostModel>(cpu, info);
    uint64_t stream = 0;
    for (const Tensor<float>& t : tensor_list(info.config, model->tensors)) {
        // Normal(0, std) by its first three moments, quickly: a sum of uniform numbers from one hash.
        parallel_ranges(cpu, t.spec.count(), 1 << 16, [&](size_t i, size_t end, int) {
            for (; i < end; i++) {
                const uint64_t bits = random_bits(s.seed, stream, i);
                const double sum = double(bits & 0xffff) + double(bits >> 16 & 0xffff) + double(bits >> 32 & 0xffff) +
                                   double(bits >> 48);
                t.data[i] = float(t.spec.init.constant + t.spec.init.std * (sum / 65535 - 2) * std::sqrt(3.0));
            }
        });
        stream++;
    }
    return model;
}

static int run_program(int argc, char** argv) {
    Settings s;
    Options options = make_options(s);
    if (!options.parse(argc, argv)) return 0;
    const DeviceChoice choice = choose_device(s.engine, options);
    check_flags(s, options);
    set_shape(options, s.shape, s.L, s.NH, s.C);
    Cpu cpu{int(s.engine.threads)};
    const std::unique_ptr<HostModel> model = s.model.empty() ? random_model(cpu, s) : load_model(cpu, s.model);
    const std::string name = s.model.empty() ? "random weights" : s.model;
    const ModelInfo& info = model->info;
    std::printf("model     %s: %s\ndevice    %s\n", printable(name).c_str(), describe(info).c_str(),
                describe(s.engine, cpu, choice).c_str());
    with_engine(s.engine, choice, cpu, name, *model, [&]<class Device, class Real>(const Engine<Device, Real>& engine) {
        InferenceBench<Device, Real>(engine, bench_states(info.config, info.gate, s.model.empty()), s.seconds,
                                     s.engine.persistent)
            .run(s.protocol);
    });
    return 0;
}

}  // namespace tapernorm::bench

int main(int argc, char** argv) {
    tapernorm::start_program();
    return tapernorm::exit_status("bench_infer", [&] { return tapernorm::bench::run_program(argc, argv); });
}
