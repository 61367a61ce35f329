// What a run begins from: random weights, a model or a state; and its corpora and tokenizer.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "inference/hellaswag.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "model/model_file.h"
#include "train/checkpoints.h"
#include "train/recipe.h"
#include "train/settings.h"

namespace tapernorm::train {

// Everything that a run needs besides the trainer.
class RunLock;

struct Run {
    TokenSource train, val;
    std::map<std::string, std::string> tokenizer;  // as the model file stores it
    std::optional<Tokenizer> decode;               // where there is a vocabulary to decode samples with
    std::string prompt;                            // that samples complete
    bool tokenizer_assumed = false;                // of token shards, which do not say
    std::string vocabulary_problem = {};           // of the file to start from, where there is no tokenizer
    Config config = {};
    std::vector<Choice> hellaswag = {};              // scored with every validation
    std::vector<std::string> arguments = {};         // the flags, for the state file
    std::string id = {};                             // of the run, in its state and at the head of its log
    Source corpus = {}, val_corpus = {};             // what the corpora were at the start
    std::string computed_with = {};                  // the instruction set, or "cuda"
    ProvenanceStep step = {.program = "train_gpt"};  // this run's, as far as it is known at the start
    std::string earlier_steps = {};                  // of the model that it began from
    bool provenance_refused = false;                 // of that model, or of the state
    std::string saved_content = {};                  // of the model as it was written last
    bool model_stands = false;      // it was there already, validation and all, and is not written again
    std::string device = {};        // in words
    bool first_checkpoint = false;  // of a fresh run, still to come: until then an earlier run keeps its files
    bool newer_model = false;       // the model of the run that resumes is newer than the state: it is still to be kept
    bool new_log = false;           // there is an earlier one: until then, the log is at new_log_path
    RunLock* lock = nullptr;        // on rank 0
    std::string settings_file = {};               // the text of the file of settings
    Checkpoints checkpoints = Checkpoints("");    // the states, as they are written
    std::unique_ptr<SafetensorsFile> state = {};  // to resume
    std::unique_ptr<ModelFile> init = {};         // to take the weights from
    std::unique_ptr<ModelFile> teacher = {};      // --distill's
    std::string teacher_sum = {};                 // a checksum of its numbers
};

// The file that a run begins from; neither file is open where it begins from random weights.
struct Start {
    std::unique_ptr<SafetensorsFile> state;  // the state that -y resumes
    std::unique_ptr<ModelFile> init;         // the model that --init names
    Origin origin;
    std::map<std::string, std::string> tokenizer;  // Tokenizer::metadata()
    std::string vocabulary_problem = {};           // ModelInfo's
    bool foreign = false;                          // its tokenizer is a guess that --tokenizer may correct
    CompleteSettings settings;                     // what settle returned
    std::vector<RecipeLine> recipe = {};           // --model's, as far as it was followed
    std::optional<Run> corpora = {};               // opened already, where the recipe had to know their sizes

    bool from_file() const { return state || init; }
};

// What a recipe has to know of each rank's device.
struct Machine {
    bool gpu = false;
    double free_bytes = 0;  // 0: not known
};

// Opens what -y or --init says and settles s. options: as they parsed this command line. arguments: its words; with -y
// those of the run so far stand before them afterwards, with --model what its recipe chose. machine: is asked only for a recipe.
Start find_start(
    Settings& s, const Options& options, std::vector<std::string>& arguments, Checkpoints& checkpoints,
    const Ranks& ranks, const std::function<Machine()>& machine = [] { return Machine(); });

// Opens the corpora; takes over start's files.
Run open_run(const Settings& s, Start start);

// "120000 tokens, checksum 5f2c90aa01234567", as states and ranks compare corpora.
std::string corpus_text(const Source& corpus);

// Where the run's model comes from, as of now. validation: the latest.
std::string provenance(const Run& run, size_t updates, size_t tokens, const std::optional<Validation>& validation);

// Fails unless the state is of a version that we know and everything in it can be loaded. To be called before anything is
// allocated.
void check_state(const SafetensorsFile& state);

// What a state says of its run: whose it is, what it was computed from and with. Ends with the id, the corpora, and the
// instruction set, as metadata.
std::map<std::string, std::string> run_metadata(const Run& run);

// On rank 0, which writes: a fresh run notes whether there is an earlier one, and says what will become of its files; a resumed
// one fails for a log or a model that is not its own, and warns of a corpus or an instruction set that have changed.
void check_run(const Settings& s, Run& run);

}  // namespace tapernorm::train
