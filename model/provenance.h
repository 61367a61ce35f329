// Where a model comes from: one step for each program that had a part in it, the oldest first. In a file it is one string of the
// metadata, "provenance": a JSON list, which every reader of safetensors shows.
//
// It says when, where and by what a model was made, and so differs between two runs that give the same bits. What the model is,
// all but the provenance, has a checksum of its own in the metadata, "content": models are the same where that is the same.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tapernorm {

// What a step began from. The name is the file's alone: models are published, and folders are nobody's business.
struct Source {
    std::string name;
    std::string checksum;  // a model's "content", or numbers_checksum; a corpus's TokenSource::fingerprint
    size_t tokens = 0;     // of a corpus
};

// A mean cross-entropy, in nats per token.
struct Validation {
    double loss = 0;
    size_t update = 0, tokens = 0;  // the updates done, the tokens predicted
};

// A stretch of a run, from its start or from where it was resumed.
struct Session {
    size_t after_update = 0;
    std::string version, device;
    int ranks = 1;
};

struct ProvenanceStep {
    std::string program;  // "train_gpt", "fold", "train_gpt export"
    std::vector<std::pair<std::string, std::string>> settings = {};
    std::optional<Source> model = {}, train = {}, val = {};
    size_t updates = 0, tokens = 0;  // of training
    std::optional<Validation> validation = {};
    std::vector<Session> sessions = {};

    // Unless it only goes on with the same program in the same place.
    void add_session(const Session& session);
};

// A provenance with a step behind those of `earlier` ("": none), by this version of the program, now.
std::string add_step(const std::string& earlier, const ProvenanceStep& step);

// A file's provenance; "" where it has none, or none that can be read: no reason to refuse a model. refused: whether that is so.
std::string read_provenance(const std::map<std::string, std::string>& metadata, bool* refused = nullptr);

// What is said of a file whose provenance is refused.
inline constexpr const char* kProvenanceRefused =
    "its provenance cannot be read, and is left out: expected a JSON list of steps, each an object with a \"program\"";

// That of a run's state as before its last step, and of that step what a run that resumes keeps: its model and sessions.
std::string without_last_step(const std::string& provenance, ProvenanceStep& last);

// The updates after which its last step was validated; 0 if it was not.
size_t validated_update(const std::string& provenance);

// For people, printable, one line per fact; "" for none.
std::string provenance_text(const std::string& provenance);

// "runs/corpus.txt" -> "corpus.txt", and "DIR/" -> "DIR"
std::string name_without_folder(const std::string& path);

}  // namespace tapernorm
