#include "train/start.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string_view>
#include <utility>

#include "data/stories.h"
#include "io/checksum.h"
#include "io/files.h"
#include "io/terminal.h"
#include "runtime/error.h"
#include "train/run_files.h"
#include "train/run_log.h"
#include "train/shape.h"

namespace tapernorm::train {

namespace {

constexpr size_t kGpt2Vocabulary = 50257;

std::unique_ptr<ModelFile> open_init(const std::string& path) {
    auto file = ModelFile::open(path);
    const ModelInfo& info = file->info();
    const char* found = info.config.fold != Fold::none ? "folded"
                        : info.gate != 1               ? "tapered"
                        : info.config.own_head
                            ? "untied (its lm_head.weight is not wte.weight, and the trainer has one tensor for both)"
                            : nullptr;
    if (info.config.eps > 1 || (info.gate != 1 && file->foreign()))
        found = "free of them (its norms are fixed maps, by a huge epsilon or a gate below 1)";
    if (found)
        fail(
            "--init: %s: expected a model with all its norms and wte as its head, found one that is %s; start from a -g norm model",
            file->path().c_str(), found);
    return file;
}

std::unique_ptr<SafetensorsFile> open_state(const Settings& s, Checkpoints& checkpoints, const Ranks& ranks) {
    std::string note;
    if (ranks.first()) finish_set_aside(s.out);
    auto state = checkpoints.open_newest(note, check_state);
    if (!note.empty() && ranks.first()) std::fprintf(stderr, "warning: %s\n", note.c_str());
    const std::string aside = state ? "" : run_set_aside(s.out);
    if (!aside.empty())
        fail("--resume: no state %s; an earlier run of this name was set aside as %s: ./train_gpt -y -o %s resumes it",
             state_path(s.out).c_str(), in_quotes(aside).c_str(), shell_word(aside).c_str());
    if (!state)
        fail("--resume: no state %s; expected the one that a run with -o %s writes; start it without -y",
             state_path(s.out).c_str(), s.out.c_str());
    return state;
}

SavedSettings saved_settings(const SafetensorsFile& state) {
    SavedSettings saved{.path = state.path(),
                        .arguments = state_metadata(state, "arguments"),
                        .gate_warmup = state_metadata(state, "gate_warmup"),
                        .gate_end = state_metadata(state, "gate_end"),
                        .total_batch = ""};
    saved.escaped = state_metadata(state, "state_version") != "1";
    auto said = [&](const char* key) { return state.metadata().count(key) ? state_metadata(state, key) : ""; };
    auto keep = [&](const char* flag, const std::string& value, const char* before = "") {
        if (!value.empty() || *before) saved.kept.push_back({flag, value.empty() ? before : value});
    };
    saved.total_batch = said("total_batch");
    keep("--scale-loss-kind", said("scale_loss_kind"), "absolute");  // in states that do not say it
    keep("--calibration", said("calibration"), "scalar");
    keep("--optimizer", said("optimizer"), "adamw");
    keep("--seq-len", said("seq_len"));  // older ones have the 256 that was the default for all
    const std::string lines = "\n" + saved.arguments;
    if (lines.find("\n--warmup=") == lines.npos && lines.find("\n-u") == lines.npos)
        keep("--warmup", said("warmup"), "2%");  // which it was for short runs, too
    // What --init's default rate was for all models, in states that do not say theirs.
    if (said("peak_lr").empty() && lines.find("\n--init=") != lines.npos && lines.find("\n--lr=") == lines.npos)
        saved.lr = "0.0006";
    const std::string gate = said("gate_mode");
    if (gate != "norm") keep("--bound", said("bound"), "0");
    if (gate == "taper-all") keep("--final-bound", said("final_bound"), said("bound").c_str());
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
        if (c.V < V && tokenizer == "gpt2")  // as shards are taken for; see find_tokenizer for the others
            fail("--train: the corpus has a vocabulary of %zu tokens (%s); expected the %zu of %s", V,
                 tokenizer.c_str(), c.V, start.origin.path.c_str());
        if (!start.foreign && own != tokenizer)
            fail("--tokenizer: expected %s, which %s was trained with, found %s", own.c_str(),
                 start.origin.path.c_str(), tokenizer.c_str());
    }
    c.mode = gate_mode_from(s.gate);
    c.bound = c.mode == GateMode::norm ? 0 : s.bound;
    c.final_bound = c.bound > 0 && c.mode == GateMode::taper_all ? s.final_bound : 0;
    c.first_apart = c.bound > 0 && s.calibration == "channels+first";
    return c;
}

// The one that made the shards to train on, where it lies beside them.
std::optional<Tokenizer> tokenizer_of_shards(const std::string& train) {
    if (train.empty()) return {};
    const std::string first = matching_files(train).front();
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(first, ignored) || !is_token_shard(first)) return {};
    return Tokenizer::beside(first);
}

// --tokenizer's; else that of the file to start from, where it is there; else that of the shards; else bytes.
// why_none: why there is none, which token shards do not need.
std::optional<Tokenizer> find_tokenizer(const Settings& s, const Start& start, const std::optional<Tokenizer>& shards,
                                        std::string& why_none) {
    if (start.from_file())
        return tokenizer_if_any(s.tokenizer,
                                {start.origin.config, 1, 0, start.tokenizer, {}, {}, start.vocabulary_problem},
                                start.origin.path, why_none);
    if (!s.tokenizer.empty()) return Tokenizer::from_path(s.tokenizer);
    return shards ? *shards : Tokenizer();
}

Source source_of(const TokenSource& corpus) {
    const std::vector<std::string> files = corpus.files();
    const std::string name = name_without_folder(files.front());
    return {files.size() > 1 ? strprintf("%s and %zu more", name.c_str(), files.size() - 1) : name,
            checksum_text(corpus.fingerprint()), corpus.size()};
}

// Shards were tokenized elsewhere: without a tokenizer beside them or one that says more than bytes, they are taken for those
// of the model to start from, or for GPT-2's.
Run open_corpora(const Settings& s, const Start& start) {
    std::string why_none;
    const std::optional<Tokenizer> shards = tokenizer_of_shards(s.train),
                                   tokenizer = find_tokenizer(s, start, shards, why_none);
    const bool bytes = tokenizer && tokenizer->name() == "bytes";
    const bool guess = s.tokenizer.empty() && (!tokenizer || (bytes && !shards));
    Tokenize encode = [&](std::string_view text) {
        if (!tokenizer) fail("--tokenizer: text needs one, and %s", why_none.c_str());
        return tokenizer->encode_parallel(text, true, int(s.threads));
    };
    if (bytes) encode = nullptr;
    const TokenSource corpus = s.train.empty() ? tokens_from_text(story_corpus(), "the built-in stories", encode)
                                               : open_tokens(s.train, encode);
    const auto [train, val] = s.val.empty() ? corpus.split_tail(0.1) : std::pair(corpus, open_tokens(s.val, encode));
    if (guess && val.from_shards() != train.from_shards())
        fail("--val: %s and %s: one is token shards, the other text; give --tokenizer", val.name().c_str(),
             train.name().c_str());
    Run run{train, val, {}, tokenizer, s.train.empty() ? story_prompts()[0] : "\n"};
    run.tokenizer_assumed = train.from_shards() && s.tokenizer.empty() && !shards;
    if (tokenizer)
        run.tokenizer = tokenizer->metadata();
    else
        run.vocabulary_problem = start.vocabulary_problem;
    if (corpus.from_shards() && guess) {
        run.tokenizer = tokenizer ? std::map<std::string, std::string>{{"tokenizer", "gpt2"}} : start.tokenizer;
        run.decode.reset();
    }
    const std::string& used = run.tokenizer.at("tokenizer");
    const size_t V = start.origin.config.V;  // where `used` is unknown, there is a model to start from
    if (train.from_shards()) check_shards("--train", train.files(), used, V);
    if (val.from_shards()) check_shards("--val", val.files(), used, V);
    return run;
}

void add_numbers(Checksum& sum, const ModelFile& model) {
    GptTensors<float> none{};
    visit_tensors(model.info().config, none, [&](const TensorSpec& spec, float*&) {
        std::vector<float> numbers(spec.count());
        model.read(spec, numbers.data());
        sum.add(numbers.data(), numbers.size() * sizeof(float));
    });
}

// --distill's teacher is --init's model. A run that goes on must find the one that it has learned from so far.
void open_teacher(const Settings& s, Run& run) {
    const bool known = run.state && run.state->metadata().contains("teacher");
    if (known) run.teacher_sum = state_metadata(*run.state, "teacher");
    if (s.distill == 0) return;
    const char* advice = "put back the model that the run began from, or go on with --distill 0";
    try {
        run.teacher = open_init(s.init);
    } catch (const Error& error) {
        if (!run.state) throw;
        fail("--distill: the teacher of the run in %s cannot be read: %s; %s", in_quotes(run.state->path()).c_str(),
             error.what(), advice);
    }
    Checksum sum;
    add_numbers(sum, *run.teacher);
    const std::string found = checksum_text(sum.value());
    Config same_mode = run.teacher->info().config;
    same_mode.mode = run.config.mode, same_mode.bound = run.config.bound;
    same_mode.final_bound = run.config.final_bound, same_mode.first_apart = run.config.first_apart;
    if (known && found != run.teacher_sum)
        fail("--distill: %s is not the teacher of the run in %s: expected numbers with the checksum %s, found %s; %s",
             in_quotes(run.teacher->path()).c_str(), in_quotes(run.state->path()).c_str(),
             printable(run.teacher_sum).c_str(), found.c_str(), advice);
    if (config_metadata(same_mode) != config_metadata(run.config))
        fail("--distill: %s: expected a teacher of the sizes of the model in %s, found others; %s",
             in_quotes(run.teacher->path()).c_str(), in_quotes(run.state->path()).c_str(), advice);
    run.teacher_sum = found;
}

void warn_of_changes(const Run& run, const SafetensorsFile& state) {
    auto before = [&](const char* key) {
        const auto found = state.metadata().find(key);
        return found == state.metadata().end() ? "" : found->second;
    };
    auto compare = [&](const char* key, const char* flag, const TokenSource& corpus, const std::string& now) {
        const std::string then = before(key);
        // Older states have a checksum of samples alone: of those, the number of tokens is compared.
        const bool same =
            then.find("checksum") != std::string::npos ? then == now : now.starts_with(then.substr(0, then.find(',')));
        if (!same)
            std::fprintf(stderr,
                         "warning: %s: %s is not what the run was trained on so far: expected %s, found %s; "
                         "it goes on with other data\n",
                         flag, corpus.name().c_str(), in_quotes(then).c_str(), in_quotes(now).c_str());
    };
    compare("corpus", "--train", run.train, corpus_text(run.corpus));
    compare("val_corpus", "--val", run.val, corpus_text(run.val_corpus));
    if (const std::string then = before("computed_with"); !then.empty() && then != run.computed_with)
        std::fprintf(
            stderr,
            "warning: until update %s this run was computed with %s, now with %s: its numbers will differ in the last "
            "digits from those of a run that was not moved\n",
            printable(before("step")).c_str(), in_quotes(then).c_str(), run.computed_with.c_str());
}

// A corpus that is not there may be one that the run saw from another folder.
Run corpora_of(const Settings& s, const Start& start) try {
    return open_corpora(s, start);
} catch (const Error& error) {
    const auto missing = [](const std::string& path) {
        try {
            return !std::filesystem::exists(matching_files(path).front());
        } catch (const Error&) {
            return true;
        }
    };
    for (const auto& [flag, path] : {std::pair("--train", s.train), std::pair("--val", s.val)})
        if (start.state && !path.empty() && missing(path))
            fail("%s; the run in %s has its paths relative to the current folder: if you are in another now, give %s",
                 error.what(), in_quotes(start.state->path()).c_str(), flag);
    throw;
}

// With --model, what the flags leave open; the shape itself may be another by flags that were typed.
void follow_recipe(Settings& s, Options& options, Start& start, const Ranks& ranks, const Machine& machine) {
    Settings shape = s;
    set_shape(options, s.depth, s.L, s.NH, s.C), set_shape_by_depth(s.depth, shape.L, shape.NH, shape.C);
    if (shape.L != s.L || shape.NH != s.NH || shape.C != s.C) return;
    start.corpora = corpora_of(s, start);
    const size_t V = start.corpora->decode ? start.corpora->decode->vocab_size() : kGpt2Vocabulary;
    start.recipe =
        recipe(s, options, {V, start.corpora->train.size(), size_t(ranks.size), machine.gpu, machine.free_bytes});
    for (const RecipeLine& line : start.recipe) options.choose(line.flag, line.value);
    check_holds_sequence(start.corpora->train, s.T);
}

}  // namespace

Start find_start(Settings& s, const Options& options, std::vector<std::string>& arguments, Checkpoints& checkpoints,
                 const Ranks& ranks, const std::function<Machine()>& machine) {
    Start start;
    std::optional<Options> resumed, chosen;
    if (s.resume) {
        start.state = open_state(s, checkpoints, ranks);
        resumed = resume_settings(s, options, arguments, saved_settings(*start.state));
        ModelInfo info{read_config(*start.state)};
        read_tokenizer(*start.state, info);
        start.origin = {start.state->path(), info.config};
        start.tokenizer = info.tokenizer, start.vocabulary_problem = info.vocabulary_problem;
    } else if (!s.init.empty()) {
        start.init = open_init(s.init);
        const ModelInfo& info = start.init->info();
        start.origin = {start.init->path(), info.config};
        start.tokenizer = info.tokenizer, start.vocabulary_problem = info.vocabulary_problem;
        start.foreign = start.init->foreign();
    } else if (!s.depth.empty()) {
        chosen = options;
        follow_recipe(s, *chosen, start, ranks, machine());
        arguments = chosen->arguments();
    }
    const Options& given = resumed ? *resumed : chosen ? *chosen : options;
    start.settings = settle(s, options, given, start.from_file() ? &start.origin : nullptr, ranks);
    // The state has its vocabulary: the folder that it came from may be gone.
    if (s.resume && !options.given("--tokenizer") && start.tokenizer.contains("tokenizer.vocab")) s.tokenizer.clear();
    return start;
}

Run open_run(const Settings& s, Start start) {
    Run run = start.corpora ? *std::exchange(start.corpora, {}) : corpora_of(s, start);
    if (run.val.size() <= s.T && run.train.size() > s.T)
        fail(
            "--val: the part of %s to validate on has %s, one sequence needs %zu (-t %zu and its last target); use "
            "a longer text, a smaller -t, or give a validation text with -j",
            run.val.name().c_str(), counted(run.val.size(), "token").c_str(), s.T + 1, s.T);
    run.config = make_config(s, run, start);
    if (!s.hellaswag.empty()) run.hellaswag = read_hellaswag(s.hellaswag, run.decode, run.config.V, run.config.T);
    run.settings_file = settings_text(start.settings);
    run.corpus = source_of(run.train), run.val_corpus = source_of(run.val);
    run.state = std::move(start.state), run.init = std::move(start.init);
    open_teacher(s, run);
    if (run.state && run.state->metadata().contains("run")) {
        run.id = state_metadata(*run.state, "run");
    } else {
        // Of what makes one run another: its flags, its corpora and the numbers that it begins from.
        Checksum sum;
        if (run.init) add_numbers(sum, *run.init);
        const std::string numbers = checksum_text(sum.value());
        const std::string what = run.settings_file + corpus_text(run.corpus) + corpus_text(run.val_corpus);
        sum.add(what.data(), what.size());
        run.id = checksum_text(sum.value());
        if (run.init) {
            const ModelInfo& info = run.init->info();
            run.step.model = {name_without_folder(s.init), info.content.empty() ? numbers : info.content};
            run.earlier_steps = info.provenance, run.provenance_refused = info.provenance_refused;
        }
    }
    if (run.state) {
        const std::string before = read_provenance(run.state->metadata(), &run.provenance_refused);
        run.earlier_steps = without_last_step(before, run.step);
    }
    run.step.settings = settings_of_model(s);
    run.step.train = run.corpus, run.step.val = run.val_corpus;
    return run;
}

std::string corpus_text(const Source& corpus) {
    return strprintf("%zu tokens, checksum %s", corpus.tokens, corpus.checksum.c_str());
}

std::string provenance(const Run& run, size_t updates, size_t tokens, const std::optional<Validation>& validation) {
    ProvenanceStep step = run.step;
    step.updates = updates, step.tokens = tokens, step.validation = validation;
    return add_step(run.earlier_steps, step);
}

void check_state(const SafetensorsFile& state) {
    if (const std::string& version = state_metadata(state, "state_version");
        version < "1" || version > "6" || version.size() > 1)
        fail("%s: state version: expected 1 to 6, found %s; use the version of this program that wrote the file",
             state.path().c_str(), in_quotes(version).c_str());
    const Config c = read_config(state);
    if (c.fold != Fold::none)
        fail("%s: metadata \"folded\": expected none in the state of a run, found %s; the file is damaged",
             state.path().c_str(), fold_name(c.fold));
    check_tensors(state, c);
    for (const char* number : {"step", "position", "gate_warmup", "gate_end"}) state_number(state, number);
    state_metadata(state, "arguments");
    auto check_numbers = [&]<class Real>(const TensorEntry& entry, bool infinite, std::vector<Real> numbers) {
        numbers.resize(entry.count());
        state.read(entry, numbers.data());
        for (const Real x : numbers)
            if (std::isnan(x) || (!infinite && std::isinf(x)))
                fail("%s: tensor %s: expected finite numbers, found %g; the run had diverged", state.path().c_str(),
                     in_quotes(entry.name).c_str(), double(x));
    };
    auto check = [&](const std::string& name, const std::vector<size_t>& shape, bool infinite) {
        const TensorEntry& entry = checked_tensor(state, name, shape);
        if (entry.dtype == Dtype::F64)
            check_numbers(entry, infinite, std::vector<double>());
        else
            check_numbers(entry, infinite, std::vector<float>());
    };
    const auto optimizer = state.metadata().find("optimizer");
    const bool muon = optimizer != state.metadata().end() && optimizer->second == "muon";
    GptTensors<float> none{};
    visit_tensors(c, none, [&](const TensorSpec& spec, float*&) {
        check(spec.name, spec.shape, false);
        // The mean of the squares of large gradients may be infinite: AdamW then stands still.
        check("m." + spec.name, spec.shape, true);
        if (!muon || block_matrices(spec) == 0) check("v." + spec.name, spec.shape, true);
    });
    // Averages of a stream that has run off may be anything; the run decides what becomes of it.
    checked_tensor(state, "state.stream", {3});
    if (const size_t sites = c.tapering_sites()) {
        checked_tensor(state, "state.calibration", {3 * sites});
        checked_tensor(state, "state.taper_scale", {sites});
        if (state.find("state.channels")) checked_tensor(state, "state.channels", {sites * 4 * c.C + 1});
        if (c.first_apart) checked_tensor(state, "state.first_scale", {sites});
        if (c.first_apart && state.find("state.channels")) checked_tensor(state, "state.first", {sites});
    }
    for (const char* window : {"state.losses", "state.gradient_norms"})
        if (const TensorEntry* entry = state.find(window)) check(window, {entry->count()}, true);
}

std::map<std::string, std::string> run_metadata(const Run& run) {
    std::map<std::string, std::string> metadata = {{"run", run.id},
                                                   {"corpus", corpus_text(run.corpus)},
                                                   {"val_corpus", corpus_text(run.val_corpus)},
                                                   {"computed_with", run.computed_with}};
    if (!run.teacher_sum.empty()) metadata["teacher"] = run.teacher_sum;
    return metadata;
}

// Says what will become of the files of an earlier run under this name, if there are any.
static void announce_earlier_run(const Settings& s) {
    if (existing_files(s.out).empty()) return;
    if (s.overwrite) {
        std::printf(
            "earlier   the files of an earlier run are replaced at the first checkpoint, as --overwrite says\n");
        return;
    }
    std::string updates;
    try {
        const SafetensorsFile state(state_path(s.out), FileUse::own);
        updates = " (" + counted(state_number(state, "step"), "update") + ")";
    } catch (const Error&) {
        // It had no checkpoint, or its state is damaged: its files are kept all the same.
    }
    const std::string model = shell_word(s.out), aside = shell_word(aside_path(s.out));
    if (updates.empty()) {
        std::printf(
            "earlier   the files of an earlier run, which has no state that can be read, become %s and so on at the first checkpoint\n",
            aside.c_str());
        return;
    }
    std::printf("earlier   %s and the files beside it are of an earlier run%s\n", model.c_str(), updates.c_str());
    std::printf(
        "          they become %s and so on at the first checkpoint; to resume that run instead: ./train_gpt -y -o %s\n",
        aside.c_str(), model.c_str());
}

// Fails where the model beside the state is none of this run: it would be lost. Of this run it may be the state's; the one
// before, where the run was killed between the two; a newer one, where the newest state is damaged, or where there was no room
// for it: that model has more updates than the state, fits the run whose log it has beside it, and is kept (make_room). A model that is damaged itself is no loss.
static void check_model(const Settings& s, Run& run) {
    const auto& state = run.state->metadata();
    std::error_code ignored;
    if (!state.contains("model") || run.state->path() != state_path(s.out)) return;  // older versions do not say
    if (!std::filesystem::exists(s.out, ignored)) return;
    std::map<std::string, std::string> model;
    try {
        const SafetensorsFile file(s.out, FileUse::own);
        model = file.metadata();
        if (model.contains("checksum")) file.verify();
    } catch (const Error&) {
        return;
    }
    for (const char* known : {"model", "model_before"})
        if (const auto sum = state.find(known); sum != state.end() && sum->second == content_checksum(model)) return;
    const size_t updates = std::strtoull(model["step"].c_str(), nullptr, 10);
    bool same = updates > state_number(*run.state, "step") && run_of_log(log_path(s.out)) == run.id;
    for (const auto& [key, value] : config_metadata(run.config)) same = same && model[key] == value;
    if (same) {
        run.newer_model = true;
        std::fprintf(
            stderr,
            "warning: the run's model (%s) is newer than its newest state (%s), from which it goes on; at the first "
            "checkpoint that model becomes %s\n",
            counted(updates, "update").c_str(), counted(state_number(*run.state, "step"), "update").c_str(),
            in_quotes(aside_path(s.out)).c_str());
        return;
    }
    fail(
        "--resume: %s would be overwritten, and nothing shows that it is a model of the run in %s; move it away, or give another name",
        in_quotes(s.out).c_str(), in_quotes(run.state->path()).c_str());
}

// The log of a run that ended before its first checkpoint is kept; files of the run before it are still in place.
static void keep_new_log(const Settings& s) {
    const std::string log = set_aside_new_log(s.out);
    if (log.empty()) return;
    const size_t updates = updates_in_log(log);
    if (s.resume)
        std::fprintf(
            stderr,
            "warning: a newer run of this name (%zu updates in its log, which is now %s) ended before its first "
            "checkpoint; this is the earlier one\n",
            updates, in_quotes(log).c_str());
    else
        std::printf("earlier   the log of a run that ended before its first checkpoint (%zu updates) is now %s\n",
                    updates, printable(log).c_str());
}

// What a run goes on with that does not say whose it is, or does not have.
static void warn_of_log(const Settings& s, const Run& run) {
    std::error_code ignored;
    const std::string log = log_path(s.out);
    const size_t step = state_number(*run.state, "step");
    if (!std::filesystem::exists(log, ignored)) {
        if (step > 0)
            std::fprintf(stderr,
                         "warning: the run's log, %s, is not there: what it had of %s is missing in the new one\n",
                         in_quotes(log).c_str(), counted(step, "update").c_str());
    } else if (!run.id.empty() && run_of_log(log).empty() && std::filesystem::file_size(log, ignored) > 0) {
        std::fprintf(stderr, "warning: the log %s does not say of which run it is; the run goes on with it\n",
                     in_quotes(log).c_str());
    }
}

void check_run(const Settings& s, Run& run) {
    if (run.init) warn_of_vocabulary(run.init->path(), run.vocabulary_problem);
    if (run.state) warn_of_vocabulary(run.state->path(), run.vocabulary_problem);
    warn_of_provenance(run.state ? run.state->path() : s.init, run.provenance_refused);
    finish_new_log(s.out);
    if (!run.state) {
        finish_set_aside(s.out);
        keep_new_log(s);
        run.first_checkpoint = true, run.new_log = !existing_files(s.out).empty();
        announce_earlier_run(s);
        return;
    }
    if (const std::string owner = run_of_log(log_path(s.out)); !owner.empty() && owner != run.id)
        fail("--resume: %s is the log of another run (%s) than %s (%s); move it away, or give the name of its own run",
             in_quotes(log_path(s.out)).c_str(), in_quotes(owner).c_str(), in_quotes(run.state->path()).c_str(),
             run.id.c_str());
    check_model(s, run);
    warn_of_log(s, run);
    keep_new_log(s);
    warn_of_changes(run, *run.state);
}

}  // namespace tapernorm::train
