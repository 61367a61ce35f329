// Runs a model: next-token probabilities, generated text, logits to a file. Takes any state of a model (normalized,
// tapered, folded) and says which it is.
//
//   ./infer folded.bin --last-token              the paper's mode: only the last position's logits are computed
//   ./infer folded.bin --prompt "Once" -n 300    generation with a KV cache
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/stories.h"
#include "io/options.h"
#include "io/tokenizer.h"
#include "model/decoder.cuh"
#include "model/model_file.h"
#include "model/sampler.h"
#include "runtime/device.h"

struct Settings {
    std::string model, prompt, tokens, dump, device = "auto", precision = "bf16";
    bool last_token = false, greedy = false;
    size_t n = 256, top_k = 0, seed = 1, threads = 0, show = 8;
    double temperature = 0.8, top_p = 1;
};

static Options make_options(Settings& s) {
    Options o("infer", "Runs a model written by train_gpt or fold.");
    o.section("Input");
    o.add({.long_name = "model", .to = &s.model, .metavar = "MODEL", .help = "model.bin or folded.bin"});
    o.add({.short_name = "-p", .long_name = "--prompt", .to = &s.prompt, .metavar = "TEXT",
           .default_text = "a story's opening", .help = "text to go on from"});
    o.add({.long_name = "--tokens", .to = &s.tokens, .metavar = "IDS", .default_text = "none",
           .help = "token ids to go on from, such as 1,2,3, instead of a text"});
    o.section("Output");
    o.add({.long_name = "--last-token", .to = &s.last_token,
           .help = "only the next token's probabilities, from the last position's logits"});
    o.add({.long_name = "--show", .to = &s.show, .metavar = "K", .range = {.low = 1},
           .help = "how many of the next tokens --last-token prints"});
    o.add({.short_name = "-n", .long_name = "--generate", .to = &s.n, .metavar = "N", .help = "tokens to generate"});
    o.add({.long_name = "--dump", .to = &s.dump, .metavar = "FILE", .default_text = "none",
           .help = "write the prompt's logits [rows, V] to a safetensors file: one row with --last-token, else all"});
    o.section("Sampling");
    o.add({.long_name = "--temperature", .to = &s.temperature, .range = {.low = 0, .high = 100}, .help = "0 is greedy"});
    o.add({.long_name = "--top-k", .to = &s.top_k, .metavar = "K", .default_text = "all",
           .help = "sample from the K most probable tokens"});
    o.add({.long_name = "--top-p", .to = &s.top_p, .metavar = "P", .range = {.low = 0, .high = 1},
           .help = "sample from the most probable tokens that together reach P"});
    o.add({.long_name = "--greedy", .to = &s.greedy, .help = "always the most probable token"});
    o.add({.long_name = "--seed", .to = &s.seed, .help = "of the samples"});
    o.section("Run");
    o.add({.long_name = "--device", .to = &s.device, .choices = {"auto", "cpu", "cuda"}, .help = "where to run"});
    o.add({.long_name = "--precision", .to = &s.precision, .choices = {"bf16", "fp32"},
           .help = "of weights and activations on a GPU; the CPU uses fp32"});
    o.add({.long_name = "--threads", .to = &s.threads, .range = {.high = 1024}, .default_text = "all cores",
           .help = "CPU threads"});
    return o;
}

static std::vector<int> parse_tokens(const std::string& list) {
    std::vector<int> tokens;
    for (const char *p = list.data(), *end = p + list.size();;) {
        int id = 0;
        const auto [after, error] = std::from_chars(p, end, id);
        if (error != std::errc() || id < 0 || (after != end && *after != ','))
            fail("--tokens: expected ids such as 1,2,3, found \"%s\"", list.c_str());
        tokens.push_back(id);
        if (after == end) return tokens;
        p = after + 1;
    }
}

// A token's bytes for a report: quoted, unprintable ones escaped.
static std::string token_text(const std::optional<Tokenizer>& tokenizer, int id) {
    if (!tokenizer || size_t(id) >= tokenizer->vocab_size()) return "";
    std::string text = "\"";
    for (char c : tokenizer->token(size_t(id))) {
        if (c == '\n')
            text += "\\n";
        else if (c == '"' || c == '\\')
            text += std::string("\\") + c;
        else if (static_cast<unsigned char>(c) < 32 || c == 127)
            text += strprintf("\\x%02x", unsigned(static_cast<unsigned char>(c)));
        else
            text += c;
    }
    return text + "\"";
}

static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Prompt {
    std::vector<int> tokens;
    std::string text;  // empty where --tokens gave ids and there is no vocabulary
};

static Prompt read_prompt(const Settings& s, const Options& options, const ModelInfo& info,
                          const std::optional<Tokenizer>& tokenizer) {
    Prompt p;
    if (!s.tokens.empty()) {
        if (options.given("--prompt")) fail("--tokens and --prompt: expected one of them, found both");
        p.tokens = parse_tokens(s.tokens);
        if (tokenizer)
            for (int id : p.tokens)
                if (size_t(id) < tokenizer->vocab_size()) p.text += tokenizer->token(size_t(id));
    } else {
        if (!tokenizer)
            fail("%s: its tokenizer (%s) is not in the file and no vocab.json lies beside it; give ids with --tokens",
                 s.model.c_str(), info.tokenizer.at("tokenizer").c_str());
        p.text = options.given("--prompt") ? s.prompt : story_prompts()[0];
        const std::vector<uint16_t> ids = tokenizer->encode(p.text, true);
        p.tokens.assign(ids.begin(), ids.end());
        if (!options.given("--prompt") && ids.size() > info.config.T) {  // the opening that we chose, cut to fit
            p.tokens.resize(info.config.T);
            p.text = tokenizer->decode({ids.data(), info.config.T});
        }
        if (ids.empty()) fail("--prompt: expected at least one token, found an empty text");
    }
    const Config& c = info.config;
    for (size_t i = 0; i < p.tokens.size(); i++)
        if (size_t(p.tokens[i]) >= c.V)
            fail("token %zu of the prompt: expected an id below the model's vocabulary (%zu), found %d", i, c.V,
                 p.tokens[i]);
    if (p.tokens.size() > c.T)
        fail("the prompt has %zu tokens; %s has a context of %zu: shorten it", p.tokens.size(), s.model.c_str(), c.T);
    return p;
}

// Weights are finite (load_model), but numbers in between may still overflow.
static void require_finite(const std::string& model, const std::vector<float>& logits) {
    if (!std::all_of(logits.begin(), logits.end(), [](float z) { return std::isfinite(z); }))
        fail("%s: its logits are not finite numbers; the file is damaged or its training diverged", model.c_str());
}

static void dump_logits(const std::string& path, const std::vector<float>& logits, size_t V) {
    write_safetensors(path, {}, {{"logits", Dtype::F32, {logits.size() / V, V}, logits.data()}});
    std::printf("logits    %s: [%zu, %zu]\n", path.c_str(), logits.size() / V, V);
}

// Next-token probabilities of the prompt, and the rate of this mode: the whole prompt again for every answer.
template <class Device, class Real>
void last_token(const Settings& s, Decoder<Device, Real>& decoder, const Prompt& prompt, const Config& c,
                const std::optional<Tokenizer>& tokenizer) {
    std::vector<float> logits(c.V);
    auto pass = [&] {
        const auto start = std::chrono::steady_clock::now();
        decoder.rewind(0);
        decoder.feed(prompt.tokens.data(), prompt.tokens.size(), Logits::last, logits.data());
        return seconds_since(start);
    };
    std::vector<double> times;
    const auto start = std::chrono::steady_clock::now();
    pass();
    require_finite(s.model, logits);
    do times.push_back(pass());
    while (times.size() < 50 && seconds_since(start) < 1);
    std::nth_element(times.begin(), times.begin() + ptrdiff_t(times.size() / 2), times.end());
    const double median = times[times.size() / 2];
    std::printf("prompt    %zu tokens: %s\n\nnext token, by probability:\n", prompt.tokens.size(),
                prompt.text.empty() ? s.tokens.c_str() : prompt.text.c_str());
    const auto next = candidates(logits.data(), c.V, {.temperature = 1, .top_k = std::min(s.show, c.V)});
    double top = logits[size_t(next[0].token)], sum = 0;
    for (float z : logits) sum += std::exp(double(z) - top);
    for (const TokenProbability& t : next)
        std::printf("  %6.2f%%  %6d  %s\n", 100 * std::exp(double(logits[size_t(t.token)]) - top) / sum, t.token,
                    token_text(tokenizer, t.token).c_str());
    std::printf("\nlast-token mode: %.0f tokens/s (%.3f ms for %zu tokens, median of %zu)\n",
                double(prompt.tokens.size()) / median, median * 1e3, prompt.tokens.size(), times.size());
    if (!s.dump.empty()) dump_logits(s.dump, logits, c.V);
}

// Streams n tokens after the prompt. When the context is full, the second half of it is read again at its start.
template <class Device, class Real>
void generate(const Settings& s, Decoder<Device, Real>& decoder, const Prompt& prompt, const Config& c,
              const std::optional<Tokenizer>& tokenizer) {
    const Sampling sampling{s.greedy ? 0 : s.temperature, s.top_k, s.top_p, s.seed};
    std::vector<int> tokens = prompt.tokens;
    std::vector<float> logits(s.dump.empty() ? c.V : tokens.size() * c.V);
    const auto prefill = std::chrono::steady_clock::now();
    decoder.feed(tokens.data(), tokens.size(), s.dump.empty() ? Logits::last : Logits::all, logits.data());
    const double prefill_seconds = seconds_since(prefill);
    require_finite(s.model, logits);
    if (!s.dump.empty()) {
        dump_logits(s.dump, logits, c.V);
        logits.erase(logits.begin(), logits.end() - ptrdiff_t(c.V));
    }
    std::fwrite(prompt.text.data(), 1, prompt.text.size(), stdout);
    const size_t V = tokenizer ? std::min(c.V, tokenizer->vocab_size()) : c.V;
    const auto decode = std::chrono::steady_clock::now();
    for (size_t i = 0; i < s.n; i++) {
        tokens.push_back(sample(logits.data(), V, sampling, i));
        const std::string text = tokenizer ? std::string(tokenizer->token(size_t(tokens.back())))
                                           : strprintf(i ? ",%d" : "%d", tokens.back());
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
        if (i + 1 == s.n) break;
        size_t fresh = 1;
        if (decoder.length() == c.T) decoder.rewind(0), fresh = std::max<size_t>(1, c.T / 2);
        decoder.feed(tokens.data() + tokens.size() - fresh, fresh, Logits::last, logits.data());
        require_finite(s.model, logits);
    }
    const double seconds = seconds_since(decode);
    std::printf("\n\nprompt %zu tokens in %.1f ms; %zu generated in %.2f s (%.2f ms per token)\n", prompt.tokens.size(),
                prefill_seconds * 1e3, s.n, seconds, seconds * 1e3 / double(std::max<size_t>(s.n, 1)));
}

template <class Device, class Real>
void run(const Settings& s, Device& dev, const GptTensors<Real>& weights, const ModelInfo& info, const Prompt& prompt,
         const std::optional<Tokenizer>& tokenizer) {
    Decoder<Device, Real> decoder(dev, info.config, weights, info.taper_scale, info.gate);
    if (s.last_token) return last_token(s, decoder, prompt, info.config, tokenizer);
    std::printf("\n");
    generate(s, decoder, prompt, info.config, tokenizer);
}

#ifdef TN_CUDA
template <class Real>
void run_on_gpu(const Settings& s, HostModel& model, const Prompt& prompt, const std::optional<Tokenizer>& tokenizer) {
    Cuda cuda;
    const DeviceWeights<Cuda, Real> weights(cuda, model.info.config, model.tensors);
    run<Cuda, Real>(s, cuda, weights.tensors, model.info, prompt, tokenizer);
}
#endif

[[maybe_unused]] static int run_program(int argc, char** argv) {
    signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes (ulimit -f) is then an error of the write
    Settings s;
    Options options = make_options(s);
    if (!options.parse(argc, argv)) return 0;
    const DeviceChoice choice = choose_device(s.device);
    std::error_code ignored;
    if (std::filesystem::equivalent(s.dump, s.model, ignored))
        fail("--dump: %s is the model; expected another name", s.dump.c_str());
    if (!s.dump.empty()) check_writable(s.dump);
    Cpu cpu{int(s.threads)};
    const std::unique_ptr<HostModel> model = load_model(cpu, s.model);
    const ModelInfo& info = model->info;
    std::optional<Tokenizer> tokenizer;
    try {
        tokenizer = Tokenizer::from_metadata(info.tokenizer, s.model);
    } catch (const Error&) {
        // Ids still work; a prompt of text says what is missing.
    }
    const Prompt prompt = read_prompt(s, options, info, tokenizer);
    std::printf("model     %s: %s\ndevice    %s\n", s.model.c_str(), describe(info).c_str(),
                choice.cuda ? strprintf("cuda: %s, %s", choice.why.c_str(), s.precision.c_str()).c_str()
                            : describe(cpu, choice).c_str());
    if (!choice.cuda) run<Cpu, float>(s, cpu, model->tensors, info, prompt, tokenizer);
#ifdef TN_CUDA
    if (choice.cuda && s.precision == "fp32") run_on_gpu<float>(s, *model, prompt, tokenizer);
    if (choice.cuda && s.precision == "bf16") run_on_gpu<bf16>(s, *model, prompt, tokenizer);
#endif
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) fail("cannot write to the standard output: is its disk full?");
    return 0;
}

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    try {
        return run_program(argc, argv);
    } catch (const std::exception& error) {
        std::fflush(stdout);
        std::fprintf(stderr, "infer: error: %s\n", error.what());
        return 1;
    }
}
#endif
