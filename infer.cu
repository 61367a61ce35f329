// Runs a model: next-token probabilities, generated text, the loss of a text, speed, logits to a file. Takes any state
// of a model (normalized, tapered, folded) and says which it is.
//
//   ./infer folded.bin --last-token              the paper's mode: only the last position's logits are computed
//   ./infer folded.bin --prompt "Once" -n 300    generation with a KV cache
//   ./infer folded.bin --prompts lines.txt       the same for every line of a file, many at a time; JSON lines
//   ./infer folded.bin --eval text.txt           loss, perplexity, bits per byte
//   ./infer --bench --model d12                  speed, of random weights or of a model's (dev/bench_infer.cuh)
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/stories.h"
#include "dev/bench_infer.cuh"
#include "inference/decoder.cuh"
#include "inference/evaluate.cuh"
#include "inference/generate.cuh"
#include "inference/hellaswag.cuh"
#include "inference/sampler.h"
#include "io/options.h"
#include "io/tokenizer.h"
#include "model/model_file.h"
#include "runtime/device.h"
#include "runtime/exit_status.h"

namespace tapernorm::infer {

struct Settings {
    std::string model, prompt, tokens, prompts, eval, hellaswag, tokenizer, dump, shape,
        device = "auto", precision = "bf16", weights = "fp32", bench_protocol = "all";
    bool last_token = false, greedy = false, bench = false;
    size_t n = 256, top_k = 0, seed = 1, threads = 0, show = 8, batch = 16;
    size_t L = 12, NH = 12, C = 768, V = 50257;  // of random weights
    double temperature = 0.8, top_p = 1, bench_seconds = 2;

    WeightType weight_type() const {
        return weights == "int8" ? WeightType::int8 : weights == "bf16" ? WeightType::bf16 : WeightType::fp32;
    }
};

static Options make_options(Settings& s) {
    Options o("infer", "Runs a model written by train_gpt or fold.");
    o.section("Input");
    // clang-format off
    o.add({.long_name = "file", .to = &s.model, .metavar = "MODEL",
           .help = "model.bin or folded.bin, the folder of a Hugging Face GPT-2, or a checkpoint of llm.c", .optional = true});
    o.add({.short_name = "-p", .long_name = "--prompt", .to = &s.prompt, .metavar = "TEXT",
           .default_text = "a story's opening", .help = "text to go on from"});
    o.add({.long_name = "--tokens", .to = &s.tokens, .metavar = "IDS", .default_text = "none",
           .help = "token ids to go on from, such as 1,2,3, instead of a text"});
    o.add({.long_name = "--prompts", .to = &s.prompts, .metavar = "FILE", .default_text = "none",
           .help = "go on from every line of this file; writes one JSON object a line, the same texts as one by one"});
    o.add({.long_name = "--batch", .to = &s.batch, .metavar = "B", .range = {.low = 1, .high = 1024},
           .help = "prompts of --prompts at a time"});
    o.add({.long_name = "--eval", .to = &s.eval, .metavar = "FILE", .default_text = "none",
           .help = "the loss of this text: nats per token, perplexity, bits per byte"});
    o.add({.long_name = "--hellaswag", .to = &s.hellaswag, .metavar = "FILE", .default_text = "none",
           .help = "the scores of this file of HellaSwag's: llm.c's .bin or the original JSON lines"});
    o.add({.long_name = "--tokenizer", .to = &s.tokenizer, .metavar = "PATH", .default_text = "the model's own",
           .help = "bytes, a folder with vocab.json and merges.txt, or llm.c's gpt2_tokenizer.bin"});
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
    o.section("Benchmark");
    o.add({.long_name = "--bench", .to = &s.bench,
           .help = "time last-token logits and decoding in the states that the model's gate allows; without MODEL, in "
                   "all four, with random weights of these sizes:"});
    o.add({.short_name = "-e", .long_name = "--model", .to = &s.shape, .metavar = "dN", .default_text = "d12",
           .help = "a GPT-2 shape by depth, as in train_gpt"});
    o.add({.long_name = "--n-layer", .to = &s.L, .metavar = "L", .range = {.low = 1, .high = 1000}, .help = "blocks"});
    o.add({.long_name = "--n-head", .to = &s.NH, .metavar = "NH", .range = {.low = 1, .high = 1024},
           .help = "attention heads"});
    o.add({.long_name = "--n-embd", .to = &s.C, .metavar = "C", .range = {.low = 1, .high = 1 << 16},
           .help = "channels, a multiple of --n-head"});
    o.add({.long_name = "--vocab", .to = &s.V, .metavar = "V", .range = {.low = 1, .high = 1 << 20}, .help = "tokens"});
    o.add({.long_name = "--bench-protocol", .to = &s.bench_protocol, .choices = {"all", "last-token", "decoding"},
           .help = "which half of the table"});
    o.add({.long_name = "--bench-seconds", .to = &s.bench_seconds, .metavar = "X", .range = {.low = 0, .high = 3600},
           .help = "for each cell of the table: fewer repetitions than 50 where they take longer"});
    o.section("Run");
    o.add({.long_name = "--weights", .to = &s.weights, .choices = {"fp32", "bf16", "int8"},
           .help = "of the matrices on the CPU, converted while loading; int8 has a scale for each output channel; "
                   "--eval also says what bf16 and int8 change"});
    o.add({.long_name = "--device", .to = &s.device, .choices = {"auto", "cpu", "cuda"}, .help = "where to run"});
    o.add({.long_name = "--precision", .to = &s.precision, .choices = {"bf16", "fp32"},
           .help = "of weights and activations on a GPU; the CPU computes in fp32"});
    o.add({.long_name = "--threads", .to = &s.threads, .range = {.high = 1024}, .default_text = "all cores",
           .help = "CPU threads"});
    // clang-format on
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

// Fails where the model cannot take these tokens; what: "the prompt", for messages.
static void check_tokens(const Settings& s, const Config& c, const std::string& what, const std::vector<int>& tokens) {
    for (size_t i = 0; i < tokens.size(); i++)
        if (size_t(tokens[i]) >= c.V)
            fail("token %zu of %s: expected an id below the model's vocabulary (%zu), found %d", i, what.c_str(), c.V,
                 tokens[i]);
    if (tokens.size() > c.T)
        fail("%s has %zu tokens; %s has a context of %zu: shorten it", what.c_str(), tokens.size(), s.model.c_str(),
             c.T);
}

static const Tokenizer& require_tokenizer(const Settings& s, const ModelInfo& info,
                                          const std::optional<Tokenizer>& tokenizer) {
    if (!tokenizer)
        fail(
            "%s: its tokenizer (%s) is not in the file and no vocab.json lies beside it; give --tokenizer, or ids with "
            "--tokens",
            s.model.c_str(), info.tokenizer.at("tokenizer").c_str());
    return *tokenizer;
}

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
        p.text = options.given("--prompt") ? s.prompt : story_prompts()[0];
        const std::vector<uint16_t> ids = require_tokenizer(s, info, tokenizer).encode(p.text, true);
        p.tokens.assign(ids.begin(), ids.end());
        if (!options.given("--prompt") && ids.size() > info.config.T) {  // the opening that we chose, cut to fit
            p.tokens.resize(info.config.T);
            p.text = tokenizer->decode({ids.data(), info.config.T});
        }
        if (ids.empty()) fail("--prompt: expected at least one token, found an empty text");
    }
    check_tokens(s, info.config, "the prompt", p.tokens);
    return p;
}

// The lines of --prompts; the last one may end without a line feed.
static std::vector<Prompt> read_prompts(const Settings& s, const ModelInfo& info,
                                        const std::optional<Tokenizer>& tokenizer) {
    const MappedFile file(s.prompts);
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    std::vector<Prompt> prompts;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        std::string line(text.substr(at, end - at));
        if (line.ends_with('\r')) line.pop_back();
        const std::string what = strprintf("line %zu of %s", prompts.size() + 1, s.prompts.c_str());
        const std::vector<uint16_t> ids = require_tokenizer(s, info, tokenizer).encode(line, true);
        if (ids.empty()) fail("%s: expected a prompt, found an empty line", what.c_str());
        prompts.push_back({{ids.begin(), ids.end()}, line});
        check_tokens(s, info.config, what, prompts.back().tokens);
        at = end + 1;
    }
    if (prompts.empty()) fail("--prompts %s: expected one prompt a line, found an empty file", s.prompts.c_str());
    return prompts;
}

// Weights are finite (load_model), but numbers in between may still overflow.
[[noreturn]] static void fail_not_finite(const std::string& model) {
    fail("%s: its logits are not finite numbers; the file is damaged or its training diverged", model.c_str());
}
static void require_finite(const std::string& model, const std::vector<float>& logits) {
    if (!all_finite(logits.data(), logits.size())) fail_not_finite(model);
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

static Sampling sampling_of(const Settings& s) { return {s.greedy ? 0 : s.temperature, s.top_k, s.top_p, s.seed}; }

// What a sequence is fed after its newest token: that token; where the context is full, the second half of it, read again
// from position 0 on.
template <class Device, class Real>
TokenSpan next_span(Decoder<Device, Real>& decoder, size_t sequence, std::span<const int> tokens, size_t T) {
    size_t fresh = 1;
    if (decoder.length(sequence) == T) decoder.rewind(0, sequence), fresh = half_context(T);
    return {sequence, tokens.data() + tokens.size() - fresh, fresh};
}

// Streams n tokens after the prompt.
template <class Device, class Real>
void generate(const Settings& s, Decoder<Device, Real>& decoder, const Prompt& prompt, const Config& c,
              const std::optional<Tokenizer>& tokenizer) {
    std::vector<float> logits(s.dump.empty() ? c.V : prompt.tokens.size() * c.V);
    const auto prefill = std::chrono::steady_clock::now();
    decoder.feed(prompt.tokens.data(), prompt.tokens.size(), s.dump.empty() ? Logits::last : Logits::all,
                 logits.data());
    const double prefill_seconds = seconds_since(prefill);
    require_finite(s.model, logits);
    if (!s.dump.empty()) {
        dump_logits(s.dump, logits, c.V);
        logits.erase(logits.begin(), logits.end() - ptrdiff_t(c.V));
    }
    std::fwrite(prompt.text.data(), 1, prompt.text.size(), stdout);
    const size_t V = tokenizer ? std::min(c.V, tokenizer->vocab_size()) : c.V;
    const auto decode = std::chrono::steady_clock::now();
    Generator<Device, Real> generator(decoder);
    RecentTokens tokens(prompt.tokens, half_context(c.T));
    size_t done = 0;
    auto show = [&](size_t i, const int* token) {
        if (*token < 0) fail_not_finite(s.model);
        tokens.push(*token);
        const std::string text =
            tokenizer ? std::string(tokenizer->token(size_t(*token))) : strprintf(done + i == 0 ? "%d" : ",%d", *token);
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
    };
    while (done < s.n) {
        const size_t n = std::min(s.n - done, c.T - decoder.length() + 1);  // the context holds as many
        generator.generate(logits, V, n, sampling_of(s), done, show);
        done += n;
        if (done < s.n) decoder.feed({next_span(decoder, 0, tokens.all(), c.T)}, Logits::last, logits.data());
    }
    const double seconds = seconds_since(decode);
    std::printf("\n\nprompt %zu tokens in %.1f ms; %zu generated in %.2f s (%.2f ms per token)\n", prompt.tokens.size(),
                prefill_seconds * 1e3, s.n, seconds, seconds * 1e3 / double(std::max<size_t>(s.n, 1)));
}

// Every prompt as if it were alone, --batch of them at a time; one JSON object a line.
template <class Device, class Real>
void generate_all(const Settings& s, Decoder<Device, Real>& decoder, const std::vector<Prompt>& prompts,
                  const Config& c, const Tokenizer& tokenizer) {
    const size_t V = std::min(c.V, tokenizer.vocab_size());
    const auto start = std::chrono::steady_clock::now();
    Generator<Device, Real> generator(decoder);
    for (size_t first = 0; first < prompts.size(); first += s.batch) {
        const size_t B = std::min(s.batch, prompts.size() - first);
        std::vector<std::vector<int>> tokens;
        std::vector<TokenSpan> spans;
        std::vector<float> logits(B * c.V);
        for (size_t b = 0; b < B; b++) tokens.push_back(prompts[first + b].tokens);
        for (size_t b = 0; b < B; b++) decoder.rewind(0, b), spans.push_back({b, tokens[b].data(), tokens[b].size()});
        auto keep = [&](size_t, const int* next) {
            for (size_t b = 0; b < B; b++) {
                if (next[b] < 0) fail_not_finite(s.model);
                tokens[b].push_back(next[b]);
            }
        };
        for (size_t done = 0; done < s.n;) {
            decoder.feed(spans, Logits::last, logits.data());
            size_t n = s.n - done;  // or as many as every context holds
            for (size_t b = 0; b < B; b++) n = std::min(n, c.T - decoder.length(b) + 1);
            generator.generate(logits, V, n, sampling_of(s), done, keep);
            done += n;
            spans.clear();
            for (size_t b = 0; b < B && done < s.n; b++) spans.push_back(next_span(decoder, b, tokens[b], c.T));
        }
        for (size_t b = 0; b < B; b++) {
            const Prompt& p = prompts[first + b];
            const std::vector<uint16_t> ids(tokens[b].begin() + ptrdiff_t(p.tokens.size()), tokens[b].end());
            const nlohmann::ordered_json line = {{"prompt", p.text}, {"text", tokenizer.decode(ids)}, {"tokens", ids}};
            std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
        }
        std::fflush(stdout);
    }
    const double seconds = seconds_since(start);
    std::fprintf(stderr, "%zu prompts, %zu tokens generated in %.2f s (%.0f tokens/s)\n", prompts.size(),
                 prompts.size() * s.n, seconds, double(prompts.size() * s.n) / seconds);
}

// ---- the modes ------------------------------------------------------------------------------------------------------

// A model on its device.
template <class Device, class Real>
struct Engine {
    Device& dev;
    Cpu& cpu;
    const ModelInfo& info;
    const GptTensors<Real>& weights;
    const PackedModel* packed;

    Decoder<Device, Real> decoder(size_t sequences = 1) const {
        return {dev, info.config, weights, info.taper_scale, info.gate, sequences, packed};
    }
};

template <class Device, class Real>
void evaluate(const Settings& s, const Engine<Device, Real>& engine, const Tokenizer& tokenizer) {
    const MappedFile file(s.eval);
    const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
    const std::vector<uint16_t> ids = tokenizer.encode_parallel(text, true, engine.cpu.threads);
    if (ids.size() < 2) fail("--eval %s: expected a text of at least 2 tokens, found %zu", s.eval.c_str(), ids.size());
    const size_t bytes = text.size() - tokenizer.token(ids[0]).size();
    const Config& c = engine.info.config;
    const std::vector<int> tokens(ids.begin(), ids.end());
    auto decoder = engine.decoder();
    const auto start = std::chrono::steady_clock::now();
    const Evaluation e = evaluate_tokens(engine.cpu, decoder, c, tokens);
    const double seconds = seconds_since(start);
    require_finite(s.model, {float(e.loss())});
    std::printf("text      %s: %zu tokens, %zu bytes; windows of %zu tokens\n", s.eval.c_str(), ids.size(), text.size(),
                c.T);
    std::printf("loss      %.6f nats per token, perplexity %.4f, %.6f bits per byte; %.0f tokens/s\n", e.loss(),
                std::exp(e.loss()), e.loss_sum / std::log(2.0) / double(bytes), double(e.predicted) / seconds);
    if constexpr (std::is_same_v<Device, Cpu>)
        if (engine.packed->type != WeightType::fp32) {
            const PackedModel exact(engine.cpu, c, engine.weights, WeightType::fp32);
            const ModelInfo& info = engine.info;
            Decoder<Cpu, float> reference(engine.cpu, c, engine.weights, info.taper_scale, info.gate, 1, &exact);
            const double loss = evaluate_tokens(engine.cpu, reference, c, tokens).loss();
            std::printf("          with fp32 weights %.6f: --weights %s changes it by %+.6f (%+.4f%%)\n", loss,
                        s.weights.c_str(), e.loss() - loss, 100 * (e.loss() - loss) / loss);
        }
}

template <class Device, class Real>
void bench(const Settings& s, const Engine<Device, Real>& engine) {
    const Config& c = engine.info.config;
    const size_t matrices = c.V * c.C + 12 * c.C * c.C * c.L;
    const double bytes = engine.packed ? double(engine.packed->bytes()) : double(matrices * sizeof(Real));
    InferenceBench<Device, Real>({engine.dev, engine.cpu, c, engine.weights, engine.packed, engine.info.taper_scale,
                                  bytes},
                                 bench_states(c, engine.info.gate, s.model.empty()), s.bench_seconds)
        .run(s.bench_protocol);
}

// What the mode reads besides the model; checked before anything is computed.
struct Inputs {
    std::optional<Tokenizer> tokenizer;
    Prompt prompt;
    std::vector<Prompt> prompts;
    std::vector<Choice> choices;
};

template <class Device, class Real>
void run(const Settings& s, const Engine<Device, Real>& engine, const Inputs& in) {
    const Config& c = engine.info.config;
    if (s.bench) return bench(s, engine);
    if (!s.eval.empty()) return evaluate(s, engine, *in.tokenizer);
    auto decoder = engine.decoder(s.prompts.empty() ? 1 : std::min(s.batch, in.prompts.size()));
    if (!s.prompts.empty()) return generate_all(s, decoder, in.prompts, c, *in.tokenizer);
    if (!s.hellaswag.empty()) {
        std::printf("hellaswag %s\n", evaluate_hellaswag(decoder, in.choices, c.V).text().c_str());
        return;
    }
    if (s.last_token) return last_token(s, decoder, in.prompt, c, in.tokenizer);
    std::printf("\n");
    generate(s, decoder, in.prompt, c, in.tokenizer);
}

#ifdef TN_CUDA
template <class Real>
void run_on_gpu(const Settings& s, Cpu& cpu, HostModel& model, const Inputs& in) {
    Cuda cuda;
    cuda.memory_hint = "use fewer sequences at a time, --precision bf16 or --device cpu";
    const DeviceWeights<Cuda, Real> weights(cuda, model.info.config, model.tensors);
    run<Cuda, Real>(s, {cuda, cpu, model.info, weights.tensors, nullptr}, in);
}
#endif

static void check_flags(const Settings& s, const Options& o) {
    std::vector<const char*> modes;
    for (const char* flag : {"--bench", "--eval", "--hellaswag", "--prompts", "--last-token"})
        if (o.given(flag)) modes.push_back(flag);
    if (modes.size() > 1) fail("%s and %s: expected one of them, found both", modes[0], modes[1]);
    for (const char* flag : {"--model", "--n-layer", "--n-head", "--n-embd", "--vocab"}) {
        if (!o.given(flag)) continue;
        if (!s.bench || !s.model.empty())
            fail("%s: a size of random weights; expected --bench without a MODEL, found %s", flag,
                 s.bench ? s.model.c_str() : "no --bench");
        if (std::string(flag).starts_with("--n-") && o.given("--model"))
            fail("--model and %s: expected one of them, found both", flag);
    }
    if (s.model.empty() && !s.bench)
        fail("the argument MODEL is missing: model.bin or folded.bin; or --bench with random weights (see --help)");
    for (const char* flag : {"--prompt", "--tokens", "--dump"})
        if (o.given(flag) && (s.bench || !s.eval.empty() || !s.hellaswag.empty() || !s.prompts.empty()))
            fail("%s and %s: expected one of them, found both", flag, modes[0]);
    std::error_code ignored;
    if (std::filesystem::equivalent(s.dump, s.model, ignored))
        fail("--dump: %s is the model; expected another name", s.dump.c_str());
    if (!s.dump.empty()) check_writable(s.dump);
}

// Random weights of the sizes that the flags say, as a model whose taper has just begun: with the vectors of all states.
static std::unique_ptr<HostModel> random_model(Cpu& cpu, Settings& s) {
    if (!s.shape.empty()) set_shape_by_depth(s.shape, s.L, s.NH, s.C);
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

[[maybe_unused]] static int run_program(int argc, char** argv) {
    signal(SIGXFSZ, SIG_IGN);  // a limit of file sizes (ulimit -f) is then an error of the write
    Settings s;
    Options options = make_options(s);
    if (!options.parse(argc, argv)) return 0;
    const DeviceChoice choice = choose_device(s.device);
    check_flags(s, options);
    if (choice.cuda && options.given("--weights"))
        fail(
            "--weights %s: of the matrices on the CPU; expected --device cpu with it, found a GPU (which has --precision)",
            s.weights.c_str());
    Cpu cpu{int(s.threads)};
    const std::unique_ptr<HostModel> model = s.model.empty() ? random_model(cpu, s) : load_model(cpu, s.model);
    const ModelInfo& info = model->info;
    Inputs in;
    try {
        if (s.tokenizer.empty()) in.tokenizer = Tokenizer::from_metadata(info.tokenizer, s.model);
    } catch (const Error&) {
        // Ids still work; a prompt of text says what is missing.
    }
    if (!s.tokenizer.empty()) in.tokenizer = Tokenizer::from_path(s.tokenizer);
    if (!s.hellaswag.empty())
        in.choices = read_hellaswag(s.hellaswag, in.tokenizer, info.config.V, info.config.T);
    else if (!s.prompts.empty())
        in.prompts = read_prompts(s, info, in.tokenizer);
    else if (!s.eval.empty())
        require_tokenizer(s, info, in.tokenizer);
    else if (!s.bench)
        in.prompt = read_prompt(s, options, info, in.tokenizer);
    std::fprintf(s.prompts.empty() ? stdout : stderr, "model     %s: %s\ndevice    %s\n",
                 s.model.empty() ? "random weights" : s.model.c_str(), describe(info).c_str(),
                 choice.cuda ? strprintf("cuda: %s, %s", choice.why.c_str(), s.precision.c_str()).c_str()
                             : strprintf("%s; %s weights", describe(cpu, choice).c_str(), s.weights.c_str()).c_str());
    if (!choice.cuda) {
        const PackedModel packed(cpu, info.config, model->tensors, s.weight_type());
        run<Cpu, float>(s, {cpu, cpu, info, model->tensors, &packed}, in);
    }
#ifdef TN_CUDA
    if (choice.cuda && s.precision == "fp32") run_on_gpu<float>(s, cpu, *model, in);
    if (choice.cuda && s.precision == "bf16") run_on_gpu<bf16>(s, cpu, *model, in);
#endif
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) fail("cannot write to the standard output: is its disk full?");
    return 0;
}

}  // namespace tapernorm::infer

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    return tapernorm::exit_status("infer", [&] { return tapernorm::infer::run_program(argc, argv); });
}
#endif
