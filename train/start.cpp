#include "train/start.h"

#include <cstdio>
#include <string_view>
#include <utility>

#include "data/stories.h"
#include "runtime/error.h"

namespace tapernorm::train {

namespace {

constexpr size_t kGpt2Vocabulary = 50257;

std::unique_ptr<ModelFile> open_init(const std::string& path) {
    auto file = ModelFile::open(path);
    const ModelInfo& info = file->info();
    const char* found = info.config.fold != Fold::none ? "folded" : info.gate != 1 ? "tapered" : nullptr;
    if (info.config.eps > 1) found = "free of them (its norms are fixed maps: their epsilon is huge)";
    if (found)
        fail("--init: %s: expected a model with all its norms, found one that is %s; start from a -g norm model",
             file->path().c_str(), found);
    return file;
}

std::unique_ptr<SafetensorsFile> open_state(const Settings& s, Checkpoints& checkpoints, const Ranks& ranks) {
    std::string note;
    auto state = checkpoints.open_newest(note);
    if (!note.empty() && ranks.first()) std::fprintf(stderr, "warning: %s\n", note.c_str());
    if (!state)
        fail("--resume: no state %s; expected the one that a run with -o %s writes; start it without -y",
             state_path(s).c_str(), s.out.c_str());
    check_state(*state);
    return state;
}

SavedSettings saved_settings(const SafetensorsFile& state) {
    SavedSettings saved{state.path(), state_metadata(state, "arguments"), state_metadata(state, "gate_warmup"),
                        state_metadata(state, "gate_end"), ""};
    if (state.metadata().count("total_batch")) saved.total_batch = state_metadata(state, "total_batch");
    return saved;
}

// The model that the flags, the corpus and the file to start from ask for.
Config make_config(const Settings& s, const Run& run, const Start& start) {
    const std::string& tokenizer = run.tokenizer.at("tokenizer");
    const size_t V = run.decode ? run.decode->vocab_size() : kGpt2Vocabulary;
    Config c;
    c.V = V;
    c.T = s.T, c.L = s.L, c.NH = s.NH, c.C = s.C;
    c.norm = norm_from(s.norm);
    c.eps = default_eps(c.norm);
    if (start.from_file()) {
        c = start.origin.config;
        const std::string& own = start.tokenizer.at("tokenizer");
        if (c.V < V && tokenizer != "unknown")
            fail("--train: the corpus has a vocabulary of %zu tokens (%s); expected the %zu of %s", V,
                 tokenizer.c_str(), c.V, start.origin.path.c_str());
        if (run.decode) check_tokenizer(*run.decode, {c, 1, 0, start.tokenizer, {}}, start.origin.path);
        if (!start.foreign && own != tokenizer)
            fail("--tokenizer: expected %s, which %s was trained with, found %s", own.c_str(),
                 start.origin.path.c_str(), tokenizer.c_str());
    }
    c.mode = gate_mode_from(s.gate);
    return c;
}

// --tokenizer's; else that of the file to start from, where it is there; else bytes.
std::optional<Tokenizer> find_tokenizer(const Settings& s, const Start& start) {
    if (!s.tokenizer.empty()) return Tokenizer::from_path(s.tokenizer);
    if (!start.from_file()) return Tokenizer();
    try {
        return Tokenizer::from_metadata(start.tokenizer, start.origin.path);
    } catch (const Error&) {
        return {};  // token shards need none
    }
}

// Shards were tokenized elsewhere: without a tokenizer that says more than bytes, they are taken for those of the model to
// start from, or for GPT-2's.
Run open_corpora(const Settings& s, const Start& start) {
    const std::optional<Tokenizer> tokenizer = find_tokenizer(s, start);
    const bool bytes = tokenizer && tokenizer->name() == "bytes", guess = s.tokenizer.empty() && (!tokenizer || bytes);
    Tokenize encode = [&](std::string_view text) {
        if (!tokenizer)
            fail(
                "--tokenizer: %s has no tokenizer in it or next to it, and text needs one; expected a folder with vocab.json "
                "and merges.txt, or bytes",
                start.origin.path.c_str());
        return tokenizer->encode_parallel(text, true, int(s.threads));
    };
    if (bytes) encode = nullptr;
    const TokenSource corpus = s.train.empty() ? tokens_from_text(story_corpus(), "the built-in stories", encode)
                                               : open_tokens(s.train, encode);
    const auto [train, val] = s.val.empty() ? corpus.split_tail(0.1) : std::pair(corpus, open_tokens(s.val, encode));
    if (guess && val.from_shards() != train.from_shards())
        fail("--val: %s and %s: one is token shards, the other text; give --tokenizer", val.name().c_str(),
             train.name().c_str());
    if (val.size() <= s.T && train.size() > s.T)
        fail(
            "--val: the part of %s to validate on has %zu tokens, one sequence needs %zu (-t %zu and its last target); use "
            "a longer text, a smaller -t, or give a validation text with -j",
            val.name().c_str(), val.size(), s.T + 1, s.T);
    Run run{train, val, {}, tokenizer, s.train.empty() ? story_prompts()[0] : "\n"};
    if (tokenizer) run.tokenizer = tokenizer->metadata();
    if (corpus.from_shards() && guess) {
        run.tokenizer = tokenizer ? std::map<std::string, std::string>{{"tokenizer", "gpt2"}} : start.tokenizer;
        run.decode.reset();
    }
    return run;
}

}  // namespace

Start find_start(Settings& s, const Options& options, std::vector<std::string>& arguments, Checkpoints& checkpoints,
                 const Ranks& ranks) {
    Start start;
    std::optional<Options> resumed;
    if (s.resume) {
        if (options.typed("--init")) fail("--init and --resume: expected one of them, found both");
        start.state = open_state(s, checkpoints, ranks);
        // The run's own file of settings has its schedule as percentages; the state knows the updates that these were.
        for (const std::string flag : {"--gate-warmup", "--gate-end"})
            std::erase_if(arguments, [&](const std::string& a) {
                return a.starts_with(flag + "=") && a.ends_with('%') && !options.typed(flag);
            });
        resumed = resume_settings(s, arguments, saved_settings(*start.state));
        start.origin = {start.state->path(), read_config(*start.state)};
        start.tokenizer = read_tokenizer(*start.state);
    } else if (!s.init.empty()) {
        start.init = open_init(s.init);
        start.origin = {start.init->path(), start.init->info().config};
        start.tokenizer = start.init->info().tokenizer, start.foreign = start.init->foreign();
    }
    start.settings =
        settle(s, options, resumed ? *resumed : options, start.from_file() ? &start.origin : nullptr, ranks);
    return start;
}

Run open_run(const Settings& s, Start start) {
    Run run = open_corpora(s, start);
    run.config = make_config(s, run, start);
    if (!s.hellaswag.empty()) run.hellaswag = read_hellaswag(s.hellaswag, run.decode, run.config.V, run.config.T);
    run.settings_file = settings_text(start.settings);
    run.state = std::move(start.state), run.init = std::move(start.init);
    return run;
}

void check_state(const SafetensorsFile& state) {
    if (const std::string& version = state_metadata(state, "state_version"); version != "1")
        fail("%s: state version: expected 1, found %s; use the version of this program that wrote the file",
             state.path().c_str(), in_quotes(version).c_str());
    const Config config = read_config(state);
    if (config.fold != Fold::none)
        fail("%s: metadata \"folded\": expected none in the state of a run, found %s; the file is damaged",
             state.path().c_str(), fold_name(config.fold));
    check_tensors(state, config);
}

}  // namespace tapernorm::train
