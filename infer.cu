// Runs a model: next-token probabilities, generated text, the loss of a text, logits to a file. Takes a model in any state
// (normalized, tapered, folded) and says which it is.
//
//   ./infer folded.bin --last-token              the paper's mode: only the last position's logits are computed
//   ./infer folded.bin --prompt "Once" -n 300    generation with a KV cache
//   ./infer folded.bin                           the same for what is typed at a terminal
//   ./infer folded.bin --prompts lines.txt       the same for every line of a file, many at a time; JSON lines
//   ./infer folded.bin --prompt "Once" --samples 5   five texts, each with random numbers of its own; JSON lines
//   ./infer folded.bin --eval text.txt           loss, perplexity, bits per byte
//   ./infer folded.bin --info                    what it is and where it comes from
//
// Speed is measured by a program of its own: make bench_infer (dev/bench_infer.cu).

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/stories.h"
#include "inference/engine.cuh"
#include "inference/evaluate.cuh"
#include "inference/generate.cuh"
#include "inference/hellaswag.cuh"
#include "inference/info.h"
#include "inference/line_editor.h"
#include "inference/logits.h"
#include "inference/prompts.h"
#include "inference/sampler.h"
#include "io/atomic_file.h"
#include "io/claims.h"
#include "io/json.h"
#include "io/mapped_file.h"
#include "io/options.h"
#include "io/terminal.h"
#include "io/tokenizer.h"
#include "model/model_file.h"
#include "runtime/exit_status.h"
#include "runtime/median.h"

namespace tapernorm::infer {

struct Settings {
    std::string model, prompt, tokens, prompts, eval, hellaswag, tokenizer, dump;
    bool last_token = false, greedy = false, ignore_eos = false, info = false, json = false;
    bool converses = false;  // with somebody at a terminal, who gave nothing to run on
    size_t n = 256, top_k = 0, seed = 1, stream = 1, samples = 1, show = 8, batch = 16;
    double temperature = 0.8, top_p = 1;
    EngineSettings engine;

    Sampling sampling() const { return {greedy ? 0 : temperature, top_k, top_p, seed, stream}; }
    // Many texts, as JSON lines.
    bool many() const { return !prompts.empty() || samples > 1; }
    std::FILE* text() const { return many() || json ? stderr : stdout; }  // what is for people goes there
};

static Options make_options(Settings& s) {
    Options o("infer", "Runs a model written by train_gpt or fold.");
    o.section("Input");
    // clang-format off
    o.add({.long_name = "file", .to = &s.model, .metavar = "MODEL",
           .help = "model.bin or folded.bin, the folder of a Hugging Face GPT-2, or a checkpoint of llm.c"});
    o.add({.short_name = "-p", .long_name = "--prompt", .to = &s.prompt, .metavar = "TEXT",
           .default_text = "what is typed at a terminal, line by line; without one, or with --samples and the like, the opening of a story (what is piped in is not read)",
           .help = "text to continue"});
    o.add({.long_name = "--tokens", .to = &s.tokens, .metavar = "IDS", .default_text = "none",
           .help = "token ids to continue, such as 1,2,3, instead of a text"});
    o.add({.long_name = "--prompts", .to = &s.prompts, .metavar = "FILE", .default_text = "none",
           .help = "complete every line of FILE, none of them empty; prints one JSON object per text"});
    o.add({.long_name = "--batch", .to = &s.batch, .metavar = "B", .range = {.low = 1, .high = 1024},
           .help = "texts of --prompts and --samples to generate at a time; on the CPU this does not change them; a GPU's "
                   "logits differ by rounding, and so may a text"});
    o.add({.long_name = "--eval", .to = &s.eval, .metavar = "FILE", .default_text = "none",
           .help = "print the model's loss on the text or the token shards in FILE: nats per token, perplexity, bits per byte, and what "
                   "its tokens lose at the median and at worst (token N: the N-th of the text); of a model with a bound also how many numbers it "
                   "clips (on the CPU); with --weights bf16 or int8 also the change from fp32"});
    o.add({.long_name = "--hellaswag", .to = &s.hellaswag, .metavar = "FILE", .default_text = "none",
           .help = "print the model's HellaSwag scores; FILE is llm.c's .bin or the original JSON lines"});
    o.add({.long_name = "--info", .to = &s.info,
           .help = "print what the model is and where it comes from (its provenance), and run nothing"});
    o.add({.long_name = "--tokenizer", .to = &s.tokenizer, .metavar = "PATH", .default_text = "the model's own",
           .help = "bytes, a folder with vocab.json and merges.txt, a tokenizer.json, or llm.c's gpt2_tokenizer.bin"});
    o.section("Output");
    o.add({.long_name = "--last-token", .to = &s.last_token,
           .help = "print the most probable next tokens instead of generating text; computes only the last position's "
                   "logits"});
    o.add({.long_name = "--show", .to = &s.show, .metavar = "K", .range = {.low = 1},
           .help = "number of next tokens that --last-token prints"});
    o.add({.short_name = "-n", .long_name = "--generate", .to = &s.n, .metavar = "N",
           .help = "number of tokens to generate; fewer, where <|endoftext|> ends the text"});
    o.add({.long_name = "--ignore-eos", .to = &s.ignore_eos, .help = "go on after <|endoftext|>"});
    o.add({.long_name = "--dump", .to = &s.dump, .metavar = "FILE", .default_text = "none",
           .help = "write the prompt's logits [rows, V] to a safetensors file: with --last-token the last row, else all "
                   "rows"});
    o.add({.long_name = "--json", .to = &s.json,
           .help = "with --last-token, --eval, --hellaswag or --info: print the result as one JSON object; what is for people goes to "
                   "the standard error"});
    o.section("Sampling");
    o.add({.long_name = "--temperature", .to = &s.temperature, .range = {.low = 0, .high = 100},
           .help = "divide the logits by this before sampling; 0 (and below 1e-6): always take the most probable token"});
    o.add({.long_name = "--top-k", .to = &s.top_k, .metavar = "K", .default_text = "all",
           .help = "sample from the K most probable tokens"});
    o.add({.long_name = "--top-p", .to = &s.top_p, .metavar = "P", .range = {.low = 0, .high = 1},
           .help = "sample from the smallest set of most probable tokens whose total probability reaches P"});
    o.add({.long_name = "--greedy", .to = &s.greedy, .help = "always take the most probable token"});
    o.add({.long_name = "--seed", .to = &s.seed, .help = "seed for sampling"});
    o.add({.long_name = "--samples", .to = &s.samples, .metavar = "S", .range = {.low = 1, .high = 1e6},
           .help = "texts to generate after each prompt; prints one JSON object per text"});
    o.add({.long_name = "--stream", .to = &s.stream, .metavar = "N", .range = {.low = 1, .high = 1e15},
           .help = "the seed's stream of random numbers for the first text; each text has the next one, so that with its "
                   "stream a line of --prompts, or a sample, is the same alone"});
    add_engine_options(o, s.engine);
    // clang-format on
    o.exclude("--eval", {"--hellaswag", "--prompts", "--last-token", "--prompt", "--tokens", "--dump", "--samples"});
    o.exclude("--hellaswag", {"--prompts", "--last-token", "--prompt", "--tokens", "--dump", "--samples"});
    o.exclude("--prompts", {"--last-token", "--prompt", "--tokens", "--dump"});
    o.exclude("--samples", {"--last-token", "--dump"});
    o.exclude("--tokens", {"--prompt"});
    o.exclude("--persistent", {"--eval", "--hellaswag", "--last-token", "--info"});
    o.exclude("--info",
              {"--eval", "--hellaswag", "--prompts", "--last-token", "--prompt", "--tokens", "--dump", "--samples"});
    return o;
}

// A token's bytes for a report: in quotes, with unprintable bytes escaped.
static std::string token_text(const std::optional<Tokenizer>& tokenizer, int id) {
    if (!tokenizer) return "";
    std::string text = "\"";
    for (char c : tokenizer->token(size_t(id))) {
        if (c == '"' || c == '\\') text += '\\';
        text += c == '\n' ? "\\n" : std::string(1, c);
    }
    return printable(text) + "\"";
}

// The token that ends a text: none for bytes, and none that is known for ids without a tokenizer.
static std::optional<int> end_token(const Settings& s, const std::optional<Tokenizer>& tokenizer) {
    if (s.ignore_eos || !tokenizer) return std::nullopt;
    return tokenizer->end_of_text();
}

static double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The probabilities of the token after the prompt, and the speed of this mode, which reads the whole prompt every time. Returns
// both for --json.
template <class Device, class Real>
nlohmann::ordered_json last_token(const Settings& s, Decoder<Device, Real>& decoder, const Prompt& prompt,
                                  const Config& c, const std::optional<Tokenizer>& tokenizer) {
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
    const double seconds = median(times);
    std::fprintf(s.text(), "prompt    %s: %s\n\nnext token, by probability:\n",
                 counted(prompt.tokens.size(), "token").c_str(),
                 printable(prompt.text.empty() ? s.tokens : prompt.text, "\n\t").c_str());
    auto rows = nlohmann::ordered_json::array();
    const size_t V = ids_with_text(c, tokenizer);
    const auto next = candidates(logits.data(), V, {.temperature = 1, .top_k = std::min(s.show, V)});
    double top = logits[size_t(next[0].token)], sum = 0;
    for (size_t i = 0; i < V; i++) sum += std::exp(double(logits[i]) - top);
    for (const TokenProbability& t : next) {
        const double probability = std::exp(double(logits[size_t(t.token)]) - top) / sum;
        std::fprintf(s.text(), "  %6.2f%%  %6d  %s\n", 100 * probability, t.token,
                     token_text(tokenizer, t.token).c_str());
        nlohmann::ordered_json row = {{"token", t.token}, {"probability", probability}};
        if (tokenizer) row["text"] = tokenizer->token(size_t(t.token));
        rows.push_back(row);
    }
    const double speed = double(prompt.tokens.size()) / seconds;
    std::fprintf(s.text(), "\nlast-token mode: %.0f tokens/s (%.3f ms for %s, median of %zu)\n", speed, seconds * 1e3,
                 counted(prompt.tokens.size(), "token").c_str(), times.size());
    if (!s.dump.empty()) dump_logits(s.dump, logits, c.V);
    return {{"prompt", prompt.text}, {"prompt_tokens", prompt.tokens}, {"next", rows}, {"tokens_per_second", speed}};
}

// Prints the prompt and what follows it, as it comes, until Ctrl-C where that is watched.
template <class Device, class Real>
void generate(const Settings& s, Generator<Device, Real>& generator, const Prompt& prompt, const Sampling& sampling,
              const std::optional<Tokenizer>& tokenizer) {
    Decoder<Device, Real>& decoder = generator.decoder();
    const Config& c = decoder.config();
    decoder.rewind(0);
    std::printf("\n");
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
    TextOutput out;
    out.write(prompt.text);
    const size_t V = ids_with_text(c, tokenizer);
    size_t generated = 0;
    const auto decode = std::chrono::steady_clock::now();
    generate_stream(generator, logits, prompt.tokens, V, s.n, sampling, end_token(s, tokenizer),
                    [&](size_t i, int token) {
                        if (token < 0) fail_not_finite(s.model);
                        MappedFile::check_all();
                        generated++;
                        out.write(tokenizer ? std::string(tokenizer->token(size_t(token)))
                                            : strprintf(i == 0 ? "%d" : ",%d", token));
                        flush_output();
                        return !interrupted;
                    });
    out.end();
    const double seconds = seconds_since(decode);
    std::printf("\n\nprompt %s in %.1f ms; %zu generated in %.2f s (%.2f ms per token)\n",
                counted(prompt.tokens.size(), "token").c_str(), prefill_seconds * 1e3, generated, seconds,
                seconds * 1e3 / double(std::max<size_t>(generated, 1)));
}

// Completes the lines that somebody types. Text i, from 0, has the stream --stream + i.
template <class Device, class Real>
void converse(const Settings& s, Decoder<Device, Real>& decoder, const PromptReader& prompts,
              const std::optional<Tokenizer>& tokenizer) {
    std::printf("prompts   each begins a text of its own, of %zu tokens (-n); Ctrl-C stops a text, Ctrl-D ends\n\n",
                s.n);
    Generator<Device, Real> generator(decoder, s.engine.persistent);
    Sampling sampling = s.sampling();
    LineEditor lines("> ");
    while (const std::optional<std::string> line = lines.next()) {
        if (line->empty()) continue;
        std::optional<Prompt> prompt;
        try {
            prompt = prompts.from_text(*line);
        } catch (const Error& error) {  // of this prompt alone
            print_error("infer", error_text(error).c_str());
            continue;
        }
        generate(s, generator, *prompt, sampling, tokenizer);
        std::printf("\n");
        sampling.stream++;
    }
    std::printf("\n");
}

// Completes every prompt --samples times, each time as if it were alone, --batch texts at a time; prints one JSON object for
// each. Text i, from 0, has the stream --stream + i.
template <class Device, class Real>
void generate_all(const Settings& s, Decoder<Device, Real>& decoder, const std::vector<Prompt>& prompts,
                  const Config& c, const std::optional<Tokenizer>& tokenizer) {
    const size_t V = ids_with_text(c, tokenizer), texts = prompts.size() * s.samples;
    const std::optional<int> end = end_token(s, tokenizer);
    const auto start = std::chrono::steady_clock::now();
    size_t generated = 0;
    Generator<Device, Real> generator(decoder, s.engine.persistent);
    for (size_t first = 0; first < texts; first += s.batch) {
        const size_t B = std::min(s.batch, texts - first);
        std::vector<std::vector<int>> tokens;
        for (size_t b = 0; b < B; b++) tokens.push_back(prompts[(first + b) / s.samples].tokens);
        Sampling sampling = s.sampling();
        sampling.stream += first;
        generate_together(generator, tokens, V, s.n, sampling, end, s.model);
        MappedFile::check_all();
        for (size_t b = 0; b < B; b++) {
            const Prompt& p = prompts[(first + b) / s.samples];
            const std::vector<uint16_t> ids(tokens[b].begin() + ptrdiff_t(p.tokens.size()), tokens[b].end());
            nlohmann::ordered_json line = {{"stream", sampling.stream + b}};
            if (tokenizer) line.update({{"prompt", p.text}, {"text", tokenizer->decode(ids)}});
            line["tokens"] = ids;
            print_json(line);
            generated += ids.size();
        }
        flush_output();
    }
    const double seconds = seconds_since(start);
    std::fprintf(stderr, "%s, %s, %s generated in %.2f s (%.0f tokens/s)\n", counted(prompts.size(), "prompt").c_str(),
                 counted(texts, "text").c_str(), counted(generated, "token").c_str(), seconds,
                 double(generated) / seconds);
}

// What the mode reads besides the model; checked before anything is computed.
struct Inputs {
    std::optional<Tokenizer> tokenizer;
    std::string why_no_tokenizer;
    std::vector<Prompt> prompts;  // one, or the lines of --prompts; none where they are still to be typed
    std::vector<Choice> choices;
    EvalTokens eval;
};

static void read_inputs(const Settings& s, const Options& options, const ModelInfo& info, Inputs& in) {
    in.tokenizer = tokenizer_if_any(s.tokenizer, info, s.model, in.why_no_tokenizer);
    const PromptReader prompts(s.model, info, in.tokenizer, in.why_no_tokenizer);
    const Tokenize encode = [&](std::string_view text) {
        return prompts.require_tokenizer().encode_parallel(text, true, int(s.engine.threads));
    };
    if (!s.hellaswag.empty())
        in.choices = read_hellaswag(s.hellaswag, in.tokenizer, info.config.V, info.config.T);
    else if (!s.prompts.empty())
        in.prompts = prompts.from_lines(s.prompts);
    else if (!s.eval.empty())
        in.eval = read_eval_tokens("--eval", s.eval, in.tokenizer, encode, info);
    else if (!s.tokens.empty())
        in.prompts = {prompts.from_ids(s.tokens)};
    else if (s.converses)
        prompts.require_tokenizer();
    else
        in.prompts = {options.given("--prompt") ? prompts.from_text(s.prompt)
                                                : prompts.from_opening(story_prompts()[0])};
}

// Returns the result for --json, of the modes that have one.
template <class Device, class Real>
nlohmann::ordered_json run(const Settings& s, const Engine<Device, Real>& engine, const Inputs& in) {
    const Config& c = engine.info.config;
    if (!s.eval.empty()) return report_loss(engine, in.eval, s.text());
    auto decoder = engine.decoder(s.many() ? std::min(s.batch, in.prompts.size() * s.samples) : 1);
    if (!s.hellaswag.empty()) {
        const HellaSwag scores = evaluate_hellaswag(decoder, in.choices, c.V);
        std::fprintf(s.text(), "hellaswag %s\n", scores.text().c_str());
        return {{"items", scores.items},
                {"acc", scores.acc()},
                {"acc_norm", scores.acc_norm()},
                {"log_likelihood", scores.log_likelihood / double(scores.items)}};
    }
    if (s.last_token) return last_token(s, decoder, in.prompts[0], c, in.tokenizer);
    if (s.many()) {
        generate_all(s, decoder, in.prompts, c, in.tokenizer);
    } else if (s.converses) {
        converse(s, decoder, PromptReader(s.model, engine.info, in.tokenizer, in.why_no_tokenizer), in.tokenizer);
    } else {
        Generator<Device, Real> generator(decoder, s.engine.persistent);
        generate(s, generator, in.prompts[0], s.sampling(), in.tokenizer);
    }
    return nlohmann::ordered_json::object();
}

static void check_output(const Settings& s) {
    if (s.dump.empty()) return;
    check_writable(s.dump);
    claim_output("--dump", s.dump), check_no_run("--dump", s.dump);
    check_replaceable("--dump", s.dump, "a file of logits",
                      [](const SafetensorsFile& file) { return file.find("logits") && file.entries().size() == 1; });
}

[[maybe_unused]] static int run_program(int argc, char** argv) {
    if (std::any_of(argv, argv + argc, [](const std::string& word) { return word == "--bench"; }))
        fail("--bench: the benchmark is a program of its own: make bench_infer && ./bench_infer");
    Settings s;
    Options options = make_options(s);
    if (!options.parse(argc, argv)) return 0;
    if (s.json && !s.info && !s.last_token && s.eval.empty() && s.hellaswag.empty())
        fail("--json: expected --last-token, --eval, --hellaswag or --info with it, found none of them; leave it out");
    if (s.info) {
        const std::unique_ptr<ModelFile> file = ModelFile::open(s.model);
        if (s.json)
            print_json(info_json(*file));
        else
            std::printf("%s", info_text(*file).c_str());
        return 0;
    }
    s.converses = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && !options.given("--prompt") && s.tokens.empty() &&
                  !s.many() && s.eval.empty() && s.hellaswag.empty() && !s.last_token && s.dump.empty();
    const DeviceChoice choice = choose_device(s.engine, options);
    Cpu cpu{int(s.engine.threads)};
    cpu.memory_hint = "use fewer sequences at a time, or --weights bf16 or int8";
    const std::unique_ptr<HostModel> model = load_model(cpu, s.model);
    Inputs in;
    read_inputs(s, options, model->info, in);
    check_output(s);  // after the inputs are known as such
    const std::string device = describe(s.engine, cpu, choice);
    std::fprintf(s.text(), "model     %s: %s\ndevice    %s\n", printable(s.model).c_str(),
                 describe(model->info).c_str(), device.c_str());
    nlohmann::ordered_json result = {{"model", s.model}, {"content", model->info.content}, {"device", device}};
    with_engine(s.engine, choice, cpu, s.model, *model, [&](const auto& engine) { result.update(run(s, engine, in)); });
    MappedFile::check_all();
    if (s.json) print_json(result);
    return 0;
}

}  // namespace tapernorm::infer

#ifndef TAPERNORM_NO_MAIN
int main(int argc, char** argv) {
    tapernorm::start_program();
    return tapernorm::exit_status("infer", [&] { return tapernorm::infer::run_program(argc, argv); });
}
#endif
